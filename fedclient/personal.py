"""A run's personal states in the device's state directory."""

from __future__ import annotations

from pathlib import Path

from fedclient.disk import Disk
from fedclient.state import file_word
from motley.states import StateFiles


class PersonalFiles(StateFiles):
    """The `PersonalStore` of a device: synced, and safe from what a server may call a version."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        super().__init__(directory, disk or Disk())

    def _path(self, status: str, version: str) -> Path:
        return super()._path(status, file_word(version, "version"))
