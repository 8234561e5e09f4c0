"""What labelled data sets hold: to be looked at before learning from them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from mer_batch.config import LabelledDataConfig, LabelsConfig
from mer_batch.datasets import (
    Dataset,
    check_audio,
    check_split,
    load_dataset,
    missing_audio,
    noise_ceiling,
    without_repeats,
)
from mer_batch.errors import ConfigError, RefusedError
from mer_batch.ratings import few
from mer_batch.schema import TARGETS
from mer_batch.storage import parse_uri


@dataclass(frozen=True)
class TargetSummary:
    """One target of a data set, on [-1, 1]."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class LabelSummary:
    """A data set in figures.

    Attributes
    ----------
    dataset : Dataset
    n_groups : int
    n_missing : int or None
        Clips without audio; None where it was not looked for.
    targets : dict of str to TargetSummary
        By name.
    correlation : float
        Of valence with arousal.
    splits : dict of str to int
        Clips in each part of the official split; empty where there is none.
    n_distinct : int
        Different pairs of valence and arousal.
    has_spread : bool
        Whether the spread between raters is known of every clip.
    ceiling : tuple of float, optional
        See :func:`mer_batch.datasets.noise_ceiling`.
    """

    dataset: Dataset
    n_groups: int
    n_missing: int | None
    targets: dict[str, TargetSummary]
    correlation: float
    splits: dict[str, int]
    n_distinct: int
    has_spread: bool
    ceiling: tuple[float, float] | None


@dataclass
class LabelsReport:
    """All data sets of a configuration: those that could be read, notes, and what is wrong."""

    summaries: list[LabelSummary] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run(config: LabelsConfig) -> LabelsReport:
    """Load every data set, whatever is wrong with the others, and say what it holds."""
    report = LabelsReport()
    datasets = []
    for name, settings in config.data.items():
        try:
            dataset = load_configured(name, settings, with_audio=False)
        except RefusedError as error:
            report.faults.append(str(error))
            continue
        report.summaries.append(summarise(dataset, with_audio=config.audio))
        if config.audio:
            try:
                dataset = replace(dataset, notes=dataset.notes + check_audio(dataset))
            except RefusedError as error:
                report.faults.append(str(error))
        datasets.append(dataset)
    for dataset in datasets:
        notes = [*dataset.notes, *_split_notes(dataset)]
        report.notes += [f"{dataset.name}: {note}" for note in notes]
    report.notes += without_repeats(datasets)[1]
    return report


def load_configured(name: str, settings: LabelledDataConfig, *, with_audio: bool = True) -> Dataset:
    """Load a data set as a configuration names it; see :func:`mer_batch.datasets.load_dataset`."""
    location = parse_uri(settings.uri)
    if location.is_s3:
        raise ConfigError(f"data.{name}.uri={settings.uri!r} must be a local path; copy it here")
    return load_dataset(
        name,
        Path(location.path),
        loader=settings.loader,
        options=settings.options,
        with_audio=with_audio,
    )


def summarise(dataset: Dataset, *, with_audio: bool) -> LabelSummary:
    """Count and measure a data set; its audio is looked for, but not opened."""
    clips = dataset.clips
    values = {target: [getattr(clip, target) for clip in clips] for target in TARGETS}
    splits = Counter(clip.split for clip in clips)
    return LabelSummary(
        dataset=dataset,
        n_groups=len({clip.group for clip in clips}),
        n_missing=len(missing_audio(dataset)) if with_audio else None,
        targets={
            target: TargetSummary(min(v), max(v), statistics.fmean(v), statistics.pstdev(v))
            for target, v in values.items()
        },
        correlation=statistics.correlation(*values.values()) if len(clips) > 1 else math.nan,
        splits={s: splits[s] for s in ("train", "validation", "test") if splits[s]},
        n_distinct=len(set(zip(*values.values(), strict=True))),
        has_spread=all(None not in (clip.valence_std, clip.arousal_std) for clip in clips),
        ceiling=noise_ceiling(dataset),
    )


def _split_notes(dataset: Dataset) -> list[str]:
    """Which groups the official split tears apart."""
    groups = check_split(dataset.clips)
    if not groups:
        return []
    parts: dict[str, set[str]] = {group: set() for group in groups}
    for clip in dataset.clips:
        if clip.group in parts and clip.split:
            parts[clip.group].add(clip.split)
    n_leaks = sum({"train", "test"} <= found for found in parts.values())
    return [
        f"{len(groups)} {dataset.grouped_by}s stand in more than one part of the official split, "
        f"{n_leaks} of them in train and test: {few(groups)}"
    ]
