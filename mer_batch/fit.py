"""The training loop: plain PyTorch over an iterable of batches. No files, no Ray, no configuration.

What an epoch does follows from its number and the seed, so a loop that was stopped and resumed
gives the same weights as one that ran through.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mer_batch.errors import MerBatchError
from mer_batch.schema import TARGETS

Float64 = npt.NDArray[np.float64]

#: Everything a loop needs to go on: tensors, numbers, strings, lists and dictionaries, so that
#: ``torch.load(..., weights_only=True)`` reads it and no code comes with it.
State = dict[str, Any]

# Looking at a loss waits for the GPU: look at so many together.
_LOSSES_AT_A_TIME = 16
_N_NAMED = 5


class TrainingError(MerBatchError):
    """Training cannot go on; the message names the epoch and what to change."""


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

    def keys(self) -> list[str]:
        """A name for each clip: its track, and which segment of it."""
        if not self.segments:
            return self.track_ids
        return [f"{t}#{s}" for t, s in zip(self.track_ids, self.segments, strict=True)]


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Attributes
    ----------
    optimizer : {"adam", "adamw"}
    learning_rate, weight_decay : float
    epochs : int
    schedule : {"constant", "cosine"}
        Of the learning rate, from epoch to epoch.
    warmup_epochs : int
        Epochs in which the rate climbs to `learning_rate`, under either schedule.
    patience : int, optional
        Stop after so many epochs without a better validation loss.
    restore_best : bool
        End with the weights of the epoch with the best validation loss.
    mixed_precision : bool
        float16 where it is safe; on a GPU only.

    References
    ----------
    Kingma, D. and Ba, J. "Adam: A Method for Stochastic Optimization", ICLR 2015.
    Loshchilov, I. and Hutter, F. "Decoupled Weight Decay Regularization", ICLR 2019.
    Micikevicius, P. et al. "Mixed Precision Training", ICLR 2018.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 100
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 0
    patience: int | None = None
    restore_best: bool = True
    mixed_precision: bool = False

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / (self.warmup_epochs + 1)
        if self.schedule == "constant":
            return self.learning_rate
        progress = (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch came to.

    Attributes
    ----------
    epoch : int
        From 0.
    learning_rate : float
    n_clips : int
        Learned from, over all workers.
    train_loss : float
        Mean squared error over both targets, while learning: augmented clips, moving weights.
    validation_loss : float, optional
        The same over the validation clips, with the weights at the epoch's end.
    validation_r2 : tuple of float, optional
        Of valence and arousal, over clips; NaN where all labels are equal.
    """

    epoch: int
    learning_rate: float
    n_clips: int
    train_loss: float
    validation_loss: float | None = None
    validation_r2: tuple[float, ...] | None = None


@dataclass(frozen=True)
class FitResult:
    """How training ended; the model holds the weights.

    Attributes
    ----------
    history : list of EpochRecord
    best_epoch : int
        Whose weights the model has: the best one's, or the last one's without `restore_best` or
        without validation.
    """

    history: list[EpochRecord]
    best_epoch: int


TrainBatches = Callable[[int], Iterable[Batch]]
ValidationBatches = Callable[[], Iterable[Batch]]
OnEpoch = Callable[[EpochRecord, Callable[[], State]], None]


