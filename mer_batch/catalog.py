"""The catalog: what tracks there are. Read in its own types, checked before any work begins."""

from __future__ import annotations

import hashlib
import io
import urllib.parse
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from mer_batch.config import CatalogConfig
from mer_batch.errors import CatalogError
from mer_batch.faults import explanation
from mer_batch.formats import (
    TABLE_SUFFIXES,
    delta_dataset,
    parquet_dataset,
    read_csv,
    read_jsonl,
    refuse_repeated,
    table_kind,
    unreadable_part,
)
from mer_batch.roots import Roots, is_text
from mer_batch.storage import Location, Storage, parse_uri
from mer_batch.tracks import Check, plain

#: A file with one of these endings counts as audio in a folder of audio files.
AUDIO_SUFFIXES = (
    ".mp3", ".mp2", ".mp1", ".mpga", ".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff",
)  # fmt: skip

_BATCH_ROWS = 65_536
# Enough to keep the cores busy; by default a thousand megabytes of a wide catalog lie ahead.
_READ_AHEAD = {"batch_readahead": 4, "fragment_readahead": 2}
# What Arrow's reader of Parquet adds for itself: a column of such a name nobody can read with it.
_RESERVED = {"__filename", "__fragment_index", "__batch_index", "__last_in_fragment"}
_CHANGED = "the catalog was changed while the run read it; run again"

#: A file of the catalog, its size and its version.
_File = tuple[Location, int, str]


