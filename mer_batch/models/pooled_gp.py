"""A Gaussian process on statistics over time: the built-in model.

Its answer has a closed form, it fits in seconds, and on a few hundred labelled clips it beats
convolutional networks trained from nothing. The kernel is the Gaussian one, through random
features, so that the model keeps directions in the space of statistics and nothing of any clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mer_batch.audio.statistics import Statistics

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# R^2 is flat around each of these, on general music as on film music.
_SHARPNESS = 0.15  # of the kernel exp(-_SHARPNESS * mean squared difference of statistics)
_LIMIT = 4.0  # standard deviations a statistic may count for
_SIZE_EXPONENT = 0.25
_MIN_WEIGHT = 0.05

# What `fit` chooses from, the most cautious first: it is taken where nothing tells them apart.
_COUPLINGS = (0.0, 0.3, 0.6, 0.9)
_PENALTIES = (3.2, 1.6, 0.8, 0.4, 0.2, 0.1)
_MAX_CLIPS_TO_CHOOSE = 1000


class Model(nn.Module):
    """An ensemble of Gaussian processes over one set of statistics.

    Parameters
    ----------
    n_mels, sample_rate, hop_length, fmin, fmax
        Of the features; see ``MelParameters``.
    n_members : int
        Regressions in the ensemble.
    n_directions : int
        Of the random features: each gives a cosine and a sine.
    """

    centre: Tensor
    scale: Tensor
    limit: Tensor
    directions: Tensor
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
        n_directions: int = 384,
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
        self.register_buffer("directions", torch.zeros(n, n_directions))
        self.register_buffer("coefficients", torch.zeros(2 * n_directions, n_members * 2))
        self.register_buffer("intercepts", torch.zeros(n_members * 2))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, n_mels, n_frames) [dB], any length, to (batch, n_members, 2)."""
        return self.predict(self.statistics(features))

    def predict(self, statistics: Tensor) -> Tensor:
        """(batch, n_statistics) to (batch, n_members, 2)."""
        scores = self._waves(statistics) @ self.coefficients + self.intercepts
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
        coupling)``; the model keeps the regression of task 0. Coupling and penalty are chosen
        for valence and for arousal by leaving out one group of task 0 at a time.

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
            Of the random features and the members' weights.

        References
        ----------
        Bonilla, E., Chai, K. and Williams, C. "Multi-task Gaussian Process Prediction", 2007.
        Rubin, D. "The Bayesian Bootstrap", The Annals of Statistics, 1981.
        Yu, F. et al. "Orthogonal Random Features", 2016.
        """
        rng = np.random.default_rng(seed)
        own = statistics[tasks == 0]
        std = own.std(dim=0, unbiased=False)
        self.centre = own.mean(dim=0)
        # A statistic that never varies says nothing, and must not decide when once it does.
        self.scale = torch.where(std > 1e-6, self._weights / std, 0)
        self.limit = _LIMIT * self._weights
        self.directions = _orthogonal_directions(*self.directions.shape, rng)
        waves = self._waves(statistics).double().numpy()
        names, group_of = np.unique(groups, return_inverse=True)
        draws = rng.exponential(size=(self.n_members, len(names)))
        weights = np.vstack([np.ones(len(labels)), np.maximum(draws, _MIN_WEIGHT)[:, group_of]])
        choices = _choose(waves, labels, tasks=tasks, groups=group_of, rng=rng)
        n_waves = waves.shape[1]
        coefficients = np.empty((len(weights), n_waves, 2))
        intercepts = np.empty((len(weights), 2))
        for target, (coupling, penalty) in enumerate(choices):
            ridge = _ridge(_shared_and_own(waves, tasks, coupling))
            for row, weight in enumerate(weights):
                standard, mean, std_label = _standard_labels(labels[:, target], tasks, weight)
                # A clip of weight w is one whose label has 1 / w of the noise.
                shared, specific = ridge(standard, penalty / weight).reshape(-1, n_waves)[:2]
                slopes = math.sqrt(coupling) * shared + math.sqrt(1 - coupling) * specific
                coefficients[row, :, target] = slopes * std_label
                intercepts[row, target] = mean
        self.coefficients = _members(coefficients).permute(1, 0, 2).flatten(1).contiguous()
        self.intercepts = _members(intercepts).flatten()

    def _waves(self, statistics: Tensor) -> Tensor:
        """Random features, whose products are the kernel: (batch, 2 * n_directions).

        Statistics are standardised and cut off at the limit: a strange recording is no reason to
        extrapolate.
        """
        scaled = (statistics - self.centre) * self.scale
        angles = scaled.maximum(-self.limit).minimum(self.limit) @ self.directions
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return waves / math.sqrt(self.directions.shape[1])


def _choose(
    waves: Float64, labels: Float64, *, tasks: Int64, groups: Int64, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Coupling and penalty for valence and for arousal, by leaving out a group at a time.

    The errors of all left-out groups follow from one inverse ``A`` of the regularised kernel:
    those of clips ``G`` are ``A[G, G]^-1 (A y)[G]``.
    """
    rows = _some_clips(tasks, groups, rng)
    waves, tasks, groups = waves[rows], tasks[rows], groups[rows]
    standard = np.column_stack(
        [_standard_labels(column, tasks, np.ones(len(rows)))[0] for column in labels[rows].T]
    )
    kernel, same = waves @ waves.T, tasks[:, None] == tasks[None, :]
    left_out = [np.flatnonzero((groups == group) & (tasks == 0)) for group in np.unique(groups)]
    choices = [(coupling, penalty) for coupling in _COUPLINGS for penalty in _PENALTIES]
    errors = []
    for coupling in _COUPLINGS:
        values, vectors = np.linalg.eigh(kernel * np.where(same, 1.0, coupling))
        for penalty in _PENALTIES:
            inverse = (vectors / (values.clip(min=0) + penalty)) @ vectors.T
            residuals = inverse @ standard
            squared = [
                np.linalg.solve(inverse[np.ix_(group, group)], residuals[group]) ** 2
                for group in left_out
            ]
            errors.append(np.concatenate(squared).sum(axis=0))
    return [choices[best] for best in np.argmin(errors, axis=0)]


