"""The main job on a real Ray: every track exactly once, every column as it was."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mer_batch import schema
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.child import Child
from mer_batch.errors import CatalogError, CheckpointError, ErrorBudgetExceeded
from mer_batch.limits import ChildLimits
from mer_batch.pipelines.tagging import MAX_BLOCK_TRACKS, _spans
from mer_batch.task import GivenTrack, ScoreTask
from tests.pipelines.conftest import Tagged
from tests.sounds import sine, wav, without_tag
from tests.test_checkpoint import edit_card, save

Tag = Callable[..., Tagged]


def test_every_track_is_scored_once(tag: Tag, music: Path) -> None:
    first = tag(music)
    assert first.scores.schema.names == schema.scores_schema(pa.string()).names
    assert first.scores.num_rows == first.enriched.num_rows == 8
    assert len(set(first.scores["track_id"].to_pylist())) == 8
    for target in schema.TARGETS:
        assert pc.min(first.scores[target]).as_py() >= -1
        assert pc.max(first.scores[target]).as_py() <= 1
        assert pc.count_distinct(first.scores[target]).as_py() >= 4, "the moods differ"
    assert set(first.enriched["tag_status"].to_pylist()) == {"scored"}
    assert first.rejects.num_rows == 0
    (marker,) = first.output.glob("enriched/run_date=*/_SUCCESS")
    assert json.loads(marker.read_text())["n_rows"] == 8


def test_a_second_run_decodes_nothing_and_says_so(tag: Tag, music: Path) -> None:
    first = tag(music)
    marker = next(first.output.glob("enriched/*/_SUCCESS"))
    published = marker.read_bytes()
    second = tag(music)
    assert second.summary.n_tried == 0
    assert "nothing to decode" in second.text
    assert not second.summary.was_published
    assert marker.read_bytes() == published
    assert second.scores.num_rows == 8


def test_a_touched_file_is_scored_again_and_alone(tag: Tag, music: Path) -> None:
    tag(music)
    os.utime(music / "calm-1.mp3", ns=(1, 10**18))
    second = tag(music)
    assert second.summary.n_tried == 1
    rows = second.scores.filter(pc.equal(second.scores["track_id"], "calm-1.mp3"))
    assert len(set(rows["audio_version"].to_pylist())) == rows.num_rows == 2
    assert second.enriched.num_rows == 8
    assert second.summary.was_published


def test_changes_may_be_ignored(tag: Tag, music: Path) -> None:
    ignoring = {"uri": str(music), "changes": "ignore"}
    tag(ignoring)
    os.utime(music / "calm-1.mp3", ns=(1, 10**18))
    (music / "new.mp3").write_bytes((music / "sad-1.mp3").read_bytes())
    second = tag(ignoring)
    assert second.summary.n_tried == 1
    assert second.enriched.num_rows == 9
    assert tag(music).summary.n_tried == 1, "detecting again finds the touched file"


def test_another_checkpoint_scores_all_again(tag: Tag, music: Path, tmp_path: Path) -> None:
    models_before = set(tag(music).scores["model_id"].to_pylist())
    checkpoint = save(tmp_path / "checkpoint")
    second = tag(music, model={"uri": str(checkpoint)})
    assert second.summary.n_tried == 8
    assert second.scores.num_rows == 16
    assert second.enriched.num_rows == 8
    (ours,) = set(second.enriched["model_id"].to_pylist())
    assert ours not in models_before
    assert tag(music).summary.n_tried == 0, "the first model's scores are still there"


def test_a_version_column_decides_alone(tag: Tag, music: Path, tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"

    def write(version: str) -> None:
        path.write_text(
            f"track_id,audio_uri,etag\n1,music/calm-1.mp3,{version}\n2,music/sad-1.mp3,x1\n"
        )

    catalog = {"uri": str(path), "version_column": "etag"}
    write("v1")
    assert tag(catalog).summary.n_tried == 2
    os.utime(music / "sad-1.mp3", ns=(1, 1))
    assert tag(catalog).summary.n_tried == 0
    write("v2")
    again = tag(catalog)
    assert again.summary.n_tried == 1
    assert again.enriched["track_id"].type == pa.int64()


def many_types(n: int) -> pa.Table:
    """A dozen and more column types, nulls among them, metadata everywhere."""
    day = datetime.datetime(2026, 3, 29, 2, 30)
    columns = {
        "track_id": pa.array([f"träck/{i}" for i in range(n)]),
        "year": pa.array([None, *range(1, n)], pa.int16()),
        "plays": pa.array([2**63 + i for i in range(n)], pa.uint64()),
        "added": pa.array([day] * n, pa.timestamp("us", tz="Europe/Berlin")),
        "nanos": pa.array([None, *range(1, n)], pa.timestamp("ns")),
        "price": pa.array([decimal.Decimal("9.99")] * n, pa.decimal128(12, 2)),
        "genres": pa.array([["pop", None], [], None] * n, pa.list_(pa.string()))[:n],
        "credits": pa.array([[("by", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        "label": pa.array(["a", None, "b"] * n).dictionary_encode()[:n],
        "note": pa.nulls(n, pa.string()),
        "album": pa.array([{"id": 1, "name": "x"}, None] * n)[:n],
        "released": pa.array([20_000] * n, pa.date32()),
        "blob": pa.array([b"\0\xff"] * n, pa.binary()),
        "vector": pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
        "long": pa.array(["y"] * n, pa.large_string()),
        "flag": pa.array([True, None, False] * n)[:n],
        "nothing": pa.nulls(n),
        "audio_uri": pa.array([f"music/{m}-{k}.mp3" for m in ("calm", "sad") for k in (1, 2)][:n]),
    }
    fields = [
        pa.field(name, array.type, metadata={"origin": "ä"} if name == "year" else None)
        for name, array in columns.items()
    ]
    return pa.table(columns, schema=pa.schema(fields, metadata={"owner": "data team"}))


def test_the_catalogs_columns_come_back_type_for_type(
    tag: Tag, music: Path, tmp_path: Path
) -> None:
    pq.write_table(many_types(4), tmp_path / "catalog.parquet")
    tagged = tag(tmp_path / "catalog.parquet")
    expected = pq.read_table(tmp_path / "catalog.parquet")
    (part,) = Path(tagged.summary.night_uri).glob("*.parquet")
    found = pq.read_table(part)
    assert found.select(expected.schema.names).schema.equals(expected.schema, check_metadata=True)
    assert found.select(expected.schema.names).equals(expected)
    assert found.schema.names == expected.schema.names + [f.name for f in schema.ENRICHED_FIELDS]
    assert [found.schema.field(f.name).type for f in schema.ENRICHED_FIELDS] == [
        f.type for f in schema.ENRICHED_FIELDS
    ]


def test_a_prefix_renames_our_columns(tag: Tag, music: Path, tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    path.write_text("track_id,audio_uri,valence\n1,music/calm-1.mp3,old\n")
    with pytest.raises(CatalogError, match=r"columns named valence; set output.prefix"):
        tag(path)
    tagged = tag(path, output={"uri": str(tmp_path / "out"), "prefix": "mer_"})
    assert tagged.enriched["valence"].to_pylist() == ["old"]
    assert tagged.enriched["mer_tag_status"].to_pylist() == ["scored"]
    assert -1 <= tagged.enriched["mer_valence"][0].as_py() <= 1


def test_broken_tracks_are_rejects_with_a_reason(tag: Tag, music: Path, tmp_path: Path) -> None:
    (music / "noise.mp3").write_bytes(b"this is no music" * 100)
    (music / "empty.mp3").write_bytes(b"")
    (music / "silence.wav").write_bytes(wav(0 * sine(2)))
    (music / "folder.mp3").mkdir()
    os.mkfifo(music / "pipe.mp3")
    names = [*sorted(p.name for p in music.iterdir()), "gone.mp3"]
    rows = "".join(f"{name},music/{name}\n" for name in names)
    (tmp_path / "catalog.csv").write_text("track_id,audio_uri\n" + rows)
    tagged = tag(tmp_path / "catalog.csv", max_reject_rate=1)
    status = dict(
        zip(*tagged.enriched.select(["track_id", "tag_status"]).to_pydict().values(), strict=True)
    )
    assert {name: s for name, s in status.items() if s != "scored"} == {
        "noise.mp3": "not_audio",
        "empty.mp3": "empty",
        "silence.wav": "silent",
        "folder.mp3": "not_audio",
        "pipe.mp3": "not_audio",
        "gone.mp3": "not_found",
    }
    assert tagged.rejects.num_rows == 6
    assert tagged.rejects.schema.names == schema.rejects_schema(pa.string()).names
    assert set(tagged.rejects["attempts"].to_pylist()) == {1}
    assert tag(tmp_path / "catalog.csv", max_reject_rate=1).summary.n_tried == 0, (
        "they are permanent"
    )

    # Mended files are scored, and are rejects no more; changed limits are a new chance.
    shutil.copy(music / "calm-1.mp3", music / "noise.mp3")
    shutil.copy(music / "calm-1.mp3", music / "gone.mp3")
    mended = tag(tmp_path / "catalog.csv", max_reject_rate=1)
    assert mended.summary.n_tried == 2
    assert sorted(mended.rejects["track_id"].to_pylist()) == [
        "empty.mp3",
        "folder.mp3",
        "pipe.mp3",
        "silence.wav",
    ]
    looser = tag(tmp_path / "catalog.csv", max_reject_rate=1, audio={"min_seconds": 0.5})
    assert looser.summary.n_tried == 4
    assert set(looser.rejects["attempts"].to_pylist()) == {2}
    assert set(looser.rejects["first_run_id"].to_pylist()) == {tagged.summary.run_id}


def test_too_many_rejects_publish_nothing_until_a_person_decides(tag: Tag, music: Path) -> None:
    for number in range(8):
        (music / f"broken-{number}.mp3").write_bytes(b"no audio" * 10)
    for _ in range(2):  # running again does not get round the budget
        with pytest.raises(
            ErrorBudgetExceeded, match=r"of 1\d tracks tried since the last published night were"
        ):
            tag(music, max_reject_rate=0.3)
        out = music.parent / "out"
        assert not list(out.glob("enriched/*/_SUCCESS"))
    raised = tag(music, max_reject_rate=0.5)
    assert raised.enriched.num_rows == 16
    assert raised.scores.num_rows == 8
    (music / "broken-9.mp3").write_bytes(b"no audio")
    assert tag(music, max_reject_rate=0.3).enriched.num_rows == 17, "one bad file is no sick night"


def find_children() -> list[psutil.Process]:
    """The decoder processes that this test's Ray has started."""
    children = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "mer_batch.child" in " ".join(process.cmdline()):
                children.append(process)
    return children


