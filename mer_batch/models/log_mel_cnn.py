"""A small CNN on log-mel spectrograms of any length: normalised, regularised, pooled over time.

What the paper's networks lack: inputs on one scale, batch normalisation, dropout, and an output
that does not depend on where in the clip something happens. On 80 bands it has 140,530 parameters.

References
----------
Ioffe, S. and Szegedy, C. "Batch Normalization", ICML 2015.
Choi, K., Fazekas, G. and Sandler, M. "Automatic Tagging Using Deep Convolutional Neural
Networks", ISMIR 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """Blocks of a 3 x 3 convolution and a 2 x 2 pooling, then mean and maximum over time.

    Parameters
    ----------
    n_mels : int
        Bands of the features.
    channels : sequence of int
        Of each block; each halves bands and frames.
    n_hidden : int
        Units of the dense layer before the output.
    dropout : float
        Share of the pooled values and of the hidden units that a training step leaves out.
    """

    #: The second argument of `forward` tells real frames from padding.
    masks_padding = True

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        n_mels: int = 80,
        channels: Sequence[int] = (16, 32, 64, 96),
        n_hidden: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not channels or n_mels < 2 ** len(channels):
            raise ValueError(
                f"n_mels={n_mels} must be at least 2 ** len(channels)={2 ** len(channels)}, with "
                "one block or more"
            )
        self.register_buffer("centre", torch.zeros(n_mels))
        self.register_buffer("scale", torch.ones(n_mels))
        blocks = []
        n_channels, n_bands = 1, n_mels
        for n_filters in channels:
            blocks.append(
                nn.Sequential(
                    # Batch normalisation takes the mean away again: a bias would have no effect.
                    nn.Conv2d(n_channels, n_filters, 3, padding=1, bias=False),
                    nn.BatchNorm2d(n_filters),
                    nn.ReLU(),
                )
            )
            n_channels, n_bands = n_filters, -(-n_bands // 2)
        self.blocks = nn.ModuleList(blocks)
        # Rounding up, a clip of one frame is enough.
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.dense = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * n_channels * n_bands, n_hidden), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(n_hidden, 2),
        )  # fmt: skip

    def forward(self, features: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """(batch, n_mels, n_frames) [dB] to (batch, 1, 2).

        With `n_frames`, int64, shape (batch,), what lies behind a clip's own frames is not looked
        at: the clip scores as it would alone.
        """
        values = (features - self.centre[:, None]) / self.scale[:, None]
        values, lengths = values.unsqueeze(1), n_frames
        values = _masked(values, lengths)
        for block in self.blocks:
            # Zeros are what the convolution sees beyond an edge, and never the largest of a window.
            values = self.pool(_masked(block(values), lengths))
            lengths = None if lengths is None else (lengths + 1) // 2
        largest = values.amax(dim=3)
        if lengths is None:
            mean = values.mean(dim=3)
        else:
            mean = values.sum(dim=3) / lengths[:, None, None].to(values.dtype)
        pooled = torch.cat([mean, largest], dim=1).flatten(1)
        scores: Tensor = self.dense(pooled)
        return scores.unsqueeze(1)


def _masked(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, channels, bands, frames) with zeros behind each clip's own frames."""
    if lengths is None:
        return values
    real = torch.arange(values.shape[3], device=values.device) < lengths[:, None]
    return values * real[:, None, None, :]
