"""What a packed model says of itself, so that its file alone is enough to use it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from motley.errors import PackedModelError
from motley.workload import Scalar

NAME = "motley/about"
"""Name of the tensor that holds it; a slash stands in no name of a layer that torch makes."""
FORMAT = 1
LONGEST = 1 << 16
"""Bytes of the description at most."""


class About(BaseModel):
    """Where a model comes from, and which code builds it."""

    model_config = ConfigDict(frozen=True)  # fields that a later version adds are not in the way

    format: int = FORMAT
    workload: str
    """Its name; what the name stands for is each machine's own choice."""
    version: int = 1
    """Of the workload (`Workload.version`)."""
    arguments: Mapping[str, Scalar] = Field(default_factory=dict)
    """Of the workload's constructor, from the run file."""
    variant: str
    run: str
    """Id of the run that trained it."""
    name: str
    """Name of that run."""
    algorithm: str
    rounds: int
    client: str = ""
    """Whose personal model it is; "" for a global model."""
    digest: str = ""
    """SHA-256, hex, of a payload in named mode that holds the model's tensors alone."""

    def encode(self) -> bytes:
        """Return the description as JSON in UTF-8, without what has its default."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def decode(cls, text: bytes) -> About:
        """Read a description; raise PackedModelError when the text is none, or of a later format.

        `format` is left out of the text while it is 1.
        """
        if len(text) > LONGEST:
            raise PackedModelError(
                f"a description of {len(text)} bytes; at most {LONGEST} are read"
            )
        try:
            about = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "text"
            raise PackedModelError(
                f"its description cannot be read: {where}: {first['msg']}"
            ) from None
        if about.format != FORMAT:
            raise PackedModelError(
                f"a packed model of format {about.format}; this version reads {FORMAT}: "
                f"update motley-fl"
            )
        return about