def resident_bytes_of_an_idle_decoder(audio: bytes) -> int:
    """What a decoder process holds after an ordinary track."""
    checkpoint = builtin_checkpoint()
    child = Child(ScoreTask(checkpoint.card_json, checkpoint.weights), ChildLimits())
    try:
        child.outcome(GivenTrack(audio))
        assert child._process is not None
        return int(psutil.Process(child._process.pid).memory_info().rss)
    finally:
        child.close()


@pytest.mark.parametrize(
    "number, reason, timeout_seconds",
    # Long enough not to come before the blow on a busy machine, short where it is what ends it.
    [(signal.SIGSEGV, "decoder_crash", 120), (signal.SIGSTOP, "timeout", 8)],
)
def test_a_file_that_kills_or_hangs_the_decoder_costs_one_reject(
    tag: Tag,
    music: Path,
    long_mp3: bytes,
    number: signal.Signals,
    reason: str,
    timeout_seconds: float,
) -> None:
    planted = without_tag(long_mp3) * 110  # seconds of decoding
    (music / "planted.mp3").write_bytes(planted)
    idle_bytes = resident_bytes_of_an_idle_decoder(long_mp3)
    struck = threading.Event()

    def has_the_planted_file(child: psutil.Process) -> bool:
        return bool(child.memory_info().rss > idle_bytes + 1.5 * len(planted))

    def strike() -> None:
        """Hit the decoder that works on the planted file."""
        while not struck.is_set():
            for child in find_children():
                try:
                    if not has_the_planted_file(child):
                        continue
                    before = child.cpu_times().user
                    time.sleep(0.2)
                    if has_the_planted_file(child) and child.cpu_times().user - before > 0.1:
                        child.send_signal(number)
                        struck.set()
                        return
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.01)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        tagged = tag(music, audio={"timeout_seconds": timeout_seconds}, max_reject_rate=0.2)
    finally:
        struck.set()
        thread.join()
    assert tagged.rejects["reason"].to_pylist() == [reason]
    assert tagged.rejects["track_id"].to_pylist() == ["planted.mp3"]
    assert tagged.scores.num_rows == 8


