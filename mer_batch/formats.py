"""How a catalog's files are read: CSV, JSON lines, Parquet, Delta; each in its own types.

Files may come from strangers: what is wrong with one is told by its name and line.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.json as pajson

from mer_batch.delta import open_table
from mer_batch.errors import CatalogError, StorageError
from mer_batch.faults import explanation
from mer_batch.storage import SCHEME_PATTERN, Location, Storage, parse_uri

_KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
#: What a file that is a table by its name may end in.
TABLE_SUFFIXES = (*_KINDS, ".csv.gz", ".jsonl.gz", ".ndjson.gz")

# The parser goes one call deeper for every bracket: enough of them would end the process.
_MAX_DEPTH = 100
_MAX_BLOCK = 2**31 - 1
_CSV_BLOCK = 1 << 20  # pyarrow's own; no row may be longer
# Text of catalogs is 3 to 30 times smaller when gzipped; a file that was made to fill the memory
# of whoever unpacks it, up to 1,032 times. All parts of a catalog together stay in memory.
_MAX_RATIO = 100
_SMALL_BYTES = 64 << 20
_MAX_UNPACKED_BYTES = 4 << 30
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_UTF8_MARK = b"\xef\xbb\xbf"


def table_kind(location: Location) -> str | None:
    """``parquet``, ``csv`` or ``jsonl`` by a file's name; None for any other."""
    name = location.path.rpartition("/")[2].lower()
    kind = _KINDS.get("." + name.removesuffix(".gz").rpartition(".")[2]) if "." in name else None
    # Parquet is compressed in itself: nobody reads it through gzip.
    return None if kind == "parquet" and name.endswith(".gz") else kind


# ------------------------------------------------------------------------------- text


