"""Labels and features, joined: what is learned from and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from mer_batch.datasets import Dataset, LabelledClip
from mer_batch.errors import DatasetError
from mer_batch.feature_sets import FeatureSet
from mer_batch.feature_table import index, mels, read_features
from mer_batch.schema import TARGETS
from mer_batch.storage import Location, Storage

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

_N_NAMED = 5
_ROW_COLUMNS = ["track_id", "audio_version", "segment", "n_frames", "mel"]


@dataclass(frozen=True)
class FeatureSource:
    """The features of one data set: a ``features/`` table under one feature set.

    Attributes
    ----------
    storage : Storage
    output : Location
        What holds ``features/``.
    feature_set : FeatureSet
    """

    storage: Storage
    output: Location
    feature_set: FeatureSet

    @cached_property
    def _index(self) -> pa.Table:
        return index(self.storage, self.output, self.feature_set)

    @cached_property
    def parts(self) -> list[str]:
        """URIs of the parts that hold the feature set's rows, as they were when first asked for."""
        return sorted(set(self._index["part"].to_pylist()))

    @cached_property
    def versions(self) -> dict[str, str]:
        """Version of each track's audio that was extracted last, as above."""
        found = self._index.sort_by("extracted_at")
        ids = found["track_id"].cast(pa.string()).to_pylist()
        return dict(zip(ids, found["audio_version"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Clips:
    """The clips of all data sets, one row each.

    Attributes
    ----------
    datasets : list of Dataset
    track_ids : str, shape (n_clips,)
        Unique within a data set.
    labels : float64, shape (n_clips, 2)
        Valence and arousal on [-1, 1].
    tasks : int64, shape (n_clips,)
        Position of the clip's data set.
    groups : str, shape (n_clips,)
        Never split; unique over data sets.
    splits : str, shape (n_clips,)
        The release's own, or empty.
    """

    datasets: list[Dataset]
    track_ids: Strings
    labels: Float64
    tasks: Int64
    groups: Strings
    splits: Strings

    def of(self, task: int) -> Int64:
        """Rows of one data set."""
        return np.flatnonzero(self.tasks == task)


def gather(datasets: Sequence[Dataset], usable: Sequence[Iterable[str]]) -> Clips:
    """Put the clips of all data sets in one list.

    Parameters
    ----------
    datasets : sequence of Dataset
    usable : sequence of iterable of str
        For each data set the track ids that have features.

    Raises
    ------
    DatasetError
        Where a data set has no usable clip, or all its clips have the same label.
    """
    kept: list[tuple[int, LabelledClip]] = []
    for task, (dataset, ids) in enumerate(zip(datasets, usable, strict=True)):
        there = set(ids)
        ours = [clip for clip in dataset.clips if clip.track_id in there]
        if len(ours) < 2:
            raise DatasetError(
                f"data set {dataset.name!r} must hold two clips that have features at least; "
                f"{len(ours)} of its {len(dataset.clips)} have"
            )
        for target in TARGETS:
            values = {getattr(clip, target) for clip in ours}
            if len(values) == 1:
                raise DatasetError(
                    f"data set {dataset.name!r}: {target} is {values.pop():g} in all {len(ours)} "
                    "usable clips; there is nothing to learn from a constant: check the column"
                )
        kept += [(task, clip) for clip in ours]
    clips = [clip for _, clip in kept]
    return Clips(
        datasets=list(datasets),
        track_ids=np.array([clip.track_id for clip in clips]),
        labels=np.array([[getattr(clip, target) for target in TARGETS] for clip in clips]),
        tasks=np.array([task for task, _ in kept]),
        groups=np.array([group_key(datasets[task], clip.group) for task, clip in kept]),
        splits=np.array([clip.split or "" for clip in clips]),
    )


def group_key(dataset: Dataset, group: str) -> str:
    """An artist that two data sets hold, or one spells in two ways, is one group."""
    is_own = group.startswith("track ") or dataset.grouped_by not in ("artist", "album")
    plain = "".join(filter(str.isalnum, group.casefold()))
    if is_own or not plain:
        return f"{dataset.name}: {group}"
    return f"{dataset.grouped_by}: {plain}"


def check_extracted(dataset: Dataset, source: FeatureSource, uri: str) -> list[str]:
    """Track ids of a data set, every one of which must have features.

    Raises
    ------
    DatasetError
        Naming the clips that have none.
    """
    there = source.versions
    missing = [clip.track_id for clip in dataset.clips if clip.track_id not in there]
    if missing:
        first = ", ".join(map(repr, missing[:_N_NAMED]))
        example = next(iter(there), "")
        raise DatasetError(
            f"data set {dataset.name!r}: {len(missing)} of {len(dataset.clips)} clips have no "
            f"features under features_id={source.feature_set.features_id!r} in {uri!r}, the first "
            f"are {first}, while ids there look like {example!r}; leave "
            f"data.{dataset.name}.features out and they are extracted"
        )
    return [clip.track_id for clip in dataset.clips]


Reducer = Callable[[Tensor], Tensor]


def describe(
    sources: Sequence[FeatureSource], clips: Clips, reducers: Mapping[str, Reducer]
) -> dict[str, list[Tensor]]:
    """Reduce every clip's segments to vectors, streaming the features once.

    Parameters
    ----------
    sources : sequence of FeatureSource
        One for each data set.
    clips : Clips
    reducers : mapping of str to callable
        (n_segments, n_mels, n_frames), in the feature set's unit and without padding, to
        (n_segments, size).

    Returns
    -------
    dict of str to list of Tensor
        By the reducer's name one entry for each clip, shape (n_segments, size).
    """
    rows_of = {
        (task, track_id): row
        for row, (task, track_id) in enumerate(
            zip(clips.tasks.tolist(), clips.track_ids.tolist(), strict=True)
        )
    }
    found: dict[str, dict[int, dict[int, Tensor]]] = {name: {} for name in reducers}
    for task, source in enumerate(sources):
        versions = source.versions
        batches = read_features(
            source.storage, source.output, source.feature_set, columns=_ROW_COLUMNS
        )
        for batch in batches:
            ids = batch["track_id"].cast(pa.string()).to_pylist()
            at = [
                (rows_of[task, track_id], position)
                for position, (track_id, version) in enumerate(
                    zip(ids, batch["audio_version"].to_pylist(), strict=True)
                )
                if (task, track_id) in rows_of and versions[track_id] == version
            ]
            _reduce(batch, at, source.feature_set, reducers, found)
    return {
        name: [
            torch.stack([segments[number] for number in sorted(segments)])
            for _, segments in sorted(by_row.items())
        ]
        for name, by_row in found.items()
    }


def _reduce(
    batch: pa.RecordBatch,
    at: list[tuple[int, int]],
    feature_set: FeatureSet,
    reducers: Mapping[str, Reducer],
    found: dict[str, dict[int, dict[int, Tensor]]],
) -> None:
    """Reduce the rows of a batch that are asked for.

    Each by itself: several together take a third less time, but their last bits would depend on
    their neighbours, and so the weights learned from them on how the features happen to lie.
    """
    values = torch.from_numpy(mels(batch, feature_set))
    n_frames = batch["n_frames"].to_pylist()
    segments = batch["segment"].to_pylist()
    for row, position in at:
        segment = values[position : position + 1, :, : n_frames[position]]
        for name, reduce in reducers.items():
            with torch.inference_mode():
                (vector,) = reduce(segment.clone())  # reducers may work in place
            found[name].setdefault(row, {})[segments[position]] = vector
