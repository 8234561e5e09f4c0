"""What a network has to beat, by name: one file each, on statistics of the same mels.

A baseline is a file with ``build(seed) -> estimator``, scikit-learn's ``fit`` and ``predict`` on
(n_clips, 4 * n_mels) statistics and (n_clips, 2) labels. Baselines are measured, never shipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mer_batch.registry import load_plugin, plugin_names


def build_baseline(name: str, *, seed: int) -> Any:
    """A baseline, not yet fitted.

    Raises
    ------
    ConfigError
        For an unknown name, with the names there are.
    """
    return load_plugin(__name__, name, kind="baseline").build(seed)


def baseline_names() -> list[str]:
    """Names of all baselines."""
    return plugin_names(__name__)


def band_statistics(log_mel: Tensor) -> Tensor:
    """What a baseline is shown of every band.

    Mean, deviation and skewness over time, and the deviation of the change between frames.

    Parameters
    ----------
    log_mel : Tensor, shape (batch, n_mels, n_frames) [dB]

    Returns
    -------
    Tensor, shape (batch, 4 * n_mels)
    """
    mean = log_mel.mean(dim=2)
    centred = log_mel - mean[..., None]
    std = centred.square().mean(dim=2).sqrt()
    skewness = (centred**3).mean(dim=2) / (std**3 + 1e-3)
    change = log_mel.diff(dim=2)
    change_std = change.std(dim=2, unbiased=False) if change.shape[2] else torch.zeros_like(mean)
    return torch.cat([mean, std, skewness, change_std], dim=1)
