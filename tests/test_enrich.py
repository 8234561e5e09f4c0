"""Publishing a night: the catalog as it was, its scores behind, the marker last."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from mer_batch import schema
from mer_batch.catalog import Catalog, read_catalog
from mer_batch.config import CatalogConfig, StorageConfig
from mer_batch.disk import exchange
from mer_batch.enrich import (
    MARKER,
    Publication,
    _put_in_place,
    is_published,
    last_published,
    publish,
    sweep_unfinished,
)
from mer_batch.errors import CatalogError, LeaseError, MerBatchError, StorageError
from mer_batch.lease import Lease, lease_location
from mer_batch.outcome import SCORE_FIELDS, Outcome, look_up_outcome, open_budget
from mer_batch.schema import Identity
from mer_batch.steps import VARIABLE
from mer_batch.storage import Location, Storage, parse_uri
from tests.chaos.breakpoints import Breakpoints
from tests.faulty_store import FaultyStore
from tests.test_catalog import COLUMNS, assert_same_columns, tracks
from tests.test_plan import NOW, TODAY, Bench

Place = tuple[Storage, Location]

MARK = {
    "run_id": "r1",
    "run_date": "2026-11-22",
    "published_at": "2026-11-22T01:00:00.000000+00:00",
    "content_id": "c",
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def breakpoints(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breakpoints]:
    """Holds threads of this process at steps."""
    with Breakpoints() as breakpoints:
        monkeypatch.setenv(VARIABLE, breakpoints.environment[VARIABLE])
        yield breakpoints


# ------------------------------------------------------------------ outcome


def test_every_row_gets_its_score_or_its_reason(bench: Bench) -> None:
    bench.reject(("b", "1", "silent"), ("d", "1", "storage_error"), ("e", "1", "silent"))
    bench.score(("c", "1"), ("a", "1"))
    bench.score(("a", "0"), valence=0.9)
    bench.score(("a", "1"), valence=0.9, identity=Identity("f", "other", "e"))
    plan = bench.plan(bench.catalog(dict.fromkeys("abcde", "1")))
    outcome = look_up_outcome(plan, bench.ledger, TODAY)
    columns = columns_of(outcome).to_pydict()
    assert columns["tag_status"] == ["scored", "silent", "scored", "storage_error", "silent"]
    assert columns["valence"] == [0.25, None, 0.25, None, None]
    assert columns["scored_at"] == [NOW, None, NOW, None, None]
    assert columns["model_id"] == ["m", None, "m", None, None]
    assert (outcome.n_scored, outcome.n_rejected) == (2, {"silent": 2, "storage_error": 1})


def test_without_versions_the_newest_score_counts(bench: Bench) -> None:
    hours = [datetime.timedelta(hours=n) for n in range(3)]
    for hour, valence in zip((hours[1], hours[2], hours[0]), (0.25, 0.5, 0.75), strict=True):
        bench.score(("a", f"v{valence}"), valence=valence, scored_at=NOW + hour)
    plan = bench.plan(bench.catalog({"a": "anything"}), detect=False)
    outcome = look_up_outcome(plan, bench.ledger, TODAY)
    assert columns_of(outcome)["valence"].to_pylist() == [0.5]


def test_what_the_ledger_holds_twice_gives_one_row_the_newest(bench: Bench) -> None:
    later = NOW + datetime.timedelta(hours=1)
    bench.score(("a", "1"), ("b", "1"), ("a", "1"), valence=0.5, scored_at=later)
    bench.score(("b", "1"), ("gone", "1"), ("b", "1"), valence=0.75)
    bench.reject(("c", "1", "silent"))
    bench.reject(("c", "1", "too_long"), product="features")
    plan = bench.plan(bench.catalog(dict.fromkeys("abc", "1")))
    outcome = look_up_outcome(plan, bench.ledger, TODAY)
    assert columns_of(outcome)["valence"].to_pylist() == [0.5, 0.5, None]
    assert (outcome.n_scored, sum(outcome.n_rejected.values())) == (2, 1)


def test_a_night_that_is_not_complete_is_refused_with_its_tracks(bench: Bench) -> None:
    bench.score(("a", "1"))
    for detect in (True, False):
        plan = bench.plan(bench.catalog({"a": "1", "b": "1", "c": "1"}), detect=detect)
        with pytest.raises(MerBatchError, match=r"2 tracks have neither .*first: \['b', 'c'\]"):
            look_up_outcome(plan, bench.ledger, TODAY)


# ------------------------------------------------------------------ budget


def test_what_was_tried_since_the_last_night_is_counted(bench: Bench) -> None:
    # Runs are told apart by their ids: what clocks of several machines say does not matter.
    ahead, behind = (NOW + sign * datetime.timedelta(days=400) for sign in (1, -1))
    bench.score(("old", "1"), ("not in the catalog", "1"), run_id="r1", scored_at=ahead)
    bench.score(("new", "1"), ("newer", "1"), run_id="r3", scored_at=behind)
    bench.score(("other version", "0"), run_id="r3")
    bench.score(("other model", "1"), run_id="r3", identity=Identity("f", "other", "e"))
    bench.reject(("old reject", "1", "silent"), first_run_id="r1", first_seen=ahead)
    bench.reject(
        ("known reject", "1", "silent"), ("known", "1", "access_denied"),
        first_run_id="r1", last_run_id="r3", first_seen=ahead,
    )  # fmt: skip
    bench.reject(
        ("new reject", "1", "silent"), ("passing", "1", "storage_error"),
        first_run_id="r3", last_run_id="r3", first_seen=behind,
    )  # fmt: skip
    ids = ["old", "new", "newer", "other version", "other model"]
    ids += ["old reject", "known reject", "known", "new reject", "passing"]
    catalog = bench.catalog(dict.fromkeys(ids, "1"))

    def counted(
        since: str | None, replayed: frozenset[str] = frozenset()
    ) -> tuple[int, int, dict[str, int]]:
        budget = open_budget(
            bench.plan(catalog, replayed=replayed),
            bench.ledger,
            TODAY,
            latest={**MARK, "run_id": since} if since else None,
            max_reject_rate=0.5,
        )
        return budget.n_tracks, budget.n_tried, dict(budget.rejects)

    # Pending: other version, other model, known, passing.
    assert counted(None) == (10, 6, {"silent": 3})
    assert counted("r1") == (6, 3, {"silent": 1})
    assert counted("r2") == (6, 3, {"silent": 1})
    assert counted("r3") == (2, 0, {})
    # What is tried again counts as to be tried, if it counts at all.
    assert counted(None, frozenset({"silent"})) == (10, 3, {})
    assert counted("r1", frozenset({"silent"})) == (6, 2, {})
    assert counted("r3", frozenset({"silent"})) == (2, 0, {})


def test_what_other_extractions_rejected_is_no_matter_here(bench: Bench) -> None:
    other = Identity("f", "m", "other")
    found = ("a", "1", "too_long"), ("b", "1", "too_long")
    bench.reject(*found, identity=other, product="features")
    bench.reject(("b", "1", "silent"), ("c", "1", "truncated"))
    bench.score(("a", "1"), ("c", "1"))
    plan = bench.plan(bench.catalog(dict.fromkeys("abc", "1")))
    outcome = look_up_outcome(plan, bench.ledger, TODAY)
    assert columns_of(outcome)["tag_status"].to_pylist() == ["scored", "silent", "scored"]
    budget = open_budget(plan, bench.ledger, TODAY, latest=None, max_reject_rate=0.5)
    assert (budget.n_tried, budget.rejects) == (3, {"silent": 1}), "each track once"


# ------------------------------------------------------------------ publish


def outcome_of(n: int) -> Outcome:
    columns = {field.name: pa.nulls(n, field.type) for field in SCORE_FIELDS}
    columns["valence"] = pa.array([i / n for i in range(n)], pa.float32())
    scores = pa.table(columns, schema=pa.schema(SCORE_FIELDS))
    status = np.ones(n, np.uint8)
    return Outcome(TODAY, scores, np.arange(n, dtype=np.int32), status, ("", "scored"), n, {})


def columns_of(outcome: Outcome) -> pa.Table:
    fields = pa.schema(schema.ENRICHED_FIELDS)
    return pa.table(outcome.rows(0, len(outcome)), schema=fields)


def catalog_of(table: pa.Table, path: Path, **options: Any) -> Catalog:
    pq.write_table(table, path, **options)
    config = CatalogConfig(uri=str(path))
    return read_catalog(config, Storage(StorageConfig()), taken_names=[])


@contextmanager
def held(place: Place, run_id: str) -> Iterator[Lease]:
    """The lease on an output, for as long as nobody takes it over."""
    lease = Lease(place[0], lease_location(place[1]), run_id, seconds=600)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def taken_over(place: Place, run_id: str) -> Iterator[Lease]:
    """The lease on an output, whoever holds it: as if that one had slept past it."""
    holder = json.loads(place[0].read(lease_location(place[1])))
    place[0].write(lease_location(place[1]), json.dumps({**holder, "released": True}).encode())
    with held(place, run_id) as lease:
        yield lease


def put(
    place: Place,
    catalog: Catalog,
    n: int,
    *,
    run_id: str = "r1",
    prefix: str = "",
    lease: Lease | None = None,
) -> Location:
    storage, output = place
    folder = output.child("enriched", "run_date=2026-11-22")
    with nullcontext(lease) if lease else held(place, run_id) as holding:
        marker = {**MARK, "run_id": run_id}
        publish(Publication(storage, folder, catalog, outcome_of(n), prefix, marker, holding))
    return folder


@contextmanager
def runs_of(breakpoints: Breakpoints) -> Iterator[ThreadPoolExecutor]:
    """Threads that are held at steps, but not where the test has failed."""
    with ThreadPoolExecutor(2) as runs:
        try:
            yield runs
        finally:
            breakpoints.clear()


def sweep(place: Place, run_id: str) -> list[str]:
    with held(place, "sweeper") as lease:
        return sweep_unfinished(*place, run_id, lease)


def names_below(place: Place) -> list[str]:
    storage, output = place
    start = len(output.path) + 1
    names = (found.path[start:] for found, _, _ in storage.list_files(output))
    return sorted(name for name in names if not name.startswith("runs/"))


def read_night(place: Place, night: Location) -> pa.Table:
    storage, _ = place
    marker = json.loads(storage.read(night.child(MARKER)))
    paths = [night.child(part["name"]).fs_path for part in marker["parts"]]
    filesystem = storage.filesystem(night)
    return pa.concat_tables([pq.read_table(path, filesystem=filesystem) for path in paths])


def test_columns_types_order_and_metadata_are_the_catalogs(place: Place, tmp_path: Path) -> None:
    wide = tracks(3, **COLUMNS).replace_schema_metadata({"owner": "labels", "pandas": "{}"})
    comment = wide.schema.field("int16").with_metadata({"comment": "kept"})
    wide = wide.cast(wide.schema.set(wide.schema.get_field_index("int16"), comment))
    catalog = catalog_of(wide, tmp_path / "c.parquet")
    table = read_night(place, put(place, catalog, 3, prefix="mer_"))
    n_own = len(wide.schema)
    added = [field.with_name(f"mer_{field.name}") for field in schema.ENRICHED_FIELDS]
    own = pa.schema(list(table.schema)[:n_own], metadata=table.schema.metadata)
    assert_same_columns(own, wide.schema)
    assert list(table.schema)[n_own:] == added
    assert str(table.select(wide.schema.names).to_pylist()) == str(wide.to_pylist())
    assert table["mer_valence"].to_pylist() == columns_of(outcome_of(3))["valence"].to_pylist()


def test_rows_keep_the_catalogs_order_over_many_batches(place: Place, tmp_path: Path) -> None:
    n = 70_000
    table = tracks(n, number=pa.array(range(n)))
    catalog = catalog_of(table, tmp_path / "c.parquet", row_group_size=9_999)
    night = put(place, catalog, n)
    read = read_night(place, night)
    assert read["number"].to_pylist() == list(range(n))
    assert read["valence"].equals(columns_of(outcome_of(n))["valence"])
    marker = json.loads(place[0].read(night.child(MARKER)))
    assert marker["n_rows"] == sum(part["n_rows"] for part in marker["parts"]) == n
    assert marker["content_id"] == "c"


def test_a_night_is_replaced_as_a_whole(place: Place, tmp_path: Path) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")
    put(place, catalog, 3, run_id="r1")
    place[0].write(place[1].child("enriched", "run_date=2026-11-22", "part-9-r0.parquet"), b"old")
    put(place, catalog, 3, run_id="r2")
    assert names_below(place) == [
        "enriched/run_date=2026-11-22/_SUCCESS",
        "enriched/run_date=2026-11-22/part-00000-r2.parquet",
    ]
    found = last_published(*place)
    assert found is not None
    assert found["run_id"] == "r2"


def test_on_a_store_the_marker_goes_first(s3: Any, tmp_path: Path) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")

    class BreaksOff(Storage):
        n_deleted = 0

        def delete(self, location: Location) -> None:
            if self.n_deleted:
                raise StorageError("the store has gone")
            self.n_deleted += 1
            super().delete(location)

    config = StorageConfig(endpoint_url=s3.endpoint)
    output = parse_uri(f"s3://{s3.bucket}/out")
    put((Storage(config), output), catalog, 3)
    with pytest.raises(StorageError, match="gone"):
        put((BreaksOff(config), output), catalog, 3, run_id="r2")
    parts = [published(run_id)[1] for run_id in ("r1", "r2")]
    assert names_below((Storage(config), output)) == parts
    assert sweep((Storage(config), output), "r2") == ["2026-11-22"]
    assert names_below((Storage(config), output)) == []


def test_other_nights_are_left_alone(place: Place, tmp_path: Path) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")
    other = place[1].child("enriched", "run_date=2026-11-21", MARKER)
    place[0].write(other, b"{}")
    put(place, catalog, 3)
    assert place[0].read(other) == b"{}"


def test_nights_are_one_data_set_to_readers_of_parquet(place: Place, tmp_path: Path) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")
    put(place, catalog, 3)
    folder = place[1].child("enriched")
    data = pads.dataset(
        folder.fs_path,
        filesystem=place[0].filesystem(folder),
        partitioning="hive",
        format="parquet",
    )
    assert set(data.to_table()["run_date"].to_pylist()) == {"2026-11-22"}


@pytest.mark.parametrize("n_now", [2, 4])
def test_a_catalog_that_changed_leaves_no_marker(place: Place, tmp_path: Path, n_now: int) -> None:
    path = tmp_path / "c.parquet"
    catalog = catalog_of(tracks(3), path)
    pq.write_table(tracks(n_now), path)
    with pytest.raises(MerBatchError, match="changed"):
        put(place, catalog, 3)
    assert not [name for name in names_below(place) if name.endswith(MARKER)]
    sweep(place, "r1")
    assert names_below(place) == []


def test_rows_that_cannot_be_written_are_told_in_one_line(place: Place, tmp_path: Path) -> None:
    table = tracks(3, label=["ECM"] * 3)
    never_null = pa.field("label", pa.string(), nullable=False)
    write_deltalake(tmp_path / "c", table.cast(table.schema.set(2, never_null)))
    (part,) = (tmp_path / "c").glob("*.parquet")
    pq.write_table(tracks(3), part)
    config = CatalogConfig(uri=str(tmp_path / "c"))
    catalog = read_catalog(config, Storage(StorageConfig()), taken_names=[])
    with pytest.raises(MerBatchError, match=r"cannot publish .* declared non-nullable") as caught:
        put(place, catalog, 3)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_failed_night_leaves_the_one_before_on_a_local_disk(tmp_path: Path) -> None:
    place = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    path = tmp_path / "c.parquet"
    catalog = catalog_of(tracks(3), path)
    put(place, catalog, 3, run_id="r1")
    before = names_below(place)
    path.unlink()
    with pytest.raises(CatalogError):
        put(place, catalog, 3, run_id="r2")
    sweep(place, "r2")
    assert names_below(place) == before


def test_a_store_that_refuses_is_told_in_words(s3: Any, tmp_path: Path) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")
    nowhere = Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri("s3://no-such-bucket/out")
    with held(straight(s3), "r1") as lease, pytest.raises(StorageError, match="no-such-bucket"):
        put(nowhere, catalog, 3, lease=lease)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "enriched").write_text("a file is in the way")
    blocked = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    with pytest.raises(StorageError, match="cannot publish"):
        put(blocked, catalog, 3)


# ------------------------------------------------------------------ after a crash


def test_before_the_first_night_nothing_is_published(place: Place) -> None:
    assert last_published(*place) is None
    sweep(place, "r1")


def test_the_latest_night_is_the_one_published_last(place: Place) -> None:
    storage, output = place
    for date, at in (("2026-11-20", "T1"), ("2026-11-21", "T3"), ("2026-11-22", "T2")):
        marker = output.child("enriched", f"run_date={date}", MARKER)
        content = {**MARK, "run_date": date, "published_at": f"2026-12-01{at}"}
        storage.write(marker, json.dumps(content).encode())
    found = last_published(*place)
    assert found is not None
    assert found["run_date"] == "2026-11-21"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"null"])
def test_a_marker_of_another_writer_is_no_night(place: Place, content: bytes) -> None:
    place[0].write(place[1].child("enriched", "run_date=2026-11-22", MARKER), content)
    assert last_published(*place) is None


def test_leftovers_are_swept_and_whole_nights_stay(place: Place) -> None:
    storage, output = place
    whole = [f"enriched/run_date=2026-11-21/{name}" for name in (MARKER, "part-0-r0.parquet")]
    half = (
        ["enriched/run_date=2026-11-22/part-0-r1.parquet"]
        if output.is_s3
        else ["enriched/_unfinished-r1/run_date=2026-11-22/part-0-r1.parquet"]
    )
    foreign = ["enriched/readme.txt", "enriched/run_date=2026-11-22.csv"]
    for name in [*whole, *half, *foreign]:
        storage.write(output.child(name), b"")
    sweep((storage, output), "r1")
    assert names_below(place) == sorted([*foreign, *whole])


@pytest.mark.parametrize("swap", [exchange, lambda *_: False])
@pytest.mark.parametrize("is_new_whole", [True, False])
def test_the_old_night_is_there_until_the_new_one_is(
    tmp_path: Path, swap: Any, is_new_whole: bool
) -> None:
    new, night, old = (tmp_path / name / "run_date=2026-11-22" for name in ("_new", ".", "_old"))
    night.mkdir()
    (night / MARKER).write_text("old")
    if is_new_whole:
        new.mkdir(parents=True)
        (new / MARKER).write_text("new")
        _put_in_place(new, night, old, swap=swap)
    else:  # swept by who has taken over
        with pytest.raises(FileNotFoundError):
            _put_in_place(new, night, old, swap=swap)
    assert (night / MARKER).read_text() == ("new" if is_new_whole else "old")
    assert not new.exists()
    assert not old.exists()


@pytest.mark.parametrize("is_new_in_place", [True, False])
def test_a_night_that_a_crash_left_moved_is_put_back(tmp_path: Path, is_new_in_place: bool) -> None:
    place = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    enriched = tmp_path / "out" / "enriched"
    for folder, text in (("_replaced-r2", "old"), ("_unfinished-r2", "new")):
        night = enriched / folder / "run_date=2026-11-22"
        night.mkdir(parents=True)
        (night / MARKER).write_text(text)
    if is_new_in_place:
        (enriched / "_unfinished-r2" / "run_date=2026-11-22").rename(
            enriched / "run_date=2026-11-22"
        )
    sweep(place, "r2")
    assert names_below(place) == [f"enriched/run_date=2026-11-22/{MARKER}"]
    expected = "new" if is_new_in_place else "old"
    assert (enriched / "run_date=2026-11-22" / MARKER).read_text() == expected


def test_an_output_that_is_another_runs_is_left_alone(place: Place, tmp_path: Path) -> None:
    catalog = catalog_of(pa.table({"track_id": ["a"], "audio_uri": ["x"]}), tmp_path / "c.parquet")
    with held(place, "late") as late, taken_over(place, "r1") as lease:
        put(place, catalog, 1, run_id="r1", lease=lease)
        with pytest.raises(LeaseError):
            late.confirm()
        with pytest.raises(LeaseError, match="another run took it over"):
            put(place, catalog, 1, run_id="late", lease=late)
    assert names_below(place) == published("r1")


def test_what_others_have_put_beside_a_night_in_a_store_is_theirs(s3: Any, tmp_path: Path) -> None:
    place, catalog = straight(s3), catalog_of(tracks(3), tmp_path / "c.parquet")
    night = put(place, catalog, 3, run_id="r1")
    theirs = [night.child(name) for name in ("_committed", "index.parquet", "sub/part-1.parquet")]
    for location in theirs:
        place[0].write(location, b"theirs")
    put(place, catalog, 3, run_id="r2")
    place[0].delete(night.child(MARKER))
    sweep(place, "r2")
    assert names_below(place) == sorted(found.path.removeprefix("out/") for found in theirs)


def test_a_night_is_only_there_with_all_its_parts(place: Place, tmp_path: Path) -> None:
    assert not is_published(place[0], place[1].child("enriched", "run_date=2026-11-22"), "c")
    night = put(place, catalog_of(tracks(3), tmp_path / "c.parquet"), 3)
    assert is_published(place[0], night, "c")
    assert not is_published(place[0], night, "another catalog")
    place[0].delete(night.child("part-00000-r1.parquet"))
    assert not is_published(place[0], night, "c")


# ------------------------------------------------------------------ on a store that misbehaves


def behind(s3: Any, faulty: FaultyStore, *, patience_seconds: float = 20) -> Place:
    """A place on S3 that is reached through the proxy."""
    config = StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=patience_seconds)
    return Storage(config), parse_uri(f"s3://{s3.bucket}/out")


def straight(s3: Any) -> Place:
    return Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri(f"s3://{s3.bucket}/out")


def published(run_id: str) -> list[str]:
    night = "enriched/run_date=2026-11-22"
    return [f"{night}/{MARKER}", f"{night}/part-00000-{run_id}.parquet"]


def test_a_night_replaces_one_that_the_listing_does_not_show(
    s3: Any, faulty: FaultyStore, tmp_path: Path
) -> None:
    catalog, place = catalog_of(tracks(3), tmp_path / "c.parquet"), behind(s3, faulty)
    leftover = place[1].child("enriched", "run_date=2026-11-22", "part-00000-r0.parquet")
    faulty.add("stale", seconds=1.5)
    put(place, catalog, 3, run_id="r1")
    place[0].write(leftover, b"of a publish that was cut short")
    put(place, catalog, 3, run_id="r2")
    assert names_below(straight(s3)) == published("r2")


def test_a_night_is_not_declared_whole_before_the_store_lists_it(
    s3: Any, faulty: FaultyStore, tmp_path: Path
) -> None:
    catalog = catalog_of(tracks(3), tmp_path / "c.parquet")
    with faulty.suffering("stale", seconds=math.inf):
        with pytest.raises(StorageError, match=r"listing of .* is stale"):
            put(behind(s3, faulty, patience_seconds=1), catalog, 3)
    assert names_below(straight(s3)) == []


_PUBLISHING = [
    "publish_to_begin", "marker_removed", "night_part_written", "beside_to_clear", "marker_to_write"
]  # fmt: skip


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("step", _PUBLISHING)
def test_who_is_taken_over_while_publishing_takes_nothing_away(
    s3: Any, tmp_path: Path, breakpoints: Breakpoints, step: str, is_whole: bool
) -> None:
    """The one that took over has published, or is about to put its marker, when it wakes up."""
    place, catalog = straight(s3), catalog_of(tracks(3), tmp_path / "c.parquet")
    put(place, catalog, 3, run_id="r0")
    with held(place, "r1") as lost, runs_of(breakpoints) as runs:
        breakpoints.hold(step)
        late = runs.submit(put, place, catalog, 3, run_id="r1", lease=lost)
        asleep = breakpoints.wait(60)
        assert asleep is not None
        with taken_over(place, "r2") as lease:
            sweep_unfinished(*place, "r1", lease)
            if not is_whole:
                breakpoints.hold("marker_to_write")
            other = runs.submit(put, place, catalog, 3, run_id="r2", lease=lease)
            at_marker = None if is_whole else breakpoints.wait(60)
            assert is_whole or at_marker is not None
            if is_whole:
                other.result(60)
            asleep.let_go()
            with pytest.raises(LeaseError, match="another run took it over"):
                late.result(60)
            if at_marker is not None:
                at_marker.let_go()
            other.result(60)
    assert names_below(place) == published("r2")


@pytest.mark.parametrize("step", ["beside_to_clear", "night_to_sweep"])
def test_what_is_listed_and_marked_meanwhile_is_not_taken_away(
    s3: Any, tmp_path: Path, breakpoints: Breakpoints, step: str
) -> None:
    """The late one looks while the other one's parts are there and their marker is not."""
    place, catalog = straight(s3), catalog_of(tracks(3), tmp_path / "c.parquet")
    is_sweep = step == "night_to_sweep"
    with held(place, "r1") as lost, runs_of(breakpoints) as runs:
        if not is_sweep:
            breakpoints.hold("night_part_written")
            late = runs.submit(put, place, catalog, 3, run_id="r1", lease=lost)
            asleep = breakpoints.wait(60)
            assert asleep is not None
        with taken_over(place, "r2") as lease:
            breakpoints.hold("marker_to_write")
            other = runs.submit(put, place, catalog, 3, run_id="r2", lease=lease)
            at_marker = breakpoints.wait(60)
            assert at_marker is not None
            breakpoints.hold(step)
            if is_sweep:
                late = runs.submit(sweep_unfinished, *place, "r0", lost)
            else:
                asleep.let_go()
            looking = breakpoints.wait(60)
            assert looking is not None
            at_marker.let_go()
            other.result(60)
            looking.let_go()
            with pytest.raises(LeaseError, match="another run took it over"):
                late.result(60)
    assert names_below(place) == published("r2")


