"""Promises that every feature set keeps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mer_batch.audio.decode import DECODER
from mer_batch.audio.mel import MelParameters
from mer_batch.errors import ConfigError
from mer_batch.feature_sets import _KERNEL_VERSION, FeatureSet, feature_set, feature_set_names
from mer_batch.schema import content_id


@pytest.mark.parametrize("name", feature_set_names())
def test_every_feature_set_keeps_its_promises(name: str) -> None:
    features = feature_set(name)
    assert features.name == name
    assert len(features.features_id) == 12
    # A 30-s segment must fit into a row of a table: at most the paper's 1292 x 40 values.
    assert features.mel.n_mels * features.segment_frames <= 1292 * 40
    mel = np.random.default_rng(0).random(
        (3 * features.segment_frames, features.mel.n_mels), np.float32
    )
    segments, starts = features.segments(mel)
    assert segments.shape == (3, features.mel.n_mels, features.segment_frames)
    assert segments.dtype == np.float32
    assert segments.flags.c_contiguous
    assert starts[0] == 0.0
    assert starts == sorted(starts)


def test_paper_has_the_papers_shape() -> None:
    paper = feature_set("paper")
    assert paper.mel == MelParameters(44_100, 1024, 1024, 40, 0.0, 22_050.0)
    assert (paper.segment_frames, paper.unit, paper.max_segments) == (1292, "power", 7)


def test_a_short_clip_is_filled_with_silence_or_left_short() -> None:
    mel = np.ones((100, 40), np.float32)
    fixed, _ = feature_set("paper").segments(mel)
    assert fixed.shape == (1, 40, 1292)
    assert (fixed[..., :100] == 1).all()
    assert (fixed[..., 100:] == 0).all()
    own = dataclasses.replace(feature_set("paper"), fixed_length=False, unit="dB")
    assert own.segments(mel)[0].shape == (1, 40, 100)


def test_segments_are_cut_out_of_the_tracks_own_spectrogram() -> None:
    paper = feature_set("paper")
    mel = np.arange(4000 * 40, dtype=np.float32).reshape(4000, 40)
    segments, starts = paper.segments(mel)
    for segment, start in zip(segments, starts, strict=True):
        first = round(start * 44_100 / 1024)
        np.testing.assert_array_equal(segment.T, mel[first : first + 1292])


@pytest.mark.parametrize(
    "change",
    [
        {"max_segments": 3},
        {"unit": "dB"},
        {"segment_seconds": 15.0},
        {"fixed_length": False},
        {"placement": "random"},
    ],
)
def test_the_id_changes_with_the_configuration(change: dict[str, object]) -> None:
    paper = feature_set("paper")
    assert dataclasses.replace(paper, **change).features_id != paper.features_id  # type: ignore[arg-type]


def test_the_id_of_even_places_is_what_it_was_before_there_was_a_choice() -> None:
    paper = feature_set("paper")
    content = {**dataclasses.asdict(paper), "decoder": DECODER, "kernel": _KERNEL_VERSION}
    del content["placement"]
    assert paper.features_id == content_id(content)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"'log_mell' must be one of log_mel, paper; did you mean 'log_mel'"
    ):
        feature_set("log_mell")


def test_feature_sets_are_values() -> None:
    assert isinstance(feature_set("paper"), FeatureSet)
    assert feature_set("paper") == feature_set("paper")


def test_random_placement_cuts_where_the_id_says() -> None:
    paper = dataclasses.replace(feature_set("paper"), placement="random")
    mel = np.arange(4000 * 40, dtype=np.float32).reshape(4000, 40)
    segments, starts = paper.segments(mel, track_id="x")
    assert len(starts) == 7
    for segment, start in zip(segments, starts, strict=True):
        first = round(start * 44_100 / 1024)
        np.testing.assert_array_equal(segment.T, mel[first : first + 1292])
    np.testing.assert_array_equal(segments, paper.segments(mel, track_id="x")[0])
    assert starts != paper.segments(mel, track_id="y")[1]
