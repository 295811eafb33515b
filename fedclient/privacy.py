"""What a device spent of its data's privacy, on its disk: `privacy/` in the state directory.

secret           32 bytes that key all noise and sampling; for the owner's eyes alone
ledger.jsonl     an entry a line, each with its CRC-32; only ever appended to
budget.json      the owner's budget, until another is given
lock             held (flock) by who spends

A line is on the disk before its noise is drawn. One that was cut short was never used, and the next
entry takes its place. Anything else that is not whole stops all private training: what was spent is
then not known.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from fedclient.disk import Disk
from fedclient.errors import OptionError
from motley.errors import IdentityError, PrivacyLedgerError
from motley.identity.private_files import read_private, write_private
from motley.privacy.ledger import Budget, Entry, Labels, noise_labels
from motley.privacy.noise import KEY_BYTES

NO_BUDGET = "none"


class PrivacyFiles:
    """The `PrivacyStore` of a device."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self._directory, self._disk = directory, disk or Disk()
        self._ledger, self._secret = directory / "ledger.jsonl", directory / "secret"
        self._budget = directory / "budget.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from spending; makes the folder."""
        self._disk.make_directory(self._directory)
        handle = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def secret(self) -> bytes:
        """Return the device's secret, made when first asked for.

        Raises:
            PrivacyLedgerError: it is gone, damaged, or others can read it.
        """
        if not self._secret.exists():
            if self._ledger.exists() and self.entries():
                raise PrivacyLedgerError(
                    f"{self._secret} is gone, and {self._ledger.name} holds entries; put it back, "
                    f"or move {self._directory} away once nothing of this data may be spent again"
                )
            # The ledger first: a secret without one says that a ledger was lost.
            self._append(b"")
            write_private(self._secret, secrets.token_bytes(KEY_BYTES))
        try:
            content = read_private(self._secret)
        except IdentityError as error:
            raise PrivacyLedgerError(str(error)) from None
        if len(content) != KEY_BYTES:
            raise PrivacyLedgerError(
                f"{self._secret} has {len(content)} bytes; expected {KEY_BYTES}: put it back"
            )
        return content

    def budget(self) -> Budget | None:
        """Return the owner's budget; raise PrivacyLedgerError when it cannot be read."""
        try:
            return Budget.model_validate_json(self._budget.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            raise PrivacyLedgerError(
                f"{self._budget} is not readable ({error}); give the budget again with "
                f"--privacy-budget EPSILON,DELTA"
            ) from None

    def set_budget(self, budget: Budget | None) -> None:
        """Keep the owner's budget until another is given; None takes it away."""
        with self.exclusive():
            if budget is None:
                self._disk.remove(self._budget)
            else:
                self._disk.write(self._budget, budget.model_dump_json().encode())

    def entries(self) -> Sequence[Entry]:
        """Return all entries, oldest first.

        Raises:
            PrivacyLedgerError: the ledger is gone or damaged, so that what was spent is not known.
        """
        return [self._entry(line, number) for number, line in enumerate(self._lines(), start=1)]

    def append(self, entry: Entry) -> None:
        """Add an entry; it is on the disk when this returns."""
        text = entry.model_dump_json().encode()
        self._append(text + b" %08x\n" % zlib.crc32(text))

    def fresh(self) -> tuple[str, float]:
        """Return (a nonce of 128 bits, hex; the wall clock)."""
        return secrets.token_hex(16), time.time()

    def labels(self, entry: Entry) -> Labels:
        """Return run, round, attempt, model and nonce."""
        return noise_labels(entry)

    def _lines(self) -> list[bytes]:
        """Return the whole lines; what follows the last line break was never used."""
        if not self._ledger.exists():
            if self._secret.exists():
                raise PrivacyLedgerError(
                    f"{self._ledger} is gone: what was spent is not known. Put it back, or move "
                    f"{self._directory} away once nothing of this data may be spent again"
                )
            return []
        return self._ledger.read_bytes().split(b"\n")[:-1]

    def _entry(self, line: bytes, number: int) -> Entry:
        text, _, code = line.rpartition(b" ")
        try:
            if b"%08x" % zlib.crc32(text) != code:
                raise ValueError("the check sum is wrong")
            return Entry.model_validate_json(text)
        except ValueError as error:
            raise PrivacyLedgerError(
                f"line {number} of {self._ledger} is damaged ({str(error).splitlines()[0]}): what "
                f"was spent is not known. Put a whole ledger back, or move {self._directory} away "
                f"once nothing of this data may be spent again"
            ) from None

    def _append(self, line: bytes) -> None:
        """Write behind the last whole line and bring it to the disk."""
        created = not self._ledger.exists()
        whole = sum(len(kept) + 1 for kept in self._lines()) if not created else 0
        handle = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.seek(whole)
            stream.truncate()
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        if created:
            self._disk.sync(self._directory)


def parse_budget(text: str) -> Budget | None:
    """Read `EPSILON,DELTA`, or `none`; raise OptionError on another form.

    >>> parse_budget("8,1e-5")
    Budget(epsilon=8.0, delta=1e-05)
    """
    if text == NO_BUDGET:
        return None
    epsilon, _, delta = text.partition(",")
    try:
        return Budget(epsilon=float(epsilon), delta=float(delta))
    except ValueError:
        raise OptionError(
            f"--privacy-budget {text!r}: expected EPSILON,DELTA such as 8,1e-5 (epsilon above 0, "
            f"delta between 0 and 1), or {NO_BUDGET}"
        ) from None
