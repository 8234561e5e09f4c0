from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from mer_batch.checkpoint import Checkpoint, save_checkpoint
from mer_batch.config import StorageConfig
from mer_batch.feature_sets import feature_set
from mer_batch.models import pooled_gp
from mer_batch.models.pooled_gp import Model
from mer_batch.storage import Storage, parse_uri

N_CLIPS = 160


@pytest.fixture(scope="module")
def statistics() -> torch.Tensor:
    n = len(Model().centre)
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N_CLIPS, n))).float()


@pytest.fixture(scope="module")
def labels(statistics: torch.Tensor) -> np.ndarray:
    """Linear in a few statistics: a planted answer."""
    return planted(statistics) + np.array([0.2, -0.1])


def planted(statistics: torch.Tensor) -> np.ndarray:
    values = statistics.double().numpy()
    return 0.3 * np.tanh(np.stack([values[:, 0] - values[:, 60], values[:, 120]], axis=1))


def fit(
    statistics: torch.Tensor,
    labels: np.ndarray,
    *,
    n_members: int = 4,
    n_landmarks: int = 200,
    **changes: object,
) -> Model:
    n = len(labels)
    options = {"tasks": np.zeros(n, np.int64), "groups": np.arange(n).astype(str), "seed": 0}
    model = Model(n_members=n_members, n_landmarks=n_landmarks)
    model.fit(statistics, labels, **(options | changes))
    return model.eval()


def standardised(model: Model, statistics: torch.Tensor) -> np.ndarray:
    limit = model.limit.double().numpy()
    scaled = (statistics.double().numpy() - model.centre.numpy()) * model.scale.numpy()
    return np.clip(scaled, -limit, limit)


def oracle(n_statistics: int, penalty: float) -> GaussianProcessRegressor:
    """The same process as scikit-learn has it."""
    length = np.sqrt(n_statistics / (2 * pooled_gp.SHARPNESS))
    return GaussianProcessRegressor(RBF(length), alpha=penalty, optimizer=None)


def test_the_mean_of_members_equals_scikit_learn(
    statistics: torch.Tensor, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_gp, "_PENALTIES", (0.3,))
    model = fit(statistics[:100], labels[:100], n_members=8)
    x = standardised(model, statistics)
    mean, std = labels[:100].mean(axis=0), labels[:100].std(axis=0)
    process = oracle(x.shape[1], 0.3).fit(x[:100], (labels[:100] - mean) / std)
    expected = process.predict(x[100:]) * std + mean
    predicted = model.predict(statistics[100:]).mean(dim=1).numpy()
    np.testing.assert_allclose(predicted, expected, atol=1e-4)


