"""What daemon and training process say to each other: one JSON object a line, over pipes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

LINE_LIMIT = 16 * 1024**2
"""Bytes of one line at most."""


Metrics = Mapping[str, FiniteFloat]
"""Metrics by name. Execution drops NaN and infinity, which JSON cannot say."""


MOST_WORDS = 2000
"""Characters of an error that are told."""


def told(message: str) -> str:
    """Return an error's words as they can be sent: cut, and what is no UTF-8 escaped.

    Names of files may be any bytes, and reach Python as characters that no message can hold.
    """
    return message.encode(errors="backslashreplace").decode()[:MOST_WORDS]


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        """Return the message as one line."""
        return self.model_dump_json().encode() + b"\n"


class Setup(Message):
    """First line to the process: everything that holds for its whole life."""

    kind: Literal["setup"] = "setup"
    workloads: Mapping[str, str] = Field(default_factory=dict)
    data: str
    device: str = "cpu"
    threads: int = 1
    memory_limit: int = 0
    """Bytes for RLIMIT_DATA; 0 for none."""


class Job(Message):
    """One task. Paths are the state directory's; the process writes nowhere else."""

    kind: Literal["job"] = "job"
    client: str
    task: str
    """The wire's Task message in base64."""
    broadcast: str = ""
    update: str
    model: str
    personal: str
    """Directory of the run's personal states."""
    privacy: str = ""
    """Directory of the privacy ledger."""

    @staticmethod
    def encode_task(serialized: bytes) -> str:
        """Return a serialized Task for the field `task`."""
        return base64.b64encode(serialized).decode()

    def task_bytes(self) -> bytes:
        """Return the serialized Task."""
        return base64.b64decode(self.task)


class Progress(Message):
    """How far a task is."""

    kind: Literal["progress"] = "progress"
    fraction: FiniteFloat
    peak_memory_bytes: int


class Done(Message):
    """A task came to its outcome."""

    kind: Literal["done"] = "done"
    sha256: str = ""
    """Hexadecimal, of the update; empty for kinds of task that send none."""
    size: int = 0
    samples: int = 0
    metrics: Metrics = Field(default_factory=dict)
    seconds: FiniteFloat = 0.0
    restarted: bool = False
    withheld: bool = False
    """Whether the metrics are for this device alone."""
    variant: str = ""
    """Of a finished model; empty for other kinds of task."""
    workload_version: int = 0
    """Of the code that built it."""

    @property
    def told(self) -> Metrics:
        """The metrics that the server is told."""
        return {} if self.withheld else self.metrics


class Failed(Message):
    """A task failed, with the code and text that the server is told."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str
    permanent: bool = False
    peak_memory_bytes: int = 0


Request = Annotated[Setup | Job, Field(discriminator="kind")]
Reply = Annotated[Progress | Done | Failed, Field(discriminator="kind")]

read_request: TypeAdapter[Setup | Job] = TypeAdapter(Request)
read_reply: TypeAdapter[Progress | Done | Failed] = TypeAdapter(Reply)
