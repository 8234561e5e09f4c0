"""Models that score without torch, beside the torch modules of the same names."""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from mer_batch import native_models
from mer_batch.audio import native
from mer_batch.checkpoint import Checkpoint, builtin_checkpoint
from mer_batch.errors import CheckpointError
from mer_batch.models import model_class, model_names, on_device
from mer_batch.native_models import native_model, pooled_gp
from mer_batch.registry import plugin_names
from tests.test_checkpoint import load, save

needs_library = pytest.mark.skipif(native.library() is None, reason="no C compiler was there")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return builtin_checkpoint()


def features(n: int, n_frames: int = 646, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(-40, 15, (n, 80, n_frames)).astype(np.float32)


def changed(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """With other weights or parameters, and a card that names them."""
    changes = dict(changes)
    parameters = changes.pop("parameters", {})
    weights = safetensors.numpy.load(checkpoint.weights) | changes
    packed = safetensors.numpy.save({k: v for k, v in weights.items() if v is not None})
    return with_weights(checkpoint, packed, parameters)


def with_weights(
    checkpoint: Checkpoint, packed: bytes, parameters: dict[str, Any] | None = None
) -> Checkpoint:
    card = json.loads(checkpoint.card_json)
    card["parameters"] |= parameters or {}
    card["weights_sha256"] = hashlib.sha256(packed).hexdigest()
    return Checkpoint(json.dumps(card).encode(), packed, origin="here")


def test_each_is_the_twin_of_a_torch_module() -> None:
    assert set(plugin_names(native_models.__name__)) <= set(model_names())


def test_parameters_are_those_of_the_torch_module() -> None:
    expected = inspect.signature(model_class("pooled_gp")).parameters.values()
    found = {field.name: field.default for field in fields(pooled_gp._Parameters)}
    assert found == {parameter.name: parameter.default for parameter in expected}


@needs_library
@pytest.mark.parametrize("n_frames", [3, 100, 646])
def test_scores_are_those_of_torch(checkpoint: Checkpoint, n_frames: int) -> None:
    shown = features(20, n_frames)
    by_torch = on_device(checkpoint.build(), "cpu")(shown)
    found = checkpoint.function()(shown)
    assert found.shape == by_torch.shape == (20, 16, 2)
    assert by_torch.std() > 0.05
    np.testing.assert_allclose(found, by_torch, atol=2e-5)


@needs_library
@pytest.mark.parametrize("n_members, n_landmarks", [(1, 1), (3, 13), (16, 640)])
def test_sizes_that_are_no_whole_vectors(
    checkpoint: Checkpoint, n_members: int, n_landmarks: int
) -> None:
    weights = safetensors.numpy.load(checkpoint.weights)
    smaller = changed(
        checkpoint,
        parameters={"n_members": n_members, "n_landmarks": n_landmarks},
        landmarks=weights["landmarks"][:n_landmarks].copy(),
        coefficients=weights["coefficients"][:n_landmarks, : 2 * n_members].copy(),
        intercepts=weights["intercepts"][: 2 * n_members].copy(),
    )
    shown = features(5)
    by_torch = on_device(smaller.build(), "cpu")(shown)
    np.testing.assert_allclose(smaller.function()(shown), by_torch, atol=2e-5)


@needs_library
def test_a_track_has_its_score_whatever_is_scored_beside_it(checkpoint: Checkpoint) -> None:
    score, shown = checkpoint.function(), features(9)
    alone = np.concatenate([score(each[None]) for each in shown])
    np.testing.assert_array_equal(score(shown), alone)


@needs_library
def test_features_that_are_no_numbers_have_no_score(checkpoint: Checkpoint) -> None:
    shown = features(3)
    shown[1, 40, 5] = np.nan
    is_score = np.isfinite(checkpoint.function()(shown)).all(axis=(1, 2))
    assert is_score.tolist() == [True, False, True]


@needs_library
def test_a_strange_recording_is_not_extrapolated_from(checkpoint: Checkpoint) -> None:
    model = checkpoint.function()
    assert isinstance(model, pooled_gp.Model)
    far = np.array([[1e30], [-1e30], [1e4]], np.float32).repeat(260, axis=1)
    assert np.isfinite(model.predict(far)).all()
    np.testing.assert_array_equal(model.predict(far[:1]), model.predict(far[2:]))


@needs_library
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"parameters": {"n_landmarks": 641}}, "must be"),
        ({"parameters": {"n_members": 3}}, "must be"),
        ({"parameters": {"colour": "red"}}, "colour"),
        ({"parameters": {"n_members": 16.0}}, "n_members=16.0 must be"),
        ({"parameters": {"n_landmarks": 0}}, "n_landmarks=0 must be"),
        ({"parameters": {"hop_length": -2048}}, "hop_length=-2048 must be"),
        ({"parameters": {"hop_length": -30_000}}, "hop_length=-30000 must be"),
        ({"parameters": {"hop_length": 0.01}}, "hop_length=0.01 must be"),
        ({"parameters": {"sample_rate": 0}}, "sample_rate=0 must be"),
        ({"parameters": {"n_mels": 10**6}}, "n_mels=1000000 must be"),
        ({"parameters": {"n_mels": "80"}}, "n_mels='80' must be"),
        ({"limit": None}, "must be"),
        ({"surprise": np.zeros(3, np.float32)}, "must be"),
        ({"centre": np.full(260, np.nan, np.float32)}, "centre must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=f"do not fit model='pooled_gp'.*{words}"):
        changed(checkpoint, **changes).check()


def test_where_nothing_was_compiled_torch_scores(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checkpoint.function()(features(4))
    monkeypatch.setattr(native_models, "library", lambda: None)
    assert not isinstance(checkpoint.function(), pooled_gp.Model)
    np.testing.assert_allclose(checkpoint.function()(features(4)), expected, atol=2e-5)


def of_numbers_that_numpy_has_not(checkpoint: Checkpoint) -> Checkpoint:
    weights = safetensors.torch.load(checkpoint.weights)
    packed = safetensors.torch.save({name: value.bfloat16() for name, value in weights.items()})
    return with_weights(checkpoint, packed)


def test_other_models_are_left_to_torch(tmp_path: Path) -> None:
    network = load(save(tmp_path))
    assert native_model(network.card.model, network.card.parameters, network.weights) is None
    assert network.function()(np.zeros((2, 40, 1292), np.float32)).shape == (2, 1, 2)


def test_weights_that_numpy_cannot_hold_are_left_to_torch(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    of_numbers_that_numpy_has_not(load(save(tmp_path))).check()
    coarse = of_numbers_that_numpy_has_not(checkpoint)
    coarse.check()
    assert not isinstance(coarse.function(), pooled_gp.Model)
    found, expected = coarse.function()(features(3)), checkpoint.function()(features(3))
    np.testing.assert_allclose(found, expected, atol=0.2)


@needs_library
@pytest.mark.parametrize(
    "program",
    [
        "from mer_batch.checkpoint import builtin_checkpoint\n"
        "import numpy as np\n"
        "builtin_checkpoint().function()(np.zeros((1, 80, 646), np.float32))",
        "import mer_batch.child, mer_batch.rescore, mer_batch.pipelines.tagging",
    ],
)
def test_scoring_takes_no_torch(program: str) -> None:
    program += "\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
