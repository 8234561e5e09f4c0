"""The paper's first CNN: two convolutions over time, the mel bands as channels.

On 1292 x 40 features it has 94,450 parameters.

References
----------
Quan, Y. and Dong, M. "Music Emotion Recognition Using Deep Convolutional Neural Networks", 2020.
"""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """conv 32 x 8, pool 4, conv 16 x 8, pool 4, dense 64, dense 2.

    Parameters
    ----------
    n_mels, n_frames : int
        Shape of the features; the dense layer fixes the length.
    """

    def __init__(self, n_mels: int = 40, n_frames: int = 1292) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(n_mels, 32, 8), nn.ReLU(), nn.MaxPool1d(4, 4),
            nn.Conv1d(32, 16, 8), nn.ReLU(), nn.MaxPool1d(4, 4),
        )  # fmt: skip
        n_flat = self.convolutions(torch.zeros(1, n_mels, n_frames)).numel()
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(n_flat, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, n_mels, n_frames) to (batch, 1, 2)."""
        scores: torch.Tensor = self.dense(self.convolutions(features))
        return scores.unsqueeze(1)
