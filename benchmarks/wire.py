"""What a round costs: real daemons on loopback, against Flower and against the sum of its parts.

    python benchmarks/wire.py [--clients 2 8] [--mb 1 100] [--bits 32 4] [--tls] [--parts]
        [--against flower --flower-env FOLDER] [--chart PNG]

Clients send back what they got, touched in one float in every MiB; below 32 bits they decode it,
touch it, and quantize what changed. A round's seconds are those from one round's end to the next
one's, with everything that lies between; the first round stands apart. `--parts` times what a round
cannot do without (`wire_parts.py`), `--against flower` the same work done by Flower
(`wire_flower.py`, 32 bits and no TLS), in the same run. Bytes are those of the TCP connections of
the server's port; for Flower, whose parts speak to each other, those of the loopback interface.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from report import Ratio, report, write
from wire_flower import FlowerRounds, installed, measure_flower
from wire_parts import measure_parts
from wire_phases import draw
from wire_processes import Daemons, Rounds

GIB = 2**30
FASTER = {(2, 1, 32): 60, (8, 100, 32): 8, (8, 100, 4): 20, (2, 400, 32): 5, (50, 1, 32): 50}
"""Times faster than Flower's full precision, by clients, megabytes and bits."""
OVER_PARTS = {(8, 100, 32): 1.5, (2, 400, 32): 1.5}


@dataclass(frozen=True)
class Case:
    """One federation."""

    clients: int
    megabytes: float
    bits: int
    tls: bool

    @property
    def label(self) -> str:
        tls = ", mutual TLS" if self.tls else ""
        return f"{self.clients} x {self.megabytes:g} MB, {self.bits} bits{tls}"

    @property
    def key(self) -> tuple[int, float, int]:
        return self.clients, self.megabytes, self.bits

    @property
    def payload(self) -> float:
        """Packed bytes of one model: 20 tensors with their scales, and the manifest."""
        values = self.megabytes * 1e6 / 4
        return values * self.bits / 8 + 20 * (8 if self.bits < 32 else 0)


