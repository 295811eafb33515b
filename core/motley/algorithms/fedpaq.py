"""FedPAQ: FedAvg whose clients send few-bit differences.

Reisizadeh, Mokhtari, Hassani, Jadbabaie, Pedarsani, "FedPAQ: A Communication-Efficient Federated
Learning Method with Periodic Averaging and Quantization", AISTATS 2020, arXiv 1909.13014. Clients
train in full precision for τ steps and send Q(x_k - x); the server adds the plain mean of what came
to its x. Q is unbiased, E Q(d) = d, with a variance of at most q ||d||² (assumption 1).

Here Q is the upload's `up_bits`: even levels from the smallest to the largest value of each
tensor, stochastic rounding. Its variance is at most step² / 4 a value, and step <= 2 ||d|| /
(2^bits - 1), so that q = n / (2^bits - 1)² for a tensor of n values.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from motley.algorithms.base import Settings
from motley.algorithms.fedavg import FedAvg, FedAvgSettings


class FedPAQSettings(FedAvgSettings):
    """Settings of FedPAQ: FedAvg's, with the paper's plain mean."""

    weighting: Literal["samples", "uniform"] = "uniform"


class FedPAQ(FedAvg):
    """Federated averaging of quantized differences."""

    name: ClassVar[str] = "fedpaq"
    settings_type: ClassVar[type[Settings]] = FedPAQSettings
    quantizes_uploads: ClassVar[bool] = True
    settings: FedPAQSettings
