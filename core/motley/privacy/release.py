"""One private release of a whole update: mode "release".

With the broadcast w as this device decoded it, the trained values v, and Δ = v - w over all
uploaded coordinates together:

    sent = w + Δ min(1, C / ||Δ||₂) + N(0, z²C² I)

The norm is one for all tensors. Noise is on every uploaded coordinate, also where Δ is 0. Any local
training may stand before it: nothing but Δ leaves, so its sensitivity is C against a client that
releases noise around the broadcast, and 2C between any two data sets. A Δ that is not finite counts
as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from motley.errors import PrivacyError
from motley.privacy.noise import SecretStream

Array = npt.NDArray[np.generic]


def private_release(
    trained: Mapping[str, Array],
    received: Mapping[str, Array],
    clip: float,
    noise_multiplier: float,
    key: bytes,
) -> dict[str, Array]:
    """Return what may be sent, in the order of `trained`, in the shapes and dtypes received.

    Args:
        trained: values after training, of the uploaded tensors alone.
        received: the broadcast as decoded; holds at least those names.
        clip: C, above 0.
        noise_multiplier: z.
        key: secret of this task alone (`TaskPrivacy.spend`).

    Raises:
        PrivacyError: the server does not know a tensor, so that a difference to it would not hide
            the values; or a tensor has another shape.
    """
    noise = SecretStream(key, "noise")
    deltas: dict[str, npt.NDArray[np.float64]] = {}
    sent: dict[str, Array] = {}
    for name, values in trained.items():
        if name not in received or received[name].shape != values.shape:
            raise PrivacyError(
                f"{name} would be uploaded, and the broadcast holds no such tensor: a difference "
                f"to values that the server lacks gives those values away. A personal head is "
                f"never uploaded in a private run"
            )
        if np.issubdtype(values.dtype, np.floating):
            with np.errstate(invalid="ignore", over="ignore"):
                deltas[name] = values.astype(np.float64) - received[name].astype(np.float64)
    with np.errstate(over="ignore"):
        norm = math.sqrt(sum(float(np.vdot(delta, delta)) for delta in deltas.values()))
    factor = min(1.0, clip / norm) if 0 < norm < math.inf else 0.0
    for name in trained:
        base = received[name]
        if name not in deltas:
            sent[name] = base.copy()  # counters take no noise, so they stay as they came
            continue
        delta = deltas[name] * factor if factor else np.zeros(base.shape)
        drawn = noise_multiplier * clip * noise.gaussian(base.size).reshape(base.shape)
        sent[name] = (base.astype(np.float64) + delta + drawn).astype(base.dtype)
    return sent
