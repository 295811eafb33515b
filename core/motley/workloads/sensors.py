"""Fall detection on SisFall, subjects as clients.

A data spec is the folder that `motley.data.sisfall` reads: `/data/sisfall?subject=SA07` is one
subject, `?clients=38&client=6` the same by number. With fewer clients each has several: client c of
19 has subjects c and c + 19. The skew is real: of the elderly (SE), all but SE06 have no fall.

The first 70 % of the windows of each kind of trial train and the rest tests, so that no stretch of
walking is in both. With `validate=0.2` the last of what trains, a fifth or so, takes the place of
the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from motley.data import sisfall
from motley.data.draws import Indices
from motley.errors import DataError, did_you_mean
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.options import check_known, count, fraction, index, value

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIONS = ("subject", "clients", "client", "train", "validate")
TRAIN = 0.7
SIZES = {"small": ((16, 32), 64), "large": ((32, 64), 128)}


class SisFall(Workload):
    """Inputs float32 [N, 128, 6] in g and radians a second, targets int64 [N]."""

    def __init__(self, activities: bool = True) -> None:
        """Tell nine activities apart, of which the last is a fall; or falls (1) from the rest."""
        self._activities = activities
        self._classes = len(sisfall.ACTIVITIES) if activities else 2

    def variants(self) -> Mapping[str, Variant]:
        """Return a network over time in two sizes."""
        return {
            name: Variant(partial(_cnn, filters=filters, hidden=hidden, classes=self._classes))
            for name, (filters, hidden) in SIZES.items()
        }

    def load(self, spec: DataSpec) -> LocalData:
        """Return the windows of the client's subjects, or of all where the spec names none.

        Raises:
            DataError: the data is missing, an option is unknown, or there is no such subject.
        """
        if "clients" in spec.options and not {"client", "subject"} & set(spec.options):
            raise DataError(
                f"data option client is missing; expected 0 to one below clients="
                f"{spec.options['clients']}"
            )
        train, test = self._splits(spec)
        return LocalData(train, test)

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test windows of the subjects that the spec names, else of all.

        Raises:
            DataError: as `load`.
        """
        return self._splits(spec)[1]

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return for each window whether it is right, and its part in counting falls.

        Recall is a mean over falls alone, and some clients have none, so recalls cannot be
        averaged over clients. What can be are shares of all windows: `fall_share` are falls,
        `fall_found` are falls that were called so, `false_alarm` are none but were called so.
        Over whatever they were averaged, there recall is fall_found / fall_share, and specificity
        1 - false_alarm / (1 - fall_share).
        """
        fall = self._classes - 1
        is_fall, called = targets == fall, outputs.argmax(dim=1) == fall
        return {
            "accuracy": (outputs.argmax(dim=1) == targets).float(),
            "fall_share": is_fall.float(),
            "fall_found": (is_fall & called).float(),
            "false_alarm": (~is_fall & called).float(),
        }

    def _splits(self, spec: DataSpec) -> tuple[Split, Split]:
        source = sisfall.open_set(Path(spec.location))
        share = value(spec.options.get("train"), "train", fraction) or TRAIN
        validate = value(spec.options.get("validate"), "validate", fraction)
        trains, tests = [], []
        for name in chosen_subjects(spec, source.subjects):
            recording = source.recording(name)
            targets = recording.activities
            if not self._activities:
                targets = (targets == len(sisfall.ACTIVITIES) - 1).astype(np.int64)
            train, test = cut_by_code(recording.codes, share)
            if validate is not None:
                kept, held = cut_by_code(recording.codes[train], 1 - validate)
                train, test = train[kept], train[held]
            trains.append((recording.signals[train], targets[train]))
            tests.append((recording.signals[test], targets[test]))
        return _joined(trains), _joined(tests)


def chosen_subjects(spec: DataSpec, names: list[str]) -> list[str]:
    """Return which of the subjects a data spec names; raise DataError when it names none."""
    check_known(spec, OPTIONS)
    subject = spec.options.get("subject")
    clients = value(spec.options.get("clients"), "clients", count)
    client = value(spec.options.get("client"), "client", index)
    if subject is not None:
        if clients is not None or client is not None:
            raise DataError("data options subject and clients exclude each other; give one")
        if subject not in names:
            hint = did_you_mean(subject, names)
            raise DataError(f"no subject is called {subject!r}; there are {', '.join(names)}{hint}")
        return [subject]
    if clients is None:
        if client is not None:
            raise DataError("data option client needs clients, the number of them")
        return names
    if clients > len(names):
        raise DataError(f"clients={clients}; expected 1 to {len(names)}, the number of subjects")
    if client is None:
        return names
    if client >= clients:
        raise DataError(f"data option client={client}; expected 0 to {clients - 1}")
    return names[client::clients]


def cut_by_code(codes: npt.NDArray[np.str_], share: float) -> tuple[Indices, Indices]:
    """Return (train, test), indices into codes [N]: the first of each code train, at least one."""
    train, test = [], []
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        cut = max(1, int(share * len(at)))
        train.append(at[:cut])
        test.append(at[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _joined(parts: list[tuple[np.ndarray, Indices]]) -> Split:
    inputs, targets = zip(*parts, strict=True)
    return Split(np.concatenate(inputs), np.concatenate(targets))


def _cnn(*, filters: tuple[int, int], hidden: int, classes: int) -> nn.Module:
    from motley.models.sensor import SensorCNN

    return SensorCNN(
        width=sisfall.WIDTH,
        channels=sisfall.CHANNELS,
        filters=filters,
        hidden=hidden,
        classes=classes,
    )
