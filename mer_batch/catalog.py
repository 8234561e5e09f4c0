"""The catalog: what tracks there are. Read in its own types, checked before any work begins."""

from __future__ import annotations

import hashlib
import io
import urllib.parse
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.json as pajson
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from mer_batch.config import CatalogConfig
from mer_batch.delta import open_table
from mer_batch.errors import CatalogError, masked
from mer_batch.storage import SCHEME_PATTERN, SCHEMES, Location, Storage, parse_uri

#: A file with one of these endings counts as audio in a folder of audio files.
AUDIO_SUFFIXES = (
    ".mp3", ".mp2", ".mp1", ".mpga", ".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff",
)  # fmt: skip
_TABLE_SUFFIXES = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip

_BATCH_ROWS = 65_536
_N_OFFENDERS = 5


class Catalog:
    """A catalog that was found fit to work on.

    Attributes
    ----------
    schema : pa.Schema
        Of its own columns, metadata included.
    keys : pa.Table
        One row per track, in the catalog's order: ``track_id`` (string or int64), ``audio_uri``
        (absolute), ``stated_version`` (string or null), ``expected_seconds`` (float64 or null).
    fingerprint : str
        Changes when the catalog's files do.
    notes : list of str
        What a user should know of how it was read.
    """

    def __init__(
        self,
        source: pads.Dataset | pa.Table,
        config: CatalogConfig,
        *,
        folder: str,
        fingerprint: str,
        notes: list[str],
    ) -> None:
        self._source = source
        self.schema: pa.Schema = source.schema
        self.fingerprint = fingerprint
        self.notes = notes
        self._id_column = config.id_column
        self.keys = _keys(self, config, folder)

    @property
    def id_type(self) -> pa.DataType:
        """string or int64."""
        return self.keys.schema.field("track_id").type

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows with all columns in their own types, in the order of `keys`.

        Raises
        ------
        CatalogError
            Where the catalog's files were changed since it was opened.
        """
        if isinstance(self._source, pa.Table):
            yield from self._source.to_batches(max_chunksize=_BATCH_ROWS)
            return
        changed = "the catalog was changed while the run read it; run again"
        begin = 0
        try:
            for batch in self._source.to_batches(batch_size=_BATCH_ROWS):
                ids = _plain(pa.chunked_array([batch[self._id_column]])).cast(self.id_type)
                if not ids.equals(self.keys["track_id"].slice(begin, len(ids))):
                    raise CatalogError(changed)
                begin += len(ids)
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{changed} ({error})") from error

    def columns(self, names: list[str]) -> pa.Table:
        """Some columns of all rows."""
        if isinstance(self._source, pa.Table):
            return self._source.select(names)
        return self._source.to_table(columns=names)


def read_catalog(config: CatalogConfig, storage: Storage, *, taken_names: list[str]) -> Catalog:
    """Open a catalog and check it.

    Parameters
    ----------
    config : CatalogConfig
    storage : Storage
    taken_names : list of str
        Columns that ``enriched/`` will add: a catalog must not have them already.

    Raises
    ------
    CatalogError
        With the number of offending rows and the first few of them.
    StorageError
        Where it cannot be read.
    """
    location = parse_uri(config.uri)
    is_folder = storage.is_folder(location)
    if not is_folder and not storage.exists(location):
        raise CatalogError(f"catalog.uri={config.uri!r}: no such file or folder")
    files = (
        list(storage.list_files(location))
        if is_folder
        else [(location, 0, storage.version(location))]
    )
    kind = _kind(config, location, files, is_folder)
    chosen = _chosen(kind, location, files)
    if not chosen and kind != "delta":
        raise CatalogError(f"catalog.uri={config.uri!r} holds no {kind} files")
    try:
        source = _open(kind, config, location, [found for found, _, _ in chosen], storage)
        _check_publishable(source.schema)
    except (pa.ArrowException, DeltaError, OSError, UnicodeDecodeError) as error:
        raise CatalogError(
            f"catalog.uri={config.uri!r} cannot be read as {kind}: {error}"
        ) from error
    notes = []
    if kind == "audio" and len(files) > len(chosen):
        notes.append(
            f"{len(files) - len(chosen)} files in {config.uri} have no audio ending: ignored"
        )
    if kind == "audio":
        config = config.model_copy(update={"id_column": "track_id", "audio_column": "audio_uri"})
    taken = [name for name in taken_names if name in source.schema.names]
    if taken:
        raise CatalogError(
            f"the catalog already has columns named {', '.join(taken)}; set output.prefix to "
            "rename the ones that are added"
        )
    fingerprint = hashlib.sha256(
        repr([(found.uri, size, version) for found, size, version in chosen]).encode()
    ).hexdigest()
    folder = location.uri.rstrip("/") if is_folder else location.uri.rpartition("/")[0]
    try:
        return Catalog(source, config, folder=folder, fingerprint=fingerprint, notes=notes)
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"catalog.uri={config.uri!r} cannot be read: {error}") from error


# ------------------------------------------------------------------------------- opening


def _below(location: Location, found: Location) -> list[str]:
    """The folders and the name that lead from a folder to a file in it."""
    return found.path[len(location.path.rstrip("/")) :].lstrip("/").split("/")


def _is_hidden(location: Location, found: Location) -> bool:
    """Whether readers of tables pass it over: ``_SUCCESS``, ``_temporary/``, ``.crc``."""
    return any(part.startswith(("_", ".")) for part in _below(location, found))


def _kind(
    config: CatalogConfig,
    location: Location,
    files: list[tuple[Location, int, str]],
    is_folder: bool,
) -> str:
    """What the catalog is, by its configuration, else by the names of its files."""
    if config.format != "auto":
        return config.format
    if not is_folder:
        kind = _TABLE_SUFFIXES.get(_suffix(location))
        if kind is None:
            raise CatalogError(
                f"catalog.uri={config.uri!r} must end in one of {', '.join(_TABLE_SUFFIXES)}, or "
                "set catalog.format"
            )
        return kind
    if any(_below(location, found)[0] == "_delta_log" for found, _, _ in files):
        return "delta"
    kinds = {
        _TABLE_SUFFIXES[_suffix(found)]
        for found, _, _ in files
        if _suffix(found) in _TABLE_SUFFIXES and not _is_hidden(location, found)
    }
    has_audio = any(_suffix(found) in AUDIO_SUFFIXES for found, _, _ in files)
    names_columns = {"id_column", "audio_column"} & config.model_fields_set
    if has_audio and not (kinds and names_columns):
        return "audio"
    if len(kinds) == 1:
        return kinds.pop()
    found_kinds = " and ".join(sorted(kinds)) or "neither audio nor table"
    raise CatalogError(
        f"catalog.uri={config.uri!r} holds {found_kinds} files; point at one kind or "
        "set catalog.format"
    )


def _suffix(location: Location) -> str:
    name = location.path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name else ""


def _chosen(
    kind: str, location: Location, files: list[tuple[Location, int, str]]
) -> list[tuple[Location, int, str]]:
    if len(files) == 1 and kind != "audio":
        return files
    if kind == "audio":
        return [entry for entry in files if _suffix(entry[0]) in AUDIO_SUFFIXES]
    if kind == "delta":
        return [entry for entry in files if _below(location, entry[0])[0] == "_delta_log"]
    return [
        entry
        for entry in files
        if _TABLE_SUFFIXES.get(_suffix(entry[0])) == kind and not _is_hidden(location, entry[0])
    ]


def _open(
    kind: str, config: CatalogConfig, location: Location, chosen: list[Location], storage: Storage
) -> pads.Dataset | pa.Table:
    if kind == "audio":
        return _audio_table(location, chosen)
    if kind == "delta":
        return _delta_dataset(location, storage)
    if kind == "parquet":
        return _parquet_dataset(location, chosen, storage)
    contents = [storage.read(part) for part in chosen]
    if kind == "csv":
        return _read_csv(contents, exact={config.id_column, config.version_column})
    return _unified([_read_jsonl(content) for content in contents])


def _delta_dataset(location: Location, storage: Storage) -> pads.Dataset:
    """The files of a Delta table's latest version, in the table's own schema."""
    table = open_table(storage, location)
    if table is None:
        raise CatalogError(f"{location.uri} cannot be read as delta: no table lies there")
    if table.metadata().partition_columns:
        raise CatalogError(
            f"{location.uri}: a partitioned Delta table keeps columns outside its files; "
            "write it out as Parquet"
        )
    features = {"deletionVectors", "columnMapping"} & set(table.protocol().reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    if features:
        raise CatalogError(
            f"{location.uri}: the Delta table uses {', '.join(sorted(features))}, so its files do "
            "not hold just its rows; write it out as Parquet"
        )
    actions = pa.table(table.get_add_actions(flatten=True))
    # A path is relative to the table, or a whole URI in a shallow clone.
    paths = [str(path) for path in actions["path"].to_pylist()]
    files = [parse_uri(p) if "://" in p else location.child(p) for p in paths]
    return pads.dataset(
        [file.fs_path for file in files],
        filesystem=storage.filesystem(location),
        format="parquet",
        schema=pa.schema(table.schema().to_arrow()),
    )


def _check_publishable(columns: pa.Schema) -> None:
    """Refuse now what could not be written as Parquet after a whole night's work."""
    repeated = {name for name in columns.names if columns.names.count(name) > 1}
    if repeated:
        raise CatalogError(
            f"the catalog has several columns of one name: {', '.join(sorted(repeated))}"
        )
    try:
        pq.ParquetWriter(io.BytesIO(), columns).close()
    except pa.ArrowException as error:
        raise CatalogError(f"the catalog cannot be written as Parquet: {error}") from error


