"""Image sets read from the files in which they are published: MNIST, Fashion-MNIST, CIFAR-10.

A data spec is the folder that holds the files, with the options of `motley.workloads.selection`
behind it: `/data/mnist?clients=50&client=7&classes=4`. The published training part is shared
out over the clients; a client's test samples come from the published test part, of the same
classes in the same proportions. With no options it is the whole set.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from motley.data import cifar, idx
from motley.data.partition import Indices, Labels
from motley.data.shared import shared
from motley.errors import DataError
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.selection import (
    Part,
    Selection,
    Share,
    held_out_share,
    own_share,
    published_shares,
    writer_shares,
)
from motley.workloads.variants import image_variants

CLASSES = 10
OPTIONS = ("clients", "client", "classes", "alpha", "train", "test", "seed")


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
            train=self._take(folder, "train", share.train),
            test=self._take(folder, share.test_part, share.test),
        )

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test samples of the client that the spec names, else of all clients.

        Raises:
            DataError: as `load`.
        """
        folder, selection = Path(spec.location), Selection.parse(spec, self.options)
        share = held_out_share(self._shares(folder, selection.of_all()), selection)
        return self._take(folder, share.test_part, share.test)

    def _take(self, folder: Path, part: Part, indices: Indices) -> Split:
        return Split(self.images(folder, part, indices), self.labels(folder, part)[indices])


class Mnist(PublishedImages):
    """MNIST, or a set in its format: inputs float32 [N, 1, 28, 28] in 0 to 1, targets int64 [N].

    For MNIST itself, `writers=3&qmnist=FOLDER&client=7` makes clients of writers: the stand-in
    for the FEMNIST of QuPeD's section 5 (198 writers, three to a client, ten classes).
    """

    options: ClassVar[tuple[str, ...]] = (*OPTIONS, "writers", "qmnist")
    side: ClassVar[int] = 28

    def variants(self) -> Mapping[str, Variant]:
        """Return the CNNs without padding and an MLP of 128 and 64 units."""
        return image_variants(channels=1, classes=CLASSES, side=self.side, hidden=(128, 64))

    @shared
    def labels(self, folder: Path, part: Part) -> Labels:
        """Read a label file, e.g. `train-labels-idx1-ubyte.gz`."""
        path = idx.find_idx(folder, f"{_stem(part)}-labels-idx1-ubyte")
        labels = idx.read_idx(path)
        if labels.dtype != np.uint8 or labels.ndim != 1 or labels.max(initial=0) >= CLASSES:
            raise DataError(
                f"{path} holds {labels.dtype} {list(labels.shape)}; expected uint8 [N], 0 to 9"
            )
        return labels.astype(np.int64)

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read images of e.g. `train-images-idx3-ubyte.gz`, scaled to 0 to 1."""
        images = self._pixels(folder, part)[indices, None].astype(np.float32)
        images /= np.float32(255)
        return images

    @shared
    def _pixels(self, folder: Path, part: Part) -> npt.NDArray[np.uint8]:
        path = idx.find_idx(folder, f"{_stem(part)}-images-idx3-ubyte")
        pixels = idx.read_idx(path)
        expected = (len(self.labels(folder, part)), self.side, self.side)
        if pixels.dtype != np.uint8 or pixels.shape != expected:
            raise DataError(
                f"{path} holds {pixels.dtype} {list(pixels.shape)}; "
                f"expected uint8 {list(expected)}, an image for each label"
            )
        return pixels.astype(np.uint8, copy=False)

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


class Cifar10(PublishedImages):
    """CIFAR-10, binary version: inputs float32 [N, 3, 32, 32], normalised, targets int64 [N]."""

    mean: ClassVar[tuple[float, float, float]] = (0.4914, 0.4822, 0.4465)
    deviation: ClassVar[tuple[float, float, float]] = (0.2470, 0.2435, 0.2616)
    """Of each channel over the training part, with pixels from 0 to 1."""

    def variants(self) -> Mapping[str, Variant]:
        """Return the CNNs without padding and an MLP of 128 and 64 units."""
        return image_variants(channels=3, classes=CLASSES, side=32, hidden=(128, 64))

    @shared
    def labels(self, folder: Path, part: Part) -> Labels:
        """Read the labels of the part's files."""
        return cifar.read_labels(folder, _files(part))

    def images(self, folder: Path, part: Part, indices: Indices) -> npt.NDArray[np.float32]:
        """Read images, each channel at mean 0 and deviation 1 over the training part."""
        images = cifar.read_images(folder, _files(part), indices).astype(np.float32)
        images /= np.float32(255)
        images -= np.array(self.mean, np.float32)[:, None, None]
        images /= np.array(self.deviation, np.float32)[:, None, None]
        return images


def _stem(part: Part) -> str:
    return "train" if part == "train" else "t10k"


def _files(part: Part) -> tuple[str, ...]:
    return cifar.TRAIN_FILES if part == "train" else cifar.TEST_FILES
