"""A Gaussian process on statistics over time: the built-in model.

Its answer has a closed form, it fits in seconds, and on a few hundred labelled clips it beats
ridge regression, trees, and convolutional networks trained from nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mer_batch.audio.statistics import Statistics
from mer_batch.native_models.pooled_gp import SHARPNESS

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# R^2 is flat around each of these and around SHARPNESS, on general music as on film music.
_LIMIT = 4.0  # standard deviations a statistic may count for
_SIZE_EXPONENT = 0.25
_MIN_WEIGHT = 0.05

# What `fit` chooses from: the first, unless another is clearly better.
_COUPLINGS = (0.6, 0.0, 0.3, 0.9)
_PENALTIES = (0.2, 0.1, 0.4, 0.8, 1.6, 3.2)
_CLEARLY = 2.0  # standard errors
_MAX_CLIPS_TO_CHOOSE = 1000

_JITTER = 1e-6  # of a kernel that has to be inverted, though two clips may be the same


class Model(nn.Module):
    """An ensemble of Gaussian processes over one set of statistics.

    Parameters
    ----------
    n_mels, sample_rate, hop_length, fmin, fmax
        Of the features; see ``MelParameters``.
    n_members : int
        Regressions in the ensemble.
    n_landmarks : int
        Clips that new ones are compared with. If no more are learned from, the regression is
        exact, else it is the best that these can express.
    """

    centre: Tensor
    scale: Tensor
    limit: Tensor
    landmarks: Tensor
    coefficients: Tensor
    intercepts: Tensor

    def __init__(
        self,
        n_mels: int = 80,
        sample_rate: int = 44_100,
        hop_length: int = 2048,
        fmin: float = 30.0,
        fmax: float = 16_000.0,
        n_members: int = 16,
        n_landmarks: int = 640,
    ) -> None:
        super().__init__()
        self.statistics = Statistics(
            n_mels=n_mels, sample_rate=sample_rate, hop_length=hop_length, fmin=fmin, fmax=fmax
        )
        sizes = self.statistics.sizes()
        n = sum(sizes.values())
        self.n_members = n_members
        self._weights = _group_weights(list(sizes.values()))
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))
        self.register_buffer("limit", torch.ones(n))
        self.register_buffer("landmarks", torch.zeros(n_landmarks, n))
        self.register_buffer("coefficients", torch.zeros(n_landmarks, n_members * 2))
        self.register_buffer("intercepts", torch.zeros(n_members * 2))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, n_mels, n_frames) [dB], any length, to (batch, n_members, 2)."""
        return self.predict(self.statistics(features))

    def predict(self, statistics: Tensor) -> Tensor:
        """(batch, n_statistics) to (batch, n_members, 2)."""
        kernel = _kernel(self._standardise(statistics), self.landmarks)
        scores = kernel @ self.coefficients + self.intercepts
        return scores.reshape(-1, self.n_members, 2).clamp(-1, 1)

    def fit(
        self,
        statistics: Tensor,
        labels: Float64,
        *,
        tasks: Int64,
        groups: npt.NDArray[np.str_],
        seed: int,
    ) -> None:
        """Set the learned numbers, in closed form.

        Data sets are separate tasks, because people rate film music on another scale than
        songs: each has its own mean, scale and regression, and the regressions of two tasks
        correlate by a `coupling` beforehand. The kernel is ``k(x_i, x_j) * (1 if same task else
        coupling)``; the model keeps the regression of task 0. Coupling and penalty are chosen,
        for valence and for arousal, by leaving out one group of task 0 at a time.

        A member is a draw of the Bayesian bootstrap: every group of clips weighs as much as an
        exponential random number says. All members are then shifted alike, so that their mean is
        the regression in which all clips weigh the same.

        Parameters
        ----------
        statistics : Tensor, shape (n_clips, n_statistics)
        labels : float64, shape (n_clips, 2)
            Valence and arousal on [-1, 1].
        tasks : int64, shape (n_clips,)
            0 for the task whose scores the model gives, 1 and up for the others.
        groups : str, shape (n_clips,)
            Clips of one album or artist are not independent: they are left out together, and
            share a weight.
        seed : int
            Of the members' weights and, where clips are many, of the landmarks.

        References
        ----------
        Bonilla, E., Chai, K. and Williams, C. "Multi-task Gaussian Process Prediction", 2007.
        Rubin, D. "The Bayesian Bootstrap", The Annals of Statistics, 1981.
        Quinonero-Candela, J. and Rasmussen, C. "A Unifying View of Sparse Approximate Gaussian
        Process Regression", JMLR, 2005.
        """
        rng = np.random.default_rng(seed)
        own = statistics[tasks == 0]
        std = own.std(dim=0, unbiased=False)
        self.centre = own.mean(dim=0)
        # A statistic that never varies says nothing, and must not decide when once it does.
        self.scale = torch.where(std > 1e-6, self._weights / std, 0)
        self.limit = _LIMIT * self._weights
        x = self._standardise(statistics).double()
        names, group_of = np.unique(groups, return_inverse=True)
        landmarks = x[_some_clips(len(self.landmarks), tasks, group_of, rng)]
        self.landmarks = _padded(landmarks, len(self.landmarks))
        root = torch.linalg.cholesky(
            _kernel(landmarks, landmarks) + _JITTER * torch.eye(len(landmarks))
        ).numpy()
        # Products of these rows are the kernel.
        features = np.linalg.solve(root, _kernel(landmarks, x).numpy()).T
        draws = rng.exponential(size=(self.n_members, len(names)))
        weights = np.vstack([np.ones(len(labels)), np.maximum(draws, _MIN_WEIGHT)[:, group_of]])
        choices = _choose(features, labels, tasks=tasks, groups=group_of, rng=rng)
        slopes = np.empty((len(weights), len(landmarks), 2))
        intercepts = np.empty((len(weights), 2))
        for target, (coupling, penalty) in enumerate(choices):
            ridge = _ridge(_by_task(features, tasks, coupling))
            for row, weight in enumerate(weights):
                standard, mean, deviation = _standard_labels(labels[:, target], tasks, weight)
                # A clip of weight w is one whose label has 1 / w of the noise.
                slope = ridge(standard, penalty / weight)[: len(landmarks)]
                slopes[row, :, target] = np.linalg.solve(root.T, slope) * deviation
                intercepts[row, target] = mean
        by_landmark = _members(slopes).permute(1, 0, 2).flatten(1)
        self.coefficients = _padded(by_landmark, len(self.landmarks))
        self.intercepts = _members(intercepts).float().flatten()

    def _standardise(self, statistics: Tensor) -> Tensor:
        """Standardise, cut off at the limit: a strange recording is no reason to extrapolate."""
        scaled = (statistics - self.centre) * self.scale
        return scaled.maximum(-self.limit).minimum(self.limit)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """How alike standardised statistics are: (n_a, n), (n_b, n) to (n_a, n_b), at most 1."""
    # Norms, not sums of squares: those would need an array as large as all landmarks, every time.
    norms = (torch.linalg.vector_norm(each, dim=1).square() for each in (a, b))
    squares = next(norms)[:, None] + next(norms) - 2 * a @ b.T
    return torch.exp(squares.clamp_min(0) * (-SHARPNESS / a.shape[1]))