class Catalog:
    """A catalog that was found fit to work on.

    Attributes
    ----------
    schema : pa.Schema
        Of its own columns, metadata included.
    tracks : Spill
        One row per track, in the catalog's order: ``track_id`` (string or int64), ``audio_uri``
        (absolute), ``stated_version`` (string or null), ``expected_seconds`` (float64 or null).
    index : TrackIndex
        Of their ids.
    n_unstated : int
        Tracks without a stated version.
    fingerprint : str
        Changes when the catalog's files do.
    notes : list of str
        What a user should know of how it was read.
    folders : tuple of str, optional
        What local audio must lie below, links followed; None: anywhere.
    """

    def __init__(
        self,
        source: pads.Dataset | pa.Table,
        config: CatalogConfig,
        *,
        folder: Location,
        fingerprint: str,
        notes: list[str],
        is_published: bool,
        held_type: pa.DataType | None,
        is_unchanged: Callable[[], bool],
    ) -> None:
        self._source = source
        self._is_unchanged = is_unchanged
        self.schema: pa.Schema = source.schema
        self.fingerprint = fingerprint
        self.notes = notes
        self._id_column = config.id_column
        roots = Roots.of(config.allowed_roots) if config.allowed_roots else None
        self.folders = roots.folders if roots else None
        check = Check(self.schema, config, folder, roots, held_type)
        found = check.all_of(self._key_batches(check.columns, whole=is_published))
        self.tracks, self.index, self.n_unstated = found.tracks, found.index, found.n_unstated

    @property
    def id_type(self) -> pa.DataType:
        """string or int64."""
        return self.tracks.schema.field("track_id").type

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows with all columns in their own types, in the order of `tracks`.

        Raises
        ------
        CatalogError
            Where the catalog's files were changed since it was opened.
        """
        if isinstance(self._source, pa.Table):
            yield from self._source.to_batches(max_chunksize=_BATCH_ROWS)
            return
        begin = 0
        try:
            for batch in self._source.to_batches(batch_size=_BATCH_ROWS, **_READ_AHEAD):
                ids = plain(pa.chunked_array([batch[self._id_column]])).cast(self.id_type)
                there = self.index.ids.slice(begin, len(ids))
                if not ids.combine_chunks().cast(there.type).equals(there):
                    raise CatalogError(_CHANGED)
                begin += len(ids)
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{_CHANGED} ({explanation(error)})") from error
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise CatalogError where a file it is read from is not the one that was opened."""
        if not self._is_unchanged():
            raise CatalogError(_CHANGED)

    def _key_batches(self, names: list[str], *, whole: bool) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows; `whole` reads the others too, to find damage in them."""
        if isinstance(self._source, pa.Table):
            yield from self._source.select(names).to_batches(max_chunksize=_BATCH_ROWS)
            return
        columns = None if whole else names
        try:
            for batch in self._source.to_batches(
                columns=columns, batch_size=_BATCH_ROWS, **_READ_AHEAD
            ):
                yield (_check_nulls(batch) if whole else batch).select(names)
        except (pa.ArrowException, OSError) as error:
            self.check_unchanged()
            raise CatalogError(unreadable_part(self._source) or explanation(error)) from error


def read_catalog(
    config: CatalogConfig,
    storage: Storage,
    *,
    taken_names: list[str],
    held_type: Callable[[], pa.DataType | None] = lambda: None,
) -> Catalog:
    """Open a catalog and check it.

    Parameters
    ----------
    config : CatalogConfig
    storage : Storage
    taken_names : list of str
        Columns that ``enriched/`` will add: a catalog must not have them already. Where there are
        any, all its columns are read once: what is damaged would be found after all work is done.
    held_type : callable
        Gives the type of the ids that the output holds, None where there are none. Asked where the
        catalog is CSV, which tells no types: that of its ids must not change with those that come
        and go.

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
    folder = location if is_folder else Location(location.bucket, _above(location.path))
    files = _files(storage, location, is_folder)
    kind = _kind(config, location, files, is_folder)
    chosen = _chosen(kind, location, files)
    if not chosen and kind != "delta":
        raise CatalogError(f"catalog.uri={config.uri!r} holds no {kind} files")
    notes = []
    if kind == "audio":
        config = config.model_copy(update={"id_column": "track_id", "audio_column": "audio_uri"})
        if len(files) > len(chosen):
            n_others = len(files) - len(chosen)
            notes.append(f"{n_others} files in {config.uri} have no audio ending: ignored")

    def is_unchanged() -> bool:
        # A Delta table's files stay as they are; the others are read more than once.
        return kind == "delta" or set(chosen) <= set(_files(storage, location, is_folder))

    try:
        held = held_type() if kind == "csv" else None
        found = [file for file, _, _ in chosen]
        if kind == "audio":
            source: pads.Dataset | pa.Table = _audio_table(folder, found)
        else:
            source = _open_tables(kind, config, location, found, storage, held)
        if kind in ("csv", "jsonl") and not is_unchanged():
            raise CatalogError(_CHANGED)  # never looked at again: it must be of one moment
        _check_publishable(source.schema)
        notes += _check_names(source.schema, taken_names)
        return Catalog(
            source,
            config,
            folder=folder,
            fingerprint=hashlib.sha256(
                repr([(found.uri, size, version) for found, size, version in chosen]).encode()
            ).hexdigest(),
            notes=notes,
            is_published=bool(taken_names),
            held_type=held,
            is_unchanged=is_unchanged,
        )
    except (pa.ArrowException, DeltaError, OSError, UnicodeError) as error:
        raise CatalogError(
            f"catalog.uri={config.uri!r} cannot be read as {kind}: {explanation(error)}"
        ) from error


