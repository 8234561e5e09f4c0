"""Tables kept in order: the same answers before and after, and readers keep what they hold."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from rich.console import Console

from mer_batch import schema
from mer_batch.config import ExtractConfig, StorageConfig, TagConfig, parse_config
from mer_batch.errors import ConfigError, LeaseError, StorageError
from mer_batch.lease import Lease, lease_location
from mer_batch.ledger import Ledger
from mer_batch.pipelines import compaction
from mer_batch.storage import Location, Storage, parse_uri
from tests.faulty_store import FaultyStore
from tests.test_ledger import merge, open_ledger, reject, rejected, scored_ids, write_part

Place = tuple[Storage, Location]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Config = TagConfig | ExtractConfig

AT_ONCE = {"retention_days": 0, "allow_short_retention": True}


def config(place: Place, **settings: Any) -> TagConfig:
    content = {
        "catalog": {"uri": "never read"},
        "output": {"uri": place[1].uri},
        "storage": place[0]._config.model_dump(),
        "compact": settings,
    }
    return parse_config(TagConfig, content, origin="test")


def compact(place: Place, **settings: Any) -> tuple[compaction.CompactSummary, str]:
    text = io.StringIO()
    console = Console(file=text, soft_wrap=True)
    return compaction.run(config(place, **settings), console), text.getvalue()


def nights(place: Place, n_nights: int, *, first: int = 0, generation: int = 1) -> Ledger:
    """A ledger with a part and a reject a night, each committed by itself."""
    ledger = open_ledger(place, generation=generation)
    for night in range(first, first + n_nights):
        part = write_part(place, f"r{night:03}", "p", [f"t{night:03}", f"u{night:03}"])
        ledger.commit_parts([part], run_id=f"r{night:03}", sequence=1)
        merge(ledger, reject(f"x{night:03}"))
    return ledger


def files(place: Place, table: str = "scores") -> list[str]:
    """Parts that lie below a table's folder, committed or not."""
    start = len(place[1].child(table).path) + 1
    found = [file.path[start:] for file, _, _ in place[0].list_files(place[1].child(table))]
    return [name for name in found if not name.startswith("_delta_log/")]


def scanned(table: DeltaTable) -> list[dict[str, Any]]:
    rows = pa.table(table.scan().read_all()).to_pylist()
    return sorted(rows, key=lambda row: str(row["track_id"]))


def answers(place: Place) -> list[Any]:
    """What the package reads out of an output."""
    ledger = Ledger(*place, pa.string())
    columns = schema.scores_schema(pa.string()).names
    found = ledger.scores(features_id="f", model_id="m", columns=columns)
    scores = pa.concat_tables(found).sort_by("track_id")
    return [
        scores.to_pylist(), scores.schema, rejected(ledger), ledger.content_id("e"),
        ledger.rejects().sort_by("track_id").to_pylist(),
    ]  # fmt: skip


# ------------------------------------------------------------------ what readers find


def test_the_answers_are_the_same_and_parts_are_few(place: Place) -> None:
    nights(place, 5)
    before = answers(place)
    summary, _ = compact(place)
    assert answers(place) == before
    scores = summary.tables["scores"]
    assert (scores.n_parts_before, scores.n_parts, scores.n_merged) == (5, 1, 5)
    assert summary.tables["rejects"].n_parts == 1
    nights(place, 2, first=5, generation=2**40)
    again = answers(place)
    assert again != before
    assert compact(place)[0].tables["scores"].n_parts == 1
    assert answers(place) == again
    assert compact(place)[0].tables["scores"].n_merged == 0, "there is nothing to merge"