def _choose(
    features: Float64, labels: Float64, *, tasks: Int64, groups: Int64, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Coupling and penalty for valence and for arousal, by leaving out a group at a time.

    The errors of all left-out groups follow from one inverse ``A`` of the regularised kernel:
    those of clips ``G`` are ``A[G, G]^-1 (A y)[G]``.
    """
    rows = _some_clips(_MAX_CLIPS_TO_CHOOSE, tasks, groups, rng)
    features, tasks, groups = features[rows], tasks[rows], groups[rows]
    standard = np.column_stack(
        [_standard_labels(column, tasks, np.ones(len(rows)))[0] for column in labels[rows].T]
    )
    kernel, same = features @ features.T, tasks[:, None] == tasks[None, :]
    left_out = [np.flatnonzero(groups == group) for group in np.unique(groups[tasks == 0])]
    choices, errors = [], []
    for coupling in _COUPLINGS:
        values, vectors = np.linalg.eigh(kernel * np.where(same, 1.0, coupling))
        for penalty in _PENALTIES:
            inverse = (vectors / (values.clip(min=0) + penalty)) @ vectors.T
            dual = inverse @ standard
            residuals = [
                np.linalg.solve(inverse[np.ix_(group, group)], dual[group]) for group in left_out
            ]
            choices.append((coupling, penalty))
            errors.append([np.square(group).sum(axis=0) for group in residuals])
    gains = errors[0] - np.array(errors)  # (n_choices, n_groups, 2)
    mean = gains.mean(axis=1)
    doubt = _CLEARLY * gains.std(axis=1) / math.sqrt(len(left_out)) + 1e-9
    return [choices[best] for best in np.argmax(np.where(mean > doubt, mean, 0.0), axis=0)]


def _some_clips(n: int, tasks: Int64, groups: Int64, rng: np.random.Generator) -> Int64:
    """At most `n` clips: those of task 0 first, group by group in random order."""
    n_groups = groups.max() + 1
    order = rng.permutation(n_groups)[groups] + n_groups * (tasks != 0)
    return np.argsort(order, kind="stable")[:n]


def _by_task(features: Float64, tasks: Int64, coupling: float) -> Float64:
    """Features of clips of several tasks: (n_clips, n_features) to (n_clips, n_tasks * n_features).

    Each task has a part of its own and parts of those before it, so that tasks correlate by the
    coupling. Task 0 has the first part alone.
    """
    n_tasks = tasks.max() + 1
    correlation = np.where(np.eye(n_tasks, dtype=bool), 1.0, coupling)
    parts = np.linalg.cholesky(correlation)[tasks]
    return (parts[:, :, None] * features[:, None, :]).reshape(len(features), -1)


def _ridge(features: Float64) -> Callable[[Float64, Float64], Float64]:
    """Ridge regression of (targets, noise of each) with as many unknowns as clips or features.

    Whichever are fewer, so that neither 50 clips nor 20,000 take long.
    """
    n_clips, n_features = features.shape
    kernel = features @ features.T if n_clips <= n_features else None

    def coefficients(targets: Float64, noise: Float64) -> Float64:
        if kernel is not None:
            found = features.T @ np.linalg.solve(kernel + np.diag(noise), targets)
        else:
            weighted = features.T / noise
            normal = weighted @ features + np.eye(n_features)
            found = np.linalg.solve(normal, weighted @ targets)
        return np.asarray(found, dtype=np.float64)

    return coefficients


def _standard_labels(
    labels: Float64, tasks: Int64, weights: Float64
) -> tuple[Float64, float, float]:
    """Labels standardised task by task, and the mean and deviation of task 0."""
    standard = np.empty_like(labels)
    scales = {}
    for task in np.unique(tasks).tolist():
        rows = tasks == task
        mean, std = np.average(labels[rows], weights=weights[rows]), labels[rows].std() + 1e-9
        standard[rows] = (labels[rows] - mean) / std
        scales[task] = float(mean), float(std)
    return standard, *scales[0]


def _members(fits: Float64) -> Tensor:
    """All fits but the first, shifted alike so that their mean is the first."""
    return torch.from_numpy(fits[1:] - fits[1:].mean(axis=0) + fits[0])


def _padded(rows: Tensor, n_rows: int) -> Tensor:
    """With zeros up to a number of rows, in single precision."""
    return torch.cat([rows, rows.new_zeros(n_rows - len(rows), rows.shape[1])]).float()


def _group_weights(sizes: list[int]) -> Tensor:
    """Weight of each statistic, so that large groups do not drown small ones; mean square 1."""
    counts = torch.repeat_interleave(torch.tensor(sizes), torch.tensor(sizes)).float()
    weights = counts**-_SIZE_EXPONENT
    return weights / weights.square().mean().sqrt()
