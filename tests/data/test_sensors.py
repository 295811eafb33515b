"""SisFall on small files made here, in both forms, and on the real windows where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch

from motley.data import sisfall
from motley.data.sisfall import ACTIVITIES, ACTIVITY_OF, cut_windows
from motley.errors import DataError, WorkloadError
from motley.models.sensor import SensorCNN
from motley.models.units import variant_table
from motley.training.evaluation import evaluate
from motley.workload import DataSpec, LocalData, Split
from motley.workloads.sensors import SisFall, cut_by_code

SUBJECTS = ("SA01", "SA02", "SE01")
CODES = ["D01"] * 10 + ["D07"] * 5 + ["F01"] * 5


def load(spec: str, activities: bool = True) -> LocalData:
    return SisFall(activities).load(DataSpec.parse(spec))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three subjects, of whom SE01 never falls; a window's first value counts them all."""
    codes = np.array([*CODES, *CODES, *CODES[:15]])
    owners = np.repeat(np.arange(3), [20, 20, 15]).astype(np.uint8)
    signals = np.zeros((55, 128, 6), np.int16)
    signals[:, 0, 0], signals[:, :, 3] = np.arange(55) * 256, 16_384
    np.savez(
        tmp_path / "sisfall.npz", x=signals, code=codes, subject=owners, subjects=np.array(SUBJECTS)
    )
    return tmp_path


def windows(split: Split) -> list[int]:
    """The numbers of the archive's windows that a split holds."""
    return split.inputs[:, 0, 0].astype(int).tolist()


def test_one_subject(archive: Path) -> None:
    data = load(f"{archive}?subject=SA02")
    assert (data.train.inputs.dtype, data.train.inputs.shape) == (np.float32, (13, 128, 6))
    # The first 7 of 10 and the first 3 of 5 windows of each code train.
    assert windows(data.train) == [*range(20, 27), *range(30, 33), *range(35, 38)]
    assert windows(data.test) == [*range(27, 30), *range(33, 35), *range(38, 40)]
    assert data.test.targets.tolist() == [0, 0, 0, 3, 3, 8, 8]
    assert load(f"{archive}?subject=SA02", activities=False).test.targets.tolist() == [0] * 5 + [
        1,
        1,
    ]
    # 16,384 a 16.384 of a degree a second is 1,000 degrees a second.
    npt.assert_allclose(data.train.inputs[:, :, 3], np.radians(1000), rtol=1e-6)


def test_a_validation_set_is_the_last_of_what_trains(archive: Path) -> None:
    data = load(f"{archive}?subject=SA02&validate=0.4")
    # Of 7 and 3 training windows of a code, 4 and 1 stay; no test window is seen.
    assert windows(data.train) == [*range(20, 24), 30, 35]
    assert windows(data.test) == [*range(24, 27), *range(31, 33), *range(36, 38)]
    with pytest.raises(DataError, match="validate=2; expected a fraction above 0 and below 1"):
        load(f"{archive}?validate=2")


def test_subjects_as_clients(archive: Path) -> None:
    for client, first in enumerate((0, 20, 40)):
        assert windows(load(f"{archive}?clients=3&client={client}").train)[0] == first
    two = load(f"{archive}?clients=2&client=0")
    assert {number // 20 for number in windows(two.train)} == {0, 2}
    alone = load(f"{archive}?clients=3&client=2")
    assert 8 not in {*alone.train.targets.tolist(), *alone.test.targets.tolist()}
    whole = load(str(archive))
    assert sorted(windows(whole.train) + windows(whole.test)) == list(range(55))
    held_out = SisFall().held_out(DataSpec.parse(f"{archive}?clients=3&train=0.5"))
    # 5 of 10 and 3 of 5 windows of each code; SE01 has two codes.
    assert len(held_out) == 11 + 11 + 8


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("subject=SA09", "no subject is called 'SA09'; there are SA01, SA02, SE01"),
        ("subject=SA01&clients=3", "subject and clients exclude each other"),
        ("client=1", "client needs clients"),
        ("clients=3", "client is missing; expected 0 to one below clients=3"),
        ("clients=3&client=3", "client=3; expected 0 to 2"),
        ("clients=4&client=0", "clients=4; expected 1 to 3, the number of subjects"),
        ("train=1", "train=1; expected a fraction above 0 and below 1"),
        ("classes=2", "'classes' is not known for this workload; there are subject, clients"),
    ],
)
def test_bad_options(archive: Path, query: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(f"{archive}?{query}")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither sisfall.npz nor folders SA01"):
        load(str(tmp_path))
    path = tmp_path / "sisfall.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path))
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="no archive of x, code, subject and subjects"):
        load(str(tmp_path))
    names = {"code": np.array(["F01"]), "subject": np.zeros(1), "subjects": np.array(["SA01"])}
    np.savez(path, x=np.zeros((1, 64, 6)), **names)
    with pytest.raises(DataError, match=r"holds x \[1, 64, 6\].*expected \[1, 128, 6\]"):
        load(str(tmp_path))


