"""What ends a call early: a final word to the client, and a line in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs
from test_service import Rig, one_client_run, pb, refused, scenario

from fedserver.client import ControlError
from fedserver.rounds import view
from fedserver.rounds.tasks import TaskDesk
from motley.wire.stubs import common_pb2


def broken(*arguments: object, **named: object) -> None:
    raise KeyError("a fault of this program")


def test_an_offset_beyond_the_payload_is_refused_for_good(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        with refused(grpc.StatusCode.OUT_OF_RANGE, f"a payload of {len(broadcast)} bytes"):
            await rig.download(task, offset=len(broadcast) + 1)
        assert await rig.download(task, offset=len(broadcast)) == b""
        assert await rig.download(task, offset=len(broadcast) - 1) == broadcast[-1:]

    scenario(body, tmp_path)


@pytest.mark.parametrize("method", ["CheckIn", "Download", "Upload", "Report"])
def test_a_fault_of_the_server_is_logged_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    steps = {
        "CheckIn": "next_tasks",
        "Download": "may_download",
        "Upload": "begin_upload",
        "Report": "report_failure",
    }

    async def call(rig: Rig, task: common_pb2.Task, update: bytes) -> object:
        if method == "CheckIn":
            return await rig.check_in()
        if method == "Download":
            return await rig.download(task)
        if method == "Upload":
            return await rig.upload(task, update)
        failure = pb.Failure(code="crash", message="x")
        return await rig.stub.Report(
            pb.ReportRequest(name="c0", session="session-c0", task_id=task.task_id, failure=failure)
        )

    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        update = rig.update(task, broadcast)
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(TaskDesk, steps[method], broken)
            words = f"[internal] {method} failed by a fault of the server (KeyError)"
            with refused(grpc.StatusCode.INTERNAL, words):
                await call(rig, task, update)
        told = [line for line in logs if line["event"] == "call_failed"]
        assert [(line["method"], line["client"], line["log_level"]) for line in told] == [
            (method, "c0", "error")
        ]
        assert all(line["exc_info"] for line in told)
        receipt = await rig.upload(task, update)
        assert receipt.status == pb.UPDATE_STATUS_ACCEPTED, "the server goes on"

    scenario(body, tmp_path)


def test_a_fault_in_a_call_of_the_operator_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(rig: Rig) -> None:
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(view, "list_runs", broken)
            with pytest.raises(ControlError, match="by a fault of the server"):
                await rig.operator("runs")
        assert [line["client"] for line in logs if line["event"] == "call_failed"] == ["operator"]

    scenario(body, tmp_path)


def test_a_client_that_goes_away_is_no_fault(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        task, broadcast = await one_client_run(rig)
        with capture_logs() as logs:
            waiting = asyncio.create_task(rig.check_in(working_on=""))
            sending = asyncio.create_task(
                rig.upload(task, rig.update(task, broadcast), silent_at=20_000)
            )
            while not list((rig.root / "incoming").iterdir()):
                await asyncio.sleep(0.01)
            await rig.channel.close()
            await asyncio.gather(waiting, sending, return_exceptions=True)
        assert not [line for line in logs if line["event"] == "call_failed"]

    scenario(body, tmp_path)
