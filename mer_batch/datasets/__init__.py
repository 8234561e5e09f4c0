"""Labelled data sets by name: one file each, the file's name is the loader's name in configs.

A loader reads a release as its authors lay it out and defines::

    LICENCE, CITATION, SOURCE    what a user must know, copied into the card of a model
    MUSIC                        what kind of music it holds, in words
    GROUPED_BY                   what clips of a group share, in words
    CEILING                      published reliability of the mean ratings, where there is one
    load(folder, *, options)     -> Labels

Loaders read labels and say where each clip's audio lies; they do not open audio.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mer_batch.errors import ConfigError, DatasetError
from mer_batch.ratings import few, repeated
from mer_batch.registry import load_plugin, plugin_names, unknown_name
from mer_batch.schema import TARGETS

AUDIO_SUFFIXES = frozenset({".mp3", ".wav", ".flac", ".ogg", ".aif", ".aiff", ".mp2", ".mp1"})


@dataclass(frozen=True)
class LabelledClip:
    """A clip with what people said of it.

    Attributes
    ----------
    track_id : str
        Unique within the data set.
    audio_path : Path
    valence, arousal : float
        Mean rating, on [-1, 1].
    group : str
        Clips of a group (an album, an artist) must not be split between training and test.
    valence_std, arousal_std : float or None
        Standard deviation between raters (n - 1 in the denominator), on the scale of the ratings
        here; None where the release does not say.
    split : {"train", "validation", "test"} or None
        The release's own; None where it has none.
    recording_id : str or None
        Names the recording across data sets that share some, as ``mediaeval/123``.
    n_raters : int or None
        How many ratings the mean is of; None where the release does not say.
    """

    track_id: str
    audio_path: Path
    valence: float
    arousal: float
    group: str
    valence_std: float | None = None
    arousal_std: float | None = None
    split: str | None = None
    recording_id: str | None = None
    n_raters: int | None = None


@dataclass(frozen=True)
class Labels:
    """What a loader has read.

    Attributes
    ----------
    clips : list of LabelledClip
        An empty `group` makes the clip a group of its own.
    scale : str
        Of the ratings in the release.
    notes : list of str
        What was put right, or is worth knowing.
    about : dict of str
        In place of the loader's constants, by their names in lower case.
    """

    clips: list[LabelledClip]
    scale: str
    notes: list[str] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set as loaded.

    Attributes
    ----------
    name : str
        In tables, cards and folders.
    clips : list of LabelledClip
    music, licence, citation, source, grouped_by : str
        The loader's constants.
    scale : str
        Of the ratings in the release; here they are on [-1, 1].
    notes : list of str
        What was put right, or is worth knowing.
    ceiling : tuple of float, optional
        The loader's constant ``CEILING``, for valence and arousal.
    loader : str
        The file in this package.
    """

    name: str
    clips: list[LabelledClip]
    music: str
    licence: str
    citation: str
    source: str
    grouped_by: str
    scale: str = ""
    notes: list[str] = field(default_factory=list)
    ceiling: tuple[float, float] | None = None
    loader: str = ""

    @property
    def n_raters(self) -> int | None:
        """Fewest raters that a clip has; None where that is not known of all clips."""
        counts = [clip.n_raters for clip in self.clips]
        known = [count for count in counts if count is not None]
        return min(known) if known and len(known) == len(counts) else None