def test_any_reader_of_delta_tables_finds_the_same_rows_and_their_bounds(place: Place) -> None:
    nights(place, 3)
    storage, output = place
    options = storage.delta_options(output)
    before = DeltaTable(output.child("scores").uri, storage_options=options)
    rows = scanned(before)
    assert len(rows) == 6
    compact(place)
    table = DeltaTable(output.child("scores").uri, storage_options=options)
    assert scanned(table) == rows
    # Whoever has opened an earlier version goes on reading it.
    assert scanned(before) == rows
    (action,) = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert action["num_records"] == 6
    assert (action["min.track_id"], action["max.track_id"]) == ("t000", "u002")
    assert action["null_count.valence_low"] == 6


def test_what_was_replaced_stays_for_its_time_and_then_goes(place: Place) -> None:
    nights(place, 3)
    before = files(place)
    compact(place)
    assert set(before) < set(files(place)), "readers of the version before have their parts"
    compact(place)
    assert set(before) < set(files(place))
    summary, _ = compact(place, **AT_ONCE)
    (part,) = files(place)
    assert "/merged-" in part
    assert summary.tables["scores"].n_deleted == 3
    assert scored_ids(Ledger(*place, pa.string())) == sorted(
        f"{letter}00{n}" for n in range(3) for letter in "tu"
    )
    if not place[1].is_s3:
        folders = [path.name for path in Path(place[1].child("scores").path).iterdir()]
        assert len(folders) == 2, "folders that have become empty are gone"


def test_a_longer_retention_is_kept_in_the_table_itself(place: Place) -> None:
    nights(place, 2)
    compact(place, retention_days=30)
    storage, output = place
    for name in ("scores", "rejects"):
        location = output.child(name)
        table = DeltaTable(location.uri, storage_options=storage.delta_options(location))
        said = table.metadata().configuration
        assert said == {"delta.deletedFileRetentionDuration": "interval 30 days"}
    version = table.version()
    compact(place, retention_days=30)
    table.update_incremental()
    assert table.version() == version + 1, "the fence alone: it is said once"


def test_logs_have_a_checkpoint_and_are_followed_from_there(place: Place) -> None:
    nights(place, 4)
    storage, output = place
    log = output.child("scores", "_delta_log")
    assert not storage.exists(log.child("_last_checkpoint"))
    following = Ledger(*place, pa.string())
    compact(place)
    assert storage.exists(log.child("_last_checkpoint"))
    assert scored_ids(following) == scored_ids(Ledger(*place, pa.string()))
    opened = Ledger(*place, pa.string())
    assert opened.generation() > 1, "the fence is in the checkpoint as well"


# ------------------------------------------------------------------ who may, and when


def test_who_does_not_hold_the_output_keeps_nothing_in_order(place: Place) -> None:
    nights(place, 3)
    before = files(place)
    lease = Lease(place[0], lease_location(place[1]), "another-run", seconds=60)
    try:
        with pytest.raises(LeaseError, match=r"another-run .* holds the lease"):
            compact(place)
    finally:
        lease.release()
    assert files(place) == before
    paused = Ledger(*place, pa.string())
    paused.fence(lease.generation)
    compact(place)
    with pytest.raises(LeaseError, match="a later run"):
        paused.replace_parts("scores", paused.parts("scores"), paused.parts("scores")[0])
    with pytest.raises(LeaseError, match="a later run"):
        paused.unused("scores", 0)


def test_an_output_without_tables_is_refused_and_nothing_is_written(place: Place) -> None:
    with pytest.raises(ConfigError, match="must hold scores or features"):
        compact(place)
    assert not place[0].is_folder(place[1])


def test_parts_of_a_run_that_was_cut_short_are_swept_and_no_others(place: Place) -> None:
    storage, output = place
    ledger = nights(place, 3)
    write_part(place, "20260101T000000Z-abcdef", "never committed", ["y"])
    storage.write(output.child("runs", "_open", "20260101T000000Z-abcdef"), b"")
    compact(place)
    assert not [name for name in files(place) if name.startswith("20260101")]
    # A run that is marked open after what it has committed was merged: a reader may hold it.
    storage.write(output.child("runs", "_open", "20260102T000000Z-abcdef"), b"")
    write_part(place, "r001", "never committed", ["y"])
    ledger = Ledger(*place, pa.string())
    ledger.fence(2**40)
    assert ledger.sweep("r001") == 1
    assert "r001/p.parquet" in files(place)


