"""Cross-validation with learners that know what they should not, and learners of planted skill."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from mer_batch import metrics
from mer_batch.clips import Clips
from mer_batch.config import SplitConfig
from mer_batch.evaluate import calibrate, cross_validate, leave_one_out, measure
from mer_batch.learners import Scores

SPLIT = SplitConfig(n_folds=5, n_repeats=2)


@dataclass(frozen=True)
class Named:
    """As much of a data set as is asked for here."""

    name: str
    grouped_by: str = "album"


def clips_of(n: int, *, n_sets: int = 1, seed: int = 0) -> Clips:
    rng = np.random.default_rng(seed)
    return Clips(
        datasets=[Named(f"set {task}") for task in range(n_sets)],  # type: ignore[misc]
        track_ids=np.array([f"t{i}" for i in range(n)]),
        labels=rng.uniform(-0.8, 0.8, size=(n, 2)),
        tasks=np.arange(n) % n_sets,
        groups=np.array([f"g{i // 4}" for i in range(n)]),
        splits=np.full(n, ""),
    )


@dataclass
class Remembering:
    """Knows the labels of what it was shown, and guesses noise elsewhere."""

    clips: Clips
    name: str = "remembering"
    uses_related: bool = True
    shown: list[tuple[set[int], int]] = field(default_factory=list)

    def fit(self, rows: np.ndarray, *, target: int, seed: int) -> Remembering:
        self.shown.append((set(rows.tolist()), target))
        return self

    def score(self, rows: np.ndarray) -> Scores:
        seen, _ = self.shown[-1]
        known = np.isin(rows, list(seen))[:, None]
        guess = np.random.default_rng(len(self.shown)).uniform(-0.8, 0.8, size=(len(rows), 2))
        mean = np.where(known, self.clips.labels[rows], guess)
        return Scores(mean, np.full_like(mean, 0.1))


@dataclass
class Skilled:
    """Knows every label but for noise."""

    clips: Clips
    noise: float
    name: str = "skilled"
    uses_related: bool = True

    def fit(self, rows: np.ndarray, *, target: int, seed: int) -> Skilled:
        return self

    def score(self, rows: np.ndarray) -> Scores:
        error = np.random.default_rng(1).normal(size=(len(self.clips.labels), 2))[rows]
        mean = self.clips.labels[rows] + self.noise * error
        return Scores(mean, np.full_like(mean, np.nan))


def test_what_a_model_has_seen_is_never_measured() -> None:
    clips = clips_of(200)
    entry = measure(
        clips, cross_validate(Remembering(clips), clips, SPLIT, target=0), protocol="p", seed=0
    )
    # A leak would show as skill: random guesses have about minus the labels' own variance.
    assert entry["valence"] < -0.5 and entry["arousal"] < -0.5


def test_every_clip_of_the_target_is_measured_once_a_repeat() -> None:
    clips = clips_of(120, n_sets=2)
    learner = Remembering(clips)
    repeats = cross_validate(learner, clips, SPLIT, target=1)
    assert [sorted(repeat.rows) for repeat in repeats] == [clips.of(1).tolist()] * 2
    assert {target for _, target in learner.shown} == {1}
    everywhere = cross_validate(learner, clips, SPLIT, target=1, everywhere=True)
    assert [sorted(repeat.rows) for repeat in everywhere] == [list(range(120))] * 2


def test_leaving_a_set_out_shows_none_of_its_clips() -> None:
    clips = clips_of(90, n_sets=3)
    learner = Remembering(clips)
    found = leave_one_out(learner, clips, seed=0)
    for task, (shown, target) in zip(found, learner.shown, strict=True):
        assert not shown & set(clips.of(task).tolist())
        assert target != task
        assert found[task].rows.tolist() == clips.of(task).tolist()
    assert leave_one_out(learner, clips_of(20), seed=0) == {}


def test_planted_skill_is_measured_as_such() -> None:
    clips = clips_of(2000)
    repeats = cross_validate(Skilled(clips, noise=0.2), clips, SPLIT, target=0)
    entry = measure(clips, repeats, protocol="as planted", seed=0)
    variance = 1.6**2 / 12
    for target in ("valence", "arousal"):
        assert entry[target] == pytest.approx(1 - 0.04 / variance, abs=0.02)
        low, high = entry[f"{target}_interval"]
        assert low < entry[target] < high
        assert entry[f"{target}_rmse"] == pytest.approx(0.2, abs=0.01)
        assert entry[f"{target}_coverage"] == pytest.approx(0.9, abs=0.02)
    scores, labels = repeats[0].scores.mean, clips.labels[repeats[0].rows]
    assert entry["valence_ccc"] == pytest.approx(metrics.ccc(labels, scores)[0], abs=1e-4)
    assert (entry["n_clips"], entry["n_groups"], entry["protocol"]) == (2000, 500, "as planted")


def test_intervals_reach_as_far_as_normal_errors_do() -> None:
    clips = clips_of(2000)
    repeats = cross_validate(Skilled(clips, noise=0.1), clips, SPLIT, target=0)
    intervals = calibrate(clips, repeats, dataset="set 0")
    # 90 % of a normal distribution lie within 1.645 deviations.
    for target in ("valence", "arousal"):
        assert intervals["half_width"][target] == pytest.approx(0.1645, abs=0.01)
        assert intervals["coverage"][target] == pytest.approx(0.9, abs=0.02)
    assert (intervals["level"], intervals["calibrated_on"]) == (0.9, "set 0")


def test_too_few_clips_promise_no_interval() -> None:
    clips = clips_of(8)
    split = SplitConfig(n_folds=2, n_repeats=1)
    repeats = cross_validate(Skilled(clips, noise=0.1), clips, split, target=0)
    assert calibrate(clips, repeats, dataset="set 0")["half_width"]["valence"] is None
