"""Models by name: one file each, defining ``Model``, a torch module.

Every model takes features, shape ``(batch, n_mels, n_frames)`` float32 in its feature set's
unit, and returns ``(batch, n_members, 2)``: valence and arousal (``schema.TARGETS``) of each
member of the ensemble. A single network has one member. Its constructor takes keyword arguments
that JSON can hold; they are kept in the checkpoint's card.
"""

from __future__ import annotations

from typing import Any

import torch

from mer_batch.errors import ConfigError
from mer_batch.registry import load_plugin, plugin_names


def model_class(name: str) -> type[torch.nn.Module]:
    """The class of a model.

    Raises
    ------
    ConfigError
        For an unknown name, with the names there are.
    """
    found: type[torch.nn.Module] = load_plugin(__name__, name, kind="model").Model
    return found


def build_model(name: str, parameters: dict[str, Any]) -> torch.nn.Module:
    """Build a model, its weights not yet set.

    Raises
    ------
    ConfigError
        For an unknown name, or parameters that the model does not take.
    """
    try:
        model = model_class(name)(**parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model {name!r} refuses parameters={parameters!r}: {error}") from error
    return model.eval()


def model_names() -> list[str]:
    """Names of all models."""
    return plugin_names(__name__)
