"""The attacker's connection: it sends raw bytes, without the stubs' own checks."""

from __future__ import annotations

import socket
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import grpc

from motley.algorithms import registry
from motley.identity.names import CHANNEL_OPTIONS
from motley.wire import ENCODING_NAMES
from motley.wire.stubs import common_pb2, federation_pb2

SERVICE = "/motley.v1.Federation/"
CALL_SECONDS = 3.0


@dataclass
class Sender:
    """A connection of the attacker `name`, which is a member of the run like any other."""

    address: str
    credentials: grpc.ChannelCredentials | None = None
    """With certificates: the attacker's own."""
    name: str = "mallory"
    session: str = "mallorys-session"
    task_id: str = "none"
    """The attacker's own open task, when there is one."""
    victim_task: str = "none"
    """Another client's task."""
    digest: bytes = bytes(32)
    """Digest of the broadcast of the attacker's task."""

    @cached_property
    def channel(self) -> grpc.Channel:
        """The connection, made when it is first needed."""
        if self.credentials is None:
            return grpc.insecure_channel(self.address)
        return grpc.secure_channel(self.address, self.credentials, CHANNEL_OPTIONS)

    def posing_as(self, name: str) -> Sender:
        """Return what makes messages in another client's name."""
        return replace(self, name=name)

    def unary(self, method: str, data: bytes) -> str:
        """Send raw bytes as the request of a unary RPC; return the status."""
        call = self.channel.unary_unary(SERVICE + method)
        try:
            call(data, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def download(self, data: bytes) -> str:
        """Send raw bytes as a Download request; read to the end."""
        call = self.channel.unary_stream(SERVICE + "Download")
        try:
            for _ in call(data, timeout=CALL_SECONDS):
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def upload(self, messages: list[bytes]) -> str:
        """Send raw messages as an upload; read to the end."""
        call = self.channel.stream_stream(SERVICE + "Upload")
        try:
            for _ in call(iter(messages), timeout=CALL_SECONDS):
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def raw(self, data: bytes) -> str:
        """Send bytes to the port without gRPC; return how the connection ended."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), CALL_SECONDS) as stream:
            stream.settimeout(0.2)
            try:
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
                while stream.recv(4096):
                    pass
            except (TimeoutError, OSError):
                return "connection open or reset"
        return "connection closed"

    # --- valid messages ----------------------------------------------------------------------

    def check_in(self, *, name: str = "", working_on: str = "nothing") -> bytes:
        """Return a valid check-in; with `working_on` it is answered at once."""
        versions = {name: registry.find(name).version for name in registry.names()}
        request = federation_pb2.CheckInRequest(
            name=name or self.name,
            session=self.session,
            capabilities=common_pb2.Capabilities(
                protocol=1,
                wire=1,
                algorithms=versions,
                workloads={"tiny": 1},
                encodings=list(ENCODING_NAMES),
                software="0",
            ),
            profile=common_pb2.DeviceProfile(cores=1, threads=1, tier="pc"),
            working_on=working_on,
        )
        return bytes(request.SerializeToString())

    def opening(self, task_id: str, *, sha256: bytes, size: int, **more: object) -> bytes:
        """Return an upload's first message."""
        message = federation_pb2.UploadMessage(
            open=federation_pb2.UploadOpen(
                name=self.name,
                session=self.session,
                task_id=task_id,
                payload=common_pb2.PayloadRef(sha256=sha256, size=size),
                samples=10,
                train_seconds=0.1,
                **more,  # type: ignore[arg-type]
            )
        )
        return bytes(message.SerializeToString())

    def report(self, task_id: str, **outcome: object) -> bytes:
        """Return a report."""
        request = federation_pb2.ReportRequest(
            name=self.name,
            session=self.session,
            task_id=task_id,
            **outcome,  # type: ignore[arg-type]
        )
        return bytes(request.SerializeToString())

    def download_request(self, task_id: str, sha256: bytes, offset: int = 0) -> bytes:
        """Return a download request."""
        request = federation_pb2.DownloadRequest(
            name=self.name, session=self.session, task_id=task_id, sha256=sha256, offset=offset
        )
        return bytes(request.SerializeToString())


def frame(data: bytes, *, offset: int = 0, crc: int | None = None) -> bytes:
    """Return a frame as an upload's message."""
    checksum = zlib.crc32(data) if crc is None else crc
    message = federation_pb2.UploadMessage(
        frame=common_pb2.Frame(offset=offset, data=data, crc32=checksum)
    )
    return bytes(message.SerializeToString())
