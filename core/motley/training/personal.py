"""A client's personal state: plain named tensors between tasks, an `AlternatingModel` in one.

| tensor | holds |
|---|---|
| `model/NAME` | a tensor of the model in full precision, buffers included |
| `centres/NAME` | centres of a quantized tensor, [m] |
| `sharpness/NAME` | its soft quantizer's constant P, [1] |
| `longest/NAME` | the longest pull of its centres, [1] |
| `codes/NAME` | in fine-tuning: the centre that each weight follows, uint8, in NAME's shape |
| `penalty` | λ₀, float64 [1] |
| `centre_updates` | updates of a centre that moved it, and all of them, int64 [2] |

In full precision there are `model/` tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from motley.algorithms.base import ClientContext
from motley.errors import PlanError
from motley.models.units import fresh_tensors, unit_of, variant_table
from motley.plan import FULL_PRECISION, Plan
from motley.quantize.cells import nearest_cells
from motley.quantize.codebooks import Codebooks, lay_out
from motley.quantize.rules import CentreRules
from motley.seeding import derive
from motley.training.alternating import AlternatingModel
from motley.training.flat import FlatModel
from motley.training.many import open_many
from motley.training.proximity import Anchor
from motley.workload import Variant

Array = npt.NDArray[np.generic]
Codes = npt.NDArray[np.uint8]
Tensors = dict[str, Array]


def initial_tensors(variant: Variant, name: str, run_seed: int) -> Tensors:
    """Return x⁰, the same for every client of a variant, and w⁰ where the variant is the global."""
    return fresh_tensors(variant, derive(run_seed, "init", name))


def full_precision_state(tensors: Mapping[str, Array]) -> Tensors:
    """Return the state of a model without quantized tensors."""
    return {f"model/{name}": values for name, values in tensors.items()}


def quantized_state(
    tensors: Mapping[str, Array], counts: Mapping[str, int], rules: CentreRules
) -> Tensors:
    """Return the first state of a model with `counts[NAME]` centres for its quantized tensors."""
    layers = lay_out([(name, tensors[name].size, count) for name, count in counts.items()])
    flat = [torch.from_numpy(np.ascontiguousarray(tensors[name]).reshape(-1)) for name in counts]
    codebooks = Codebooks.fresh(layers, torch.cat(flat).unsqueeze(0), rules)
    return {**full_precision_state(tensors), **_codebook_tensors(codebooks)[0]}


def quantized_counts(variant: Variant, plan: Plan, override: int = 0) -> dict[str, int]:
    """Return the number of centres of each tensor that the plan quantizes: 2^bits, or `override`.

    Raises:
        PlanError: the plan gives a bit-width to a unit that has no quantized tensor.
    """
    low = {unit: bits for unit, bits in plan.bits.items() if bits != FULL_PRECISION}
    if not low:
        return {}
    table = variant_table(variant)
    for unit in low:
        if unit not in table.quantized_units:
            raise PlanError(
                f"the plan quantizes unit {unit!r} of variant {plan.variant!r}; "
                f"its quantized units are {', '.join(table.quantized_units) or 'none'}"
            )
    return {
        row.name: override or 2 ** low[row.unit]
        for row in table
        if row.quantized and row.unit in low
    }


def check_counts(
    state: Mapping[str, Array], variant: Variant, plan: Plan, override: int = 0
) -> None:
    """Raise PlanError unless the state has the centres that the plan asks for."""
    wanted = {u: override or 2**bits for u, bits in plan.bits.items() if bits != FULL_PRECISION}
    centres = _under(state, "centres")
    found = {unit_of(name, variant.units or {}): c.size for name, c in centres.items()}
    if wanted != found:
        raise PlanError(
            f"the plan asks for {wanted or 'no'} centres by unit, the personal state has "
            f"{found or 'none'}; a client's bit-widths cannot change within a run"
        )


def first_records(penalty: float) -> Tensors:
    """Return the tensors that hold λ₀ and the count of centre updates, at the start of a run."""
    return {
        "penalty": np.array([penalty], np.float64),
        "centre_updates": np.zeros(2, np.int64),
    }


def open_state(
    state: Mapping[str, Array],
    variant: Variant,
    rules: CentreRules,
    device: str,
    anchor: Anchor | None = None,
) -> AlternatingModel:
    """Return the model of a state, ready to be trained, tied to the anchor if there is one.

    Raises:
        UpdateError: the state's tensors are not those of the variant.
    """
    names = list(_under(state, "centres"))
    model = FlatModel.build(variant, _under(state, "model"), device, names)
    return _opened([state], model, rules, anchor)


def open_states(
    states: Sequence[Mapping[str, Array]],
    contexts: Sequence[ClientContext],
    rules: CentreRules,
    anchor: Anchor | None = None,
) -> AlternatingModel | None:
    """Return the models of K clients' states, which hold the same tensors, to train together.

    None where their variant cannot be trained so.
    """
    names = list(_under(states[0], "centres"))
    models = [_under(state, "model") for state in states]
    many = open_many(contexts, contexts[0].plan.variant, models, names)
    return None if many is None else _opened(states, many, rules, anchor)


def _opened(
    states: Sequence[Mapping[str, Array]],
    model: FlatModel,
    rules: CentreRules,
    anchor: Anchor | None,
) -> AlternatingModel:
    first, device = states[0], model.values.device
    names = list(_under(first, "centres"))
    if not names:
        return AlternatingModel(model, None, rules, anchor)
    sizes = [(n, first[f"model/{n}"].size, first[f"centres/{n}"].size) for n in names]
    joined = [
        torch.from_numpy(
            np.stack([np.concatenate(list(_under(state, kind).values())) for state in states])
        ).to(device)
        for kind in ("centres", "sharpness", "longest")
    ]
    codebooks = Codebooks(lay_out(sizes), *joined)
    if _under(first, "codes"):
        codebooks.freeze(
            [
                torch.from_numpy(
                    np.stack([state[f"codes/{n}"].reshape(-1) for state in states])
                ).to(device)
                for n in names
            ]
        )
    return AlternatingModel(model, codebooks, rules, anchor)


def close_state(model: AlternatingModel, before: Mapping[str, Array]) -> Tensors:
    """Return a model's new state; λ₀ and the update counts go on from the state `before`."""
    return close_states(model, [before])[0]


