"""`fedclient models | export | predict` and `fedserver export`, after a run of real processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Federation, federation

import fedclient.cli
import fedserver.cli
from fedclient.disk import Disk
from fedclient.errors import OptionError
from fedclient.models import FinishedModel, find_model, record, stored_models
from fedclient.take_home import NOT_PRIVATE, _load_own, export_model
from motley.export.convert import Format
from motley.export.packed import PackedModel
from motley.wire import Codebook, PayloadReader, file_sha256, write_payload
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_workload"
TIERS = {"tablet-1": "tablet", "watch-1": "wearable"}
CENTRES = {
    "tablet-1": {"body.0.weight": 4, "body.1.weight": 4},
    "watch-1": {"body.0.weight": 2},
}
CHANCE = 0.63
"""Accuracy of calling every tumour benign: 357 of 569."""
MAPPING = ("--workload", "tumours=tumours:Tumours")


# --- which model a name means --------------------------------------------------------------------


def keep(root: Path, folder_name: str, run_id: str, name: str, **more: Any) -> None:
    folder = root / folder_name / "models"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{name}-{run_id}.motley"
    model.write_bytes(b"x")
    os.utime(model, (1e9 + int(run_id, 16), 1e9 + int(run_id, 16)))
    facts = FinishedModel(
        run_id=run_id, run_name=name, workload="w", algorithm="a", rounds=1, file=model.name,
        size=1, **more,
    )  # fmt: skip
    record(model, facts, Disk())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "motley" / "clients"


def test_a_run_is_named_by_its_name_its_id_or_the_start_of_that(home: Path) -> None:
    keep(home, "pi", "aa10", "first")
    keep(home, "pi", "aa20", "first")
    keep(home, "pi", "bb10", "second")
    named = {"first": "aa20", "aa10": "aa10", "bb": "bb10", "second": "bb10"}
    for run, expected in named.items():
        assert find_model(run, "", None).record.run_id == expected
    with pytest.raises(OptionError, match=r"more than one client or run: pi \(aa10\), pi \(aa20\)"):
        find_model("aa", "", None)
    with pytest.raises(OptionError, match=r"no finished model of run 'third'.*second \(bb10\)"):
        find_model("third", "", None)


def test_a_model_of_several_clients_needs_a_name(home: Path) -> None:
    keep(home, "pi", "aa10", "first")
    keep(home, "phone", "aa10", "first", client="phone-7")
    with pytest.raises(OptionError, match="--name"):
        find_model("first", "", None)
    assert find_model("first", "pi", None).client == "pi"
    assert find_model("first", "phone-7", None).state == home / "phone"
    assert find_model("first", "", home / "pi").client == "pi"
    with pytest.raises(OptionError, match="there are: none"):
        find_model("first", "nobody", None)


class Here(Workload):
    """Reads a number from the file that its data spec names."""

    def variants(self) -> dict[str, Variant]:
        return {}

    def load(self, spec: DataSpec) -> LocalData:
        values = np.float32([float(Path(spec.location).read_text())])
        return LocalData(Split(values, values), Split(values, values))


def test_own_data_is_read_from_where_the_client_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("ran", "1"), ("here", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "set").write_text(number)
    monkeypatch.chdir(tmp_path / "here")
    for folder, expected in ((str(tmp_path / "ran"), 1.0), ("", 2.0)):
        keep(tmp_path, "pi", "aa10", "first", data="set", folder=folder)
        (stored,) = stored_models(tmp_path / "pi")
        assert _load_own(Here(), stored).test.inputs == expected
        assert Path.cwd() == tmp_path / "here"
    keep(tmp_path, "pi", "aa10", "first", data="set", folder=str(tmp_path / "gone"))
    (stored,) = stored_models(tmp_path / "pi")
    with pytest.raises(OptionError, match="gone, which cannot be entered"):
        _load_own(Here(), stored)


def test_a_model_behind_private_releases_is_said_to_be_open(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    more = {"variant": "cnn1", "workload_version": 1}
    for privacy, notes in (("release", (NOT_PRIVATE,)), ("ldp-sgd", ()), ("", ())):
        keep(tmp_path, "pi", "aa10", "first", privacy=privacy, **more)
        (stored,) = stored_models(tmp_path / "pi")
        write_payload(stored.path, models["full"].tensors.items())
        done = export_model(stored, tmp_path / "out", Format.PACKED, {}, half_ends=False, data="")
        assert done.notes == notes


# --- a user's own workload, from training to prediction ------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and two devices that have finished the example run; the clients have left."""
    root = tmp_path_factory.mktemp("home")
    shutil.copy(EXAMPLE / "tumours.py", root)
    with federation(root) as found:
        found.serve(*MAPPING)
        for index, (name, tier) in enumerate(TIERS.items()):
            found.client(name, f"bundled?clients=2&client={index}", "--tier", tier, *MAPPING)
        found.finished(found.submit((EXAMPLE / "run.toml").read_text()))
        for name in TIERS:
            found.terminate(name)
        yield found


