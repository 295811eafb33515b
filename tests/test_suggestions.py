"""A name that there is not is answered with the one that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fedclient.conditions import parse_conditions
from fedserver.model_process import prepare
from fedserver.simulate.population import population_of
from motley import plugins
from motley.algorithms import registry
from motley.algorithms.fedp3_strategies import TRAINERS, resolve
from motley.errors import MotleyError, RunFileError, did_you_mean
from motley.execution.executor import Executor
from motley.prune.masks import PRUNING_RULES, named
from motley.runfile import parse
from motley.workload import DataSpec, LocalData, Split
from motley.workloads.digits import Digits

RUN = """
[run]
name = "r"
algorithm = "fedp3"
rounds = 1
[workload]
name = "digits"
[clients]
expected = 3
[settings]
trainer = "sgd"
head = "global"
[[tiers]]
name = "phone"
[[tiers]]
name = "desk"
"""


def test_the_closest_name_is_suggested_and_none_that_is_far() -> None:
    names = ["fedavg", "quped", "Phone"]
    assert did_you_mean("fedagv", names) == "; did you mean 'fedavg'?"
    assert did_you_mean("QUPED", names) == "; did you mean 'quped'?"
    assert did_you_mean("phones", names) == "; did you mean 'Phone'?"
    assert did_you_mean("resnet", names) == ""
    assert did_you_mean("", names) == did_you_mean("x", []) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "meant"),
    [
        ('algorithm = "fedp3"', 'algorithm = "fepd3"', "fedp3"),
        ('algorithm = "fedp3"', 'algorithm = "FedMPQ"', "fedmpq"),
        ('trainer = "sgd"', 'trainer = "fedprxo"', "fedprox"),
        ('head = "global"', 'head = "persnal"', "personal"),
        ("[settings]", '[aggregate]\nrule = "trimed_mean"\n[settings]', "trimmed_mean"),
        ("rounds = 1", 'rounds = 1\non_lost_state = "exclud"', "exclude"),
    ],
)
def test_run_files(right: str, wrong: str, meant: str) -> None:
    parse(RUN)
    with pytest.raises(RunFileError, match=re.escape(f"did you mean '{meant}'?")):
        parse(RUN.replace(right, wrong, 1))


def executor() -> Executor:
    none = Digits().load(DataSpec("digits")).train
    return Executor(Digits(), LocalData(Split(none.inputs, none.targets), none))


def prepared(variant: str) -> object:
    job = {"workload": "digits", "mappings": {}, "arguments": {}, "variants": []}
    return prepare({**job, "global_variant": variant})


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda: registry.find("quepd"), "quped"),
        (lambda: plugins.find("digts", {}), "digits"),
        (lambda: plugins.find("wines", {"wine": "wine:Wine"}), "wine"),
        (lambda: executor().table("cn1"), "cnn1"),
        (lambda: prepared("ccn1"), "cnn1"),
        (lambda: resolve(TRAINERS, "fedprx"), "fedprox"),
        (lambda: named(PRUNING_RULES, "magnitud", "rule"), "magnitude"),
        (lambda: Digits().load(DataSpec.parse("digits?client=0&cleints=2")), "clients"),
        (lambda: Digits().load(DataSpec.parse("digits?clients=2&client=0&split=idd")), "iid"),
        (lambda: parse_conditions("idle,chargin"), "charging"),
        (lambda: population_of(parse(RUN), tiers={"phones": 3}, data="x"), "phone"),
    ],
)
def test_other_names(ask: Callable[[], object], meant: str) -> None:
    with pytest.raises(MotleyError, match=re.escape(f"did you mean '{meant}'?")):
        ask()


def test_no_name_is_guessed_for_what_is_no_typing_mistake() -> None:
    assert did_you_mean("quped" * 100_000, ["quped"]) == ""
