"""The ``features/`` table: its parts' schema, and how to read them.

One row is one segment. ``mel`` is a list of a fixed size, in decibels, bands before frames, so
that any reader of Parquet can open it; what else one must know stands in the schema's metadata. A
track shorter than a segment is filled up with the floor, and ``n_frames`` says how much is real.

What is in the table is looked up by its light columns, the index. A track counts where all its
segments are there; of two extractions of the same audio the newer one counts.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer_batch import schema
from mer_batch.audio.decode import DECODER
from mer_batch.audio.mel import db_to_power
from mer_batch.audio.native import singles
from mer_batch.delta import open_table, part_paths
from mer_batch.errors import FeaturesError, StorageError
from mer_batch.feature_sets import FeatureSet
from mer_batch.storage import Location, Storage
from mer_batch.task import STEP_DB

Float32 = npt.NDArray[np.float32]

TABLE = "features"
METADATA_KEY = b"mer_batch.features"

#: What :func:`index` gives of every segment, besides where it lies (`part` and `row`).
INDEX_COLUMNS = (
    "track_id", "audio_uri", "audio_version", "segment", "n_segments", "n_frames",
    "duration_seconds", "extracted_at",
)  # fmt: skip

_BATCH_ROWS = 64
_READERS = 8
_EXTRACTION = ["track_id", "audio_version", "extracted_at"]


def features_schema(
    id_type: pa.DataType, feature_set: FeatureSet, dtype: Literal["float16", "float32"] = "float16"
) -> pa.Schema:
    """Schema of a part, its metadata included.

    Parameters
    ----------
    id_type : pa.DataType
        Of the catalog's ids.
    feature_set : FeatureSet
    dtype : {"float16", "float32"}
        Half floats are rounded to steps of 1/16 dB: at most 1/32 dB off, which is 0.7 % of power.
    """
    columns = schema.features_schema(id_type)
    value_type = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    n_values = feature_set.mel.n_mels * feature_set.segment_frames
    # No value is null, which saves readers a look at each.
    value = pa.field("item", value_type, nullable=False)
    mel = pa.field("mel", pa.list_(value, n_values), nullable=False)
    content = _description(feature_set, dtype)
    return columns.set(columns.get_field_index("mel"), mel).with_metadata(
        {METADATA_KEY: json.dumps(content).encode()}
    )


def _description(feature_set: FeatureSet, dtype: str) -> dict[str, Any]:
    """What a reader without this package must know."""
    return {
        "name": feature_set.name,
        "features_id": feature_set.features_id,
        **asdict(feature_set.mel),
        "segment_frames": feature_set.segment_frames,
        "shape": [feature_set.mel.n_mels, feature_set.segment_frames],
        "axes": ["n_mels", "segment_frames"],
        "unit": "dB",
        "model_unit": feature_set.unit,
        "floor_db": feature_set.floor_db,
        "step_db": STEP_DB if dtype == "float16" else None,
        "dtype": dtype,
        "placement": feature_set.placement,
        "max_segments": feature_set.max_segments,
        "segment_seconds": feature_set.segment_seconds,
        "decoder": DECODER,
    }


def mels(batch: pa.RecordBatch | pa.Table, feature_set: FeatureSet) -> Float32:
    """Mel spectrograms out of rows of the table, as models are shown them.

    Parameters
    ----------
    batch : pa.RecordBatch or pa.Table
        With the column ``mel``, of half or single floats, of a fixed size or not.
    feature_set : FeatureSet
        The rows' own.

    Returns
    -------
    float32, shape (n_rows, n_mels, segment_frames)
        In the feature set's unit. Power is restored from decibels: to 0.7 %, and to nothing where
        it was at the floor. Behind a row's ``n_frames`` there is silence.

    Raises
    ------
    FeaturesError
        Where the lists have another length than the feature set's segments.
    """
    column = batch.column("mel")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    shape = (len(column), feature_set.mel.n_mels, feature_set.segment_frames)
    values = column.flatten()
    if len(values) != shape[0] * shape[1] * shape[2] or values.null_count:
        raise FeaturesError(
            f"{shape[0]} rows of features hold {len(values)} values, {feature_set.name!r} has "
            f"{shape[1]} x {shape[2]} a row; read them with the feature set they were made with"
        )
    stored = values.to_numpy(zero_copy_only=False)
    is_half = stored.dtype == np.float16
    # Of their own: what Arrow holds may not be written to, and what a model is shown may.
    decibels = (singles(stored) if is_half else np.array(stored, np.float32)).reshape(shape)
    if feature_set.unit == "power":
        return db_to_power(decibels, floor_db=feature_set.floor_db)
    return decibels


def index(storage: Storage, output: Location, feature_set: FeatureSet) -> pa.Table:
    """Every segment of a feature set that an output holds, without its mel.

    Parameters
    ----------
    storage : Storage
    output : Location
        ``output.uri`` of ``mer-batch extract``.
    feature_set : FeatureSet

    Returns
    -------
    pa.Table
        ``INDEX_COLUMNS``, `part` (URI) and `row` (within the part), ordered by track, audio
        version and segment. All audio versions of a track are there. Parts that cannot be read
        are not: extracting again replaces them.

    Raises
    ------
    FeaturesError
        Where the table holds other feature sets only, or there is none.
    StorageError
    """
    table = open_table(storage, output.child(TABLE))
    if table is None:
        raise FeaturesError(f"no features in {output.uri!r}; run mer-batch extract first")
    folder = output.child(TABLE)
    parts = [folder.child(path) for path in part_paths(storage, folder, table)]
    rows, _ = read_rows(storage, parts, INDEX_COLUMNS)
    found = newest_whole(rows.filter(pc.field("features_id") == feature_set.features_id))
    if found.num_rows == 0:
        others = sorted(set(rows["features_id"].unique().to_pylist()) - {feature_set.features_id})
        if others:
            raise FeaturesError(
                f"{folder.uri}: shards of another features_id: {', '.join(map(repr, others))}, "
                f"needed {feature_set.features_id!r}; run mer-batch extract again with "
                f"features.name={feature_set.name}"
            )
    return found.drop_columns(["features_id"])


def read_features(
    storage: Storage,
    output: Location,
    feature_set: FeatureSet,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream the rows of :func:`index`, mel and all, in batches of at most some megabytes.

    Parameters
    ----------
    columns : sequence of str, optional
        Of ``schema.features_schema``; all by default.

    Raises
    ------
    FeaturesError, StorageError
    """
    wanted = index(storage, output, feature_set).select(["part", "row"])
    folder = output.child(TABLE).uri
    for uri in sorted(wanted["part"].unique().to_pylist()):
        rows = np.sort(wanted.filter(pc.field("part") == uri)["row"].to_numpy())
        part = output.child(TABLE, uri.removeprefix(f"{folder}/"))
        yield from _batches(storage, part, rows, columns)


