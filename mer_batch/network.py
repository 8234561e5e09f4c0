"""Networks and the batches they are shown: what training and evaluation share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mer_batch.errors import TrainingError
from mer_batch.schema import TARGETS

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Clips that are shown together.

    Attributes
    ----------
    track_ids : list of str
    mels : float32, shape (batch, n_mels, n_frames)
        In the feature set's unit.
    n_frames : int64, shape (batch,)
        How many frames of each clip are real; the rest is padding.
    labels : float32, shape (batch, 2)
        Valence and arousal on [-1, 1].
    segments : list of int
        Which segment of its track each clip is.
    weights : float32, shape (batch,), optional
        How much each clip counts, 1 on average.
    """

    track_ids: list[str]
    mels: Tensor
    n_frames: Tensor
    labels: Tensor
    segments: list[int] = field(default_factory=list)
    weights: Tensor | None = None

    def clip_ids(self) -> list[str]:
        """A name for each clip: its track, and which segment of it."""
        if not self.segments:
            return self.track_ids
        return [f"{t}#{s}" for t, s in zip(self.track_ids, self.segments, strict=True)]


def standardise(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Set the model's ``centre`` and ``scale`` to each band's mean and deviation.

    Only real frames count. The clips are passed over once, and none is kept.

    Parameters
    ----------
    model : torch.nn.Module
        With buffers ``centre`` and ``scale``, shape (n_mels,).
    batches : iterable of Batch
        The training split, this worker's share of it.
    process_group : torch.distributed.ProcessGroup, optional
        The workers whose shares belong together.

    Raises
    ------
    TrainingError
        Where the model has no such buffers, or there are no frames.

    References
    ----------
    Chan, T., Golub, G. and LeVeque, R. "Algorithms for Computing the Sample Variance: Analysis
    and Recommendations", The American Statistician, 1983.
    """
    centre, scale = (getattr(model, name, None) for name in ("centre", "scale"))
    if not isinstance(centre, Tensor) or not isinstance(scale, Tensor):
        raise TrainingError(
            f"standardise=True must have a model that keeps `centre` and `scale`, which "
            f"{type(model).__module__} does not; set training.standardise=false"
        )
    moments = torch.zeros(3, len(centre), dtype=torch.float64)  # n, mean, sum of squares about it
    for batch in batches:
        is_real = torch.arange(batch.mels.shape[2]) < batch.n_frames[:, None]
        values = batch.mels.transpose(1, 2)[is_real].double()
        n = torch.tensor(float(len(values)), dtype=torch.float64)
        if n > 0:
            mean = values.mean(dim=0)
            squares = ((values - mean) ** 2).sum(dim=0)
            moments = _joined(moments, torch.stack([n.expand_as(mean), mean, squares]))
    if process_group is not None:
        mine = moments.to(centre.device)
        shares = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(shares, mine, group=process_group)
        moments = torch.zeros_like(moments)
        for share in shares:
            moments = _joined(moments, share.cpu())
    n, mean, squares = moments
    if n[0] == 0:
        raise TrainingError("the training clips must have frames to standardise by; none came")
    centre.copy_(mean)
    # A band that never moves, above a low-passed recording's cut, is left at its own scale.
    deviation = (squares / n).sqrt()
    scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Moments of two samples together: rows are n, mean and sum of squares about the mean."""
    n = a[0] + b[0]
    share = b[0] / n.clamp(min=1)
    step = b[1] - a[1]
    return torch.stack([n, a[1] + step * share, a[2] + b[2] + step**2 * a[0] * share])


@dataclass(frozen=True)
class Predictions:
    """What a model says of tracks.

    Attributes
    ----------
    track_ids : list of str
        Each once, in the order in which they first came.
    mean, std : float64, shape (n_tracks, 2)
        Over segments and members, not clipped; the standard deviation (population) is NaN where
        there is only one value.
    n_segments : int64, shape (n_tracks,)
    """

    track_ids: list[str]
    mean: Float64
    std: Float64
    n_segments: npt.NDArray[np.int64]


def predict(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
    """Score the tracks of some batches; segments of a track may come in any order."""
    values: dict[str, list[Float64]] = {}
    model.to(device).eval()
    for batch, outputs in scored(model, batches, device):
        for track_id, members in zip(batch.track_ids, outputs.double().cpu().numpy(), strict=True):
            values.setdefault(track_id, []).append(members)
    flat = [np.concatenate(found) for found in values.values()]
    unknown = np.full(len(TARGETS), np.nan)
    spread = [found.std(axis=0) if len(found) > 1 else unknown for found in flat]
    return Predictions(
        track_ids=list(values),
        mean=np.array([found.mean(axis=0) for found in flat]).reshape(-1, len(TARGETS)),
        std=np.array(spread).reshape(-1, len(TARGETS)),
        n_segments=np.array([len(found) for found in values.values()], np.int64),
    )


def scored(
    model: nn.Module, batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Outputs of a model in evaluation mode, shape (batch, n_members, 2)."""
    for batch in batches:
        with torch.inference_mode():
            outputs = outputs_of(model, model, batch.mels.to(device), batch.n_frames)
        yield batch, outputs


def outputs_of(network: nn.Module, model: nn.Module, mels: Tensor, n_frames: Tensor) -> Tensor:
    """What a network says of each clip's real frames, shape (batch, n_members, 2).

    Parameters
    ----------
    network : torch.nn.Module
        The model, or what it is wrapped in to average gradients.
    model : torch.nn.Module
    mels : float32, shape (batch, n_mels, n_frames)
        On the network's device.
    n_frames : int64, shape (batch,)
    """
    if bool((n_frames == mels.shape[2]).all()):
        return cast(Tensor, network(mels))
    if getattr(model, "masks_padding", False):
        return cast(Tensor, network(mels, n_frames.to(mels.device)))
    # A model that knows nothing of padding is shown clips of one length at a time.
    lengths = sorted(set(n_frames.tolist()))
    rows = [(n_frames == length).nonzero().flatten() for length in lengths]
    parts = [
        network(mels[chosen.to(mels.device), :, :length])
        for chosen, length in zip(rows, lengths, strict=True)
    ]
    return torch.cat(parts)[torch.cat(rows).argsort().to(mels.device)]
