"""The dashboard and the metrics of a real server, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from asking import ask, events
from federation import Federation, federation, until
from prometheus_client.parser import text_string_to_metric_families

from fedserver.client import Operator

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GRAFANA = EXAMPLES.parent / "deploy" / "compose" / "grafana" / "dashboards"
RUN = (
    (EXAMPLES / "fedmpq-digits.toml")
    .read_text()
    .replace("rounds = 8", "rounds = 2")
    .replace("every = 4", "every = 1")
    .replace("local_steps = 40", "local_steps = 3")
)
CLIENTS = {"c0": "b2", "c1": "b4", "c2": "b6", "c3": "b8"}
POLICY = "default-src 'none'; script-src 'self'"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, str]]:
    """A finished run of four clients of as many tiers, and the server that has it."""
    with federation(tmp_path_factory.mktemp("watched")) as bench:
        bench.serve("--dashboard", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        for index, (name, tier) in enumerate(CLIENTS.items()):
            bench.client(name, f"digits?clients=4&client={index}", "--tier", tier)
        run = bench.finished(bench.submit(RUN))["id"]
        yield bench, run


def test_records_are_those_of_the_commands(watched: tuple[Federation, str]) -> None:
    bench, run = watched
    page = bench.ports["dashboard"]
    shown = json.loads(bench.command("show", run, "--json").stdout)
    found = ask(page, f"/api/runs/{run}").json
    assert found == {**shown, "history": []}
    assert len(shown["history"]) >= 3
    assert ask(page, "/api/runs").json == json.loads(bench.command("runs", "--json").stdout)
    clients = ask(page, "/api/clients").json
    with Operator(bench.data) as operator:
        expected = operator.clients()
    varying = {"last_seen_seconds", "task", "here"}
    assert [{k: v for k, v in c.items() if k not in varying} for c in clients] == [
        {k: v for k, v in c.items() if k not in varying} for c in expected
    ]
    widths = json.loads(bench.command("show", run, "--bits", "--round", "1", "--json").stdout)
    assert ask(page, f"/api/runs/{run}/widths?round=1").json == {
        **widths,
        "reason": "",
    }


def test_columns_say_what_the_history_says(watched: tuple[Federation, str]) -> None:
    bench, run = watched
    history = bench.show(run)["history"]
    found = ask(bench.ports["dashboard"], f"/api/runs/{run}/rounds").json
    columns = found["rounds"]
    for name in ("id", "round", "kind", "attempt", "status", "opened"):
        assert columns[name] == [entry[name] for entry in history], name
    for place, entry in enumerate(history):
        clients = entry["clients"].values()
        assert columns["bytes_up"][place] == sum(c["bytes_up"] for c in clients)
        assert columns["bytes_down"][place] == sum(c["bytes_down"] for c in clients)
        assert columns["uploads"][place] == (4 if entry["kind"] == "train" else 0)
        assert columns["updates"][place] == 4
        assert columns["collect"][place] == pytest.approx(entry["seconds"]["collect"], rel=1e-4)
    # cnn1's tensors, unpacked.
    with Operator(bench.data) as operator:
        target = bench.root / "model.motley"
        size = operator.fetch(run, 0, target)
    assert 0 <= size - found["dense_bytes"] < 0.05 * size
    last = columns["id"][-1]
    later = ask(bench.ports["dashboard"], f"/api/runs/{run}/rounds?after={last - 1}").json
    assert later["rounds"]["id"] == [last]


def test_series_are_the_clients_figures(watched: tuple[Federation, str]) -> None:
    bench, run = watched
    path = f"/api/runs/{run}/series?kind=evaluate&metric=accuracy"
    found = ask(bench.ports["dashboard"], path).json
    measured = [e for e in bench.show(run)["history"] if e["kind"] == "evaluate"]
    assert found["round"] == [entry["round"] for entry in measured] == [1, 2]
    assert set(found["clients"]) == set(CLIENTS)
    for name, values in found["clients"].items():
        expected = [entry["clients"][name]["metrics"]["accuracy"] for entry in measured]
        assert values == pytest.approx(expected, rel=1e-4)
    nothing = ask(bench.ports["dashboard"], f"/api/runs/{run}/series?metric=nonsense").json
    assert nothing["clients"] == {}


def test_events_are_the_log_and_go_on_where_they_were(watched: tuple[Federation, str]) -> None:
    bench, _ = watched
    seen: list[tuple[int, dict[str, Any]]] = []
    for event in events(bench.ports["dashboard"]):
        seen.append(event)
        if event[1]["event"] == "run_finished":
            break
    assert [number for number, _ in seen] == list(range(seen[0][0], seen[0][0] + len(seen)))
    closed = [e["fields"] for _, e in seen if e["event"] == "round_closed"]
    logged = bench.events("server", "round_closed")
    assert [c["round"] for c in closed] == [entry["round"] for entry in logged] == [1, 2]
    measured = [e["fields"]["metrics"] for _, e in seen if e["event"] == "evaluated"]
    assert all(re.match(r"accuracy [01]\.\d+, loss ", words) for words in measured), measured
    resumed = events(bench.ports["dashboard"], Last_Event_ID=str(seen[-1][0] - 1))
    assert next(resumed) == seen[-1]


def test_every_answer_forbids_what_is_from_elsewhere(watched: tuple[Federation, str]) -> None:
    page = watched[0].ports["dashboard"]
    answers = [ask(page, path) for path in ("/", "/api/runs", "/static/page.js", "/nothing")]
    assert [answer.status for answer in answers] == [200, 200, 200, 404]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith(POLICY)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


def test_what_cannot_be_asked_is_said(watched: tuple[Federation, str]) -> None:
    bench, run = watched
    page = bench.ports["dashboard"]
    unknown = ask(page, "/api/runs/nobody")
    assert (unknown.status, unknown.json["code"]) == (404, "unknown_run")
    assert ask(page, f"/api/runs/{run}/widths?round=99").status == 404
    assert ask(page, f"/api/runs/{run}/rounds?after=-1").status == 400
    assert ask(page, "/api/runs", method="POST").status == 405
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
        assert ask(page, path).status == 404
    # A web site that points a name of its own at this machine.
    stranger = ask(page, "/api/runs", Host="evil.example:9480")
    assert stranger.status == 403
    assert ask(page, "/api/runs", Host="localhost").status == 200


def test_metrics_count_what_is_on_record(watched: tuple[Federation, str]) -> None:
    bench, run = watched
    reply = ask(bench.ports["metrics"], "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }

    def found(metric: str, *labels: str) -> float:
        return samples[(metric, *sorted(labels))]

    record = bench.show(run)
    name = record["name"]
    assert found("motley_rounds_total", name, "train", "closed") == 2
    assert found("motley_updates_total", name, "counted") == 8
    assert found("motley_payload_bytes_total", name, "up") == record["bytes_up"]
    assert found("motley_payload_bytes_total", name, "down") == record["bytes_down"]
    assert found("motley_runs", "finished") == 1
    assert found("motley_clients", "here") == 4
    assert found("motley_event_loop_lag_seconds_count") > 0
    assert found("motley_database_queue") >= 0
    assert found("process_resident_memory_bytes") > 1e7
    assert ask(bench.ports["metrics"], "/").status == 404


def test_grafana_draws_what_is_served(watched: tuple[Federation, str]) -> None:
    served = ask(watched[0].ports["metrics"], "/metrics").body.decode()
    known = set(re.findall(r"^# TYPE (\w+) ", served, flags=re.M))
    board = json.loads((GRAFANA / "motley.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    drawn = set(re.findall(r"(?:motley|process)_\w+", " ".join(queries)))
    assert len(drawn) > 8
    assert {name.removesuffix("_bucket") for name in drawn} <= known
    page = (EXAMPLES.parent / "docs" / "dashboard.md").read_text()
    explained = set(re.findall(r"^\| `(motley_\w+)`", page, flags=re.M))
    own = {name for name in known if name.startswith("motley_") and not name.endswith("_created")}
    assert explained == own


def test_a_refused_call_is_counted(watched: tuple[Federation, str]) -> None:
    bench, _ = watched
    assert bench.command("show", "nobody", check=False).returncode == 1

    def counted() -> bool:
        text = ask(bench.ports["metrics"], "/metrics").body.decode()
        return 'motley_refused_total{code="unknown_run",method="run_record"}' in text

    until(counted, "the refusal is counted")


def test_elsewhere_the_page_asks_for_its_token(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        bench.serve("--dashboard", "0.0.0.0:0")
        file = bench.data / "dashboard-token"
        secret = file.read_text().strip()
        assert file.stat().st_mode & 0o777 == 0o600
        assert bench.log("server").count(secret) == 1
        page = f"127.0.0.1:{bench.ports['dashboard'].rpartition(':')[2]}"
        front = ask(page, "/")
        assert (front.status, front.headers["location"]) == (303, "/login")
        assert b'name="token"' in ask(page, "/login").body
        assert ask(page, "/api/runs").status == 401
        assert ask(page, "/static/page.js").status == 401
        assert ask(page, "/api/runs", Authorization="Bearer wrong").status == 401

        wrong = ask(page, "/login", method="POST", body=urlencode({"token": "wrong"}).encode())
        assert wrong.status == 403
        assert "set-cookie" not in wrong.headers
        assert ask(page, "/login", method="POST", body=b"x" * 10_000).status == 413

        right = ask(page, "/login", method="POST", body=urlencode({"token": secret}).encode())
        cookie = right.headers["set-cookie"]
        assert right.status == 303
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert secret not in cookie, "cookies go to every port of a host"
        assert ask(page, "/api/runs", Cookie=cookie.partition(";")[0]).json == []
        assert ask(page, "/api/runs", Authorization=f"Bearer {secret}").json == []

        assert bench.terminate("server") == 0
        bench.serve("--dashboard", "0.0.0.0:0")
        assert file.read_text().strip() == secret
        assert bench.log("server").count(secret) == 1, "told once"

        assert bench.terminate("server") == 0
        os.chmod(file, 0o644)
        bench.serve("--dashboard", "0.0.0.0:0")
        assert file.read_text().strip() != secret, "others could read it"
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with federation(tmp_path) as bench:
        bench.serve("--metrics", "127.0.0.1:0")
        taken = bench.ports["metrics"]
        other = ("serve", "--insecure", "--listen", "127.0.0.1:0", "--dashboard", taken)
        bench.data = tmp_path / "other"
        refused = bench.command(*other, check=False)
        assert refused.returncode == 1
        assert f"cannot listen on {taken}" in refused.stderr
        assert "--dashboard" in refused.stderr