def command(bench: Federation, main: Callable[[], None], words: list[str], status: int) -> str:
    """Run a command where the workload lies, in this process, which has torch already.

    Returns what it printed; on standard error where it is to fail.
    """
    before, argv = Path.cwd(), sys.argv
    out, errors, code = io.StringIO(), io.StringIO(), 0
    os.chdir(bench.root)
    sys.argv = ["command", *words]
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os.chdir(before)
        sys.argv = argv
    assert code == status, errors.getvalue()
    return errors.getvalue() if status else out.getvalue()


def client(bench: Federation, *arguments: str, status: int = 0) -> str:
    return command(bench, fedclient.cli.main, list(arguments), status)


def server(bench: Federation, *arguments: str, status: int = 0) -> str:
    words = [*arguments, "--data", str(bench.data)]
    return command(bench, fedserver.cli.main, words, status)


def centres(model: Path) -> dict[str, int]:
    """Return the number of different values of each tensor that is stored as codes and centres."""
    found = {}
    with PayloadReader(model) as reader:
        for name in reader.names:
            tensor = reader[name]
            if isinstance(tensor.encoding, Codebook):
                found[name] = tensor.encoding.size
                assert len(set(tensor.decode().reshape(-1).tolist())) <= tensor.encoding.size
    return found


@pytest.mark.processes
def test_the_example_runs_as_its_page_says(bench: Federation) -> None:
    record = bench.show("tumours")
    assert record["round"] == record["rounds"] == 20
    assert {c["name"]: c["tier"] for c in record["clients"]} == TIERS
    for member in record["clients"]:
        name, scores = member["name"], member["metrics"]["finish"]
        assert scores["accuracy"] > CHANCE + 0.2, name
        assert 0.5 < scores["belief"] <= 1
        [facts] = (bench.root / name / "models").glob("*.json")
        kept = json.loads(facts.read_text())
        model = facts.parent / kept["file"]
        assert centres(model) == CENTRES[name]
        packed, dense = kept["metrics"]["packed_bytes"], kept["metrics"]["dense_bytes"]
        assert model.stat().st_size == packed < dense


@pytest.mark.processes
@pytest.mark.parametrize("name", TIERS)
def test_a_personal_model_goes_home_and_predicts(bench: Federation, name: str) -> None:
    state = ("--state", str(bench.root / name))
    (listed,) = json.loads(client(bench, "models", *state, "--json"))
    assert (listed["client"], listed["variant"] != "") == (name, True)
    packed, graph = bench.root / f"{name}.motley", bench.root / f"{name}.onnx"
    done = json.loads(client(bench, "export", "tumours", *state, "-o", str(packed), "--json"))
    assert done["bytes"] == packed.stat().st_size
    assert done["digest"] == file_sha256(Path(listed["path"])).hex()
    text = client(
        bench, "export", "tumours", *state, *MAPPING, "--format", "onnx", "-o", str(graph)
    )
    assert "same prediction as the model on 85 of 85 samples" in text
    spec = f"bundled?clients=2&client={list(TIERS).index(name)}"
    found = [
        json.loads(client(bench, "predict", str(file), *MAPPING, "--data", spec, "--json"))
        for file in (packed, graph)
    ]
    assert found[0]["predictions"] == found[1]["predictions"]
    for one in found:
        assert one["metrics"]["accuracy"] == pytest.approx(listed["metrics"]["accuracy"], abs=1e-9)
        right = [p == t for p, t in zip(one["predictions"], one["targets"], strict=True)]
        assert sum(right) / len(right) == pytest.approx(one["metrics"]["accuracy"], abs=1e-9)
    table = client(bench, "predict", str(packed), *MAPPING, "--data", spec)
    assert f"{listed['metrics']['accuracy']:.1%}" in table


