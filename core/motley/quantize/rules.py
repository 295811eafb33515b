"""The choices that QuPeD's Algorithm 1 leaves open, as plain values. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["hard", "soft"]
CentreStep = Literal["linear", "exact"]
Start = Literal["range", "quantiles", "unit", "magnitude"]
Ties = Literal["both", "weights", "centres"]


@dataclass(frozen=True, kw_only=True)
class CentreRules:
    """How weights are quantized in training and how their centres are set and moved."""

    mode: Mode = "hard"
    """Quantizer in training: hard is the limit of the soft one and what the authors ran."""
    step: CentreStep = "linear"
    """The penalty's step on the centres: `penalty.linear_pull` or `penalty.exact_centres`."""
    penalised: bool = True
    """Whether the penalty moves the centres at all."""
    gradient_clip: float = 10.0
    """Bound on each component of the centres' summed gradient."""
    pull_clip: float = 0.01
    """Longest linear step, as a share of the distance between a layer's outer initial centres."""
    steepness: float = 20.0
    """Soft quantizer: P times the smallest gap between a layer's initial centres."""
    start: Start = "range"
    """Where centres start; see `centres.initial_centres`."""
    factor: float = 1.0
    """On where centres start."""
    clamp: bool = False
    """Whether quantized weights are kept in [-1, 1], as in the recipe of QuPeD's Table 1."""
    fixed: bool = False
    """Whether centres stay where they start (ProxQuant)."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Step sizes of one iteration."""

    weights: float
    """η₁."""
    centres: float = 0.0
    """η₂."""
    penalty: float = 0.0
    """λ, with the ½ inside R."""
    weight_decay: float = 0.0
    """On the personal model alone, not on centres."""
    shared: float = 0.0
    """η₃, of the shared model."""
