"""A data directory with a long run of many clients, written straight into the real tables."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from fedserver.rounds.presence import Capabilities, Profile
from fedserver.storage.database import open_database
from fedserver.storage.schema import clients, members, rounds, runs
from motley.algorithms.base import sent_width
from motley.models.units import TensorInfo, UnitTable
from motley.plan import Layout, Plan

LAYERS = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc1": (128, 1152), "fc2": (10, 128)}
TIERS = {"b2": 2, "b4": 4, "b6": 6, "b8": 8}
RUN_ID = "c0ffee00"
RUNFILE = """
[run]
name = "crowd"
algorithm = "fedmpq"
rounds = {rounds}
global_variant = "cnn1"

[workload]
name = "digits"

[clients]
expected = {clients}

[settings]
local_steps = 10

[[tiers]]
name = "b2"
bits = 2

[[tiers]]
name = "b4"
bits = 4

[[tiers]]
name = "b6"
bits = 6

[[tiers]]
name = "b8"
bits = 8
"""


def table() -> UnitTable:
    """Return the unit table of the crowd's model, of `WEIGHTS` weights and no more."""
    return UnitTable(
        tuple(
            TensorInfo(
                name=f"{unit}.weight", shape=shape, dtype="float32", unit=unit, quantized=True
            )
            for unit, shape in LAYERS.items()
        )
    )


WEIGHTS = 153_776


def name_of(client: int) -> str:
    return f"device-{client:03d}"


def tier_of(client: int) -> str:
    return list(TIERS)[client % len(TIERS)]


def accuracy(client: int, number: int) -> float:
    """Return what a client measured after a round: rising, and every client its own."""
    top = 0.75 + 0.05 * (client % len(TIERS))
    return top * (1 - math.exp(-(number + client % 7) / 60)) + 0.01 * math.sin(client + number)


def make_crowd(root: Path, people: int, count: int) -> None:
    """Write a finished run: `count` training rounds of all `people`, each evaluated."""
    model = {
        "workload_version": 1,
        "default_variant": "cnn1",
        "global_variant": "cnn1",
        "tables": {"cnn1": table().to_json()},
    }
    run = {
        "id": RUN_ID,
        "sequence": 1,
        "name": "crowd",
        "runfile": RUNFILE.format(rounds=count, clients=people),
        "status": "finished",
        "round": count,
        "rounds": count,
        "state": "ab" * 32,
        "model": model,
        "submitted": 1.7e9,
        "started": 1.7e9,
        "ended": 1.7e9 + 60 * count,
    }
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = open_database(root, synced=False)
    with database.begin() as tx:
        tx.execute(insert(runs), [run])
        tx.execute(insert(clients), [_client(n) for n in range(people)])
        tx.execute(insert(members), [_member(n) for n in range(people)])
        for number in range(1, count + 1):
            for kind in ("train", "evaluate"):
                row = _round(number, kind)
                tx.execute(insert(rounds), [row])
                # 200,000 in all: past the library, whose types would take a minute.
                made = [_task(n, number, kind, row["id"]) for n in range(people)]
                _insert_plainly(tx, made)
    database.dispose()


def _insert_plainly(tx: Connection, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    places = ", ".join("?" * len(names))
    quoted = ", ".join(f'"{name}"' for name in names)
    tx.exec_driver_sql(
        f"INSERT INTO tasks ({quoted}) VALUES ({places})", [tuple(row.values()) for row in rows]
    )


def _client(n: int) -> dict[str, Any]:
    said = Capabilities(
        protocol=1, wire=1, algorithms={}, workloads={"digits": 1}, encodings=(), software="0.1.0"
    )
    profile = Profile(
        cores=2 + n % 7,
        memory_bytes=(1 + n % 8) << 30,
        architecture=("aarch64", "x86_64")[n % 2],
        accelerator=("", "cuda")[n % 5 == 0],
        download_bytes_per_second=1e6 * (1 + n % 9),
        upload_bytes_per_second=3e5 * (1 + n % 9),
        tier=tier_of(n),
    )
    return {
        "name": name_of(n),
        "session": f"s{n}",
        "profile": {**vars(profile), "labels": {}},
        "capabilities": vars(said),
        "first_seen": 1.7e9,
        "last_seen": 1.7e9 + 3600,
    }


def _member(n: int) -> dict[str, Any]:
    return {
        "run": RUN_ID,
        "client": name_of(n),
        "tier": tier_of(n),
        "variant": "cnn1",
        "threads": 1,
        "profile": {},
    }


def _round(number: int, kind: str) -> dict[str, Any]:
    trains = kind == "train"
    return {
        "id": 2 * number - trains,
        "run": RUN_ID,
        "round": number,
        "kind": kind,
        "status": "closed",
        "goal": 1,
        "minimum": 1,
        "seconds_left": 0.0,
        "state_before": "ab" * 32,
        "state_after": "ab" * 32,
        "opened": 1.7e9 + 60 * number,
        "closed": 1.7e9 + 60 * number + 50,
        "pruned": True,
        "phases": {"open": 0.5, "collect": 20 + number % 9, **({"fold": 1.5} if trains else {})},
        "metrics": {"loss": 2 / number} if trains else {"accuracy": accuracy(0, number)},
    }


def _task(n: int, number: int, kind: str, round_id: int) -> dict[str, Any]:
    trains, width = kind == "train", TIERS[tier_of(n)]
    sent = WEIGHTS * (width + 1) // 8
    metrics = {"loss": 2 / number} if trains else {"accuracy": accuracy(n, number)}
    return {
        "id": f"{RUN_ID}-{number:05d}-{kind}-{name_of(n)}",
        "run": RUN_ID,
        "round_id": round_id,
        "client": name_of(n),
        "kind": kind,
        "status": "counted" if trains else "done",
        "reason": "",
        "spec": f'{{"round":{number},"plan":{_plan(width, trains)}}}',
        "payload": "ab" * 32,
        "update": "cd" * 32 if trains else "",
        "update_bytes": sent if trains else 0,
        "bytes_down": sent,
        "bytes_up": sent if trains else 0,
        "scalars": json.dumps({sent_width(u): b for u, b in _bits(width, trains).items()}),
        "metrics": json.dumps(metrics),
        "seconds": 10.0 + n % 5,
        "restarted": False,
        "ended": 1.7e9 + 60 * number + 40,
    }


def _bits(width: int, trains: bool) -> dict[str, int]:
    return {unit: max(1, width - place) for place, unit in enumerate(LAYERS)} if trains else {}


@functools.cache
def _plan(width: int, trains: bool) -> str:
    layout: Layout = "planes" if trains else ""
    plan = Plan(variant="cnn1", bits=_bits(width, trains), layout=layout)
    return json.dumps(plan.to_json())
