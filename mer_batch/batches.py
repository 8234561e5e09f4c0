"""Parts of the features table to batches, in bounded memory and in an order that is known before.

The order of clips follows from the seed and the epoch, and each worker's share from that, whoever
reads the rows: `ShardBatches` takes the reader as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mer_batch import feature_table
from mer_batch.audio.augment import Augmentation, augment
from mer_batch.config import StorageConfig
from mer_batch.errors import DatasetError
from mer_batch.feature_sets import FeatureSet
from mer_batch.network import Batch
from mer_batch.storage import Storage, parse_uri

Labels = Mapping[str, tuple[float, float]]

_IDS = ["track_id", "audio_version", "features_id"]
_COLUMNS = ["track_id", "segment", "n_frames", "mel"]
_ROWS_AT_A_TIME = 64
#: Rows that are shuffled among each other, beside the order of the row groups: 50 to 100 MB.
_SHUFFLE_ROWS = 512
_N_NAMED = 5


@dataclass(frozen=True)
class Span:
    """Some rows of a row group.

    Attributes
    ----------
    uri : str
        Of the part.
    row_group : int
    rows : int32, shape (n_rows,)
        Positions in the row group, ascending.
    """

    uri: str
    row_group: int
    rows: npt.NDArray[np.int32]


Reader = Callable[[Sequence[Span]], Iterable[pa.Table]]


def find_spans(
    parts: Sequence[str],
    labels: Labels,
    features_id: str,
    storage: Storage,
    *,
    versions: Mapping[str, str] | None = None,
) -> list[Span]:
    """Where the segments of labelled tracks lie. Reads ids only, no features.

    Parameters
    ----------
    parts : sequence of str
        URIs of the parts.
    labels : mapping of str to (valence, arousal)
    features_id : str
        Rows of other feature sets are passed over.
    storage : Storage
    versions : mapping of str to str, optional
        Version of each track's audio that counts: rows of audio that has changed since are passed
        over. All rows count by default.

    Raises
    ------
    DatasetError
        For labelled tracks without features, with their number and the first few.
    """
    spans = []
    missing = set(labels)
    for uri in sorted(parts):
        with _opened(uri, storage) as part:
            for group in range(part.num_row_groups):
                ids = part.read_row_group(group, columns=_IDS)
                same = pc.equal(ids["features_id"], features_id).to_pylist()
                names = [str(name) for name in ids["track_id"].to_pylist()]
                found = zip(names, same, ids["audio_version"].to_pylist(), strict=True)
                rows = [
                    row
                    for row, (name, ours, version) in enumerate(found)
                    if ours and name in labels and (versions is None or versions[name] == version)
                ]
                if rows:
                    spans.append(Span(uri, group, np.array(rows, np.int32)))
                    missing.difference_update(names[row] for row in rows)
    if missing:
        first = ", ".join(sorted(missing)[:_N_NAMED])
        raise DatasetError(
            f"{len(missing):,} of {len(labels):,} labelled tracks have no features with "
            f"features_id={features_id!r}, such as {first}; extract them, or drop their labels"
        )
    return spans


def read_spans(spans: Sequence[Span], storage: Storage) -> Iterator[pa.Table]:
    """The rows of some spans, in their order, at most 64 at a time."""
    for span in spans:
        with _opened(span.uri, storage) as part:
            begin = 0
            for batch in part.iter_batches(
                _ROWS_AT_A_TIME, row_groups=[span.row_group], columns=_COLUMNS
            ):
                end = begin + len(batch)
                low, high = np.searchsorted(span.rows, [begin, end])
                rows = span.rows[low:high] - begin
                if len(rows) == len(batch):
                    yield pa.Table.from_batches([batch])
                elif len(rows):
                    yield pa.Table.from_batches([batch]).take(rows)
                begin = end


class ShardBatches:
    """Batches of labelled clips: ``shards(epoch)`` gives one pass over them.

    Parameters
    ----------
    parts : sequence of str
        URIs of the features table's parts.
    feature_set : FeatureSet
    labels : mapping of str to (valence, arousal)
        On [-1, 1]; other tracks are passed over.
    batch_size : int
        Clips a batch of this worker.
    seed : int
        Of the order of clips.
    rank, world_size : int
        Which share of how many.
    shuffle : bool
        Another order in each epoch: row groups are shuffled, and their rows among some hundred
        others.
    even : bool
        Every worker gets the same number of clips; up to ``world_size - 1`` are left out, others
        in each epoch. Else the shares hold all clips between them.
    storage : Storage, optional
        How to reach the parts; local files and the environment's S3 by default.
    versions : mapping of str to str, optional
        See :func:`find_spans`.
    spans : list of Span, optional
        What :func:`find_spans` found, where it was called already.
    read : callable, optional
        Gives the rows of spans, in their order, as tables of any length.

    Raises
    ------
    DatasetError
        See :func:`find_spans`.
    """

    def __init__(
        self,
        parts: Sequence[str],
        feature_set: FeatureSet,
        labels: Labels,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        even: bool = True,
        storage: Storage | None = None,
        versions: Mapping[str, str] | None = None,
        spans: Sequence[Span] | None = None,
        read: Reader | None = None,
    ) -> None:
        reached = storage or Storage(StorageConfig())
        self._feature_set = feature_set
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._shuffle = shuffle
        self._even = even
        if spans is None:
            spans = find_spans(parts, labels, feature_set.features_id, reached, versions=versions)
        self._spans = spans
        self._read = read or (lambda chosen: read_spans(chosen, reached))

    def __call__(self, epoch: int = 0) -> Iterator[Batch]:
        """One pass: this worker's batches, the last one perhaps smaller."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._spans)) if self._shuffle else range(len(self._spans))
        tables: Iterable[pa.Table] = self._read(self._share([self._spans[i] for i in order]))
        if self._shuffle:
            tables = _shuffled(tables, np.random.default_rng([self._seed, epoch, self._rank]))
        for table in _of_size(tables, self._batch_size):
            yield self._batch(table)

    def _share(self, spans: Sequence[Span]) -> list[Span]:
        """This worker's stretch of all rows; a row group on a border is read by both sides."""
        n_rows = sum(len(span.rows) for span in spans)
        n_shared = n_rows - n_rows % self._world_size if self._even else n_rows
        first = n_shared * self._rank // self._world_size
        last = n_shared * (self._rank + 1) // self._world_size
        share, begin = [], 0
        for span in spans:
            low, high = max(first - begin, 0), min(last - begin, len(span.rows))
            if low < high:
                share.append(Span(span.uri, span.row_group, span.rows[low:high]))
            begin += len(span.rows)
        return share

    def _batch(self, table: pa.Table) -> Batch:
        rows = table.combine_chunks().to_batches()[0]
        track_ids = [str(name) for name in rows.column("track_id").to_pylist()]
        labels = np.array([self._labels[name] for name in track_ids], np.float32)
        mels = feature_table.mels(rows, self._feature_set)
        n_frames = np.array(rows.column("n_frames").to_numpy(), np.int64)
        if self._feature_set.fixed_length:
            # The silence that fills a short clip up is part of what the model is to see.
            n_frames[:] = mels.shape[2]
        return Batch(
            track_ids=track_ids,
            mels=torch.from_numpy(np.ascontiguousarray(mels[:, :, : n_frames.max()])),
            n_frames=torch.from_numpy(n_frames),
            labels=torch.from_numpy(labels),
            segments=rows.column("segment").to_pylist(),
        )


