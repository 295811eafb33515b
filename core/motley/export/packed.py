"""A packed model: a payload in named mode, with one more tensor that says what it is.

The model's tensors lie in it in the very encodings of the device's own file, so that it is exact;
`motley/about` is a uint8 tensor whose bytes are JSON (docs/export.md). Any reader of payloads reads
it, and knows no more of it than that.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.errors import PackedModelError, PayloadError
from motley.export.about import NAME, About
from motley.wire import EncodedTensor, PayloadInfo, PayloadReader, encode_dense, write_payload

Array = npt.NDArray[np.generic]
Encoded = Mapping[str, EncodedTensor]


@dataclass(frozen=True)
class PackedModel:
    """A model as its file holds it."""

    about: About
    tensors: Encoded
    """By name, in the order of the model."""

    @classmethod
    def of(cls, about: About, tensors: Encoded) -> PackedModel:
        """Return a model whose description names the digest of its tensors."""
        return cls(about.model_copy(update={"digest": digest_of(tensors)}), tensors)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same tensors in memory, in their own types: the model in full precision."""
        return sum(t.size * np.dtype(t.dtype).itemsize for t in self.tensors.values())

    def values(self) -> dict[str, Array]:
        """Return the decoded tensors; raise PackedModelError where one lacks a part."""
        try:
            return {name: tensor.decode() for name, tensor in self.tensors.items()}
        except PayloadError as error:
            raise PackedModelError(f"a tensor of the model cannot be decoded: {error}") from None


def read_tensors(path: Path) -> dict[str, EncodedTensor]:
    """Return the tensors of a payload in named mode, such as a device's finished model.

    Raises:
        PackedModelError: it is none, is damaged, or holds what is not finite.
        OSError: the file cannot be read.
    """
    try:
        with PayloadReader(path) as reader:
            reader.check_finite()
            return dict(reader.items())
    except PayloadError as error:
        raise PackedModelError(
            f"{path} is no packed model, or damaged: {error}. Export it again; a global model that "
            f"`fedserver fetch` wrote becomes one with `fedserver export --format packed`"
        ) from None


def read_packed(path: Path) -> PackedModel:
    """Read a packed model and check it whole.

    Raises:
        PackedModelError: it is none, is damaged, or holds what is not finite.
        OSError: the file cannot be read.
    """
    tensors = read_tensors(path)
    described = tensors.pop(NAME, None)
    if described is None:
        raise PackedModelError(
            f"{path} is a payload that does not say which model it is; make one that does "
            f"with `fedclient export RUN` (a device's own model) or `fedserver export RUN --format "
            f"packed`"
        )
    if described.dtype != "uint8":
        raise PackedModelError(f"{path}: {NAME} is {described.dtype}; expected uint8")
    try:
        about = About.decode(described.decode().tobytes())
    except PackedModelError as error:
        raise PackedModelError(f"{path}: {error}") from None
    if about.digest != digest_of(tensors):
        raise PackedModelError(
            f"{path} is damaged: its tensors have not the digest that it names; export it again"
        )
    return PackedModel(about, tensors)


def write_packed(path: Path, model: PackedModel) -> PayloadInfo:
    """Write a packed model whole or not at all.

    Raises:
        EncodingError: a tensor is called like the description.
        OSError: the file cannot be written.
    """
    text = np.frombuffer(model.about.encode(), np.uint8)
    return write_payload(path, [*model.tensors.items(), (NAME, encode_dense(text))])


def digest_of(tensors: Encoded) -> str:
    """Return the SHA-256, hex, of the payload in named mode of these tensors alone."""
    return write_payload(io.BytesIO(), list(tensors.items())).sha256.hex()
