"""A catalog that changes from night to night, its output, and what must be there in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mer_batch.audio.decode import AudioLimits
from mer_batch.checkpoint import Checkpoint, builtin_checkpoint
from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.config import StorageConfig
from mer_batch.delta import open_table, part_paths
from mer_batch.enrich import MARKER
from mer_batch.score import Scorer, track_score
from mer_batch.storage import Location, Storage, parse_uri
from mer_batch.task import ExtractTask, GivenTrack, ScoreTask
from tests.chaos.watch import Watch

Command = Literal["tag", "extract", "compact"]

#: What a track may be instead of music, and the reason that it ends with.
BROKEN = {"broken": "not_audio", "empty": "empty", "missing": "not_found"}

_ROOT = Path(__file__).parents[2]
_ROUNDING = 1e-5


@cache
def pieces() -> dict[str, bytes]:
    """Music for three seconds, by mood; scores are far apart."""
    return {mood: encode_mp3(compose(mood, 1, seconds=3)) for mood in MOODS}


@cache
def scores_of(mood: str) -> list[tuple[float, float]]:
    """Valence and arousal of a piece as decoded, and as scored again from features."""
    checkpoint = builtin_checkpoint()
    given = GivenTrack(pieces()[mood])
    decoded, _ = ScoreTask(checkpoint.card_json, checkpoint.weights).worker(AudioLimits())(given)
    task = ExtractTask(checkpoint.feature_set, "float16")
    features = task.outcome(*task.worker(AudioLimits())(given))
    n_frames = np.full(len(features.segments), features.n_frames)
    outputs = Scorer(checkpoint.function()).outputs(features.segments.astype(np.float32), n_frames)
    return [(decoded["valence"], decoded["arousal"]), track_score(outputs).mean]


class World:
    """A folder with music, a catalog, models and an output.

    Parameters
    ----------
    folder : Path
        Of its own; may not be there.
    rng : random.Random
        Decides what changes.
    output_uri : str, optional
        ``<folder>/out`` by default.
    endpoint : str, optional
        Of the S3 server that the output lies on.
    n_tracks : int
        At first; they become more.

    Attributes
    ----------
    tracks : dict of str to str
        Mood of every track, or one of ``BROKEN``, by its id.
    n_actors : int
        Of the pool that scores for `tag`; none at first.
    watch : Watch
        What has been seen of the output from outside the runs.
    """

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        *,
        output_uri: str | None = None,
        endpoint: str | None = None,
        n_tracks: int = 6,
    ) -> None:
        self.folder = folder
        self.tracks: dict[str, str] = {}
        self.has_features = False
        self.n_actors = 0
        self._rng = rng
        self._endpoint = endpoint
        self._n_titles = 0
        self._n_models = 0
        self._half_width = 0.0
        self.run_date = "2026-11-22"
        self._nights: set[str] = set()
        self.output = parse_uri(output_uri or str(folder / "out"))
        self.storage = Storage(StorageConfig(endpoint_url=endpoint))
        self.watch = Watch(self.storage, self.output)
        (folder / "music").mkdir(parents=True)
        (folder / "logs").mkdir()
        self.new_model()
        for _ in range(n_tracks):
            self.add_track(rng.choice(list(pieces())))
        self.add_track("broken")

    # ------------------------------------------------------------------ what changes

    def retitle(self) -> None:
        """Change the catalog in a column that is not ours: the night is another one."""
        self._n_titles += 1
        ids = list(self.tracks)
        catalog = {
            "track_id": ids,
            "audio_uri": [f"music/{track_id}.mp3" for track_id in ids],
            "title": [f"{track_id}, edition {self._n_titles}" for track_id in ids],
        }
        new = self.folder / ".catalog.parquet"
        pq.write_table(pa.table(catalog), new)
        new.replace(self.folder / "catalog.parquet")

    def next_night(self) -> None:
        """Let runs publish another night."""
        self.run_date = f"2026-12-{len(self._nights) % 28 + 1:02}"

    def new_model(self) -> None:
        """A model whose intervals are wider: everything is to be scored again."""
        self._n_models += 1
        self._half_width = 0.01 * self._n_models
        builtin = builtin_checkpoint()
        card = json.loads(builtin.card_json)
        card["intervals"]["half_width"] = dict.fromkeys(("valence", "arousal"), self._half_width)
        model = self._model
        model.mkdir()
        (model / "card.json").write_text(json.dumps(card))
        (model / "weights.safetensors").write_bytes(builtin.weights)

    def new_audio(self) -> None:
        """Add two tracks; replace, break and mend one each."""
        rng, moods = self._rng, list(pieces())
        for _ in range(2):
            self.add_track(rng.choice(moods))
        good = [track_id for track_id, kind in self.tracks.items() if kind not in BROKEN]
        bad = [track_id for track_id, kind in self.tracks.items() if kind in BROKEN]
        changed, broken = rng.sample(good, 2)
        self._write(changed, rng.choice([m for m in moods if m != self.tracks[changed]]))
        self._write(broken, rng.choice(list(BROKEN)))
        self._write(rng.choice(bad), rng.choice(moods))
        self.has_features = False
        self.retitle()

    def add_track(self, kind: str) -> None:
        """Add a track of a mood, or one of ``BROKEN``."""
        self.has_features = False
        self._write(f"t{len(self.tracks):03}", kind)
        self.retitle()

    def _write(self, track_id: str, kind: str) -> None:
        self.tracks[track_id] = kind
        path = self.folder / "music" / f"{track_id}.mp3"
        content = {**pieces(), "broken": b"no music", "empty": b""}.get(kind)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)

    @property
    def _model(self) -> Path:
        return self.folder / f"model-{self._n_models}"

    # ------------------------------------------------------------------ runs

    def config(self, command: Command, *, lease_seconds: float = 60) -> Path:
        """The configuration of a run as of now."""
        content: dict[str, Any] = {
            "catalog": {"uri": str(self.folder / "catalog.parquet")},
            "output": {"uri": self.output.uri, "lease_seconds": lease_seconds},
            "storage": {"endpoint_url": self._endpoint},
            "ray": {"num_cpus": 2},
            "max_reject_rate": 1.0,
        }
        if command != "extract":
            content |= {"model": {"uri": str(self._model)}, "run_date": self.run_date}
            content |= {"scoring": {"actors": self.n_actors, "batch_segments": 4}}
        path = self.folder / f"{command}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def start(
        self, command: Command, environment: dict[str, str], *, lease_seconds: float = 60
    ) -> subprocess.Popen[bytes]:
        """Start a run; what it says goes to a file under ``logs/``."""
        config = self.config(command, lease_seconds=lease_seconds)
        n_runs = len(list((self.folder / "logs").iterdir()))
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with open(self.folder / "logs" / f"{n_runs:03}-{command}", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mer_batch", command, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **environment},
                start_new_session=True,
            )

    def last_log(self) -> str:
        """What the latest run has said."""
        return max((self.folder / "logs").iterdir()).read_text()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A reader in a process of its own, that looks all the while."""
        command = [sys.executable, "-m", "tests.chaos.watch", self.output.uri]
        command += [self._endpoint] if self._endpoint else []
        reader = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        try:
            yield
            words, _ = reader.communicate(timeout=120)
        finally:
            reader.kill()
            reader.wait()
        assert reader.returncode == 0, f"the reader ended with {reader.returncode}"
        report = json.loads(words)
        assert not report["faults"], report["faults"]
        assert report["seen"]["looks"] > 1, report

    # ------------------------------------------------------------------ what must hold

    def check_between(self) -> None:
        """What must hold whenever a run has died: what readers see."""
        self.watch.look()
        assert not self.watch.faults, self.watch.faults

    def check_complete(self, command: Command) -> None:
        """What must hold when a run has come to its end."""
        self.check_results(command)
        self._check_leftovers()

    def check_results(self, command: Command) -> None:
        """The same, but that something may be left for the next run to clear up."""
        self.check_between()
        if command == "compact":
            self._check_merged()
            return
        if command == "tag":
            self._check_night()
            self._check_scores()
        else:
            self._check_features()
            self.has_features = True
        self._check_rejects("scores" if command == "tag" else "features")

    def _check_merged(self) -> None:
        """What can be merged is, of each kind of features as well; those here are of one."""
        for table in ("scores", "features", "rejects"):
            assert len(self._named(table)) <= 1, self._named(table)

    def _check_night(self) -> None:
        self._nights.add(self.run_date)
        night = self.output.child("enriched", f"run_date={self.run_date}")
        marker = json.loads(self.storage.read(night.child(MARKER)))
        rows = pa.concat_tables(
            self._table(night.child(part["name"])) for part in marker["parts"]
        ).to_pylist()
        catalog = pq.read_table(self.folder / "catalog.parquet").to_pylist()
        assert [{name: row[name] for name in catalog[0]} for row in rows] == catalog
        model_id = self._checkpoint().model_id
        for row in rows:
            kind = self.tracks[row["track_id"]]
            assert row["tag_status"] == BROKEN.get(kind, "scored"), row
            if kind not in BROKEN:
                assert row["model_id"] == model_id, row
                self._check_score(row, kind)

    def _check_score(self, row: dict[str, Any], mood: str) -> None:
        found = np.array([row["valence"], row["arousal"]])
        assert any(np.abs(found - known).max() < _ROUNDING for known in scores_of(mood)), (
            row,
            mood,
        )
        for target, value in zip(("valence", "arousal"), found, strict=True):
            low = max(-1.0, value - self._half_width)
            assert abs(row[f"{target}_low"] - low) < _ROUNDING, (row, self._half_width)

    def _check_scores(self) -> None:
        rows = self.rows("scores")
        rows = rows.filter(pc.field("model_id") == self._checkpoint().model_id)
        self._check_versions(rows)

    def _check_features(self) -> None:
        self._check_versions(self.rows("features", ["track_id", "audio_version"]))

    def _check_versions(self, rows: pa.Table) -> None:
        """Every good track is there once at today's version."""
        found = sorted(
            zip(*(rows[c].to_pylist() for c in ("track_id", "audio_version")), strict=True)
        )
        expected = {
            (track_id, self.storage.version(parse_uri(str(self._audio(track_id)))))
            for track_id, kind in self.tracks.items()
            if kind not in BROKEN
        }
        assert len(found) == len(set(found)), "a track is there twice"
        assert expected <= set(found), expected - set(found)

    def _check_rejects(self, product: str) -> None:
        """Every broken track is a reject, of this job or, tried already, of the other one."""
        rows = self.rows("rejects").to_pylist()
        expected = {(t, BROKEN[kind]) for t, kind in self.tracks.items() if kind in BROKEN}
        by_product = Counter((row["track_id"], row["product"]) for row in rows)
        assert not by_product or max(by_product.values()) == 1, by_product
        assert expected <= {(row["track_id"], row["reason"]) for row in rows}
        ours = {(row["track_id"], row["reason"]) for row in rows if row["product"] == product}
        assert ours <= expected, ours - expected

    def _check_leftovers(self) -> None:
        """Nothing lies there that no commit, marker or manifest names."""
        names = self._names()
        for table in ("scores", "features"):
            written = {n.partition("/")[2] for n in names if n.startswith(f"{table}/2")}
            named = set(self._named(table))
            # What was merged into another part stays for those who read an earlier version.
            assert named <= written <= named | self._replaced(table), written
        nights = {n.split("/")[1] for n in names if n.startswith("enriched/")}
        assert all(night.startswith("run_date=") for night in nights), nights
        # In a store a night that was being replaced is lost where the next run has another date.
        if not self.output.is_s3:
            assert {f"run_date={date}" for date in self._nights} <= nights
        assert not self.has_cut_short_runs()
        assert json.loads(self.storage.read(self.output.child("runs", "_lease.json")))["released"]
        # Under runs/ a file may be left that was not yet in its place, and one that was to try
        # whether the output can be written; nothing reads them.
        hidden = {n for n in names if "/." in f"/{n}"}
        assert not [n for n in hidden if not n.startswith(("runs/", ".probe-", "..probe-"))], hidden

    def has_cut_short_runs(self) -> bool:
        """Whether the next run will find one that was cut short."""
        return any(name.startswith("runs/_open/2") for name in self._names())

    # ------------------------------------------------------------------ looking

    def snapshot(self) -> dict[str, str]:
        """Every file that is published and its version, and every part that a table names.

        Not the tables' logs, as a commit that adds nothing changes nothing; nor parts that no
        commit or marker names, which whoever wrote them may take back.
        """
        folder, start = self.output.child("enriched"), len(self.output.path) + 1
        is_there = self.storage.is_folder(folder)
        files = self.storage.list_files(folder) if is_there else iter(())
        found = {entry.path[start:]: version for entry, _, version in files}
        nights = {name.removesuffix(MARKER) for name in found if name.endswith(f"/{MARKER}")}
        nights = {night for night in nights if night.startswith("enriched/run_date=")}
        published = {name: found[name] for name in found if f"{name.rpartition('/')[0]}/" in nights}
        tables = ("scores", "features", "rejects")
        return published | {f"{name}/{part}": "" for name in tables for part in self._named(name)}

    def rows(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of a table as any reader finds them."""
        parts = [
            self._table(self.output.child(table, part), columns) for part in self._named(table)
        ]
        return pa.concat_tables(parts, promote_options="default") if parts else _NO_ROWS

    def _named(self, table: str) -> list[str]:
        location = self.output.child(table)
        opened = open_table(self.storage, location)
        return part_paths(self.storage, location, opened) if opened else []

    def _replaced(self, table: str) -> set[str]:
        """Parts that an entry of a table's log has removed."""
        log = self.output.child(table, "_delta_log")
        entries = [self.storage.read(f) for f, _, _ in _listed(self.storage, log, ".json")]
        actions = [json.loads(line) for entry in entries for line in entry.splitlines()]
        return {action["remove"]["path"] for action in actions if "remove" in action}

    def _table(self, location: Location, columns: list[str] | None = None) -> pa.Table:
        content = pa.BufferReader(self.storage.read(location))
        return pq.read_table(content, columns=columns).replace_schema_metadata()

    def _names(self) -> list[str]:
        start = len(self.output.path) + 1
        return sorted(found.path[start:] for found, _, _ in self.storage.list_files(self.output))

    def _audio(self, track_id: str) -> Path:
        return self.folder / "music" / f"{track_id}.mp3"

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            (self._model / "card.json").read_bytes(),
            (self._model / "weights.safetensors").read_bytes(),
            origin="test",
        )


def _listed(storage: Storage, folder: Location, ending: str) -> list[tuple[Location, int, str]]:
    """Files below a folder, if it is there, whose names end so."""
    if not storage.is_folder(folder):
        return []
    return [entry for entry in storage.list_files(folder) if entry[0].path.endswith(ending)]


_NO_ROWS = pa.table(
    {
        n: pa.array([], pa.string())
        for n in ("track_id", "product", "reason", "model_id", "audio_version")
    }
)