def test_a_marker_that_was_put_late_is_replaced_by_the_holder(
    s3: Any, tmp_path: Path, breakpoints: Breakpoints
) -> None:
    place, catalog = straight(s3), catalog_of(tracks(3), tmp_path / "c.parquet")
    with runs_of(breakpoints) as runs:
        breakpoints.hold("marker_to_write")
        holder = runs.submit(put, place, catalog, 3, run_id="r2")
        at_marker = breakpoints.wait(60)
        assert at_marker is not None
        night = place[1].child("enriched", "run_date=2026-11-22")
        late = {**MARK, "parts": [{"name": "part-00000-r1.parquet", "n_rows": 3}]}
        place[0].write(night.child(MARKER), json.dumps(late).encode())
        at_marker.let_go()
        holder.result(60)
    assert names_below(place) == published("r2")
    assert len(read_night(place, night)) == 3


def test_what_lies_half_written_in_a_store_is_given_up(s3: Any) -> None:
    place = straight(s3)
    night = "out/enriched/run_date=2026-11-22"
    keys = [f"{night}/part-00000-{run_id}.parquet" for run_id in ("r1", "r2")]
    keys.append(f"{night}/of-others-r1.parquet")
    for key in keys:
        s3.create_multipart_upload(Bucket=s3.bucket, Key=key)
    assert sweep(place, "r1") == []
    left = s3.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted(keys[1:])


