"""Image sets read from the files in which they are published: MNIST, Fashion-MNIST, EMNIST, CIFAR.

A data spec is the folder that holds the files, with the options of `motley.workloads.selection`
behind it: `/data/mnist?clients=50&client=7&classes=4`. The published training part is shared
out over the clients; a client's test samples come from the published test part, of the same
classes in the same proportions. With no options it is the whole set.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from motley.data import cifar, idx
from motley.data.draws import Indices, Labels
from motley.data.shared import shared
from motley.errors import DataError, WorkloadError
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.crops import CropAndMirror
from motley.workloads.selection import Selection
from motley.workloads.shares import (
    Part,
    Share,
    Source,
    held_out_share,
    own_share,
    published_shares,
    writer_shares,
)
from motley.workloads.variants import image_variants

CLASSES = 10
LETTERS = 26
_BLOCK = 1000
"""Images whose pixels are counted at a time."""
OPTIONS = (
    "clients",
    "client",
    "split",
    "classes",
    "alpha",
    "pool",
    "train",
    "test",
    "validate",
    "seed",
)


class PublishedImages(Workload):
    """Base of the sets that are published as a training and a test part."""

    options: ClassVar[tuple[str, ...]] = OPTIONS

    @abstractmethod
    def labels(self, folder: Path, part: Part) -> Labels:
        """Read the labels [N] of one published part; raise DataError when that fails."""

    @abstractmethod
    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read the images [n, channels, side, side] at `indices` of one published part."""

    def shares(self, folder: Path, selection: Selection) -> list[Share]:
        """Return every client's share; raise DataError when the set is too small for it."""
        return published_shares(
            self.labels(folder, "train"), self.labels(folder, "test"), selection
        )

    @shared
    def _shares(self, folder: Path, selection: Selection) -> list[Share]:
        return self.shares(folder, selection)

    def load(self, spec: DataSpec) -> LocalData:
        """Return the client's own samples; only they stay in memory.

        Raises:
            DataError: a file is missing or damaged, or an option is not one of `options`.
        """
        folder, selection = Path(spec.location), Selection.parse(spec, self.options)
        share = own_share(self._shares(folder, selection.of_all()), selection)
        return LocalData(
            train=self._take(folder, share.train_of, share.train),
            test=self._take(folder, share.test_of, share.test),
        )

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test samples of the client that the spec names, else of all clients.

        Raises:
            DataError: as `load`.
        """
        folder, selection = Path(spec.location), Selection.parse(spec, self.options)
        share = held_out_share(self._shares(folder, selection.of_all()), selection)
        return self._take(folder, share.test_of, share.test)

    def _take(self, folder: Path, source: Source, indices: Indices) -> Split:
        if source != "joined":
            return Split(self.images(folder, source, indices), self.labels(folder, source)[indices])
        ahead = len(self.labels(folder, "train"))
        cut = int(np.searchsorted(indices, ahead))
        first = self._take(folder, "train", indices[:cut])
        behind = self._take(folder, "test", indices[cut:] - ahead)
        return Split(
            np.concatenate([first.inputs, behind.inputs]),
            np.concatenate([first.targets, behind.targets]),
        )


class Mnist(PublishedImages):
    """MNIST, or a set in its format: inputs float32 [N, 1, 28, 28], targets int64 [N].

    Inputs are in 0 to 1, or standardised. For MNIST itself,
    `split=writers&qmnist=FOLDER&client=7` makes clients of writers: the stand-in for the FEMNIST of
    QuPeD's section 5 (198 writers, three to a client, ten classes). `train=203-336&test=25-40` cuts
    clients to the sizes that the paper gives.
    """

    options: ClassVar[tuple[str, ...]] = (*OPTIONS, "writers", "qmnist")
    side: ClassVar[int] = 28

    def __init__(self, standardised: bool = False) -> None:
        """`standardised` comes from `[workload.arguments]` in the run file.

        Pixels then have mean 0 and deviation 1 over the set's published training part.

        Raises:
            WorkloadError: it is neither true nor false.
        """
        if not isinstance(standardised, bool):
            raise WorkloadError(f"standardised is {standardised!r}; expected true or false")
        self._standardised = standardised

    def variants(self) -> Mapping[str, Variant]:
        """Return the CNNs without padding, MLPs and ResNets."""
        return image_variants(channels=1, classes=CLASSES, side=self.side, hidden=(128, 64))

    def labels(self, folder: Path, part: Part) -> Labels:
        """Read a label file, e.g. `train-labels-idx1-ubyte.gz`."""
        path = idx.find_idx(folder, f"{_stem(part)}-labels-idx1-ubyte")
        return _grey_labels(path, 0, CLASSES - 1)

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read images of e.g. `train-images-idx3-ubyte.gz`, from 0 to 1 or standardised."""
        images = _grey_images(*self._file(folder, part), self.side, indices)
        if self._standardised:
            mean, deviation = _moments(*self._file(folder, "train"), self.side)
            images -= np.float32(mean)
            images /= np.float32(deviation)
        return images

    def _file(self, folder: Path, part: Part) -> tuple[Path, int]:
        """Return the file of a part's images, and how many there are by its labels."""
        path = idx.find_idx(folder, f"{_stem(part)}-images-idx3-ubyte")
        return path, len(self.labels(folder, part))

    def shares(self, folder: Path, selection: Selection) -> list[Share]:
        """Return every client's share, by writers when the selection asks for them."""
        if selection.qmnist is None:
            return super().shares(folder, selection)
        path = idx.find_idx(Path(selection.qmnist), "qmnist-train-labels-idx2-int")
        rows = idx.read_qmnist_labels(path).astype(np.int64)
        labels = self.labels(folder, "train")
        if not np.array_equal(rows[:, idx.CLASS_COLUMN], labels):
            raise DataError(
                f"the classes in {path} are not the labels in {folder}; "
                f"QMNIST's writers are those of MNIST's training part"
            )
        return writer_shares(rows[:, idx.WRITER_COLUMN], labels, selection)


