"""Labelled data sets to learners: load labels, extract what is missing, describe the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from mer_batch.baselines import baseline_names
from mer_batch.checkpoint import try_model
from mer_batch.clips import (
    Clips,
    FeatureSource,
    Reducer,
    check_extracted,
    describe,
    gather,
    group_key,
)
from mer_batch.config import (
    CatalogConfig,
    ExtractConfig,
    FeaturesConfig,
    LearnConfig,
    OutputConfig,
    RecipeConfig,
)
from mer_batch.datasets import Dataset, without_repeats
from mer_batch.errors import ConfigError, RefusedError
from mer_batch.feature_sets import FeatureSet
from mer_batch.labels import load_configured
from mer_batch.learners import (
    BaselineLearner,
    ClosedFormLearner,
    Learner,
    NetworkLearner,
    baseline_reducer,
    check_recipe,
    closed_form_parameters,
    has_closed_form,
)
from mer_batch.ledger import Ledger
from mer_batch.models import build_model, model_names, on_device
from mer_batch.pipelines import extraction
from mer_batch.pipelines.networks import NetworkTrainer, check_network
from mer_batch.recipe import RejectedClip
from mer_batch.registry import unknown_name
from mer_batch.splits import Int64, Strings, check_groups
from mer_batch.storage import Location, Storage, parse_uri


@dataclass(frozen=True)
class Prepared:
    """What can be learned from, and what can learn.

    Attributes
    ----------
    clips : Clips
    recipes, baselines : dict of str to Learner
        By name.
    feature_sets : dict of str to FeatureSet
        By recipe.
    rejects : list of RejectedClip
    notes : list of str
        Which clips are left out, and why.
    """

    clips: Clips
    recipes: dict[str, ClosedFormLearner | NetworkLearner]
    baselines: dict[str, Learner]
    feature_sets: dict[str, FeatureSet]
    rejects: list[RejectedClip]
    notes: list[str]


def check_names(config: LearnConfig) -> None:
    """Refuse models, features and baselines that do not exist, before any work.

    Raises
    ------
    ConfigError
        Listing every fault.
    """
    faults = []
    for name in config.baselines:
        if name not in baseline_names():
            faults.append(unknown_name("baseline", name, baseline_names()))
    if config.recipe is not None and config.recipe not in config.recipes:
        faults.append(unknown_name("recipe", config.recipe, sorted(config.recipes)))
    for name, recipe in config.recipes.items():
        try:
            feature_set = recipe.features.feature_set()
            if recipe.model not in model_names():
                raise ConfigError(unknown_name("model", recipe.model, model_names()))
            check_recipe(recipe, feature_set)
            model = build_model(recipe.model, _parameters(recipe, feature_set))
            origin = f"features={feature_set.name!r}"
            try_model(on_device(model, "cpu"), recipe.model, feature_set, origin=origin)
            if not has_closed_form(recipe.model):
                check_network(config, recipe, model, feature_set)
        except RefusedError as error:
            faults.append(f"recipes.{name}: {error}")
    if faults:
        raise ConfigError("the recipes cannot be used:" + "".join(f"\n  - {f}" for f in faults))


def load_labels(config: LearnConfig) -> tuple[list[Dataset], list[str]]:
    """Load every data set's labels; a recording that two of them share counts once.

    Raises
    ------
    ConfigError, DatasetError
    """
    loaded = [load_configured(name, settings) for name, settings in config.data.items()]
    datasets, notes = without_repeats(loaded)
    if config.split.kind == "grouped":
        check_groups(*_groups_of(datasets), config.split.n_folds)
    said = [f"{dataset.name}: {note}" for dataset in datasets for note in dataset.notes]
    return datasets, said + notes


def _groups_of(datasets: Sequence[Dataset]) -> tuple[Strings, Int64]:
    pairs = [
        (group_key(dataset, clip.group), task)
        for task, dataset in enumerate(datasets)
        for clip in dataset.clips
    ]
    groups, tasks = zip(*pairs, strict=True)
    return np.array(groups), np.array(tasks)


def prepare(
    config: LearnConfig,
    recipes: Mapping[str, RecipeConfig],
    datasets: Sequence[Dataset],
    baselines: Sequence[str],
    *,
    storage: Storage,
    trainer: NetworkTrainer,
    console: Console,
) -> Prepared:
    """Extract what is missing and describe the clips once for every recipe.

    Parameters
    ----------
    config : LearnConfig
    recipes : mapping of str to RecipeConfig
        Those of `config` that are wanted.
    datasets : sequence of Dataset
    baselines : sequence of str
        On the features of the first recipe.
    storage : Storage
    trainer : NetworkTrainer
        Told where the features lie.
    console : Console
    """
    feature_sets = {name: recipe.features.feature_set() for name, recipe in recipes.items()}
    sources: dict[str, list[FeatureSource]] = {}
    usable = [{clip.track_id for clip in dataset.clips} for dataset in datasets]
    for name, recipe in recipes.items():
        features_id = feature_sets[name].features_id
        if features_id in sources:
            continue
        sources[features_id] = []
        for task, dataset in enumerate(datasets):
            source = _source(config, dataset, feature_sets[name], storage)
            usable[task] &= set(_extracted(config, dataset, recipe.features, source, console))
            sources[features_id].append(source)
    rejects = _rejects(config, datasets, usable, storage)
    clips = gather(datasets, usable)
    trainer.sources = sources
    described = {
        features_id: describe(found, clips, _reducers(recipes, feature_sets, features_id))
        for features_id, found in sources.items()
    }
    learners: dict[str, ClosedFormLearner | NetworkLearner] = {}
    for name, recipe in recipes.items():
        if has_closed_form(recipe.model):
            learners[name] = ClosedFormLearner(
                name, recipe, closed_form_parameters(recipe, feature_sets[name]), clips,
                described[feature_sets[name].features_id][name],
            )  # fmt: skip
        else:
            learners[name] = NetworkLearner(name, recipe, clips, config.split, trainer)
    first = next(iter(feature_sets.values())).features_id
    measured_beside: dict[str, Learner] = {
        name: BaselineLearner(name, clips, described[first][_BANDS]) for name in baselines
    }
    notes = [f"{r.dataset}: clip {r.track_id!r} left out, {r.reason}: {r.message}" for r in rejects]
    return Prepared(clips, learners, measured_beside, feature_sets, rejects, notes)


_BANDS = "\x00bands"  # no recipe's name


def _reducers(
    recipes: Mapping[str, RecipeConfig], feature_sets: Mapping[str, FeatureSet], features_id: str
) -> dict[str, Reducer]:
    """Everything that one pass over the features of one feature set has to find."""
    reducers: dict[str, Reducer] = {}
    for name, recipe in recipes.items():
        feature_set = feature_sets[name]
        if feature_set.features_id != features_id:
            continue
        reducers[_BANDS] = baseline_reducer(feature_set)
        if has_closed_form(recipe.model):
            model: Any = build_model(recipe.model, closed_form_parameters(recipe, feature_set))
            reducers[name] = model.statistics
    return reducers


def _parameters(recipe: RecipeConfig, feature_set: FeatureSet) -> dict[str, object]:
    if has_closed_form(recipe.model):
        return closed_form_parameters(recipe, feature_set)
    return recipe.parameters


def _source(
    config: LearnConfig, dataset: Dataset, feature_set: FeatureSet, storage: Storage
) -> FeatureSource:
    return FeatureSource(storage, _features_folder(config, dataset), feature_set)


def _features_folder(config: LearnConfig, dataset: Dataset) -> Location:
    given = config.data[dataset.name].features
    return parse_uri(given) if given else parse_uri(config.output.uri).child(dataset.name)


def _extracted(
    config: LearnConfig,
    dataset: Dataset,
    features: FeaturesConfig,
    source: FeatureSource,
    console: Console,
) -> list[str]:
    """Track ids of a data set that have features, after extracting what was missing."""
    given = config.data[dataset.name].features
    if given is not None:
        return check_extracted(dataset, source, given)
    catalog = source.output.child("catalog.parquet")
    table = pa.table(
        {
            "track_id": [clip.track_id for clip in dataset.clips],
            "audio_uri": [str(clip.audio_path.resolve()) for clip in dataset.clips],
            "valence": [clip.valence for clip in dataset.clips],
            "arousal": [clip.arousal for clip in dataset.clips],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    source.storage.write(catalog, sink.getvalue().to_pybytes())
    console.print(f"{dataset.name}: {len(table)} labelled clips")
    extraction.run(
        ExtractConfig(
            catalog=CatalogConfig(uri=catalog.uri, format="parquet"),
            output=OutputConfig(uri=source.output.uri, lease_seconds=config.output.lease_seconds),
            features=features,
            audio=config.audio,
            storage=config.storage,
            ray=config.ray,
            max_reject_rate=config.max_reject_rate,
        ),
        console,
    )
    return list(source.versions)


def _rejects(
    config: LearnConfig,
    datasets: Sequence[Dataset],
    usable: Sequence[set[str]],
    storage: Storage,
) -> list[RejectedClip]:
    """Why clips have no features, as the ledger has it."""
    rejects = []
    for dataset, there in zip(datasets, usable, strict=True):
        missing = [clip.track_id for clip in dataset.clips if clip.track_id not in there]
        if not missing:
            continue
        folder = _features_folder(config, dataset)
        # The latest first: of several extractions that one counts.
        rows = Ledger(storage, folder, pa.string()).rejects().to_pylist()
        why = {row["track_id"]: (row["reason"], row["message"]) for row in reversed(rows)}
        for track_id in missing:
            reason, message = why.get(track_id, ("storage_error", "no features and no reject"))
            rejects.append(RejectedClip(dataset.name, track_id, reason, message))
    return rejects
