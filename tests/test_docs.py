"""The pages say what the code says: fields, settings, records, examples, links, rooms."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, moved, runfile

from fedserver.cli import app
from fedserver.rounds.view import list_clients, list_runs
from motley import plugins
from motley.algorithms import registry
from motley.runfile import RunFile, parse

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def named(text: str) -> set[str]:
    """Return everything that stands in backticks outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", prose))


# --- run-file.md: its tables are checked in test_run_file_page.py --------------------------------


def test_the_example_of_a_run_file_is_valid() -> None:
    examples = blocks(page("run-file.md"), "toml")
    assert len(examples) == 1
    example = parse(examples[0])
    unused = set(RunFile.model_fields) - example.model_fields_set
    assert not unused, f"the complete example leaves out {unused}"


# --- simulation.md -------------------------------------------------------------------------------


def test_the_methods_that_train_together_are_named() -> None:
    rows = re.findall(r"^\| (`.+`) \| (yes|no)\b", page("simulation.md"), flags=re.M)
    found = {name: answer for names, answer in rows for name in re.findall(r"`(\w+)`", names)}
    methods = {name: registry.find(name) for name in registry.names()}
    assert found == {n: "yes" if m.trains_together else "no" for n, m in methods.items()}


# --- control.md ----------------------------------------------------------------------------------


def keys(record: Any, data: tuple[str, ...]) -> set[str]:
    """Return the field names of a record; what is under a name in `data` has no fixed names."""
    if isinstance(record, list):
        return set().union(*(keys(item, data) for item in record))
    if not isinstance(record, dict):
        return set()
    found = set(record)
    for name, value in record.items():
        if name in data:
            continue
        # `clients` of a round is keyed by client name; of a run it is a list.
        inner = value.values() if name == "clients" and isinstance(value, dict) else [value]
        found |= set().union(*(keys(item, data) for item in inner))
    return found


def test_every_field_of_a_record_is_explained(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.arrive("a", "b")
    run = bench.submit(runfile(rounds=2, sections="[evaluate]\nevery = 2"))
    for client in ("a", "b"):
        task = bench.task(client)
        bench.send(client, moved(bench.broadcast(task), 0.1), task=task)
    bench.settle()
    record = bench.record(run)
    assert record["history"]
    assert record["current"]
    free = ("metrics", "labels", "libraries", "workloads", "bits", "sent_bits", "layers", "widths")
    fields = keys(record, free) | keys(list_runs(bench.engine), free)
    fields |= keys(list_clients(bench.engine), free)
    missing = fields - named(page("control.md"))
    assert not missing, f"docs/control.md does not name {sorted(missing)}"


def test_every_command_and_option_is_explained() -> None:
    from typer.main import get_command

    text = page("control.md")
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert re.search(rf"`{name}\b", text), f"docs/control.md does not name `{name}`"
        for option in command.params:
            for word in option.opts:
                if word.startswith("--"):
                    assert word in text, f"docs/control.md does not name {word} of {name}"


def test_every_option_of_a_client_is_explained() -> None:
    from typer.main import get_command

    from fedclient.cli import app as client

    text = page("operations.md")
    commands: dict[str, Any] = get_command(client).commands  # type: ignore[attr-defined]
    options = [word for option in commands["start"].params for word in option.opts]
    missing = [word for word in options if f"`{word}" not in text]
    assert not missing, f"docs/operations.md does not name {missing}"


# --- export.md -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["models", "export", "predict"])
def test_every_option_that_takes_models_home_is_explained(command: str) -> None:
    from typer.main import get_command

    from fedclient.cli import app as client

    text = page("export.md")
    commands: dict[str, Any] = get_command(client).commands  # type: ignore[attr-defined]
    options = [word for option in commands[command].params for word in option.opts]
    missing = [word for word in options if word.startswith("--") and word not in text]
    assert f"fedclient {command}" in text
    assert not missing, f"docs/export.md does not name {missing}"


# --- workloads.md --------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "language"), [("tumours.py", "python"), ("run.toml", "toml")])
def test_the_example_workload_is_the_one_in_the_page(file: str, language: str) -> None:
    source = (ROOT / "examples" / "own_workload" / file).read_text()
    assert source in blocks(page("workloads.md"), language), f"copy {file} into the page again"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.toml")), ids=lambda p: p.name)
def test_run_files_among_the_examples_are_valid(path: Path) -> None:
    parse(path.read_text(), path.name)


def test_every_built_in_workload_is_explained() -> None:
    """Its name, its variants, its options and its arguments."""
    words = {part for word in named(page("workloads.md")) for part in re.split(r"[?&=,/ ]+", word)}
    points = entry_points(group=plugins.GROUP)
    assert {"digits", "cifar100", "shakespeare"} <= set(points.names)
    for point in points:
        found = point.load()
        arguments = inspect.signature(found).parameters
        workload = found(**({"labels": "a,b"} if "labels" in arguments else {}))
        options = {
            option
            for name, names in {**vars(inspect.getmodule(found)), **vars(found)}.items()
            if name.upper().endswith("OPTIONS")
            for option in names
        }
        missing = {point.name, *workload.variants(), *arguments, *options} - words
        assert not missing, f"docs/workloads.md does not name {missing}"


# --- operations.md -------------------------------------------------------------------------------


def test_messages_in_the_troubleshooting_table_are_those_of_the_code() -> None:
    """Check each message by its longest literal part; f-string fields stand as `...`."""
    texts = re.sub(r"\s+", " ", " ".join(literals()))
    table = page("operations.md").partition("## Troubleshooting")[2].partition("## Sizing")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, flags=re.M)
    assert len(rows) > 15
    for message in (word for row in rows for word in re.findall(r"`([^`]+)`", row)):
        parts = re.split(r"\.\.\.|'|\d+", message)
        longest = max(parts, key=len).strip()
        assert longest in texts, f"no message holds {longest!r}"


