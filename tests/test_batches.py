"""Batches out of parts: every clip once, shares apart and even, an order that is known before."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from mer_batch.audio.augment import Augmentation
from mer_batch.audio.mel import MelParameters
from mer_batch.batches import ShardBatches, augmented, find_spans
from mer_batch.config import StorageConfig
from mer_batch.errors import DatasetError
from mer_batch.feature_sets import FeatureSet
from mer_batch.network import Batch
from mer_batch.storage import Storage
from tests.feature_parts import SMALL, write_parts

STORAGE = Storage(StorageConfig())


def clips(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.clip_ids()]


def test_every_segment_of_every_labelled_track_comes_once(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 50, n_segments=2, min_frames=9)
    wanted = {name: labels[name] for name in list(labels)[::3]}
    shards = ShardBatches(parts, SMALL, wanted, batch_size=8, seed=0)
    batches = list(shards(0))
    assert sorted(clips(batches)) == sorted(f"{name}#{s}" for name in wanted for s in (0, 1))
    assert [len(batch.track_ids) for batch in batches] == [8] * 4 + [2]
    for batch in batches:
        assert batch.mels.shape == (len(batch.track_ids), 16, int(batch.n_frames.max()))
        assert batch.mels.dtype == batch.labels.dtype == torch.float32
        for name, label in zip(batch.track_ids, batch.labels.tolist(), strict=True):
            assert label == pytest.approx(labels[name], abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_mels_come_back_as_they_were_written(
    tmp_path: Path, dtype: Literal["float16", "float32"]
) -> None:
    parts, labels = write_parts(tmp_path, 12, dtype=dtype)
    shards = ShardBatches(parts, SMALL, labels, batch_size=5, seed=0, shuffle=False)
    mels = torch.cat([batch.mels for batch in shards()])
    # The file's own rule, read back: arousal is the level, valence upper against lower bands.
    level = mels.mean(dim=(1, 2))
    tilt = mels[:, 8:].mean(dim=(1, 2)) - mels[:, :8].mean(dim=(1, 2))
    truth = torch.tensor(list(labels.values()))
    torch.testing.assert_close(level, truth[:, 1] * 10 - 40, atol=1.0, rtol=0)
    torch.testing.assert_close(tilt, truth[:, 0] * 12, atol=1.5, rtol=0)


def test_epochs_differ_and_repeat_exactly(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 60)

    def order(epoch: int, seed: int = 0) -> list[str]:
        listed = parts[::-1] if epoch else parts  # however the parts are listed
        return clips(list(ShardBatches(listed, SMALL, labels, batch_size=7, seed=seed)(epoch)))

    assert order(1) == order(1)
    assert order(0) != order(1) != order(2)
    assert order(0) != order(0, seed=1)
    assert order(0) != sorted(order(0))
    plain = ShardBatches(parts, SMALL, labels, batch_size=7, seed=0, shuffle=False)
    assert clips(list(plain(0))) == clips(list(plain(3))) == [f"{name}#0" for name in labels]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_are_apart_and_even(tmp_path: Path, world_size: int) -> None:
    parts, labels = write_parts(tmp_path, 41, n_parts=2, row_group_size=9)
    left_out = set()
    for epoch in range(3):
        shares = [
            list(ShardBatches(parts, SMALL, labels, batch_size=4, seed=0, rank=rank,
                              world_size=world_size)(epoch))
            for rank in range(world_size)
        ]  # fmt: skip
        sizes = {tuple(len(batch.track_ids) for batch in share) for share in shares}
        assert len(sizes) == 1, "workers that wait for one another must have as many batches"
        names = [name for share in shares for name in clips(share)]
        assert len(names) == len(set(names)) == 41 - 41 % world_size
        left_out |= {f"{name}#0" for name in labels} - set(names)
    if 41 % world_size:
        assert len(left_out) > 41 % world_size, "not always the same ones"
    uneven = [
        clips(list(ShardBatches(parts, SMALL, labels, batch_size=4, seed=0, rank=rank,
                                world_size=world_size, shuffle=False, even=False)()))
        for rank in range(world_size)
    ]  # fmt: skip
    assert sorted(name for share in uneven for name in share) == sorted(
        f"{name}#0" for name in labels
    )


def test_more_workers_than_clips_get_nothing_rather_than_hang(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 2, n_parts=1)
    for rank in range(3):
        shards = ShardBatches(parts, SMALL, labels, batch_size=4, seed=0, rank=rank, world_size=3)
        assert list(shards(0)) == []


def test_rows_far_apart_meet_in_a_batch(tmp_path: Path) -> None:
    # More rows than the shuffle holds at a time, read in order of their numbers.
    parts, labels = write_parts(tmp_path, 1500, n_parts=1, row_group_size=50)
    first = next(iter(ShardBatches(parts, SMALL, labels, batch_size=64, seed=0)(0)))
    numbers = [int(name.rpartition("-")[2]) for name in first.track_ids]
    assert np.std(numbers) > 200
    assert len({number // 50 for number in numbers}) >= 5


def test_tracks_without_features_are_named(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 6)
    labels |= {"lost 1": (0.0, 0.0), "lost 2": (0.0, 0.0)}
    with pytest.raises(DatasetError, match=r"2 of 8 labelled tracks.*lost 1, lost 2"):
        ShardBatches(parts, SMALL, labels, batch_size=4, seed=0)
    other = FeatureSet(name="other", mel=SMALL.mel, unit="dB", segment_seconds=0.25)
    with pytest.raises(DatasetError, match=f"6 of 6 .*features_id='{other.features_id}'"):
        ShardBatches(parts, other, dict(list(labels.items())[:6]), batch_size=4, seed=0)


def test_a_set_of_one_length_keeps_its_silence_and_comes_in_power(tmp_path: Path) -> None:
    fixed = FeatureSet(
        name="fixed", unit="power", segment_seconds=0.25, fixed_length=True,
        mel=MelParameters(8000, 128, 128, 16, 0.0, 4000.0),
    )  # fmt: skip
    parts, labels = write_parts(tmp_path, 8, feature_set=fixed, min_frames=5)
    (batch,) = ShardBatches(parts, fixed, labels, batch_size=8, seed=0, shuffle=False)()
    assert batch.n_frames.tolist() == [16] * 8
    assert batch.mels.shape == (8, 16, 16)
    assert float(batch.mels.min()) == 0.0  # at the floor there is nothing


def test_augmented_clips_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 20, n_segments=2)
    how = Augmentation(crop_frames=8, gain_db=6)

    def by_key(batch_size: int) -> dict[str, torch.Tensor]:
        shards = ShardBatches(parts, SMALL, labels, batch_size=batch_size, seed=0)
        batches = augmented(shards(0), how, SMALL, seed=0, epoch=0)
        return {key: mel for b in batches for key, mel in zip(b.clip_ids(), b.mels, strict=True)}

    few, many = by_key(3), by_key(40)
    assert few.keys() == many.keys()
    assert all(torch.equal(few[key], many[key]) for key in few)


def test_rows_of_audio_that_has_changed_since_are_passed_over(tmp_path: Path) -> None:
    parts, labels = write_parts(tmp_path, 10)
    of_today = dict.fromkeys(labels, "1")
    spans = find_spans(parts, labels, SMALL.features_id, STORAGE, versions=of_today)
    assert sum(len(span.rows) for span in spans) == 10
    with pytest.raises(DatasetError, match=r"1 of 10 .* such as track-00003"):
        find_spans(
            parts, labels, SMALL.features_id, STORAGE, versions=of_today | {"track-00003": "2"}
        )
