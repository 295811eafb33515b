"""Updates in planes that do not keep to their plan: refused over the real service, by name."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from bench import runfile
from test_service import Rig, refused, running

from fedserver.service.limits import Limits
from motley.models.units import variant_table
from motley.wire import EncodedTensor, PayloadReader, encode_dense, encode_planes, write_payload
from motley.wire.stubs import common_pb2, federation_pb2
from motley.workloads.digits import Digits

TABLE = variant_table(Digits().variants()["mlp"], ends=True)
LAYER, BIAS = "fc2.weight", "fc2.bias"
WIDTH = 4
SECTIONS = f'tail = "fp32"\n[[tiers]]\nname = "b4"\nbits = {WIDTH}\n'
RUN = (
    runfile(rounds=1, clients=13, sections=SECTIONS)
    .replace('"fedavg"', '"fedmpq"')
    .replace('algorithm = "fedmpq"', 'algorithm = "fedmpq"\nglobal_variant = "mlp"')
)
Update = dict[str, EncodedTensor]


STEP = 0.0123456789
"""Stands for the step that a case puts into the finished bytes: no encoder would write it."""


def in_planes(
    change: Callable[[EncodedTensor], EncodedTensor],
) -> Callable[[Update], Update]:
    return lambda update: {**update, LAYER: change(update[LAYER])}


def planes(bits: int, present: int | None = None) -> Callable[[Update], Update]:
    def change(tensor: EncodedTensor) -> EncodedTensor:
        codes = np.zeros(tensor.shape, np.int16)
        codes.flat[::3] = -1
        return encode_planes(codes, STEP, bits, present)

    return in_planes(change)


def instead(name: str, dtype: str | None) -> Callable[[Update], Update]:
    def change(update: Update) -> Update:
        values = update[name].decode().astype("float32")
        return {**update, name: encode_dense(values, dtype)}

    return change


@dataclass(frozen=True)
class Case:
    change: Callable[[Update], Update]
    message: str
    """What the refusal says; "": the update is accepted."""
    step: float | None = None
    """Of the layer that was changed, put into the finished payload."""


ASKED = "the plan asks for a sign plane and 1 to 4 magnitude planes, none left out below the top"
CASES = {
    "good": Case(lambda update: update, ""),
    "top planes left out": Case(planes(2), ""),
    "a layer of zeros": Case(planes(4), "", 0.0),
    "a plane too many": Case(planes(5), f"{LAYER} in a sign plane and 5 magnitude planes; {ASKED}"),
    "a width over the plan": Case(planes(8, 0b1111), f"but for weight 16, 32, 64, 128; {ASKED}"),
    "a hole": Case(planes(4, 0b1011), f"4 magnitude planes but for weight 4; {ASKED}"),
    "no magnitude": Case(planes(4, 0), "but for weight 1, 2, 4, 8; "),
    "an infinite scale": Case(planes(4), "expected finite numbers", np.inf),
    "a scale of NaN": Case(planes(4), "expected finite numbers", np.nan),
    "a negative scale": Case(planes(4), "step >= 0", -0.5),
    "a scale too large": Case(planes(4), "would not be finite", 3e38),
    "a tail in halves": Case(instead(BIAS, "float16"), f"{BIAS} in float16 values; "),
    "dense weights": Case(instead(LAYER, None), f"{LAYER} in float32 values; {ASKED}"),
}


def payload(update: Update, step: float | None) -> bytes:
    stream = io.BytesIO()
    write_payload(stream, list(update.items()), TABLE.tensor_table)
    data = stream.getvalue()
    if step is None:
        return data
    known, wanted = (np.float32(value).tobytes() for value in (STEP, step))
    assert data.count(known) == 1
    return data.replace(known, wanted)


async def send(rig: Rig, name: str, case: Case, task: common_pb2.Task) -> None:
    with PayloadReader(await rig.download(task, name), TABLE.tensor_table) as reader:
        update = case.change({n: reader[n] for n in reader.names})
        data = payload(update, case.step)
    if not case.message:
        receipt = await rig.upload(task, data, name)
        assert receipt.status == federation_pb2.UPDATE_STATUS_ACCEPTED
        return
    with refused(grpc.StatusCode.INVALID_ARGUMENT, case.message):
        await rig.upload(task, data, name)


def test_one_refused_update_after_another_and_the_round_counts_the_others(tmp_path: Path) -> None:
    names = {f"c{number:02}": case for number, case in enumerate(CASES.values())}
    good = sorted(name for name, case in names.items() if not case.message)

    async def main() -> None:
        async with running(tmp_path / "data") as rig:
            run = await rig.operator("submit", RUN, "test")
            tasks = await asyncio.gather(*(rig.task(name) for name in names))
            for name, task in zip(names, tasks, strict=True):
                assert set(task.plan.bits.values()) == {WIDTH}
                await send(rig, name, names[name], task)
            while (record := await rig.operator("show", str(run)))["round"] < 1:
                await asyncio.sleep(0.02)
            entry = record["history"][0]
            found = {name: client["status"] for name, client in entry["clients"].items()}
            assert [name for name in found if found[name] == "counted"] == good
            for name, case in names.items():
                assert case.message in entry["clients"][name]["reason"]
                if case.message:
                    assert name in entry["clients"][name]["reason"]
            # A refusal ends one task. The client stays in the run and gets its finish task.
            assert all(not client["reason"] for client in record["clients"])
            assert not any(c["set_aside"] for c in await rig.operator("clients"))
            finish = await rig.task("c05")
            assert finish.kind == common_pb2.TASK_KIND_FINISH
            # What was sent with two planes, and as zeros, is on record as it came.
            sent = {name: entry["clients"][name]["sent_bits"] for name in good}
            assert [sent[name]["fc2"] for name in good] == [4, 2, 4]

    asyncio.run(main())


def test_a_client_that_is_refused_again_and_again_is_put_aside(tmp_path: Path) -> None:
    """Its rounds do not wait for it meanwhile; `strikes` refusals within a while are too many."""
    alone = RUN.replace("expected = 13", "expected = 2").replace("rounds = 1", "rounds = 3")

    async def main() -> None:
        async with running(tmp_path / "data", limits=Limits(strikes=2)) as rig:
            run = await rig.operator("submit", alone, "test")
            for number in (1, 2, 3):
                here = ("c0", "c1") if number < 3 else ("c0",)
                tasks = await asyncio.gather(*(rig.task(name) for name in here))
                for name, task in reversed(list(zip(here, tasks, strict=True))):
                    await send(rig, name, CASES["good" if name == "c0" else "a hole"], task)
                while (record := await rig.operator("show", str(run)))["round"] < number:
                    await asyncio.sleep(0.02)
            assert list(record["history"][2]["clients"]) == ["c0"]
            aside = {c["name"]: c["set_aside"] for c in await rig.operator("clients")}
            assert not aside["c0"]
            assert "but for weight 4" in aside["c1"]
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "is put aside"):
                await rig.check_in("c1")

    asyncio.run(main())