def fit(
    model: nn.Module,
    train_batches: TrainBatches,
    validation_batches: ValidationBatches | None,
    settings: FitSettings,
    *,
    device: torch.device,
    seed: int,
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> FitResult:
    """Train a network in place.

    Parameters
    ----------
    model : torch.nn.Module
        See ``mer_batch.models``; left on `device`, in evaluation mode.
    train_batches : callable
        Called with the epoch, from 0; gives this worker's share of its batches, the same for the
        same epoch. All workers must get the same number.
    validation_batches : callable, optional
        This worker's share of the validation clips.
    settings : FitSettings
    device : torch.device
    seed : int
        Of dropout. The model's first weights and the order of clips are the caller's.
    on_epoch : callable, optional
        Called after each epoch with its record and a function that takes the state.
    resume : State, optional
        Go on from it.
    process_group : torch.distributed.ProcessGroup, optional
        The workers to average gradients over.

    Raises
    ------
    TrainingError
        Where a loss is not finite, or there is nothing to learn from.
    """
    if settings.patience is not None and validation_batches is None:
        raise TrainingError(
            f"patience={settings.patience} must have validation clips to watch; give some, or set "
            "patience=null"
        )
    loop = _Loop(model, settings, device, seed, process_group)
    if resume is not None:
        loop.load(resume)
    while not loop.is_done():
        loop.train(train_batches(loop.epoch))
        record = loop.finish(validation_batches)
        if on_epoch is not None:
            on_epoch(record, loop.state)
    return loop.result()


class _Loop:
    """The moving parts of one training."""

    def __init__(
        self,
        model: nn.Module,
        settings: FitSettings,
        device: torch.device,
        seed: int,
        process_group: dist.ProcessGroup | None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._seed = seed
        self._group = process_group
        self._model = model.to(device)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        self._optimizer = kind(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._is_mixed = settings.mixed_precision and device.type == "cuda"
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._is_mixed)
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._history: list[EpochRecord] = []
        self._network: nn.Module = model
        if process_group is not None:
            # Sends rank 0's weights to all. Buffers are averaged after each epoch instead of
            # being sent with every batch.
            self._network = DistributedDataParallel(
                model, process_group=process_group, broadcast_buffers=False
            )

    @property
    def epoch(self) -> int:
        """The epoch that is next."""
        return len(self._history)

    def is_done(self) -> bool:
        """All epochs done, or no better one for longer than patience."""
        if self.epoch >= self._settings.epochs:
            return True
        patience = self._settings.patience
        if patience is None or self._best is None:
            return False
        return self.epoch - 1 - self._best[1] >= patience

    def train(self, batches: Iterable[Batch]) -> None:
        """One pass over the training clips."""
        self._network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate(self.epoch)
        watch = _LossWatch(self.epoch)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        rank = dist.get_rank(self._group) if self._group is not None else 0
        with _seeded(f"{self._seed}/{self.epoch}/{rank}", self._device):
            for batch in batches:
                loss = self._step(batch)
                sums += torch.stack([loss.double() * len(batch.labels), loss.new_tensor(
                    len(batch.labels)).double()])  # fmt: skip
                watch.add(loss, batch)
        watch.look()
        self._sums = self._total(sums)

    def finish(self, validation_batches: ValidationBatches | None) -> EpochRecord:
        """Validate, and keep the weights if they are the best so far."""
        loss_sum, n_clips = self._sums.tolist()
        if n_clips == 0:
            raise TrainingError(
                f"epoch {self.epoch}: n_clips=0 must be 1 or more; there is nothing to learn from"
            )
        self._average_buffers()
        record = EpochRecord(
            epoch=self.epoch,
            learning_rate=self._settings.rate(self.epoch),
            n_clips=int(n_clips),
            train_loss=loss_sum / n_clips,
        )
        if validation_batches is not None:
            record = self._validated(record, validation_batches())
            assert record.validation_loss is not None
            if self._best is None or record.validation_loss < self._best[0]:
                weights = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
                self._best = (record.validation_loss, record.epoch, weights)
        self._history.append(record)
        return record

    def result(self) -> FitResult:
        """End: the model gets the weights that count."""
        best_epoch = self.epoch - 1
        if self._best is not None and self._settings.restore_best:
            _, best_epoch, weights = self._best
            self._model.load_state_dict(weights)
        self._model.eval()
        return FitResult(list(self._history), best_epoch)

    def state(self) -> State:
        """A copy of all that moves, on the CPU. Dropout's numbers follow from the epoch."""
        best = None
        if self._best is not None:
            loss, epoch, weights = self._best
            best = {"loss": loss, "epoch": epoch, "model": weights}
        return _on_cpu(
            {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "best": best,
                "history": [_plain(record) for record in self._history],
            }
        )

    def load(self, state: State) -> None:
        """Go on from a state."""
        # The optimizer keeps the tensors that it is given, and writes to them.
        state = copy.deepcopy(state)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._is_mixed:
            self._scaler.load_state_dict(state["scaler"])
        if (best := state["best"]) is not None:
            self._best = (best["loss"], best["epoch"], best["model"])
        self._history = records(state)

    def _step(self, batch: Batch) -> Tensor:
        """One step of the optimizer; returns this batch's loss, still on the device."""
        mels, labels = (value.to(self._device) for value in (batch.mels, batch.labels))
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.float16, enabled=self._is_mixed):
            outputs = _outputs(self._network, self._model, mels, batch.n_frames)
        loss = _losses(outputs.float().mean(dim=1), labels, batch.weights).mean()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def _validated(self, record: EpochRecord, batches: Iterable[Batch]) -> EpochRecord:
        """Loss and R^2 from sums, so that every worker brings its own share of the clips."""
        self._model.eval()
        # Weights and labels: sum of w, and for each target of w*y, w*y^2 and w*(y-p)^2.
        sums = torch.zeros(1 + 3 * len(TARGETS), dtype=torch.float64, device=self._device)
        for batch, outputs in _scored(self._model, batches, self._device):
            y, p = batch.labels.to(outputs).double(), outputs.mean(dim=1).double()
            w = torch.ones(len(y)) if batch.weights is None else batch.weights
            w = w.to(y)[:, None]
            parts = [w.sum(dim=0), (w * y).sum(0), (w * y * y).sum(0), (w * (y - p) ** 2).sum(0)]
            sums += torch.cat(parts)
        total, *rest = self._total(sums).tolist()
        if total <= 0:
            raise TrainingError("the validation clips must be 1 or more; none came")
        wy, wyy, error = (np.array(part) for part in np.split(np.array(rest), 3))
        spread = wyy - wy**2 / total
        # What is left of equal labels is rounding.
        r2 = np.where(spread > 1e-9 * total, 1 - error / np.maximum(spread, 1e-12), np.nan)
        loss = float(error.mean() / total)
        if not math.isfinite(loss):
            raise TrainingError(
                f"epoch {record.epoch}: validation_loss={loss} must be finite; lower the learning "
                "rate, or look for values in the features that are not finite"
            )
        return EpochRecord(**{**asdict(record), "validation_loss": loss,
                              "validation_r2": tuple(r2.tolist())})  # fmt: skip

    def _total(self, sums: Tensor) -> Tensor:
        """Sum over all workers."""
        if self._group is not None:
            dist.all_reduce(sums, group=self._group)
        return sums

    def _average_buffers(self) -> None:
        """Running statistics of batch normalisation are of each worker's own clips: average them."""
        if self._group is None:
            return
        for buffer in self._model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer, group=self._group)
                buffer /= dist.get_world_size(self._group)


