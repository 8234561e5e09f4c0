"""Train a network: on Ray Train's workers, or in this process without Ray."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from tensorboardX import SummaryWriter
from torch import Tensor

# Set before Ray Train is imported: the controller takes one report of each worker per interval,
# and its default of 2 s would be the least that an epoch takes.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import ray
import ray.data
import ray.train
import ray.train.torch

from mer_batch.batches import Labels, Reader, Span, find_spans, read_spans
from mer_batch.config import StorageConfig, TrainingConfig, WorkersConfig
from mer_batch.errors import ConfigError, MerBatchError, TrainingError
from mer_batch.feature_sets import FeatureSet
from mer_batch.fit import EpochRecord, State, records
from mer_batch.pipelines.cluster import cluster_cpus
from mer_batch.schema import TARGETS
from mer_batch.storage import Storage, parse_uri
from mer_batch.train import Trained, TrainingJob, augmentation, train

_STATE_NAME = "state.pt"
_TRAINED_NAME = "trained.pt"
# A reading task: long enough to be worth starting, small enough that blocks stay some 20 MB.
_ROWS_A_TASK = 256
# Reading is waiting and unpacking. It must find room on a machine that trains on every core.
_CPUS_A_READER = 0.25
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and how it came about.

    Attributes
    ----------
    state : dict of str to Tensor
        Weights and buffers of the best epoch, or the last one; on the CPU.
    history : list of EpochRecord
    best_epoch : int
        Whose weights these are.
    resumed_from_epoch : int, optional
        The first epoch that was left to this call, where an earlier one had begun.
    folder : Path
        Holds the state of the last epoch, and ``tensorboard/``.
    """

    state: dict[str, Tensor]
    history: list[EpochRecord]
    best_epoch: int
    resumed_from_epoch: int | None
    folder: Path


def train_network(
    *,
    parts: Sequence[str],
    feature_set: FeatureSet,
    labels: Labels,
    validation_labels: Labels,
    model_name: str,
    model_parameters: dict[str, Any],
    settings: TrainingConfig,
    workers: WorkersConfig,
    seed: int,
    storage_folder: Path,
    say: Callable[[str], None],
    storage: Storage | None = None,
    versions: Mapping[str, str] | None = None,
) -> TrainedNetwork:
    """Train one network; an ensemble's members are so many calls with other seeds.

    A call that was cut short is taken up again by the next one with the same arguments, from its
    last whole epoch; a call that was finished returns its result at once.

    Parameters
    ----------
    parts : sequence of str
        URIs of the features table's parts.
    feature_set : FeatureSet
    labels : mapping of str to (valence, arousal)
        Of the tracks to learn from, on [-1, 1].
    validation_labels : mapping of str to (valence, arousal)
        Of the tracks to watch; may be empty.
    model_name : str
    model_parameters : dict
    settings : TrainingConfig
    workers : WorkersConfig
        With workers, Ray must be connected.
    seed : int
    storage_folder : Path
        A folder that all workers reach. The training lies below it, under its content's id.
    say : callable
        Called with a line for each epoch.
    storage : Storage, optional
        How to reach the parts.
    versions : mapping of str to str, optional
        Version of each track's audio that counts; all rows do by default.

    Raises
    ------
    ConfigError, DatasetError
        Before training.
    TrainingError
        Where the loss is not finite, or workers died more often than `workers.max_failures`.
    """
    check_training(settings, workers, feature_set)
    storage = storage or Storage(StorageConfig())
    uris = [parse_uri(uri).uri for uri in parts]
    spans, validation_spans = (
        find_spans(uris, chosen, feature_set.features_id, storage, versions=versions)
        if chosen
        else []
        for chosen in (labels, validation_labels)
    )
    job = TrainingJob(
        uris, feature_set, labels, validation_labels, spans, validation_spans, model_name,
        model_parameters, settings, seed, storage,
    )  # fmt: skip
    folder = storage_folder.absolute() / job.content_id()
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / _TRAINED_NAME
    if finished.exists():
        say(f"trained before: {folder}")
        content = _read(finished)
        history = records(content)
        trained = Trained(content["state"], history, content["best_epoch"])
        return TrainedNetwork(**vars(trained), resumed_from_epoch=len(history), folder=folder)
    with _Progress(folder / "tensorboard", settings.epochs, say) as progress:
        run = _on_workers if workers.n_workers else _in_process
        trained = run(job, workers, folder, progress)
        progress.catch_up(trained.history)
    _write(finished, {**vars(trained), "history": [asdict(record) for record in trained.history]})
    return TrainedNetwork(**vars(trained), resumed_from_epoch=progress.resumed_at, folder=folder)


