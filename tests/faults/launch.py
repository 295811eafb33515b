"""Starts a real fedserver, fedclient or training process with fault points put in from outside.

python launch.py fedserver.cli serve ...
python launch.py fedclient.cli start ...
python launch.py fedclient.worker            (the daemon starts it by itself)

The environment names the plan (`FAULTS_PLAN`) and the log (`FAULTS_LOG`); see `fault_shim.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import fault_shim

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
    if role == "client":
        _small_frames()
        _own_worker()
    if role == "server":
        importlib.import_module("fedserver.service.downloads").SMALLEST_FRAME = LEAST_FRAME
        _prepare_once(Path(os.environ["FAULTS_LOG"]).parent / "prepared")
        if os.environ.get("FAULTS_OPEN_DOOR"):
            _open_door()
    fault_shim.install(role, Path(os.environ["FAULTS_PLAN"]), Path(os.environ["FAULTS_LOG"]))
    module.main()


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


def _prepare_once(folder: Path) -> None:
    """Keep what the child made that prepares a run: each would import torch for seconds."""
    jobs = importlib.import_module("fedserver.rounds.jobs")
    run_job = jobs.run_job

    def remembered(job: Any) -> Any:
        if job["kind"] != "prepare":
            return run_job(job)
        facts = json.dumps({k: v for k, v in job.items() if k != "out"}, sort_keys=True)
        kept = folder / hashlib.sha256(facts.encode()).hexdigest()
        if not kept.with_suffix(".json").exists():
            result = run_job(job)
            folder.mkdir(exist_ok=True)
            shutil.copyfile(job["out"], kept)
            kept.with_suffix(".new").write_text(json.dumps(result))
            kept.with_suffix(".new").replace(kept.with_suffix(".json"))
        shutil.copyfile(kept, job["out"])
        return json.loads(kept.with_suffix(".json").read_text())

    jobs.run_job = remembered


def _own_worker() -> None:
    """Have the daemon start its training process through this file too."""
    runner = importlib.import_module("fedclient.runner")
    defaults = runner.WorkerRunner.__init__.__kwdefaults__
    assert defaults["command"] == runner.WORKER_COMMAND, "the daemon starts its worker elsewise now"
    forge = os.environ.get("FAULTS_FORGE")
    if not forge:
        defaults["command"] = (sys.executable, __file__, "fedclient.worker")
        return
    stub = str(Path(__file__).with_name("forge_stub.py"))
    forked = (sys.executable, "-I", "-S", stub, forge)
    defaults["command"] = (*forked, "fedclient.worker")
    importlib.import_module("fedclient.device").PROFILE_COMMAND = (*forked, "fedclient.profile")


if __name__ == "__main__":
    main()
