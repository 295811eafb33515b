"""Bytes that are no message: a named refusal for each kind of call, and a log line."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from test_service import Rig, refused, scenario

NOISE = b"\xff\xff\xff\xff\x0f nothing that protobuf would write"
SERVICE = "/motley.v1.Federation/"


@pytest.mark.parametrize("method", ["CheckIn", "Report", "Download"])
def test_bytes_that_are_no_request_are_refused_by_name(tmp_path: Path, method: str) -> None:
    async def body(rig: Rig) -> None:
        call = rig.channel.unary_stream if method == "Download" else rig.channel.unary_unary
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"no message of {method}"):
            answer = call(SERVICE + method)(NOISE, timeout=20)
            if method == "Download":
                await answer.read()
            else:
                await answer

    scenario(body, tmp_path)


def test_bytes_that_are_no_message_of_an_upload_are_refused_by_name(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        call = rig.channel.stream_stream(SERVICE + "Upload")(iter([NOISE]), timeout=20)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "no message of Upload"):
            await call.read()

    scenario(body, tmp_path)


def test_a_refusal_of_a_very_long_name_keeps_its_status(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "client name"):
            await rig.check_in("x" * 100_000)

    scenario(body, tmp_path)
