"""Starts a real fedserver, fedclient or training process with fault points put in from outside.

python launch.py fedserver.cli serve ...
python launch.py fedclient.cli start ...
python launch.py fedclient.worker            (the daemon starts it by itself)

The environment names the plan (`FAULTS_PLAN`) and the log (`FAULTS_LOG`); see `fault_shim.py`.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import fault_shim

FRAME_BYTES = 4096
"""Small frames, so that small models travel in several."""

_ROLES = {"fedserver.cli": "server", "fedclient.cli": "client", "fedclient.worker": "worker"}
_IMPORTS = {
    "server": ("fedserver.serve",),
    "client": ("fedclient.daemon",),
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
    _small_frames()
    if role == "client":
        _own_worker()
    fault_shim.install(role, Path(os.environ["FAULTS_PLAN"]), Path(os.environ["FAULTS_LOG"]))
    module.main()


def _small_frames() -> None:
    frames = importlib.import_module("motley.wire.frames")
    assert frames.iter_frames.__defaults__ == (0, frames.FRAME_SIZE), "frames are cut elsewhere now"
    frames.iter_frames.__defaults__ = (0, FRAME_BYTES)


def _own_worker() -> None:
    """Have the daemon start its training process through this file too."""
    runner = importlib.import_module("fedclient.runner")
    defaults = runner.WorkerRunner.__init__.__kwdefaults__
    assert defaults["command"] == runner.WORKER_COMMAND, "the daemon starts its worker elsewise now"
    defaults["command"] = (sys.executable, __file__, "fedclient.worker")


if __name__ == "__main__":
    main()
