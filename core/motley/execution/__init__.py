"""Runs one task over a personal-state interface; daemon and simulation supply the storage."""