def _parquet_dataset(location: Location, chosen: list[Location], storage: Storage) -> pads.Dataset:
    filesystem = storage.filesystem(location)
    paths = [part.fs_path for part in chosen]
    is_hive = any("=" in path.removeprefix(location.fs_path) for path in paths)
    options = {"partitioning": "hive", "partition_base_dir": location.fs_path} if is_hive else {}
    dataset = pads.dataset(paths, filesystem=filesystem, format="parquet", **options)
    if len(paths) == 1:
        return dataset
    # A part whose column is all null may have lost its type: unify instead of taking the first's.
    schemas = [dataset.schema, *(part.physical_schema for part in dataset.get_fragments())]
    unified = pa.unify_schemas(schemas, promote_options="default")
    return dataset.replace_schema(unified.with_metadata(dataset.schema.metadata))


def _unified(parts: list[pa.Table]) -> pa.Table:
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")


def _audio_table(location: Location, chosen: list[Location]) -> pa.Table:
    """A catalog made of a folder: ids are paths below it."""
    base = len(location.path.rstrip("/")) + 1 if location.path else 0
    return pa.table(
        {
            "track_id": pa.array([_printable(found.path[base:]) for found in chosen], pa.string()),
            "audio_uri": pa.array([_exact_uri(found) for found in chosen], pa.string()),
        }
    )


