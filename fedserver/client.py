"""The operator's side of the control service."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from fedserver.control_socket import control_socket
from fedserver.errors import numbers_by_code
from motley.errors import MotleyError
from motley.wire.stubs import common_pb2, control_pb2, control_pb2_grpc


class ControlError(MotleyError):
    """The server refused, or is not there."""

    code = "control"
    number = "M1506"

    @classmethod
    def refusal(cls, words: str) -> ControlError:
        """Return the error of a refusal in the server's words, under the number of their code."""
        error, named = cls(words), _REFUSAL.match(words)
        error.number = numbers_by_code().get(named[1] if named else "", cls.number)
        return error


_REFUSAL = re.compile(r"\[([a-z_]+)\] ")
"""How the server's words begin: the code of its error."""
_OPTIONS = [("grpc.max_receive_message_length", -1)]  # records of long runs are long


class Operator:
    """A connection to the server of a data directory, or to one on another machine."""

    options = ""
    """What a command was given to choose this server, to be said again: ` --data FOLDER`."""

    def __init__(self, root: Path, channel: grpc.Channel | None = None, server: str = "") -> None:
        """Connect to the socket of a data directory, or use the channel to `server`."""
        self._root, self._server = root, server
        self._channel = channel or grpc.insecure_channel(
            f"unix:{control_socket(root).resolve()}", options=_OPTIONS
        )
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    @classmethod
    def over_network(cls, bundle: Path, server: str) -> Operator:
        """Connect with an operator's file, to the server that it names when `server` is "".

        Raises:
            IdentityError: the file is none, or others can read it.
            ControlError: no server is named.
        """
        from fedserver.identity.operators import OperatorBundle
        from motley.identity.names import CHANNEL_OPTIONS

        found = OperatorBundle.read(bundle)
        address = server or found.server
        if not address:
            raise ControlError(f"{bundle} names no server; give its control port with --server")
        credentials = grpc.ssl_channel_credentials(
            found.authority.encode(), found.key.encode(), found.certificate.encode()
        )
        options = [*_OPTIONS, *CHANNEL_OPTIONS]
        return cls(bundle, grpc.secure_channel(address, credentials, options), address)

    def __enter__(self) -> Operator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        if isinstance(error, grpc.RpcError):
            raise self._translate(error) from None

    def _translate(self, error: grpc.RpcError) -> ControlError:
        if self._server and error.code() == grpc.StatusCode.UNAVAILABLE:
            return ControlError(
                f"the server at {self._server} cannot be reached, or does not take this "
                f"certificate ({error.details()}); is it the control port of `fedserver serve "
                f"--control-listen`, and the file one that this server's authority made?"
            )
        socket = control_socket(self._root)
        if socket.exists() and not os.access(socket, os.R_OK | os.W_OK):
            return ControlError(f"{socket} belongs to another user; ask the server's owner")
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return ControlError(
                f"no server answers for data directory {self._root}; start one with "
                f"`fedserver serve --data {self._root}`, or name another with --data"
            )
        return ControlError.refusal(error.details() or str(error.code()))

    def submit(self, text: str, source: str) -> str:
        """Queue a run and return its id."""
        request = control_pb2.SubmitRequest(runfile=text, source=source)
        return str(self._stub.Submit(request).run_id)

    def runs(self) -> list[dict[str, Any]]:
        """Return a summary of every run, the newest first."""
        return _documents(self._stub.ListRuns(control_pb2.ListRunsRequest()).records)

    def clients(self) -> list[dict[str, Any]]:
        """Return every client."""
        return _documents(self._stub.ListClients(control_pb2.ListClientsRequest()).records)

    def show(self, run: str) -> dict[str, Any]:
        """Return one run whole."""
        record: dict[str, Any] = json.loads(self._stub.Show(_run(run)).json)
        return record

    def watch(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield a run's record at every change, until it has ended."""
        for record in self._stub.Watch(_run(run)):
            yield json.loads(record.json)

    def stop(self, run: str) -> tuple[str, str]:
        """Stop a run; returns (id, status)."""
        reply = self._stub.Stop(_run(run))
        return reply.run_id, reply.status

    def resume(self, run: str) -> tuple[str, str]:
        """Resume a run; returns (id, status)."""
        reply = self._stub.Resume(_run(run))
        return reply.run_id, reply.status

    def extend(self, run: str, rounds: int) -> tuple[str, str]:
        """Add rounds to a run; returns (id, status)."""
        reply = self._stub.Extend(control_pb2.ExtendRequest(run=run, rounds=rounds))
        return reply.run_id, reply.status

    def remove(self, run: str) -> tuple[str, str]:
        """Forget a run that has ended; returns (id, status)."""
        reply = self._stub.Remove(_run(run))
        return reply.run_id, reply.status

    def replay(self, run: str) -> Iterator[dict[str, Any]]:
        """Yield one record a round: recorded and recomputed digest."""
        for record in self._stub.Replay(_run(run)):
            yield json.loads(record.json)

    def create_token(self, uses: int, seconds: float, client: str) -> tuple[str, dict[str, Any]]:
        """Make a join token; returns (its text, its record)."""
        request = control_pb2.CreateTokenRequest(uses=uses, seconds=seconds, name=client)
        reply = self._stub.CreateToken(request)
        return reply.token, json.loads(reply.record)

    def tokens(self) -> list[dict[str, Any]]:
        """Return every join token's record, the newest first."""
        return _documents(self._stub.ListTokens(control_pb2.ListTokensRequest()).records)

    def revoke_token(self, token: str) -> dict[str, Any]:
        """Make a join token worthless; returns its record."""
        reply = self._stub.RevokeToken(control_pb2.RevokeTokenRequest(id=token))
        record: dict[str, Any] = json.loads(reply.json)
        return record

    def revoke_client(self, name: str, reason: str) -> dict[str, Any]:
        """Shut a client out."""
        request = control_pb2.RevokeClientRequest(name=name, reason=reason)
        record: dict[str, Any] = json.loads(self._stub.RevokeClient(request).json)
        return record

    def fetch(self, run: str, number: int, target: Path) -> int:
        """Write a global model to `target` whole or not at all; return its size in bytes."""
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as stream:
                for frame in self._stub.Fetch(control_pb2.FetchRequest(run=run, round=number)):
                    _check(frame, stream.tell())
                    stream.write(frame.data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target.stat().st_size


def _check(frame: common_pb2.Frame, expected: int) -> None:
    if frame.offset != expected or zlib.crc32(frame.data) != frame.crc32:
        raise ControlError("a frame came damaged or out of order; try again")


def _run(run: str) -> control_pb2.RunRequest:
    return control_pb2.RunRequest(run=run)


def _documents(records: Iterable[control_pb2.Record]) -> list[dict[str, Any]]:
    return [json.loads(record.json) for record in records]
