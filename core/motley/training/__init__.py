"""Local steps that every method shares: batches, evaluation. Needs torch."""
