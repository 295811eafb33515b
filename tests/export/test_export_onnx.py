"""ONNX: onnxruntime predicts as the model does, weights stay in few bits, and refusals say why."""

from __future__ import annotations

import builtins
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import VARIANTS, about, data_of
from torch import nn

from motley.errors import ExportError, MissingExtraError, PackedModelError
from motley.export.convert import Format, Ground, export, with_half_ends
from motley.export.onnx_file import about_of, session
from motley.export.packed import PackedModel
from motley.export.predictions import build, outputs_of, runner
from motley.models.bag import EmbeddingBag
from motley.models.sensor import SensorCNN
from motley.models.units import fresh_tensors
from motley.wire import (
    EncodedTensor,
    encode_codebook,
    encode_dense,
    encode_masked,
    encode_offset,
    encode_planes,
    smallest_mask,
)
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.digits import Digits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TIERS = tuple(VARIANTS)
WHOLE = DataSpec.parse("digits")
"""540 test samples of all ten digits."""


def kinds_of(path: Path) -> dict[str, str]:
    """Return the type of each initializer."""
    graph = onnx.load(path).graph
    return {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}


@pytest.mark.parametrize("tier", TIERS)
def test_onnxruntime_predicts_as_the_model_on_whole_test_sets(
    tier: str, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    model, workload, path = models[tier], Digits(), tmp_path / "model.onnx"
    own = data_of(TIERS.index(tier)).test
    done = export(model, path, Format.ONNX, Ground(workload, own))
    assert done.agreement is not None
    assert (done.agreement.samples, done.agreement.changed, done.plain) == (len(own), 0, ())
    assert about_of(path) == model.about
    module = build(workload, model.about, model.values())
    for split in (own, workload.held_out(WHOLE)):
        expected = outputs_of(runner(module), split)
        found = outputs_of(session(path), split)
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_stored_in_few_bits(models: dict[str, PackedModel], tmp_path: Path) -> None:
    sizes = {}
    for number, tier in enumerate(TIERS):
        path = tmp_path / f"{tier}.onnx"
        export(models[tier], path, Format.ONNX, Ground(Digits(), data_of(number).test))
        kinds, sizes[tier] = kinds_of(path), path.stat().st_size
        if tier == "full":
            assert set(kinds.values()) == {"FLOAT"}
        else:
            low = [name for name, kind in kinds.items() if kind == "UINT4"]
            quantized = [
                n for n, t in models[tier].tensors.items() if t.encoding.name == "codebook"
            ]
            assert quantized
            assert low == [f"{name}.codes" for name in quantized]
            assert not set(quantized) & set(kinds)
    # 20,160 of the 21,386 values of a cnn1 take half a byte instead of four.
    assert sizes["b2"] < sizes["full"] - 20_160 * 3.5 + 3_000


@pytest.mark.parametrize("tier", ["b2", "b8"])
def test_planes_become_integers(tier: str, planes: dict[str, PackedModel], tmp_path: Path) -> None:
    path, split = tmp_path / "model.onnx", Digits().held_out(WHOLE)
    done = export(planes[tier], path, Format.ONNX, Ground(Digits(), split))
    assert done.agreement is not None
    assert done.agreement.changed == 0
    kinds = kinds_of(path)
    for name, tensor in planes[tier].tensors.items():
        if tensor.encoding.name != "uniform":
            continue
        codes = tensor.codes()
        fits = [
            kind
            for kind, low, high in (("INT4", -8, 7), ("INT8", -128, 127), ("INT16", -255, 255))
            if low <= codes.min() and codes.max() <= high
        ]
        assert kinds[f"{name}.codes"] == fits[0]
    assert {kind for name, kind in kinds.items() if name.endswith(".codes")} & {"INT4", "INT16"}


# --- every encoding, bit for bit -----------------------------------------------------------------


class Echo(nn.Module):
    """Returns its weight for every sample, so that a graph shows what it makes of a tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.flatten().unsqueeze(0) + 0 * x[:, :1]


class OneModel(Workload):
    """Builds the model that a test gives it."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def variants(self) -> dict[str, Variant]:
        return {"one": Variant(self._make)}

    def load(self, spec: DataSpec) -> LocalData:
        raise NotImplementedError


def samples(*shape: int, classes: int = 3, integers: int = 0) -> Split:
    rng = np.random.default_rng(1)
    inputs = rng.integers(0, integers, shape) if integers else rng.normal(size=shape)
    kind = np.int64 if integers else np.float32
    return Split(inputs.astype(kind), rng.integers(0, classes, shape[0]))


def forms() -> dict[str, tuple[EncodedTensor, str]]:
    """Return tensors of seven columns (an odd number of nibbles) in every encoding."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 7)).astype(np.float32)
    found = {}
    for bits in range(1, 9):
        count = 2**bits
        codes = rng.integers(0, count, (3, 7)).astype(np.uint8)
        centres = rng.normal(size=count).astype(np.float32)
        kind = "UINT4" if bits <= 4 else "UINT8"
        found[f"codebook{bits}"] = (encode_codebook(codes, centres), kind)
        found[f"offset{bits}"] = (encode_offset(codes, -0.37, 0.0131, bits), kind)
        signed = rng.integers(1 - count, count, (3, 7)).astype(np.int16)
        signed[0, :2] = (count - 1, 1 - count)
        signed_kind = "INT4" if bits <= 3 else "INT8" if bits <= 7 else "INT16"
        found[f"planes{bits}"] = (encode_planes(signed, 0.0173, bits), signed_kind)
    found["odd-codebook"] = (
        encode_codebook(np.zeros((1, 1), np.uint8), np.float32([2.5])),
        "UINT4",
    )
    found["float16"] = (encode_dense(values, "float16"), "FLOAT16")
    found["bfloat16"] = (encode_dense(values, "bfloat16"), "BFLOAT16")
    kept = np.abs(values) > 0.5
    mask = smallest_mask(kept)
    sparse = encode_masked(encode_dense(mask.take(values)), mask, values.shape)
    found["masked"] = (sparse, "")
    found["float32"] = (encode_dense(values), "")
    return found


@pytest.mark.parametrize("name", forms())
def test_every_form_gives_the_very_bits(name: str, tmp_path: Path) -> None:
    tensor, kind = forms()[name]
    model = PackedModel.of(about("one"), {"weight": tensor})
    workload, path = OneModel(partial(Echo, tensor.shape)), tmp_path / "model.onnx"
    done = export(model, path, Format.ONNX, Ground(workload, samples(4, 2, classes=2)))
    assert done.plain == ()
    found = session(path)(samples(4, 2).inputs)
    expected = np.broadcast_to(tensor.decode().reshape(-1), found.shape)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
    kinds = kinds_of(path)
    if kind:
        assert kind in kinds.values()
        assert "weight" not in kinds
    else:
        assert kinds["weight"] == "FLOAT"


# --- the models of this project, and those of users ----------------------------------------------


def exported(make: Any, split: Split, path: Path) -> PackedModel:
    """Export a freshly drawn model whose inner matrices have four centres."""
    tensors: dict[str, EncodedTensor] = {}
    for name, values in fresh_tensors(Variant(make), 3).items():
        tensors[name] = encode_dense(values)
        if values.ndim >= 2:
            centres = np.quantile(values, [0.1, 0.4, 0.6, 0.9]).astype(np.float32)
            codes = np.abs(values[..., None] - centres).argmin(-1).astype(np.uint8)
            tensors[name] = encode_codebook(codes, centres)
    model = PackedModel.of(about("one"), tensors)
    done = export(model, path, Format.ONNX, Ground(OneModel(make), split))
    assert done.agreement is not None
    assert done.agreement.changed == 0
    assert done.agreement.apart < 1e-4
    assert done.plain == ()
    return model


IMAGES = {name: v.build for name, v in Digits().variants().items() if "1024" not in name}


@pytest.mark.parametrize("name", [n for n in IMAGES if "18" not in n and n != "resnet44"])
def test_every_image_model_can_be_exported(name: str, tmp_path: Path) -> None:
    exported(
        IMAGES[name],
        Digits().held_out(DataSpec.parse("digits?clients=20&client=1")),
        tmp_path / "m.onnx",
    )


def test_text_and_sensor_models_can_be_exported(tmp_path: Path) -> None:
    bag = partial(EmbeddingBag, vocabulary=40, width=6, classes=5)
    exported(bag, samples(30, 9, classes=5, integers=40), tmp_path / "bag.onnx")
    sensor = partial(SensorCNN, width=32, channels=3, filters=(4, 8), hidden=9, classes=2)
    exported(sensor, samples(30, 32, 3, classes=2), tmp_path / "sensor.onnx")


class Recurrent(nn.Module):
    """A user's model: an LSTM over [B, T, 3], as none of this project's."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.drop(self.lstm(x)[0][:, -1]))
        return found


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(x), x


class Choosy(Pair):
    """Does something else by the values of its inputs."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(x) if x[0].sum() > 0 else -self.fc(x)


class Exotic(Pair):
    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(torch.special.i0(x))


def test_a_users_model_is_exported_or_checked(tmp_path: Path) -> None:
    make, path = Recurrent, tmp_path / "m.onnx"
    tensors = {n: encode_dense(v) for n, v in fresh_tensors(Variant(make), 3).items()}
    half = encode_dense(tensors["lstm.weight_ih_l0"].decode(), "float16")
    model = PackedModel.of(about("one"), {**tensors, "lstm.weight_ih_l0": half})
    done = export(model, path, Format.ONNX, Ground(OneModel(make), samples(30, 7, 3, classes=2)))
    assert done.agreement is not None
    assert done.agreement.changed == 0
    # Tracing reorders an LSTM's gates: that one stays in full precision, and it is said.
    assert done.plain in ((), ("lstm.weight_ih_l0",))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Pair, "returns a tuple"),
        (Exotic, "cannot be written as ONNX"),
        (Choosy, "must not depend on the values"),
    ],
)
def test_what_cannot_be_exported_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    tensors = {n: encode_dense(v) for n, v in fresh_tensors(Variant(make), 3).items()}
    model, path = PackedModel.of(about("one"), tensors), tmp_path / "m.onnx"
    inputs = np.ones((4, 2), np.float32) * np.float32([[1], [-1], [-1], [-1]])
    split = Split(np.concatenate([inputs] * 126 + [-inputs] * 126), np.zeros(1008, np.int64))
    with pytest.raises(ExportError, match=words):
        export(model, path, Format.ONNX, Ground(OneModel(make), split))
    assert not path.exists()


def test_half_ends_are_halves_in_the_graph(models: dict[str, PackedModel], tmp_path: Path) -> None:
    split, path = data_of(TIERS.index("b2")).test, tmp_path / "m.onnx"
    ground = Ground(Digits(), split)
    done = export(models["b2"], path, Format.ONNX, ground, half_ends=True)
    assert done.half_ends is not None
    assert done.half_ends.changed == 0
    kinds = kinds_of(path)
    assert kinds["conv1.weight.half"] == kinds["fc3.bias.half"] == "FLOAT16"
    half, _ = with_half_ends(models["b2"], ground)
    expected = outputs_of(runner(ground.module(half)), split)
    np.testing.assert_allclose(outputs_of(session(path), split), expected, rtol=1e-4, atol=1e-5)


# --- files that are none, libraries that are missing ---------------------------------------------


def test_files_that_are_no_export_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no protobuf at all")
    with pytest.raises(PackedModelError, match=r"no ONNX file|does not say"):
        about_of(path)
    with pytest.raises(ExportError, match="cannot open"):
        session(path)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "safetensors", "executorch"])
def test_a_missing_library_is_named_with_what_to_install(
    library: str, models: dict[str, PackedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}")
        return real(name, *rest)

    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    path = tmp_path / "file"
    kind = Format(library) if library in ("safetensors", "executorch") else Format.ONNX
    ground = Ground(Digits(), data_of(0).test)
    with pytest.raises(
        MissingExtraError, match=rf"needs {library}.*install '(motley-fl\[onnx\]|executorch)'"
    ):
        export(models["full"], path, kind, ground)
    assert not path.exists()


def test_safetensors_hold_the_decoded_values(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    done = export(models["b2"], path, Format.SAFETENSORS)
    assert done.size == path.stat().st_size
    found = library.load_file(path)
    for name, values in models["b2"].values().items():
        assert found[name].tobytes() == values.tobytes()
        assert found[name].dtype == values.dtype


@pytest.mark.parametrize("tier", TIERS)
def test_executorch_predicts_as_the_model_on_the_whole_test_set(
    tier: str, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    pytest.importorskip("executorch.exir")
    split, path = data_of(TIERS.index(tier)).test, tmp_path / "model.pte"
    done = export(models[tier], path, Format.EXECUTORCH, Ground(Digits(), split))
    assert done.agreement is not None
    assert (done.agreement.samples, done.agreement.changed) == (len(split), 0)
    assert done.size == path.stat().st_size