class _LossWatch:
    """Finds a loss that is not finite, and says where it came from."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._waiting: list[tuple[Tensor, Batch]] = []
        self._n_seen = 0

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Note a batch's loss; look when enough are waiting, or at once where it costs nothing."""
        self._waiting.append((loss, batch))
        if loss.device.type == "cpu" or len(self._waiting) == _LOSSES_AT_A_TIME:
            self.look()

    def look(self) -> None:
        """Look at those that wait.

        Raises
        ------
        TrainingError
        """
        if not self._waiting:
            return
        finite = torch.stack([loss for loss, _ in self._waiting]).isfinite().tolist()
        if not all(finite):
            first = finite.index(False)
            loss, batch = self._waiting[first]
            named = ", ".join(batch.track_ids[:_N_NAMED])
            raise TrainingError(
                f"epoch {self._epoch}, batch {self._n_seen + first}: loss={float(loss)} must be "
                f"finite. Its {len(batch.track_ids)} clips begin with {named}. Look for features "
                "or labels that are not finite, standardise the features, or lower the learning "
                "rate"
            )
        self._n_seen += len(self._waiting)
        self._waiting.clear()


# ------------------------------------------------------------------------------- around the loop


def records(state: State) -> list[EpochRecord]:
    """The history that a state holds."""
    return [
        EpochRecord(**{**entry, "validation_r2": tuple(r2) if (r2 := entry["validation_r2"]) else None})
        for entry in state["history"]
    ]  # fmt: skip


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
            moments = _joined(moments, torch.stack([n.expand_as(mean), mean, ((values - mean) ** 2).sum(0)]))  # fmt: skip # noqa: E501
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
    for batch, outputs in _scored(model, batches, device):
        for track_id, members in zip(batch.track_ids, outputs.double().cpu().numpy(), strict=True):
            values.setdefault(track_id, []).append(members)
    n_targets = len(TARGETS)
    flat = [np.concatenate(found) for found in values.values()]
    unknown = np.full(n_targets, np.nan)
    return Predictions(
        track_ids=list(values),
        mean=np.array([v.mean(axis=0) for v in flat]).reshape(-1, n_targets),
        std=np.array([v.std(axis=0) if len(v) > 1 else unknown for v in flat]).reshape(-1, n_targets),
        n_segments=np.array([len(found) for found in values.values()], np.int64),
    )  # fmt: skip


def _scored(
    model: nn.Module, batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Outputs of a model in evaluation mode, shape (batch, n_members, 2)."""
    for batch in batches:
        with torch.inference_mode():
            outputs = _outputs(model, model, batch.mels.to(device), batch.n_frames)
        yield batch, outputs


def _outputs(network: nn.Module, model: nn.Module, mels: Tensor, n_frames: Tensor) -> Tensor:
    """What the network says of each clip's real frames; `model` is the network unwrapped."""
    if bool((n_frames == mels.shape[2]).all()):
        outputs: Tensor = network(mels)
        return outputs
    if getattr(model, "masks_padding", False):
        outputs = network(mels, n_frames.to(mels.device))
        return outputs
    # A model that knows nothing of padding is shown clips of one length at a time.
    lengths, of_row = n_frames.unique(return_inverse=True)
    rows = [(of_row == number).nonzero().flatten() for number in range(len(lengths))]
    parts = [
        network(mels[chosen.to(mels.device), :, :length])
        for chosen, length in zip(rows, lengths.tolist(), strict=True)
    ]
    return torch.cat(parts)[torch.cat(rows).argsort().to(mels.device)]


def _losses(predictions: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Squared error of each clip, over both targets."""
    losses = ((predictions - labels) ** 2).mean(dim=1)
    return losses if weights is None else losses * weights.to(losses)


class _seeded:  # noqa: N801  # reads like contextlib.suppress
    """Torch's random numbers follow from a name; outside they go on as if nothing had been."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *raised: Any) -> None:
        self._fork.__exit__(*raised)


def _plain(record: EpochRecord) -> dict[str, Any]:
    entry = asdict(record)
    if record.validation_r2 is not None:
        entry["validation_r2"] = list(record.validation_r2)
    return entry


def _on_cpu(value: Any) -> Any:
    """A deep copy with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(item) for item in value]
    return value
