"""The ledger: spent before noise is drawn, bounded by two budgets, never rolled back."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from private_cases import KEY, RELEASE, task
from typer.testing import CliRunner

from fedclient.cli import app
from fedclient.errors import OptionError
from fedclient.privacy import PrivacyFiles, parse_budget
from motley.errors import PrivacyBudgetError, PrivacyError, PrivacyLedgerError
from motley.privacy.guarantee import Guarantee
from motley.privacy.ledger import Budget, Entry, MemoryStore, TaskPrivacy, spent
from motley.privacy.rdp import epsilon_of

DELTA = 1e-5
STEPS = Guarantee(
    mode="ldp-sgd", epsilon=2.0, delta=DELTA, clip=1.0, sampling_rate=0.1, batch_size=10,
    steps_per_task=20, tasks=5,
)  # fmt: skip
RELEASES = Guarantee(mode="release", epsilon=2.0, delta=DELTA, clip=1.0, tasks=5)


@cache
def noise_for(guarantee: Guarantee) -> float:
    """Return the z that just keeps a promise, by bisection."""
    low, high = 0.2, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if guarantee.epsilon_of(middle) <= 2.0 else (middle, high)
    return high


def spend(store: object, guarantee: Guarantee, number: int = 1, run: str = "r") -> bytes:
    spec = task(RELEASE, round_=number, run_id=run, task_id=f"{run}-{number}")
    return TaskPrivacy(store, spec).spend(guarantee, noise_for(guarantee))  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    return MemoryStore(KEY) if request.param == "memory" else PrivacyFiles(tmp_path / "privacy")


@pytest.mark.parametrize("guarantee", [STEPS, RELEASES], ids=lambda g: g.mode)
def test_a_run_ends_when_its_own_budget_is_spent(store, guarantee: Guarantee) -> None:
    keys = [spend(store, guarantee, number) for number in range(1, 6)]
    assert len(set(keys)) == 5
    with pytest.raises(PrivacyBudgetError, match="has spent its privacy budget on this device"):
        spend(store, guarantee, 6)
    assert len(store.entries()) == 5, "a refusal spends nothing"
    unit = guarantee.unit
    assert spent(store.entries(), DELTA, unit) == pytest.approx(2.0, rel=1e-6)
    spend(store, guarantee, 1, run="another")  # a run of its own, and no owner's budget


def test_the_owners_budget_counts_all_runs_together_for_one_record() -> None:
    """Different mechanisms compose; a release counts with half its noise, since C becomes 2C."""
    from motley.privacy.rdp import NOTHING, compose, epsilon_at, sampled_gaussian

    store = MemoryStore(KEY)
    for number in range(1, 4):
        spend(store, STEPS, number, run="a")
        spend(store, RELEASES, number, run="b")
    total = compose(NOTHING, sampled_gaussian(noise_for(STEPS), 0.1), 60)
    total = compose(total, sampled_gaussian(noise_for(RELEASES) / 2, 1.0), 3)
    expected = epsilon_at(total, DELTA)
    assert spent(store.entries(), DELTA, "record") == pytest.approx(expected)
    assert expected > max(
        epsilon_of(noise_for(STEPS), 0.1, 60, DELTA), epsilon_of(noise_for(RELEASES), 1.0, 3, DELTA)
    )
    store.owner = Budget(epsilon=expected, delta=DELTA)
    with pytest.raises(PrivacyBudgetError, match="the privacy budget of this device is spent"):
        spend(store, STEPS, 4, run="a")
    with pytest.raises(PrivacyError, match="says nothing of a client's whole data"):
        spent(store.entries(), DELTA, "client-release")


def test_noise_that_breaks_the_promise_is_refused_whatever_the_server_says() -> None:
    store = MemoryStore(KEY)
    with pytest.raises(PrivacyError, match="and the run promises 2"):
        TaskPrivacy(store, task(RELEASE)).spend(RELEASES, 0.9 * noise_for(RELEASES))
    assert not store.entries()


def test_a_promise_cannot_be_weakened_halfway() -> None:
    store = MemoryStore(KEY)
    spend(store, RELEASES)
    weaker = Guarantee(mode="release", epsilon=50.0, delta=DELTA, clip=1.0, tasks=5)
    with pytest.raises(PrivacyError, match="a promise stands"):
        spend(store, weaker, 2)


def test_a_task_that_begins_again_pays_again_and_draws_other_noise(store) -> None:
    first, second = spend(store, RELEASES), spend(store, RELEASES)
    assert first != second
    assert [entry.task for entry in store.entries()] == ["r-1", "r-1"]


def test_noise_is_never_drawn_twice() -> None:
    store = MemoryStore(KEY)
    privacy = TaskPrivacy(store, task(RELEASE))
    privacy.spend(RELEASES, noise_for(RELEASES))
    with pytest.raises(PrivacyError, match="the same noise twice"):
        privacy.spend(RELEASES, noise_for(RELEASES))

    class Stuck(MemoryStore):
        """A source of random numbers that repeats itself."""

        def fresh(self) -> tuple[str, float]:
            return "00", 0.0

    stuck = Stuck(KEY)
    spend(stuck, RELEASES)
    with pytest.raises(PrivacyError, match="noise that was used before"):
        spend(stuck, RELEASES)
    assert len(stuck.entries()) == 1


# --- on the disk ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> PrivacyFiles:
    return PrivacyFiles(tmp_path / "privacy")


def test_what_was_spent_outlives_the_process_and_others_cannot_read_it(files, tmp_path) -> None:
    spend(files, RELEASES)
    again = PrivacyFiles(tmp_path / "privacy")
    assert again.entries() == files.entries()
    assert again.secret() == files.secret()
    assert len(again.secret()) == 32
    for name in ("secret", "ledger.jsonl"):
        mode = (tmp_path / "privacy" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600, name
    (tmp_path / "privacy" / "secret").chmod(0o644)
    with pytest.raises(PrivacyLedgerError, match="others can use it"):
        spend(again, RELEASES, 2)


def test_a_restored_copy_draws_other_noise(files, tmp_path) -> None:
    """Both the secret and the ledger as they were before: the nonce still makes another key."""
    spend(files, RELEASES)
    ledger = (tmp_path / "privacy" / "ledger.jsonl").read_bytes()
    first = spend(files, RELEASES, 2)
    (tmp_path / "privacy" / "ledger.jsonl").write_bytes(ledger)
    assert spend(files, RELEASES, 2) != first


Damage = Callable[[Path], object]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"steps":1', b'"steps":2', 1))


def _lose_a_break(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("ledger.jsonl", Path.unlink, "is gone: what was spent is not known"),
        ("secret", Path.unlink, "is gone, and ledger.jsonl holds entries"),
        ("secret", lambda path: path.write_bytes(b"short"), "expected 32"),
        ("ledger.jsonl", _flip, "line 1 of .* is damaged"),
        ("ledger.jsonl", _lose_a_break, "line 1 of .* is damaged"),
    ],
)
def test_a_ledger_that_is_not_whole_stops_everything(
    files, tmp_path, name: str, damage: Damage, words: str
) -> None:
    spend(files, RELEASES)
    spend(files, RELEASES, 2)
    damage(tmp_path / "privacy" / name)
    with pytest.raises(PrivacyLedgerError, match=words):
        spend(files, RELEASES, 3)


def test_a_line_that_was_cut_short_was_never_used_and_is_replaced(files, tmp_path) -> None:
    spend(files, RELEASES)
    spend(files, RELEASES, 2)
    _cut(tmp_path / "privacy" / "ledger.jsonl")
    assert [entry.task for entry in files.entries()] == ["r-1"]
    spend(files, RELEASES, 3)
    assert [entry.task for entry in files.entries()] == ["r-1", "r-3"]


def test_an_entry_is_synced_before_its_key_is_known(files, monkeypatch) -> None:
    steps: list[str] = []
    sync, derive = os.fsync, __import__("motley.privacy.ledger", fromlist=["x"]).derive_key
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), sync(handle))[1])
    monkeypatch.setattr(
        "motley.privacy.ledger.derive_key",
        lambda *labels: (steps.append(f"key after {len(files.entries())}"), derive(*labels))[1],
    )
    spend(files, RELEASES)
    steps.clear()
    spend(files, RELEASES, 2)
    assert steps.count("sync") >= 1
    assert steps[-1] == "key after 2"


def test_a_full_disk_gives_no_key_and_room_later_does(files, monkeypatch) -> None:
    spend(files, RELEASES)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            spend(files, RELEASES, 2)
    spend(files, RELEASES, 3)


SPENDER = """
import sys
from functools import cache
from pathlib import Path
from fedclient.privacy import PrivacyFiles
from motley.plan import Plan
from motley.privacy.guarantee import Guarantee
from motley.privacy.ledger import TaskPrivacy
from motley.task import TaskKind, TaskSpec