def test_every_corpus_file_ends_in_exactly_one_outcome(tag: Tag, data_root: Path) -> None:
    tagged = tag(data_root / "mp3_corpus", max_reject_rate=1)
    scored, rejected = (set(t["track_id"].to_pylist()) for t in (tagged.scores, tagged.rejects))
    assert len(scored) == tagged.scores.num_rows
    assert len(rejected) == tagged.rejects.num_rows
    assert not scored & rejected
    assert len(scored | rejected) == tagged.enriched.num_rows == 230
    assert set(tagged.rejects["reason"].to_pylist()) <= set(schema.REASONS)
    assert len(scored) >= 115


def test_soundtracks(tag: Tag, data_root: Path) -> None:
    tagged = tag(data_root / "soundtracks")
    assert tagged.scores.num_rows == len(set(tagged.scores["track_id"].to_pylist())) == 360
    for target in schema.TARGETS:
        assert (
            -1 <= pc.min(tagged.scores[target]).as_py() < pc.max(tagged.scores[target]).as_py() <= 1
        )
    assert tag(data_root / "soundtracks").summary.n_tried == 0


def test_bad_checkpoints_are_refused_before_work(tag: Tag, music: Path, tmp_path: Path) -> None:
    edit_card(save(tmp_path / "checkpoint"), scale=[1, 5])
    with pytest.raises(CheckpointError):
        tag(music, model={"uri": str(tmp_path / "checkpoint")})
    assert not (tmp_path / "out").exists()


