"""Augmentation of mel spectrograms: nothing is decoded again.

What happens to a clip follows from (seed, epoch, track_id, segment) alone, whatever batch, worker
or order it comes in. Mixup needs a second clip, so there the batch has a say: see
:func:`augment`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What is done, and how strongly; 0 switches off.

    Attributes
    ----------
    crop_frames : int
        Length of the random crop; a shorter clip stays whole.
    n_time_masks, max_time_mask_frames : int
        Stretches of time that are blanked, each of 0 to so many frames.
    n_band_masks, max_band_mask : int
        Runs of bands that are blanked, each of 0 to so many bands.
    gain_db : float
        Level is shifted by up to so much either way [dB].
    stretch : float
        Time is resampled: a clip is played faster by a factor between 1 - stretch and 1 + stretch.
    mixup : float
        Parameter of the beta distribution that two clips are mixed by.

    References
    ----------
    Park, D. et al. "SpecAugment: A Simple Data Augmentation Method for Automatic Speech
    Recognition", Interspeech 2019.
    Zhang, H. et al. "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    crop_frames: int = 0
    n_time_masks: int = 0
    max_time_mask_frames: int = 20
    n_band_masks: int = 0
    max_band_mask: int = 8
    gain_db: float = 0.0
    stretch: float = 0.0
    mixup: float = 0.0

    @property
    def keeps_length(self) -> bool:
        """Whether clips come out as long as they went in."""
        return self.crop_frames == 0 and self.stretch == 0


@dataclass(frozen=True)
class _Draws:
    """The random numbers of one clip, all of them, in one order: see `_draw`."""

    speed: float
    crop: float
    gain: float
    order: float
    share: float
    time_masks: list[tuple[float, float]]
    band_masks: list[tuple[float, float]]


def augment(
    mels: Tensor,
    n_frames: Tensor,
    labels: Tensor,
    keys: Sequence[str],
    how: Augmentation,
    *,
    unit: Literal["power", "dB"],
    seed: int,
    epoch: int,
    blank: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment a batch of clips: stretch and crop, gain, masks, then mixup.

    Parameters
    ----------
    mels : float32, shape (batch, n_mels, n_frames)
        In `unit`; left as it is.
    n_frames : int64, shape (batch,)
        How many frames of each clip are real.
    labels : float32, shape (batch, 2)
    keys : sequence of str
        What each clip's random numbers follow from, beside `seed` and `epoch`.
    how : Augmentation
    unit : {"power", "dB"}
        A gain is added to decibels, and multiplies power.
    seed, epoch : int
    blank : float32, shape (n_mels,), optional
        What blanked bands and frames are set to, such as the mean of the training split; by
        default each band's mean over the clip.

    Returns
    -------
    mels, n_frames, labels
        As the arguments. Frames behind a clip's own are zero where its length was changed.

    Notes
    -----
    A clip is mixed with the next one of its batch, in an order that the clips' own numbers give
    and that does not depend on how the batch was sorted; the last one with the first. Its own
    share is at least one half, and its own length is kept: a shorter partner is repeated. Values
    are mixed in `unit`.
    """
    if len(keys) == 0:
        return mels, n_frames, labels
    draws = [_draw(f"{seed}/{epoch}/{key}", how) for key in keys]
    if not how.keeps_length:
        mels, n_frames = _resampled(mels, n_frames, draws, how)
    if how.gain_db > 0:
        gain = _column([draw.gain * how.gain_db for draw in draws], mels)
        mels = mels + gain if unit == "dB" else mels * 10 ** (gain / 10)
    if how.n_time_masks or how.n_band_masks:
        mels = _masked(mels, n_frames, draws, how, blank)
    if how.mixup > 0:
        mels, labels = _mixed(mels, n_frames, labels, draws)
    return mels, n_frames, labels


def _draw(key: str, how: Augmentation) -> _Draws:
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    # Always all, and the masks last: switching one kind on does not change what the others draw.
    speed, crop, gain, order = rng.random(4).tolist()
    share = float(rng.beta(how.mixup, how.mixup)) if how.mixup > 0 else 1.0
    pairs = np.random.default_rng(int.from_bytes(digest[16:], "big"))
    masks = [
        (float(a), float(b)) for a, b in pairs.random((how.n_time_masks + how.n_band_masks, 2))
    ]
    return _Draws(
        speed=1 + (2 * speed - 1) * how.stretch,
        crop=crop,
        gain=2 * gain - 1,
        order=order,
        share=max(share, 1 - share),
        time_masks=masks[: how.n_time_masks],
        band_masks=masks[how.n_time_masks :],
    )