def test_a_store_that_does_not_tell_what_is_half_written_is_swept_all_the_same(
    s3: Any, faulty: FaultyStore
) -> None:
    place = behind(s3, faulty)
    part = place[1].child("enriched", "run_date=2026-11-22", "part-00000-r1.parquet")
    place[0].write(part, b"rows")
    with faulty.suffering("AccessDenied", methods="GET", key=f"^{s3.bucket}/?$"):
        assert sweep(place, "r1") == ["2026-11-22"]
    assert faulty.suffered["AccessDenied"] == 1
    assert names_below(straight(s3)) == []


def test_a_sweep_believes_the_marker_and_not_the_listing(s3: Any, faulty: FaultyStore) -> None:
    storage, output = behind(s3, faulty)
    nights = [output.child("enriched", f"run_date=2026-11-2{n}") for n in (1, 2)]
    for night in nights:
        storage.write(night.child("part-00000-r1.parquet"), b"rows")
    storage.write(nights[0].child(MARKER), b"{}")
    with faulty.suffering("stale", seconds=math.inf):
        storage.delete(nights[0].child(MARKER))
        storage.write(nights[1].child(MARKER), b"{}")
        sweep((storage, output), "r1")
    kept = [f"enriched/run_date=2026-11-22/{name}" for name in (MARKER, "part-00000-r1.parquet")]
    assert names_below(straight(s3)) == kept


def test_what_a_late_riser_has_left_beside_a_published_night_is_swept(
    s3: Any, tmp_path: Path
) -> None:
    place = straight(s3)
    night = put(place, catalog_of(tracks(3), tmp_path / "c.parquet"), 3, run_id="r2")
    for name in ("part-00000-r1.parquet", "part-00000-r0.parquet"):
        place[0].write(night.child(name), b"rows")
    sweep(place, "r1")
    assert names_below(place) == sorted(
        [*published("r2"), "enriched/run_date=2026-11-22/part-00000-r0.parquet"]
    )


def test_a_marker_that_is_listed_and_gone_is_no_night(s3: Any, faulty: FaultyStore) -> None:
    storage, output = behind(s3, faulty)
    for date in ("2026-11-21", "2026-11-22"):
        content = json.dumps({**MARK, "run_date": date}).encode()
        storage.write(output.child("enriched", f"run_date={date}", MARKER), content)
    with faulty.suffering("stale", seconds=math.inf):
        storage.delete(output.child("enriched", "run_date=2026-11-22", MARKER))
        found = last_published(storage, output)
    assert found is not None
    assert found["run_date"] == "2026-11-21"
