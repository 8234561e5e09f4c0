"""Delta tables at places with names of any kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema

from mer_batch.delta import open_table, part_paths, table_uri
from mer_batch.storage import Location, Storage

Place = tuple[Storage, Location]


def test_where_there_is_no_table_there_is_none(place: Place) -> None:
    assert open_table(*place) is None


def test_a_broken_log_is_told_without_the_calls_that_led_there(tmp_path: Path) -> None:
    log = tmp_path / "_delta_log"
    log.mkdir()
    (log / f"{0:020}.json").write_text('{"add": nonsense')
    program = (
        "import sys; from mer_batch.config import StorageConfig\n"
        "from mer_batch.delta import open_table; from mer_batch.storage import Storage, parse_uri\n"
        "open_table(Storage(StorageConfig()), parse_uri(sys.argv[1]))\n"
    )
    # The environment counts where delta-rs is loaded.
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "RUST_BACKTRACE": "1"},
        capture_output=True,
        text=True,
    )
    (*_, last) = done.stderr.strip().splitlines()
    assert last.startswith("mer_batch.errors.StorageError: cannot open the table")
    assert last.endswith("Encountered unexpected 'o' whilst parsing literal")


@pytest.mark.parametrize("name", ["plain", "two words", "a#b?c", "a+b=c", "Björk"])
def test_tables_side_by_side_are_not_mixed_up(place: Place, name: str) -> None:
    storage, output = place
    columns = Schema.from_arrow(pa.schema([("x", pa.int64())]))
    options = storage.delta_options(output)
    folders = [output.child(name, table) for table in ("one", "two")]
    DeltaTable.create(table_uri(folders[0]), schema=columns, storage_options=options)
    assert open_table(storage, folders[1]) is None
    opened = open_table(storage, folders[0])
    assert opened is not None
    assert part_paths(storage, folders[0], opened) == []
    log = "_delta_log/00000000000000000000.json"
    assert storage.exists(folders[0].child(log)), "it lies where other files of ours do"
