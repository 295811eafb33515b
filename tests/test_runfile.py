"""Run files: what is accepted, and how faults are named."""

from __future__ import annotations

import re

import pytest

from motley.errors import RunFileError
from motley.runfile import LARGEST, parse

GOOD = """
[run]
name = "digits"
algorithm = "quped"
rounds = 3

[workload]
name = "digits"

[clients]
expected = 4
fraction = 0.5
over_select = 1.5

[settings]
learning_rate = 0.05

[[tiers]]
name = "phone"
bits = 1
up_bits = 8
when = { memory_gib_below = 4 }
settings = { learning_rate = 0.01 }

[[tiers]]
name = "pc"
"""


def test_a_good_file_is_read() -> None:
    runfile = parse(GOOD)
    assert runfile.clients.goal(4) == 2
    assert [tier.name for tier in runfile.tiers] == ["phone", "pc"]
    assert runfile.tiers[0].up_bits == 8
    assert runfile.tiers[1].up_bits is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 3", "round = 3", r"run\.round: no such field; did you mean 'rounds'"),
        ("rounds = 3", "rounds = 0", r"run\.rounds: .*greater than or equal to 1 \(got 0\)"),
        ('"quped"', '"qupde"', r"run\.algorithm: no such algorithm; .* fedavg.*\(got 'qupde'\)"),
        ("learning_rate = 0.05", "learning_rat = 0.05", r"settings\.learning_rat: no such field"),
        ("learning_rate = 0.01", "learning_rate = -1.0", r"tiers\.phone\.settings\.learning_rate"),
        ("bits = 1\n", "bits = 9\n", r"tiers\.0: bits is 9 bits; expected 1 to 8, or 32"),
        ("up_bits = 8", "up_bits = 0", r"up_bits is 0 bits"),
        ("memory_gib_below", "memory_gb_below", r"when\.memory_gb_below: no such field"),
        ("fraction = 0.5", "fraction = 0.5\ncount = 2", "give fraction or count, not both"),
        ("fraction = 0.5", "fraction = 0.5\nminimum = 3", r"minimum is 3 but a round counts"),
        ('name = "pc"', 'name = "phone"', "each with a name of its own"),
        ("[workload]", "[workload", "is not TOML"),
        ('name = "digits"\nalgorithm', 'name = "a b"\nalgorithm', r"run\.name"),
        ("expected = 4", "", r"clients\.expected: Field required"),
    ],
)
def test_faults_name_the_field(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RunFileError, match=message):
        parse(GOOD.replace(old, new, 1), "run.toml")


def test_init_is_for_methods_with_a_global_model() -> None:
    text = GOOD.replace('"quped"', '"local"').replace("rounds = 3", 'rounds = 3\ninit = "run:a"')
    with pytest.raises(RunFileError, match=r"run\.init: local has no global model to start"):
        parse(text, "run.toml")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    ("old", "field"),
    [
        ("[settings]", "round.deadline_seconds"),
        ("[settings]", "evaluate.deadline_seconds"),
        ("[settings]", "workload.arguments.limit"),
        ("learning_rate = 0.05", "settings.learning_rate"),
        ("learning_rate = 0.01", "tiers.0.settings.learning_rate"),
        ("memory_gib_below = 4", "tiers.0.when.memory_gib_below"),
    ],
)
def test_numbers_are_finite(old: str, field: str, value: str) -> None:
    """JSON has neither infinity nor what is no number."""
    section, _, name = field.rpartition(".")
    new = f"{name} = {value}"
    if old == "[settings]":
        new = f"[{section}]\n{new}\n\n{old}"
    with pytest.raises(RunFileError) as caught:
        parse(GOOD.replace(old, new, 1))
    (line,) = re.findall(rf"{re.escape(field)}.*", str(caught.value))
    assert line == f"{field}: Input should be a finite number (got {value})"


def test_a_run_on_record_may_have_numbers_that_were_infinite() -> None:
    text = GOOD.replace("[settings]", "[round]\ndeadline_seconds = inf\n\n[settings]")
    assert parse(text, on_record=True).round.deadline_seconds == LARGEST


def test_all_faults_are_named_at_once() -> None:
    text = GOOD.replace("rounds = 3", "rounds = 0").replace("expected = 4", "expected = -1")
    with pytest.raises(RunFileError) as caught:
        parse(text)
    assert "run.rounds" in str(caught.value)
    assert "clients.expected" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"quped"', '"qupde"'),
        ("learning_rate = 0.05", "learning_rat = 0.05"),
        ("learning_rate = 0.05", 'learning_rate = "fast"'),
    ],
)
def test_method_and_settings_are_checked_although_other_fields_are_wrong(
    old: str, new: str
) -> None:
    with pytest.raises(RunFileError) as alone:
        parse(GOOD.replace(old, new, 1))
    with pytest.raises(RunFileError) as caught:
        parse(GOOD.replace(old, new, 1).replace("rounds = 3", "rounds = 0"))
    (fault,) = [line for line in str(alone.value).splitlines()[1:] if "tiers." not in line]
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2
    assert fault in lines
    assert any(line.startswith("  run.rounds: ") for line in lines)


@pytest.mark.parametrize(
    "text",
    ["run = 3", "[run]\nalgorithm = [1]", '[run]\nalgorithm = "quped"\n[[settings]]\na = 1'],
)
def test_documents_of_another_shape_end_in_the_same_error(text: str) -> None:
    with pytest.raises(RunFileError, match=r"clients: Field required"):
        parse(text)


def test_what_a_method_cannot_do_is_refused() -> None:
    with pytest.raises(RunFileError, match=r"tiers\.phone: fedavg trains the global model"):
        parse(GOOD.replace('"quped"', '"fedavg"'))
    with pytest.raises(RunFileError, match=r"evaluate\.subject: local has no global model"):
        parse(GOOD.replace('"quped"', '"local"') + '[evaluate]\nsubject = "global"\n')