def read_csv(
    parts: Sequence[Location],
    storage: Storage,
    *,
    needed: Sequence[str],
    exact: set[str | None],
    text: Collection[str],
) -> pa.Table:
    """Read CSV files as one, keeping as text what a guessed type would change (007, 1e400).

    Parameters
    ----------
    parts : sequence of Location
    storage : Storage
    needed : sequence of str
        Columns that no part may lack while others have them.
    exact : set of str
        Columns that do not become float64: 1.10 is not the version 1.1.
    text : collection of str
        Columns that stay text, whatever is in them.

    Raises
    ------
    CatalogError
    """
    # The types are guessed over all files together: one file's part of a column may be empty.
    table = _read_parts(parts, storage, "csv", _csv_text, needed)
    return pa.table(
        {
            name: column if name in text else _narrowed(column, may_be_float=name not in exact)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )


def read_jsonl(parts: Sequence[Location], storage: Storage, *, needed: Sequence[str]) -> pa.Table:
    """Read files of JSON lines as one; a string that looks like a date stays a string.

    Raises
    ------
    CatalogError
    """
    return _read_parts(parts, storage, "jsonl", _jsonl_table, needed)


def _read_parts(
    parts: Sequence[Location],
    storage: Storage,
    kind: str,
    parse: Callable[[bytes], pa.Table],
    needed: Sequence[str],
) -> pa.Table:
    tables = []
    n_unpacked = 0
    for part in parts:
        packed = storage.read(part)
        content = _unpacked(packed, part, _MAX_UNPACKED_BYTES - n_unpacked)
        n_unpacked += len(content) if content is not packed else 0
        try:
            if wide := _wide_encoding(content):
                raise CatalogError(f"it is {wide}; save it as UTF-8")
            tables.append(parse(content.removeprefix(_UTF8_MARK)))
        except (CatalogError, pa.ArrowException, UnicodeDecodeError) as error:
            is_ours = isinstance(error, CatalogError)
            why = error if is_ours else _not_utf8(content) or explanation(error)
            raise CatalogError(f"{part.uri!r} cannot be read as {kind}: {why}") from error
    _refuse_lacking([(p.uri, t.column_names) for p, t in zip(parts, tables, strict=True)], needed)
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


def _unpacked(content: bytes, part: Location, max_bytes: int) -> bytes:
    """What a gzip file holds; any other as it is."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    max_bytes = min(max_bytes, max(_SMALL_BYTES, _MAX_RATIO * len(content)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CatalogError(f"{part.uri!r} is a damaged gzip file: {error}") from error
    if len(unpacked) > max_bytes:
        raise CatalogError(
            f"{part.uri!r} of {len(content):,} bytes unpacks to more than {max_bytes:,}: more than "
            f"{_MAX_RATIO} times its size, or than {_MAX_UNPACKED_BYTES >> 30} GiB with the files "
            "before it; unpack it yourself if that is meant, or write it as Parquet"
        )
    return unpacked


def _wide_encoding(content: bytes) -> str | None:
    """An encoding that begins like no text in UTF-8: with a mark of its own, or with NULs."""
    if b"\0\0" in content[:4]:
        return "UTF-32"
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:2]
    return "UTF-16" if is_utf16 else None


def _not_utf8(content: bytes) -> str | None:
    """Where a text is no UTF-8, in words."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"line {line} is no UTF-8 (byte {content[error.start]:#x}); save it as UTF-8"
    return None


def _csv_text(content: bytes) -> pa.Table:
    """All columns as text."""
    parsing = pacsv.ParseOptions(newlines_in_values=True)
    try:
        with pacsv.open_csv(io.BytesIO(content), parse_options=parsing) as reader:
            names = reader.schema.names
        refuse_repeated(names)
        strings = dict.fromkeys(names, pa.string())
        options = pacsv.ConvertOptions(column_types=strings, strings_can_be_null=False)
        table = pacsv.read_csv(io.BytesIO(content), parse_options=parsing, convert_options=options)
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            raise CatalogError(_too_long(content)) from error
        # A single thread knows in what row it is wrong.
        serial = pacsv.ReadOptions(use_threads=False, block_size=_MAX_BLOCK)
        pacsv.read_csv(io.BytesIO(content), serial, parse_options=parsing)
        raise
    _refuse_open_quote(content, table)
    return table


def _too_long(content: bytes) -> str:
    """Which row outgrows the parser's block, in words."""
    lines = enumerate(io.BytesIO(content), 1)
    number = next((number for number, line in lines if len(line) > _CSV_BLOCK), None)
    # A row of many lines has a quote around them: as a rule, one that was never closed.
    where = f"line {number}" if number else "a row of several lines, in quotes,"
    return (
        f"{where} is too long: a row must have at most {_CSV_BLOCK:,} bytes; look for a quote that "
        "is never closed, or write the catalog as Parquet"
    )


def _refuse_open_quote(content: bytes, table: pa.Table) -> None:
    """A quote that is never closed makes one value of all the rows behind it."""
    if content.count(b'"') % 2 == 0 or table.num_rows == 0:
        return
    last = table.column(table.num_columns - 1)[-1].as_py().encode()
    if content.endswith(b'"' + last.replace(b'"', b'""')):
        line = content.count(b"\n", 0, len(content) - len(last)) + 1
        raise CatalogError(
            f"a quote that opens in line {line} is never closed; double it or close it"
        )


def refuse_repeated(names: Sequence[str]) -> None:
    """Raise CatalogError where several columns have one name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CatalogError(
            "the catalog has several columns of one name: "
            f"{', '.join(map(repr, sorted(repeated)))}; rename all but one"
        )


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


def _jsonl_table(content: bytes) -> pa.Table:
    _check_lines(content)
    # All is one block: a list or a struct is refused that is null all through the first of several.
    # It takes no more memory: the parser reads ahead of what it has converted.
    reading = pajson.ReadOptions(block_size=min(_MAX_BLOCK, len(content) + 2))
    table = pajson.read_json(io.BytesIO(content), read_options=reading)
    guessed = [field for field in table.schema if _undated(field.type) != field.type]
    if guessed:
        strings = pa.schema([field.with_type(_undated(field.type)) for field in guessed])
        parsing = pajson.ParseOptions(explicit_schema=strings)
        table = pajson.read_json(
            io.BytesIO(content), read_options=reading, parse_options=parsing
        ).select(table.column_names)
    table.validate(full=True)  # the parser takes bytes that are no UTF-8
    return table


def _check_lines(content: bytes) -> None:
    """Raise CatalogError where a line is not one object, or one of absurd depth."""
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if line and not (line.startswith(b"{") and line.endswith(b"}")):
            raise CatalogError(
                f"line {number} must be one whole JSON object, and begins with {line[:20]!r}; "
                "write one line a track, as `jq -c` does"
            )
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _depth(line) > _MAX_DEPTH:
            raise CatalogError(f"line {number} nests values more than {_MAX_DEPTH} deep")


def _depth(line: bytes) -> int:
    bare = _JSON_STRING.sub(b"", line)
    steps = ((char in b"[{") - (char in b"]}") for char in bare)
    return max(itertools.accumulate(steps), default=0)


def _undated(kind: pa.DataType) -> pa.DataType:
    """The type with a string for every timestamp in it."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_undated(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_undated(field.type)) for field in kind])
    return kind


# ------------------------------------------------------------------------------- Parquet


def parquet_dataset(
    location: Location, parts: Sequence[Location], storage: Storage, *, needed: Sequence[str]
) -> pads.Dataset:
    """Parquet files as one, with the columns that their folders' names are (``label=ECM/``).

    Parameters
    ----------
    location : Location
        The catalog's own.
    parts : sequence of Location
    storage : Storage
    needed : sequence of str
        Columns that no part may lack while others have them.

    Raises
    ------
    CatalogError
    """
    filesystem = storage.filesystem(location)
    paths = [part.fs_path for part in parts]
    is_hive = any("=" in path.removeprefix(location.fs_path) for path in paths)
    options = {"partitioning": "hive", "partition_base_dir": location.fs_path} if is_hive else {}
    dataset = pads.dataset(paths, filesystem=filesystem, format="parquet", **options)
    if len(paths) == 1:
        return dataset
    schemas = [fragment.physical_schema for fragment in dataset.get_fragments()]
    of_folders = set(dataset.schema.names) - set(schemas[0].names)
    columns = [{*found.names, *of_folders} for found in schemas]
    _refuse_lacking(list(zip(paths, columns, strict=True)), needed)
    # A part whose column is all null may have lost its type: unify instead of taking the first's.
    unified = dataset.schema
    for path, found in zip(paths, schemas, strict=True):
        try:
            unified = pa.unify_schemas([unified, found], promote_options="default")
        except pa.ArrowException as error:
            raise CatalogError(
                f"{path!r} does not fit the parts before it: {explanation(error)}"
            ) from error
    # What a part lacks is null in all its rows.
    in_all = set.intersection(*columns)
    fields = [f if f.name in in_all else f.with_nullable(True) for f in unified]
    return dataset.replace_schema(pa.schema(fields, metadata=dataset.schema.metadata))


def _refuse_lacking(
    parts: Sequence[tuple[str, Sequence[str] | set[str]]], needed: Sequence[str]
) -> None:
    """No part may lack a column that all tracks need: their values would all be null."""
    for name in needed:
        lacking = [uri for uri, columns in parts if name not in columns]
        if 0 < len(lacking) < len(parts):
            raise CatalogError(f"{lacking[0]!r} has no column {name!r}, which other parts have")


def delta_dataset(
    location: Location, storage: Storage, *, may_read: Callable[[Location], bool]
) -> pads.Dataset:
    """The files of a Delta table's latest version, in the table's own schema.

    Parameters
    ----------
    location : Location
    storage : Storage
    may_read : callable
        Whether rows of a file may be published: a table's log may name any file.

    Raises
    ------
    CatalogError
        Where the files do not hold just the table's rows, or lie where they must not.
    """
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
    files = [_named_file(location, str(path)) for path in actions["path"].to_pylist()]
    strange = [f.uri for f in files if f.is_s3 != location.is_s3 or not may_read(f)]
    if strange:
        raise CatalogError(
            f"{location.uri}: the log of the Delta table names {len(strange)} files that lie "
            f"outside its folder, the first is {strange[0]!r}; write it out as Parquet, or name "
            "their folder in catalog.allowed_roots, on the same kind of storage"
        )
    return pads.dataset(
        [file.fs_path for file in files],
        filesystem=storage.filesystem(location),
        format="parquet",
        schema=pa.schema(table.schema().to_arrow()),
    )


def _named_file(table: Location, path: str) -> Location:
    """A file by its name in a table's log: relative, or a whole URI as in a shallow clone.

    Names are percent-encoded there, once.
    """
    if re.match(SCHEME_PATTERN, path) is None:
        found = table.child(_decoded(path))
        return found if found.is_s3 else parse_uri(found.path)
    try:
        found = parse_uri(path)
    except StorageError as error:
        raise CatalogError(
            f"{table.uri}: the log of the Delta table is strange: {error}"
        ) from error
    # In a key nothing is encoded elsewhere, so it was left as it is.
    return Location(found.bucket, _decoded(found.path)) if found.is_s3 else found


def _decoded(path: str) -> str:
    return urllib.parse.unquote(path, errors="surrogateescape")


def unreadable_part(dataset: pads.Dataset) -> str | None:
    """The first part that cannot be read whole and why, where there is one."""
    for fragment in dataset.get_fragments():
        try:
            for _ in fragment.to_batches():
                pass
        except (pa.ArrowException, OSError) as error:
            return f"{fragment.path!r} is damaged: {explanation(error)}"
    return None
