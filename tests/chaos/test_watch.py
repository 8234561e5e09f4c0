"""The reader finds what must never be seen: each fault is planted once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch.delta import open_table
from mer_batch.enrich import MARKER
from mer_batch.storage import Location, Storage
from tests.chaos.watch import Watch
from tests.test_enrich import catalog_of, put
from tests.test_ledger import merge, open_ledger, reject, write_part

Place = tuple[Storage, Location]


@pytest.fixture
def watch(place: Place, tmp_path: Path) -> Watch:
    """An output with a night and tables in order, looked at."""
    ledger = open_ledger(place)
    ledger.commit_parts([write_part(place, "r1", "p1", ["a"])], run_id="r1", sequence=1)
    merge(ledger, reject("b"), reject("c"))
    merge(ledger, reject("b", None))
    publish_night(place, tmp_path, "r1")
    watch = Watch(*place)
    watch.look()
    assert watch.faults == []
    assert watch.seen["nights"] == 1
    assert watch.seen["versions"] >= 5
    return watch


def publish_night(place: Place, tmp_path: Path, run_id: str) -> Location:
    table = pa.table({"track_id": ["a", "c"], "audio_uri": ["a", "c"]})
    return put(place, catalog_of(table, tmp_path / "catalog.parquet"), 2, run_id=run_id)


def test_an_output_in_order_stays_in_order(place: Place, watch: Watch, tmp_path: Path) -> None:
    publish_night(place, tmp_path, "r2")
    ledger = open_ledger(place, generation=2)
    ledger.commit_parts([write_part(place, "r2", "p2", ["b"])], run_id="r2", sequence=1)
    merge(ledger, reject("c", "timeout"))
    write_part(place, "r3", "never committed", ["a"])
    watch.look()
    assert watch.faults == []
    assert watch.seen["nights"] == 2


@pytest.mark.parametrize("fault", ["no part", "another part", "fewer rows", "a row twice"])
def test_half_a_night_is_found(place: Place, watch: Watch, tmp_path: Path, fault: str) -> None:
    storage, _ = place
    night = publish_night(place, tmp_path, "r2")
    part = night.child("part-00000-r2.parquet")
    rows = pq.read_table(pa.BufferReader(storage.read(part)))
    if fault == "no part":
        storage.delete(part)
    elif fault == "another part":
        storage.write(night.child("part-00001-r1.parquet"), storage.read(part))
    else:
        kept = rows.slice(0, 1)
        rows = kept if fault == "fewer rows" else pa.concat_tables([kept, kept])
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer)
        storage.write(part, buffer.getvalue().to_pybytes())
    watch.look()
    assert len(watch.faults) == 1
    assert "not whole" in watch.faults[0]


def test_on_a_disk_a_night_without_a_marker_or_gone_is_found(
    place: Place, watch: Watch, tmp_path: Path
) -> None:
    storage, output = place
    if output.is_s3:
        pytest.skip("in a store a night without a marker is none")
    night = publish_night(place, tmp_path, "r2")
    storage.delete(night.child(MARKER))
    watch.look()
    assert "no marker" in watch.faults[0]
    Path(night.path).rename(tmp_path / "elsewhere")
    watch.look()
    assert watch.faults[1] == "run_date=2026-11-22 was published and is gone"


def test_rows_that_are_there_twice_or_no_more_are_found(place: Place, watch: Watch) -> None:
    storage, output = place
    ledger = open_ledger(place, generation=2)
    ledger.commit_parts([write_part(place, "r2", "p2", ["x", "a"])], run_id="r2", sequence=1)
    watch.look()
    assert watch.faults == ["scores holds ('a', 'v1', 'f', 'm') twice"]
    scores = open_table(storage, output.child("scores"))
    assert scores is not None
    scores.delete("track_id = 'x'")
    watch.look()
    assert "scores has lost [('x', 'v1', 'f', 'm')]" in watch.faults


def test_what_a_commit_names_and_is_not_there_is_found(place: Place, watch: Watch) -> None:
    storage, output = place
    ledger = open_ledger(place, generation=2)
    part = write_part(place, "r2", "p2", ["x"])
    ledger.commit_parts([part], run_id="r2", sequence=1)
    storage.delete(output.child("scores", part.path))
    watch.look()
    assert len(watch.faults) == 1
    assert "scores cannot be read" in watch.faults[0]
