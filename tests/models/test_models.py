"""Promises that every model keeps, and the paper's two in particular."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mer_batch.errors import ConfigError
from mer_batch.feature_sets import feature_set
from mer_batch.models import build_model, model_names

FEATURES_OF = {
    "ensemble": "paper",
    "log_mel_cnn": "log_mel",
    "paper_model1": "paper",
    "paper_model2": "paper",
    "pooled_gp": "log_mel",
}
PARAMETERS_OF: dict[str, dict[str, Any]] = {
    "ensemble": {
        "members": [
            {"model": "paper_model1", "parameters": {}},
            {"model": "paper_model2", "parameters": {}},
        ]
    }
}


@pytest.mark.parametrize("name", model_names())
def test_every_model_maps_features_to_members_and_targets(name: str) -> None:
    features = feature_set(FEATURES_OF[name])
    parameters = PARAMETERS_OF.get(name, {})
    model = build_model(name, parameters)
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
    assert json.loads(json.dumps(parameters)) == parameters, "a card could not hold them"


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


def test_the_cnn_takes_any_length_and_is_small() -> None:
    model = build_model("log_mel_cnn", {})
    assert sum(parameter.numel() for parameter in model.parameters()) == 140_530
    with torch.inference_mode():
        for n_frames in (1, 2, 7, 22, 647):
            assert torch.isfinite(model(torch.randn(2, 80, n_frames))).all()


def test_the_cnn_scores_a_padded_clip_as_it_would_alone() -> None:
    torch.manual_seed(0)
    model = build_model("log_mel_cnn", {})
    clips = [torch.randn(80, n_frames) * 20 - 40 for n_frames in (50, 33, 17)]
    batch = torch.full((3, 80, 50), 1e4)
    for row, clip in enumerate(clips):
        batch[row, :, : clip.shape[1]] = clip
    with torch.inference_mode():
        together = model(batch, torch.tensor([50, 33, 17]))
        alone = torch.cat([model(clip.unsqueeze(0)) for clip in clips])
        unmasked = model(batch)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(unmasked[1:], alone[1:], atol=0.1)


def test_the_cnn_standardises_its_bands_by_itself() -> None:
    model = build_model("log_mel_cnn", {})
    features = torch.randn(2, 80, 40)
    with torch.inference_mode():
        plain = model(features)
        model.centre += torch.linspace(-60, -20, 80)
        model.scale *= 12
        shifted = model(features * 12 + model.centre[:, None])
    torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-4)


def test_an_ensemble_is_its_members_side_by_side() -> None:
    members = [
        {"model": "log_mel_cnn", "parameters": {"channels": [8, 8]}},
        {"model": "pooled_gp", "parameters": {"n_members": 3}},
    ]
    ensemble = build_model("ensemble", {"members": members})
    features = torch.randn(2, 80, 100) * 10 - 40
    with torch.inference_mode():
        outputs = ensemble(features)
        parts = [member(features) for member in ensemble.members]
    assert outputs.shape == (2, 4, 2)
    torch.testing.assert_close(outputs, torch.cat(parts, dim=1))
    # Its weights go through one file and come back.
    again = build_model("ensemble", {"members": members})
    again.load_state_dict(ensemble.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again(features), outputs)
    assert not ensemble.masks_padding


def test_an_ensemble_without_members_or_of_unknown_ones_is_refused() -> None:
    with pytest.raises(ConfigError, match="one or more"):
        build_model("ensemble", {"members": []})
    with pytest.raises(ConfigError, match="one or more"):
        build_model("ensemble", {"members": [{"name": "log_mel_cnn"}]})
    with pytest.raises(ConfigError, match="did you mean 'log_mel_cnn'"):
        build_model("ensemble", {"members": [{"model": "log_mel_cn", "parameters": {}}]})
