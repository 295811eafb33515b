"""Model families, and the table that names every tensor of a model and the layer it belongs to."""
