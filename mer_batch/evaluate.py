"""How good a learner is on clips it has not seen, and how sure that figure is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_batch import metrics
from mer_batch.clips import Clips
from mer_batch.config import SplitConfig
from mer_batch.conformal import LEVEL, half_widths, measured_coverage
from mer_batch.learners import Learner, Scores
from mer_batch.schema import TARGETS
from mer_batch.splits import folds

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Repeat:
    """Scores of clips, each given by a model that has not seen it.

    Attributes
    ----------
    rows : int64, shape (n_tested,)
        Of the clips.
    fold_of : int64, shape (n_tested,)
        Which model scored them.
    scores : Scores
    """

    rows: Int64
    fold_of: Int64
    scores: Scores

    def only(self, is_wanted: npt.NDArray[np.bool_]) -> Repeat:
        """Some of the clips."""
        scores = Scores(self.scores.mean[is_wanted], self.scores.std[is_wanted])
        return Repeat(self.rows[is_wanted], self.fold_of[is_wanted], scores)


def cross_validate(
    learner: Learner,
    clips: Clips,
    split: SplitConfig,
    *,
    target: int,
    everywhere: bool = False,
) -> list[Repeat]:
    """Score every clip of a data set by models that have not seen it.

    Parameters
    ----------
    learner : Learner
    clips : Clips
        Of all data sets: related ones are divided too, so nothing leaks through them.
    split : SplitConfig
    target : int
        The data set whose ratings are learned.
    everywhere : bool
        Score the related data sets too, with the ratings that the target's listeners would give.

    Returns
    -------
    list of Repeat
        One for each drawing of the folds.
    """
    parts: dict[int, list[tuple[Int64, Int64, Scores]]] = {}
    for fold in folds(clips.groups, clips.labels, clips.splits, clips.tasks, split):
        test = fold.test if everywhere else fold.test[clips.tasks[fold.test] == target]
        if len(test) == 0:
            continue
        fitted = learner.fit(fold.train, target=target, seed=split.seed + fold.repeat)
        part = (test, np.full(len(test), fold.number), fitted.score(test))
        parts.setdefault(fold.repeat, []).append(part)
    return [_joined(repeat) for repeat in parts.values()]


def _joined(parts: list[tuple[Int64, Int64, Scores]]) -> Repeat:
    rows, fold_of, scores = zip(*parts, strict=True)
    return Repeat(
        np.concatenate(rows),
        np.concatenate(fold_of),
        Scores(
            np.concatenate([each.mean for each in scores]),
            np.concatenate([each.std for each in scores]),
        ),
    )


def leave_one_out(learner: Learner, clips: Clips, *, seed: int) -> dict[int, Repeat]:
    """Score each data set by a model that has seen only the others, on the first one's scale.

    Returns
    -------
    dict of int to Repeat
        By the position of the data set left out; empty where there is one only.
    """
    n_sets = len(clips.datasets)
    if n_sets < 2:
        return {}
    found = {}
    for left_out in range(n_sets):
        target = 0 if left_out else 1
        fitted = learner.fit(np.flatnonzero(clips.tasks != left_out), target=target, seed=seed)
        rows = clips.of(left_out)
        found[left_out] = Repeat(rows, np.zeros(len(rows), np.int64), fitted.score(rows))
    return found


def unseen_protocol(learner: Learner, clips: Clips, left_out: int) -> str:
    """What a model of :func:`leave_one_out` has seen, in words."""
    seen = [dataset.name for task, dataset in enumerate(clips.datasets) if task != left_out]
    learned = ", ".join(seen) if learner.uses_related else seen[0]
    return f"unseen: trained on {learned} alone, on the scale of {seen[0]}"


def measure(
    clips: Clips,
    repeats: Sequence[Repeat],
    *,
    protocol: str,
    seed: int,
    intervals: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Metrics of a learner on one data set, as a card keeps them.

    Parameters
    ----------
    clips : Clips
    repeats : sequence of Repeat
        Their clips all of one data set.
    protocol : str
        How it was measured, in words.
    seed : int
        Of the bootstrap.
    intervals : dict, optional
        Of :func:`calibrate`, on another data set: their coverage is measured, as they would be
        written. By default intervals are calibrated on the other folds.

    Returns
    -------
    dict
        For each target its R^2 under the target's name, and with a suffix: ``_std`` the deviation
        over repeats, ``_interval`` the 95 % interval, ``_rmse``, ``_correlation`` Pearson's,
        ``_ccc``, ``_spread`` the deviation of the scores as a share of the labels', ``_coverage``
        of 90 % intervals. Then ``n_clips, n_groups, protocol``.
    """
    truths = [clips.labels[repeat.rows] for repeat in repeats]
    scores = [repeat.scores.mean for repeat in repeats]
    pairs = list(zip(truths, scores, strict=True))
    r2 = np.stack([metrics.r2(y, p) for y, p in pairs])
    bounds = [
        metrics.bootstrap_interval(metrics.r2, y, p, clips.groups[repeat.rows], seed=seed)
        for (y, p), repeat in zip(pairs, repeats, strict=True)
    ]
    low, high = np.mean(bounds, axis=0)
    if intervals is None:
        coverage = [
            measured_coverage(y - p, repeat.fold_of)
            for (y, p), repeat in zip(pairs, repeats, strict=True)
        ]
    else:
        reach = np.array([intervals["half_width"][target] or np.nan for target in TARGETS])
        covered = [np.where(np.isnan(reach), np.nan, np.abs(y - p) <= reach) for y, p in pairs]
        coverage = [each.mean(axis=0) for each in covered]
    means = {
        "rmse": _mean([metrics.rmse(y, p) for y, p in pairs]),
        "correlation": _mean([metrics.pearson(y, p) for y, p in pairs]),
        "ccc": _mean([metrics.ccc(y, p) for y, p in pairs]),
        "spread": _mean([metrics.spread(y, p) for y, p in pairs]),
        "coverage": _mean(coverage),
    }
    entry: dict[str, Any] = {}
    for column, target in enumerate(TARGETS):
        entry |= {
            target: _rounded(r2[:, column].mean()),
            f"{target}_std": _rounded(r2[:, column].std()) if len(r2) > 1 else None,
            f"{target}_interval": [_rounded(low[column]), _rounded(high[column])],
        }
        entry |= {f"{target}_{name}": _rounded(values[column]) for name, values in means.items()}
    rows = np.unique(np.concatenate([repeat.rows for repeat in repeats]))
    return entry | {
        "n_clips": len(rows), "n_groups": len(np.unique(clips.groups[rows])), "protocol": protocol,
    }  # fmt: skip


