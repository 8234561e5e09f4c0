"""What a network has to beat, by name: one file each, on statistics of the same mels.

A baseline is a file with ``build(seed) -> estimator``, scikit-learn's ``fit`` and ``predict`` on
(n_clips, 2 * n_mels) statistics and (n_clips, 2) labels. Baselines are measured, never shipped.
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
    """Mean and deviation over time of every band: what a baseline is shown.

    Parameters
    ----------
    log_mel : Tensor, shape (batch, n_mels, n_frames) [dB]

    Returns
    -------
    Tensor, shape (batch, 2 * n_mels)
    """
    return torch.cat([log_mel.mean(dim=2), log_mel.std(dim=2, unbiased=False)], dim=1)
