"""Train a recipe: labels, features, cross-validation, the model, its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

import mer_batch
from mer_batch.checkpoint import Card, save_checkpoint
from mer_batch.config import LearnConfig
from mer_batch.errors import ConfigError
from mer_batch.pipelines.learning import Prepared, check_names, load_labels, prepare
from mer_batch.pipelines.networks import NetworkTrainer
from mer_batch.recipe import RejectedClip, Trained, card_model, card_notes, train, training_data
from mer_batch.run import Run, StopSignals
from mer_batch.storage import Location, Storage, parse_uri


@dataclass(frozen=True)
class TrainSummary:
    """How a run of ``train`` ended.

    Attributes
    ----------
    checkpoint_uri : str
        What to give ``tag`` as ``model.uri``.
    card : Card
        With all that was measured.
    rejects : list of RejectedClip
    """

    checkpoint_uri: str
    card: Card
    rejects: list[RejectedClip]


def run(config: LearnConfig, console: Console) -> TrainSummary:
    """Train one recipe on labelled data sets, measure it, and write its checkpoint.

    Raises
    ------
    RefusedError
        Before any work: configuration, labels or storage.
    LeaseError
        Another run holds the output.
    ErrorBudgetExceeded
        Too many clips cannot be decoded.
    Interrupted
        By SIGINT or SIGTERM; features that were extracted stay, and so do trained epochs.
    """
    check_names(config)
    datasets, notes = load_labels(config)
    storage, output = Storage(config.storage), parse_uri(config.output.uri)
    storage.check_writable(output)
    name = config.recipe or next(iter(config.recipes))
    if not config.recipes[name].clip:
        raise ConfigError(
            f"recipes.{name}.clip=False must be left out: tag writes scores that are cut off, "
            "and a card must measure those"
        )
    held = Run(
        storage, output, config, lease_seconds=config.output.lease_seconds, tell=console.print
    )
    for line in notes:
        console.print(line)
    with StopSignals(), held as this_run, NetworkTrainer(config, console.print) as trainer:
        prepared = prepare(
            config, {name: config.recipes[name]}, datasets, [],
            storage=storage, trainer=trainer, console=console,
        )  # fmt: skip
        learner = prepared.recipes[name]
        trained = train(learner, prepared.clips, config.split, console.print)
        this_run.lease.check()
        folder = output.child("checkpoint")
        card = _save(config, name, prepared, trained, storage, folder)
        this_run.manifest.update(recipe=name, checkpoint=folder.uri, r2=card.r2)
    return TrainSummary(folder.uri, card, prepared.rejects)


def _save(
    config: LearnConfig,
    name: str,
    prepared: Prepared,
    trained: Trained,
    storage: Storage,
    folder: Location,
) -> Card:
    recipe = config.recipes[name]
    model, parameters = card_model(prepared.recipes[name])
    return save_checkpoint(
        storage,
        folder,
        state=trained.model.state_dict(),
        features=prepared.feature_sets[name],
        model=model,
        parameters=parameters,
        training_data=training_data(prepared.recipes[name], prepared.clips, prepared.rejects),
        r2=trained.r2,
        intervals=trained.intervals,
        recipe={
            **recipe.model_dump(mode="json"),
            "split": config.split.model_dump(mode="json"),
            "mer_batch": mer_batch.__version__,
        },
        notes=card_notes(prepared.clips, trained, recipe),
    )
