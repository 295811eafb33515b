"""Images that are cropped and mirrored at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class CropAndMirror:
    """An `Augmentation` of images [B, channels, height, width].

    Each is shifted by up to `pad` pixels down or up and right or left, and mirrored left to right
    in half of the cases: "4 pixels are padded on each side, and a 32x32 crop is randomly sampled
    from the padded image or its horizontal flip" (He et al., arXiv 1512.03385, section 4.2). What
    comes in from outside is 0, in normalised images the mean.
    """

    def __init__(self, pad: int = 4) -> None:
        self._pad = pad

    def draw(self, generator: np.random.Generator, samples: int) -> npt.NDArray[np.int64]:
        """Return [samples, 3]: first row and column of a crop, 0 to 2·pad; 1: mirrored."""
        places = 2 * self._pad + 1
        return generator.integers(0, (places, places, 2), (samples, 3))

    def apply(self, inputs: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the crops, of the images' own size."""
        import torch

        height, width = inputs.shape[2:]
        padded = torch.nn.functional.pad(inputs, (self._pad,) * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # of all places, in no memory
        first, left, mirrored = drawn.T
        chosen = crops[torch.arange(len(inputs), device=inputs.device), :, first, left]
        return torch.where((mirrored == 1)[:, None, None, None], chosen.flip(3), chosen)