def _resampled(
    mels: Tensor, n_frames: Tensor, draws: list[_Draws], how: Augmentation
) -> tuple[Tensor, Tensor]:
    """Stretch and crop in one step, by linear interpolation between frames."""
    begins, lengths = [], []
    for draw, n in zip(draws, n_frames.tolist(), strict=True):
        n_stretched = 1 + int((n - 1) / draw.speed)
        length = min(how.crop_frames or n_stretched, n_stretched)
        begins.append(int(draw.crop * (n_stretched - length + 1)))
        lengths.append(length)
    new_frames = torch.tensor(lengths, device=mels.device)
    frames = torch.arange(max(lengths), device=mels.device)
    speeds = torch.tensor([draw.speed for draw in draws], dtype=torch.float64, device=mels.device)
    places = (torch.tensor(begins, device=mels.device)[:, None] + frames) * speeds[:, None]
    left = places.floor().long().clamp(max=mels.shape[2] - 1)
    right = (left + 1).minimum(n_frames[:, None] - 1).maximum(left)
    weight = (places - left).clamp(0, 1).to(mels.dtype)[:, None, :]
    value = torch.lerp(_gathered(mels, left), _gathered(mels, right), weight)
    return value * (frames < new_frames[:, None])[:, None, :], new_frames


def _gathered(mels: Tensor, frames: Tensor) -> Tensor:
    """Frames of every clip: (batch, n_mels, n) and (batch, m) to (batch, n_mels, m)."""
    return mels.gather(2, frames[:, None, :].expand(-1, mels.shape[1], -1))


def _masked(
    mels: Tensor, n_frames: Tensor, draws: list[_Draws], how: Augmentation, blank: Tensor | None
) -> Tensor:
    frames = torch.arange(mels.shape[2], device=mels.device)
    bands = torch.arange(mels.shape[1], device=mels.device)
    is_real = frames < n_frames[:, None]
    hit = torch.zeros(mels.shape, dtype=torch.bool, device=mels.device)
    for row, (draw, n) in enumerate(zip(draws, n_frames.tolist(), strict=True)):
        for size, place in draw.time_masks:
            begin, end = _run(size, place, min(how.max_time_mask_frames, n), n)
            hit[row, :, begin:end] = True
        for size, place in draw.band_masks:
            begin, end = _run(size, place, min(how.max_band_mask, len(bands)), len(bands))
            hit[row, begin:end] = True
    hit &= is_real[:, None, :]
    if blank is None:
        sums = (mels * is_real[:, None, :]).sum(dim=2, keepdim=True)
        fill = sums / n_frames[:, None, None]
    else:
        fill = blank.to(mels)[None, :, None]
    return torch.where(hit, fill, mels)


def _run(size: float, place: float, longest: int, n: int) -> tuple[int, int]:
    """Where a mask lies: 0 to `longest` long, anywhere in `n`; both numbers are in [0, 1)."""
    length = int(size * (longest + 1))
    begin = int(place * (n - length + 1))
    return begin, begin + length


def _mixed(
    mels: Tensor, n_frames: Tensor, labels: Tensor, draws: list[_Draws]
) -> tuple[Tensor, Tensor]:
    ranked = sorted(range(len(draws)), key=lambda row: draws[row].order)
    partner = torch.empty(len(draws), dtype=torch.int64)
    partner[ranked] = torch.tensor([*ranked[1:], ranked[0]])
    partner = partner.to(mels.device)
    frames = torch.arange(mels.shape[2], device=mels.device)
    other = _gathered(mels[partner], frames % n_frames[partner][:, None])
    share = _column([draw.share for draw in draws], mels)
    is_real = (frames < n_frames[:, None])[:, None, :]
    mixed = torch.where(is_real, share * mels + (1 - share) * other, mels)
    return mixed, share[:, :, 0] * labels + (1 - share[:, :, 0]) * labels[partner]


def _column(values: list[float], like: Tensor) -> Tensor:
    """One number a clip, shape (batch, 1, 1)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