run = sys.argv[2]
guarantee = Guarantee(mode="release", epsilon=9.0, delta=1e-5, clip=1.0, tasks=20)
for number in range(20):
    task = TaskSpec(
        task_id=f"{run}-{number}", kind=TaskKind.TRAIN, run_id=run, run_name=run, round=number,
        rounds=20, algorithm="fedavg", workload="w", plan=Plan(variant="v"), run_seed=0, client="c",
    )
    TaskPrivacy(PrivacyFiles(Path(sys.argv[1])), task).spend(guarantee, 9.0)
"""


def test_many_processes_that_spend_at_once_all_count(tmp_path) -> None:
    command = [sys.executable, "-c", SPENDER, str(tmp_path / "p")]
    running = [subprocess.Popen([*command, f"run{i}"]) for i in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    tasks = sorted(entry.task for entry in PrivacyFiles(tmp_path / "p").entries())
    assert tasks == sorted(f"run{i}-{n}" for i in range(3) for n in range(20))


# --- the owner's side ----------------------------------------------------------------------------


def test_a_budget_stays_until_another_is_given(files, tmp_path) -> None:
    files.set_budget(parse_budget("0.5,1e-6"))
    assert PrivacyFiles(tmp_path / "privacy").budget() == Budget(epsilon=0.5, delta=1e-6)
    with pytest.raises(PrivacyBudgetError, match=r"0 of epsilon 0.5 at delta 1e-06"):
        spend(files, RELEASES)
    assert TaskPrivacy(files, task(RELEASE)).is_protected
    files.set_budget(parse_budget("none"))
    spend(files, RELEASES)
    (tmp_path / "privacy" / "budget.json").write_text("{}")
    with pytest.raises(PrivacyLedgerError, match="give the budget again"):
        spend(files, RELEASES, 2)


@pytest.mark.parametrize("text", ["8", "8,", "x,1e-5", "0,1e-5", "8,1", "8,nan", "inf,1e-5"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected EPSILON,DELTA"):
        parse_budget(text)


def test_the_command_prints_the_ledger(tmp_path) -> None:
    files = PrivacyFiles(tmp_path / "privacy")
    files.set_budget(Budget(epsilon=9.0, delta=1e-6))
    spend(files, STEPS, 1, run="a")
    spend(files, RELEASES, 1, run="b")
    before: list[Entry] = list(files.entries())
    shown = CliRunner().invoke(app, ["privacy", "--state", str(tmp_path), "--json"])
    (record,) = json.loads(shown.stdout)
    assert record["budget"] == {"epsilon": 9.0, "delta": 1e-6}
    assert record["spent_epsilon"] == pytest.approx(spent(before, 1e-6, "record"))
    assert [(r["run"], r["unit"], r["steps"]) for r in record["runs"]] == [
        ("a", "record", 20),
        ("b", "client-release", 1),
    ]
    assert record["runs"][1]["spent_epsilon"] == pytest.approx(
        epsilon_of(noise_for(RELEASES), 1.0, 1, DELTA)
    )
    text = CliRunner().invoke(app, ["privacy", "--state", str(tmp_path)]).stdout
    assert "of 9 at delta 1e-06, 2 tasks" in text
    missing = CliRunner().invoke(app, ["privacy", "--state", str(tmp_path / "new"), "--json"])
    assert "no client was started with state directory" in str(missing.exception)
    assert not (tmp_path / "new").exists(), "looking writes nothing"
