"""Readers of published data formats, and partitions of a set over clients."""