def _printable(name: str) -> str:
    """A file name as text, bytes that are no UTF-8 percent-encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return urllib.parse.quote(name, safe="/ ", errors="surrogateescape")
    return name


def _exact_uri(location: Location) -> str:
    """A URI that reads back as the same location, whatever bytes the name holds."""
    if location.is_s3 or _printable(location.path) == location.path:
        return location.uri
    return "file://" + urllib.parse.quote(location.path, errors="surrogateescape")


def _read_csv(contents: list[bytes], *, exact: set[str | None]) -> pa.Table:
    """Read CSV files as one, keeping as text what a guessed type would change (007, 1e400).

    Columns named in `exact` do not become float64: 1.10 is not the version 1.1.
    """
    # The types are guessed over all files together: one file's part of a column may be empty.
    text = _unified([_csv_text(content) for content in contents])
    return pa.table(
        {name: _narrowed(text[name], may_be_float=name not in exact) for name in text.column_names}
    )


def _csv_text(content: bytes) -> pa.Table:
    parsing = pacsv.ParseOptions(newlines_in_values=True)
    with pacsv.open_csv(io.BytesIO(content), parse_options=parsing) as reader:
        names = reader.schema.names
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise CatalogError(
            f"the catalog has several columns of one name: {', '.join(sorted(repeated))}"
        )
    strings = dict.fromkeys(names, pa.string())
    options = pacsv.ConvertOptions(column_types=strings, strings_can_be_null=False)
    return pacsv.read_csv(io.BytesIO(content), parse_options=parsing, convert_options=options)


def _narrowed(column: pa.ChunkedArray, *, may_be_float: bool) -> pa.ChunkedArray:
    """Text as int64 or float64 where every value is one, written in the usual way."""
    values = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    if values.null_count == len(values):
        return column
    for number in (pa.int64(), pa.float64()) if may_be_float else (pa.int64(),):
        try:
            numbers = values.cast(number)
        except pa.ArrowInvalid:
            continue
        if number == pa.float64():
            # Leading zeros make an identifier; inf is what a number too large for a float gives.
            plain = pc.match_substring_regex(values, r"^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$")
            return numbers if pc.all(pc.and_(plain, pc.is_finite(numbers))).as_py() else column
        if pc.all(pc.equal(numbers.cast(pa.string()), values)).as_py():
            return numbers
    return column


def _read_jsonl(content: bytes) -> pa.Table:
    """Read JSON lines; a string that looks like a date stays a string, at any depth."""
    # A block must hold the longest line.
    n_longest = max(map(len, content.splitlines()), default=0)
    reading = pajson.ReadOptions(block_size=max(1 << 20, n_longest + 2))
    table = pajson.read_json(io.BytesIO(content), read_options=reading)
    guessed = [field for field in table.schema if _undated(field.type) != field.type]
    if not guessed:
        return table
    strings = pa.schema([field.with_type(_undated(field.type)) for field in guessed])
    parsing = pajson.ParseOptions(explicit_schema=strings)
    return pajson.read_json(
        io.BytesIO(content), read_options=reading, parse_options=parsing
    ).select(table.column_names)


def _undated(kind: pa.DataType) -> pa.DataType:
    """The type with a string for every timestamp in it."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_undated(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_undated(field.type)) for field in kind])
    return kind


