"""A pool of actors that hold the model, on GPUs or not, for decoders that only extract features.

Workers decode and write their block's part as ever; what the pool does for them is one function,
features to what the model says of them, which leaves no trace. So an actor that dies costs the
batch that it had, and the protocol knows nothing of it.

Its size is explicit and never changes: actors ask for GPUs and for no CPU, so they cannot starve
the tasks that feed them, and a task that waits for one keeps its CPU, on which nothing else begins.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from mer_batch.block import BlockReport, Job, of_this_process
from mer_batch.checkpoint import Checkpoint
from mer_batch.config import ScoringConfig
from mer_batch.errors import ConfigError, MerBatchError
from mer_batch.memory import keep_memory
from mer_batch.pipelines.cluster import first_line
from mer_batch.score import Float32, Float64
from mer_batch.tag import Scores

# As for tasks: a batch on which every actor dies ends the run, in words.
_MAX_TRIES = 5
_MAX_RESTARTS = 20
# How long an actor may take to start (torch, a GPU, a large model), and to answer.
_START_SECONDS = 300.0
_ANSWER_SECONDS = 600.0
# A worker has one batch out and gathers the next; of the object store that much may be theirs.
_SHARE_OF_STORE = 0.5
_FLOAT_BYTES = 4


class ScoringError(MerBatchError):
    """The pool cannot go on; what was finished is committed, and a next run goes on."""


class PoolSizeError(MerBatchError):
    """The cluster has not what the configuration asks for; nothing was begun."""

    exit_code = ConfigError.exit_code


@dataclass
class Pool:
    """The pool, as workers know it. Picklable.

    Attributes
    ----------
    actors : sequence of actor handles
    batch_segments : int
    """

    actors: Sequence[Any]
    batch_segments: int

    def ask(self, segments: Float32, n_frames: npt.NDArray[np.integer]) -> Callable[[], Float64]:
        """Have segments scored; see ``score.Ask``."""
        actor = self.actors[next(_turns) % len(self.actors)]
        # Not ray.get(): while a task waits in it, Ray lends its CPU to another one, which decodes
        # as well, and so on, until there are more decoders than CPUs.
        answer = actor.outputs.remote(segments, n_frames).future()
        return lambda: _answer(answer)

    def decode_block(self, number: int, block: pa.Table, job: Job) -> BlockReport:
        """Decode a block and have it scored; the part is written here."""
        from mer_batch.pooled import PooledWorker

        def pooled_worker(job: Job) -> PooledWorker:
            return PooledWorker(job, self.ask, self.batch_segments)

        return of_this_process(pooled_worker, job).work(number, block)

    def rescore_block(self, number: int, block: pa.Table, job: Job) -> BlockReport:
        """Read a block's features and have them scored; the part is written here."""
        from mer_batch.rescore import Rescorer

        def pooled_rescorer(job: Job) -> Rescorer:
            return Rescorer(job, self.ask, self.batch_segments)

        return of_this_process(pooled_rescorer, job).work(number, block)


# Every worker begins with another actor, and goes round.
_turns = itertools.count(os.getpid())


