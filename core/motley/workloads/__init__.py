"""The workloads that come with Motley; a user's own implement the same interface."""