def augmented(
    batches: Iterable[Batch],
    how: Augmentation,
    feature_set: FeatureSet,
    *,
    seed: int,
    epoch: int,
    blank: Tensor | None = None,
) -> Iterator[Batch]:
    """Batches with every clip augmented; see :func:`mer_batch.audio.augment.augment`."""
    for batch in batches:
        mels, n_frames, labels = augment(
            batch.mels, batch.n_frames, batch.labels, batch.clip_ids(), how,
            unit=feature_set.unit, seed=seed, epoch=epoch, blank=blank,
        )  # fmt: skip
        yield Batch(batch.track_ids, mels, n_frames, labels, batch.segments, batch.weights)


def _opened(uri: str, storage: Storage) -> pq.ParquetFile:
    location = parse_uri(uri)
    return pq.ParquetFile(location.fs_path, filesystem=storage.filesystem(location))


def _shuffled(tables: Iterable[pa.Table], rng: np.random.Generator) -> Iterator[pa.Table]:
    """Rows in random order: of a full buffer one half goes out, the other meets what comes next."""
    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= _SHUFFLE_ROWS:
            mixed = _mixed(waiting, rng)
            half = len(mixed) // 2
            yield mixed.slice(0, half)
            waiting, n_waiting = [mixed.slice(half)], len(mixed) - half
    if n_waiting:
        yield _mixed(waiting, rng)


def _mixed(tables: list[pa.Table], rng: np.random.Generator) -> pa.Table:
    whole = pa.concat_tables(tables)
    return whole.take(rng.permutation(len(whole)))


def _of_size(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `n_rows`, the last one perhaps shorter."""
    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        if n_waiting >= n_rows:
            whole = pa.concat_tables(waiting)
            n_taken = n_waiting - n_waiting % n_rows
            for begin in range(0, n_taken, n_rows):
                yield whole.slice(begin, n_rows)
            waiting, n_waiting = [whole.slice(n_taken)], n_waiting - n_taken
    if n_waiting:
        yield pa.concat_tables(waiting)