@pytest.mark.processes
def test_commands_refuse_in_one_line(bench: Federation) -> None:
    state = ("--state", str(bench.root / "tablet-1"))
    packed = bench.root / "refused.motley"
    client(bench, "export", "tumours", *state, "-o", str(packed))
    for arguments, status, words in (
        (("export", "nothing", *state), 2, "no finished model"),
        (("export", "tumours", *state, "-o", "no/such/folder"), 2, "in a folder that exists"),
        (("export", "tumours", *state, "--format", "onnx"), 4, "is not mapped on this machine"),
        (("predict", str(packed), "--data", "bundled"), 4, "is not mapped on this machine"),
        (("predict", str(packed), *MAPPING), 2, "do not say what data the model"),
        (("predict", str(packed), *MAPPING, "--state", "none"), 2, "or the client's state"),
        (("predict", str(bench.root / "tumours.py"), *MAPPING), 4, "is no packed model"),
        (("predict", "none.motley", *MAPPING, "--data", "bundled"), 4, "No such file"),
    ):
        said = client(bench, *arguments, status=status)
        assert words in said
        assert len(said.strip().splitlines()) == 1


@pytest.mark.processes
def test_a_device_predicts_on_its_own_data(
    bench: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With state directories in their usual place, neither data nor state has to be named."""
    shutil.copytree(bench.root / "watch-1", tmp_path / "motley" / "clients" / "watch-1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    table = client(bench, "models")
    assert "watch-1" in table
    client(bench, "export", "tumours", *MAPPING, "--half-ends")
    file = "tumours-watch-1.motley"
    said = client(bench, "export", "tumours", *MAPPING, status=2)
    assert f"{file} is there already" in said
    found = json.loads(client(bench, "predict", file, *MAPPING, "--json"))
    state = ("--state", str(bench.root / "watch-1"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    assert json.loads(client(bench, "predict", file, *MAPPING, *state, "--json")) == found
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (listed,) = json.loads(client(bench, "models", "--json"))
    assert found["data"] == listed["data"] == "bundled?clients=2&client=1"
    assert found["metrics"]["accuracy"] == pytest.approx(listed["metrics"]["accuracy"], abs=1e-9)


@pytest.mark.processes
def test_a_global_model_is_exported_in_each_format(bench: Federation) -> None:
    fetched = bench.root / "global.payload"
    server(bench, "fetch", "tumours", "-o", str(fetched))
    options = (*MAPPING, "--test-data", "bundled?clients=2&client=0")
    for kind in ("safetensors", "onnx", "packed"):
        done = json.loads(server(bench, "export", "tumours", "--format", kind, *options, "--json"))
        path = bench.root / done["file"]
        assert done["bytes"] == path.stat().st_size
    found = [
        json.loads(
            client(bench, "predict", f"tumours{end}", *MAPPING, "--data", "bundled", "--json")
        )
        for end in (".motley", ".onnx")
    ]
    assert found[0]["predictions"] == found[1]["predictions"]
    assert found[0]["client"] == ""
    numbers = pytest.importorskip("safetensors.numpy").load_file(bench.root / "tumours.safetensors")
    assert sum(values.nbytes for values in numbers.values()) < fetched.stat().st_size


@pytest.mark.processes
def test_what_a_server_cannot_export_is_said(bench: Federation) -> None:
    said = server(bench, "export", "tumours", status=1)
    assert "is not mapped on this machine" in said
    said = server(bench, "export", "tumours", "--format", "onnx", *MAPPING, status=1)
    assert "name some with --test-data" in said
    said = server(bench, "export", "tumours", "--workload", "tumours=tumours:Nothing", status=1)
    assert "fails" in said
