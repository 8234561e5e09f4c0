"""Baselines, closed forms and networks behind one interface: learn from rows, score rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mer_batch.audio.mel import power_to_db
from mer_batch.baselines import band_statistics, build_baseline
from mer_batch.clips import Clips, Reducer
from mer_batch.config import RecipeConfig, SplitConfig
from mer_batch.errors import ConfigError
from mer_batch.feature_sets import FeatureSet
from mer_batch.models import build_model, model_class
from mer_batch.splits import validation_rows

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Scores of clips.

    Attributes
    ----------
    mean : float64, shape (n_clips, 2)
        Over segments and members, on [-1, 1].
    std : float64, shape (n_clips, 2)
        Over the same; NaN where there is only one value.
    """

    mean: Float64
    std: Float64


class Fitted(Protocol):
    """What a learner has become."""

    def score(self, rows: Int64) -> Scores:
        """Score some of the clips, as ``tag`` would."""
        ...


class Learner(Protocol):
    """What can learn from some of the clips."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def uses_related(self) -> bool:
        """Whether it learns from other data sets than the target too."""
        ...

    def fit(self, rows: Int64, *, target: int, seed: int) -> Fitted:
        """Learn from `rows`, to give the ratings of data set `target`."""
        ...


# ------------------------------------------------------------------------------ baselines


@dataclass(frozen=True)
class BaselineLearner:
    """A baseline on statistics of each band; it learns from the target's clips alone.

    Attributes
    ----------
    name : str
        A file in ``baselines/``.
    clips : Clips
    statistics : list of Tensor, shape (n_segments, size)
        One for each clip.
    """

    name: str
    clips: Clips
    statistics: list[Tensor]

    @property
    def uses_related(self) -> bool:
        """See :class:`Learner`."""
        return False

    def fit(self, rows: Int64, *, target: int, seed: int) -> FittedBaseline:
        """See :class:`Learner`."""
        own = rows[self.clips.tasks[rows] == target]
        estimator = build_baseline(self.name, seed=seed)
        estimator.fit(self._inputs(own), self.clips.labels[own])
        return FittedBaseline(estimator, self._inputs)

    def _inputs(self, rows: Int64) -> Float64:
        means = [self.statistics[row].mean(dim=0) for row in rows]
        return torch.stack(means).double().numpy()


@dataclass(frozen=True)
class FittedBaseline:
    """An estimator, and where its inputs come from."""

    estimator: Any
    inputs: Callable[[Int64], Float64]

    def score(self, rows: Int64) -> Scores:
        """See :class:`Fitted`."""
        mean = np.clip(self.estimator.predict(self.inputs(rows)), -1, 1)
        return Scores(mean, np.full_like(mean, np.nan))


def baseline_reducer(feature_set: FeatureSet) -> Reducer:
    """Segments to what baselines are shown: decibels, whatever the feature set's unit."""

    def reduce(segments: Tensor) -> Tensor:
        if feature_set.unit == "power":
            decibels = power_to_db(segments.numpy(), floor_db=feature_set.floor_db)
            segments = torch.from_numpy(decibels)
        return band_statistics(segments)

    return reduce


# ------------------------------------------------------------------------------ closed forms


def has_closed_form(model: str) -> bool:
    """Whether a model is fitted in one go, by its own ``fit``, rather than by gradients."""
    return hasattr(model_class(model), "fit")


def check_recipe(recipe: RecipeConfig, feature_set: FeatureSet) -> None:
    """Refuse settings that the recipe's kind of model has no use for.

    Raises
    ------
    ConfigError
    """
    if not has_closed_form(recipe.model):
        if recipe.fit:
            raise ConfigError(
                f"fit={recipe.fit!r} must be empty: {recipe.model!r} has no closed form; see "
                "training"
            )
        return
    if recipe.training != RecipeConfig.model_fields["training"].default:
        raise ConfigError(
            f"training must be left out: {recipe.model!r} has a closed form and is not trained"
        )
    if feature_set.unit != "dB":
        raise ConfigError(
            f"features.name={feature_set.name!r} must be in decibels for {recipe.model!r}, and is "
            f"in {feature_set.unit}; use log_mel"
        )
    kind: Any = model_class(recipe.model)
    taken = inspect.signature(kind.fit).parameters
    given = {"self", "statistics", "labels", "tasks", "groups", "seed"}
    names = [name for name in taken if name not in given]
    unknown = [name for name in recipe.fit if name not in names]
    if unknown:
        raise ConfigError(
            f"fit={recipe.fit!r} must hold only what {recipe.model!r} is fitted with: "
            f"{', '.join(names) or 'nothing'}"
        )


def closed_form_parameters(recipe: RecipeConfig, feature_set: FeatureSet) -> dict[str, Any]:
    """Constructor arguments of a model with a closed form, as its card keeps them."""
    names = ("n_mels", "sample_rate", "hop_length", "fmin", "fmax")
    return {name: getattr(feature_set.mel, name) for name in names} | recipe.parameters


