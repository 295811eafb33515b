"""The short-lived child that needs torch: initial models and held-out evaluation.

The server itself never imports torch, so that it stays small and starts at once. A job is one
JSON document on stdin, its result one on stdout; `run_job` is the parent's side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structlog.stdlib import get_logger

from fedserver.errors import PreparationError
from fedserver.storage.trouble import disk_trouble
from motley.errors import MotleyError, PayloadError, did_you_mean
from motley.plugins import create
from motley.seeding import derive
from motley.workload import Split, Workload

log = get_logger()

LONGEST_SECONDS = 3600.0
DISK_STATUS = 75
"""Exit status of a child that the disk refused something; its last line is a JSON list of errno and
file name."""
COMMAND = (sys.executable, "-m", "fedserver.model_process")
_CHILDREN: set[subprocess.Popen[str]] = set()


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job in a fresh child.

    Raises:
        PreparationError: it failed, in the child's own words.
        OSError: the disk refused it something, as it would have refused this process.
    """
    child = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    _CHILDREN.add(child)
    try:
        output, errors = child.communicate(json.dumps(job), timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        raise PreparationError(f"{job['kind']} took over {LONGEST_SECONDS:.0f} s") from None
    finally:
        child.kill()
        _CHILDREN.discard(child)
    if child.returncode != 0:
        lines = errors.strip().splitlines() or [f"exit status {child.returncode}"]
        if child.returncode == DISK_STATUS:
            number, name = json.loads(lines[-1])
            raise OSError(number, os.strerror(number), name)
        if lines[:-1]:  # what a workload printed, and where it failed
            log.error("job_output", job=job["kind"], exception="\n".join(lines))
        raise PreparationError(lines[-1])
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def end_children() -> None:
    """Kill the children that run; their jobs are done again at the next start."""
    for child in list(_CHILDREN):
        child.kill()


def prepare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Make unit tables of all variants and the initial global state.

    A private run's noise is planned, and a model that no guarantee can be given for is refused.
    The initial state is drawn by the same rule as the clients' personal models
    (`fresh_tensors` under derive(seed, "init", variant)), or read from `init`, a payload or
    safetensors file.
    """
    from motley.models.pretrained import read_pretrained
    from motley.models.units import fresh_tensors, variant_table
    from motley.privacy.calibration import noise_multiplier
    from motley.privacy.guarantee import Guarantee
    from motley.wire import PayloadReader, encode_dense, is_payload, write_payload

    workload = create(job["workload"], job["mappings"], job["arguments"])
    variants = workload.variants()
    chosen = job["global_variant"] or next(iter(variants))
    for name in [chosen, *job["variants"]]:
        if name not in variants:
            known = ", ".join(variants) + did_you_mean(name, variants)
            raise PreparationError(
                f"workload {job['workload']!r} has no model variant {name!r}; it has {known}"
            )
    if job["private"]:
        from motley.privacy.checks import check_module

        check_module(variants[chosen].build())
    tables = {
        name: variant_table(v, ends=job["quantizes_ends"])
        for name, v in variants.items()
        if name in {chosen, *job["variants"]} or name == next(iter(variants))
    }
    table = tables[chosen]
    if job["init"] and not is_payload(Path(job["init"])):
        tensors = read_pretrained(Path(job["init"]), variants[chosen])
    elif job["init"]:
        try:
            with PayloadReader(Path(job["init"]), table.tensor_table) as reader:
                tensors = {row.name: reader[row.name].decode() for row in table.rows}
        except PayloadError as error:
            raise PreparationError(
                f"run.init: {job['init']} does not fit model variant {chosen!r} ({error}); "
                f"expected its global model as `fedserver fetch` writes it, or as "
                f"`fedserver export --format safetensors` does"
            ) from None
    else:
        tensors = fresh_tensors(variants[chosen], derive(job["seed"], "init", chosen))
    encoded = [(row.name, encode_dense(tensors[row.name])) for row in table.rows]
    info = write_payload(Path(job["out"]), encoded, table.tensor_table)
    return {
        "workload_version": type(workload).version,
        "default_variant": next(iter(variants)),
        "global_variant": chosen,
        "tables": {name: table.to_json() for name, table in tables.items()},
        "sha256": info.sha256.hex(),
        "size": info.size,
        "noise": {tier: noise_multiplier(Guarantee(**g)) for tier, g in job["noise"].items()},
    }


def held_out(job: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate a global state on the server's own held-out set."""
    from motley.workload import DataSpec

    workload = create(job["workload"], job["mappings"], job["arguments"])
    return score(job, workload, workload.held_out(DataSpec.parse(job["data"])))


def score(
    job: Mapping[str, Any], workload: Workload, split: Split, device: str = "cpu"
) -> dict[str, Any]:
    """Evaluate the global state of a held-out job on samples that are read already."""
    from motley.models.units import load_tensors, variant_table
    from motley.training.evaluation import evaluate
    from motley.wire import PayloadReader

    variant = workload.variants()[job["global_variant"]]
    module = variant.build()
    table = variant_table(variant)
    with PayloadReader(Path(job["state"]), table.tensor_table) as reader:
        load_tensors(module, {name: reader[name].decode() for name in reader.names})
    return evaluate(module.to(device), workload, split, device)


def main() -> int:
    """Do the job on stdin; errors go to stderr, their last line being the message."""
    job = json.load(sys.stdin)
    # Whatever a workload prints must not mix with the result.
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        result = {"prepare": prepare, "held_out": held_out}[job["kind"]](job)
    except MotleyError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 1
    except OSError as error:
        if not disk_trouble(error):
            raise
        print(json.dumps([error.errno, error.filename and str(error.filename)]), file=sys.stderr)
        return DISK_STATUS
    print(json.dumps(result), file=answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
