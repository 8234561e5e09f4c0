"""What a child makes of a track, and what is believed of its replies."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mer_batch.audio.decode import AudioLimits
from mer_batch.audio.mel import db_to_power
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.extract import Extractor
from mer_batch.feature_sets import feature_set, feature_set_names
from mer_batch.schema import SCORE_COLUMNS
from mer_batch.task import STEP_DB, Dtype, ExtractTask, GivenTrack, ScoreTask, task_of
from tests.sounds import without_tag


def through_the_wire(task: ScoreTask | ExtractTask) -> Any:
    """The task as the child has it."""
    told, frames = task.setup()
    return task_of(json.loads(json.dumps({"task": task.name, **told})), frames)


@pytest.mark.parametrize("name", feature_set_names())
def test_a_task_arrives_as_it_was_sent(name: str) -> None:
    for task in (
        ExtractTask(replace(feature_set(name), placement="random"), "float32"),
        ScoreTask(b"card", b"\x00weights"),
    ):
        assert through_the_wire(task) == task


@pytest.mark.parametrize("name", feature_set_names())
def test_features_are_those_of_the_feature_set_in_decibels(name: str, long_mp3: bytes) -> None:
    features = feature_set(name)
    expected = Extractor(features, AudioLimits()).extract(without_tag(long_mp3) * 3)
    for dtype, tolerance in (("float16", STEP_DB / 2 + 1e-4), ("float32", 1e-4)):
        task = ExtractTask(features, dtype)  # type: ignore[arg-type]
        header, payload = task.worker(AudioLimits())(GivenTrack(without_tag(long_mp3) * 3))
        assert len(payload) == task.n_bytes(json.loads(json.dumps(header)))
        found = task.outcome(header, payload)
        assert found.segments.dtype == dtype
        assert found.segments.shape == (3, features.mel.n_mels, features.segment_frames)
        assert found.starts_seconds == expected.starts_seconds
        assert found.n_frames == features.segment_frames
        decibels = expected.segments
        if features.unit == "power":
            decibels = 10 * np.log10(np.maximum(expected.segments, 1e-10))
        np.testing.assert_allclose(found.segments.astype(float), decibels, atol=tolerance, rtol=0)


def test_power_is_restored_to_a_hundredth(short_mp3s: dict[str, bytes]) -> None:
    paper = feature_set("paper")
    audio = short_mp3s["tense"]
    expected = Extractor(paper, AudioLimits()).extract(audio).segments
    task = ExtractTask(paper, "float16")
    header, payload = task.worker(AudioLimits())(GivenTrack(audio))
    found = task.outcome(header, payload)
    power = db_to_power(found.segments.astype(np.float32))
    heard = expected > 1.01e-10
    np.testing.assert_allclose(power[heard], expected[heard], rtol=0.0073)
    assert (power[..., found.n_frames :] == 0).all(), "what was filled up is silence"


def test_a_short_track_says_how_much_of_it_is_real(short_mp3s: dict[str, bytes]) -> None:
    features = feature_set("log_mel")
    task = ExtractTask(features, "float16")
    header, payload = task.worker(AudioLimits())(GivenTrack(short_mp3s["calm"]))
    found = task.outcome(header, payload)
    assert found.segments.shape == (1, 80, features.segment_frames)
    own = Extractor(features, AudioLimits()).extract(short_mp3s["calm"])
    assert found.n_frames == own.n_frames == own.segments.shape[2] < features.segment_frames
    assert (found.segments[..., found.n_frames :] == features.floor_db).all()


def test_random_places_follow_from_the_id(long_mp3: bytes) -> None:
    features = replace(feature_set("log_mel"), placement="random")
    work = ExtractTask(features, "float16").worker(AudioLimits())
    audio = without_tag(long_mp3) * 4
    first = work(GivenTrack(audio, track_id="a"))
    assert first == work(GivenTrack(audio, track_id="a"))
    assert first[0]["starts_seconds"] != work(GivenTrack(audio, track_id="b"))[0]["starts_seconds"]
    assert len(first[0]["starts_seconds"]) == 7


GOOD = {"starts_seconds": [0.0, 1.5], "n_frames": 646, "duration_seconds": 60.0}


def test_the_length_of_what_follows_is_that_of_the_header() -> None:
    task = ExtractTask(feature_set("log_mel"), "float16")
    assert task.n_bytes(GOOD) == 2 * 80 * 646 * 2


@pytest.mark.parametrize(
    "change",
    [
        {"starts_seconds": []},
        {"starts_seconds": [0.0] * 8},
        {"starts_seconds": ["0"]},
        {"starts_seconds": None},
        {"n_frames": 647},
        {"n_frames": 0},
        {"n_frames": 1.5},
        {"duration_seconds": "60"},
        {"more": 1},
        {"n_frames": True},
        {"starts_seconds": [float("nan")]},
        {"starts_seconds": [10**400]},
        {"starts_seconds": [-1.0]},
        {"duration_seconds": float("inf")},
        {"duration_seconds": True},
    ],
)
def test_a_header_of_another_form_is_not_trusted(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unexpected keys or values"):
        ExtractTask(feature_set("log_mel"), "float16").n_bytes({**GOOD, **change})


def test_scores_have_the_tables_columns(short_mp3s: dict[str, bytes]) -> None:
    checkpoint = builtin_checkpoint()
    task = ScoreTask(checkpoint.card_json, checkpoint.weights)
    header, payload = task.worker(AudioLimits())(GivenTrack(short_mp3s["calm"]))
    assert task.n_bytes(json.loads(json.dumps(header))) == len(payload) == 0
    assert tuple(header) == SCORE_COLUMNS


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_not_trusted(dtype: Dtype, value: float) -> None:
    task = ExtractTask(feature_set("log_mel"), dtype)
    segments = np.zeros((2, 80, 646), dtype)
    assert task.outcome(GOOD, segments.tobytes()).segments.shape == segments.shape
    segments[1, 79, 645] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        task.outcome(GOOD, segments.tobytes())


GOOD_SCORE = {
    "valence": -1.0, "arousal": 0.25, "valence_std": None, "arousal_std": 0.5,
    "valence_low": -1.0, "valence_high": 1.0, "arousal_low": None, "arousal_high": None,
    "n_segments": 7, "duration_seconds": 60.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"valence": float("nan")},
        {"valence": 1.5},
        {"valence": None},
        {"arousal": True},
        {"arousal": 10**400},
        {"arousal_std": -0.1},
        {"arousal_std": float("inf")},
        {"valence_low": -1.1},
        {"valence_high": "1"},
        {"n_segments": True},
        {"n_segments": 7.0},
        {"n_segments": 0},
        {"n_segments": 2**31},
        {"duration_seconds": float("inf")},
        {"duration_seconds": None},
        {"more": 1.0},
    ],
)
def test_a_score_off_its_scale_is_not_trusted(change: dict[str, Any]) -> None:
    task = ScoreTask(b"card", b"weights")
    assert task.n_bytes(GOOD_SCORE) == 0
    with pytest.raises(ValueError, match="unexpected keys or values"):
        task.n_bytes({**GOOD_SCORE, **change})
