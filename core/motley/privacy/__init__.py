"""Differential privacy of what a device sends: clipping, noise, accounting, the ledger.

Nothing here imports torch at its top but `clipping.py`, `dp_sgd.py` and `checks.py`, which only a
training process imports. `docs/privacy.md` says what is guaranteed against whom.
"""