# ------------------------------------------------------------------------------- checking


def _keys(catalog: Catalog, config: CatalogConfig, folder: str) -> pa.Table:
    """Read the columns that matter and check them."""
    named = {
        "catalog.id_column": config.id_column,
        "catalog.audio_column": config.audio_column,
        "catalog.version_column": config.version_column,
        "catalog.duration_column": config.duration_column,
    }
    wanted = {key: name for key, name in named.items() if name is not None}
    _check_columns(catalog.schema, wanted)
    table = catalog.columns(list(dict.fromkeys(wanted.values())))
    if table.num_rows == 0:
        raise CatalogError("the catalog has no rows")
    ids = _ids(table[config.id_column], config.id_column)
    uris = _uris(table[config.audio_column], config.audio_column, ids, folder)
    n = table.num_rows
    version: pa.ChunkedArray | pa.Array = pa.nulls(n, pa.string())
    if config.version_column is not None:
        version = _cast(table[config.version_column], pa.string(), config.version_column)
        version = pc.if_else(pc.equal(version, ""), pa.scalar(None, pa.string()), version)
    seconds: pa.ChunkedArray | pa.Array = pa.nulls(n, pa.float64())
    if config.duration_column is not None:
        seconds = _cast(table[config.duration_column], pa.float64(), config.duration_column)
    return pa.table(
        {"track_id": ids, "audio_uri": uris, "stated_version": version, "expected_seconds": seconds}
    )


