"""A method's local training with a guarantee, in either mode, for any model and set of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from structlog.stdlib import get_logger

from motley.algorithms.base import Broadcast, ClientContext, Tensors, Trained
from motley.errors import DataError, PrivacyError, TrainingError
from motley.models.units import load_tensors, read_tensors
from motley.privacy.checks import check_module, check_types
from motley.privacy.dp_sgd import Descent, private_sgd
from motley.privacy.guarantee import Guarantee
from motley.privacy.release import private_release
from motley.privacy.settings import PrivacySettings, guarantee_of

log = get_logger()


def train_privately(
    module: torch.nn.Module,
    context: ClientContext,
    settings: PrivacySettings,
    broadcast: Broadcast,
    names: Sequence[str],
    train: Callable[[], object],
    descent: Descent,
) -> Trained:
    """Train and return an update that keeps the run's guarantee; the spending is on record before.

    With "ldp-sgd" every parameter that is not uploaded stays as it is: trained without noise it
    would carry data into later uploads. With "release" `train` runs as it is, and noise goes on the
    difference of all uploaded tensors.

    Args:
        module: the model with the task's starting values; changed in place.
        context: the task, its data and the device's ledger.
        settings: the promise and the mechanism, as planned.
        broadcast: what the server knows, as decoded.
        names: the tensors to upload, in order; all among the broadcast's.
        train: the method's own local training of `module`; used with "release".
        descent: how noisy gradients are used; used with "ldp-sgd".

    Raises:
        PrivacyError: the guarantee cannot be given for this model or these tensors.
        PrivacyBudgetError: the run's or the owner's budget does not cover the task.
    """
    guarantee = guarantee_of(settings, context.task.rounds)
    if guarantee is None or settings.noise_multiplier is None or context.privacy is None:
        raise PrivacyError(
            f"run {context.task.run_name} promises privacy without a noise multiplier or a ledger; "
            f"the server plans the first, the device keeps the second"
        )
    unknown = [name for name in names if name not in broadcast.tensors]
    if unknown:
        raise PrivacyError(
            f"{', '.join(unknown)} would be uploaded, and the broadcast does not hold them: a "
            f"personal head is never uploaded in a private run"
        )
    check_module(module)
    check_types({n: p for n, p in module.named_parameters() if n in names})
    key = context.privacy.spend(guarantee, settings.noise_multiplier)
    if guarantee.mode == "ldp-sgd":
        update = _noisy_steps(module, context, settings, broadcast, names, guarantee, descent, key)
    else:
        update = _noisy_release(module, settings, broadcast, names, train, key)
    return Trained(update=update, samples=0)


def _noisy_steps(
    module: torch.nn.Module,
    context: ClientContext,
    settings: PrivacySettings,
    broadcast: Broadcast,
    names: Sequence[str],
    guarantee: Guarantee,
    descent: Descent,
    key: bytes,
) -> Tensors:
    assert settings.noise_multiplier is not None
    first = context.plan.iteration
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    private_sgd(
        module,
        context.data.train,
        context.workload.loss,
        guarantee,
        settings.noise_multiplier,
        key,
        replace(descent, rate=lambda step: descent.rate(first + step)),
        augmentation=context.workload.augmentation,
        microbatch=settings.microbatch,
        progress=context.progress,
    )
    values = read_tensors(module)
    # A buffer has no noise, so it goes back as it came.
    return {n: values[n] if n in parameters else broadcast.tensors[n] for n in names}


def _noisy_release(
    module: torch.nn.Module,
    settings: PrivacySettings,
    broadcast: Broadcast,
    names: Sequence[str],
    train: Callable[[], object],
    key: bytes,
) -> Tensors:
    assert settings.noise_multiplier is not None
    before = read_tensors(module)
    try:
        train()
        values = read_tensors(module)
        if not all(np.isfinite(v).all() for v in values.values()):
            raise TrainingError("a trained value is not finite; lower the learning rate")
    except (DataError, TrainingError) as error:
        # A failure would tell of the data: this client releases noise alone, and learnt nothing.
        log.warning("private_training_diverged", reason=str(error))
        load_tensors(module, before)
        values = before
    trained, received = {name: values[name] for name in names}, broadcast.tensors
    return private_release(trained, received, settings.clip, settings.noise_multiplier, key)
