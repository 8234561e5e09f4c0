"""Catalogs that are out to break a run: any id gets its outcome, no change goes unseen."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch.errors import CatalogError, MerBatchError
from mer_batch.storage import Location, Storage
from tests.pipelines.conftest import Tagged
from tests.test_catalog import put_table

Tag = Callable[..., Tagged]
Place = tuple[Storage, Location]
CALM = "calm-1.mp3"


def statuses(tagged: Tagged) -> dict[Any, str]:
    """The published status of every track."""
    columns = tagged.enriched.select(["track_id", "tag_status"]).to_pydict()
    return dict(zip(*columns.values(), strict=True))


IDS = [
    "\U0001f3b5", "é", "e\u0301", "a/../../b", "new\nline", "NUL\0", "NUL", "'; DROP TABLE x; --",
    '"', " ", "x" * 2**20, "A", "a", "../../etc/passwd", "\u202e", "01", "1",
]  # fmt: skip


def test_any_id_goes_all_the_way(tag: Tag, music: Path, tmp_path: Path) -> None:
    bad = IDS[::4]
    (music / "empty.mp3").write_bytes(b"")
    uris = ["music/empty.mp3" if i in bad else f"music/{CALM}" for i in IDS]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"track_id": IDS, "audio_uri": uris}), path)
    first = tag(path, max_reject_rate=0.5)
    expected = {i: "empty" if i in bad else "scored" for i in IDS}
    assert statuses(first) == expected
    assert sorted(first.scores["track_id"].to_pylist()) == sorted(set(IDS) - set(bad))
    assert sorted(first.rejects["track_id"].to_pylist()) == sorted(bad)
    assert tag(path, max_reject_rate=0.5).summary.n_tried == 0
    shutil.copy(music / CALM, music / "empty.mp3")
    mended = tag(path)
    assert mended.summary.n_tried == len(bad)
    assert mended.rejects.num_rows == 0
    assert set(statuses(mended).values()) == {"scored"}


def test_csv_ids_keep_their_type_whatever_ids_come_and_go(
    tag: Tag, music: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.csv"

    def night(*ids: str, output: str) -> Tagged:
        path.write_text("track_id,audio_uri\n" + "".join(f"{i},music/{CALM}\n" for i in ids))
        return tag(path, output={"uri": str(tmp_path / output)})

    assert set(statuses(night("0", "1", "A7", output="text"))) == {"0", "1", "A7"}
    fewer = night("0", "1", output="text")
    assert set(statuses(fewer)) == {"0", "1"}
    assert fewer.summary.n_tried == 0
    assert set(statuses(night("0", "1", output="whole"))) == {0, 1}
    with pytest.raises(CatalogError, match=r"1 ids that are not int64 .* 'A7'; mend them"):
        night("0", "1", "A7", output="whole")


@pytest.fixture
def catalog(
    place: Place, music: Path, request: pytest.FixtureRequest
) -> tuple[Callable[..., pa.Table], dict[str, Any]]:
    """Writes a catalog of the music with some titles; and the sections of a run on it."""
    storage, folder = place
    location = folder.child("c.parquet")
    paths = sorted(music.iterdir())

    def write(title: str, *, n: int = 8, n_cut: int = 0) -> pa.Table:
        table = pa.table(
            {
                "track_id": [path.name for path in paths[:n]],
                "audio_uri": [str(path) for path in paths[:n]],
                "title": [title] * n,
            }
        )
        put_table(storage, location, table)
        if n_cut:
            storage.write(location, storage.read(location)[:-n_cut])
        return table

    sections: dict[str, Any] = {
        "catalog": {"uri": location.uri, "allowed_roots": [str(music)]},
    }
    if location.is_s3:
        sections["storage"] = {"endpoint_url": request.getfixturevalue("s3").endpoint}
    return write, sections


@pytest.mark.parametrize(
    ("place", "change"),
    [("local", "replaced"), ("local", "appended to"), ("local", "cut off"), ("s3", "replaced")],
    indirect=["place"],
)
def test_a_catalog_that_changes_while_a_run_works_is_not_published(
    tag: Tag, tmp_path: Path, catalog: Any, change: str
) -> None:
    write, sections = catalog
    write("old", n=6)

    def disturb() -> None:
        """Change the catalog once the run has read it and holds the output."""
        for _ in range(6_000):
            if list(tmp_path.glob("out/runs/_open/*")):
                break
            time.sleep(0.01)
        kinds = {"replaced": {"n": 6}, "appended to": {"n": 8}, "cut off": {"n": 6, "n_cut": 50}}
        write("new", **kinds[change])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with pytest.raises(MerBatchError, match="changed while the run read it") as caught:
            tag(**sections)
    finally:
        thread.join()
    assert caught.value.exit_code == 1
    assert not list(tmp_path.glob("out/enriched/run_date=*"))
    if change == "cut off":
        with pytest.raises(CatalogError) as refused:
            tag(**sections)
        assert refused.value.exit_code == 2
    n = 8 if change == "appended to" else 6
    write("new", n=n)
    after = tag(**sections)
    assert after.summary.n_tried == n - 6, "what was scored before is kept"
    assert after.enriched["title"].to_pylist() == ["new"] * n
    assert set(statuses(after).values()) == {"scored"}
