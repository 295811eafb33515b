"""Runs whose clients live in this process; see `simulation.simulate`."""
