"""Rejects over nights: tried again by themselves or on demand; a sick night says what grew."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mer_batch.errors import ConfigError, ErrorBudgetExceeded
from tests.pipelines.conftest import Tagged

Tag = Callable[..., Tagged]
CALM = "calm-1.mp3"


def statuses(tagged: Tagged) -> dict[Any, str]:
    """The published status of every track."""
    columns = tagged.enriched.select(["track_id", "tag_status"]).to_pydict()
    return dict(zip(*columns.values(), strict=True))


def rejects(tagged: Tagged) -> dict[Any, dict[str, Any]]:
    """The rejects' rows by track."""
    return {row["track_id"]: row for row in tagged.rejects.to_pylist()}


def swap(path: Path, content: bytes) -> None:
    """Other bytes that look the same from outside: as long, and as old."""
    found = path.stat()
    path.write_bytes(content.ljust(found.st_size, b"\0")[: found.st_size])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_mended_rejects_are_scored_by_replay_alone(tag: Tag, music: Path) -> None:
    whole = {name: (music / name).read_bytes() for name in (CALM, "sad-1.mp3")}
    swap(music / CALM, b"no audio")
    (music / "short.mp3").write_bytes((music / "sad-2.mp3").read_bytes())
    first = tag(music, max_reject_rate=0.5, audio={"min_seconds": 2})
    assert {i: row["reason"] for i, row in rejects(first).items()} == {CALM: "not_audio"}
    assert f"{first.output}/rejects  (a Delta table)" in first.text, "audio must change first"

    swap(music / CALM, whole[CALM])
    options = {"max_reject_rate": 0.5, "audio": {"min_seconds": 2}}
    assert tag(music, **options).summary.n_tried == 0, "nothing tells that it is whole again"
    other = tag(music, replayed=frozenset({"silent", "timeout"}), **options)
    assert "0 rejects to replay (silent, timeout)" in other.text
    assert (other.summary.n_tried, statuses(other)[CALM]) == (0, "not_audio")

    (music / "new.mp3").write_bytes(whole["sad-1.mp3"])
    replayed = tag(music, replayed=frozenset({"not_audio"}), **options)
    assert "1 rejects to replay (not_audio)" in replayed.text
    assert replayed.summary.n_tried == 2
    assert set(statuses(replayed).values()) == {"scored"}
    assert replayed.rejects.num_rows == 0
    assert "replay CONFIG" not in replayed.text
    manifest = json.loads(
        (replayed.output / "runs" / replayed.summary.run_id / "manifest.json").read_text()
    )
    assert manifest["replayed"] == {"reasons": ["not_audio"], "n_tracks": 1}


def test_rejects_that_fail_again_make_no_sick_night(tag: Tag, music: Path) -> None:
    names = [f"bad-{number}.mp3" for number in range(6)]
    for name in names:
        (music / name).write_bytes(b"no audio" * 10)
    first = tag(music, max_reject_rate=0.5)
    again = tag(music, replayed=frozenset({"not_audio"}), max_reject_rate=0)
    assert again.summary.n_tried == 6
    assert {row["attempts"] for row in rejects(again).values()} == {2}
    for name, row in rejects(again).items():
        assert row["first_seen"] == rejects(first)[name]["first_seen"] < row["last_seen"]
        assert row["first_run_id"] == first.summary.run_id
        assert row["last_run_id"] == again.summary.run_id
    assert json.loads(next(again.output.glob("enriched/*/_SUCCESS")).read_text())["run_id"] == (
        again.summary.run_id
    )
    # But a new track that fails beside them does.
    (music / "new.mp3").write_bytes(b"no audio at all")
    with pytest.raises(
        ErrorBudgetExceeded, match=r"1 of 1 tracks tried since .* not_audio 100\.0%"
    ):
        tag(music, replayed=frozenset({"not_audio"}), max_reject_rate=0)


