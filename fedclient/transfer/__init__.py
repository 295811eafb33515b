"""Payloads over the network, in frames: every break goes on where it stopped."""
