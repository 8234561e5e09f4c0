"""The training loop: plain PyTorch over an iterable of batches. No files, no Ray, no configuration.

What an epoch does follows from its number and the seed, so a loop that was stopped and resumed
gives the same weights as one that ran through.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mer_batch.errors import TrainingError
from mer_batch.network import Batch, outputs_of, scored
from mer_batch.schema import TARGETS

#: Everything a loop needs to go on: tensors, numbers, strings, lists and dictionaries, so that
#: ``torch.load(..., weights_only=True)`` reads it and no code comes with it.
State = dict[str, Any]

# Looking at a loss waits for the GPU: look at so many together.
_LOSSES_AT_A_TIME = 16
_N_NAMED = 5


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
    validation_r2 : list of float, optional
        Of valence and arousal, over clips; NaN where all labels are equal.
    """

    epoch: int
    learning_rate: float
    n_clips: int
    train_loss: float
    validation_loss: float | None = None
    validation_r2: list[float] | None = None


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
            # being sent with every batch; the option's name has changed with PyTorch 2.13.
            known = inspect.signature(DistributedDataParallel).parameters
            name = (
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            )
            options: dict[str, Any] = {name: False}
            self._network = DistributedDataParallel(model, process_group=process_group, **options)

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
        loss_sum, n_clips = torch.zeros((), dtype=torch.float64, device=self._device), 0
        rank = 0 if self._group is None else dist.get_rank(self._group)
        with _seeded(f"{self._seed}/{self.epoch}/{rank}", self._device):
            for batch in batches:
                loss = self._step(batch)
                loss_sum += loss.double() * len(batch.labels)
                n_clips += len(batch.labels)
                watch.add(loss, batch)
        watch.look()
        self._sums = self._total(torch.stack([loss_sum, torch.full_like(loss_sum, n_clips)]))

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
        state: State = _on_cpu(
            {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "best": best,
                "history": [asdict(record) for record in self._history],
            }
        )
        return state

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
            outputs = outputs_of(self._network, self._model, mels, batch.n_frames)
        loss = _losses(outputs.float().mean(dim=1), labels, batch.weights).mean()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def _validated(self, record: EpochRecord, batches: Iterable[Batch]) -> EpochRecord:
        """Loss and R^2 from sums, so that every worker brings its own share of the clips."""
        self._model.eval()
        # Weights and labels: sum of w, and for each target of w*y, w*y^2 and w*(y-p)^2.
        sums = torch.zeros(1 + 3 * len(TARGETS), dtype=torch.float64, device=self._device)
        for batch, outputs in scored(self._model, batches, self._device):
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
        return replace(record, validation_loss=loss, validation_r2=r2.tolist())

    def _total(self, sums: Tensor) -> Tensor:
        """Sum over all workers."""
        if self._group is not None:
            dist.all_reduce(sums, group=self._group)
        return sums

    def _average_buffers(self) -> None:
        """Batch normalisation has watched each worker's own clips: average what it saw."""
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
    return [EpochRecord(**entry) for entry in state["history"]]


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


def _on_cpu(value: Any) -> Any:
    """A deep copy with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(item) for item in value]
    return value
