"""Which failures of a task the next task of the run would meet again."""

from __future__ import annotations

from motley.errors import LostStateError

_PERMANENT = frozenset(
    {
        *("workload", "lost_state", "plan", "data", "table_mismatch"),
        *("privacy", "privacy_budget", "privacy_ledger"),
    }
)


def is_permanent(code: str, *, may_restart: bool) -> bool:
    """Return whether a failure's code means that the client cannot go on with the run.

    `may_restart`: the run lets this client go on with a fresh personal state.
    """
    return code in _PERMANENT and not (code == LostStateError.code and may_restart)
