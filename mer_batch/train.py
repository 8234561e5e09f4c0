"""Train the built-in model on labelled clips, and measure how good it is.

Clips are described once, by statistics of their features; every fold, repeat and final fit then
takes milliseconds. Predictions of a clip are averaged over its segments and the ensemble's
members, as in scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mer_batch import metrics
from mer_batch.audio.decode import AudioLimits
from mer_batch.checkpoint import Card, save_checkpoint
from mer_batch.config import PooledGPConfig, TrainConfig
from mer_batch.datasets import Dataset, LabelledClip, load_dataset
from mer_batch.errors import AudioError, ConfigError, DatasetError
from mer_batch.extract import Extractor
from mer_batch.feature_sets import FeatureSet, feature_set
from mer_batch.models.pooled_gp import Model
from mer_batch.schema import TARGETS
from mer_batch.storage import parse_uri

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_FEATURES = "log_mel"


@dataclass(frozen=True)
class RejectedClip:
    """A clip that could not be learned from, and why."""

    dataset: str
    track_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class TrainSummary:
    """How a training run ended.

    Attributes
    ----------
    folder : Path
        Where the checkpoint lies.
    card : Card
        With all that was measured.
    rejects : list of RejectedClip
    """

    folder: Path
    card: Card
    rejects: list[RejectedClip]


@dataclass(frozen=True)
class Clips:
    """The clips of all data sets, described.

    Attributes
    ----------
    statistics : list of Tensor, shape (n_segments, n_statistics)
        One for each clip.
    labels : float64, shape (n_clips, 2)
        Valence and arousal on [-1, 1].
    tasks : int64, shape (n_clips,)
        Position of the clip's data set; 0 is the target.
    groups : str, shape (n_clips,)
        Never split; unique over data sets.
    """

    statistics: list[Tensor]
    labels: Float64
    tasks: Int64
    groups: npt.NDArray[np.str_]


def run(config: TrainConfig, say: Callable[[str], None]) -> TrainSummary:
    """Train on all data sets, measure by cross-validation, and write the checkpoint.

    Parameters
    ----------
    config : TrainConfig
    say : callable
        Called with a line of progress.

    Raises
    ------
    RefusedError
        Where the configuration or a data set cannot be used.
    """
    features = feature_set(_FEATURES)
    data_folder = _local(config.data.uri, "data.uri")
    folder = _local(config.output.uri, "output.uri")
    names = [config.data.target, *config.data.related]
    datasets = [load_dataset(name, data_folder / name) for name in names]
    clips, rejects = describe(datasets, features, say)
    n_groups = len(np.unique(clips.groups))
    if config.n_folds > n_groups:
        raise ConfigError(
            f"n_folds={config.n_folds} must not exceed the {n_groups} groups there are"
        )
    say(f"cross-validating {config.n_repeats} times in {config.n_folds} folds")
    measured = cross_validate(clips, datasets, features, config)
    measured |= leave_one_out(clips, datasets, features, config)
    model = fitted(clips, np.arange(len(clips.labels)), features, config)
    card = save_checkpoint(
        folder,
        model=config.model.name,
        parameters=model_parameters(features, config.model),
        features=features,
        state=model.state_dict(),
        training_data=[_provenance(dataset, rejects) for dataset in datasets],
        r2=measured,
        notes=_notes(datasets, measured),
    )
    return TrainSummary(folder, card, rejects)


def describe(
    datasets: list[Dataset], features: FeatureSet, say: Callable[[str], None]
) -> tuple[Clips, list[RejectedClip]]:
    """Decode every clip and reduce it to statistics; clips that cannot be used are left out."""
    extractor = Extractor(features, AudioLimits())
    statistics = Model(**model_parameters(features, PooledGPConfig())).statistics
    kept: list[tuple[int, LabelledClip, Tensor]] = []
    rejects = []
    for task, dataset in enumerate(datasets):
        say(f"reading {len(dataset.clips)} clips of {dataset.name}")
        n_before = len(kept)
        for clip in dataset.clips:
            try:
                segments = extractor.extract(clip.audio_path.read_bytes()).segments
            except AudioError as error:
                rejects.append(
                    RejectedClip(dataset.name, clip.track_id, error.reason, error.message)
                )
                continue
            with torch.inference_mode():
                kept.append((task, clip, statistics(torch.from_numpy(segments))))
        if len(kept) == n_before:
            raise DatasetError(f"data set {dataset.name!r} must hold a clip that can be decoded")
    clips = Clips(
        statistics=[values for _, _, values in kept],
        labels=np.array([[getattr(clip, target) for target in TARGETS] for _, clip, _ in kept]),
        tasks=np.array([task for task, _, _ in kept]),
        groups=np.array([f"{datasets[task].name}: {clip.group}" for task, clip, _ in kept]),
    )
    return clips, rejects


def grouped_folds(groups: npt.NDArray[np.str_], n_folds: int, *, seed: int) -> Int64:
    """Fold of each clip, folds of about equal size, no group in two of them.

    Largest groups first, in random order among equals, each into the fold with least clips.
    """
    names, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of_group = np.empty(len(names), np.int64)
    n_clips = np.zeros(n_folds, np.int64)
    for group in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
        fold = int(np.argmin(n_clips))
        fold_of_group[group] = fold
        n_clips[fold] += counts[group]
    return fold_of_group[group_of]


def cross_validate(
    clips: Clips, datasets: list[Dataset], features: FeatureSet, config: TrainConfig
) -> dict[str, dict[str, Any]]:
    """Measure each data set out of fold, with the scores the finished model would give."""
    predictions = []
    for repeat in range(config.n_repeats):
        folds = grouped_folds(clips.groups, config.n_folds, seed=config.seed + repeat)
        predicted = np.empty_like(clips.labels)
        for fold in range(config.n_folds):
            model = fitted(clips, np.flatnonzero(folds != fold), features, config)
            test = np.flatnonzero(folds == fold)
            predicted[test] = predict(model, clips, test)
        predictions.append(predicted)
    measured = {}
    for task, dataset in enumerate(datasets):
        rows = np.flatnonzero(clips.tasks == task)
        protocol = (
            f"out of fold, {config.n_folds} folds that keep every {dataset.grouped_by} whole, "
            f"mean and standard deviation of {config.n_repeats} repeats; 95% interval over "
            f"which {dataset.grouped_by}s were measured"
        )
        measured[dataset.name] = _measured(
            clips, rows, [predicted[rows] for predicted in predictions], protocol, config.seed
        )
    return measured


def leave_one_out(
    clips: Clips, datasets: list[Dataset], features: FeatureSet, config: TrainConfig
) -> dict[str, dict[str, Any]]:
    """Measure each data set with a model that has seen only the others."""
    if len(datasets) < 2:
        return {}
    measured = {}
    for task, dataset in enumerate(datasets):
        rows = np.flatnonzero(clips.tasks == task)
        model = fitted(clips, np.flatnonzero(clips.tasks != task), features, config)
        seen = [other.name for other in datasets if other is not dataset]
        protocol = f"trained on {', '.join(seen)} alone, on its scale"
        measured[f"{dataset.name}, unseen"] = _measured(
            clips, rows, [predict(model, clips, rows)], protocol, config.seed
        )
    return measured


def fitted(clips: Clips, rows: Int64, features: FeatureSet, config: TrainConfig) -> Model:
    """A model fitted to some of the clips; the first data set among them is the target."""
    model = Model(**model_parameters(features, config.model))
    _, tasks = np.unique(clips.tasks[rows], return_inverse=True)
    model.fit(
        torch.stack([clips.statistics[row].mean(dim=0) for row in rows]),
        clips.labels[rows],
        tasks=tasks,
        groups=clips.groups[rows],
        seed=config.seed,
    )
    return model.eval()


def predict(model: Model, clips: Clips, rows: Int64) -> Float64:
    """Valence and arousal of some of the clips, shape (n_rows, 2)."""
    with torch.inference_mode():
        scores = [model.predict(clips.statistics[row]).mean(dim=(0, 1)) for row in rows]
    return torch.stack(scores).double().numpy()


def model_parameters(features: FeatureSet, config: PooledGPConfig) -> dict[str, Any]:
    """Constructor arguments of the model, as its card keeps them."""
    names = ("n_mels", "sample_rate", "hop_length", "fmin", "fmax")
    return {name: getattr(features.mel, name) for name in names} | {"n_members": config.n_members}


def describe_r2(entry: dict[str, Any], target: str) -> str:
    """One R^2 of the card, for a person: value, deviation over repeats, interval below."""
    low, high = entry[f"{target}_interval"]
    deviation = entry[f"{target}_std"]
    repeats = "" if deviation is None else f" +- {deviation:.3f}"
    return f"{entry[target]:.3f}{repeats}\n({low:.2f} to {high:.2f})"


def _measured(
    clips: Clips, rows: Int64, predictions: list[Float64], protocol: str, seed: int
) -> dict[str, Any]:
    """An entry of the card's ``r2``.

    Parameters
    ----------
    clips : Clips
    rows : int64
        Of the data set measured.
    predictions : list of float64, shape (n_rows, 2)
        One for each repeat.
    protocol : str
    seed : int

    Returns
    -------
    dict
        For each target its R^2, and as ``_std`` the deviation over repeats, ``_interval`` the
        95 % interval, ``_correlation`` Pearson's, ``_spread`` the deviation of the predictions
        as a share of the labels'.
    """
    labels, groups = clips.labels[rows], clips.groups[rows]
    r2 = np.stack([metrics.r2(labels, predicted) for predicted in predictions])
    correlation = np.stack([metrics.pearson(labels, predicted) for predicted in predictions])
    intervals = [
        metrics.bootstrap_interval(metrics.r2, labels, predicted, groups, seed=seed)
        for predicted in predictions
    ]
    low, high = np.mean(intervals, axis=0)
    spread = np.mean([predicted.std(axis=0) for predicted in predictions], axis=0)
    entry: dict[str, Any] = {}
    for column, target in enumerate(TARGETS):
        entry |= {
            target: _rounded(r2[:, column].mean()),
            f"{target}_std": _rounded(r2[:, column].std()) if len(r2) > 1 else None,
            f"{target}_interval": [_rounded(low[column]), _rounded(high[column])],
            f"{target}_correlation": _rounded(correlation[:, column].mean()),
            f"{target}_spread": _rounded(spread[column] / labels[:, column].std()),
        }
    return entry | {
        "n_clips": len(rows), "n_groups": len(np.unique(groups)), "protocol": protocol,
    }  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _provenance(dataset: Dataset, rejects: list[RejectedClip]) -> dict[str, Any]:
    n_rejected = sum(reject.dataset == dataset.name for reject in rejects)
    return {
        "name": dataset.name,
        "music": dataset.music,
        "n_clips": len(dataset.clips) - n_rejected,
        "n_rejected": n_rejected,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "source": dataset.source,
    }


def _notes(datasets: list[Dataset], measured: dict[str, dict[str, Any]]) -> str:
    """What a user must know before relying on the scores."""
    target, *related = datasets
    notes = [
        "Trained on research data; meant for research. See training_data for the terms.",
        f"Scores are on the scale of the listeners of {target.name} ({target.music}), whose "
        f"middle is 0; being cautious, they spread {_spread(measured[target.name])} as far as "
        f"the ratings.",
    ]
    for dataset in related:
        entry = measured[dataset.name]
        v, a = (entry[f"{name}_correlation"] for name in TARGETS)
        notes.append(
            f"{dataset.name} ({dataset.music}) is rated on another scale: there scores rank "
            f"clips (correlation {v:.2f} for valence, {a:.2f} for arousal) but are compressed, "
            f"they spread {_spread(entry)} as far as the ratings."
        )
    notes += [
        "The spread between members is disagreement within the model, not an error bar.",
        "The recipe was chosen on these data sets with such folds, so the figures are somewhat "
        "optimistic.",
    ]
    return " ".join(notes)


def _spread(entry: dict[str, Any]) -> str:
    return " and ".join(f"{entry[f'{target}_spread']:.0%} ({target})" for target in TARGETS)


def _local(uri: str, key: str) -> Path:
    location = parse_uri(uri)
    if location.is_s3:
        raise ConfigError(f"{key}={uri!r} must be a local folder")
    return Path(location.path)
