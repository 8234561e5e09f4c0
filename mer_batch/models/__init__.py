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
from mer_batch.native_models import Float32, Float64, Function
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


def on_device(model: torch.nn.Module, device: str) -> Function:
    """A model as a function of features that are not torch's."""
    if device != "cpu":
        # Half of the digits would go, and scores would not be those of a CPU.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    model = model.to(device)

    def outputs(features: Float32) -> Float64:
        with torch.inference_mode():
            found: Float64 = model(torch.from_numpy(features).to(device)).double().cpu().numpy()
        return found

    return outputs


def model_names() -> list[str]:
    """Names of all models."""
    return plugin_names(__name__)