def _batches(
    storage: Storage,
    part: Location,
    rows: npt.NDArray[np.int64],
    columns: Sequence[str] | None,
) -> Iterator[pa.RecordBatch]:
    begin = 0
    try:
        with open_part(storage, part) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                first, last = np.searchsorted(rows, [begin, begin + len(batch)])
                if last > first:
                    yield batch.take(pa.array(rows[first:last] - begin))
                begin += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read {part.uri!r}: {error}; delete it and run mer-batch extract again"
        ) from error


def open_part(storage: Storage, part: Location) -> pq.ParquetFile:
    """Open a part for reading; damaged pages are found by their checksums."""
    return pq.ParquetFile(
        part.fs_path, filesystem=storage.filesystem(part), page_checksum_verification=True
    )


def rows_by_part(
    storage: Storage, parts: Iterable[Location], columns: Sequence[str]
) -> Iterator[tuple[Location, pa.Table | str]]:
    """Light columns of parts, with `features_id` and `row`, part by part in their order.

    Yields
    ------
    part : Location
    rows : pa.Table or str
        Of any feature set; or why the part cannot be read.
    """
    names = [*dict.fromkeys([*columns, "features_id"])]

    def read(part: Location) -> pa.Table | str:
        try:
            with open_part(storage, part) as file:
                rows = file.read(columns=names, use_threads=False).select(names)
        except (OSError, pa.ArrowException, KeyError) as error:
            return f"{part.uri}: {error}"
        numbers = pa.array(np.arange(len(rows)))
        return rows.append_column("row", numbers).replace_schema_metadata()

    in_hand: deque[tuple[Location, Future[pa.Table | str]]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="index") as readers:
        for part in parts:
            in_hand.append((part, readers.submit(read, part)))
            if len(in_hand) >= 2 * _READERS:
                first, found = in_hand.popleft()
                yield first, found.result()
        for first, found in in_hand:
            yield first, found.result()


def read_rows(
    storage: Storage, parts: Iterable[Location], columns: Sequence[str]
) -> tuple[pa.Table, list[str]]:
    """Light columns of parts, with `features_id`, `part` and `row`; and what could not be read.

    Returns
    -------
    rows : pa.Table
        Of any feature set.
    problems : list of str
        One for each part that could not be read.
    """
    tables: list[pa.Table] = []
    problems: list[str] = []
    for part, rows in rows_by_part(storage, parts, columns):
        if isinstance(rows, str):
            problems.append(rows)
            continue
        at = rows.schema.get_field_index("row")
        tables.append(rows.add_column(at, "part", pa.repeat(part.uri, len(rows))))
    if not tables:
        return _empty([*dict.fromkeys([*columns, "features_id"])]), problems
    return pa.concat_tables(tables, promote_options="permissive"), problems


def _empty(names: Sequence[str]) -> pa.Table:
    fields = [schema.features_schema(pa.string()).field(name) for name in names]
    place = [pa.field("part", pa.string()), pa.field("row", pa.int64())]
    return pa.schema([*fields, *place]).empty_table()


def newest_whole(rows: pa.Table) -> pa.Table:
    """Of each track and audio version the newest extraction of which every segment is there.

    Parameters
    ----------
    rows : pa.Table
        With ``INDEX_COLUMNS``, of one feature set.

    Returns
    -------
    pa.Table
        Ordered by track, audio version and segment.
    """
    counted = rows.group_by(_EXTRACTION).aggregate(
        [("segment", "count_distinct"), ("n_segments", "max")]
    )
    whole = counted.filter(pc.equal(counted["segment_count_distinct"], counted["n_segments_max"]))
    newest = whole.group_by(_EXTRACTION[:2]).aggregate([("extracted_at", "max")])
    newest = newest.rename_columns([*_EXTRACTION[:2], "extracted_at"])
    kept = rows.join(newest, keys=_EXTRACTION, join_type="left semi")
    order = [(name, "ascending") for name in ("track_id", "audio_version", "segment")]
    return kept.select(rows.schema.names).sort_by(order)
