"""Alternating proximal steps on a model and its centres (QuPeD, arXiv 2107.13892).

Algorithm 1 trains one client's weights x and centres c; Algorithm 2 is the same with a shared model
w that teaches and learns. `iterate` is one iteration of either:

    g = ∂x [ objective(x) + objective(Q̃_c(x)) ]      lines 10 and 11: gradient step and prox
    h = ∂c objective(Q̃_c(x))                         lines 12 and 13, at the new x
    w ← w - η₃ λ_p ∂w [ KD(x, w) + KD(Q̃_c(x), w) ]   line 14, at the new x and c

In hard mode ∂x objective(Q_c(x)) is 0 for quantized tensors and is left out for the others too,
as in the released code: an iteration is then 5 forward and 3 backward passes.
"""

from __future__ import annotations

import torch

from motley.quantize.codebooks import Codebooks
from motley.quantize.rules import CentreRules, Rates
from motley.training.distillation import Objective, Teacher
from motley.training.flat import FlatModel
from motley.training.padded import Padded
from motley.training.proximity import Anchor
from motley.training.replay import Drawn
from motley.workload import Workload


class AlternatingModel:
    """Personal models in training: in full precision, or with centres for some of their layers.

    One client's, or with a `ManyModel` those of K clients of one variant and bit-width.
    """

    def __init__(
        self,
        model: FlatModel,
        codebooks: Codebooks | None,
        rules: CentreRules = CentreRules(),
        anchor: Anchor | None = None,
    ) -> None:
        """Take a model whose quantized tensors are the head of its buffer; no codebooks: none.

        `anchor`: a shared model that an l2 penalty ties this one to (QuPeL).
        """
        self.model, self.codebooks, self.rules, self.anchor = model, codebooks, rules, anchor
        self.quantized = model
        """The quantized model; the model itself in full precision and in fine-tuning."""
        if codebooks is not None and not codebooks.frozen:
            self.quantized = model.twin(whole=rules.mode == "soft")
            self._requantize(codebooks)

    @property
    def weights(self) -> torch.Tensor:
        """The quantized tensors' full-precision values, [1, head]."""
        return self.model.values[:, : self.model.head]

    @property
    def frozen(self) -> bool:
        """Whether its assignments are frozen: fine-tuning."""
        return self.codebooks is not None and self.codebooks.frozen

    def freeze(self) -> None:
        """Start fine-tuning: x becomes Q_c(x), and each weight follows its centre from here on."""
        if self.codebooks is None or self.codebooks.frozen:
            return
        self.codebooks.quantize(self.weights, self.weights)
        self.codebooks.freeze()
        self.model.adopt_buffers(self.quantized)
        self.quantized = self.model

    def step(self, inputs: torch.Tensor, objective: Objective, rates: Rates) -> torch.Tensor:
        """Step weights and centres on one batch; return the objective at the old weights."""
        if self.codebooks is None:
            loss, gradient = self._gradient(self.model, inputs, objective)
            self.model.descend(gradient, rates.weights, rates.weight_decay)
        elif self.codebooks.frozen:
            loss = self._finetune(self.codebooks, inputs, objective, rates)
        else:
            loss = self._step_weights(self.codebooks, inputs, objective, rates)
            if self.rules.fixed:
                self.quantized.adopt_buffers(self.model)
            else:
                self._step_centres(self.codebooks, inputs, objective, rates)
        return loss

    @torch.no_grad()
    def students(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs that the shared model learns from: x's, and the quantized model's."""
        outputs: torch.Tensor = self.model.module(inputs)
        if self.codebooks is None:
            return [outputs]
        # In fine-tuning the quantized model is the model itself: its term counts twice.
        frozen = self.codebooks.frozen
        return [outputs, outputs if frozen else self.quantized.module(inputs)]

    def tied(self, anchor: Anchor) -> list[torch.Tensor]:
        """Return the values that the anchor follows, each [1, d]: x, Q(x), or both."""
        if self.codebooks is None or anchor.ties == "weights":
            return [self.model.values]
        quantized = self._quantized_values(self.model.values.shape[1])
        return [quantized] if anchor.ties == "centres" else [self.model.values, quantized]

    def _gradient(
        self, model: FlatModel, inputs: torch.Tensor, objective: Objective
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective(model.module(inputs))
        gradient = model.gradient(loss.sum())
        if self.anchor is not None:
            self._pull(self.anchor, model, gradient)
        return loss.detach(), gradient

    def _pull(self, anchor: Anchor, model: FlatModel, gradient: torch.Tensor) -> None:
        """Add the penalty's gradient in x, or in Q(x) where that is another model."""
        if model is self.model:
            if self.quantized is model or anchor.ties != "centres":
                anchor.pull(gradient, model.values)
        elif anchor.ties != "weights":
            anchor.pull(gradient, self._quantized_values(gradient.shape[1]))

    def _quantized_values(self, width: int) -> torch.Tensor:
        """Return the first `width` values of the quantized model, [1, width]."""
        head = self.quantized.values
        return torch.cat((head, self.model.values[:, head.shape[1] : width]), 1)

    def _step_weights(
        self, codebooks: Codebooks, inputs: torch.Tensor, objective: Objective, rates: Rates
    ) -> torch.Tensor:
        loss, gradient = self._gradient(self.model, inputs, objective)
        if self.rules.mode == "soft":
            soft_loss, through = self._gradient(self.quantized, inputs, objective)
            head = self.model.head
            gradient[:, :head] += codebooks.soft_gradient(through[:, :head], self.weights)[0]
            gradient[:, head:] += through[:, head:]
            loss = loss + soft_loss
        self.model.descend(gradient, rates.weights, rates.weight_decay)
        threshold = rates.weights * rates.penalty / 2
        codebooks.settle(self.weights, self.quantized.values, threshold)
        if self.rules.clamp:
            codebooks.clamp(self.weights, self.quantized.values, fixed=self.rules.fixed)
        return loss

    def _step_centres(
        self, codebooks: Codebooks, inputs: torch.Tensor, objective: Objective, rates: Rates
    ) -> None:
        soft = self.rules.mode == "soft"
        if soft:
            codebooks.soft_quantize(self.weights, self.quantized.values)
        through = self._gradient(self.quantized, inputs, objective)[1][:, : self.model.head]
        if soft:
            gradient = codebooks.soft_gradient(through, self.weights)[1]
        else:
            gradient = codebooks.gradient(through)
        codebooks.move(gradient, self.weights, rates, self.rules)
        self._requantize(codebooks)

    def _requantize(self, codebooks: Codebooks) -> None:
        if self.rules.mode == "soft":
            codebooks.soft_quantize(self.weights, self.quantized.values)
        else:
            codebooks.quantize(self.weights, self.quantized.values)

    def _finetune(
        self, codebooks: Codebooks, inputs: torch.Tensor, objective: Objective, rates: Rates
    ) -> torch.Tensor:
        """Step what is in full precision and the centres from one gradient; weights follow."""
        loss, gradient = self._gradient(self.model, inputs, objective)
        of_centres = codebooks.gradient(gradient[:, : self.model.head])
        self.model.descend(gradient, rates.weights, rates.weight_decay)
        codebooks.move(of_centres, self.weights, rates, self.rules)
        codebooks.fill(self.weights)
        return loss


def iterate(
    personal: AlternatingModel,
    workload: Workload,
    batch: Drawn,
    rates: Rates,
    teacher: Teacher | None = None,
) -> torch.Tensor:
    """Do one iteration on one batch: x, then c, then w where there is a teacher.

    Args:
        personal: the client's model and centres, changed in place.
        workload: gives the loss.
        batch: of the client, or with models of K clients of each of them.
        rates: step sizes and λ of this iteration.
        teacher: the client's copy of the shared model, changed in place.

    Returns:
        The objective before the step, a scalar or [K], which may be NaN or infinite.
    """
    many = batch if isinstance(batch, Padded) else None
    if teacher is None:
        objective = Objective(workload, batch.targets, batch=many)
        loss = personal.step(batch.inputs, objective, rates)
        if personal.anchor is not None:
            personal.anchor.follow(personal.tied(personal.anchor), rates.shared)
        return loss
    outputs, signal = teacher.look(batch.inputs, many)
    objective = Objective(workload, batch.targets, signal, teacher.share, many)
    loss = personal.step(batch.inputs, objective, rates)
    teacher.learn(outputs, signal, personal.students(batch.inputs), rates.shared)
    return loss
