"""Many clients' updates into one global model, a tile at a time, in order of name."""
