"""Trackers of experiments get what is on record, read back by their own readers."""

from __future__ import annotations

from pathlib import Path

import pytest
from crowd import RUN_ID, make_crowd

from fedserver.errors import TrackerError
from fedserver.rounds.engine import Engine
from fedserver.rounds.presence import Presence
from fedserver.storage.database import open_database
from fedserver.tracking.closed import (
    ClosedRound,
    Tracker,
    Untold,
    closed_rounds,
    from_now_on,
)
from fedserver.tracking.desk import open_tracker

ROUNDS = 3


@pytest.fixture
def closed(tmp_path: Path) -> list[ClosedRound]:
    make_crowd(tmp_path / "data", 4, ROUNDS)
    database = open_database(tmp_path / "data")
    engine = Engine(database, Presence(), payload_path=Path, mappings={})
    found = closed_rounds(engine, Untold())
    assert [entry.id for entry in found] == list(range(1, 2 * ROUNDS + 1))
    assert closed_rounds(engine, Untold(newest=found[-2].id)) == found[-1:]
    assert closed_rounds(engine, from_now_on(engine)) == []
    database.dispose()
    return found


def tell(tracker: Tracker, rounds: list[ClosedRound]) -> None:
    for entry in rounds:
        tracker.round_closed(entry)
    tracker.close()


def test_tensorboard_reads_what_was_closed(tmp_path: Path, closed: list[ClosedRound]) -> None:
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    tell(open_tracker(f"tensorboard:{tmp_path / 'events'}"), closed)
    found = reading.EventAccumulator(str(tmp_path / "events" / f"crowd-{RUN_ID}"))
    found.Reload()
    for name in ("train/loss", "evaluate/accuracy", "bytes/train_up", "seconds/train_fold"):
        expected = [(r.round, r.figures[name]) for r in closed if name in r.figures]
        assert len(expected) == ROUNDS
        values = [(e.step, e.tensor_proto.float_val[0]) for e in found.Tensors(name)]
        assert [step for step, _ in values] == [step for step, _ in expected]
        assert [v for _, v in values] == pytest.approx([v for _, v in expected], rel=1e-6)
    assert [r.figures["train/loss"] for r in closed[::2]] == [2.0, 1.0, pytest.approx(2 / 3)]


def test_mlflow_finds_the_run_again(tmp_path: Path, closed: list[ClosedRound]) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.sqlite'}"
    tell(open_tracker(f"mlflow:{uri}"), closed[:2])
    tell(open_tracker(f"mlflow:{uri}"), closed[2:])
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("motley")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "crowd"
    history = client.get_metric_history(run.info.run_id, "evaluate/accuracy")
    expected = [(r.round, r.figures["evaluate/accuracy"]) for r in closed[1::2]]
    assert sorted((m.step, m.value) for m in history) == expected


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard:", "wandb:here", ""])
def test_what_is_no_tracker_is_said(text: str) -> None:
    with pytest.raises(TrackerError, match="expected tensorboard:FOLDER or mlflow:URI"):
        open_tracker(text)