def _some_clips(tasks: Int64, groups: Int64, rng: np.random.Generator) -> Int64:
    """As many clips as a choice needs: those of task 0 first, group by group in random order."""
    n_groups = groups.max() + 1
    order = rng.permutation(n_groups)[groups] + n_groups * (tasks != 0)
    return np.argsort(order, kind="stable")[:_MAX_CLIPS_TO_CHOOSE]


def _shared_and_own(waves: Float64, tasks: Int64, coupling: float) -> Float64:
    """What all tasks share, then what is each task's own: (n_clips, (1 + n_tasks) * n_waves).

    Products of these rows are the kernel of the tasks, whatever their number: a regression of
    plain features.

    References
    ----------
    Daume, H. "Frustratingly Easy Domain Adaptation", 2007.
    """
    own = [waves * (tasks == task)[:, None] for task in np.unique(tasks)]
    return np.hstack(
        [math.sqrt(coupling) * waves, *(math.sqrt(1 - coupling) * part for part in own)]
    )


def _ridge(features: Float64) -> Callable[[Float64, Float64], Float64]:
    """Ridge regression of (targets, noise of each) with as many unknowns as clips or features.

    Whichever are fewer, so that neither 50 clips nor 20,000 take long.
    """
    n_clips, n_features = features.shape
    kernel = features @ features.T if n_clips <= n_features else None

    def coefficients(targets: Float64, noise: Float64) -> Float64:
        if kernel is not None:
            return features.T @ np.linalg.solve(kernel + np.diag(noise), targets)
        weighted = features.T / noise
        return np.linalg.solve(weighted @ features + np.eye(n_features), weighted @ targets)

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
    return torch.from_numpy(fits[1:] - fits[1:].mean(axis=0) + fits[0]).float()


def _orthogonal_directions(
    n_statistics: int, n_directions: int, rng: np.random.Generator
) -> Tensor:
    """Directions of random features, shape (n_statistics, n_directions).

    Those of independent Gaussians would do; at right angles they come closer to the kernel.
    """
    blocks: list[Float64] = []
    for _ in range(0, n_directions, n_statistics):
        rotation, _ = np.linalg.qr(rng.standard_normal((n_statistics, n_statistics)))
        blocks.append(rotation * np.sqrt(rng.chisquare(n_statistics, size=n_statistics)))
    directions = np.hstack(blocks)[:, :n_directions] * math.sqrt(2 * _SHARPNESS / n_statistics)
    return torch.from_numpy(directions).float()


def _group_weights(sizes: list[int]) -> Tensor:
    """Weight of each statistic, so that large groups do not drown small ones; mean square 1."""
    counts = torch.repeat_interleave(torch.tensor(sizes), torch.tensor(sizes)).float()
    weights = counts**-_SIZE_EXPONENT
    return weights / weights.square().mean().sqrt()
