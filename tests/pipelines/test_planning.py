"""``mer-batch plan``: what would be done, at what price; nothing is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_batch.config import StorageConfig, TagConfig, parse_config
from mer_batch.lease import Lease, lease_location
from mer_batch.pipelines import planning
from mer_batch.storage import Storage, parse_uri
from tests.pipelines.conftest import Extracted, Tagged

Tag = Callable[..., Tagged]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def config(tmp_path: Path, music: Path) -> Path:
    path = tmp_path / "tag.yaml"
    path.write_text(f"catalog: {{uri: {music}}}\noutput: {{uri: {tmp_path / 'out'}}}\n")
    return path


def planned(catalog: Path, output: Path, **sections: Any) -> planning.PlanSummary:
    content = {"catalog": {"uri": str(catalog)}, "output": {"uri": str(output)}, **sections}
    return planning.run(parse_config(TagConfig, content, origin="test"))


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with what changes when it does."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def test_a_plan_before_the_first_night_writes_nothing(
    run_cli: Run, config: Path, tmp_path: Path
) -> None:
    before = files_below(tmp_path)
    shown = run_cli("plan", config, "ray.num_cpus=4", "cost_per_cpu_hour=0.5")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "catalog    8 tracks", "to do      8", "  new      8 to this model",
        "on 4 CPUs", "decoding 58 tracks/s a CPU (BENCHMARKS.md", "at 0.5 an hour",
        "would be published",
    ):  # fmt: skip
        assert words in shown.stdout
    assert files_below(tmp_path) == before


def test_a_plan_tells_what_tag_then_does(tag: Tag, music: Path, tmp_path: Path) -> None:
    (music / "broken.mp3").write_bytes(b"no audio")
    first = tag(music, max_reject_rate=0.5, run_date="2026-11-22")
    output = first.output
    there = planned(music, output, run_date="2026-11-22")
    assert (there.n_pending, there.n_done, there.n_rejected) == (0, 8, 1)
    assert there.is_published
    assert not planned(music, output, run_date="2026-11-23").is_published

    (music / "joyful-1.mp3").unlink()
    (music / "calm-1.mp3").write_bytes((music / "sad-1.mp3").read_bytes() + b"\0")
    (music / "new.mp3").write_bytes((music / "sad-1.mp3").read_bytes())
    before = files_below(output)
    found = planned(music, output, run_date="2026-11-22")
    assert files_below(output) == before
    assert (found.n_tracks, found.n_done, found.n_rejected) == (9, 6, 1)
    assert (found.n_new, found.n_changed, found.n_retried, found.n_removed) == (1, 1, 0, 1)
    assert not found.is_published
    second = tag(music, max_reject_rate=0.5, run_date="2026-11-22")
    assert second.summary.n_tried == found.n_pending == 2
    ids = second.enriched["track_id"].to_pylist()
    assert sorted(ids) == sorted(path.name for path in music.iterdir())


def test_what_has_features_is_told_apart(
    tag: Tag, extract: Callable[..., Extracted], music: Path
) -> None:
    extracted = extract(music)
    (music / "new.mp3").write_bytes((music / "sad-1.mp3").read_bytes())
    found = planned(music, extracted.output)
    assert (found.n_pending, found.n_from_features) == (9, 8)


def test_a_plan_is_made_while_another_run_holds_the_output(
    run_cli: Run, config: Path, tmp_path: Path
) -> None:
    storage, output = Storage(StorageConfig()), parse_uri(str(tmp_path / "out"))
    lease = Lease(storage, lease_location(output), "holder", seconds=600)
    try:
        assert run_cli("plan", config).returncode == 0
        assert run_cli("tag", config).returncode == 4
    finally:
        lease.release()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("catalog.uri=/no/such", "no such file or folder"),
        ("catalog.uri={twice}", "1 ids stand in more than one row"),
        ("cost_per_cpu_hour=free", "cost_per_cpu_hour='free' must be a number above 0"),
        ("model.uri=no-such-model", "no-such-model"),
    ],
)
def test_what_tag_would_refuse_is_refused(
    run_cli: Run, config: Path, tmp_path: Path, override: str, words: str
) -> None:
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.table({"track_id": ["a", "a"], "audio_uri": ["a.mp3", "b.mp3"]}), twice)
    refused = run_cli("plan", config, override.format(twice=twice))
    assert refused.returncode == 2
    assert words in refused.stderr
    assert not (tmp_path / "out").exists()
