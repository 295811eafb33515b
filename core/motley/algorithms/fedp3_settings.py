"""Settings of FedP3 (`motley.algorithms.fedp3` maps the paper's symbols to them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from motley.algorithms.fedp3_strategies import AGGREGATIONS, TRAINERS, UPLOAD_STEPS
from motley.algorithms.local_settings import LocalSettings
from motley.errors import did_you_mean
from motley.privacy.settings import PrivacySettings
from motley.prune.layers import POLICIES
from motley.prune.local import LOCAL_RULES
from motley.prune.masks import PRUNING_RULES, UPLOAD_RULES

_STRATEGIES: dict[str, Mapping[str, Any]] = {
    "layers": POLICIES,
    "pruning": PRUNING_RULES,
    "local_pruning": LOCAL_RULES,
    "trainer": TRAINERS,
    "upload_step": UPLOAD_STEPS,
    "aggregation": AGGREGATIONS,
    "upload_pruning": UPLOAD_RULES,
}


class FedP3Settings(LocalSettings, PrivacySettings):
    """Settings of FedP3."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Within a task; every task starts at rest."""
    gradient_clip: float = Field(default=10.0, ge=0)
    """Bound on the L2 norm of a step's gradient in all that may move; 0: none."""
    layers: str = "opu2"
    """Layer policy: which layers a group's clients send besides the last one."""
    plan: Literal["index", "tier", "auto"] = "index"
    """Groups by place in order of name, by the tier's `group`, or layers and shares by device."""
    group: int | None = Field(default=None, ge=0)
    """With plan = "tier": the group of a tier's clients, from 0."""
    keep: float = Field(default=0.9, gt=0, le=1)
    """p: share of a pruned tensor's values that comes down; with plan = "auto" the most."""
    pruning: str = "magnitude"
    """Which values come down."""
    local_pruning: str = "fixed"
    """Masks of single steps on layers that the client does not send."""
    local_keep: float = Field(default=0.9, gt=0, le=1)
    """q: least share that a step's mask keeps; with plan = "auto" the most."""
    head: Literal["global", "personal"] = "global"
    """Whether the last layer comes down, or each client keeps one of its own (it goes up)."""
    trainer: str = "sgd"
    """Local trainer."""
    proximal: float = Field(default=0.01, ge=0)
    """μ of the trainer "fedprox"."""
    aggregation: str = "mean"
    """Weights of a layer's senders in their mean."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the aggregation "attention"."""
    upload_step: str = "plain"
    """What happens to the values to send."""
    upload_keep: float = Field(default=1.0, gt=0, le=1)
    """Extension: share of each weight tensor that goes up; the rest does not move."""
    upload_pruning: str = "random"
    """Which values go up; without looking at them."""

    @field_validator(*_STRATEGIES)
    @classmethod
    def _is_known(cls, value: str, info: Any) -> str:
        table = _STRATEGIES[info.field_name]
        if value not in table:
            hint = did_you_mean(value, table)
            expected = f"expected one of {', '.join(table)}{hint}"
            raise ValueError(f"no strategy is called {value!r}; {expected}")
        return value

    @model_validator(mode="after")
    def _keeps_the_promise(self) -> FedP3Settings:
        if self.privacy == "none":
            return self
        if self.head == "personal":
            raise ValueError(
                'head = "personal" goes up although the server never sent it: no noise on a '
                'difference hides its values. A private run needs head = "global"'
            )
        if self.upload_step != "plain":
            raise ValueError('a private run needs upload_step = "plain": nothing follows the noise')
        if self.privacy == "ldp-sgd" and self.trainer != "sgd":
            raise ValueError('privacy = "ldp-sgd" is a trainer of its own; leave trainer at "sgd"')
        return self
