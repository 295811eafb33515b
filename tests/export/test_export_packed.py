"""Packed models: exact, described, and refused with one error when they are not whole."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_cases import VARIANTS, about, data_of
from hypothesis import given, settings
from hypothesis import strategies as st

from motley.errors import MotleyError, PackedModelError
from motley.export.about import NAME, About
from motley.export.convert import Format, Ground, export, with_half_ends
from motley.export.halves import end_names, halved
from motley.export.packed import PackedModel, read_packed, read_tensors, write_packed
from motley.export.predictions import Agreement, build, outputs_of, predictions, runner, scores
from motley.models.units import variant_table
from motley.wire import Codebook, Dense, encode_dense, file_sha256, write_payload
from motley.workload import Split
from motley.workloads.digits import Digits

TIERS = tuple(VARIANTS)


@pytest.mark.parametrize("tier", TIERS)
def test_a_packed_file_is_exact(
    tier: str, finished: dict[str, Path], models: dict[str, PackedModel], tmp_path: Path
) -> None:
    """Every tensor keeps its encoding and bytes; the digest is that of the device's own file."""
    path = tmp_path / "model.motley"
    write_packed(path, models[tier])
    again, original = read_packed(path), read_tensors(finished[tier])
    assert list(again.tensors) == list(original)
    for name, tensor in original.items():
        assert again.tensors[name].encoding == tensor.encoding
        assert again.tensors[name].segment.tobytes() == tensor.segment.tobytes()
    assert again.about == models[tier].about
    assert again.about.digest == file_sha256(finished[tier]).hex()


@pytest.mark.parametrize("tier", TIERS)
def test_a_packed_file_predicts_as_the_model_on_the_device(
    tier: str, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    """Against the evaluation that training ends with, on the client's whole test set."""
    from motley.training.evaluation import evaluate

    workload, split = Digits(), data_of(TIERS.index(tier)).test
    model = models[tier]
    own = build(workload, model.about, model.values())
    expected = evaluate(own, workload, split)
    write_packed(tmp_path / "model.motley", model)
    again = read_packed(tmp_path / "model.motley")
    outputs = outputs_of(runner(build(workload, again.about, again.values())), split)
    found = scores(workload, outputs, split)
    assert len(split) > 100
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-12)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    right = predictions(outputs, split.targets) == split.targets
    assert right.mean() == pytest.approx(expected["accuracy"], abs=1e-12)
    assert expected["accuracy"] > 0.5, "the models are to have learned something"


def test_the_description_is_short_and_reads_back() -> None:
    one = replace_fields(about("cnn1"), arguments={"a": True, "b": 1, "c": 1.5, "d": "x"})
    assert len(about("cnn1").encode()) < 150
    again = About.decode(one.encode())
    assert again == one
    kinds = [type(again.arguments[name]) for name in "abcd"]
    assert kinds == [bool, int, float, str]
    later = one.encode()[:-1] + b',"fields of a later version":[1]}'
    assert About.decode(later) == one


def replace_fields(one: About, **changes: object) -> About:
    return one.model_copy(update=changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{}", "workload"),
        (b"[1, 2", "cannot be read"),
        (b"[" * 60_000, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b" " * 70_000, "at most 65536"),
        (about("cnn1").encode()[:-1] + b',"format":2}', "update motley-fl"),
    ],
)
def test_a_description_that_is_none_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(PackedModelError, match=words):
        About.decode(text)


def test_other_payloads_are_told_what_to_do(models: dict[str, PackedModel], tmp_path: Path) -> None:
    bare, described = tmp_path / "bare.motley", tmp_path / "described.motley"
    tensors = list(models["b2"].tensors.items())
    write_payload(bare, tensors)
    with pytest.raises(PackedModelError, match="fedclient export RUN"):
        read_packed(bare)
    table = variant_table(Digits().variants()["mlp"]).tensor_table
    values = [(n, t) for n, t in models["b4"].tensors.items()]
    write_payload(described, values, table)
    with pytest.raises(PackedModelError, match="fedserver export --format"):
        read_packed(described)
    write_payload(bare, [*tensors, (NAME, encode_dense(np.zeros(3, np.float32)))])
    with pytest.raises(PackedModelError, match="expected uint8"):
        read_packed(bare)


def read_or_refusal(path: Path) -> PackedModel | str:
    try:
        return read_packed(path)
    except PackedModelError as error:
        return str(error)


def test_damage_and_cuts_end_in_one_error(models: dict[str, PackedModel], tmp_path: Path) -> None:
    path, damaged = tmp_path / "model.motley", tmp_path / "damaged.motley"
    write_packed(path, models["b2"])
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 4))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        damaged.write_bytes(data)
        if bytes(data) == whole:
            continue
        found = read_or_refusal(damaged)
        if isinstance(found, str):
            assert str(damaged) in found
        else:
            # What can change unseen is the description alone, which names no code.
            assert found.about.digest == models["b2"].about.digest


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.motley"
    path.write_bytes(data)
    with pytest.raises(PackedModelError):
        read_packed(path)


