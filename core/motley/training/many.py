"""Many models of one variant, trained at once.

`ManyModel` is `FlatModel` with K rows: update rules carry the client dimension already, so steps
are the same code. Its forward pass takes folded inputs [K·B, ...] and runs in one of two forms:

- *folded*: layers of `motley.training.folded`, the model's own code for all else;
- *mapped*: `torch.func.vmap` over a functional call, for models with other layers.

Which one fits is tried once for each variant: a form has to give each client what the plain model
gives. A variant that neither fits is trained client by client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from motley.algorithms.base import ClientContext
from motley.models.units import load_tensors
from motley.training.flat import FlatModel, Tensors
from motley.training.folded import Rows, fold
from motley.workload import Variant, Workload

Form = Literal["folded", "mapped", ""]
"""How a variant computes for many clients; "": it does not."""
TOLERANCE = 1e-4
"""Largest difference, against the largest output, that a form may show when it is tried."""

_forms: WeakKeyDictionary[Workload, dict[tuple[str, str], Form]] = WeakKeyDictionary()


class ManyModel(FlatModel):
    """K models as rows of one buffer [K, d], with one forward pass for all."""

    module: Any
    """Takes [K·B, ...], client by client; returns [K·B, ...]."""

    def __init__(
        self,
        variant: Variant,
        states: Sequence[Mapping[str, npt.NDArray[np.generic]]],
        device: str,
        form: Form,
        first: Sequence[str] = (),
    ) -> None:
        """Take the tensors of each client's model, in training mode.

        Args:
            variant: builds one of them.
            states: each client's tensors.
            device: where they train.
            form: as `form_of` found it, not "".
            first: names of parameters to lie at the head of the buffer, in this order.
        """
        self._variant, self._device, self._form = variant, device, form
        self.skeleton = self._built()
        """A plain model of the variant, whose code is used and whose values are not."""
        self._order = tuple(self.skeleton.state_dict())
        trained = [n for n, p in self.skeleton.named_parameters() if p.requires_grad]
        self.names = (*first, *(name for name in trained if name not in first))
        stacked = {
            name: torch.from_numpy(np.stack([state[name] for state in states])).to(device)
            for name in self._order
        }
        self._shapes = [tuple(stacked[name].shape[1:]) for name in self.names]
        self.head = sum(stacked[name][0].numel() for name in first)
        self.values = torch.cat([stacked[name].flatten(1) for name in self.names], 1)
        """[K, d]."""
        self._gradient = torch.empty_like(self.values)
        self.rows = Rows({n: t for n, t in stacked.items() if n not in self.names}, len(states))
        self.parameters = self._bound(self.values, self._shapes, self.names)
        self.module = self._forward()

    @property
    def form(self) -> Form:
        """How they compute."""
        return self._form

    @property
    def clients(self) -> int:
        """Number of models, K."""
        return self.rows.clients

    def over(self, values: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs [K·B, ...] with `values` [K, ...] in place of the tensors so named."""
        own = self.rows.tensors
        self.rows.tensors = {**own, **values}
        try:
            outputs: torch.Tensor = self.module(inputs)
        finally:
            self.rows.tensors = own
        return outputs

    def twin(self, *, whole: bool) -> ManyModel:
        """Return a copy with heads of its own that shares the other parameters with these models.

        Args:
            whole: whether its gradient covers all parameters, [K, d]; else the heads, [K, head].
        """
        twin = copy.copy(self)
        buffers = {n: t.clone() for n, t in self.rows.tensors.items() if n not in self.names}
        twin.rows = Rows(buffers, self.clients)
        count = self._heads()
        twin.values = self.values[:, : self.head].clone()
        heads = twin._bound(twin.values, self._shapes[:count], self.names[:count])
        rest = twin._bound(self.values[:, self.head :], self._shapes[count:], self.names[count:])
        for parameter in rest:
            parameter.requires_grad_(whole)
        twin.parameters = [*heads, *rest] if whole else heads
        twin._gradient = torch.empty_like(self.values if whole else twin.values)
        twin.skeleton = self._built()
        twin.module = twin._forward()
        return twin

    def adopt_buffers(self, other: FlatModel) -> None:
        """Copy the other models' buffers (BatchNorm's statistics) into these ones'."""
        assert isinstance(other, ManyModel)
        for name, tensor in self.rows.tensors.items():
            if name not in self.names:
                tensor.copy_(other.rows.tensors[name])

    @property
    def parameter_names(self) -> set[str]:
        """Names of all parameters, also of those that are not trained."""
        return set(dict(self.skeleton.named_parameters(remove_duplicate=False)))

    def tensors_of_all(self) -> list[Tensors]:
        """Return copies of each client's tensors, buffers included, in order of the state_dict."""
        arrays = {n: self.rows.tensors[n].detach().cpu().numpy() for n in self._order}
        return [{n: a[k].copy() for n, a in arrays.items()} for k in range(self.clients)]

    def _built(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            return self._variant.build().to(self._device).train()

    def _heads(self) -> int:
        """Return how many parameters fill the head."""
        filled, count = 0, 0
        while filled < self.head:
            filled += int(np.prod(self._shapes[count], dtype=np.int64))
            count += 1
        return count

    def _bound(
        self, values: torch.Tensor, shapes: Sequence[tuple[int, ...]], names: Sequence[str]
    ) -> list[torch.nn.Parameter]:
        """Return parameters [K, ...] that are views of `values`, and put them into the rows."""
        found, place = [], 0
        for shape, name in zip(shapes, names, strict=True):
            size = int(np.prod(shape, dtype=np.int64))
            parameter = torch.nn.Parameter(torch.empty(0, device=values.device))
            # Through .data: a step on the buffer must not count as a change inside a graph.
            parameter.data = values[:, place : place + size].view(self.rows.clients, *shape)
            self.rows.tensors[name] = parameter
            found.append(parameter)
            place += size
        return found

    def _forward(self) -> Callable[[torch.Tensor], torch.Tensor]:
        rows, skeleton = self.rows, self.skeleton
        if self._form == "folded":
            if not fold(skeleton, rows):
                raise ValueError("a layer of the model has no folded form")
            return skeleton

        def one(tensors: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.func.functional_call(skeleton, tensors, (inputs,))
            return result

        mapped = torch.func.vmap(one, randomness="different")

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = mapped(
                rows.tensors, inputs.reshape(rows.clients, -1, *inputs.shape[1:])
            )
            return outputs.flatten(0, 1)

        return forward


def open_many(
    contexts: Sequence[ClientContext],
    variant: str,
    states: Sequence[Mapping[str, npt.NDArray[np.generic]]],
    first: Sequence[str] = (),
) -> ManyModel | None:
    """Return the models of clients that train together; None when their variant has no form.

    Args:
        contexts: the clients'.
        variant: name of the model variant that all of them train.
        states: each client's tensors.
        first: names of parameters to lie at the head of the buffer.
    """
    workload, device = contexts[0].workload, contexts[0].device
    samples = torch.from_numpy(contexts[0].data.train.inputs[:2]).to(device)
    form = form_of(workload, variant, [states[0], states[-1]], samples)
    if not form:
        return None
    return ManyModel(workload.variants()[variant], states, device, form, first)


def form_of(
    workload: Workload,
    name: str,
    states: Sequence[Mapping[str, npt.NDArray[np.generic]]],
    inputs: torch.Tensor,
) -> Form:
    """Return how a variant computes for many clients, tried on a batch once and then known.

    Args:
        workload: has the variant.
        name: of the variant.
        states: tensors of two or more clients' models.
        inputs: samples to try it on, [B, ...].
    """
    known = _forms.setdefault(workload, {})
    key = (name, str(inputs.device))
    if key not in known:
        known[key] = _tried(workload.variants()[name], states[:2], inputs)
    return known[key]


@torch.no_grad()
def _tried(
    variant: Variant, states: Sequence[Mapping[str, npt.NDArray[np.generic]]], inputs: torch.Tensor
) -> Form:
    with torch.random.fork_rng(devices=[]):
        modules = [variant.build() for _ in states]
    if _shares_parameters(modules[0]):
        return ""  # rows would be trained under one of the names alone, and drift apart
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules[0].modules()):
        forms: tuple[Form, ...] = ("folded",)  # a map over clients cannot leave fillers out
    else:
        forms = ("folded", "mapped")
    # Distinct models, whatever the states: a form that mixes clients up must show it.
    trained = {name for name, _ in modules[0].named_parameters()}
    different = [
        {n: _scaled(_shown(v) if n in trained else v, 1 + k) for n, v in state.items()}
        for k, state in enumerate(states)
    ]
    for module, state in zip(modules, different, strict=True):
        load_tensors(module, state)
    expected = torch.cat([m.to(inputs.device).eval()(inputs) for m in modules])
    for form in forms:
        try:
            many = ManyModel(variant, different, str(inputs.device), form)
            many.skeleton.eval()
            found = many.module(inputs.repeat(len(states), *[1] * (inputs.dim() - 1)))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
            continue
        scale = max(1.0, float(expected.abs().max()))
        if found.shape == expected.shape and (found - expected).abs().max() <= TOLERANCE * scale:
            return form
    return ""


def _shares_parameters(module: torch.nn.Module) -> bool:
    """Tell whether a parameter has two names, as tied weights have."""
    names = sum(1 for _ in module.named_parameters(remove_duplicate=False))
    return names != sum(1 for _ in module.parameters())


def _shown(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return a tensor, or small values where it is all zeros: those would hide what lies below."""
    if values.any() or not np.issubdtype(values.dtype, np.floating):
        return values
    pattern = 0.02 * (np.arange(values.size) % 5 - 2.0)
    return pattern.reshape(values.shape).astype(values.dtype)


def _scaled(values: npt.NDArray[np.generic], factor: int) -> npt.NDArray[np.generic]:
    if not np.issubdtype(values.dtype, np.floating):
        return values
    scaled: npt.NDArray[np.generic] = np.divide(values, factor).astype(values.dtype)
    return scaled
