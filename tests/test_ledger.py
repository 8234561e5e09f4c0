"""The ledger's commits: whole, once, and only by the latest holder of the lease."""

from __future__ import annotations

import datetime
import io
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema, write_deltalake

from mer_batch import schema
from mer_batch.config import StorageConfig
from mer_batch.errors import CatalogError, LeaseError, StorageError
from mer_batch.ledger import Ledger, Part, held_id_type, reject_reasons
from mer_batch.schema import reject_rows
from mer_batch.storage import Location, Storage, parse_uri
from tests.faulty_store import FaultyStore

Place = tuple[Storage, Location]

NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)


def open_ledger(place: Place, *, generation: int = 1, id_type: pa.DataType | None = None) -> Ledger:
    ledger = Ledger(*place, id_type or pa.string())
    ledger.fence(generation)
    return ledger


def write_part(place: Place, run_id: str, name: str, ids: list[Any], **columns: Any) -> Part:
    """A part of scores as a worker writes it."""
    storage, output = place
    row = {
        "audio_uri": "/a", "audio_version": "v1", "valence": 0.5, "arousal": -0.5,
        "n_segments": 3, "duration_seconds": 2.0, "features_id": "f", "model_id": "m",
        "run_id": run_id, "scored_at": NOW, **columns,
    }  # fmt: skip
    id_type = pa.string() if isinstance(ids[0], str) else pa.int64()
    table = pa.Table.from_pylist(
        [{"track_id": i, **row} for i in ids], schema=schema.scores_schema(id_type)
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    path = f"{run_id}/{name}.parquet"
    storage.write(output.child("scores", path), buffer.getvalue())
    return Part(path, buffer.tell(), len(ids))


def reject(track_id: object, reason: str | None = "silent", **columns: Any) -> dict[str, Any]:
    return {
        "track_id": track_id, "audio_uri": "/a", "audio_version": "v1", "reason": reason,
        "message": "nothing to hear", "attempts": 1, "first_run_id": "r1", "last_run_id": "r1",
        "first_seen": NOW, "last_seen": NOW, "extraction_id": "e",
        "product": "scores", **columns,
    }  # fmt: skip


def merge(ledger: Ledger, *rows: dict[str, Any], id_type: pa.DataType | None = None) -> None:
    ledger.merge_rejects(reject_rows(list(rows), id_type or pa.string()))


def scored_ids(ledger: Ledger, features_id: str = "f", model_id: str = "m") -> list[Any]:
    tables = ledger.scores(features_id=features_id, model_id=model_id, columns=["track_id"])
    return sorted(track_id for table in tables for track_id in table["track_id"].to_pylist())


def rejected(ledger: Ledger, extraction_id: str = "e") -> dict[Any, str]:
    table = ledger.rejects(extraction_id)
    return dict(zip(table["track_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_a_new_ledger_is_empty(place: Place) -> None:
    ledger = open_ledger(place)
    assert scored_ids(ledger) == []
    assert ledger.rejects().num_rows == 0
    assert ledger.rejects().schema == schema.rejects_schema(pa.string())


def test_committed_parts_are_rows_of_the_table_and_others_are_not(place: Place) -> None:
    ledger = open_ledger(place)
    parts = [write_part(place, "r1", "p1", ["a", "b"]), write_part(place, "r1", "p2", ["c"])]
    write_part(place, "r1", "p3", ["never committed"])
    assert scored_ids(ledger) == []
    ledger.commit_parts(parts, run_id="r1", sequence=1)
    assert scored_ids(ledger) == ["a", "b", "c"]
    assert scored_ids(Ledger(*place, pa.string())) == ["a", "b", "c"]


def test_any_reader_of_delta_tables_finds_the_same_rows(place: Place) -> None:
    storage, output = place
    ledger = open_ledger(place)
    ledger.commit_parts([write_part(place, "r1", "p1", ["a", "b"])], run_id="r1", sequence=1)
    merge(ledger, reject("c"))
    for name, ids in (("scores", ["a", "b"]), ("rejects", ["c"])):
        folder = output.child(name)
        table = DeltaTable(folder.uri, storage_options=storage.delta_options(folder))
        assert pa.table(table.scan(columns=["track_id"]).read_all())["track_id"].to_pylist() == ids


def test_scores_are_those_of_one_model_on_one_feature_set(place: Place) -> None:
    ledger = open_ledger(place)
    parts = [
        write_part(place, "r1", "p1", ["a"]),
        write_part(place, "r1", "p2", ["b"], model_id="other"),
        write_part(place, "r1", "p3", ["c"], features_id="other"),
    ]
    ledger.commit_parts(parts, run_id="r1", sequence=1)
    assert scored_ids(ledger) == ["a"]
    assert scored_ids(ledger, model_id="other") == ["b"]
    assert scored_ids(ledger, features_id="other") == ["c"]


def test_whole_ids_stay_whole(place: Place) -> None:
    ledger = open_ledger(place, id_type=pa.int64())
    ledger.commit_parts([write_part(place, "r1", "p1", [2**53 + 1, -1])], run_id="r1", sequence=1)
    merge(ledger, reject(2**63 - 1), id_type=pa.int64())
    assert scored_ids(ledger) == [-1, 2**53 + 1]
    assert rejected(ledger) == {2**63 - 1: "silent"}


def test_a_commit_that_is_repeated_adds_nothing(place: Place) -> None:
    ledger = open_ledger(place)
    part = write_part(place, "r1", "p1", ["a", "b"])
    for _ in range(2):
        ledger.commit_parts([part], run_id="r1", sequence=1)
    assert scored_ids(ledger) == ["a", "b"]


def test_ids_of_another_type_are_refused(place: Place) -> None:
    open_ledger(place)
    with pytest.raises(
        CatalogError, match=r"ids of type string, this catalog's are int64"
    ) as caught:
        Ledger(*place, pa.int64())
    assert "use another output.uri" in str(caught.value)


@pytest.mark.parametrize("id_type", [pa.string(), pa.int64()])
def test_an_output_tells_what_ids_it_holds(place: Place, id_type: pa.DataType) -> None:
    assert held_id_type(*place) is None
    Ledger(*place, id_type, product="features")
    assert held_id_type(*place) == id_type


def test_a_table_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("a file where the table should be")
    with pytest.raises(StorageError, match="cannot open the table"):
        Ledger(Storage(StorageConfig()), parse_uri(str(tmp_path)), pa.string())


# ------------------------------------------------------------------ rejects


def test_rejects_are_inserted_updated_and_deleted(place: Place) -> None:
    ledger = open_ledger(place)
    merge(ledger, reject("a"), reject("b"), reject("c"))
    merge(
        ledger,
        reject("b", "timeout", attempts=2, message=None),
        reject("c", None, audio_version=""),
        reject("d", "not_found"),
        reject("never rejected", None, audio_version=""),
    )
    assert rejected(ledger) == {"a": "silent", "b": "timeout", "d": "not_found"}
    (b,) = ledger.rejects().filter(pa.compute.field("track_id") == "b").to_pylist()
    assert b == {**reject("b", "timeout", attempts=2, message=None)}


def test_extractions_keep_their_rejects_apart(place: Place) -> None:
    ledger = open_ledger(place)
    features = {"product": "features", "extraction_id": "other"}
    third = {"product": "features", "extraction_id": "third"}
    merge(ledger, reject("a", "too_long"), reject("b", "silent"))
    night = ledger.content_id("e")
    merge(ledger, reject("a", "timeout", **features), reject("c", "silent", **features))
    merge(ledger, reject("b", None, **features))
    merge(ledger, reject("a", "truncated", **third))
    assert ledger.content_id("e") == night
    assert rejected(ledger, "e") == {"a": "too_long", "b": "silent"}
    assert rejected(ledger, "other") == {"a": "timeout", "c": "silent"}
    assert rejected(ledger, "third") == {"a": "truncated"}
    merge(ledger, reject("a", None))
    assert rejected(ledger, "e") == {"b": "silent"}
    assert rejected(ledger, "other") == {"a": "timeout", "c": "silent"}


def test_a_track_is_a_reject_of_tagging_once_whatever_its_limits(place: Place) -> None:
    ledger = open_ledger(place)
    merge(ledger, reject("a", "too_short"), reject("b", "silent"))
    merge(ledger, reject("a", "truncated", extraction_id="later"))
    merge(ledger, reject("b", None, extraction_id="later"))
    assert rejected(ledger, "later") == {"a": "truncated"}
    assert ledger.rejects().num_rows == 1


def test_rejects_of_an_earlier_release_are_those_of_tagging(place: Place) -> None:
    ledger = open_ledger(place)
    old = schema.rejects_schema(pa.string())
    old = old.remove(old.get_field_index("product"))
    storage, output = place
    location = output.child("rejects")
    write_deltalake(
        location.uri,
        pa.Table.from_pylist([reject("a"), reject("b")], schema=old),
        mode="overwrite",
        schema_mode="overwrite",
        storage_options=storage.delta_options(location),
    )
    ledger = open_ledger(place, generation=2)
    assert rejected(ledger) == {"a": "silent", "b": "silent"}
    merge(ledger, reject("a", None), reject("b", "truncated"))
    assert rejected(ledger) == {"b": "truncated"}
    assert ledger.rejects().num_rows == 1


def test_no_rows_are_no_commit(place: Place) -> None:
    ledger = open_ledger(place)
    before = ledger.content_id("e")
    merge(ledger)
    assert ledger.content_id("e") == before


# ------------------------------------------------------------------ fence


def test_an_earlier_holder_cannot_commit(place: Place) -> None:
    paused = open_ledger(place, generation=1)
    part = write_part(place, "r1", "p1", ["a"])
    merge(paused, reject("z"))
    later = open_ledger(place, generation=2)
    commits: list[Callable[[], None]] = [
        lambda: paused.commit_parts([part], run_id="r1", sequence=1),
        lambda: merge(paused, reject("a")),
        lambda: merge(paused, reject("z", None)),
        lambda: paused.fence(1),
    ]
    for commit in commits:
        with pytest.raises(LeaseError, match=r"generation 2, ours 1.* has taken over"):
            commit()
    assert scored_ids(later) == []
    assert rejected(later) == {"z": "silent"}
    later.commit_parts([part], run_id="r1", sequence=1)
    assert scored_ids(later) == ["a"]


def test_who_never_took_the_fence_cannot_commit(place: Place) -> None:
    open_ledger(place, generation=1)
    unfenced = Ledger(*place, pa.string())
    with pytest.raises(LeaseError):
        merge(unfenced, reject("a"))


def test_no_commit_of_an_earlier_holder_comes_after_the_fence(tmp_path: Path) -> None:
    """The holder is in the midst of committing when it is taken over."""
    place = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    paused = open_ledger(place, generation=1)
    parts = [write_part(place, "r1", f"p{n}", [f"t{n}"]) for n in range(200)]
    n_committed = 0
    ended_by: list[Exception] = []
    began = threading.Event()

    def commit_on() -> None:
        nonlocal n_committed
        try:
            for number, part in enumerate(parts):
                paused.commit_parts([part], run_id="r1", sequence=number + 1)
                n_committed += 1
                began.set()
        except LeaseError as error:
            ended_by.append(error)

    holder = threading.Thread(target=commit_on)
    holder.start()
    assert began.wait(60)
    later = open_ledger(place, generation=2)
    at_fence = scored_ids(later)
    holder.join()
    assert len(ended_by) == 1
    assert scored_ids(later) == at_fence
    # What the holder believes is what is there.
    assert len(at_fence) == n_committed < len(parts)


# ------------------------------------------------------------------ sweeping

# Folders whose names delta-rs writes otherwise than the file system does.
OUTPUTS = ["plain", "two words", "100%", "Björk", "a#b?c", "a+b=c"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_sweep_removes_only_what_no_commit_names(place: Place, name: str) -> None:
    place = place[0], place[1].child(name)
    ledger = open_ledger(place)
    kept = [write_part(place, "r1", "kept", ["a"]), write_part(place, "r2", "kept", ["b"])]
    ledger.commit_parts(kept, run_id="r1", sequence=1)
    write_part(place, "r1", "orphan", ["x"])
    write_part(place, "r1", "orphan 2", ["x"])
    other = write_part(place, "r2", "orphan", ["c"])
    assert ledger.sweep("r1") == 2
    assert ledger.sweep("r1") == 0
    assert ledger.sweep("no such run") == 0
    assert scored_ids(ledger) == ["a", "b"]
    ledger.commit_parts([other], run_id="r2", sequence=1)
    assert scored_ids(ledger) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a%20b", "a\\b", "a\nb"])
def test_a_folder_that_delta_tables_cannot_lie_in_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot open the table"):
        Ledger(Storage(StorageConfig()), parse_uri(str(tmp_path / name)), pa.string())


def test_a_sweep_behind_a_symbolic_link_removes_only_orphans(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    place = Storage(StorageConfig()), parse_uri(str(tmp_path / "link"))
    ledger = open_ledger(place)
    ledger.commit_parts([write_part(place, "r1", "kept", ["a"])], run_id="r1", sequence=1)
    write_part(place, "r1", "orphan", ["x"])
    assert ledger.sweep("r1") == 1
    assert scored_ids(ledger) == ["a"]


# ------------------------------------------------------------------ content


def test_the_content_id_changes_with_every_change_and_only_then(place: Place) -> None:
    ledger = open_ledger(place)
    seen = [ledger.content_id("e")]

    def changed() -> bool:
        seen.append(ledger.content_id("e"))
        return seen[-1] != seen[-2]

    ledger.commit_parts([write_part(place, "r1", "p1", ["a"])], run_id="r1", sequence=1)
    assert changed()
    merge(ledger, reject("b"))
    assert changed()
    merge(ledger, reject("b", "timeout"))
    assert changed()
    ledger.fence(2)
    assert Ledger(*place, pa.string()).content_id("e") == seen[-1]
    merge(ledger, reject("b", None))
    assert changed()
    # As it was when only `a` was known.
    assert seen[-1] == seen[1]


# ------------------------------------------------------------------ features, older tables


def write_features(place: Place, run_id: str, name: str, track_id: str, features_id: str) -> Part:
    """A part of features with one segment, its mel left out."""
    storage, output = place
    columns = schema.features_schema(pa.string())
    row = {
        "track_id": track_id, "segment": 0, "n_segments": 1, "n_frames": 3, "audio_version": "v1",
        "features_id": features_id, "run_id": run_id, "extracted_at": NOW, "mel": [0.0],
    }  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=columns), buffer)
    path = f"{run_id}/{name}.parquet"
    storage.write(output.child("features", path), buffer.getvalue())
    return Part(path, buffer.tell(), 1)


def test_features_are_those_of_one_feature_set(place: Place) -> None:
    ledger = Ledger(*place, pa.string(), product="features")
    ledger.fence(1)
    parts = [
        write_features(place, "r1", "p1", "a", "f"),
        write_features(place, "r1", "p2", "b", "other"),
    ]
    ledger.commit_parts(parts, run_id="r1", sequence=1)
    write_features(place, "r1", "p3", "never committed", "f")
    ((part, rows),) = ledger.features(features_id="f")
    assert not isinstance(rows, str)
    assert rows["track_id"].to_pylist() == ["a"]
    assert part == place[1].child("features", "r1/p1.parquet")
    assert rows["row"].to_pylist() == [0]
    assert ledger.feature_parts("f") == [place[1].child("features", "r1/p1.parquet")]
    assert ledger.feature_parts("none") == []
    assert ledger.sweep("r1") == 1
    ((_, light),) = ledger.features(features_id="other", columns=["track_id", "n_frames"])
    assert not isinstance(light, str)
    assert light.schema.names == ["track_id", "n_frames", "row"]


def test_only_the_tables_that_are_needed_are_made(place: Place) -> None:
    storage, output = place
    tagging = open_ledger(place)
    assert not storage.is_folder(output.child("features"))
    assert list(tagging.features(features_id="f")) == []
    assert tagging.feature_parts("f") == []
    elsewhere = storage, output.child("elsewhere")
    extracting = Ledger(*elsewhere, pa.string(), product="features")
    extracting.fence(1)
    assert not storage.is_folder(elsewhere[1].child("scores"))
    assert scored_ids(extracting) == []


def test_a_later_run_of_another_kind_shuts_an_earlier_one_out(place: Place) -> None:
    paused = Ledger(*place, pa.string(), product="features")
    paused.fence(1)
    open_ledger(place, generation=2)
    part = write_features(place, "r1", "p1", "a", "f")
    with pytest.raises(LeaseError):
        paused.commit_parts([part], run_id="r1", sequence=1)


def test_a_table_of_an_earlier_release_gets_todays_columns(place: Place) -> None:
    storage, output = place
    new = {field.name for field in schema.INTERVAL_FIELDS}
    old = pa.schema([f for f in schema.scores_schema(pa.string()) if f.name not in new])
    folder = output.child("scores")
    options = storage.delta_options(folder)
    DeltaTable.create(folder.uri, schema=Schema.from_arrow(old), storage_options=options)
    part = write_part(place, "r0", "p0", ["old"])
    rows = pq.read_table(pa.BufferReader(storage.read(folder.child(part.path))))
    buffer = io.BytesIO()
    pq.write_table(rows.drop_columns(sorted(new)), buffer)
    storage.write(folder.child(part.path), buffer.getvalue())
    Ledger(*place, pa.string()).commit_parts(
        [Part(part.path, buffer.tell(), 1)], run_id="r0", sequence=1
    )

    ledger = open_ledger(place)
    ledger.commit_parts(
        [write_part(place, "r1", "p1", ["new"], valence_low=-0.25)], run_id="r1", sequence=1
    )
    columns = ["track_id", "valence", "valence_low"]
    expected = [
        {"track_id": "new", "valence": 0.5, "valence_low": -0.25},
        {"track_id": "old", "valence": 0.5, "valence_low": None},
    ]
    found = pa.concat_tables(ledger.scores(features_id="f", model_id="m", columns=columns))
    assert found.sort_by("track_id").to_pylist() == expected
    table = DeltaTable(folder.uri, storage_options=options)
    assert new < {field.name for field in table.schema().fields}
    read = pa.table(table.scan(columns=columns).read_all())
    assert sorted(read.to_pylist(), key=lambda row: str(row["track_id"])) == expected
    open_ledger(place, generation=2)
    version = DeltaTable(folder.uri, storage_options=options).version()
    assert version == table.version() + 1, "the fence alone: nothing is added twice"


# ------------------------------------------------------------------ on a store that misbehaves


@pytest.fixture
def behind(s3: Any, faulty: FaultyStore) -> Place:
    """A place on S3 that is reached through the proxy."""
    config = StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=20)
    return Storage(config), parse_uri(f"s3://{s3.bucket}/out")


@pytest.mark.parametrize("fault", ["SlowDown", "reset", "lose_answer", "cut", "cut_quietly"])
def test_a_commit_is_done_once_whatever_becomes_of_its_answer(
    behind: Place, faulty: FaultyStore, fault: str
) -> None:
    ledger = open_ledger(behind)
    methods = "GET" if fault.startswith("cut") else "PUT"
    faulty.add(fault, methods=methods, key="scores/_delta_log", n=3)
    part = write_part(behind, "r1", "p1", ["a", "b"])
    ledger.commit_parts([part], run_id="r1", sequence=1)
    faulty.add(fault, methods=methods, key="rejects/_delta_log", n=3)
    merge(ledger, reject("x"), reject("y"))
    faulty.add(fault, methods=methods, key="rejects/_delta_log", n=3)
    merge(ledger, reject("x", "timeout", attempts=2), reject("y", None, audio_version=""))
    assert faulty.suffered[fault] >= 3
    assert scored_ids(ledger) == ["a", "b"]
    assert rejected(ledger) == {"x": "timeout"}
    for name, n_commits in (("scores", 1), ("rejects", 2)):
        log = [found for found, _, _ in behind[0].list_files(behind[1].child(name, "_delta_log"))]
        assert len(log) == 2 + n_commits, "made, fenced, and each commit once"


@pytest.mark.parametrize("fault", ["lose_answer", "reset", "SlowDown"])
def test_a_table_whose_making_failed_is_made_once(
    behind: Place, faulty: FaultyStore, fault: str
) -> None:
    faulty.add(fault, methods="PUT", key="_delta_log", n=2)
    ledger = open_ledger(behind)
    assert scored_ids(ledger) == []
    assert faulty.suffered[fault] == 2
    ledger.commit_parts([write_part(behind, "r1", "p1", ["a"])], run_id="r1", sequence=1)
    assert scored_ids(open_ledger(behind, generation=2)) == ["a"]


def test_a_stale_listing_is_waited_for(behind: Place, faulty: FaultyStore) -> None:
    faulty.add("stale", seconds=1.0)
    ledger = open_ledger(behind)
    for number in (1, 2):
        part = write_part(behind, "r1", f"p{number}", [f"a{number}"])
        ledger.commit_parts([part], run_id="r1", sequence=number)
        merge(ledger, reject(f"x{number}"))
    assert scored_ids(ledger) == ["a1", "a2"]
    assert scored_ids(open_ledger(behind, generation=2)) == ["a1", "a2"]
    assert rejected(ledger) == {"x1": "silent", "x2": "silent"}


def test_a_listing_that_stays_stale_is_refused_and_nothing_is_swept(
    s3: Any, behind: Place, faulty: FaultyStore
) -> None:
    ledger = open_ledger(behind)
    impatient = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=1))
    later = open_ledger((impatient, behind[1]))
    part = write_part(behind, "r1", "p1", ["a"])
    with faulty.suffering("stale", seconds=math.inf):
        straight = Storage(StorageConfig(endpoint_url=s3.endpoint)), behind[1]
        other = Ledger(*straight, pa.string())
        other.fence(1)
        other.commit_parts([part], run_id="r1", sequence=1)
        for use in (
            lambda: later.sweep("r1"),
            lambda: scored_ids(later),
            lambda: later.commit_parts([part], run_id="r2", sequence=1),
            lambda: open_ledger((impatient, behind[1])),
        ):
            with pytest.raises(StorageError, match=r"listing of .*scores' is stale: 0+\d\.json"):
                use()
    assert scored_ids(ledger) == ["a"]


def test_who_was_taken_over_sweeps_nothing_of_the_next_holder(place: Place) -> None:
    late = open_ledger(place)
    open_ledger(place, generation=2)
    part = write_part(place, "r2", "p1", ["not yet committed"])
    with pytest.raises(LeaseError, match="a later run"):
        late.sweep("r2")
    assert place[0].exists(place[1].child("scores", part.path))


def test_a_refusal_ends_a_commit_at_once_and_tells_no_secret(
    behind: Place, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-session-token")
    ledger = open_ledger(behind)
    part = write_part(behind, "r1", "p1", ["a"])
    faulty.add("ExpiredToken", methods="PUT")
    with pytest.raises(StorageError) as caught:
        ledger.commit_parts([part], run_id="r1", sequence=1)
    assert str(caught.value) == (
        f"cannot commit to '{behind[1].uri}/scores': ExpiredToken; the credentials have expired: "
        "renew them and run again"
    )
    assert faulty.suffered["ExpiredToken"] == 1


def test_a_damaged_table_of_rejects_is_told_in_one_line(place: Place) -> None:
    ledger = open_ledger(place)
    merge(ledger, reject("a"))
    assert reject_reasons(*place) == {"silent": 1}
    (part,) = ledger._parts("rejects")
    place[0].write(part, b"no Parquet")
    for read in (ledger.rejects, lambda: reject_reasons(*place)):
        with pytest.raises(StorageError, match=r"cannot read the table .*rejects") as caught:
            read()
        assert "\n" not in str(caught.value)