def test_files_that_nobody_has_committed_go_when_they_are_old(place: Place) -> None:
    nights(place, 1)
    write_part(place, "never marked", "p", ["y"])
    storage, output = place
    storage.write(output.child("scores", "r000", ".part.parquet.17-beef"), b"half of a part")
    storage.write(output.child("scores", "notes.txt"), b"somebody else's")
    compact(place)
    assert "never marked/p.parquet" in files(place)
    compact(place, **AT_ONCE)
    assert sorted(files(place)) == ["notes.txt", "r000/p.parquet"]


def test_traces_of_old_runs_go_but_of_none_that_is_open(place: Place) -> None:
    storage, output = place
    nights(place, 1)
    for run_id in ("20200101T000000Z-aaaaaa", "20200101T000000Z-bbbbbb"):
        storage.write(output.child("runs", run_id, "log"), b"")
    compact(place)
    assert storage.exists(output.child("runs", "20200101T000000Z-aaaaaa", "log"))
    storage.write(output.child("runs", "_open", "20200101T000000Z-bbbbbb"), b"")
    summary, _ = compact(place, keep_runs_days=30)
    # It was swept, so it is open no longer: that too is in order.
    assert summary.n_run_files == 2
    names = {
        file.path.split("/runs/")[1] for file, _, _ in storage.list_files(output.child("runs"))
    }
    assert not {name for name in names if name.startswith("2020")}
    assert f"{summary.run_id}/config.yaml" in names


# ------------------------------------------------------------------ of its own accord


@pytest.mark.parametrize("when", ["auto", "never"])
def test_a_run_merges_many_small_parts_at_its_end(place: Place, when: str) -> None:
    ledger = open_ledger(place)
    parts = [write_part(place, "r1", f"p{n}", [f"t{n:03}"]) for n in range(compaction.MANY_PARTS)]
    ledger.commit_parts(parts[:-1], run_id="r1", sequence=1)
    settings = config(place, when=when)

    def end_a_run() -> str:
        console = Console(file=io.StringIO())
        with compaction.held(settings, console, place[0], pa.string(), product="scores") as holding:
            compaction.compact_if_due(holding)
            return "\n".join(holding.run.log)

    assert "merged" not in end_a_run()
    ledger = open_ledger(place, generation=2**40)
    ledger.commit_parts(parts[-1:], run_id="r1", sequence=2)
    said = end_a_run()
    assert (f"scores: {compaction.MANY_PARTS} small parts merged, 1 now" in said) == (
        when == "auto"
    )
    assert len(scored_ids(Ledger(*place, pa.string()))) == compaction.MANY_PARTS


def test_a_night_whose_tables_cannot_be_merged_ends_well_all_the_same(
    s3: Any, faulty: FaultyStore
) -> None:
    straight = Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri(f"s3://{s3.bucket}/out")
    ledger = open_ledger(straight)
    parts = [
        write_part(straight, "r1", f"p{n}", [f"t{n:03}"]) for n in range(compaction.MANY_PARTS)
    ]
    ledger.commit_parts(parts, run_id="r1", sequence=1)
    behind = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=1)), straight[1]
    with compaction.held(
        config(behind), Console(file=io.StringIO()), behind[0], pa.string(), product="scores"
    ) as holding:
        faulty.add("SlowDown", methods="PUT", key="merged-")
        compaction.compact_if_due(holding)
    assert faulty.suffered["SlowDown"] > 0
    assert "merged another time" in "\n".join(holding.run.log)
    assert len(scored_ids(Ledger(*straight, pa.string()))) == compaction.MANY_PARTS
    compact(straight)
    assert not straight[0].is_folder(straight[1].child("runs", "_open"))
    assert len(Ledger(*straight, pa.string()).parts("scores")) == 1


