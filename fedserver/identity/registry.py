"""Who may come: join tokens and certificates on record. Methods run on the database thread."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy import Engine as SqlEngine
from structlog.stdlib import get_logger

from fedserver.errors import CertificateLimitError, EnrolledError, RevokedError
from fedserver.identity.authority import Authority
from fedserver.rounds import exclusion
from fedserver.rounds.clock import Clock, SystemClock
from fedserver.storage.schema import certificates, clients, join_tokens
from motley.errors import IdentityError, TokenError
from motley.identity.certificates import Certificate, read_certificate
from motley.identity.keys import fingerprint, public_key_sha256, requested_key
from motley.identity.names import CLIENT
from motley.identity.tokens import ID_BYTES, SECRET_BYTES, JoinToken

log = get_logger()

MOST_USES = 10_000
MOST_CERTIFICATES = 16
"""Keys of one client with valid certificates at one time; a device needs two while it renews."""
_Held: TypeAlias = dict[str, list[tuple[Certificate, str]]]
"""Certificates of a client, and the tokens that they were signed for, by hash of the key."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate that was signed."""

    certificate: bytes
    """X.509 in DER."""
    replaced: bool = False
    """Whether older certificates of the name stopped counting."""


class Registry:
    """Join tokens and clients' certificates."""

    def __init__(
        self, database: SqlEngine, authority: Authority, clock: Clock | None = None
    ) -> None:
        self.authority = authority
        self._database, self._clock = database, clock or SystemClock()
        self._revoked_clients: dict[str, str] = {}
        self._revoked_serials: dict[str, str] = {}
        self.load()

    def load(self) -> None:
        """Read who is shut out; called once, before the first client is let in."""
        with self._database.connect() as tx:
            named = select(clients.c.name, clients.c.revoked).where(clients.c.revoked != "")
            serials = select(certificates.c.serial, certificates.c.revoked).where(
                certificates.c.revoked != ""
            )
            self._revoked_clients = {row.name: row.revoked for row in tx.execute(named)}
            self._revoked_serials = {row.serial: row.revoked for row in tx.execute(serials)}

    def check(self, name: str, serial: str) -> None:
        """Raise RevokedError when a client or its certificate is shut out. Safe on any thread."""
        why = self._revoked_clients.get(name) or self._revoked_serials.get(serial)
        if why:
            raise RevokedError(
                f"client {name!r} was shut out by the operator: {why}; to let the device back in, "
                f"the operator runs `fedserver tokens create --client {name}`"
            )

    # --- tokens ------------------------------------------------------------------------------

    def create_token(
        self, uses: int, seconds: float, client: str, server: str
    ) -> tuple[JoinToken, dict[str, Any]]:
        """Put a new token on record; return it with its record.

        Args:
            uses: how many devices may join with it.
            seconds: until it runs out.
            client: the one client that may use it, taking the place of the device that it was;
                "" for any new name.
            server: `HOST:PORT` of the join port.
        """
        if not 1 <= uses <= MOST_USES:
            raise TokenError(f"a token of {uses} uses; expected 1 to {MOST_USES}")
        if not seconds > 0:
            raise TokenError(f"a token that lives {seconds} seconds; expected more than 0")
        if client:
            _check_name(client)
        token = JoinToken(
            authority=fingerprint(self.authority.der),
            id=secrets.token_bytes(ID_BYTES),
            secret=secrets.token_bytes(SECRET_BYTES),
            server=server,
        )
        now = self._clock.wall()
        row = {
            "id": token.id.hex(),
            "created": now,
            "expires": now + seconds,
            "uses": uses,
            "uses_left": uses,
            "client": client,
            "revoked": False,
        }
        with self._database.begin() as tx:
            tx.execute(insert(join_tokens).values(secret_sha256=_hash(token.secret), **row))
        log.info("token_created", token=row["id"], uses=uses, client=client)
        return token, self._token_record(row)

    def tokens(self) -> list[dict[str, Any]]:
        """Return every token's record, the newest first."""
        with self._database.connect() as tx:
            rows = tx.execute(select(join_tokens).order_by(join_tokens.c.created.desc())).all()
        return [self._token_record(row._asdict()) for row in rows]

    def revoke_token(self, token_id: str) -> dict[str, Any]:
        """Make a token worthless; clients that joined with it stay."""
        mine = join_tokens.c.id == token_id
        with self._database.begin() as tx:
            tx.execute(update(join_tokens).where(mine).values(revoked=True))
            row = tx.execute(select(join_tokens).where(mine)).first()
        if row is None:
            raise TokenError(f"there is no join token {token_id!r}; see `fedserver tokens list`")
        log.info("token_revoked", token=token_id)
        return self._token_record(row._asdict())

    def _token_record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        state = "usable"
        if row["revoked"]:
            state = "revoked"
        elif row["expires"] <= self._clock.wall():
            state = "expired"
        elif row["uses_left"] <= 0:
            state = "used up"
        names = ("id", "created", "expires", "uses", "uses_left", "client")
        return {**{name: row[name] for name in names}, "state": state}

    # --- joining -----------------------------------------------------------------------------

    def enrol(self, token_id: bytes, secret: bytes, name: str, request: bytes) -> Issued:
        """Sign a certificate for a device that shows a token.

        Asked again with the same token, name and key it gives the same certificate again, while
        that is fresh, and uses up nothing.

        Raises:
            TokenError: unknown, run out, used up, revoked, or for another client.
            EnrolledError: the name is another device's, and the token is not for this name.
            IdentityError: the name or the signing request cannot be used.
        """
        _check_name(name)
        key = requested_key(request)
        with self._database.begin() as tx:
            token = self._token(tx, token_id, secret, name)
            replaced = False
            if again := self._signed_before(self._held(tx, name), key, token.id):
                return Issued(certificate=again)
            if not self._asked_before(tx, token.id, name, public_key_sha256(key)):
                if token.uses_left <= 0:
                    raise TokenError(
                        f"this join token has been used {token.uses} times, which is all that it "
                        f"is for; ask the operator for another: `fedserver tokens create`"
                    )
                replaced = self._make_room(tx, name, token.client)
                tx.execute(
                    update(join_tokens)
                    .where(join_tokens.c.id == token.id)
                    .values(uses_left=token.uses_left - 1)
                )
            signed = self.authority.sign(CLIENT, name, key)
            self._put_on_record(tx, name, signed, public_key_sha256(key), token.id)
        # After the commit: what is in memory never runs ahead of the record.
        if replaced:
            self.load()
        log.info("client_joined", client=name, token=token.id, replaced=replaced)
        return Issued(certificate=signed, replaced=replaced)

    def _token(self, tx: Connection, token_id: bytes, secret: bytes, name: str) -> Any:
        row = tx.execute(select(join_tokens).where(join_tokens.c.id == token_id.hex())).first()
        # Compared also when there is none: time tells a stranger nothing.
        right = hmac.compare_digest(row.secret_sha256 if row else "0" * 64, _hash(secret))
        if row is None or not right:
            raise TokenError("this server knows no such join token; is it another server's?")
        if row.revoked:
            raise TokenError("this join token was revoked; ask the operator for another")
        if row.expires <= self._clock.wall():
            raise TokenError(
                "this join token has run out; ask the operator for another: "
                "`fedserver tokens create`"
            )
        if row.client and row.client != name:
            raise TokenError(
                f"this join token is for client {row.client!r} alone, not for {name!r}; give "
                f"--name {row.client}"
            )
        return row

    def _asked_before(self, tx: Connection, token: str, name: str, key: str) -> bool:
        found = select(certificates.c.serial).where(
            certificates.c.token == token,
            certificates.c.role == CLIENT,
            certificates.c.name == name,
            certificates.c.key_sha256 == key,
            certificates.c.revoked == "",
        )
        return tx.execute(found).first() is not None

    def _make_room(self, tx: Connection, name: str, meant_for: str) -> bool:
        """Let a name's older certificates stop counting; return whether there were any."""
        mine = certificates.c.role == CLIENT, certificates.c.name == name
        known = tx.execute(select(certificates.c.serial).where(*mine)).first() is not None
        revoked = tx.scalar(select(clients.c.revoked).where(clients.c.name == name))
        if not (known or revoked):
            return False
        if meant_for != name:
            raise EnrolledError(
                f"a device called {name!r} has joined already; give this one another --name. If "
                f"it is to take that one's place, the operator runs "
                f"`fedserver tokens create --client {name}`"
            )
        why = "another device joined in its place"
        tx.execute(
            update(certificates).where(*mine, certificates.c.revoked == "").values(revoked=why)
        )
        tx.execute(update(clients).where(clients.c.name == name).values(revoked=""))
        exclusion.take_back(tx, name)
        return True

    def renew(self, name: str, request: bytes) -> Issued:
        """Sign a new certificate for a client that shows a valid one; the old one stays valid.

        Asked again with the same key it gives the same certificate again, while that is fresh.

        Raises:
            CertificateLimitError: it holds certificates of too many keys that are valid.
            IdentityError: the signing request cannot be used.
        """
        key = requested_key(request)
        digest = public_key_sha256(key)
        with self._database.begin() as tx:
            held = self._held(tx, name)
            if again := self._signed_before(held, key):
                return Issued(certificate=again)
            # Keys count, not certificates: a device that asks again is not locked out by that.
            if digest not in held and len(held) >= MOST_CERTIFICATES:
                raise CertificateLimitError(
                    f"client {name!r} holds valid certificates of {len(held)} keys, which is more "
                    f"than a device can need; older ones must run out first"
                )
            signed = self.authority.sign(CLIENT, name, key)
            self._put_on_record(tx, name, signed, digest, "")
        log.info("certificate_renewed", client=name)
        return Issued(certificate=signed)

    def _signed_before(
        self, held: _Held, key: ec.EllipticCurvePublicKey, token: str = ""
    ) -> bytes | None:
        """Return a fresh certificate of this key once more, if one was signed (for a token)."""
        for known, signed_for in held.get(public_key_sha256(key), ()):
            is_fresh = known.not_before <= self._clock.wall() < known.renew_at
            if is_fresh and token in ("", signed_for):
                log.info("certificate_given_again", client=known.name)
                return self.authority.sign_again(known, key)
        return None

    def _held(self, tx: Connection, name: str) -> _Held:
        """Return a client's valid certificates."""
        rows = select(certificates).where(
            certificates.c.role == CLIENT,
            certificates.c.name == name,
            certificates.c.revoked == "",
            certificates.c.not_after > self._clock.wall(),
        )
        held: _Held = {}
        for row in tx.execute(rows):
            found = Certificate(
                role=row.role,
                name=row.name,
                serial=row.serial,
                not_before=row.not_before,
                not_after=row.not_after,
            )
            held.setdefault(row.key_sha256, []).append((found, row.token))
        return held

    def _put_on_record(
        self, tx: Connection, name: str, signed: bytes, key: str, token: str
    ) -> None:
        found = read_certificate(signed)
        # What ran out by a clock that is wrong may still be valid: what was revoked stays for
        # good, and as many others as a device can hold, for only rows can be revoked.
        ran_out = (
            select(certificates.c.serial)
            .where(
                certificates.c.role == CLIENT,
                certificates.c.name == name,
                certificates.c.revoked == "",
                certificates.c.not_after <= self._clock.wall(),
            )
            .order_by(certificates.c.not_after.desc())
            .offset(MOST_CERTIFICATES)
        )
        tx.execute(delete(certificates).where(certificates.c.serial.in_(ran_out)))
        tx.execute(
            insert(certificates).values(
                serial=found.serial,
                role=CLIENT,
                name=name,
                key_sha256=key,
                token=token,
                not_before=found.not_before,
                not_after=found.not_after,
            )
        )

    # --- shutting out ------------------------------------------------------------------------

    def revoke_client(self, name: str, reason: str) -> dict[str, Any]:
        """Shut a client out: its certificates stop counting, and it leaves its runs.

        The record names the tokens with which the device, if it still knows one, could come back
        under another name: those that are for nobody by name and usable.
        """
        reason = reason.strip() or "by the operator"
        mine = certificates.c.role == CLIENT, certificates.c.name == name
        with self._database.begin() as tx:
            marked = tx.execute(
                update(clients).where(clients.c.name == name).values(revoked=reason)
            )
            struck = tx.execute(
                update(certificates)
                .where(*mine, certificates.c.revoked == "")
                .values(revoked=reason)
            )
            # A token made for this name would let the same device in again.
            tx.execute(update(join_tokens).where(join_tokens.c.client == name).values(revoked=True))
            known = tx.execute(select(certificates.c.serial).where(*mine)).first() is not None
            if not (marked.rowcount or known):
                raise IdentityError(f"no client is called {name!r}; see `fedserver clients`")
            exclusion.shut_out(tx, name, reason, self._clock.wall())
        self.load()
        log.warning("client_revoked", client=name, reason=reason, certificates=struck.rowcount)
        open_tokens = [t["id"] for t in self.tokens() if t["state"] == "usable" and not t["client"]]
        return {
            "name": name,
            "revoked": reason,
            "certificates": struck.rowcount,
            "open_tokens": open_tokens,
        }


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"client name {name[:80]!r}: expected 1 to 64 letters, digits, '.', '_' or '-', "
            f"beginning with a letter or digit"
        )


def _hash(secret: bytes) -> str:
    # The secret has 128 random bits: nothing is gained by a slow hash.
    return hashlib.sha256(secret).hexdigest()
