"""The device profile for `fedclient profile`: measured anew, kept nowhere."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from fedclient.device import Device
from fedclient.options import ClientOptions, clients_directory
from fedclient.transfer.speed import LinkSpeed
from motley.wire.stubs import common_pb2

_UNKNOWN = ("download_bytes_per_second", "upload_bytes_per_second", "tier", "labels")


async def measured_profile(
    mappings: Mapping[str, str], threads: int, device: str
) -> dict[str, object]:
    """Return the fields of the profile that are this machine's own, and its workloads' versions."""
    options = ClientOptions(
        server="", name="", data="", state=clients_directory(), workloads=mappings,
        threads=threads, device=device,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        measured = Device(options, Path(folder) / "profile.json")
        await measured.load()
        profile = measured.profile(LinkSpeed())
    shown = _plain(profile)
    return {**shown, "workloads": dict(measured.measurement.workloads)}


def _plain(profile: common_pb2.DeviceProfile) -> dict[str, object]:
    values = MessageToDict(profile, preserving_proto_field_name=True)
    fields = (field.name for field in profile.DESCRIPTOR.fields)
    shown = {name: values.get(name, "") for name in fields if name not in _UNKNOWN}
    sizes = {name: int(shown[name] or 0) for name in ("memory_bytes", "storage_free_bytes")}
    return {**shown, **sizes}