def _check_columns(schema: pa.Schema, wanted: dict[str, str]) -> None:
    faults = []
    for key, name in wanted.items():
        count = schema.names.count(name)
        if count == 0:
            faults.append(f"{key}={name!r}: the catalog has no such column")
        elif count > 1:
            faults.append(f"{key}={name!r}: the catalog has {count} columns of this name")
    if faults:
        raise CatalogError("; ".join(faults) + f"; its columns are {', '.join(schema.names)}")


def _cast(column: pa.ChunkedArray, to: pa.DataType, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(to)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CatalogError(
            f"column {name!r} of type {column.type} cannot be read as {to}"
        ) from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as its values."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _ids(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ids as string or int64; refused where null, empty, duplicate or of another type."""
    column = _plain(column)
    if _is_text(column.type):
        ids = column.cast(pa.string())
        ids.validate(full=True)  # Parquet may hold bytes that are no UTF-8
        missing = pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))
    elif pa.types.is_integer(column.type):
        ids = _cast(column, pa.int64(), name)
        missing = pc.is_null(ids)
    else:
        raise CatalogError(
            f"id column {name!r} has type {column.type}; ids must be strings or integers"
        )
    _refuse(missing, "null or empty ids", f"id column {name!r}", pc.indices_nonzero(missing), "row")
    counts = pc.value_counts(ids).flatten()
    repeated = counts[0].filter(pc.greater(counts[1], 1))
    if len(repeated):
        raise CatalogError(
            f"id column {name!r}: {len(repeated)} ids stand in more than one row: "
            f"{_first(repeated)}; ids must be unique"
        )
    return ids


def _uris(
    column: pa.ChunkedArray, name: str, ids: pa.ChunkedArray, folder: str
) -> pa.ChunkedArray | pa.Array:
    """Absolute URIs; relative ones are below the catalog's own folder."""
    column = _plain(column)
    if not _is_text(column.type):
        raise CatalogError(f"audio column {name!r} has type {column.type}; URIs must be strings")
    uris = column.cast(pa.string())
    uris.validate(full=True)
    missing = pc.or_kleene(pc.is_null(uris), pc.equal(uris, ""))
    _refuse(
        missing, "null or empty URIs", f"audio column {name!r}", ids.filter(missing), "track_id"
    )
    has_scheme = pc.match_substring_regex(uris, SCHEME_PATTERN)
    known = pc.match_substring_regex(uris, rf"^(?i:({'|'.join(SCHEMES)})://|file:/)")
    foreign = pc.and_(has_scheme, pc.invert(known))
    _refuse(
        foreign,
        f"URIs whose scheme is not one of {', '.join(SCHEMES)}",
        f"audio column {name!r}",
        uris.filter(foreign),
        "audio_uri",
    )
    secret = pc.match_substring_regex(uris, r"^(?i:s3a?)://[^/]*[@:]")
    secret = pc.and_not(secret, pc.match_substring_regex(uris, r"^(?i:s3a?)://arn:"))
    _refuse(secret, "URIs with credentials in them", f"audio column {name!r}",
            ids.filter(secret), "track_id")  # fmt: skip
    is_relative = pc.invert(pc.or_(has_scheme, pc.starts_with(uris, "/")))
    return pc.if_else(is_relative, pc.binary_join_element_wise(folder, uris, "/"), uris)


def _refuse(
    mask: pa.ChunkedArray, what: str, where: str, offenders: pa.Array | pa.ChunkedArray, kind: str
) -> None:
    count = pc.sum(mask).as_py() or 0
    if count:
        raise CatalogError(f"{where}: {count} {what}, the first at {kind} {_first(offenders)}")


def _first(values: pa.Array | pa.ChunkedArray) -> str:
    shown = ", ".join(masked(repr(value)) for value in values.slice(0, _N_OFFENDERS).to_pylist())
    return shown + (", ..." if len(values) > _N_OFFENDERS else "")
