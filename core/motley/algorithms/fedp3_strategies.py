"""The parts of FedP3 that can be exchanged, each under a name that a run file gives.

Layer policies are in `motley.prune.layers`, pruning rules in `motley.prune.masks` and
`motley.prune.local`. A trainer or an upload step is named by `module:object` here, because it
imports torch and the server must not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from motley.algorithms.base import Broadcast, ClientContext, Coefficient, Tensors
from motley.errors import PlanError, did_you_mean

Scalars = Mapping[str, Mapping[str, float]]
"""What `FedP3.measure` kept of each counted update, by client."""

DISTANCE = "distance."
"""Prefix of the scalars that hold how far a unit moved."""

TRAINERS: dict[str, str] = {
    "sgd": "motley.training.subnetwork:sgd",
    "fedprox": "motley.training.subnetwork:fedprox",
}
"""Local trainers (`LocalTrainer`) by name."""

UPLOAD_STEPS: dict[str, str] = {"plain": "motley.algorithms.fedp3_strategies:plain"}
"""Last steps before an upload (`UploadStep`) by name."""


class UploadStep(Protocol):
    """What happens to the values to send, after training and before they are encoded."""

    def __call__(self, values: Tensors, broadcast: Broadcast, context: ClientContext) -> Tensors:
        """Return the values that go up, the same tensors in the same order."""


def plain(values: Tensors, broadcast: Broadcast, context: ClientContext) -> Tensors:
    """Send what was trained."""
    return values


def resolve(table: Mapping[str, str], name: str) -> Any:
    """Return the object that a name stands for; raise PlanError when there is no such name."""
    if name not in table:
        hint = did_you_mean(name, table)
        raise PlanError(f"no strategy is called {name!r}; there are {', '.join(table)}{hint}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


# --- aggregation: a client's weight, for each of its layers --------------------------------------


def mean(scalars: Scalars, temperature: float) -> dict[str, Coefficient]:
    """Weight all senders of a layer equally."""
    return dict.fromkeys(scalars, 1.0)


def by_layers(scalars: Scalars, temperature: float) -> dict[str, Coefficient]:
    """Weight a client by |L_i|, the number of layers that it sends besides the last one."""
    return {client: values["layers"] for client, values in scalars.items()}


def attention(scalars: Scalars, temperature: float) -> dict[str, Coefficient]:
    """Weight the senders k of a layer l by softmax_k(d_kl / (τ · mean_k d_kl)).

    d is the L2 distance of the client's layer from the server's, as the server measured it, so that
    the layers that moved most weigh most (Ji et al., IJCNN 2019, arXiv 1812.07108, equations
    2 and 3, made independent of the scale of a layer). FedP3's paper names such a rule
    and leaves it open.
    """
    weights: dict[str, Coefficient] = {}
    by_unit: dict[str, dict[str, float]] = {client: {} for client in scalars}
    known = {key for values in scalars.values() for key in values}
    keys = sorted(key for key in known if key.startswith(DISTANCE))
    for key in keys:
        distances = {name: values[key] for name, values in scalars.items() if key in values}
        centre = sum(distances.values()) / len(distances)
        scores = {k: d / (temperature * centre) if centre else 0.0 for k, d in distances.items()}
        top = max(scores.values())
        for client, score in scores.items():
            by_unit[client][key.removeprefix(DISTANCE)] = math.exp(score - top)
    weights.update(by_unit)
    return weights


Aggregation = Callable[[Scalars, float], dict[str, Coefficient]]
AGGREGATIONS: dict[str, Aggregation] = {
    "mean": mean,
    "weighted": by_layers,
    "attention": attention,
}
"""Rules for the weights in a layer's mean by name; the mean is over those who sent it."""
