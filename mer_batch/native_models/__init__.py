"""Models that score without torch: a file each, beside the torch module of the same name.

Each defines ``Model``, built of the card's parameters and the checkpoint's weights, which is a
``Function`` of features: in our compiled code it takes a sixth of torch's time, and a process that
only scores does not import torch, which takes a second. What a model has no file for, torch scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from mer_batch.audio.native import library
from mer_batch.registry import load_plugin, plugin_names

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

#: Features, float32 of shape (batch, n_mels, n_frames), to float64 of shape (batch, n_members, 2).
Function = Callable[[Float32], Float64]


def native_model(name: str, parameters: dict[str, Any], packed: bytes) -> Function | None:
    """A model as a function of features, None where torch is to score.

    Parameters
    ----------
    name : str
    parameters : dict
        Of the torch module's constructor.
    packed : bytes
        The weights, as safetensors.

    Raises
    ------
    ValueError, TypeError
        Where the weights do not fit the parameters, or the parameters the model.
    safetensors.SafetensorError
    """
    if library() is None or name not in plugin_names(__name__):
        return None
    try:
        weights = safetensors.numpy.load(packed)
    except (KeyError, TypeError):  # of a kind of number that NumPy has not
        return None
    model: Function = load_plugin(__name__, name, kind="native model").Model(parameters, weights)
    return model
