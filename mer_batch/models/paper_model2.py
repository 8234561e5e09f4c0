"""The paper's second CNN: six small convolutions over time, the mel bands as channels.

On 1292 x 40 features it has 22,066 parameters.

References
----------
Quan, Y. and Dong, M. "Music Emotion Recognition Using Deep Convolutional Neural Networks", 2020.
"""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """Six pairs of a size-4 convolution and a size-2 pooling, then dense 64, dense 2.

    Parameters
    ----------
    n_mels, n_frames : int
        Shape of the features; the dense layer fixes the length.
    """

    def __init__(self, n_mels: int = 40, n_frames: int = 1292) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_channels = n_mels
        for n_filters in (32, 32, 16, 16, 8, 8):
            layers += [nn.Conv1d(n_channels, n_filters, 4), nn.ReLU(), nn.MaxPool1d(2, 2)]
            n_channels = n_filters
        self.convolutions = nn.Sequential(*layers)
        n_flat = self.convolutions(torch.zeros(1, n_mels, n_frames)).numel()
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(n_flat, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, n_mels, n_frames) to (batch, 1, 2)."""
        scores: torch.Tensor = self.dense(self.convolutions(features))
        return scores.unsqueeze(1)
