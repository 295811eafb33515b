"""Models that start from a safetensors file of another program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch

from motley.errors import MissingExtraError, WorkloadError
from motley.models.pretrained import read_pretrained
from motley.models.units import fresh_tensors, load_tensors
from motley.workload import ArrayModel, Variant
from motley.workloads.digits import Digits

save_file = pytest.importorskip("safetensors.torch").save_file
VARIANT = Digits().variants()["resnet20"]
States = dict[str, torch.Tensor]


def pretrained() -> States:
    """Return the state_dict of a model with batch normalisation, which has integers too."""
    torch.manual_seed(5)
    return dict(VARIANT.build().state_dict())


def test_a_state_dict_comes_back_in_the_models_order(tmp_path: Path) -> None:
    state, path = pretrained(), tmp_path / "resnet.safetensors"
    save_file(dict(reversed(state.items())), path)
    found = read_pretrained(path, VARIANT)
    assert list(found) == list(fresh_tensors(VARIANT, 0))
    for name, values in found.items():
        npt.assert_array_equal(values, state[name].numpy())
    load_tensors(VARIANT.build(), found)


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_other_widths_become_the_models(tmp_path: Path, kind: torch.dtype) -> None:
    state, path = pretrained(), tmp_path / "resnet.safetensors"
    narrow = {n: t.to(kind) if t.is_floating_point() else t for n, t in state.items()}
    save_file(narrow, path)
    for name, values in read_pretrained(path, VARIANT).items():
        assert values.dtype == state[name].numpy().dtype
        npt.assert_array_equal(values, narrow[name].to(state[name].dtype).numpy())


def _without(state: States) -> None:
    del state["fc.weight"]


def _of_another_head(state: States) -> None:
    state["fc.weight"] = torch.zeros(100, 64)


def _with_a_nan(state: States) -> None:
    state["conv1.weight"] = state["conv1.weight"].clone()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")


def _beyond_its_type(state: States) -> None:
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 1e300, dtype=torch.float64)


def _of_fractions(state: States) -> None:
    state["bn1.num_batches_tracked"] = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without, "missing fc.weight; unknown none; expected conv1.weight"),
        (_of_another_head, r"'fc.weight' has shape \[100, 64\]; expected \[10, 64\]"),
        (_with_a_nan, "'conv1.weight' holds a value that is not finite"),
        (_beyond_its_type, "'conv1.weight' holds a value .* too large for float32"),
        (_of_fractions, "'bn1.num_batches_tracked' is float32; expected int64 or a type of its"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[States], None], said: str
) -> None:
    state, path = pretrained(), tmp_path / "resnet.safetensors"
    spoil(state)
    save_file(state, path)
    with pytest.raises(WorkloadError, match=rf"resnet\.safetensors.*{said}"):
        read_pretrained(path, VARIANT)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04 a pickled model")
    said = "model.pt is neither a payload nor a whole safetensors file"
    with pytest.raises(WorkloadError, match=said):
        read_pretrained(path, VARIANT)
    save_file(pretrained(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WorkloadError, match=said):
        read_pretrained(path, VARIANT)
    arrays = Variant(arrays=ArrayModel({"w": (1,)}, lambda rng: {"w": np.zeros(1, np.float32)}))
    with pytest.raises(WorkloadError, match="this workload's models are arrays"):
        read_pretrained(path, arrays)
    with pytest.raises(FileNotFoundError):
        read_pretrained(tmp_path / "none", VARIANT)


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'motley-fl\[onnx\]'"):
        read_pretrained(tmp_path / "model.safetensors", VARIANT)