def _answer(answer: concurrent.futures.Future[Float64]) -> Float64:
    try:
        return answer.result(_ANSWER_SECONDS)
    except concurrent.futures.TimeoutError:
        raise ScoringError(
            f"no actor of the scoring pool has answered for {_ANSWER_SECONDS:.0f} s; see to the "
            "machines that it is on, or make scoring.batch_segments smaller, then run again"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise ScoringError(
            f"an actor of the scoring pool could not go on: {first_line(error.cause)}; where a GPU "
            "has too little memory, make scoring.batch_segments smaller, then run again"
        ) from error
    except ray.exceptions.RayError as error:
        raise ScoringError(
            f"the scoring pool could not go on: {first_line(error)}; see to the machines that it "
            "is on, then run again"
        ) from error


@contextlib.contextmanager
def pooled(config: ScoringConfig, job: Job, n_cpus: int) -> Iterator[Pool | None]:
    """The pool that the configuration asks for, for the length of the work; None where none.

    Raises
    ------
    PoolSizeError
        Where the cluster lacks the GPUs.
    ScoringError
        Where an actor cannot start.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    device, n_actors = pool_size(config, resources.get("GPU", 0.0))
    if n_actors == 0:
        yield None
        return
    batch_segments = min(
        config.batch_segments, most_segments(job, resources["object_store_memory"], n_cpus)
    )
    # Placed by what they ask for. A dead one is started again, and its batch is done again.
    options: Any = {
        "num_cpus": 0,
        "num_gpus": config.gpus_per_actor if device == "cuda" else 0,
        "max_restarts": _MAX_RESTARTS,
        "max_task_retries": _MAX_TRIES,
    }
    actor: Any = ray.remote(**options)(_actor_class(job, device, config.batch_segments))
    actors = [actor.remote() for _ in range(n_actors)]
    try:
        _wait_until_ready(actors)
        yield Pool(actors, batch_segments)
    finally:
        for one in actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(one)


def pool_size(config: ScoringConfig, n_gpus: float) -> tuple[str, int]:
    """The device, and how many actors; none where every decoder scores for itself.

    Raises
    ------
    PoolSizeError
        Where there are too few GPUs.
    """
    if config.device == "cpu" or (config.device == "auto" and n_gpus == 0):
        return "cpu", config.actors
    most = int(n_gpus / config.gpus_per_actor + 1e-9)
    n_actors = config.actors or most
    if n_actors == 0 or n_actors > most:
        raise PoolSizeError(
            f"scoring.device={config.device}, scoring.actors={config.actors} and "
            f"scoring.gpus_per_actor={config.gpus_per_actor:g} must fit the cluster's "
            f"{n_gpus:g} GPUs; set scoring.device=cpu or fewer actors"
        )
    return "cuda", n_actors


def most_segments(job: Job, store_bytes: float, n_cpus: int) -> int:
    """Segments of a batch, so that the batches of all workers fit into the object store.

    Each has one out while it gathers the next, and a batch ends with a whole track.
    """
    assert isinstance(job.product, Scores)
    features = Checkpoint(
        job.product.card_json, job.product.weights, origin="checkpoint"
    ).feature_set
    segment_bytes = features.mel.n_mels * features.segment_frames * _FLOAT_BYTES
    of_one = _SHARE_OF_STORE * store_bytes / (2 * max(1, n_cpus)) / segment_bytes
    return max(1, int(of_one) - features.max_segments + 1)


def _wait_until_ready(actors: Sequence[Any]) -> None:
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=_START_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise ScoringError(
            f"the scoring pool's {len(actors)} actors did not start within {_START_SECONDS:.0f} s; "
            "others may hold the GPUs: set fewer scoring.actors, or run again"
        ) from error
    except ray.exceptions.RayError as error:
        raise ScoringError(
            f"an actor of the scoring pool cannot start: {first_line(error)}; see to the machines "
            "with GPUs, or set scoring.device=cpu"
        ) from error


def _actor_class(job: Job, device: str, batch_segments: int) -> type:
    """With the model in it, as tasks have the job: it goes through the table of functions."""
    assert isinstance(job.product, Scores)
    card_json, weights = job.product.card_json, job.product.weights

    class ScoringActor:
        """Holds the model."""

        def __init__(self) -> None:
            from mer_batch.score import Scorer, compute_in_one_thread

            checkpoint = Checkpoint(card_json, weights, origin="checkpoint")
            self._scorer = Scorer(checkpoint.function(device), batch_segments=batch_segments)
            if device == "cpu":
                keep_memory()
                compute_in_one_thread()

        def ready(self) -> str:
            """Where the model is."""
            return device

        def outputs(self, segments: Float32, n_frames: npt.NDArray[np.integer]) -> Float64:
            """See ``Scorer.outputs``."""
            from mer_batch.steps import reach

            reach("batch_to_score")
            return self._scorer.outputs(segments, n_frames)

    return ScoringActor
