"""The short calls to the server: check-ins, reports, the goodbye."""

from __future__ import annotations

import grpc
from grpc import StatusCode
from structlog.stdlib import get_logger

from fedclient.device import Device
from fedclient.errors import RefusedError
from fedclient.transfer.peer import FINAL, Peer, pause
from fedclient.transfer.speed import LinkRecord
from motley import __version__
from motley.algorithms import registry
from motley.wire import ENCODING_NAMES
from motley.wire import VERSION as WIRE_VERSION
from motley.wire.stubs import common_pb2, federation_pb2

log = get_logger()

PROTOCOL = 1
GOODBYE_SECONDS = 1.0
_REFUSED = FINAL | {StatusCode.ALREADY_EXISTS}


def algorithm_versions() -> dict[str, int]:
    """Return the version of every algorithm that can be imported here; none imports torch."""
    versions = {}
    for name in registry.names():
        try:
            versions[name] = registry.find(name).version
        except ImportError as error:
            log.warning("algorithm_unusable", algorithm=name, reason=str(error))
    return versions


class Connection:
    """Calls that carry who we are and what we can do."""

    def __init__(self, peer: Peer, device: Device, link: LinkRecord) -> None:
        self._peer, self._device, self._link = peer, device, link
        self._capabilities = common_pb2.Capabilities(
            protocol=PROTOCOL,
            wire=WIRE_VERSION,
            algorithms=algorithm_versions(),
            workloads=dict(device.measurement.workloads),
            encodings=list(ENCODING_NAMES),
            software=__version__,
        )

    async def check_in(self, working_on: str = "") -> federation_pb2.CheckInReply:
        """Ask for a task, or say that one is in hand.

        Raises:
            RefusedError: the server will not have this client.
            grpc.aio.AioRpcError: the server cannot be reached now.
        """
        try:
            return await self._peer.stub.CheckIn(  # type: ignore[no-any-return]
                self._request(working_on), timeout=self._peer.patience.poll_seconds
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSED:
                said = error.details() or error.code().name
                raise RefusedError(
                    f"the server refused client {self._peer.name!r}: {said}"
                ) from None
            raise

    async def report(
        self,
        task_id: str,
        *,
        failure: federation_pb2.Failure | None = None,
        result: federation_pb2.Result | None = None,
    ) -> bool:
        """Tell a task's end, as long as it takes; False when the server does not want to know."""
        backoff = self._peer.backoff()
        request = federation_pb2.ReportRequest(
            name=self._peer.name,
            session=self._peer.session,
            task_id=task_id,
            failure=failure,
            result=result,
        )
        while True:
            try:
                await self._peer.stub.Report(request, timeout=self._peer.patience.call_seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() in FINAL:
                    log.warning("report_refused", task=task_id, reason=error.details())
                    return False
                wait = pause(error, backoff)
                log.info("report_interrupted", task=task_id, reason=error.code().name)
                await self._peer.sleep(wait)
            else:
                return True

    async def goodbye(self) -> None:
        """Say that this client leaves; whether it arrives does not matter."""
        request = self._request("")
        request.leaving = True
        try:
            await self._peer.stub.CheckIn(request, timeout=GOODBYE_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.debug("goodbye_unheard", reason=error.code().name)

    def _request(self, working_on: str) -> federation_pb2.CheckInRequest:
        return federation_pb2.CheckInRequest(
            name=self._peer.name,
            session=self._peer.session,
            capabilities=self._capabilities,
            profile=self._device.profile(self._link.told()),
            working_on=working_on,
        )
