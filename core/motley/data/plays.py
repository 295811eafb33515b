"""Plays as plain text: blank lines part speeches, the first line of each is `NAME:`.

The form in which the "tiny Shakespeare" file is published (input.txt, 1,115,394 characters).
"""

from __future__ import annotations

import re
from pathlib import Path

from motley.data.shared import shared
from motley.errors import DataError

FILE = "input.txt"


@shared
def read_roles(location: Path) -> dict[str, list[str]]:
    """Return each role's speeches in order, roles in order of their number of characters.

    The role with the most characters comes first; ties are in order of name.

    Args:
        location: the file, or the folder that holds it as `input.txt`.

    Raises:
        DataError: there is no such file, it is no text, or a speech does not start with a name.
    """
    path = location / FILE if location.is_dir() else location
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected plays as text, or their folder "
            f"with {FILE}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}; expected plays as text") from None
    roles: dict[str, list[str]] = {}
    for number, speech in enumerate(re.split(r"\n{2,}", text.strip("\n")), start=1):
        name, _, words = speech.partition("\n")
        if not name.endswith(":") or name == ":":
            raise DataError(
                f"paragraph {number} of {path} starts with {name[:60]!r}; expected a line with the "
                f"role's name and a colon, as 'HAMLET:', above each speech"
            )
        roles.setdefault(name[:-1], []).append(words)
    return dict(sorted(roles.items(), key=lambda item: (-characters(item[1]), item[0])))


def characters(speeches: list[str]) -> int:
    """Return how many characters speeches have together."""
    return sum(map(len, speeches))


def cut(speeches: list[str], count: int) -> tuple[list[str], list[str]]:
    """Return the first `count` characters of speeches, and the rest, as speeches.

    >>> cut(["abc", "de"], 2)
    (['ab'], ['c', 'de'])
    """
    first, rest = [], []
    for speech in speeches:
        head, tail = speech[: max(0, count)], speech[max(0, count) :]
        count -= len(speech)
        first += [head] if head else []
        rest += [tail] if tail else []
    return first, rest
