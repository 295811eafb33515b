"""The main job on one machine: a server and six devices that are all different.

`make demo` runs this. Two phones (CNN1, 1 bit; one uploads at 8 bits), two Jetsons (CNN1,
2 bits) and two PCs (CNN2, full precision), each a process of its own, see four of the ten
digits each and have 40 samples to train on. They train alone first, then together by QuPeD,
with as many local steps. Results go to demo-out/, the finished models with them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedserver.client import Operator
from fedserver.display import size

HERE = Path(__file__).resolve().parent
CLIENTS = {
    # Names sort as tiers do. The second phone sits on the slow link and uploads at 8 bits.
    "jetson-1": "jetson",
    "jetson-2": "jetson",
    "pc-1": "pc",
    "pc-2": "pc",
    "phone-1": "phone",
    "phone-2": "slow-phone",
}
BITS = {"phone": 1, "slow-phone": 1, "jetson": 2, "pc": 32}


@contextmanager
def process(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m ARGUMENTS` with its output in a file; ask it to leave at the end."""
    with log.open("wb") as stream:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=stream, stderr=stream, cwd=HERE
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def federation(folder: Path, logs: Path, seed: int) -> Iterator[Operator]:
    """Start the server and the six clients; give the operator's connection."""
    with ExitStack() as stack:
        ready, data = folder / "ready", folder / "server"
        server = stack.enter_context(
            process(
                logs / "server.log",
                *("fedserver.cli", "serve", "--insecure", "--listen", "127.0.0.1:0"),
                *("--data", str(data), "--ready-file", str(ready)),
            )
        )
        while not ready.exists() or not ready.read_text():
            if server.poll() is not None:
                raise SystemExit((logs / "server.log").read_text())
            time.sleep(0.02)
        for index, (name, tier) in enumerate(CLIENTS.items()):
            spec = f"digits?clients=6&client={index}&classes=4&train=40&seed={seed}"
            stack.enter_context(
                process(
                    logs / f"{name}.log",
                    *("fedclient.cli", "start", "--insecure", "--server", ready.read_text()),
                    *("--name", name, "--data", spec, "--tier", tier, "--threads", "1"),
                    *("--state", str(folder / name)),
                )
            )
        yield stack.enter_context(Operator(data))


def train(operator: Operator, runfile: Path, seed: int, progress: Progress) -> dict[str, Any]:
    """Submit a run file under this seed, show it while it runs, return its record."""
    text = runfile.read_text().replace("\nseed = 0\n", f"\nseed = {seed}\n")
    run_id = operator.submit(text, runfile.name)
    bar = progress.add_task(runfile.stem, total=None, figures="waiting for six clients")
    traffic = accuracy = ""
    for record in operator.watch(run_id):
        if record["status"] in ("failed", "paused", "stopped"):
            raise SystemExit(f"run {runfile.stem} is {record['status']}: {record['reason']}")
        for entry in record["history"]:
            if "accuracy" in entry["metrics"]:
                accuracy = f"mean accuracy {entry['metrics']['accuracy']:.1%}"
        traffic = f"{size(record['bytes_down'] + record['bytes_up'])} moved"
        figures = f"{traffic}  {accuracy}" if record["round"] else "waiting for six clients"
        progress.update(bar, total=record["rounds"], completed=record["round"], figures=figures)
    return operator.show(run_id)


def summarise(
    alone: dict[str, Any], together: dict[str, Any], home: dict[str, int]
) -> list[dict[str, Any]]:
    """Return one line for each client, in order of tier."""
    before = {client["name"]: client for client in alone["clients"]}
    lines = []
    for client in together["clients"]:
        finish = client["metrics"]["finish"]
        lines.append(
            {
                "name": client["name"],
                "tier": client["tier"],
                "model": client["variant"],
                "bits": BITS[client["tier"]],
                "accuracy_alone": before[client["name"]]["metrics"]["finish"]["accuracy"],
                "accuracy": finish["accuracy"],
                "bytes_up": client["bytes_up"],
                "bytes_down": client["bytes_down"],
                "packed_bytes": int(finish["packed_bytes"]),
                "home_bytes": home[client["name"]],
                "dense_bytes": int(finish["dense_bytes"]),
            }
        )
    return sorted(lines, key=lambda line: (line["bits"], line["name"]))


