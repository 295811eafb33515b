"""A text classifier: the mean of its tokens' embeddings, and one linear layer.

The model of QuPeD's language task, as its released code suggests (an embedding bag, after
Joulin et al., arXiv 1607.01759): low bit-widths apply to the embedding, the last layer keeps full
precision.
"""

from __future__ import annotations

import torch
from torch import nn

PADDING = 0
SPREAD = 0.5
"""Embeddings start evenly between minus this and this."""


class EmbeddingBag(nn.Module):
    """Layers `embedding` [vocabulary, width] and `fc`."""

    def __init__(self, *, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        # Not torch's EmbeddingBag: it takes no batch of clients (torch.func.vmap).
        self.embedding = nn.Embedding(vocabulary, width)
        self.fc = nn.Linear(width, classes)
        nn.init.uniform_(self.embedding.weight, -SPREAD, SPREAD)

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] of tokens [B, L]; those that are 0 are padding."""
        counts = (tokens_BL != PADDING).to(self.embedding.weight.dtype)
        # By weights and not by a zero row: a quantized row 0 is not zero.
        shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (self.embedding(tokens_BL) * shares.unsqueeze(2)).sum(dim=1)
        logits: torch.Tensor = self.fc(mean)
        return logits
