"""What a packed model says of itself, so that its file alone is enough to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from motley.errors import PackedModelError
from motley.workload import Scalar

NAME = "motley/about"
"""Name of the tensor that holds it; a slash stands in no name of a layer that torch makes."""
FORMAT = 1
LONGEST = 1 << 16
"""Bytes of the description at most."""


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""As names in run files: what is printed of a stranger's file steers no terminal."""
Label = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""A name that a workload's code chooses: no control characters."""


class About(BaseModel):
    """Where a model comes from, and which code builds it."""

    # Fields that a later version adds are not in the way; an infinite argument stays one.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    format: int = FORMAT
    workload: Label
    """Its name; what the name stands for is each machine's own choice."""
    version: int = 1
    """Of the workload (`Workload.version`)."""
    arguments: Mapping[str, Scalar] = Field(default_factory=dict)
    """Of the workload's constructor, from the run file."""
    variant: Label
    run: Word
    """Id of the run that trained it."""
    name: Word
    """Name of that run."""
    algorithm: Label
    rounds: int
    client: Word | Literal[""] = ""
    """Whose personal model it is; "" for a global model."""
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
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
            where = ascii(".".join(map(str, first["loc"])) or "text")[1:-1][:100]
            raise PackedModelError(
                f"its description cannot be read: {where}: {first['msg']}"
            ) from None
        if about.format != FORMAT:
            raise PackedModelError(
                f"a packed model of format {about.format}; this version reads {FORMAT}: "
                f"update motley-fl"
            )
        return about