def load_dataset(
    name: str,
    folder: Path,
    *,
    loader: str | None = None,
    options: dict[str, Any] | None = None,
    with_audio: bool = True,
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name : str
        What the data set is called here.
    folder : Path
        Where the release lies; for ``table``, the table itself or its folder.
    loader : str, optional
        A file in this package; `name` by default.
    options : dict, optional
        The loader's own.
    with_audio : bool
        False: the audio need not be there.

    Raises
    ------
    ConfigError
        For an unknown loader or option, with those there are.
    DatasetError
        Naming the file that is missing, or the rows or clips that cannot be used.
    """
    plugin = load_plugin(__name__, loader or name, kind="loader" if loader else "data set")
    try:
        labels = _call(plugin, folder, options or {})
        _check(labels.clips)
    except (ConfigError, DatasetError) as error:
        raise type(error)(f"data set {name!r}: {error}") from error
    words = ("music", "licence", "citation", "source", "grouped_by")
    about = {word: getattr(plugin, word.upper()) for word in words} | labels.about
    dataset = Dataset(
        name=name,
        clips=_own_groups(labels.clips),
        scale=labels.scale,
        notes=[*labels.notes, *_ungrouped(labels, about["grouped_by"])],
        ceiling=getattr(plugin, "CEILING", None),
        loader=loader or name,
        **about | ({} if any(clip.group for clip in labels.clips) else {"grouped_by": "track"}),
    )
    notes = check_audio(dataset) if with_audio else []
    return replace(dataset, notes=dataset.notes + notes)


def dataset_names() -> list[str]:
    """Names of all loaders."""
    return plugin_names(__name__)


def check_audio(dataset: Dataset) -> list[str]:
    """Find every clip's audio file.

    Returns
    -------
    list of str
        A note about audio that nobody has rated, where there is some.

    Raises
    ------
    DatasetError
        With the count of the clips that have no audio, and the first of them.
    """
    missing = missing_audio(dataset)
    folders = sorted({clip.audio_path.parent for clip in dataset.clips})
    rated = {clip.audio_path for clip in dataset.clips}
    others = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in AUDIO_SUFFIXES and path not in rated and path.name[0] != "."
    ]
    unrated = f"audio without labels: {few(path.name for path in others)}"
    if missing:
        named = few(f"{clip.track_id} ({str(clip.audio_path)!r})" for clip in missing)
        raise DatasetError(
            f"data set {dataset.name!r}: {len(missing):,} of {len(dataset.clips):,} audio files "
            f"are missing: {named}; "
            + (f"there is {len(others):,} {unrated}; " if others else "")
            + "unpack the whole release, or take the labels without audio out"
        )
    return [f"{len(others):,} {unrated}"] if others else []


def missing_audio(dataset: Dataset) -> list[LabelledClip]:
    """The clips whose audio file is not there."""
    # Path.is_file raises where a name is too long or a folder may not be read.
    return [clip for clip in dataset.clips if not os.path.isfile(clip.audio_path)]


def check_split(clips: Sequence[LabelledClip]) -> list[str]:
    """Groups with clips in more than one part of the official split, sorted."""
    parts: dict[str, set[str]] = {}
    for clip in clips:
        if clip.split is not None:
            parts.setdefault(clip.group, set()).add(clip.split)
    return sorted(group for group, found in parts.items() if len(found) > 1)


def without_repeats(datasets: Sequence[Dataset]) -> tuple[list[Dataset], list[str]]:
    """Leave recordings out that an earlier data set holds, so that none is learned and tested on.

    Parameters
    ----------
    datasets : sequence of Dataset

    Returns
    -------
    datasets : list of Dataset
        In the same order; one that has no clip left is not among them.
    notes : list of str
        How many were left out of which, and where they are.
    """
    holders: dict[str, str] = {}
    kept, notes = [], []
    for dataset in datasets:
        held_by = {
            clip.track_id: holders[key]
            for clip in dataset.clips
            for key in _recording_keys(clip)
            if key in holders
        }
        repeats = [clip for clip in dataset.clips if clip.track_id in held_by]
        if repeats:
            names = set(held_by.values())
            notes.append(
                f"{dataset.name}: {len(repeats):,} of {len(dataset.clips):,} clips are left out, "
                f"as {', '.join(sorted(names))} holds them: {few(c.track_id for c in repeats)}"
            )
        clips = [clip for clip in dataset.clips if clip.track_id not in held_by]
        holders |= {key: dataset.name for clip in clips for key in _recording_keys(clip)}
        if clips:
            kept.append(replace(dataset, clips=clips))
    return kept, notes


def _recording_keys(clip: LabelledClip) -> list[str]:
    """What tells that two clips are one recording: its name, or its very file."""
    named = [clip.recording_id] if clip.recording_id else []
    return [*named, str(clip.audio_path.resolve())]


def noise_ceiling(dataset: Dataset) -> tuple[float, float] | None:
    """The R^2 that no model can be expected to exceed, for valence and arousal.

    It is the reliability of the mean ratings: the published one where the loader knows it, else
    ``1 - mean(std^2 / n_raters) / var(means)``, the share of the means' variance that is not
    chance in who was asked. None where neither spread nor reliability is known.

    References
    ----------
    Lord, F. M. and Novick, M. R. Statistical Theories of Mental Test Scores. Addison-Wesley, 1968:
    the squared correlation of observed with true scores is the reliability (section 3.4).
    """
    if dataset.ceiling is not None:
        return dataset.ceiling
    valence, arousal = (_reliability(dataset.clips, target) for target in TARGETS)
    return None if valence is None or arousal is None else (valence, arousal)


def _reliability(clips: Sequence[LabelledClip], target: str) -> float | None:
    """Reliability of the means; with few clips the estimate can fall below 0, which is cut off."""
    errors = []
    for clip in clips:
        std = getattr(clip, f"{target}_std")
        if std is None or clip.n_raters is None:
            return None
        errors.append(std**2 / clip.n_raters)
    means = [getattr(clip, target) for clip in clips]
    centre = math.fsum(means) / len(means)
    variance = math.fsum((mean - centre) ** 2 for mean in means) / max(len(means) - 1, 1)
    return max(0.0, 1 - math.fsum(errors) / len(errors) / variance) if variance else None


def _call(plugin: ModuleType, folder: Path, options: dict[str, Any]) -> Labels:
    parameters = inspect.signature(plugin.load).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [name for name in options if name not in names]
    if unknown and not names:
        raise ConfigError(f"options={options!r} must be empty: the loader has none")
    if unknown:
        raise ConfigError("; ".join(unknown_name("option", name, names) for name in unknown))
    labels: Labels = plugin.load(folder, **options)
    return labels


def _check(clips: Sequence[LabelledClip]) -> None:
    """What every data set must hold to."""
    if not clips:
        raise DatasetError("must hold at least one clip; are the label files empty?")
    repeats = repeated([clip.track_id for clip in clips])
    if repeats:
        raise DatasetError(
            f"track ids must be unique; {len(repeats):,} stand in more than one row: "
            f"{few(map(repr, repeats))}; keep one row of each"
        )
    for target in TARGETS:
        values = {getattr(clip, target) for clip in clips}
        if len(values) == 1 < len(clips):
            raise DatasetError(
                f"{target} must vary, but it is {values.pop():g} (on the scale from -1 to 1) for "
                f"all {len(clips):,} clips: {few(clip.track_id for clip in clips)}; is it the "
                f"right column?"
            )


def _own_groups(clips: Sequence[LabelledClip]) -> list[LabelledClip]:
    return [clip if clip.group else replace(clip, group=f"track {clip.track_id}") for clip in clips]


def _ungrouped(labels: Labels, grouped_by: str) -> list[str]:
    n_alone = sum(not clip.group for clip in labels.clips)
    if not n_alone:
        return []
    who = "all" if n_alone == len(labels.clips) else f"{n_alone:,} of {len(labels.clips):,}"
    return [f"{who} clips have no {grouped_by}, so each of them is a group of its own"]