def calibrate(clips: Clips, repeats: Sequence[Repeat], *, dataset: str) -> dict[str, Any]:
    """The intervals that a checkpoint writes with each score.

    Returns
    -------
    dict
        ``level``; for each target how far the interval reaches either way, None where the clips
        are too few to promise anything; the data set it was calibrated on, and ``coverage``
        measured across folds.
    """
    residuals = [clips.labels[repeat.rows] - repeat.scores.mean for repeat in repeats]
    reach = _mean([half_widths(each) for each in residuals])
    coverage = _mean(
        [measured_coverage(e, r.fold_of) for e, r in zip(residuals, repeats, strict=True)]
    )
    return {
        "level": LEVEL,
        "calibrated_on": dataset,
        "half_width": {t: _rounded(reach[column]) for column, t in enumerate(TARGETS)},
        "coverage": {t: _rounded(coverage[column]) for column, t in enumerate(TARGETS)},
    }


def describe_protocol(split: SplitConfig, grouped_by: str, *, clip: bool = True) -> str:
    """How clips were divided, in words; `clip` as in the recipe."""
    how = _describe_split(split, grouped_by)
    return how if clip else f"{how}; the network's own output, not cut off at the ends of the scale"


def _describe_split(split: SplitConfig, grouped_by: str) -> str:
    if split.kind == "official":
        return f"the release's own test split; 95% interval over {grouped_by}s"
    repeats = f"mean and standard deviation of {split.n_repeats} repeats"
    if split.kind == "random":
        return (
            f"{split.test_share:.0%} of the clips drawn at random, clips of one {grouped_by} may "
            f"stand on both sides; {repeats}"
        )
    return (
        f"out of fold, {split.n_folds} folds that keep every {grouped_by} whole, {repeats}; "
        f"95% interval over which {grouped_by}s were measured"
    )


def describe_r2(entry: dict[str, Any], target: str) -> str:
    """One R^2, for a person: value, deviation over repeats; below, interval and correlation."""
    deviation, r = entry[f"{target}_std"], entry[f"{target}_correlation"]
    repeats = "" if deviation is None else f" +- {deviation:.3f}"
    correlation = "" if r is None else f" r {r:.2f}"
    low, high = (number(end, 2) for end in entry[f"{target}_interval"])
    return f"{number(entry[target], 3)}{repeats}\n({low} to {high}){correlation}"


def number(value: float | None, n_digits: int) -> str:
    """A figure for a person; ``-`` where it cannot be had."""
    return "-" if value is None else f"{value:.{n_digits}f}"


def _mean(values: Sequence[Float64]) -> Float64:
    return np.asarray(np.mean(np.stack(values), axis=0), np.float64)


def _rounded(value: float) -> float | None:
    # JSON knows neither infinity nor NaN.
    return round(float(value), 4) if np.isfinite(value) else None