@dataclass(frozen=True)
class ClosedFormLearner:
    """A model that fits itself to statistics of the clips, related data sets included.

    Attributes
    ----------
    name : str
    recipe : RecipeConfig
    parameters : dict
        See :func:`closed_form_parameters`.
    clips : Clips
    statistics : list of Tensor, shape (n_segments, size)
    """

    name: str
    recipe: RecipeConfig
    parameters: dict[str, Any]
    clips: Clips
    statistics: list[Tensor]

    @property
    def uses_related(self) -> bool:
        """See :class:`Learner`."""
        return True

    def fit(self, rows: Int64, *, target: int, seed: int) -> FittedClosedForm:
        """See :class:`Learner`."""
        model: Any = build_model(self.recipe.model, self.parameters)
        # The target comes first, whatever its place among the data sets.
        tasks = np.where(self.clips.tasks[rows] == target, -1, self.clips.tasks[rows])
        _, tasks = np.unique(tasks, return_inverse=True)
        statistics = torch.stack([self.statistics[row].mean(dim=0) for row in rows])
        model.fit(
            statistics, self.clips.labels[rows], tasks=tasks, groups=self.clips.groups[rows],
            seed=seed, **self.recipe.fit,
        )  # fmt: skip
        return FittedClosedForm(model.eval(), self.statistics)


@dataclass(frozen=True)
class FittedClosedForm:
    """A fitted model, and the statistics of all clips."""

    model: Any
    statistics: list[Tensor]

    def score(self, rows: Int64) -> Scores:
        """See :class:`Fitted`."""
        with torch.inference_mode():
            outputs = [self.model.predict(self.statistics[row]) for row in rows]
        return _scores(outputs)


def _scores(outputs: list[Tensor]) -> Scores:
    """Outputs of each clip, shape (n_segments, n_members, 2), to its scores."""
    values = [output.double().reshape(-1, 2) for output in outputs]
    mean = torch.stack([each.mean(dim=0) for each in values]).clamp(-1, 1).numpy()
    none = torch.full((2,), torch.nan, dtype=torch.float64)
    std = [each.std(dim=0, unbiased=False) if len(each) > 1 else none for each in values]
    return Scores(mean, torch.stack(std).numpy())


# ------------------------------------------------------------------------------ networks


class Trainer(Protocol):
    """Trains one network and applies it; ``pipelines/`` brings the one that knows Ray."""

    def train(
        self,
        recipe: RecipeConfig,
        *,
        task: int,
        labels: Mapping[str, tuple[float, float]],
        validation_labels: Mapping[str, tuple[float, float]],
        seed: int,
        name: str,
    ) -> nn.Module:
        """Train on the clips of data set `task` that `labels` names by their track ids."""
        ...

    def scores(
        self, recipe: RecipeConfig, model: nn.Module, *, task: int, track_ids: list[str]
    ) -> Scores:
        """Score some clips of data set `task` with a trained model."""
        ...


@dataclass(frozen=True)
class NetworkLearner:
    """A network, or an ensemble of them, trained by gradients on the target's clips.

    Attributes
    ----------
    name : str
    recipe : RecipeConfig
    clips : Clips
    split : SplitConfig
        How training rows are divided further, for early stopping.
    trainer : Trainer
    """

    name: str
    recipe: RecipeConfig
    clips: Clips
    split: SplitConfig
    trainer: Trainer

    @property
    def uses_related(self) -> bool:
        """See :class:`Learner`."""
        return False

    def fit(self, rows: Int64, *, target: int, seed: int) -> FittedNetwork:
        """See :class:`Learner`; every member keeps other clips to stop by."""
        own = rows[self.clips.tasks[rows] == target]
        members = []
        for number in range(self.recipe.training.n_members):
            member_seed = seed * 1000 + number
            train, validation = validation_rows(
                own, self.clips.groups, self.clips.splits, self.split, seed=member_seed
            )
            members.append(
                self.trainer.train(
                    self.recipe,
                    task=target,
                    labels=self._labels(train),
                    validation_labels=self._labels(validation),
                    seed=member_seed,
                    name=self.name,
                )
            )
        model = members[0] if len(members) == 1 else _ensemble(self.recipe, members)
        return FittedNetwork(model.eval(), self)

    def _labels(self, rows: Int64) -> dict[str, tuple[float, float]]:
        return {
            track_id: (valence, arousal)
            for track_id, (valence, arousal) in zip(
                self.clips.track_ids[rows].tolist(), self.clips.labels[rows].tolist(), strict=True
            )
        }


def network_model(recipe: RecipeConfig) -> tuple[str, dict[str, Any]]:
    """Name and parameters of the model that a network's recipe ends in, for its card."""
    n_members = recipe.training.n_members
    if n_members == 1:
        return recipe.model, recipe.parameters
    member = {"model": recipe.model, "parameters": recipe.parameters}
    return "ensemble", {"members": [member] * n_members}


def _ensemble(recipe: RecipeConfig, members: list[nn.Module]) -> nn.Module:
    model = build_model(*network_model(recipe))
    for place, member in zip(model.members, members, strict=True):  # type: ignore[arg-type]
        place.load_state_dict(member.state_dict())
    return model


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network, and the learner that knows the clips."""

    model: nn.Module
    learner: NetworkLearner

    def score(self, rows: Int64) -> Scores:
        """See :class:`Fitted`."""
        clips, learner = self.learner.clips, self.learner
        mean, std = np.empty((len(rows), 2)), np.empty((len(rows), 2))
        for task in np.unique(clips.tasks[rows]).tolist():
            own = np.flatnonzero(clips.tasks[rows] == task)
            track_ids = clips.track_ids[rows[own]].tolist()
            found = learner.trainer.scores(
                learner.recipe, self.model, task=task, track_ids=track_ids
            )
            mean[own], std[own] = found.mean, found.std
        return Scores(mean, std)