def close_states(model: AlternatingModel, befores: Sequence[Mapping[str, Array]]) -> list[Tensors]:
    """Return `close_state` of each of K clients."""
    if model.anchor is not None:
        # The shared model never sees data: its layers' statistics are the personal model's.
        model.anchor.model.adopt_buffers(model.model)
    codebooks, tensors = model.codebooks, model.model.tensors_of_all()
    if codebooks is None:
        return [full_precision_state(own) for own in tensors]
    if not codebooks.frozen:
        # What is deployed is the quantized model: its statistics are kept, not x's.
        parameters = model.model.parameter_names
        for own, statistics in zip(tensors, model.quantized.tensors_of_all(), strict=True):
            own.update((n, statistics[n]) for n in own if n not in parameters)
    codes = _rows(codebooks.codes() if codebooks.frozen else (), len(tensors))
    moved, updates = codebooks.moved.cpu().numpy(), int(codebooks.updates)
    states = []
    for row, (own, centres) in enumerate(zip(tensors, _codebook_tensors(codebooks), strict=True)):
        state = {**full_precision_state(own), **centres}
        for layer, cells in zip(codebooks.layers, codes[row], strict=False):
            state[f"codes/{layer.name}"] = cells.reshape(own[layer.name].shape)
        counted = befores[row]["centre_updates"].astype(np.int64)
        counted += np.array([moved[row], updates])
        states.append({**state, "penalty": befores[row]["penalty"], "centre_updates": counted})
    return states


def codes_and_centres(state: Mapping[str, Array]) -> dict[str, tuple[Codes, Array]]:
    """Return each quantized tensor's codes (uint8, in its shape) and centres [m]."""
    found = {}
    for name, centres in _under(state, "centres").items():
        weights = state[f"model/{name}"]
        if f"codes/{name}" in state:
            codes = state[f"codes/{name}"].astype(np.uint8)
        else:
            flat = torch.from_numpy(np.ascontiguousarray(weights).reshape(1, -1))
            row = torch.from_numpy(centres.copy()).unsqueeze(0)
            codes = nearest_cells(flat, row).codes().numpy().reshape(weights.shape)
        found[name] = (codes, centres)
    return found


def deployed_tensors(state: Mapping[str, Array]) -> Tensors:
    """Return the tensors of the personal model as it is used: Q_c(x), hard-quantized."""
    tensors = _under(state, "model")
    for name, (codes, centres) in codes_and_centres(state).items():
        tensors[name] = centres[codes]
    return tensors


def mean_distance(state: Mapping[str, Array]) -> float:
    """Return the mean of |x - Q_c(x)| over all quantized weights."""
    total, count = 0.0, 0
    for name, (codes, centres) in codes_and_centres(state).items():
        apart = np.abs(np.subtract(state[f"model/{name}"], centres[codes], dtype=np.float64))
        total, count = total + float(apart.sum()), count + apart.size
    return total / count if count else 0.0


def _under(state: Mapping[str, Array], kind: str) -> Tensors:
    """Return the state's tensors of one kind by name, in order."""
    prefix = f"{kind}/"
    return {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}


def _codebook_tensors(codebooks: Codebooks) -> list[Tensors]:
    """Return the tensors that hold each client's centres and their constants."""
    names, values = [], []
    for number, layer in enumerate(codebooks.layers):
        names += [f"{kind}/{layer.name}" for kind in ("centres", "sharpness", "longest")]
        own = slice(number, number + 1)
        values += [
            codebooks.centres[:, layer.centres],
            codebooks.sharpness[:, own],
            codebooks.bounds[:, own],
        ]
    rows = _rows(values, len(codebooks.centres))
    return [dict(zip(names, row, strict=True)) for row in rows]


def _rows(tensors: Sequence[torch.Tensor], count: int) -> list[list[Array]]:
    """Return each client's rows of tensors [K, ...], read from the device once for all clients."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    return [[array[row].copy() for array in arrays] for row in range(count)]