def test_without_a_reason_replay_names_those_there_are(tag: Tag, music: Path) -> None:
    for number in range(2):
        (music / f"bad-{number}.mp3").write_bytes(b"no audio" * 10)
    (music / "empty.mp3").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"reason=REASON\[,REASON\.\.\.\] .* holds no rejects"):
        tag(music, replayed=frozenset())
    assert not (music.parent / "out").exists()
    tagged = tag(music, max_reject_rate=1)
    table = f"'{tagged.output}/rejects/*.parquet'"
    found = duckdb.sql(
        f"SELECT reason, count(*) FROM {table} GROUP BY reason ORDER BY 2"
    ).fetchall()
    assert found == [("empty", 1), ("not_audio", 2)], "any reader opens the table"
    with pytest.raises(ConfigError, match=r"out holds not_audio 2, empty 1$"):
        tag(music, replayed=frozenset())


def test_a_passing_fault_is_tried_again_every_night(tag: Tag, music: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (CALM, "sad-1.mp3"):
        shutil.move(music / name, elsewhere / name)
        (music / name).symlink_to(elsewhere / name)
    catalog = {"uri": str(music), "allowed_roots": [str(music)]}
    nights = [tag(catalog, max_reject_rate=0.3)]
    # Two known rejects of two tracks tried: no sick night, however often.
    nights.append(tag(catalog, max_reject_rate=0))
    assert nights[1].summary.n_tried == 2
    rows = rejects(nights[1])
    assert set(rows) == {CALM, "sad-1.mp3"}
    for name, row in rows.items():
        assert (row["reason"], row["attempts"]) == ("access_denied", 2)
        assert row["message"] == "a link leads out of catalog.allowed_roots"
        assert row["first_run_id"] == nights[0].summary.run_id
        assert row["last_run_id"] == nights[1].summary.run_id
        assert row["first_seen"] < row["last_seen"]
        assert statuses(nights[1])[name] == "access_denied"
    (music / CALM).unlink()
    shutil.copy2(elsewhere / CALM, music / CALM)
    nights.append(tag(catalog, max_reject_rate=0))
    assert nights[2].summary.n_tried == 2
    assert statuses(nights[2])[CALM] == "scored"
    (row,) = rejects(nights[2]).values()
    assert (row["track_id"], row["attempts"]) == ("sad-1.mp3", 3)
    # Another list of roots lets it through.
    wider = {**catalog, "allowed_roots": [str(music), str(elsewhere)]}
    assert set(statuses(tag(wider)).values()) == {"scored"}


def test_a_sick_night_publishes_nothing_and_says_what_grew(tag: Tag, music: Path) -> None:
    (music / "empty.mp3").write_bytes(b"")
    good = tag(music, run_date="2026-11-21", max_reject_rate=0.2)
    night = Path(good.summary.night_uri)
    published = {path: path.read_bytes() for path in night.iterdir()}
    whole = {path.name: path.read_bytes() for path in music.glob("*-2.mp3")}
    for name in whole:
        (music / name).write_bytes(b"no audio" * 10)
    for number in range(3):
        shutil.copy(music / CALM, music / f"new-{number}.mp3")
    for _ in range(2):  # running again does not get round it
        with pytest.raises(ErrorBudgetExceeded) as caught:
            tag(music, run_date="2026-11-22", max_reject_rate=0.2)
        assert re.search(
            r"of 7 tracks tried since .* Grew since the night of 2026-11-21: not_audio \d+\.\d% of "
            r"tracks tried \(0\.0% then\)\. What was scored is kept",
            str(caught.value),
        )
    assert {path: path.read_bytes() for path in night.iterdir()} == published
    assert [path.name for path in night.parent.iterdir()] == ["run_date=2026-11-21"]
    runs = sorted(path for path in (good.output / "runs").iterdir() if path.name[0].isdigit())
    manifest = json.loads((runs[-1] / "manifest.json").read_text())
    assert (manifest["exit_code"], manifest["budget"]["since"]) == (3, "2026-11-21")
    grown = manifest["budget"]["reasons"]["not_audio"]
    assert grown["n_rejected"] >= 2
    assert grown["share"] > 0.2
    assert grown["share_then"] == 0

    for name, content in whole.items():
        (music / name).write_bytes(content)
    kept = good.scores.num_rows
    mended = tag(music, run_date="2026-11-22", max_reject_rate=0.2)
    assert mended.scores.num_rows == 8 + 3 + 4
    assert kept >= 8
    assert statuses(mended) == {
        **dict.fromkeys([path.name for path in music.glob("*.mp3")], "scored"),
        "empty.mp3": "empty",
    }
    assert {path: path.read_bytes() for path in night.iterdir()} == published
