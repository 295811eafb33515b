"""What methods share whose clients keep a model of their own between rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from motley.algorithms.base import (
    LATER,
    Algorithm,
    Broadcast,
    ClientContext,
    Finished,
    Settings,
    Tensors,
)
from motley.algorithms.local_settings import LocalSettings
from motley.errors import PlanError
from motley.wire import encode_codebook, encode_dense
from motley.workload import Scalar


class StartSettings(Settings):
    """Where personal models begin, for methods that have a global model of any size beside them."""

    personal_start: Literal["seed", "global"] = Field("seed", json_schema_extra=LATER)
    """"seed": drawn, the same for all clients. "global": where a client's variant is the global
    one, the global model as it first reaches the client, so that who comes late or lost its state
    begins with what the others have learnt, and all with a pretrained model; elsewhere drawn."""


class PersonalModel(Algorithm):
    """Base of the methods whose personal state is that of `motley.training.personal`."""

    keeps_personal_state: ClassVar[bool] = True
    settings: LocalSettings

    @property
    def local_steps(self) -> int:
        """Iterations of one round."""
        return self.settings.local_steps

    def begins_global(self, settings: Mapping[str, Scalar]) -> bool:
        """Return what `personal_start` says; a variant of another size is drawn all the same."""
        return settings.get("personal_start") == "global"

    def first_model(self, context: ClientContext) -> Tensors:
        """Return x⁰: the plan's variant as the run's seed draws it, or as `StartSettings` say."""
        from motley.training.personal import initial_tensors

        name, received = context.plan.variant, context.received
        wanted = self.begins_global(context.plan.settings)
        if wanted and received is not None and context.task.global_variant == name:
            return dict(received.tensors)
        return initial_tensors(context.workload.variants()[name], name, context.task.run_seed)

    @abstractmethod
    def state_of(self, context: ClientContext, personal: Tensors | None) -> Tensors:
        """Return the state handed in, or the one that a client starts from.

        Raises:
            PlanError: the plan does not fit the model or the state.
        """

    def model_for(
        self, context: ClientContext, subject: str, broadcast: Broadcast, personal: Tensors | None
    ) -> tuple[str, Tensors]:
        """Return the broadcast for "global", else the personal model, hard-quantized.

        Raises:
            PlanError: the method has no global model.
        """
        from motley.training.personal import deployed_tensors

        if subject != "global":
            return context.plan.variant, deployed_tensors(self.state_of(context, personal))
        if not self.has_global_model:
            raise PlanError(
                f"{self.name} has no global model to evaluate; set subject to 'personal'"
            )
        return context.task.global_variant, broadcast.tensors

    def finish(
        self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
    ) -> Finished:
        """Return the personal model: quantized tensors as indices and centres, the rest dense."""
        from motley.quantize.centres import unused
        from motley.training.personal import codes_and_centres, deployed_tensors

        state = self.state_of(context, personal)
        model = {name: encode_dense(values) for name, values in deployed_tensors(state).items()}
        idle = 0
        for name, (codes, centres) in codes_and_centres(state).items():
            model[name] = encode_codebook(codes, centres.astype(np.float32))
            idle += unused(codes, centres.size)
        metrics: dict[str, float] = {}
        if "centre_updates" in state:
            moved, updates = state["centre_updates"]
            metrics = {
                "unused_centres": float(idle),
                "centre_updates_moved": float(moved) / max(1, int(updates)),
            }
        return Finished(variant=context.plan.variant, model=model, metrics=metrics)
