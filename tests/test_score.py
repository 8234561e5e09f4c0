"""Scores of tracks, one by one and many together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mer_batch.errors import AudioError
from mer_batch.models import on_device
from mer_batch.schema import SCORE_COLUMNS
from mer_batch.score import Scorer, TrackScore, compute_in_one_thread, track_score


class Mean(torch.nn.Module):
    """Two members, whose scores are the mean of the features and its opposite."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean = features.mean(dim=(1, 2))
        member = torch.stack([mean, -mean], dim=1)
        return torch.stack([member, member / 2], dim=1)


def test_many_tracks_score_as_each_by_itself() -> None:
    rng = np.random.default_rng(1)
    n_frames = rng.integers(5, 9, size=50)
    segments = rng.normal(size=(50, 4, 8)).astype(np.float32)
    scorer = Scorer(on_device(Mean(), "cpu"))
    outputs = scorer.outputs(segments, n_frames)
    assert outputs.shape == (50, 2, 2)
    for row, length in enumerate(n_frames.tolist()):
        expected = scorer.score(segments[row : row + 1, :, :length].copy())
        found = track_score(outputs[row : row + 1])
        np.testing.assert_allclose([*found.mean, *found.std], [*expected.mean, *expected.std])


def test_mean_and_spread_are_over_segments_and_members() -> None:
    outputs = np.array([[[0.5, -2.0], [0.1, -2.0]], [[0.3, -2.0], [0.3, -2.0]]])
    score = track_score(outputs)
    assert score.mean == (pytest.approx(0.3), -1.0), "clipped"
    assert score.std == (pytest.approx(np.std([0.5, 0.1, 0.3, 0.3])), 0.0)
    assert score.n_segments == 2


def test_what_is_not_finite_is_a_reject() -> None:
    with pytest.raises(AudioError) as caught:
        track_score(np.array([[[np.nan, 0.0]]]))
    assert caught.value.reason == "not_finite"


def test_columns_are_those_of_the_table() -> None:
    columns = TrackScore((0.1, 0.2), None, 3).columns(90.0, (None, None))
    assert tuple(columns) == SCORE_COLUMNS
    assert columns["valence_std"] is None
    assert (columns["arousal"], columns["n_segments"], columns["duration_seconds"]) == (0.2, 3, 90)


def test_intervals_reach_as_far_as_they_were_calibrated_but_not_off_the_scale() -> None:
    columns = TrackScore((0.1, -0.9), (0.02, 0.3), 1).columns(30.0, (0.25, 0.3))
    assert (columns["valence_low"], columns["valence_high"]) == pytest.approx((-0.15, 0.35))
    assert (columns["arousal_low"], columns["arousal_high"]) == pytest.approx((-1.0, -0.6))
    unknown = TrackScore((0.1, -0.9), None, 1).columns(30.0, (None, 0.3))
    assert unknown["valence_low"] is None and unknown["valence_high"] is None


def test_no_rows_are_no_outputs() -> None:
    outputs = Scorer(on_device(Mean(), "cpu")).outputs(
        np.empty((0, 4, 8), np.float32), np.empty(0, np.int64)
    )
    assert outputs.shape == (0, 0, 2)


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    give_back = compute_in_one_thread()
    assert torch.get_num_threads() == 1
    give_back()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
