"""What a doctor sees of certificates, their files and the clock. Needs cryptography."""

from __future__ import annotations

import shlex
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from motley.checkup.findings import Finding, fine, problem, warning
from motley.errors import IdentityError
from motley.identity.certificates import Certificate, read_certificate

DAY = 86400.0


def moment(seconds: float) -> str:
    """Return a time in UTC for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def read(path: Path) -> Certificate | None:
    """Return the first certificate of a file; None when there is none."""
    try:
        return read_certificate(path.read_bytes())
    except (OSError, IdentityError):
        return None


def certificate(
    what: str, path: Path, now: float, *, mend: str, renews: str, commands: Sequence[str] = ()
) -> Finding:
    """Tell until when a certificate counts.

    Args:
        what: the line's name.
        path: the file that holds it.
        now: seconds since 1970.
        mend: what to do when it does not count.
        renews: who renews it, e.g. `by the daemon`; "" when nobody does.
        commands: what to type for that.
    """
    found = read(path)
    if found is None:
        return problem(what, f"{path} holds no certificate", mend, *commands)
    text = f"from {moment(found.not_before)} to {moment(found.not_after)}"
    if now < found.not_before:
        do = f"set the clock, if it is wrong; {mend}"
        return problem(what, f"{text}: it has not begun", do, *commands)
    if now >= found.not_after:
        return problem(what, f"{text}: it ran out", mend, *commands)
    if not renews:
        return fine(what, text)
    text = f"{text}, renewed {renews} from {moment(found.renew_at)} on"
    if now >= found.renew_at + (found.not_after - found.renew_at) / 2:
        days = (found.not_after - now) / DAY
        do = f"let the daemon reach its server; {mend}"
        return warning(what, f"{text}: {days:.1f} days are left", do, *commands)
    return fine(what, text)


def permissions(what: str, path: Path) -> Finding:
    """Tell whether a file with a key is its owner's alone."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return problem(what, f"{path}: {error.strerror}", "put it back from a backup, or join anew")
    if mode & 0o077:
        found = f"{path} can be used by others (mode {mode:04o})"
        do = "take it from them; a new key, when somebody may have read it"
        return problem(what, found, do, shlex.join(["chmod", "600", str(path)]))
    return fine(what, f"{path} is its owner's alone")


def clock(certificates: Mapping[str, Certificate], now: float) -> Finding:
    """Tell whether the clock fits the dates of certificates; nothing finer is known.

    Args:
        certificates: by whose they are.
        now: seconds since 1970, by this machine.
    """
    text = moment(now)
    for whose, found in certificates.items():
        if now < found.not_before:
            do = "set the clock: it is behind the moment at which that was made"
            return problem("clock", f"{text}; {whose} begins {moment(found.not_before)}", do)
        if now >= found.not_after:
            do = "set the clock; if it is right, that certificate has run out"
            return problem("clock", f"{text}; {whose} ended {moment(found.not_after)}", do)
    if not certificates:
        return warning(
            "clock", f"{text}; nothing here to compare it with", "compare it with a clock"
        )
    return fine("clock", f"{text}, within the dates of {', '.join(certificates)}")
