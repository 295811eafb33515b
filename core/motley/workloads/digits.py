"""scikit-learn's bundled handwritten digits: 1,797 images of 8x8, ten classes.

A data spec is `digits`, with the options of `motley.workloads.selection` behind it:
`digits?clients=6&client=2&classes=4&train=40`. With no options it is the whole set, 70 % of it
for training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.data.draws import Indices
from motley.data.shared import shared
from motley.errors import DataError
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.selection import Selection
from motley.workloads.shares import Share, held_out_share, own_share, pooled_shares
from motley.workloads.variants import image_variants

SIDE, CLASSES, BRIGHTEST = 8, 10, 16
OPTIONS = ("clients", "client", "split", "classes", "alpha", "train", "validate", "seed")
TRAIN = 0.7


class Digits(Workload):
    """Inputs float32 [N, 1, 8, 8] in 0 to 1, targets int64 [N]."""

    def variants(self) -> Mapping[str, Variant]:
        """Return the CNNs in their 8x8 form (same-padding) and an MLP of 64 and 32 units."""
        return image_variants(channels=1, classes=CLASSES, side=SIDE, hidden=(64, 32))

    def load(self, spec: DataSpec) -> LocalData:
        """Return the client's own samples.

        Raises:
            DataError: scikit-learn is not installed, or an option is not one of `OPTIONS`.
        """
        selection = _selection(spec)
        pixels, labels = _read_digits()
        share = own_share(_shares(selection.of_all()), selection)
        return LocalData(
            train=_take(pixels, labels, share.train), test=_take(pixels, labels, share.test)
        )

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test samples of the client that the spec names, else of all clients.

        Raises:
            DataError: as `load`.
        """
        selection = _selection(spec)
        pixels, labels = _read_digits()
        return _take(pixels, labels, held_out_share(_shares(selection.of_all()), selection).test)


def _selection(spec: DataSpec) -> Selection:
    if spec.location != "digits":
        raise DataError(f"data location {spec.location!r}; this workload expects the word 'digits'")
    return Selection.parse(spec, OPTIONS)


@shared
def _shares(selection: Selection) -> list[Share]:
    return pooled_shares(_read_digits()[1], selection, TRAIN)


def _take(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], indices: Indices) -> Split:
    images = pixels[indices].astype(np.float32) / np.float32(BRIGHTEST)
    return Split(images.reshape(-1, 1, SIDE, SIDE), labels[indices])


@shared
def _read_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return (pixels [1797, 64] of 0 to 16, labels [1797])."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; "
            "install it with: pip install 'motley-fl[digits]'"
        )
    # The file itself, where it is in its place: importing scikit-learn takes each client over a
    # second and 90 MB, reading the file a twentieth of that.
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
        return table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels.astype(np.uint8), labels.astype(np.int64)
