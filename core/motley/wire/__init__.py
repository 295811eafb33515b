"""Tensors to bytes and back."""

from motley.wire.dithered import quantize_lattice
from motley.wire.durable import file_sha256
from motley.wire.encoding import Encoding
from motley.wire.encodings import (
    ENCODING_NAMES,
    Codebook,
    Dense,
    DitheredLattice,
    Masked,
    UniformOffset,
    UniformPlanes,
)
from motley.wire.encodings.codebook import encode_codebook
from motley.wire.encodings.dense import encode_dense
from motley.wire.encodings.masked import encode_masked
from motley.wire.encodings.offset import encode_offset
from motley.wire.encodings.planes import encode_planes
from motley.wire.frames import FRAME_SIZE, Frame, FrameError, FrameWriter, iter_frames, partial_path
from motley.wire.manifest import VERSION
from motley.wire.masks import (
    BitMask,
    GapMask,
    Mask,
    PrefixMask,
    SeededMask,
    smallest_mask,
)
from motley.wire.packing import TILE, pack, packed_size, unpack
from motley.wire.payload import PayloadInfo, PayloadReader, is_payload, write_payload
from motley.wire.quantizer import quantize_planes, quantize_uniform
from motley.wire.table import DTYPES, TensorRow, TensorTable
from motley.wire.tensor import EncodedTensor

__all__ = [
    "DTYPES",
    "ENCODING_NAMES",
    "FRAME_SIZE",
    "TILE",
    "VERSION",
    "BitMask",
    "Codebook",
    "Dense",
    "DitheredLattice",
    "EncodedTensor",
    "Encoding",
    "Frame",
    "FrameError",
    "FrameWriter",
    "GapMask",
    "Mask",
    "Masked",
    "PayloadInfo",
    "PayloadReader",
    "PrefixMask",
    "SeededMask",
    "TensorRow",
    "TensorTable",
    "UniformOffset",
    "UniformPlanes",
    "encode_codebook",
    "encode_dense",
    "encode_masked",
    "encode_offset",
    "encode_planes",
    "file_sha256",
    "is_payload",
    "iter_frames",
    "pack",
    "packed_size",
    "partial_path",
    "quantize_lattice",
    "quantize_planes",
    "quantize_uniform",
    "smallest_mask",
    "unpack",
    "write_payload",
]
