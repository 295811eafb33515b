"""Which layers and which values of a model a client gets, trains and sends (FedP3)."""
