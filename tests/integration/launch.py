"""Runs a real fedserver, fedclient or training process: forked, with fault points, or both.

python launch.py fedserver.cli serve ...
python launch.py fedclient.cli start ...
python launch.py fedclient.worker            (the daemon starts it by itself)

`FORGE` in the environment names the socket of the process that forks its children (forge.py).
`FAULTS_PLAN` and `FAULTS_LOG` put fault points in from outside (tests/faults/fault_shim.py).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

SMALLER = 256
"""Frames are so much smaller, so that small models travel in several: 4 KiB, and after a cut
2 KiB instead of 128."""
LEAST_FRAME = 2048
GROW_BYTES = 32 * 1024

_ROLES = {"fedserver.cli": "server", "fedclient.cli": "client", "fedclient.worker": "worker"}
_IMPORTS = {
    "server": ("fedserver.serve", "fedserver.secure"),
    "client": ("fedclient.daemon", "fedclient.channel", "fedclient.identity.renewal"),
    "worker": ("motley.execution.executor",),
}


def main() -> None:
    """Wrap and run."""
    module_name = sys.argv[1]
    role = _ROLES[module_name]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    for name in _IMPORTS[role]:
        importlib.import_module(name)
    if role != "worker":
        _own_children(role, os.environ.get("FORGE", ""))
    if "FAULTS_PLAN" in os.environ:
        _faults(role)
    module.main()


def _faults(role: str) -> None:
    if role == "client":
        _small_frames()
    if role == "server":
        importlib.import_module("fedserver.service.downloads").SMALLEST_FRAME = LEAST_FRAME
        if os.environ.get("FAULTS_OPEN_DOOR"):
            _open_door()
    shim = importlib.import_module("fault_shim")
    shim.install(role, Path(os.environ["FAULTS_PLAN"]), Path(os.environ["FAULTS_LOG"]))


def _small_frames() -> None:
    speed = importlib.import_module("fedclient.transfer.speed")
    frame = speed.LinkRecord.frame

    def smaller(link: Any, direction: str) -> int:
        return max(LEAST_FRAME, int(frame(link, direction)) // SMALLER)

    def is_good(link: Any, direction: str) -> bool:
        return bool(frame(link, direction) == speed.FULL_FRAME)

    speed.LinkRecord.frame, speed.LinkRecord.is_good = smaller, is_good
    speed.GROW_BYTES = GROW_BYTES


def _open_door() -> None:
    """Let strangers knock as often as they like, so that what they say is looked at."""
    rates = importlib.import_module("fedserver.identity.rates")
    wide = rates.Rate(burst=1e9, per_second=1e9)
    rates.Knocks.__init__.__kwdefaults__.update(everyone=wide, one=wide)


def _own_children(role: str, forge: str) -> None:
    """Have a program start its children by forking too; without a forge, the daemon's training
    process through this file."""
    if role == "server":
        if forge:
            module = importlib.import_module("fedserver.model_process")
            module.COMMAND = (*_forked(forge), "fedserver.model_process")
        return
    runner = importlib.import_module("fedclient.runner")
    defaults = runner.WorkerRunner.__init__.__kwdefaults__
    assert defaults["command"] == runner.WORKER_COMMAND, "the daemon starts its worker elsewise now"
    if not forge:
        defaults["command"] = (sys.executable, __file__, "fedclient.worker")
        return
    defaults["command"] = (*_forked(forge), "fedclient.worker")
    command = (*_forked(forge), "fedclient.profile")
    importlib.import_module("fedclient.device").PROFILE_COMMAND = command


def _forked(forge: str) -> tuple[str, ...]:
    stub = str(Path(__file__).with_name("forge_stub.py"))
    return (sys.executable, "-I", "-S", stub, forge)


if __name__ == "__main__":
    main()
