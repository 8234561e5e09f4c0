"""Delta tables at places with names of any kind."""

from __future__ import annotations

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema

from mer_batch.delta import open_table, part_paths, table_uri
from mer_batch.storage import Location, Storage

Place = tuple[Storage, Location]


def test_where_there_is_no_table_there_is_none(place: Place) -> None:
    assert open_table(*place) is None


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