def test_errors_of_left_out_groups_equal_those_of_refitting(
    statistics: torch.Tensor, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The penalty chosen is the one that scikit-learn finds best, fitting once a group."""
    penalties = (3.2, 0.8, 0.2, 0.05, 0.0125)
    monkeypatch.setattr(pooled_gp, "_PENALTIES", penalties)
    monkeypatch.setattr(pooled_gp, "_CLEARLY", 0.0)
    noisy = labels + np.random.default_rng(1).normal(0, [0.05, 0.5], labels.shape)
    groups = np.arange(N_CLIPS) // 4
    x = standardised(fit(statistics, noisy), statistics)
    standard = (noisy - noisy.mean(axis=0)) / noisy.std(axis=0)
    errors = [
        np.square(
            cross_val_predict(
                oracle(x.shape[1], penalty), x, standard, groups=groups, cv=LeaveOneGroupOut()
            )
            - standard
        ).mean(axis=0)
        for penalty in penalties
    ]
    best = [penalties[row] for row in np.argmin(errors, axis=0)]
    length = x.shape[1]
    squares = np.square(x[:, None] - x[None]).sum(axis=2)
    root = np.linalg.cholesky(np.exp(-pooled_gp.SHARPNESS * squares / length))
    chosen = pooled_gp._choose(
        root, noisy, tasks=np.zeros(N_CLIPS, np.int64), groups=groups, rng=np.random.default_rng(0)
    )
    assert [penalty for _, penalty in chosen] == best
    assert best[0] < best[1]


def test_without_evidence_the_first_choice_stands(statistics: torch.Tensor) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (N_CLIPS, 2))
    one_group = pooled_gp._choose(
        statistics.double().numpy(), noise, tasks=np.zeros(N_CLIPS, np.int64),
        groups=np.zeros(N_CLIPS, np.int64), rng=np.random.default_rng(0),
    )  # fmt: skip
    assert one_group == [(pooled_gp._COUPLINGS[0], pooled_gp._PENALTIES[0])] * 2


@pytest.mark.parametrize("n_clips", [5, 30])
def test_ridge_is_the_same_by_clips_and_by_features(n_clips: int) -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((n_clips, 12)), rng.standard_normal(n_clips)
    noise = rng.uniform(0.1, 2, n_clips)
    rooted = features / np.sqrt(noise)[:, None]
    # The textbook's way round: least squares with a row for each coefficient's penalty.
    expected = np.linalg.lstsq(
        np.vstack([rooted, np.eye(12)]), np.r_[targets / np.sqrt(noise), np.zeros(12)], rcond=None
    )[0]
    np.testing.assert_allclose(pooled_gp._ridge(features)(targets, noise), expected, atol=1e-9)


def test_features_by_task_have_the_coupled_kernel() -> None:
    rng = np.random.default_rng(0)
    features, tasks = rng.standard_normal((30, 7)), rng.permutation(np.arange(30) % 3)
    product = pooled_gp._by_task(features, tasks, 0.4)
    same = tasks[:, None] == tasks[None, :]
    np.testing.assert_allclose(
        product @ product.T, features @ features.T * np.where(same, 1.0, 0.4), atol=1e-12
    )


def test_learns_a_planted_answer(statistics: torch.Tensor, labels: np.ndarray) -> None:
    half = N_CLIPS // 2
    model = fit(statistics[:half], labels[:half])
    predicted = model.predict(statistics[half:]).mean(dim=1).numpy()
    for column in range(2):
        assert np.corrcoef(predicted[:, column], labels[half:, column])[0, 1] > 0.3


def test_fewer_landmarks_than_clips_do_nearly_as_well(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    few, all_of_them = (
        fit(statistics, labels, n_landmarks=n).predict(statistics).mean(dim=1).numpy()
        for n in (100, N_CLIPS)
    )
    for column in range(2):
        assert np.corrcoef(few[:, column], all_of_them[:, column])[0, 1] > 0.8


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_more_clips_than_unknowns(n_tasks: int, labels: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    many = torch.from_numpy(rng.standard_normal((400, len(Model().centre)))).float()
    model = fit(
        many[:300], planted(many[:300]), n_landmarks=40, tasks=np.arange(300) % n_tasks
    )  # fmt: skip
    predicted = model.predict(many[300:]).mean(dim=1).numpy()
    assert np.corrcoef(predicted[:, 1], planted(many[300:])[:, 1])[0, 1] > 0.2


def test_a_related_task_helps(statistics: torch.Tensor, labels: np.ndarray) -> None:
    """Few clips of the target, many of a set that is rated on another scale by the same rule."""
    tasks = np.where(np.arange(N_CLIPS) < 24, 0, 1)
    rated = np.where(tasks[:, None] == 0, labels, 0.5 * labels - 0.4)
    unseen = torch.from_numpy(
        np.random.default_rng(1).standard_normal((100, statistics.shape[1]))
    ).float()

    def correlation(shown: int) -> float:
        model = fit(statistics[:shown], rated[:shown], tasks=tasks[:shown])
        predicted = model.predict(unseen).mean(dim=1).numpy()
        return float(np.corrcoef(predicted[:, 0], planted(unseen)[:, 0])[0, 1])

    assert correlation(N_CLIPS) > correlation(24) + 0.1


def test_a_contrary_task_is_cut_off(statistics: torch.Tensor, labels: np.ndarray) -> None:
    tasks = np.arange(N_CLIPS) % 2
    contrary = np.where(tasks[:, None] == 0, labels, -labels)
    root = np.linalg.cholesky(np.cov(statistics.double().numpy()) + 0.1 * np.eye(N_CLIPS))
    chosen = pooled_gp._choose(
        root, contrary, tasks=tasks, groups=np.arange(N_CLIPS), rng=np.random.default_rng(0)
    )
    assert [coupling for coupling, _ in chosen] == [0.0, 0.0]


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


def test_members_differ_about_their_mean(statistics: torch.Tensor, labels: np.ndarray) -> None:
    """Which clips weigh how much moves the members, and leaves their mean where it was."""
    first, other = (fit(statistics, labels, seed=seed).predict(statistics) for seed in (0, 1))
    assert (first.std(dim=1).mean(dim=0) > 0.01).all()
    torch.testing.assert_close(first.mean(dim=1), other.mean(dim=1), atol=1e-3, rtol=0)


def test_what_was_never_seen_is_not_extrapolated(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    model = fit(statistics, labels)
    far, farther = (model.predict(model.centre[None] + scale) for scale in (1e3, 1e6))
    torch.testing.assert_close(far, farther)
    assert far.abs().max() <= 1


def test_a_statistic_that_never_varied_has_no_say(
    statistics: torch.Tensor, labels: np.ndarray
) -> None:
    constant = statistics.clone()
    constant[:, 5] = 3.0
    model = fit(constant, labels)
    changed = constant.clone()
    changed[:, 5] = 4.0
    assert torch.equal(model.predict(changed), model.predict(constant))


def test_the_same_clip_twice_is_no_trouble(statistics: torch.Tensor, labels: np.ndarray) -> None:
    twice = fit(torch.cat([statistics[:40]] * 2), np.concatenate([labels[:40]] * 2))
    assert twice.predict(statistics).isfinite().all()


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
    model = fit(statistics, labels, n_members=16, n_landmarks=640)
    save_checkpoint(
        Storage(StorageConfig()), parse_uri(str(tmp_path)),
         model="pooled_gp", parameters={"n_members": 16},
        features=feature_set("log_mel"), state=model.state_dict(), training_data=[], r2={},
    )  # fmt: skip
    card, weights = (
        (tmp_path / name).read_bytes() for name in ("card.json", "weights.safetensors")
    )
    checkpoint = Checkpoint(card, weights, origin="here")
    checkpoint.check()
    features = torch.randn(1, 80, 100) * 10 - 40
    assert torch.equal(checkpoint.build()(features), model(features))
    assert len(weights) < 1_000_000
