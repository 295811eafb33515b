"""Federated methods, one file each, with both halves."""
