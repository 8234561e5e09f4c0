"""One recipe to a checkpoint: measured on clips it has not seen, then fitted to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mer_batch.clips import Clips
from mer_batch.config import RecipeConfig, SplitConfig
from mer_batch.evaluate import (
    calibrate,
    cross_validate,
    describe_protocol,
    leave_one_out,
    measure,
    number,
    unseen_protocol,
)
from mer_batch.learners import ClosedFormLearner, NetworkLearner, network_model
from mer_batch.schema import TARGETS

TARGET = 0


@dataclass(frozen=True)
class RejectedClip:
    """A clip that could not be learned from, and why."""

    dataset: str
    track_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Trained:
    """A model and what is known of it.

    Attributes
    ----------
    model : torch.nn.Module
        Fitted to all clips.
    r2 : dict
        Measured out of fold, an entry of ``evaluate.measure`` for each data set.
    intervals : dict
        See ``evaluate.calibrate``.
    """

    model: nn.Module
    r2: dict[str, dict[str, Any]]
    intervals: dict[str, Any]


def train(
    learner: ClosedFormLearner | NetworkLearner,
    clips: Clips,
    split: SplitConfig,
    say: Callable[[str], None],
) -> Trained:
    """Cross-validate a recipe, calibrate its intervals, and fit it to all clips.

    Parameters
    ----------
    learner : ClosedFormLearner or NetworkLearner
    clips : Clips
        The first data set is the one whose ratings the model gives.
    split : SplitConfig
    say : callable
        Called with a line of progress.
    """
    say(f"{learner.name}: measuring on clips it has not seen")
    repeats = cross_validate(learner, clips, split, target=TARGET, everywhere=True)
    own = [repeat.only(clips.tasks[repeat.rows] == TARGET) for repeat in repeats]
    intervals = calibrate(clips, own, dataset=clips.datasets[TARGET].name)
    measured = {}
    for task, dataset in enumerate(clips.datasets):
        ours = [repeat.only(clips.tasks[repeat.rows] == task) for repeat in repeats]
        protocol = describe_protocol(split, dataset.grouped_by)
        if task != TARGET:
            protocol += f"; scored as {clips.datasets[TARGET].name} is rated, with its intervals"
        measured[dataset.name] = measure(
            clips, ours, protocol=protocol, seed=split.seed,
            intervals=None if task == TARGET else intervals,
        )  # fmt: skip
    for task, repeat in leave_one_out(learner, clips, seed=split.seed).items():
        name, protocol = clips.datasets[task].name, unseen_protocol(learner, clips, task)
        measured[f"{name}, unseen"] = measure(clips, [repeat], protocol=protocol, seed=split.seed)
    say(f"{learner.name}: fitting to all {len(clips.labels)} clips")
    fitted = learner.fit(np.arange(len(clips.labels)), target=TARGET, seed=split.seed)
    return Trained(fitted.model, measured, intervals)


def card_model(learner: ClosedFormLearner | NetworkLearner) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments of the model, as its card keeps them."""
    if isinstance(learner, ClosedFormLearner):
        return learner.recipe.model, learner.parameters
    return network_model(learner.recipe)


def training_data(
    learner: ClosedFormLearner | NetworkLearner, clips: Clips, rejects: list[RejectedClip]
) -> list[dict[str, Any]]:
    """Where the clips that were learned from are from, and on which terms."""
    learned = clips.datasets if learner.uses_related else clips.datasets[:1]
    return [
        {
            "name": dataset.name,
            "music": dataset.music,
            "n_clips": len(clips.of(task)),
            "n_groups": len(np.unique(clips.groups[clips.of(task)])),
            "n_rejected": sum(reject.dataset == dataset.name for reject in rejects),
            "labels": dataset.scale,
            "licence": dataset.licence,
            "citation": dataset.citation,
            "source": dataset.source,
        }
        for task, dataset in enumerate(learned)
    ]


def card_notes(clips: Clips, trained: Trained, recipe: RecipeConfig) -> str:
    """What a user must know before relying on the scores."""
    target, *related = clips.datasets
    notes = [
        "Trained on research data: see training_data for the terms.",
        f"Scores are on the scale of the listeners of {target.name} ({target.music}), whose "
        f"middle is 0; being cautious, they spread {_spread(trained.r2[target.name])} as far as "
        "the ratings.",
    ]
    for dataset in related:
        entry = trained.r2[dataset.name]
        v, a = (number(entry[f"{name}_correlation"], 2) for name in TARGETS)
        covered = " and ".join(_percent(entry[f"{name}_coverage"]) for name in TARGETS)
        notes.append(
            f"{dataset.name} ({dataset.music}) is rated on another scale: there scores rank "
            f"clips (correlation {v} for valence, {a} for arousal), spread {_spread(entry)} as "
            f"far as the ratings, and the intervals cover {covered} of them."
        )
    notes += [
        "The spread between members and segments is disagreement within the model, not an error "
        f"bar; the {trained.intervals['level']:.0%} intervals are, for music like "
        f"{target.name}.",
    ]
    if recipe.features.name == "paper":
        notes.append("Raw power spectrograms, as in the paper: expect no skill.")
    return " ".join(notes)


def _spread(entry: dict[str, Any]) -> str:
    return " and ".join(f"{_percent(entry[f'{target}_spread'])} ({target})" for target in TARGETS)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
