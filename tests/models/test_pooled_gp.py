from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mer_batch.models.pooled_ridge import Model

from mer_batch.checkpoint import Checkpoint, save_checkpoint
from mer_batch.config import StorageConfig
from mer_batch.feature_sets import feature_set
from mer_batch.storage import Storage, parse_uri

N_CLIPS = 160


@pytest.fixture(scope="module")
def statistics() -> torch.Tensor:
    n = len(Model().centre)
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N_CLIPS, n))).float()


@pytest.fixture(scope="module")
def labels(statistics: torch.Tensor) -> np.ndarray:
    """Linear in the first statistics: a planted answer."""
    values = statistics.double().numpy()
    return 0.3 * np.stack([values[:, 0] - values[:, 90], values[:, 120]], axis=1) + [0.2, -0.1]


def fit(
    statistics: torch.Tensor, labels: np.ndarray, *, n_members: int = 4, **changes: object
) -> Model:
    n = len(labels)
    options = {
        "tasks": np.zeros(n, np.int64),
        "groups": np.arange(n).astype(str),
        "coupling": 0.7,
        "seed": 0,
    }
    model = Model(n_members=n_members)
    model.fit(statistics, labels, **(options | changes))
    return model.eval()


def test_equals_weighted_ridge_by_normal_equations(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    """The textbook's way round: as many unknowns as statistics, not as clips."""
    model = fit(statistics, labels, n_members=1, groups=np.array([f"{i:03d}" for i in range(160)]))
    limit = model.limit.double().numpy()
    scaled = (statistics.double().numpy() - model.centre.numpy()) * model.scale.numpy()
    x = np.clip(scaled, -limit, limit)
    weights = np.maximum(np.random.default_rng(0).exponential(size=N_CLIPS), 0.05)[:, None]
    mean, std = (weights * labels).sum(axis=0) / weights.sum(), labels.std(axis=0)
    normal = x.T @ (weights * x) + x.shape[1] * np.eye(x.shape[1])
    slopes = np.linalg.solve(normal, x.T @ (weights * (labels - mean) / std))
    expected = np.clip(x @ slopes * std + mean, -1, 1)
    np.testing.assert_allclose(model.predict(statistics)[:, 0].numpy(), expected, atol=1e-4)


def test_learns_a_planted_answer(statistics: torch.Tensor, labels: np.ndarray) -> None:
    half = N_CLIPS // 2
    model = fit(statistics[:half], labels[:half])
    predicted = model.predict(statistics[half:]).mean(dim=1).numpy()
    for column in range(2):
        assert np.corrcoef(predicted[:, column], labels[half:, column])[0, 1] > 0.3


def test_a_related_task_helps_and_an_unrelated_one_is_ignored(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    """Few clips of the target, many of a set that is rated on another scale by the same rule."""
    tasks = np.where(np.arange(N_CLIPS) < 24, 0, 1)
    test_statistics = torch.from_numpy(
        np.random.default_rng(1).standard_normal((100, statistics.shape[1]))
    ).float()
    values = test_statistics.double().numpy()
    truth = np.stack([values[:, 0] - values[:, 90], values[:, 120]], axis=1)

    def correlation(coupling: float, shown: int) -> float:
        rated = np.where(tasks[:, None] == 0, labels, 0.5 * labels - 0.4)
        model = fit(
            statistics[:shown], rated[:shown], tasks=tasks[:shown],
            groups=np.arange(shown).astype(str), coupling=coupling,
        )  # fmt: skip
        predicted = model.predict(test_statistics).mean(dim=1).numpy()
        return float(np.corrcoef(predicted[:, 0], truth[:, 0])[0, 1])

    assert correlation(0.9, N_CLIPS) > correlation(0.0, N_CLIPS) + 0.1


def test_the_target_sets_the_scale(statistics: torch.Tensor, labels: np.ndarray) -> None:
    tasks = np.arange(N_CLIPS) % 2
    shifted = labels + np.where(tasks[:, None] == 0, 0.0, 0.5)
    model = fit(statistics, shifted, tasks=tasks)
    predicted = model.predict(statistics).mean(dim=(0, 1)).numpy()
    np.testing.assert_allclose(predicted, labels.mean(axis=0), atol=0.1)


def test_the_same_seed_gives_the_same_weights(statistics: torch.Tensor, labels: np.ndarray) -> None:
    first, again, other = (fit(statistics, labels, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["coefficients"], other["coefficients"])


def test_members_differ(statistics: torch.Tensor, labels: np.ndarray) -> None:
    assert (fit(statistics, labels).predict(statistics).std(dim=1) > 0).all()


def test_what_was_never_seen_is_not_extrapolated(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    model = fit(statistics, labels)
    far, farther = (model.predict(model.centre[None] + scale) for scale in (1e3, 1e6))
    torch.testing.assert_close(far, farther)
    assert far.abs().max() <= 1


def test_any_length_and_the_same_every_time(statistics: torch.Tensor, labels: np.ndarray) -> None:
    model = fit(statistics, labels)
    torch.manual_seed(0)
    for n_frames in (1, 10, 22, 300, 646):
        features = torch.randn(2, 80, n_frames) * 10 - 40
        scores = model(features)
        assert scores.shape == (2, 4, 2)
        assert scores.isfinite().all()
        assert torch.equal(scores, model(features))


def test_round_trip_through_a_small_checkpoint(
    statistics: torch.Tensor, labels: np.ndarray, tmp_path: Path
) -> None:
    model = fit(statistics, labels, n_members=16)
    save_checkpoint(
        Storage(StorageConfig()), parse_uri(str(tmp_path)),
        model="pooled_ridge", parameters={"n_members": 16},
        features=feature_set("log_mel"), state=model.state_dict(), training_data=[], r2={},
    )  # fmt: skip
    card, weights = (
        (tmp_path / name).read_bytes() for name in ("card.json", "weights.safetensors")
    )
    checkpoint = Checkpoint(card, weights, origin="here")
    checkpoint.check()
    features = torch.randn(1, 80, 100) * 10 - 40
    assert torch.equal(checkpoint.build()(features), model(features))
    # Only what was learned is kept: nothing of any clip, nothing that follows from parameters.
    assert len(weights) < 64 * 1024
    assert N_CLIPS not in {size for values in model.state_dict().values() for size in values.shape}