def take_home(folder: Path, out: Path, run: str) -> dict[str, int]:
    """Export every device's model as one packed file; return the bytes of each."""
    from fedclient.models import find_model
    from fedclient.take_home import export_model
    from motley.export.convert import Format

    (out / "models").mkdir(exist_ok=True)
    sizes = {}
    for name in CLIENTS:
        stored, target = find_model(run, name, folder / name), out / "models" / f"{name}.motley"
        done = export_model(stored, target, Format.PACKED, {}, half_ends=True, data="")
        sizes[name] = done.size
    return sizes


def print_table(console: Console, lines: list[dict[str, Any]]) -> None:
    """Print the result as a table."""
    table = Table(title="What each device ends with", title_justify="left")
    for column in ("device", "tier", "model", "bits"):
        table.add_column(column)
    for column in ("fp32 size", "packed", "home", "alone", "QuPeD", "gain", "up", "down"):
        table.add_column(column, justify="right")
    for line in lines:
        gain = 100 * (line["accuracy"] - line["accuracy_alone"])
        table.add_row(
            line["name"],
            line["tier"],
            line["model"],
            str(line["bits"]),
            size(line["dense_bytes"]),
            size(line["packed_bytes"]),
            size(line["home_bytes"]),
            f"{line['accuracy_alone']:.1%}",
            f"{line['accuracy']:.1%}",
            f"{gain:+.1f}",
            size(line["bytes_up"]),
            size(line["bytes_down"]),
        )
    console.print(table)


def curve(record: dict[str, Any], client: str) -> tuple[list[int], list[float]]:
    """Return (local steps, accuracy in percent) of one client's evaluations."""
    steps = record["local_steps"]
    points = [
        (entry["round"] * steps, 100 * entry["clients"][client]["metrics"]["accuracy"])
        for entry in record["history"]
        if "accuracy" in entry["clients"].get(client, {}).get("metrics", {})
        and entry["kind"] == "evaluate"
    ]
    return [x for x, _ in points], [y for _, y in points]


def draw(alone: dict[str, Any], together: dict[str, Any], target: Path) -> None:
    """Draw the accuracy curves, one panel a device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True)
    for panel, client in zip(panels.flat, sorted(CLIENTS), strict=True):
        panel.plot(*curve(alone, client), "--", color="0.45", label="alone")
        panel.plot(*curve(together, client), color="tab:blue", label="QuPeD")
        bits = BITS[CLIENTS[client]]
        panel.set_title(f"{client}, {'fp32' if bits == 32 else f'{bits} bit'}", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.supxlabel("local steps")
    figure.supylabel("test accuracy of the packed model, %")
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    options = parser.parse_args()
    started = time.monotonic()
    out = options.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 118)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    console.print("One server and six clients start on this machine; logs are in demo-out/logs.")
    columns = ("{task.description:14}", "{task.completed:>4.0f}/{task.total} rounds")
    with (
        tempfile.TemporaryDirectory(prefix="motley-demo-") as folder,
        federation(Path(folder), out / "logs", options.seed) as operator,
        Progress(
            TextColumn(columns[0]),
            BarColumn(28),
            TextColumn(columns[1]),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        ) as progress,
    ):
        alone = train(operator, HERE / "digits-alone.toml", options.seed, progress)
        together = train(operator, HERE / "digits-quped.toml", options.seed, progress)
        home = take_home(Path(folder), out, together["id"])
    lines = summarise(alone, together, home)
    print_table(console, lines)
    gains = [100 * (line["accuracy"] - line["accuracy_alone"]) for line in lines]
    seconds = time.monotonic() - started
    console.print(f"mean gain {sum(gains) / len(gains):+.2f} points, {seconds:.0f} s in all")
    draw(alone, together, out / "accuracy.png")
    summary = {"seed": options.seed, "seconds": seconds, "clients": lines}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"curves: {out / 'accuracy.png'}; figures: {out / 'summary.json'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is left running")
