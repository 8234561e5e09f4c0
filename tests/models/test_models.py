"""Promises that every model keeps, and the paper's two in particular."""

from __future__ import annotations

import json

import pytest
import torch

from mer_batch.errors import ConfigError
from mer_batch.feature_sets import feature_set
from mer_batch.models import build_model, model_names

FEATURES_OF = {"paper_model1": "paper", "paper_model2": "paper", "pooled_gp": "log_mel"}


@pytest.mark.parametrize("name", model_names())
def test_every_model_maps_features_to_members_and_targets(name: str) -> None:
    features = feature_set(FEATURES_OF[name])
    model = build_model(name, {})
    torch.manual_seed(0)
    batch = torch.randn(3, features.mel.n_mels, features.segment_frames) * 10 - 40
    with torch.inference_mode():
        scores = model(batch)
        alone = torch.cat([model(batch[i : i + 1]) for i in range(3)])
    assert scores.shape[0] == 3
    assert scores.shape[2] == 2
    assert scores.dtype == torch.float32
    # A track's score must not depend on what it is batched with.
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)
    assert not model.training
    json.dumps({})


@pytest.mark.parametrize("name, n_parameters", [("paper_model1", 94_450), ("paper_model2", 22_066)])
def test_the_papers_models_have_the_papers_size(name: str, n_parameters: int) -> None:
    model = build_model(name, {"n_mels": 40, "n_frames": 1292})
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_the_papers_first_model_has_the_papers_layers() -> None:
    shapes = [tuple(p.shape) for p in build_model("paper_model1", {}).parameters() if p.dim() > 1]
    assert shapes == [(32, 40, 8), (16, 32, 8), (64, 1248), (2, 64)]


def test_the_papers_second_model_has_the_papers_layers() -> None:
    shapes = [tuple(p.shape) for p in build_model("paper_model2", {}).parameters() if p.dim() > 1]
    assert shapes == [
        (32, 40, 4), (32, 32, 4), (16, 32, 4), (16, 16, 4), (8, 16, 4), (8, 8, 4),
        (64, 136), (2, 64),
    ]  # fmt: skip


def test_unknown_models_and_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'paper_model[12]'"):
        build_model("paper_model", {})
    with pytest.raises(ConfigError, match="n_bands"):
        build_model("paper_model1", {"n_bands": 40})
    with pytest.raises(ConfigError, match="n_frames"):
        build_model("paper_model1", {"n_frames": 5})