def test_manifest_and_traces(tag: Tag, music: Path) -> None:
    tagged = tag(music)
    folder = tagged.output / "runs" / tagged.summary.run_id
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["exit_code"] == 0
    assert manifest["n_scored"] == manifest["totals"]["n_scored"] == 8
    assert manifest["tracks_per_second"] > 0
    assert (folder / "config.yaml").read_text().startswith("catalog:")
    assert "8 to do" in (folder / "log").read_text()
    assert not list((tagged.output / "runs" / "_open").iterdir())


def test_pandas_reads_the_night(tag: Tag, music: Path) -> None:
    tagged = tag(music)
    frame = pandas.read_parquet(tagged.summary.night_uri)
    assert len(frame) == 8
    assert frame["valence"].between(-1, 1).all()


@pytest.mark.parametrize(
    "sizes", [[1], [40, 40, 40], [300, 1], [10_000], [3, 2_000, 3], [128] * 20]
)
def test_blocks_hold_whole_parts_but_for_huge_ones(sizes: list[int]) -> None:
    blocks = list(_spans(sizes))
    tracks = [(part, at) for block in blocks for part, *span in block for at in range(*span)]
    assert tracks == [(part, at) for part, size in enumerate(sizes) for at in range(size)]
    lengths = [sum(end - begin for _, begin, end in block) for block in blocks]
    assert all(0 < length < 2 * MAX_BLOCK_TRACKS for length in lengths)
    for part, size in enumerate(sizes):
        if size <= MAX_BLOCK_TRACKS and max(sizes) <= MAX_BLOCK_TRACKS:
            assert sum(part in [number for number, *_ in block] for block in blocks) == 1
