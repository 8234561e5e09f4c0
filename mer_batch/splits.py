"""Which clips are learned from and which are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from mer_batch.config import SplitConfig
from mer_batch.errors import ConfigError, DatasetError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

_N_NAMED = 5


@dataclass(frozen=True)
class Fold:
    """One division of the clips.

    Attributes
    ----------
    repeat, number : int
        Which drawing, and which part of it.
    train, test : int64
        Rows to learn from and to measure on; they share no clip.
    """

    repeat: int
    number: int
    train: Int64
    test: Int64


def folds(
    groups: Strings, labels: Float64, splits: Strings, tasks: Int64, config: SplitConfig
) -> Iterator[Fold]:
    """Divide the clips as configured, those of every data set alike.

    Parameters
    ----------
    groups : str, shape (n_clips,)
        Albums or artists, of all data sets.
    labels : float64, shape (n_clips, 2)
    splits : str, shape (n_clips,)
        The release's own: ``train``, ``validation``, ``test`` or empty.
    tasks : int64, shape (n_clips,)
        Position of the clip's data set.
    config : SplitConfig

    Raises
    ------
    ConfigError
        Where a data set has fewer groups than folds.
    DatasetError
        Where there is no official split to follow, or a group stands on both of its sides.
    """
    n_repeats = 1 if config.kind == "official" else config.n_repeats
    for repeat in range(n_repeats):
        seed = config.seed + repeat
        if config.kind == "grouped":
            fold_of = grouped_folds(groups, labels, tasks, config.n_folds, seed=seed)
        elif config.kind == "random":
            fold_of = _random_parts(tasks, config.test_share, seed=seed)
        else:
            fold_of = _official_parts(groups, splits, tasks, config)
        for number in range(config.n_folds if config.kind == "grouped" else 1):
            train = np.flatnonzero((fold_of != number) & (fold_of >= 0))
            yield Fold(repeat, number, train, np.flatnonzero(fold_of == number))


def grouped_folds(
    groups: Strings, labels: Float64, tasks: Int64, n_folds: int, *, seed: int
) -> Int64:
    """Fold of each clip: no group in two folds, and about the same moods in each.

    Clips are stratified by data set and by the quadrant of its valence-arousal plane, seen from
    its medians.

    Raises
    ------
    ConfigError
        Where a data set has fewer groups than folds.
    """
    check_groups(groups, tasks, n_folds)
    strata = np.empty(len(groups), np.int64)
    for task in np.unique(tasks):
        own = tasks == task
        high = labels[own] > np.median(labels[own], axis=0)
        strata[own] = 4 * task + high @ np.array([1, 2])
    if min(np.bincount(strata)[np.unique(strata)]) >= n_folds:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        fold_of = np.full(len(groups), -1, np.int64)
        for number, (_, test) in enumerate(splitter.split(labels, strata, groups)):
            fold_of[test] = number
        if all(len(np.unique(fold_of[tasks == task])) == n_folds for task in np.unique(tasks)):
            return fold_of
    return _balanced_folds(groups, tasks, n_folds, seed=seed)


def check_groups(groups: Strings, tasks: Int64, n_folds: int) -> None:
    """Refuse data sets that cannot be divided into so many folds.

    Raises
    ------
    ConfigError
    """
    for task in np.unique(tasks):
        n_groups = len(np.unique(groups[tasks == task]))
        if n_folds > n_groups:
            raise ConfigError(
                f"split.n_folds={n_folds} must not exceed the {n_groups} groups that data set "
                f"number {task + 1} has; set split.n_folds={max(2, n_groups)} or less, or leave "
                "the data set out"
            )


def _balanced_folds(groups: Strings, tasks: Int64, n_folds: int, *, seed: int) -> Int64:
    """Folds with about as many clips of each data set, for sets too small to be stratified."""
    names, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of_group = np.empty(len(names), np.int64)
    n_clips = np.zeros((n_folds, int(tasks.max()) + 1))
    for group in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
        ours = np.bincount(tasks[group_of == group], minlength=n_clips.shape[1])
        fold = int(np.argmin(n_clips @ (ours > 0)))
        fold_of_group[group] = fold
        n_clips[fold] += ours
    return fold_of_group[group_of]


def _random_parts(tasks: Int64, test_share: float, *, seed: int) -> Int64:
    """0 for a random share of each data set's clips, else 1."""
    part_of = np.ones(len(tasks), np.int64)
    rng = np.random.default_rng(seed)
    for task in np.unique(tasks):
        rows = rng.permutation(np.flatnonzero(tasks == task))
        n_test = min(max(1, round(test_share * len(rows))), len(rows) - 1)
        part_of[rows[:n_test]] = 0
    return part_of


def validation_rows(
    rows: Int64, groups: Strings, splits: Strings, config: SplitConfig, *, seed: int
) -> tuple[Int64, Int64]:
    """Divide training rows into what a network learns from and what stops it.

    Parameters
    ----------
    rows : int64
        To be divided.
    groups, splits : str, shape (n_clips,)
        Of all clips.

    Returns
    -------
    train, validation : int64
        Neither is empty.
    """
    if config.kind == "official" and (splits[rows] == "validation").any():
        is_validation = splits[rows] == "validation"
        return rows[~is_validation], rows[is_validation]
    names = np.arange(len(rows)).astype(str) if config.kind == "random" else groups[rows]
    n_wanted = max(1, round(config.validation_share * len(rows)))
    unique, group_of, counts = np.unique(names, return_inverse=True, return_counts=True)
    if len(unique) < 2:
        raise DatasetError(
            f"the {len(rows)} training clips are all of group {str(unique[0])!r}; a network needs "
            "two groups at least, one of them to stop by: check the group column"
        )
    shuffled = np.random.default_rng([seed, 1]).permutation(len(unique))
    n_before = np.cumsum(counts[shuffled]) - counts[shuffled]
    chosen = shuffled[n_before < n_wanted][: len(unique) - 1]
    is_validation = np.isin(group_of, chosen)
    return rows[~is_validation], rows[is_validation]


def _official_parts(groups: Strings, splits: Strings, tasks: Int64, config: SplitConfig) -> Int64:
    """0 for test clips, 1 for those to learn from, -1 for those that are left out."""
    for task in np.unique(tasks):
        own = splits[tasks == task]
        if not (own == "test").any() or not (own == "train").any():
            raise DatasetError(
                "split.kind='official' must find clips of the splits 'train' and 'test' in every "
                f"data set, and number {task + 1} has none; use split.kind=grouped"
            )
    is_test = splits == "test"
    spans = ~is_test & np.isin(groups, groups[is_test])
    if spans.any() and config.spanning == "refuse":
        names = np.unique(groups[spans])
        first = ", ".join(map(repr, names[:_N_NAMED].tolist()))
        raise DatasetError(
            f"split.kind='official': {len(names)} groups stand both in the test split and in "
            f"another, with {spans.sum()} clips there, the first are {first}; a model would be "
            "asked what it was told: leave those clips out with split.spanning=drop, use "
            "split.kind=grouped, or mend the split column"
        )
    return np.where(is_test, 0, np.where(spans, -1, 1))