@pytest.mark.parametrize("fault", ["SlowDown", "reset", "lose_answer", "cut", "cut_quietly"])
def test_faults_of_a_store_that_pass_cost_nothing(s3: Any, faulty: FaultyStore, fault: str) -> None:
    straight = Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri(f"s3://{s3.bucket}/out")
    nights(straight, 6)
    before = answers(straight)
    behind = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=20)), straight[1]
    methods = "GET" if fault.startswith("cut") else "PUT"
    for key in ("scores/_delta_log", "scores/r" if methods == "GET" else "merged-"):
        faulty.add(fault, methods=methods, key=key, n=2)
    assert compact(behind)[0].tables["scores"].n_parts == 1
    assert faulty.suffered[fault] >= 2
    assert answers(straight) == before


def test_a_store_that_refuses_is_told_in_words(s3: Any, faulty: FaultyStore) -> None:
    straight = Storage(StorageConfig(endpoint_url=s3.endpoint)), parse_uri(f"s3://{s3.bucket}/out")
    nights(straight, 3)
    behind = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=2)), straight[1]
    faulty.add("ExpiredToken", methods="PUT", key="merged-")
    with pytest.raises(Exception, match="the credentials have expired") as caught:
        compact(behind)
    assert not isinstance(caught.value, StorageError), "work had begun: it is no refusal"


# ------------------------------------------------------------------ whole nights


def test_a_night_is_the_same_one_after_its_tables_were_merged(
    tag: Callable[..., Any], music: Path, tmp_path: Path
) -> None:
    first = tag(music, run_date="2026-11-22")
    output = {"uri": str(tmp_path / "out")}
    settings = {"catalog": {"uri": str(music)}, "output": output}
    assert len(first.scores) == 8
    summary = compaction.run(
        parse_config(TagConfig, settings, origin="test"), Console(file=io.StringIO())
    )
    assert summary.tables["scores"].n_merged > 1
    again = tag(music, run_date="2026-11-22")
    assert "8 already scored, 0 already rejected, 0 to do" in again.text
    assert not again.summary.was_published
    assert again.scores.sort_by("track_id").equals(first.scores.sort_by("track_id"))


def test_merged_features_are_scored_from_and_found_done(
    extract: Callable[..., Any], tag: Callable[..., Any], music: Path, tmp_path: Path
) -> None:
    extracted = extract(music)
    plain = tag(music, output={"uri": str(tmp_path / "plain")})
    content = {"catalog": {"uri": str(music)}, "output": {"uri": str(tmp_path / "out")}}
    features = compaction.run(
        parse_config(ExtractConfig, content, origin="test"), Console(file=io.StringIO())
    ).tables["features"]
    assert features.n_merged > 1
    assert features.n_parts == 1
    assert not (tmp_path / "out" / "scores").exists(), "no table is made"
    again = extract(music)
    assert again.summary.n_tried == 0
    assert again.features.sort_by("track_id").equals(extracted.features.sort_by("track_id"))
    tagged = tag(music)
    assert (tagged.summary.n_rescored, tagged.summary.n_tried) == (8, 0)
    by_id = [t.scores.sort_by("track_id")["valence"].to_pylist() for t in (tagged, plain)]
    assert by_id[0] == pytest.approx(by_id[1], abs=0.005)


def test_the_command_ends_as_others_do(run_cli: Run, tmp_path: Path) -> None:
    place = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    nights(place, 3)
    config = tmp_path / "tag.yaml"
    config.write_text(f"catalog: {{uri: none}}\noutput: {{uri: {tmp_path / 'out'}}}\n")
    done = run_cli("compact", config)
    assert done.returncode == 0, done.stderr
    assert "scores   3 parts before, 1 now" in done.stdout
    lease = Lease(*place[:1], lease_location(place[1]), "another-run", seconds=60)
    try:
        held = run_cli("compact", config)
    finally:
        lease.release()
    assert held.returncode == 4
    assert "run another-run on" in held.stderr
