"""Evaluate recipes beside baselines, ceilings and what others have printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from mer_batch.config import LearnConfig
from mer_batch.datasets import noise_ceiling
from mer_batch.evaluate import (
    cross_validate,
    describe_protocol,
    leave_one_out,
    measure,
    unseen_protocol,
)
from mer_batch.evaluation_page import (
    Evaluation,
    Measured,
    page,
    predictions_table,
    results_table,
)
from mer_batch.learners import Learner
from mer_batch.pipelines.learning import Prepared, check_names, load_labels, prepare
from mer_batch.pipelines.networks import NetworkTrainer
from mer_batch.run import Run, StopSignals
from mer_batch.storage import Location, Storage, parse_uri


@dataclass(frozen=True)
class EvaluationSummary:
    """How a run of ``evaluate`` ended.

    Attributes
    ----------
    evaluation : Evaluation
    folder_uri : str
        Holds ``results.parquet``, ``predictions.parquet`` and ``report.html``.
    """

    evaluation: Evaluation
    folder_uri: str


def run(config: LearnConfig, console: Console) -> EvaluationSummary:
    """Measure every recipe and baseline on every data set.

    Raises
    ------
    RefusedError, LeaseError, ErrorBudgetExceeded, Interrupted
        As ``training.run``.
    """
    check_names(config)
    datasets, notes = load_labels(config)
    storage, output = Storage(config.storage), parse_uri(config.output.uri)
    storage.check_writable(output)
    held = Run(
        storage, output, config, lease_seconds=config.output.lease_seconds, tell=console.print
    )
    for line in notes:
        console.print(line)
    with StopSignals(), held as this_run, NetworkTrainer(config, console.print) as trainer:
        prepared = prepare(
            config, config.recipes, datasets, config.baselines,
            storage=storage, trainer=trainer, console=console,
        )  # fmt: skip
        evaluation = Evaluation(
            clips=prepared.clips,
            measured=list(_measured(prepared, config, console.print)),
            ceilings={dataset.name: noise_ceiling(dataset) for dataset in datasets},
            notes=[*config.notes, *notes, *prepared.notes],
        )
        this_run.lease.check()
        folder = output.child("evaluation")
        _write(evaluation, storage, folder, title=config.title)
        this_run.manifest.update(evaluation=folder.uri)
    return EvaluationSummary(evaluation, folder.uri)


def _measured(
    prepared: Prepared, config: LearnConfig, say: Callable[[str], None]
) -> Iterator[Measured]:
    """Every data set in turn is the one whose ratings are learned."""
    clips, split = prepared.clips, config.split
    kinds: dict[str, Mapping[str, Learner]] = {
        "baseline": prepared.baselines, "recipe": prepared.recipes,
    }  # fmt: skip
    for task, dataset in enumerate(clips.datasets):
        for kind, learners in kinds.items():
            for name, learner in learners.items():
                say(f"{dataset.name}: measuring {name}")
                repeats = cross_validate(learner, clips, split, target=task)
                clip = config.recipes[name].clip if kind == "recipe" else True
                protocol = describe_protocol(split, dataset.grouped_by, clip=clip)
                entry = measure(clips, repeats, protocol=protocol, seed=split.seed)
                yield Measured(dataset.name, name, kind, entry, repeats)
    for name, learner in prepared.recipes.items():
        for task, repeat in leave_one_out(learner, clips, seed=split.seed).items():
            left_out = clips.datasets[task].name
            protocol = unseen_protocol(learner, clips, task)
            entry = measure(clips, [repeat], protocol=protocol, seed=split.seed)
            yield Measured(left_out, name, "unseen", entry, [repeat])


def _write(evaluation: Evaluation, storage: Storage, folder: Location, *, title: str) -> None:
    for name, table in (
        ("results", results_table(evaluation)),
        ("predictions", predictions_table(evaluation)),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.write(folder.child(f"{name}.parquet"), sink.getvalue().to_pybytes())
    storage.write(folder.child("report.html"), page(evaluation, title=title).encode())
