"""Packed, ONNX and the model in torch on all 10,000 test images of MNIST, where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from export_cases import train

from motley.export.about import About
from motley.export.convert import Format, Ground, export
from motley.export.onnx_file import session
from motley.export.packed import PackedModel, read_packed, read_tensors
from motley.export.predictions import Agreement, outputs_of, runner
from motley.workload import DataSpec
from motley.workloads.images import Mnist

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TIERS = {"b1": ("mlp", 1), "b2": ("mlp", 2), "b4": ("cnn1", 4), "full": ("cnn1", 32)}
RUN = """
[run]
name = "taken"
algorithm = "local"
rounds = 1
seed = 5
[workload]
name = "mnist"
[clients]
expected = 4
[settings]
local_steps = 300
batch_size = 50
learning_rate = 0.2
iterations_per_epoch = 20
{tiers}
[simulate]
data = "{data}?clients=4&client={{client}}"
tiers = {{ b1 = 1, b2 = 1, b4 = 1, full = 1 }}
"""
TIER = '[[tiers]]\nname = "{}"\nvariant = "{}"\nbits = {}'


def test_all_forms_predict_the_same_on_ten_thousand_images(tmp_path: Path) -> None:
    root = os.environ.get("MOTLEY_DATA_DIR")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("MOTLEY_DATA_DIR names no folder with mnist in it")
    data, workload = str(Path(root) / "mnist"), Mnist()
    split = workload.held_out(DataSpec.parse(data))
    assert len(split) == 10_000
    tiers = "\n".join(TIER.format(name, *how) for name, how in TIERS.items())
    found = train(RUN.format(data=data, tiers=tiers), tmp_path)
    for tier, path in found.items():
        about = About(
            workload="mnist",
            variant=TIERS[tier][0],
            run="r1",
            name="taken",
            algorithm="local",
            rounds=1,
        )
        model, ground = PackedModel.of(about, read_tensors(path)), Ground(workload, split)
        packed, graph = tmp_path / f"{tier}.motley", tmp_path / f"{tier}.onnx"
        export(model, packed, Format.PACKED)
        export(model, graph, Format.ONNX, ground)
        own = outputs_of(runner(ground.module(model)), split)
        assert (own.argmax(1) == split.targets).mean() > 0.5, tier
        again = outputs_of(runner(ground.module(read_packed(packed))), split)
        assert again.tobytes() == own.tobytes()
        compared = Agreement.of(own, outputs_of(session(graph), split), split.targets)
        assert (compared.samples, compared.changed) == (10_000, 0), tier
        print(tier, (own.argmax(1) == split.targets).mean(), compared)
