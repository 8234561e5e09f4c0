"""Who is learned from and who is measured on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_batch.config import SplitConfig
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.splits import folds, grouped_folds, validation_rows


def labels_of(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size=(n, 2))


OFFICIAL = SplitConfig(kind="official")


def one_set(groups: np.ndarray) -> np.ndarray:
    return np.zeros(len(groups), np.int64)


def groups_of(n_groups: int, per_group: int) -> np.ndarray:
    return np.repeat([f"album {i}" for i in range(n_groups)], per_group)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=6, max_size=60),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_no_group_is_split_and_every_clip_is_tested_once(
    counts: list[int], n_folds: int, seed: int
) -> None:
    groups = np.repeat([f"g{i}" for i in range(len(counts))], counts)
    split = SplitConfig(n_folds=n_folds, n_repeats=2, seed=seed)
    empty = np.full(len(groups), "")
    tested: dict[int, list[int]] = {}
    for fold in folds(groups, labels_of(len(groups)), empty, one_set(groups), split):
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert len(fold.train) and len(fold.test)
        tested.setdefault(fold.repeat, []).extend(fold.test.tolist())
    assert sorted(tested) == [0, 1]
    for rows in tested.values():
        assert sorted(rows) == list(range(len(groups)))


def test_folds_hold_the_same_moods() -> None:
    groups, labels = groups_of(100, 2), labels_of(200)
    fold_of = grouped_folds(groups, labels, one_set(groups), 5, seed=0)
    for number in range(5):
        here = labels[fold_of == number]
        assert len(here) == pytest.approx(40, abs=4)
        # Unstratified, the share of a quadrant would vary by 0.07 between folds.
        quadrant = (here > np.median(labels, axis=0)).all(axis=1)
        everywhere = (labels > np.median(labels, axis=0)).all(axis=1)
        assert quadrant.mean() == pytest.approx(everywhere.mean(), abs=0.06)


def test_the_seed_decides() -> None:
    groups, labels = groups_of(40, 3), labels_of(120)
    first, again, other = (
        grouped_folds(groups, labels, one_set(groups), 5, seed=s) for s in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_folds=5 must not exceed the 3 groups"):
        grouped_folds(groups_of(3, 10), labels_of(30), np.zeros(30, np.int64), 5, seed=0)


def test_the_papers_split_is_60_20_20_of_the_clips() -> None:
    groups, labels, none = groups_of(10, 10), labels_of(100), np.full(100, "")
    split = SplitConfig(kind="random", n_repeats=3, validation_share=0.25, test_share=0.2)
    found = list(folds(groups, labels, none, one_set(groups), split))
    assert [len(fold.test) for fold in found] == [20, 20, 20]
    assert set(found[0].test) != set(found[1].test)
    train, validation = validation_rows(found[0].train, groups, none, split, seed=0)
    assert (len(train), len(validation)) == (60, 20)
    assert set(groups[train]) & set(groups[validation])  # as the paper: albums on both sides


def test_validation_clips_share_no_group_with_training_clips() -> None:
    groups, rows = groups_of(20, 4), np.arange(8, 80)
    train, validation = validation_rows(rows, groups, np.full(80, ""), SplitConfig(), seed=3)
    assert sorted([*train, *validation]) == rows.tolist()
    assert not set(groups[train]) & set(groups[validation])
    assert len(validation) == pytest.approx(0.2 * len(rows), abs=4)
    _, other = validation_rows(rows, groups, np.full(80, ""), SplitConfig(), seed=4)
    assert set(other) != set(validation)


def test_one_group_leaves_nothing_to_stop_by() -> None:
    groups = np.full(10, "the only album")
    with pytest.raises(DatasetError, match="the only album"):
        validation_rows(np.arange(10), groups, np.full(10, ""), SplitConfig(), seed=0)


def test_the_official_split_is_followed() -> None:
    splits = np.array(["train"] * 6 + ["validation"] * 2 + ["test"] * 2)
    groups = np.array([f"artist {i}" for i in range(10)])
    split = SplitConfig(kind="official")
    (fold,) = folds(groups, labels_of(10), splits, one_set(groups), split)
    assert fold.test.tolist() == [8, 9]
    train, validation = validation_rows(fold.train, groups, splits, split, seed=0)
    assert (train.tolist(), validation.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7])


def test_an_official_split_that_cuts_a_group_is_refused_by_name() -> None:
    splits = np.array(["train", "train", "test", "test"])
    groups = np.array(["A", "B", "B", "C"])
    with pytest.raises(DatasetError, match=r"1 groups stand both .* 1 clips .* 'B'"):
        list(folds(groups, labels_of(4), splits, one_set(groups), OFFICIAL))
    dropping = SplitConfig(kind="official", spanning="drop")
    (fold,) = folds(groups, labels_of(4), splits, one_set(groups), dropping)
    assert (fold.train.tolist(), fold.test.tolist()) == ([0], [2, 3])


def test_every_data_set_needs_a_split_of_its_own() -> None:
    groups = np.array([f"artist {i}" for i in range(8)])
    tasks = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    splits = np.array(["train", "train", "test", "test", "", "", "", ""])
    with pytest.raises(DatasetError, match="number 2 has none"):
        list(folds(groups, labels_of(8), splits, tasks, OFFICIAL))


@pytest.mark.parametrize("kind", ["grouped", "random"])
def test_a_small_set_beside_a_large_one_is_divided_as_evenly(kind: str) -> None:
    groups = np.array([f"small {i // 2}" for i in range(20)] + [f"g{i // 5}" for i in range(1000)])
    tasks = np.array([0] * 20 + [1] * 1000)
    split = SplitConfig(kind=kind, n_repeats=2, test_share=0.2)  # type: ignore[arg-type]
    for fold in folds(groups, labels_of(1020), np.full(1020, ""), tasks, split):
        assert 2 <= (tasks[fold.test] == 0).sum() <= 6
        assert (tasks[fold.train] == 0).sum() >= 14


def test_a_group_in_two_data_sets_is_on_one_side() -> None:
    tasks = np.repeat([0, 1], 60)
    groups = np.array([f"artist {i % 20}" for i in range(120)])
    for fold in folds(groups, labels_of(120), np.full(120, ""), tasks, SplitConfig()):
        assert not set(groups[fold.train]) & set(groups[fold.test])


def test_a_set_with_too_few_groups_is_named() -> None:
    groups = np.array(["the album"] * 12 + [f"g{i}" for i in range(40)])
    tasks = np.array([0] * 12 + [1] * 40)
    with pytest.raises(ConfigError, match="1 groups that data set number 1 has"):
        list(folds(groups, labels_of(52), np.full(52, ""), tasks, SplitConfig()))


def test_a_random_part_leaves_something_to_learn_from() -> None:
    split = SplitConfig(kind="random", n_repeats=1, test_share=0.9)
    groups = groups_of(3, 1)
    (fold,) = folds(groups, labels_of(3), np.full(3, ""), one_set(groups), split)
    assert (len(fold.train), len(fold.test)) == (1, 2)


def test_no_official_split_is_refused() -> None:
    groups = groups_of(4, 1)
    with pytest.raises(DatasetError, match=r"split\.kind=grouped"):
        list(folds(groups, labels_of(4), np.full(4, ""), one_set(groups), OFFICIAL))
