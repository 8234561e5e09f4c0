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


def folds(groups: Strings, labels: Float64, splits: Strings, config: SplitConfig) -> Iterator[Fold]:
    """Divide the clips as configured.

    Parameters
    ----------
    groups : str, shape (n_clips,)
        Albums or artists.
    labels : float64, shape (n_clips, 2)
    splits : str, shape (n_clips,)
        The release's own: ``train``, ``validation``, ``test`` or empty.
    config : SplitConfig

    Raises
    ------
    ConfigError
        Where there are fewer groups than folds.
    DatasetError
        Where there is no official split to follow, or a group stands on both of its sides.
    """
    n_repeats = 1 if config.kind == "official" else config.n_repeats
    for repeat in range(n_repeats):
        seed = config.seed + repeat
        if config.kind == "grouped":
            fold_of = grouped_folds(groups, labels, config.n_folds, seed=seed)
        elif config.kind == "random":
            shuffled = np.random.default_rng(seed).permutation(len(groups))
            fold_of = np.ones(len(groups), np.int64)
            fold_of[shuffled[: max(1, round(config.test_share * len(groups)))]] = 0
        else:
            _check_official(groups, splits)
            fold_of = np.where(splits == "test", 0, 1)
        n_tested = config.n_folds if config.kind == "grouped" else 1
        for number in range(n_tested):
            yield Fold(
                repeat, number, np.flatnonzero(fold_of != number), np.flatnonzero(fold_of == number)
            )


def grouped_folds(groups: Strings, labels: Float64, n_folds: int, *, seed: int) -> Int64:
    """Fold of each clip: no group in two folds, and about the same moods in each.

    Clips are stratified by the quadrant of the valence-arousal plane, seen from the medians.

    Raises
    ------
    ConfigError
        Where there are fewer groups than folds.
    """
    n_groups = len(np.unique(groups))
    if n_folds > n_groups:
        raise ConfigError(
            f"split.n_folds={n_folds} must not exceed the {n_groups} groups that the data have"
        )
    quadrants = (labels > np.median(labels, axis=0)) @ np.array([1, 2])
    if min(np.bincount(quadrants)[np.unique(quadrants)]) >= n_folds:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        fold_of = np.full(len(groups), -1, np.int64)
        for number, (_, test) in enumerate(splitter.split(labels, quadrants, groups)):
            fold_of[test] = number
        if len(np.unique(fold_of)) == n_folds:
            return fold_of
    return _balanced_folds(groups, n_folds, seed=seed)


def _balanced_folds(groups: Strings, n_folds: int, *, seed: int) -> Int64:
    """Folds of about equal size, for sets too small to be stratified."""
    names, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of_group = np.empty(len(names), np.int64)
    n_clips = np.zeros(n_folds, np.int64)
    for group in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
        fold = int(np.argmin(n_clips))
        fold_of_group[group] = fold
        n_clips[fold] += counts[group]
    return fold_of_group[group_of]


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


def _check_official(groups: Strings, splits: Strings) -> None:
    if not (splits == "test").any() or not (splits == "train").any():
        raise DatasetError(
            "split.kind='official' must find clips of the splits 'train' and 'test' in every data "
            "set; use split.kind=grouped"
        )
    in_test = np.unique(groups[splits == "test"])
    spanning = in_test[np.isin(in_test, groups[splits != "test"])]
    if len(spanning):
        first = ", ".join(map(repr, spanning[:_N_NAMED].tolist()))
        raise DatasetError(
            f"split.kind='official': {len(spanning)} groups stand both in the test split and in "
            f"another, the first are {first}; a model would be asked what it was told: use "
            "split.kind=grouped, or mend the split column"
        )
