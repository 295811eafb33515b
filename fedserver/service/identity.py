"""The part of the control service that decides who may come."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedserver.errors import RunStateError
from fedserver.rounds.engine import Engine
from fedserver.service.callers import Callers
from motley.wire.stubs import control_pb2

if TYPE_CHECKING:
    from fedserver.identity.registry import Registry
    from fedserver.service.status import Context


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What is needed to let clients in and to shut them out."""

    registry: Registry
    callers: Callers
    join_address: str
    """`HOST:PORT` that stands in tokens; "" while the join port is closed."""


class IdentityControl:
    """Tokens and revocation; the rest of the control service is in control.py."""

    _engine: Engine
    _admission: Admission | None
    _unary: Callable[..., Any]

    async def CreateToken(  # noqa: N802
        self, request: control_pb2.CreateTokenRequest, context: Context
    ) -> control_pb2.TokenReply:
        """Make a join token."""

        def create_token() -> tuple[Any, dict[str, Any]]:
            admission = self._admitting()
            if not admission.join_address:
                raise RunStateError("the join port is closed; start the server without --no-join")
            return admission.registry.create_token(
                request.uses, request.seconds, request.name, admission.join_address
            )

        token, record = await self._unary(context, create_token)
        return control_pb2.TokenReply(token=str(token), record=json.dumps(record))

    async def ListTokens(  # noqa: N802
        self, request: control_pb2.ListTokensRequest, context: Context
    ) -> control_pb2.Records:
        """Return every join token's record, without its secret."""

        def list_tokens() -> list[dict[str, Any]]:
            return self._admitting().registry.tokens()

        records = await self._unary(context, list_tokens)
        return control_pb2.Records(
            records=[control_pb2.Record(json=json.dumps(record)) for record in records]
        )

    async def RevokeToken(  # noqa: N802
        self, request: control_pb2.RevokeTokenRequest, context: Context
    ) -> control_pb2.Record:
        """Make a join token worthless."""

        def revoke_token() -> dict[str, Any]:
            return self._admitting().registry.revoke_token(request.id)

        return control_pb2.Record(json=json.dumps(await self._unary(context, revoke_token)))

    async def RevokeClient(  # noqa: N802
        self, request: control_pb2.RevokeClientRequest, context: Context
    ) -> control_pb2.Record:
        """Shut a client out at once, also on open calls."""

        def revoke_client() -> dict[str, Any]:
            return self._admitting().registry.revoke_client(request.name, request.reason)

        record = await self._unary(context, revoke_client)
        await self._admitting().callers.shut_out(request.name, record["revoked"])
        # Last: a call that was about to be answered may have noted the client as here.
        self._engine.presence.forget(request.name)
        self._engine.changed()
        return control_pb2.Record(json=json.dumps(record))

    def _admitting(self) -> Admission:
        if self._admission is None:
            raise RunStateError(
                "this server runs without certificates (--insecure): every name is believed, and "
                "nobody can be let in or shut out; stop it, `fedserver init`, and start it again"
            )
        return self._admission
