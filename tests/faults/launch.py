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
    if role == "server":
        _prepare_once(Path(os.environ["FAULTS_LOG"]).parent / "prepared")
    fault_shim.install(role, Path(os.environ["FAULTS_PLAN"]), Path(os.environ["FAULTS_LOG"]))
    module.main()


def _small_frames() -> None:
    frames = importlib.import_module("motley.wire.frames")
    assert frames.iter_frames.__defaults__ == (0, frames.FRAME_SIZE), "frames are cut elsewhere now"
    frames.iter_frames.__defaults__ = (0, FRAME_BYTES)


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