def test_a_file_that_does_not_fit_its_workload_is_refused(models: dict[str, PackedModel]) -> None:
    model, workload = models["b2"], Digits()
    for changes, words in (
        ({"variant": "cnn2"}, "does not fit variant 'cnn2'"),
        ({"variant": "huge"}, "which here has cnn1"),
        ({"version": 7}, "version 7 of workload"),
    ):
        with pytest.raises(PackedModelError, match=words):
            build(workload, replace_fields(model.about, **changes), model.values())


# --- first and last layer in fp16 ----------------------------------------------------------------


def test_ends_are_the_first_and_last_layer_and_all_vectors() -> None:
    table = variant_table(Digits().variants()["cnn1"])
    assert end_names(table) == (
        *("conv1.weight", "conv1.bias", "conv2.bias", "fc1.bias"),
        *("fc2.bias", "fc3.weight", "fc3.bias"),
    )


def test_half_ends_change_no_prediction_and_say_so(models: dict[str, PackedModel]) -> None:
    model, split = models["b2"], data_of(TIERS.index("b2")).test
    ground = Ground(Digits(), split)
    found, done = with_half_ends(model, ground)
    assert done.holds
    assert f"no prediction on {len(split)} test samples" in done.note
    kinds = {name: tensor.encoding for name, tensor in found.tensors.items()}
    assert kinds["conv1.weight"] == Dense("float16")
    assert isinstance(kinds["fc1.weight"], Codebook)
    expected = np.float32(np.float16(model.values()["conv1.weight"]))
    np.testing.assert_array_equal(found.values()["conv1.weight"], expected)
    one, other = (outputs_of(runner(ground.module(m)), split) for m in (model, found))
    assert (one != other).any(), "the outputs do change"
    np.testing.assert_array_equal(one.argmax(1), other.argmax(1))


def test_a_two_bit_model_is_under_a_tenth_of_its_size(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    """The demo's network; with its ends in fp16, description and manifest included."""
    path, ground = tmp_path / "m.motley", Ground(Digits(), data_of(TIERS.index("b2")).test)
    done = export(models["b2"], path, Format.PACKED, ground, half_ends=True)
    assert done.half_ends is not None
    assert done.half_ends.changed == 0
    assert done.dense_bytes == 21_386 * 4
    assert path.stat().st_size == done.size < 0.1 * done.dense_bytes


def test_ends_that_would_change_a_prediction_stay(models: dict[str, PackedModel]) -> None:
    """A last layer whose two best classes differ by less than fp16 resolves."""
    model, split = models["full"], data_of(TIERS.index("full")).test
    values = model.values()
    weight = values["fc3.weight"].copy()
    weight[:] = 1.0
    weight[1] = np.nextafter(np.float32(1), np.float32(2))  # best by a hair, in fp32 alone
    bias = np.zeros(10, np.float32)
    tensors = {**model.tensors, "fc3.weight": encode_dense(weight), "fc3.bias": encode_dense(bias)}
    close = PackedModel.of(model.about, tensors)
    kept, done = with_half_ends(close, Ground(Digits(), split))
    assert not done.holds
    assert kept is close
    assert "stay in fp32" in done.note
    large = {**model.tensors, "fc3.bias": encode_dense(np.full(10, 1e6, np.float32))}
    kept, done = with_half_ends(PackedModel.of(model.about, large), Ground(Digits(), split))
    assert kept.tensors["fc3.bias"].encoding == Dense("float32")
    assert "too large for fp16" in done.note


def test_only_dense_ends_are_halved(planes: dict[str, PackedModel]) -> None:
    model = planes["b2"]
    table = variant_table(Digits().variants()["cnn1"])
    found = halved(model.tensors, table)
    assert found is not None
    assert found["conv1.weight"] is model.tensors["conv1.weight"]
    assert found["conv1.bias"].encoding == Dense("float16")


# --- how outputs compare -------------------------------------------------------------------------


def test_agreement_counts_changed_predictions() -> None:
    first = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.5]], np.float32)
    second = np.array([[1.0, 0.0], [2.0, 1.0], [1.0, 0.5]], np.float32)
    found = Agreement.of(first, second, np.array([0, 1, 0]))
    assert (found.samples, found.changed, found.apart) == (3, 1, 1.0)
    numbers = Agreement.of(first, first + np.float32(0.001), first)
    assert (numbers.changed, numbers.apart) == (0, pytest.approx(0.0005, rel=1e-3))
    assert Agreement.of(first, first + np.float32(0.1), first).changed == 3
    assert Agreement.of(first, np.full_like(first, np.nan), first).changed == 3


def test_data_without_samples_is_refused(models: dict[str, PackedModel], tmp_path: Path) -> None:
    nothing = Split(np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64))
    with pytest.raises(MotleyError, match="no sample"):
        Ground.of(Digits(), nothing, nothing)


def test_a_full_disk_leaves_the_old_file(
    models: dict[str, PackedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.motley"
    export(models["b1"], path, Format.PACKED)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("motley.wire.durable.sync_handle", full)
    with pytest.raises(OSError, match="No space"):
        export(replace(models["b2"]), path, Format.PACKED)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
