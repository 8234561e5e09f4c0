"""The system's libmpg123 beside libsndfile: the same samples, the same outcomes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mer_batch.audio import mpg123
from mer_batch.audio.decode import AudioLimits, decodes_alike
from mer_batch.audio.mpg123 import Mpg123Error, Mpg123File
from mer_batch.limits import ChildLimits
from tests.audio.outcomes import outcome, real_paths
from tests.fuzz.mutants import made_up_seeds, mutants
from tests.sounds import mp3, sine, without_tag

needs_library = pytest.mark.skipif(
    mpg123.library() is None, reason="the system has no libmpg123 to call"
)


@needs_library
def test_streams_of_every_kind_give_the_same_samples_bit_by_bit() -> None:
    for number, seed in enumerate(made_up_seeds()):
        assert outcome(seed, direct=True) == outcome(seed, direct=False), number


@needs_library
def test_a_stream_without_a_tag_ends_where_libsndfile_takes_it_to_end() -> None:
    audio_bytes = without_tag(mp3(sine(3.3)))
    assert outcome(audio_bytes, direct=True) == outcome(audio_bytes, direct=False)


@needs_library
def test_broken_streams_have_the_same_outcome() -> None:
    outcomes = [
        (outcome(mutant, direct=True), outcome(mutant, direct=False))
        for _, mutant in mutants(made_up_seeds()[:6], 5_000, 200)
    ]
    assert [ours for ours, _ in outcomes] == [theirs for _, theirs in outcomes]
    assert {isinstance(ours[0], str) for ours, _ in outcomes} == {True, False}


@needs_library
def test_real_streams_give_the_same_samples(data_root: Path) -> None:
    paths = real_paths(data_root)
    differing = [
        path.name
        for path in paths
        if outcome(path.read_bytes(), direct=True) != outcome(path.read_bytes(), direct=False)
    ]
    assert not differing
    assert len(paths) > 200


@needs_library
def test_a_stream_is_read_in_pieces_of_any_size() -> None:
    audio_bytes = mp3(sine(2.0))
    with Mpg123File(audio_bytes) as whole:
        expected = whole.read(out=np.empty((200_000, 1), np.float32)).copy()
        assert len(expected) == whole.frames
    pieces = []
    with Mpg123File(audio_bytes) as sound:
        while len(piece := sound.read(out=np.empty((1_000, 1), np.float32))):
            pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


@needs_library
def test_what_holds_no_frame_is_left_to_libsndfile() -> None:
    with pytest.raises(Mpg123Error):
        Mpg123File(b"no frame in here" * 100)


@needs_library
def test_the_two_builds_are_compared_before_work() -> None:
    assert decodes_alike(mp3(sine(1.5)))


def test_the_way_of_decoding_makes_no_track_another_reject() -> None:
    ways = [ChildLimits(AudioLimits(direct=direct)) for direct in (True, False)]
    assert ways[0].content() == ways[1].content()
    assert set(asdict(AudioLimits())) - set(ways[0].content()["audio"]) == {"direct"}