class EmnistLetters(PublishedImages):
    """EMNIST's letters: inputs float32 [N, 1, 28, 28] in 0 to 1, upright, targets int64 [N].

    Published labels count from 1 (A); targets count from 0, and letters behind the first
    `letters` are left out. FedP3's experiments take ten, A to J (Cohen et al., arXiv 1702.05373).
    """

    side: ClassVar[int] = 28

    def __init__(self, letters: int = CLASSES) -> None:
        """`letters` comes from `[workload.arguments]` in the run file.

        Raises:
            WorkloadError: it is not 2 to 26.
        """
        if not 2 <= letters <= LETTERS:
            raise WorkloadError(f"letters is {letters}; expected 2 to {LETTERS}")
        self._letters = letters

    def variants(self) -> Mapping[str, Variant]:
        """Return MNIST's variants with a logit for each letter."""
        return image_variants(channels=1, classes=self._letters, side=self.side, hidden=(128, 64))

    def labels(self, folder: Path, part: Part) -> Labels:
        """Read the labels of the letters in use, e.g. `emnist-letters-train-labels-idx1-ubyte`."""
        labels = self._published_labels(folder, part)
        return labels[labels <= self._letters] - 1

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read images of the letters in use, scaled to 0 to 1."""
        labels = self._published_labels(folder, part)
        rows = np.flatnonzero(labels <= self._letters)[indices]
        path = idx.find_idx(folder, f"emnist-letters-{part}-images-idx3-ubyte")
        # Published column by column: turned, so that rows of pixels are rows of the letter.
        images = _grey_images(path, len(labels), self.side, rows)
        return np.ascontiguousarray(images.swapaxes(2, 3))

    def _published_labels(self, folder: Path, part: Part) -> Labels:
        path = idx.find_idx(folder, f"emnist-letters-{part}-labels-idx1-ubyte")
        return _grey_labels(path, 1, LETTERS)


class Cifar10(PublishedImages):
    """CIFAR-10, binary version: inputs float32 [N, 3, 32, 32], normalised, targets int64 [N]."""

    layout: ClassVar[cifar.Layout] = cifar.CIFAR10
    mean: ClassVar[tuple[float, float, float]] = (0.4914, 0.4822, 0.4465)
    deviation: ClassVar[tuple[float, float, float]] = (0.2470, 0.2435, 0.2616)
    """Of each channel over the training part, with pixels from 0 to 1."""

    def __init__(self, augmented: bool = False) -> None:
        """`augmented` comes from `[workload.arguments]` in the run file.

        Training images are then cropped and mirrored at random each time that they are drawn.

        Raises:
            WorkloadError: it is neither true nor false.
        """
        if not isinstance(augmented, bool):
            raise WorkloadError(f"augmented is {augmented!r}; expected true or false")
        self.augmentation = CropAndMirror() if augmented else None

    def variants(self) -> Mapping[str, Variant]:
        """Return the CNNs without padding, MLPs and ResNets."""
        return image_variants(channels=3, classes=self.layout.classes, side=32, hidden=(128, 64))

    @shared
    def labels(self, folder: Path, part: Part) -> Labels:
        """Read the labels of the part's files."""
        return cifar.read_labels(folder, self.layout, part)

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read images, each channel at mean 0 and deviation 1 over the training part."""
        images = cifar.read_images(folder, self.layout, part, indices).astype(np.float32)
        images /= np.float32(255)
        images -= np.array(self.mean, np.float32)[:, None, None]
        images /= np.array(self.deviation, np.float32)[:, None, None]
        return images


class Cifar100(Cifar10):
    """CIFAR-100, binary version, by its 100 fine labels; else as CIFAR-10."""

    layout: ClassVar[cifar.Layout] = cifar.CIFAR100
    mean: ClassVar[tuple[float, float, float]] = (0.5071, 0.4865, 0.4409)
    deviation: ClassVar[tuple[float, float, float]] = (0.2673, 0.2564, 0.2762)


@shared
def _grey_labels(path: Path, low: int, high: int) -> Labels:
    """Return the labels [N] of an IDX file, which are `low` to `high`."""
    labels = idx.read_idx(path)
    if (
        labels.dtype != np.uint8
        or labels.ndim != 1
        or labels.max(initial=low) > high
        or labels.min(initial=low) < low
    ):
        raise DataError(
            f"{path} holds {labels.dtype} {list(labels.shape)}; expected uint8 [N], {low} to {high}"
        )
    return labels.astype(np.int64)


def _grey_images(path: Path, count: int, side: int, rows: Indices) -> npt.NDArray[np.float32]:
    """Return the images [n, 1, side, side] at `rows` of an IDX file of `count`, in 0 to 1."""
    images = _grey_pixels(path, count, side)[rows, None].astype(np.float32)
    images /= np.float32(255)
    return images


@shared
def _moments(path: Path, count: int, side: int) -> tuple[float, float]:
    """Return mean and deviation of all pixels of an IDX file, scaled to 0 to 1.

    Of counts of the 256 values, so that every machine gets the same bits.
    """
    counts, pixels = np.zeros(256, np.int64), _grey_pixels(path, count, side)
    for start in range(0, count, _BLOCK):  # bincount copies what it counts, eight times as wide
        counts += np.bincount(pixels[start : start + _BLOCK].reshape(-1), minlength=256)
    values = np.arange(256)
    total = int(counts.sum()) or 1
    mean = int(counts @ values) / total
    variance = int(counts @ values**2) / total - mean**2
    return mean / 255, math.sqrt(variance) / 255 or 1.0


@shared
def _grey_pixels(path: Path, count: int, side: int) -> npt.NDArray[np.uint8]:
    """Return the images [count, side, side] of an IDX file."""
    pixels = idx.read_idx(path)
    expected = (count, side, side)
    if pixels.dtype != np.uint8 or pixels.shape != expected:
        raise DataError(
            f"{path} holds {pixels.dtype} {list(pixels.shape)}; "
            f"expected uint8 {list(expected)}, an image for each label"
        )
    return pixels.astype(np.uint8, copy=False)


def _stem(part: Part) -> str:
    return "train" if part == "train" else "t10k"