def check_training(
    settings: TrainingConfig, workers: WorkersConfig, feature_set: FeatureSet
) -> None:
    """Refuse settings that do not go together.

    Raises
    ------
    ConfigError
    """
    augmentation(settings.augment, feature_set)
    if settings.batch_size % max(1, workers.n_workers):
        raise ConfigError(
            f"training.batch_size={settings.batch_size} must be a multiple of "
            f"workers.n_workers={workers.n_workers}, so that every worker gets the same share"
        )
    n_gpus = _n_gpus(workers) if workers.use_gpu else 0
    if workers.use_gpu and n_gpus < max(1, workers.n_workers):
        raise ConfigError(
            f"workers.use_gpu=True must find a GPU for each of n_workers={workers.n_workers}, "
            f"but there are {n_gpus}; set workers.use_gpu=false, or fewer workers"
        )
    if settings.precision == "mixed" and not workers.use_gpu:
        raise ConfigError(
            "training.precision='mixed' must have a GPU; set workers.use_gpu=true, or "
            "training.precision=float32"
        )


def _n_gpus(workers: WorkersConfig) -> int:
    """GPUs of this machine, or of the cluster."""
    if workers.n_workers == 0:
        return torch.cuda.device_count()
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("GPU", 0))


class _Progress:
    """A line and TensorBoard's points for each epoch, each once however often it is told."""

    def __init__(self, folder: Path, n_epochs: int, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._n_epochs = n_epochs
        self._say = say
        self._next = 0
        self._has_begun = False
        self.resumed_at: int | None = None

    def __enter__(self) -> _Progress:
        self._writer = SummaryWriter(str(self._folder))
        return self

    def __exit__(self, *raised: object) -> None:
        self._writer.close()

    def begin(self, epoch: int) -> None:
        """The first epoch to come; told again by workers that take over from those that died."""
        if epoch > 0 and not self._has_begun:
            self._next = self.resumed_at = epoch
            self._say(f"going on from epoch {epoch}")
        self._has_begun = True

    def add(self, record: EpochRecord) -> None:
        """Tell of an epoch that is done."""
        if record.epoch < self._next:
            return
        self._next = record.epoch + 1
        line = f"epoch {self._next}/{self._n_epochs}  loss {record.train_loss:.4f}"
        self._writer.add_scalar("loss/train", record.train_loss, record.epoch)
        self._writer.add_scalar("learning_rate", record.learning_rate, record.epoch)
        if record.validation_loss is not None and record.validation_r2 is not None:
            line += f"  validation {record.validation_loss:.4f}  R^2"
            self._writer.add_scalar("loss/validation", record.validation_loss, record.epoch)
            for target, r2 in zip(TARGETS, record.validation_r2, strict=True):
                line += f" {target} {r2:+.3f}"
                self._writer.add_scalar(f"r2/{target}", r2, record.epoch)
        self._say(line)

    def catch_up(self, history: list[EpochRecord]) -> None:
        """Tell of epochs whose news were lost with the worker that had them."""
        for record in history:
            self.add(record)


# ------------------------------------------------------------------------- without Ray


def _in_process(
    job: TrainingJob, workers: WorkersConfig, folder: Path, progress: _Progress
) -> Trained:
    """The same loop over the same batches, in this process."""
    path = folder / _STATE_NAME
    resume = _read(path) if path.exists() else None
    progress.begin(len(records(resume)) if resume else 0)

    def on_epoch(record: EpochRecord, take_state: Callable[[], State]) -> None:
        _write(path, take_state())
        progress.add(record)

    device = torch.device("cuda" if workers.use_gpu else "cpu")
    return train(job, device=device, on_epoch=on_epoch, resume=resume)


def _write(path: Path, content: State) -> None:
    """Renamed into place: a process that is killed here leaves the file that was there before."""
    fresh = path.with_suffix(".new")
    torch.save(content, fresh)
    fresh.replace(path)


def _read(path: Path) -> State:
    try:
        content: State = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{path} must be what a training has saved: {error}; remove its folder to begin anew"
        ) from error
    return content


# ------------------------------------------------------------------------- on Ray Train


