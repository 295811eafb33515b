"""Keys, signing requests, and what the authority signs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from bench import ManualClock
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fedserver.errors import AddressError
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.durations import DurationError, format_duration, parse_duration
from fedserver.identity.rates import Knocks, Rate
from fedserver.identity.setup import make_authority
from fedserver.service.join import peer_host
from motley.errors import IdentityError
from motley.identity.certificates import load_certificate, read_certificate
from motley.identity.keys import key_from_pem, key_to_pem, new_key, requested_key, signing_request
from motley.identity.names import SERVER_NAME
from motley.identity.private_files import read_private, write_private


def test_a_key_file_is_written_for_its_owner_alone_and_refused_otherwise(tmp_path: Path) -> None:
    path, key = tmp_path / "key.pem", new_key()
    write_private(path, key_to_pem(key))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_from_pem(read_private(path), path).public_key() == key.public_key()
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(IdentityError, match="chmod 600"):
            read_private(path)
    with pytest.raises(IdentityError, match="cannot be read"):
        read_private(tmp_path / "nothing")
    with pytest.raises(IdentityError, match="holds no private key"):
        key_from_pem(b"nonsense", path)


def request_with(key: object) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_only_sound_signing_requests_are_taken() -> None:
    key = new_key()
    good = signing_request(key)
    assert requested_key(good) == key.public_key()
    spoiled = good[:-4] + bytes([good[-4] ^ 1]) + good[-3:]
    for bad in (b"", b"x" * 100, good[:-1], spoiled, b"\0" * 5000):
        with pytest.raises(IdentityError):
            requested_key(bad)
    for other in (
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        with pytest.raises(IdentityError, match=r"ECDSA P-256"):
            requested_key(request_with(other))


def authority(root: Path, clock: ManualClock, **settings: float) -> Authority:
    return Authority.create(root, Settings(host="h", **settings), clock)


def test_certificates_of_one_role_are_of_no_use_in_another(tmp_path: Path) -> None:
    found = authority(tmp_path, ManualClock())
    for role in ("client", "operator"):
        signed = load_certificate(found.sign(role, "c0", new_key().public_key()))
        usage = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in names] == [f"motley:{role}:c0"]
        constraints = signed.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert not constraints.ca
    server = load_certificate((tmp_path / "identity" / "server.pem").read_bytes())
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME]


def test_lifetimes_begin_earlier_for_clocks_that_differ(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.now = 1.7e9
    found = authority(tmp_path, clock, client_lifetime=90 * 86400.0)
    long = read_certificate(found.sign("client", "c0", new_key().public_key()))
    assert (long.not_before, long.not_after) == (clock.now - 3600, clock.now + 90 * 86400)
    other = authority(tmp_path / "other", clock, client_lifetime=20.0)
    short = read_certificate(other.sign("client", "c0", new_key().public_key()))
    assert (short.not_before, short.not_after) == (clock.now - 2, clock.now + 20)
    assert clock.now < short.renew_at < short.not_after


def test_the_server_renews_its_own_certificate_at_a_third_of_its_life(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.now = 1.7e9
    found = authority(tmp_path, clock, server_lifetime=90.0)
    path = tmp_path / "identity" / "server.pem"
    first = path.read_bytes()
    wait = found.renew_server_if_due()
    assert 50 < wait < 70
    assert path.read_bytes() == first
    clock.now += wait + 1
    assert found.renew_server_if_due() > 50
    second = path.read_bytes()
    assert second != first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    clock.now += 10_000  # the server was off for longer than its certificate lives
    Authority(tmp_path, clock)
    assert path.read_bytes() != second
    third = path.read_bytes()
    clock.now -= 1_000_000  # and its clock was put right: a certificate of the future is no use
    Authority(tmp_path, clock)
    assert path.read_bytes() != third


def test_an_authority_is_made_once_and_a_broken_one_is_said(tmp_path: Path) -> None:
    clock = ManualClock()
    authority(tmp_path, clock)
    with pytest.raises(IdentityError, match="holds an authority already"):
        authority(tmp_path, clock)
    folder = tmp_path / "identity"
    (folder / "authority.key").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Authority(tmp_path, clock)
    write_private(folder / "authority.key", key_to_pem(new_key()))
    with pytest.raises(IdentityError, match="does not belong"):
        Authority(tmp_path, clock)
    (folder / "settings.json").unlink()
    with pytest.raises(IdentityError, match="backup"):
        Authority(tmp_path, clock)


@pytest.mark.parametrize(
    ("address", "told", "joined"),
    [
        ("example.org", "example.org:9400", "example.org:9401"),
        ("example.org:7000", "example.org:7000", "example.org:7001"),
        ("::1", "[::1]:9400", "[::1]:9401"),
        ("[::1]:7000", "[::1]:7000", "[::1]:7001"),
    ],
)
def test_init_says_what_devices_are_told(
    tmp_path: Path, address: str, told: str, joined: str
) -> None:
    record = made(tmp_path / "data", address)
    assert record["address"] == told
    assert record["server"] == joined
    assert record["join"].startswith("fedclient join motley1-")


def made(data: Path, address: str) -> dict[str, object]:
    return make_authority(
        data,
        address=address,
        client_lifetime=60,
        operator_lifetime=60,
        server_lifetime=60,
        uses=1,
        seconds=60,
    )


@pytest.mark.parametrize("address", ["a b", "host:port", "host:70000", ":9400", "user@host"])
def test_init_refuses_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(AddressError, match="expected HOST"):
        made(tmp_path / "data", address)


def test_durations_are_read_as_people_write_them() -> None:
    assert [parse_duration(t, "x") for t in ("90d", "12h", "15m", "1.5s")] == [
        90 * 86400.0,
        12 * 3600.0,
        900.0,
        1.5,
    ]
    for bad in ("", "90", "d", "0s", "-1h", "1w"):
        with pytest.raises(DurationError, match="--lifetime"):
            parse_duration(bad, "--lifetime")
    assert format_duration(48 * 3600) == "2 d"


def test_one_address_that_floods_leaves_room_for_the_others() -> None:
    clock = ManualClock()
    knocks = Knocks(
        clock.monotonic,
        everyone=Rate(burst=10, per_second=1),
        one=Rate(burst=3, per_second=0.5),
        most_addresses=2,
    )
    assert [knocks.allow("flood") for _ in range(20)].count(True) == 3
    assert knocks.allow("honest")
    clock.now += 4
    assert [knocks.allow("flood") for _ in range(20)].count(True) == 2
    for index in range(100):
        knocks.allow(f"many-{index}")
    assert len(knocks._buckets) == 2, "memory is bounded"


def test_peers_are_told_apart_by_their_address() -> None:
    assert peer_host("ipv4:192.0.2.7:41000") == "192.0.2.7"
    assert peer_host("ipv6:%5B2001:db8::1%5D:41000") == "2001:db8::1"