def measure(case: Case, rounds: int, folder: Path) -> Rounds:
    """Start daemons, run rounds, end them."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        daemons = Daemons(Path(place), tls=case.tls, environment={})
        try:
            daemons.open(case.clients)
            return daemons.measure(case.clients, case.megabytes, case.bits, rounds)
        finally:
            daemons.close()


def spread(values: list[float]) -> str:
    return f"{median(values):.3g} s [{min(values):.3g} - {max(values):.3g}] of {len(values)}"


def rows_of(case: Case, found: Rounds) -> Iterator[Ratio]:
    """Say what a federation cost."""
    before, after = found.before, found.after
    done = after.rounds - before.rounds
    gib = case.clients * case.megabytes * 1e6 * done / GIB
    own = after.server - before.server + after.clients - before.clients
    others = (after.machine - before.machine - own) / (after.at - before.at)
    small = 0.1 if case.key == (2, 1, 32) and not case.tls else None
    yield Ratio(
        f"{case.label}: s a round",
        median(found.seconds),
        small,
        detail=f"{spread(list(found.seconds))}; first {found.first:.3g} s; "
        f"other programs used {others:.2f} cores",
    )
    yield Ratio(
        f"{case.label}: bytes over packed bits",
        (after.socket - before.socket) / done / (2 * case.clients * case.payload),
        1.02 if case.megabytes >= 25 else None,
        detail=f"{(after.socket - before.socket) / done / 1e6:.2f} MB a round, both directions",
    )
    yield Ratio(
        f"{case.label}: server's CPU, s for each GiB echoed",
        (after.server - before.server) / gib,
        3.0 if case.megabytes >= 25 and case.bits == 32 else None,
        detail=f"clients' {(after.clients - before.clients) / gib:.2f}",
    )
    peaks = ", ".join(f"{kind} {value / 1e6:.0f}" for kind, value in found.peaks.items())
    model = case.megabytes * 1e6
    yield Ratio(
        f"{case.label}: server's peak over a model",
        found.peaks["server"] / model,
        4.0 if case.megabytes >= 100 else None,
        detail=f"peaks, MB: {peaks}; PSS of all {found.processes}: {found.shares / 1e9:.2f} GB",
    )
    yield Ratio(
        f"{case.label}: part of a round that is transfers",
        (found.phases["download"] + found.phases["upload"]) / sum(found.phases.values()),
        detail=", ".join(f"{name} {seconds:.3f}" for name, seconds in found.phases.items()),
    )
    if case.clients == 50:
        yield Ratio(f"{case.label}: PSS of all, GB", found.shares / 1e9, 4.0)


def against_flower(case: Case, found: Rounds, flower: FlowerRounds) -> Iterator[Ratio]:
    mine, theirs = median(found.seconds), median(flower.seconds)
    peaks = ", ".join(f"{kind} {value / 1e6:.0f}" for kind, value in flower.peaks.items())
    missing = f"; {flower.missing} rounds lacked a reply" if flower.missing else ""
    yield Ratio(
        f"{case.label}: times faster than Flower",
        theirs / mine,
        None if case.tls else FASTER.get(case.key),
        at_least=True,
        detail=f"Flower {spread(flower.seconds)}, first {flower.first:.3g} s{missing}",
    )
    gib = case.clients * case.megabytes * 1e6 / GIB
    yield Ratio(
        f"{case.label}: Flower's superlink and apps, CPU-s for each GiB echoed",
        flower.server_each / gib,
        detail=f"{flower.processes} processes with {flower.share / 1e9:.2f} GB PSS; peaks, MB: "
        f"{peaks}; loopback {flower.loopback_each / 1e6:.0f} MB a round, others' included",
    )


def cases(options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    for clients in options.clients:
        for megabytes in options.mb:
            # What fits neither memory nor time: gigabytes to be echoed in each round.
            if clients * megabytes <= options.most_mb:
                yield clients, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 8, 50])
    parser.add_argument("--mb", type=float, nargs="+", default=[1, 25, 100, 400])
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 8, 4, 2])
    parser.add_argument("--most-mb", type=float, default=1250, help="of all clients' models")
    parser.add_argument("--rounds", type=int, default=6, help="of Motley; small models: 4 times")
    parser.add_argument("--tls", action="store_true", help="with mutual TLS, too")
    parser.add_argument("--parts", action="store_true", help="the sum of parts, too")
    parser.add_argument("--against", choices=["flower"])
    parser.add_argument("--flower-env", type=Path, default=Path("flower-env"))
    parser.add_argument("--flower-rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--chart", type=Path, help="PNG of where a round's time goes")
    parser.add_argument("--name", default="wire", help="of the result in benchmarks/out")
    options = parser.parse_args()
    programs = installed(options.flower_env.resolve()) if options.against else None
    rows: list[Ratio] = []
    seen: dict[str, Mapping[str, float]] = {}
    compared = "real daemons on loopback, an identity workload; medians, the first round apart"
    for clients, megabytes in cases(options):
        flower = None
        if programs:
            print(f"flower: {clients} x {megabytes:g} MB", file=sys.stderr)
            try:
                flower = measure_flower(programs, clients, megabytes, options.flower_rounds)
            except MemoryError as error:
                print(f"Flower was ended: {error}", file=sys.stderr)
        for bits in options.bits:
            for tls in (False, True) if options.tls else (False,):
                case = Case(clients, megabytes, bits, tls)
                print(case.label, file=sys.stderr)
                found = measure(case, options.rounds * (4 if megabytes <= 1 else 1), options.folder)
                rows += rows_of(case, found)
                if flower:
                    rows += against_flower(case, found, flower)
                if options.parts and not tls:
                    rows += over_parts(case, found, options.folder)
                write(options.name, compared, rows)
                seen[case.label] = found.phases
    report(options.name, compared, rows)
    if options.chart:
        draw(seen, options.chart)


def over_parts(case: Case, found: Rounds, folder: Path) -> Iterator[Ratio]:
    parts = measure_parts(case.clients, int(case.payload), folder)
    detail = " + ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items())
    yield Ratio(
        f"{case.label}: over the sum of parts",
        median(found.seconds) / sum(parts.values()),
        OVER_PARTS.get(case.key),
        detail=f"{detail} = {sum(parts.values()):.3g} s",
    )


if __name__ == "__main__":
    main()
