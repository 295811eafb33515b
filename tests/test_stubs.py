"""The generated stubs import and work with the oldest and the newest allowed runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parent.parent / "core"
# The oldest grpcio with wheels for each Python; pyproject.toml's bound is the first of them.
OLDEST_GRPCIO = {(3, 10): "1.49.1", (3, 11): "1.49.1", (3, 12): "1.59.3", (3, 13): "1.66.2"}
OLDEST_PROTOBUF = "4.21.6"

EXERCISE = """
import grpc, google.protobuf
from motley.wire.stubs import common_pb2, control_pb2_grpc, federation_pb2, federation_pb2_grpc
task = common_pb2.Task(task_id="t", plan=common_pb2.Plan(bits={"fc1": 2}, up_bits=8))
reply = federation_pb2.CheckInReply(task=task, notices=["hello"])
again = federation_pb2.CheckInReply.FromString(reply.SerializeToString())
assert again.task.plan.bits["fc1"] == 2 and again.WhichOneof("outcome") == "task"
channel = grpc.insecure_channel("127.0.0.1:1")
federation_pb2_grpc.FederationStub(channel).CheckIn
control_pb2_grpc.ControlStub(channel).Watch
print(grpc.__version__, google.protobuf.__version__)
"""


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_stubs_work_with(which: str, tmp_path: Path) -> None:
    wanted = ["grpcio", "protobuf"]
    if which == "oldest":
        version = OLDEST_GRPCIO.get(sys.version_info[:2])
        if version is None:
            pytest.skip(f"no oldest grpcio is known for Python {sys.version_info[:2]}")
        wanted = [f"grpcio=={version}", f"protobuf=={OLDEST_PROTOBUF}"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    install += ["--disable-pip-version-check", "--no-warn-conflicts"]
    install += ["--target", str(tmp_path), *wanted]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "No matching distribution" not in done.stderr:
        pytest.skip(f"no package registry here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    # -S -I would hide numpy, which motley.wire needs; the target folder goes first instead.
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CORE}"}
    check = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXERCISE],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stderr
    if which == "oldest":
        assert check.stdout.split() == [OLDEST_GRPCIO[sys.version_info[:2]], OLDEST_PROTOBUF]