# --- the published form --------------------------------------------------------------------------


def write_trial(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [",".join(f"{value:4d}" for value in row) + ";\n" for row in values]
    path.write_text("".join(lines) + "\n")


def test_published_trials(tmp_path: Path) -> None:
    walk = np.zeros((4 * 300, 9), np.int64)
    walk[:, 0] = np.arange(1200)
    walk[:, 6:] = 99  # the second accelerometer, which is not read
    fall = np.zeros((4 * 200, 9), np.int64)
    fall[4 * 100 : 4 * 101, 1] = -512
    write_trial(tmp_path / "SA01" / "D01_SA01_R01.txt", walk)
    write_trial(tmp_path / "SA01" / "F15_SA01_R01.txt", fall)
    write_trial(tmp_path / "SA01" / "F15_SA01_R02.txt", fall[:400])
    (tmp_path / "SA01" / "Readme.txt").write_text("not a trial")
    assert sisfall.open_set(tmp_path).subjects == ["SA01"]
    recording = sisfall.open_set(tmp_path).recording("SA01")
    assert recording.codes.tolist() == ["D01", "D01", "F15"]
    assert recording.activities.tolist() == [0, 0, 8]
    # Means of four lines, 256 a g: 1.5, 5.5, ...; the second window goes on at 128.
    npt.assert_allclose(recording.signals[0, :3, 0] * 256, [1.5, 5.5, 9.5], rtol=1e-6)
    npt.assert_allclose(recording.signals[1, 0, 0] * 256, 4 * 128 + 1.5, rtol=1e-6)
    assert (recording.signals[2, :, 1] == -2).sum() == 1
    assert not recording.signals[:, :, 2:].any()
    (tmp_path / "SA01" / "D01_SA01_R01.txt").write_text("1,2,3;\n4,5,6;\n")
    with pytest.raises(DataError, match="has 3 numbers a line; a trial of SisFall has 9"):
        sisfall.open_set(tmp_path).recording("SA01")
    (tmp_path / "SA01" / "D01_SA01_R01.txt").write_text("1,2,x;\n")
    with pytest.raises(DataError, match="cannot be read"):
        sisfall.open_set(tmp_path).recording("SA01")
    (tmp_path / "SA02").mkdir()
    with pytest.raises(DataError, match="SA02 holds no trial that is long enough"):
        sisfall.open_set(tmp_path).recording("SA02")


def test_the_window_of_a_transient_is_where_most_happens() -> None:
    rng = np.random.default_rng(0)
    trial = rng.normal(size=(500, 6)).astype(np.float32)
    trial[230:260, :3] *= 40
    size = np.sqrt((trial[:, :3].astype(float) ** 2).sum(axis=1))
    change = np.abs(np.diff(size, prepend=size[0]))
    sums = [change[at : at + 128].sum() for at in range(500 - 128 + 1)]
    (found,) = cut_windows(trial, "F03")
    npt.assert_array_equal(found, trial[int(np.argmax(sums)) :][:128])
    assert len(cut_windows(trial, "D02")) == 3
    assert len(cut_windows(trial[:127], "D02")) == 0
    assert cut_windows(trial[:128], "F03").shape == (1, 128, 6)


def test_codes() -> None:
    assert len(ACTIVITY_OF) == 19 + 15
    assert {ACTIVITIES[ACTIVITY_OF[code]] for code in ("D01", "D02")} == {"walk"}
    assert ACTIVITIES[ACTIVITY_OF["D17"]] == "car"
    assert ACTIVITIES[ACTIVITY_OF["D19"]] == "stumble-or-jump"
    assert {ACTIVITIES[ACTIVITY_OF[f"F{n:02d}"]] for n in range(1, 16)} == {"fall"}


def test_every_code_trains() -> None:
    train, test = cut_by_code(np.array(["D07", "F01", "F01"]), 0.1)
    assert (train.tolist(), test.tolist()) == ([0, 1], [2])


# --- model and metrics ---------------------------------------------------------------------------


def test_sizes_of_the_models() -> None:
    tables = {name: variant_table(v) for name, v in SisFall().variants().items()}
    # By hand: (6*5+1)*16, (16*5+1)*32, (32*8+1)*64, (64+1)*9; and twice as wide.
    assert tables["small"].parameters_count == 496 + 2592 + 16_448 + 585
    assert tables["large"].parameters_count == 992 + 10_304 + 65_664 + 1161
    for table in tables.values():
        assert table.quantized_units == ("conv2", "fc1")
        assert table.units == ("conv1", "conv2", "fc1", "fc2")
    assert variant_table(SisFall(activities=False).variants()["small"])["fc2.bias"].shape == (2,)
    with pytest.raises(WorkloadError, match="windows of 15 samples; expected 16"):
        SensorCNN(width=15, channels=6, filters=(2, 2), hidden=2, classes=2)


def test_clients_can_be_batched() -> None:
    clients = [SisFall().variants()["small"].build() for _ in range(2)]
    stacked = {
        name: torch.stack([client.get_parameter(name).detach() for client in clients])
        for name, _ in clients[0].named_parameters()
    }
    x = torch.randn(2, 3, 128, 6)
    together = torch.func.vmap(
        lambda parameters, x: torch.func.functional_call(clients[0], parameters, (x,))
    )(stacked, x)
    apart = torch.stack([client(window) for client, window in zip(clients, x, strict=True)])
    torch.testing.assert_close(together, apart.detach(), rtol=1e-4, atol=1e-5)


class Answers(torch.nn.Module):
    """Says what stands in the inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(x.long(), 9).float()


def test_recall_and_specificity_come_from_means() -> None:
    """Over clients of which one has no falls, weighted by samples: those of all windows."""
    rng = np.random.default_rng(0)
    clients = []
    for size, activities in ((40, 9), (25, 8), (33, 9)):
        targets = rng.integers(0, activities, size)
        clients.append(Split(np.where(rng.random(size) < 0.5, targets, 8), targets))
    found = [evaluate(Answers(), SisFall(), split) for split in clients]
    total = sum(m["samples"] for m in found)
    mean = {name: sum(m[name] * m["samples"] for m in found) / total for name in found[0]}
    said = np.concatenate([split.inputs for split in clients])
    true = np.concatenate([split.targets for split in clients])
    recall = (said[true == 8] == 8).mean()
    specificity = (said[true != 8] != 8).mean()
    assert mean["fall_found"] / mean["fall_share"] == pytest.approx(recall)
    assert 1 - mean["false_alarm"] / (1 - mean["fall_share"]) == pytest.approx(specificity)
    assert mean["accuracy"] == pytest.approx((said == true).mean())
    assert found[1]["fall_share"] == found[1]["fall_found"] == 0
    assert found[1]["false_alarm"] > 0


# --- the real windows ----------------------------------------------------------------------------


def test_real_windows() -> None:
    root = os.environ.get("MOTLEY_DATA_DIR")
    if not root or not (Path(root) / "sisfall").is_dir():
        pytest.skip("MOTLEY_DATA_DIR names no folder with sisfall in it")
    folder = Path(root) / "sisfall"
    names = sisfall.open_set(folder).subjects
    assert (len(names), names[0], names[-1]) == (38, "SA01", "SE15")
    archive = sisfall.open_set(folder)
    recordings = [archive.recording(name) for name in names]
    assert sum(len(recording.codes) for recording in recordings) == 12_796
    falls = {
        name: int((recording.activities == 8).sum())
        for name, recording in zip(names, recordings, strict=True)
    }
    assert [name for name in names if name.startswith("SE") and falls[name]] == ["SE06"]
    assert all(falls[name] for name in names if name.startswith("SA"))
    with np.load(folder / "sisfall.npz") as stored:
        assert stored["classes"].tolist() == list(ACTIVITIES)
        npt.assert_array_equal([ACTIVITY_OF[code] for code in stored["code"]], stored["y"])
    # At rest the size of the acceleration is one g.
    size = np.linalg.norm(recordings[0].signals[recordings[0].codes == "D17", :, :3], axis=2)
    assert float(np.median(size)) == pytest.approx(1, abs=0.05)
