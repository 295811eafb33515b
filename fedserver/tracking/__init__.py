"""Other people's trackers of experiments, told of every round that closes."""