def literals() -> Iterator[str]:
    """Yield the literal texts of all modules, adjacent ones joined."""
    for folder in ("core/motley", "fedserver", "fedclient"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


# --- links and tests that pages name -------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{path.name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {link}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(path: Path) -> None:
    folders = "benchmarks|core|docs|examples|fedserver|fedclient|proto|tests"
    for word in named(path.read_text()):
        if re.fullmatch(rf"({folders})/[\w./-]+\.(py|md|toml|proto)", word):
            assert (ROOT / word).exists(), f"{path.name} names {word}, which is not there"


@pytest.mark.parametrize("path", sorted((DOCS / "adr").glob("*.md")), ids=lambda p: p.stem)
def test_a_decision_is_short_and_complete(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.name[:4]}: ")
    assert len(text.splitlines()) < 40
    for heading in ("Context", "Decision", "Consequence"):
        assert f"\n## {heading}\n" in text


# --- architecture.md: the rooms ------------------------------------------------------------------

FORBIDDEN = {
    "core/motley": {"fedserver", "fedclient"},
    "fedserver": {"fedclient"},
    "fedclient": {"fedserver"},
    "fedserver/rounds": {"grpc", "fedserver.service"},
    "fedserver/simulate": {"grpc", "fedserver.service"},
    "core/motley/wire": {
        f"motley.{room}"
        for room in ("algorithms", "execution", "models", "quantize", "training", "workload")
    }
    | {"torch"},
    "core/motley/quantize": {"motley.algorithms", "motley.training", "motley.wire", "grpc"},
    "core/motley/privacy": {
        *("motley.algorithms", "motley.execution", "motley.training", "motley.wire", "grpc"),
        *("scipy", "fedclient", "fedserver"),
    },
}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_what_they_may(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for module in imported(path):
            for forbidden in FORBIDDEN[room]:
                inside = module == forbidden or module.startswith(f"{forbidden}.")
                assert not inside, f"{path.relative_to(ROOT)} imports {module}"


def test_nothing_turns_data_into_code() -> None:
    for folder in ("core", "fedserver", "fedclient"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {"pickle", "marshal", "shelve", "dill"} & set(imported(path)), path
            nodes = ast.walk(ast.parse(path.read_text()))
            names = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
            assert not {"eval", "exec", "torch.load"} & names, path


def test_the_server_imports_no_torch() -> None:
    code = (
        "import pkgutil, sys, fedserver\n"
        "from motley.algorithms import registry\n"
        "for module in pkgutil.walk_packages(fedserver.__path__, 'fedserver.'):\n"
        "    __import__(module.name)\n"
        "for name in registry.names():\n"
        "    registry.find(name)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