def _on_workers(
    job: TrainingJob, workers: WorkersConfig, folder: Path, progress: _Progress
) -> Trained:
    """Run the loop on Ray Train's workers and pass on what they tell."""
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"job": job, "board": board},
        scaling_config=_scaling(workers),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    outcome = _in_thread(trainer.fit)
    while not _is_over(outcome):
        _tell(board, progress)
    _tell(board, progress)
    refused = ray.get(board.refusal.remote())
    if refused is not None:
        raise TrainingError(refused)
    try:
        result = outcome.result()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"training ended after workers.max_failures={workers.max_failures} restarts: {error}"
        ) from error
    returned: Trained = result.return_value
    return returned


def _scaling(workers: WorkersConfig) -> ray.train.ScalingConfig:
    """Workers take half of the CPUs on paper, whatever they use: reading tasks must find some."""
    share = min(1.0, 0.5 * cluster_cpus() / workers.n_workers)
    return ray.train.ScalingConfig(
        num_workers=workers.n_workers,
        use_gpu=workers.use_gpu,
        resources_per_worker={"CPU": share, **({"GPU": 1} if workers.use_gpu else {})},
        placement_strategy="SPREAD",
    )


class _Board:
    """An actor that workers tell their news to, and the driver asks."""

    def __init__(self) -> None:
        self._news: list[tuple[str, Any]] = []
        self._refusal: str | None = None

    def tell(self, kind: str, content: Any) -> None:
        """Leave a piece of news."""
        self._news.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """All news since the last time."""
        news, self._news = self._news, []
        return news

    def refuse(self, message: str) -> None:
        """A fault that trying again does not mend."""
        self._refusal = self._refusal or message

    def refusal(self) -> str | None:
        """What was refused, if anything."""
        return self._refusal


def _tell(board: Any, progress: _Progress) -> None:
    for kind, content in ray.get(board.take.remote()):
        if kind == "begin":
            progress.begin(content)
        else:
            progress.add(EpochRecord(**content))


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run in a thread: in the main one Ray Train would take over SIGINT, and keep it."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _is_over(outcome: Future[Any]) -> bool:
    with contextlib.suppress(StillRunning):
        outcome.exception(timeout=_POLL_SECONDS)
    return outcome.done()


def _work(config: dict[str, Any]) -> Any:
    """What each worker does; rank 0's return value is the outcome."""
    job, board = config["job"], config["board"]
    if ray.get(board.refusal.remote()) is not None:
        return None  # a worker found a fault that a restart has not mended
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    resume = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            resume = _read(Path(folder, _STATE_NAME))
    if rank == 0:
        ray.get(board.tell.remote("begin", len(records(resume)) if resume else 0))

    def on_epoch(record: EpochRecord, take_state: Callable[[], State]) -> None:
        _report(record, take_state if rank == 0 else None)
        if rank == 0:
            board.tell.remote("epoch", asdict(record))

    try:
        return train(
            job, device=ray.train.torch.get_device(), on_epoch=on_epoch, resume=resume, rank=rank,
            world_size=world_size, process_group=dist.group.WORLD if world_size > 1 else None,
            read=_streaming(job.storage),
        )  # fmt: skip
    except MerBatchError as error:
        ray.get(board.refuse.remote(str(error)))
        raise


def _report(record: EpochRecord, take_state: Callable[[], State] | None) -> None:
    """Report an epoch, on rank 0 with its state; Ray Train waits for all workers to report."""
    metrics = {"epoch": record.epoch, "train_loss": record.train_loss}
    if take_state is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as name:
        torch.save(take_state(), Path(name, _STATE_NAME))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))


def _streaming(storage: Storage) -> Reader:
    """Reads spans through Ray Data: tasks anywhere in the cluster read ahead of the training."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def read(spans: Sequence[Span]) -> Iterator[pa.Table]:
        tasks = _grouped(spans)
        if not tasks:
            return iter(())

        def read_task(numbers: pa.Table) -> Iterator[pa.Table]:
            for number in numbers["item"].to_pylist():
                yield from read_spans(tasks[number], storage)

        # Not ray.data.range, nor from_arrow: their own tasks ask for a whole CPU.
        numbers = ray.data.from_items(list(range(len(tasks))), override_num_blocks=len(tasks))
        rows = numbers.map_batches(
            read_task, batch_size=None, batch_format="pyarrow", num_cpus=_CPUS_A_READER
        )
        blocks: Iterable[pa.Table] = rows.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=2
        )
        return iter(blocks)

    return read


def _grouped(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by reading task, in their order."""
    tasks: list[list[Span]] = []
    n_rows = _ROWS_A_TASK
    for span in spans:
        if n_rows >= _ROWS_A_TASK:
            tasks.append([])
            n_rows = 0
        tasks[-1].append(span)
        n_rows += len(span.rows)
    return tasks
