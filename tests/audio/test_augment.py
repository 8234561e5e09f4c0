"""Augmentation: seeded by the clip, true to the units, and to what each kind says it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mer_batch.audio.augment import Augmentation, augment
from mer_batch.audio.mel import power_to_db

ALL = Augmentation(
    crop_frames=30, n_time_masks=2, max_time_mask_frames=6, n_band_masks=1, max_band_mask=3,
    gain_db=6.0, stretch=0.2, mixup=0.4,
)  # fmt: skip


def clips(n: int, n_frames: int = 60, n_mels: int = 12) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    rng = torch.Generator().manual_seed(n)
    mels = torch.randn(n, n_mels, n_frames, generator=rng) * 10 - 40
    lengths = torch.full((n,), n_frames)
    return mels, lengths, torch.rand(n, 2, generator=rng), [f"track {row}" for row in range(n)]


def test_nothing_switched_on_changes_nothing() -> None:
    mels, n_frames, labels, keys = clips(4)
    out = augment(mels, n_frames, labels, keys, Augmentation(), unit="dB", seed=0, epoch=0)
    for before, after in zip((mels, n_frames, labels), out, strict=True):
        assert torch.equal(before, after)


def test_a_clip_is_augmented_alike_in_any_batch_and_order() -> None:
    how = Augmentation(**{**vars(ALL), "mixup": 0.0})
    mels, n_frames, labels, keys = clips(6)
    together, lengths, _ = augment(mels, n_frames, labels, keys, how, unit="dB", seed=1, epoch=3)
    for row in range(6):
        one = slice(row, row + 1)
        alone, length, _ = augment(
            mels[one], n_frames[one], labels[one], keys[one], how, unit="dB", seed=1, epoch=3
        )
        n = int(lengths[row])
        assert int(length[0]) == n
        assert torch.equal(alone[0, :, :n], together[row, :, :n])


def test_mixup_does_not_depend_on_the_order_of_the_batch() -> None:
    mels, n_frames, labels, keys = clips(6)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = [keys[row] for row in order.tolist()]
    straight = augment(mels, n_frames, labels, keys, ALL, unit="dB", seed=1, epoch=0)
    turned = augment(
        mels[order], n_frames[order], labels[order], shuffled, ALL, unit="dB", seed=1, epoch=0
    )
    for before, after in zip(straight, turned, strict=True):
        torch.testing.assert_close(before[order], after, rtol=0, atol=1e-5)


def test_epochs_seeds_and_tracks_differ() -> None:
    mels, n_frames, labels, _ = clips(1)
    seen = set()
    for seed, epoch, key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")):
        out, _, _ = augment(mels, n_frames, labels, [key], ALL, unit="dB", seed=seed, epoch=epoch)
        seen.add(round(float(out.sum()), 3))
    assert len(seen) == 4


def test_a_crop_is_a_piece_of_the_clip_and_every_place_is_taken() -> None:
    ramp = torch.arange(40.0).expand(2, 1, 40)
    how = Augmentation(crop_frames=30)
    begins = set()
    for epoch in range(300):
        out, n_frames, _ = augment(
            ramp, torch.tensor([40, 12]), torch.zeros(2, 2), ["long", "short"], how,
            unit="dB", seed=0, epoch=epoch,
        )  # fmt: skip
        begin = int(out[0, 0, 0])
        assert torch.equal(out[0, 0], torch.arange(begin, begin + 30.0))
        assert n_frames.tolist() == [30, 12]
        assert torch.equal(out[1, 0, :12], torch.arange(12.0))
        assert not out[1, 0, 12:].any()
        begins.add(begin)
    assert begins == set(range(11))


def test_stretching_resamples_time_evenly() -> None:
    # Interpolating a straight line gives a straight line, of another slope: the clip's speed.
    ramp = torch.arange(100.0).expand(1, 3, 100)
    speeds = []
    for epoch in range(200):
        out, n_frames, _ = augment(
            ramp, torch.tensor([100]), torch.zeros(1, 2), ["a"], Augmentation(stretch=0.25),
            unit="dB", seed=0, epoch=epoch,
        )  # fmt: skip
        line = out[0, 1].numpy()
        speed = line[1]
        np.testing.assert_allclose(line, speed * np.arange(len(line)), atol=1e-3)
        assert int(n_frames) == len(line) == 1 + int(99 / speed + 1e-4)
        speeds.append(speed)
    assert 0.75 <= min(speeds) < 0.78
    assert 1.22 < max(speeds) <= 1.25


def test_gain_is_one_shift_of_the_level_in_either_unit() -> None:
    power = torch.rand(3, 5, 20) + 0.1
    decibels = torch.from_numpy(power_to_db(power.numpy()))
    arguments = (
        torch.tensor([20] * 3),
        torch.zeros(3, 2),
        ["a", "b", "c"],
        Augmentation(gain_db=9),
    )
    louder, _, _ = augment(power, *arguments, unit="power", seed=0, epoch=0)
    shifted, _, _ = augment(decibels, *arguments, unit="dB", seed=0, epoch=0)
    np.testing.assert_allclose(power_to_db(louder.numpy()), shifted.numpy(), atol=1e-4)
    gains = (shifted - decibels).flatten(1)
    assert (gains.max(dim=1).values - gains.min(dim=1).values).max() < 1e-4
    assert gains.abs().max() <= 9
    assert gains.mean(dim=1).unique().numel() == 3


@pytest.mark.parametrize("with_blank", [False, True])
def test_masks_blank_runs_of_frames_and_bands_of_the_real_clip(with_blank: bool) -> None:
    mels, _, labels, keys = clips(1, n_frames=50)
    blank = torch.linspace(-80, -20, 12) if with_blank else None
    time = Augmentation(n_time_masks=1, max_time_mask_frames=7)
    band = Augmentation(n_band_masks=1, max_band_mask=4)
    sizes: dict[str, set[int]] = {"time": set(), "band": set()}
    fill = blank if blank is not None else mels[0, :, :40].mean(dim=1)
    for epoch in range(200):
        for name, how in (("time", time), ("band", band)):
            out, _, _ = augment(
                mels, torch.tensor([40]), labels, keys, how,
                unit="dB", seed=0, epoch=epoch, blank=blank,
            )  # fmt: skip
            changed = (out != mels)[0]
            assert not changed[:, 40:].any(), "padding is no music to blank"
            lines = changed.any(dim=0) if name == "time" else changed.any(dim=1)
            places = lines.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            sizes[name].add(len(places))
            torch.testing.assert_close(
                out[0][changed], fill[:, None].expand(12, 50)[changed], rtol=0, atol=1e-4
            )
    assert sizes == {"time": set(range(8)), "band": set(range(5))}


def test_mixup_mixes_labels_by_the_share_of_the_features() -> None:
    # Clips of a constant level each: their mix tells the share and the partner.
    levels = torch.tensor([0.0, 1.0, 10.0, 100.0])
    mels = levels[:, None, None].expand(4, 3, 8).clone()
    labels = torch.stack([levels, -levels], dim=1)
    shares = []
    for epoch in range(100):
        mixed, _, targets = augment(
            mels, torch.tensor([8, 8, 8, 3]), labels, list("abcd"), Augmentation(mixup=0.3),
            unit="power", seed=0, epoch=epoch,
        )  # fmt: skip
        torch.testing.assert_close(mixed[:3, 0, 0], targets[:3, 0])
        torch.testing.assert_close(targets[:, 0], -targets[:, 1])
        assert torch.equal(mixed[3, :, 3:], mels[3, :, 3:])
        # The others' levels are ten times lower, so the loudest tells its own share.
        shares.append(float(targets[3, 0]) / 100)
    assert 0.5 <= min(shares) < 0.7
    assert max(shares) > 0.99


def test_the_batch_given_is_left_as_it_was() -> None:
    mels, n_frames, labels, keys = clips(5)
    before = [value.clone() for value in (mels, n_frames, labels)]
    augment(mels, n_frames, labels, keys, ALL, unit="dB", seed=0, epoch=0)
    for kept, value in zip(before, (mels, n_frames, labels), strict=True):
        assert torch.equal(kept, value)