def _files(storage: Storage, location: Location, is_folder: bool) -> list[_File]:
    if is_folder:
        return list(storage.list_files(location))
    return [(location, 0, storage.version(location))]


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _check_names(columns: pa.Schema, taken_names: list[str]) -> list[str]:
    """Refuse columns named as ours; a note for one that readers may take for another.

    Names that differ by case only are one to Spark, Hive and DuckDB.
    """
    ours = {name.casefold() for name in taken_names}
    taken = [name for name in columns.names if name.casefold() in ours]
    if taken:
        raise CatalogError(
            f"the catalog already has columns named {', '.join(taken)}; set output.prefix to "
            "rename the ones that are added"
        )
    if taken_names and "run_date" in map(str.casefold, columns.names):
        return [
            "the catalog has a column run_date: read nights one by one, or its values give way to "
            "the nights' dates"
        ]
    return []


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
    files: list[_File],
    is_folder: bool,
) -> str:
    """What the catalog is, by its configuration, else by the names of its files."""
    if config.format != "auto":
        return config.format
    if not is_folder:
        kind = table_kind(location)
        if kind is None:
            raise CatalogError(
                f"catalog.uri={config.uri!r} must end in one of {', '.join(TABLE_SUFFIXES)}, or "
                "set catalog.format"
            )
        return kind
    if any(_below(location, found)[0] == "_delta_log" for found, _, _ in files):
        return "delta"
    kinds = {
        kind
        for found, _, _ in files
        if (kind := table_kind(found)) and not _is_hidden(location, found)
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


def _chosen(kind: str, location: Location, files: list[_File]) -> list[_File]:
    if len(files) == 1 and kind != "audio":
        return files
    if kind == "audio":
        return [entry for entry in files if _suffix(entry[0]) in AUDIO_SUFFIXES]
    if kind == "delta":
        return [entry for entry in files if _below(location, entry[0])[0] == "_delta_log"]
    return [
        entry
        for entry in files
        if table_kind(entry[0]) == kind and not _is_hidden(location, entry[0])
    ]


def _open_tables(
    kind: str,
    config: CatalogConfig,
    location: Location,
    chosen: list[Location],
    storage: Storage,
    held_type: pa.DataType | None,
) -> pads.Dataset | pa.Table:
    if kind == "delta":
        allowed = Roots.of(config.allowed_roots or [])
        below = Roots.below(location)
        return delta_dataset(
            location, storage, may_read=lambda file: below.hold(file) or allowed.hold(file)
        )
    needed = [config.id_column, config.audio_column]
    if kind == "parquet":
        return parquet_dataset(location, chosen, storage, needed=needed)
    if kind == "csv":
        exact = {config.id_column, config.version_column}
        text = {config.id_column} if held_type == pa.string() else set()
        return read_csv(chosen, storage, needed=needed, exact=exact, text=text)
    return read_jsonl(chosen, storage, needed=needed)


def _check_publishable(columns: pa.Schema) -> None:
    """Refuse now what could not be written as Parquet, or read, after a whole night's work."""
    refuse_repeated(columns.names)
    reserved = sorted(_RESERVED & set(columns.names))
    if reserved:
        raise CatalogError(
            f"the catalog has columns named {', '.join(reserved)}, which Arrow's reader of Parquet "
            "keeps for itself; rename them"
        )
    try:
        pq.ParquetWriter(io.BytesIO(), columns).close()
    except pa.ArrowException as error:
        raise CatalogError(
            f"the catalog cannot be written as Parquet: {explanation(error)}"
        ) from error


def _check_nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Refuse nulls where a schema promises that there are none: they cannot be written."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise CatalogError(
                f"column {field.name!r} is declared as never null and holds nulls; "
                "declare it nullable or fill them in"
            )
    return batch


def _audio_table(folder: Location, chosen: list[Location]) -> pa.Table:
    """A catalog made of a folder, or of one file in it: ids are paths below it."""
    base = len(folder.child("").path)
    return pa.table(
        {
            "track_id": pa.array([_audio_id(found, base) for found in chosen], pa.string()),
            "audio_uri": pa.array([_exact_uri(found) for found in chosen], pa.string()),
        }
    )


def _audio_id(found: Location, base: int) -> str:
    """A file's path below the catalog's folder; keys are text, names on disk need not be."""
    name = found.path[base:]
    return _quoted(name) if not found.is_s3 and _has_odd_bytes(name) else name


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="/ ", errors="surrogateescape")


def _has_odd_bytes(name: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, or could be taken for the id of such a one.

    Ids must differ where names do: beside ``\\xff`` with the id ``%FF``, a file that is itself
    named ``%FF`` becomes ``%25FF``.
    """
    while is_text(name):
        plain = urllib.parse.unquote(name, errors="surrogateescape")
        if plain == name or _quoted(plain) != name:
            return False
        name = plain
    return True


def _exact_uri(location: Location) -> str:
    """A URI that reads back as the same location, whatever bytes the name holds."""
    if location.is_s3 or is_text(location.path):
        return location.uri
    return "file://" + urllib.parse.quote(location.path, errors="surrogateescape")
