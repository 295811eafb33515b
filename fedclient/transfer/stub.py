"""The calls to the server: the generated ones, with frames read and written without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from motley.wire.framing import pack_upload, read_frame
from motley.wire.stubs import federation_pb2
from motley.wire.stubs.federation_pb2_grpc import FederationStub

if TYPE_CHECKING:
    import grpc

    from fedclient.channel import RenewableChannel


class ClientStub(FederationStub):
    """As `FederationStub`, but a download yields `Frame`s, and an upload takes them."""

    def __init__(self, channel: grpc.aio.Channel | RenewableChannel) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        self.Download = channel.unary_stream(
            "/motley.v1.Federation/Download",
            request_serializer=federation_pb2.DownloadRequest.SerializeToString,
            response_deserializer=read_frame,
        )
        self.Upload = channel.stream_stream(
            "/motley.v1.Federation/Upload",
            request_serializer=pack_upload,
            response_deserializer=federation_pb2.UploadReply.FromString,
        )
