"""The service for strangers: a certificate for a join token. Thin over identity/registry.py."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from fedserver.errors import BusyError
from fedserver.identity.rates import Knocks
from fedserver.identity.registry import Registry
from fedserver.rounds.presence import Presence
from fedserver.service.callers import Callers
from fedserver.service.status import RefusedError, abort, refusals
from fedserver.storage.database import DatabaseThread
from motley.wire.stubs import join_pb2, join_pb2_grpc

if TYPE_CHECKING:
    from fedserver.service.status import Context


class JoinService(join_pb2_grpc.JoinServicer):
    """Says who the authority is, and enrols devices that show a token."""

    def __init__(
        self,
        registry: Registry,
        database: DatabaseThread,
        callers: Callers,
        presence: Presence,
        knocks: Knocks,
        *,
        server: str,
    ) -> None:
        """Make the service; `server` is the client port's address that devices are told."""
        self._registry, self._database = registry, database
        self._callers, self._presence, self._knocks = callers, presence, knocks
        self._server = server

    async def Authority(  # noqa: N802
        self, request: join_pb2.AuthorityRequest, context: Context
    ) -> join_pb2.AuthorityReply:
        """Return the authority's certificate."""
        try:
            with refusals("Authority", context.peer()):
                self._knock(context)
                return join_pb2.AuthorityReply(authority=self._registry.authority.der)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def Enrol(  # noqa: N802
        self, request: join_pb2.EnrolRequest, context: Context
    ) -> join_pb2.EnrolReply:
        """Return a certificate for a token."""
        try:
            with refusals("Enrol", f"{request.name[:64]} at {context.peer()}"):
                self._knock(context)
                issued = await self._database(
                    self._registry.enrol,
                    request.token_id,
                    request.secret,
                    request.name,
                    request.signing_request,
                )
                if issued.replaced:
                    await self._callers.shut_out(request.name, "another device took its place")
                    self._presence.forget(request.name)
                return join_pb2.EnrolReply(certificate=issued.certificate, server=self._server)
        except RefusedError as refusal:
            await abort(context, refusal)

    def _knock(self, context: Context) -> None:
        if not self._knocks.allow(peer_host(context.peer())):
            raise BusyError("too many devices ask to join at this moment; try again in a minute")


def peer_host(peer: str) -> str:
    """Return the address in gRPC's name of a peer, without its port.

    >>> peer_host("ipv4:192.0.2.7:41000"), peer_host("ipv6:%5B2001:db8::1%5D:41000")
    ('192.0.2.7', '2001:db8::1')
    """
    host = unquote(peer).partition(":")[2].rpartition(":")[0]
    return host.strip("[]")
