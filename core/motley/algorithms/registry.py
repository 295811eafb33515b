"""Algorithms by name; each file is imported when its name is first asked for."""

from __future__ import annotations

from importlib import import_module

from motley.algorithms.base import Algorithm
from motley.errors import PlanError, did_you_mean

_CLASSES = {
    "binaryrelax": "motley.algorithms.binaryrelax:BinaryRelax",
    "fedavg": "motley.algorithms.fedavg:FedAvg",
    "fedmpq": "motley.algorithms.fedmpq:FedMPQ",
    "fedp3": "motley.algorithms.fedp3:FedP3",
    "fedpaq": "motley.algorithms.fedpaq:FedPAQ",
    "fml": "motley.algorithms.fml:FML",
    "local": "motley.algorithms.local:Local",
    "perfedavg": "motley.algorithms.perfedavg:PerFedAvg",
    "pfedme": "motley.algorithms.pfedme:PFedMe",
    "proxquant": "motley.algorithms.proxquant:ProxQuant",
    "quped": "motley.algorithms.quped:QuPeD",
    "qupel": "motley.algorithms.qupel:QuPeL",
    "uveqfed": "motley.algorithms.uveqfed:UVeQFed",
}


def names() -> tuple[str, ...]:
    """Return the names of all algorithms."""
    return tuple(_CLASSES)


def find(name: str) -> type[Algorithm]:
    """Return an algorithm's class; raise PlanError when there is none of that name."""
    if name not in _CLASSES:
        hint = did_you_mean(name, _CLASSES)
        raise PlanError(f"no algorithm is called {name!r}; there are {', '.join(_CLASSES)}{hint}")
    module, _, attribute = _CLASSES[name].partition(":")
    found: type[Algorithm] = getattr(import_module(module), attribute)
    return found
