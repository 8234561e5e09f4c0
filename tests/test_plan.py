"""What is to be done, with planted catalogs and ledgers."""

from __future__ import annotations

import datetime
import functools
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mer_batch import schema
from mer_batch.audio.decode import AudioLimits
from mer_batch.catalog import Catalog, read_catalog
from mer_batch.config import CatalogConfig, StorageConfig
from mer_batch.ledger import Ledger, Part
from mer_batch.plan import Plan, make_plan, permanent, reject_counts, with_features
from mer_batch.schema import Identity, reject_rows
from mer_batch.spill import Spill
from mer_batch.storage import Storage, parse_uri

NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
TODAY = Identity(features_id="f", model_id="m", extraction_id="e")


class Bench:
    """A catalog whose versions are stated, and a ledger to plant rows in."""

    def __init__(self, folder: Path, id_type: pa.DataType | None = None) -> None:
        self.folder = folder
        self.storage = Storage(StorageConfig())
        self.output = parse_uri(str(folder / "out"))
        self.ledger = Ledger(self.storage, self.output, id_type or pa.string())
        self.ledger.fence(1)
        self._n_commits = 0

    def catalog(
        self, versions: dict[Any, str | None], *, seconds: dict[Any, float] | None = None
    ) -> Catalog:
        ids = list(versions)
        table = pa.table(
            {
                "track_id": ids,
                "audio_uri": [f"{i}.mp3" for i in ids],
                "version": pa.array(versions.values(), pa.string()),
                "seconds": pa.array(
                    [float(n) if seconds is None else seconds.get(i) for n, i in enumerate(ids)],
                    pa.float64(),
                ),
            }
        )
        pq.write_table(table, self.folder / "catalog.parquet")
        config = CatalogConfig(
            uri=str(self.folder / "catalog.parquet"),
            version_column="version",
            duration_column="seconds",
        )
        return read_catalog(config, self.storage, taken_names=[])

    def score(self, *tracks: tuple[Any, str], identity: Identity = TODAY, **columns: Any) -> None:
        self._n_commits += 1
        rows = [
            {
                "track_id": i, "audio_version": version, "valence": 0.25, "arousal": -0.5,
                "n_segments": 1, "duration_seconds": 3.0, "features_id": identity.features_id,
                "model_id": identity.model_id, "run_id": "r", "scored_at": NOW, **columns,
            }
            for i, version in tracks
        ]  # fmt: skip
        id_type = pa.string() if isinstance(tracks[0][0], str) else pa.int64()
        table = pa.Table.from_pylist(rows, schema=schema.scores_schema(id_type))
        path = self.folder / "out" / "scores" / "r" / f"{self._n_commits}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        part = Part(f"r/{path.name}", path.stat().st_size, len(rows))
        self.ledger.commit_parts([part], run_id="r", sequence=self._n_commits)

    def reject(
        self, *tracks: tuple[Any, str, str], identity: Identity = TODAY, **columns: Any
    ) -> None:
        rows = [
            {
                "track_id": i, "audio_version": version, "reason": reason, "attempts": 2,
                "first_run_id": "first", "first_seen": NOW, "last_run_id": "r", "last_seen": NOW,
                "extraction_id": identity.extraction_id, "product": "scores", **columns,
            }
            for i, version, reason in tracks
        ]  # fmt: skip
        id_type = pa.string() if isinstance(tracks[0][0], str) else pa.int64()
        self.ledger.merge_rejects(reject_rows(rows, id_type))

    def plan(
        self,
        catalog: Catalog,
        identity: Identity = TODAY,
        *,
        detect: bool = True,
        replayed: frozenset[str] = frozenset(),
    ) -> Plan:
        return make_plan(
            catalog, self.ledger, self.storage, identity, detect_changes=detect, replayed=replayed
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def pending(plan: Plan) -> list[Any]:
    return list(plan.pending.table()["track_id"].to_pylist())


def test_everything_is_pending_at_first(bench: Bench) -> None:
    plan = bench.plan(bench.catalog({"b": "1", "a": "1"}))
    assert (pending(plan), plan.n_done, plan.n_rejected) == (["b", "a"], 0, 0)
    assert plan.pending.table().to_pylist()[1] == {
        "track_id": "a", "audio_uri": f"{bench.folder}/a.mp3", "audio_version": "1",
        "expected_seconds": 1.0, "attempts": 0, "n_doubts": 0,
        "first_run_id": None, "first_seen": None,
    }  # fmt: skip


def test_only_the_same_version_of_the_same_model_is_done(bench: Bench) -> None:
    bench.score(("done", "1"), ("changed", "1"), ("gone from the catalog", "1"))
    bench.score(("other model", "1"), identity=Identity("f", "other", "e"))
    bench.score(("other features", "1"), identity=Identity("other", "m", "e"))
    versions = dict.fromkeys(["new", "done", "other model", "other features"], "1")
    plan = bench.plan(bench.catalog({**versions, "changed": "2"}))
    assert pending(plan) == ["new", "other model", "other features", "changed"]
    assert (plan.n_done, plan.n_rejected) == (1, 0)


def test_a_permanent_reject_holds_for_its_version_and_limits(bench: Bench) -> None:
    bench.reject(("silent", "1", "silent"), ("mended", "1", "truncated"))
    bench.reject(("other limits", "1", "too_long"), identity=Identity("f", "m", "other"))
    bench.reject(*((reason, "1", reason) for reason in sorted(schema.TRANSIENT_REASONS)))
    versions: dict[Any, str | None] = {"silent": "1", "mended": "2", "other limits": "1"}
    plan = bench.plan(bench.catalog({**versions, "access_denied": "1", "storage_error": "1"}))
    assert pending(plan) == ["mended", "other limits", "access_denied", "storage_error"]
    assert (plan.n_done, plan.n_rejected) == (0, 1)
    assert plan.pending.table()["attempts"].to_pylist() == [2] * 4
    assert plan.pending.table()["first_run_id"].to_pylist() == ["first"] * 4
    assert plan.pending.table()["first_seen"].to_pylist() == [NOW] * 4


def test_a_reject_holds_under_another_model(bench: Bench) -> None:
    bench.reject(("silent", "1", "silent"))
    assert pending(bench.plan(bench.catalog({"silent": "1"}), Identity("f", "other", "e"))) == []


def test_a_score_counts_more_than_an_old_reject(bench: Bench) -> None:
    bench.reject(("a", "1", "silent"))
    bench.score(("a", "1"))
    plan = bench.plan(bench.catalog({"a": "1"}))
    assert (pending(plan), plan.n_done, plan.n_rejected) == ([], 1, 0)


def test_changes_can_be_ignored(bench: Bench) -> None:
    bench.score(("a", "1"))
    bench.reject(("b", "1", "silent"))
    plan = bench.plan(bench.catalog({"a": "2", "b": "2", "c": "2"}), detect=False)
    assert (pending(plan), plan.n_done, plan.n_rejected) == (["c"], 1, 1)
    assert plan.pending.table()["audio_version"].to_pylist() == [None]
    assert plan.today.index.ids.to_pylist() == ["a", "b", "c"]


def test_versions_that_the_catalog_does_not_state_are_the_stores(bench: Bench) -> None:
    (bench.folder / "b.mp3").write_bytes(b"123")
    plan = bench.plan(bench.catalog({"a": "stated", "b": None, "c": "", "d": "7"}))
    stated, b, missing, d = plan.pending.table()["audio_version"].to_pylist()
    assert (stated, missing, d) == ("stated", "", "7")
    assert b.startswith("3-")


def test_a_file_that_changes_is_pending_again(bench: Bench) -> None:
    path = bench.folder / "a.mp3"
    path.write_bytes(b"123")
    catalog = bench.catalog({"a": None})
    (version,) = bench.plan(catalog).pending.table()["audio_version"].to_pylist()
    bench.score(("a", version))
    assert pending(bench.plan(catalog)) == []
    os.utime(path, (1, 1))
    assert pending(bench.plan(catalog)) == ["a"]


def test_a_file_that_was_missing_is_pending_once_it_is_there(bench: Bench) -> None:
    catalog = bench.catalog({"a": None})
    bench.reject(("a", "", "not_found"))
    assert pending(bench.plan(catalog)) == []
    (bench.folder / "a.mp3").write_bytes(b"here")
    assert pending(bench.plan(catalog)) == ["a"]


def test_whole_ids_are_planned_the_same_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pa.int64())
    bench.score((2**53, "1"))
    bench.reject((-5, "1", "silent"))
    plan = bench.plan(bench.catalog({2**53: "1", 2**53 + 1: "1", -5: "1"}))
    assert pending(plan) == [2**53 + 1]


@pytest.mark.parametrize("reason", sorted({*schema.DOUBTFUL_REASONS, schema.VANISHED_REASON}))
def test_what_may_be_the_machines_fault_is_tried_once_more(bench: Bench, reason: str) -> None:
    catalog = bench.catalog({"a": "1"})
    bench.reject(("a", "1", reason), attempts=1)
    assert pending(bench.plan(catalog)) == ["a"]
    bench.reject(("a", "1", reason), attempts=2)
    assert pending(bench.plan(catalog)) == []


def test_only_doubts_about_the_same_audio_are_held_against_a_track(bench: Bench) -> None:
    bench.reject(("same", "1", "timeout"), ("changed", "1", "timeout"), attempts=1)
    bench.reject(("other fault", "1", "storage_error"), ("seen", "1", "not_found"), attempts=1)
    versions: dict[Any, str | None] = {"same": "1", "changed": "2", "other fault": "1", "new": "1"}
    catalog = bench.catalog({**versions, "seen": "1"})
    assert bench.plan(catalog).pending.table()["n_doubts"].to_pylist() == [1, 0, 0, 0, 1]
    unversioned = bench.plan(catalog, detect=False).pending.table()
    assert unversioned["n_doubts"].to_pylist() == [1, 1, 0, 0, 1]


def test_permanent_rejects_are_those_of_this_extraction(bench: Bench) -> None:
    bench.reject(("a", "1", "silent"), ("b", "1", "storage_error"))
    bench.reject(("c", "1", "silent"), identity=Identity("f", "m", "other"))
    assert permanent(bench.ledger.rejects(), TODAY)["track_id"].to_pylist() == ["a"]


def test_every_extraction_has_its_own_history_of_a_track(bench: Bench) -> None:
    other = Identity("g", "m", "other")
    later = NOW + datetime.timedelta(hours=1)
    bench.reject(("a", "1", "timeout"), ("b", "1", "timeout"), attempts=1)
    bench.reject(
        ("a", "1", "silent"), identity=other, attempts=5, last_seen=later, product="features"
    )
    catalog = bench.catalog({"a": "1", "b": "1"})
    assert bench.plan(catalog).pending.table()["attempts"].to_pylist() == [1, 1]
    under_other = bench.plan(catalog, other)
    assert (pending(under_other), under_other.n_rejected) == (["b"], 1)
    third = bench.plan(catalog, Identity("h", "m", "third")).pending.table()
    assert third["track_id"].to_pylist() == ["a", "b"], "once each"
    assert third["attempts"].to_pylist() == [5, 1], "the latest that is known"


@pytest.mark.parametrize("detect", [True, False])
def test_rejects_are_replayed_by_their_reason(bench: Bench, detect: bool) -> None:
    bench.reject(("a", "1", "silent"), ("b", "1", "too_long"), ("c", "1", "timeout"))
    bench.reject(("d", "1", "storage_error"), ("done", "1", "silent"))
    bench.reject(("e", "1", "silent"), identity=Identity("f", "m", "other"))
    bench.reject(("f", "1", "silent"), product="features")
    bench.score(("done", "1"))
    catalog = bench.catalog(dict.fromkeys([*"abcdef", "done", "new"], "1"))

    def replayed(*reasons: str) -> tuple[list[Any], int, int]:
        plan = bench.plan(catalog, detect=detect, replayed=frozenset(reasons))
        return pending(plan), plan.n_replayed, plan.n_rejected

    assert replayed() == (["d", "e", "new"], 0, 4)
    assert replayed("silent") == (["a", "d", "e", "f", "new"], 3, 2)
    assert replayed("too_long", "timeout") == (["b", "c", "d", "e", "new"], 2, 2)
    assert replayed("storage_error") == (["d", "e", "new"], 1, 4)
    assert replayed("not_found") == (["d", "e", "new"], 0, 4)
    assert replayed(*schema.REASONS) == ([*"abcdef", "new"], 6, 0)
    plan = bench.plan(catalog, detect=detect, replayed=frozenset({"silent"}))
    assert plan.pending.table()["attempts"].to_pylist() == [2, 2, 2, 2, 0]
    assert plan.pending.table()["first_run_id"].to_pylist() == ["first"] * 4 + [None]


def test_what_was_done_under_other_limits_is_not_counted_as_a_reject_too(bench: Bench) -> None:
    bench.reject(("a", "1", "too_long"), ("b", "1", "silent"))
    bench.score(("a", "1"))
    plan = bench.plan(bench.catalog({"a": "1", "b": "1"}))
    assert reject_counts(plan, bench.ledger.rejects("e")) == {"silent": 1}
    assert (plan.n_done, plan.n_rejected) == (1, 1)


def counts(plan: Plan) -> dict[str, int]:
    names = ("n_new", "n_changed", "n_retried", "n_removed", "n_done", "n_rejected")
    return {name[2:]: getattr(plan, name) for name in names if getattr(plan, name)}


def test_what_is_to_do_is_told_by_kind(bench: Bench) -> None:
    bench.score(("done", "1"), ("changed", "0"), ("was here", "1"), ("was here", "2"))
    bench.score(("other model", "1"), identity=Identity("f", "other", "e"))
    bench.reject(("held", "1", "silent"), ("retried", "1", "storage_error"), ("left", "1", "empty"))
    bench.reject(("mended", "0", "truncated"), ("was here", "1", "silent"))
    ids = ["done", "changed", "other model", "held", "retried", "mended", "new"]
    catalog = bench.catalog(dict.fromkeys(ids, "1"))
    expected = {"new": 2, "changed": 2, "retried": 1, "removed": 2, "done": 1, "rejected": 1}
    assert counts(bench.plan(catalog)) == expected
    unversioned = {"new": 2, "retried": 1, "removed": 2, "done": 2, "rejected": 2}
    assert counts(bench.plan(catalog, detect=False)) == unversioned


def test_a_track_that_leaves_and_comes_back_is_not_decoded_again(bench: Bench) -> None:
    bench.score(("a", "1"), ("b", "1"))
    bench.reject(("c", "1", "silent"))
    assert counts(bench.plan(bench.catalog({"a": "1"}))) == {"done": 1, "removed": 2}
    back = bench.plan(bench.catalog({"c": "1", "b": "1", "a": "1"}))
    assert counts(back) == {"done": 2, "rejected": 1}
    assert counts(bench.plan(bench.catalog({"b": "2"}))) == {"changed": 1, "removed": 2}


def test_the_same_audio_under_a_new_id_is_new(bench: Bench) -> None:
    bench.score(("old id", "etag"))
    plan = bench.plan(bench.catalog({"new id": "etag"}))
    assert (pending(plan), counts(plan)) == (["new id"], {"new": 1, "removed": 1})


def test_what_the_ledger_holds_twice_counts_once(bench: Bench) -> None:
    bench.score(("a", "1"), ("a", "1"), ("gone", "1"), ("gone", "1"))
    bench.score(("a", "1"))
    bench.reject(("a", "1", "silent"), ("gone", "1", "silent"))
    plan = bench.plan(bench.catalog({"a": "1", "b": "1"}))
    assert counts(plan) == {"new": 1, "done": 1, "removed": 1}


def test_a_catalog_on_the_disk_is_planned_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mer_batch.tracks.Spill", functools.partial(Spill, memory_bytes=0))
    bench = Bench(tmp_path)
    ids = [f"t{n}" for n in range(70_000)]  # more than a batch
    bench.score(*((i, "1") for i in ids[1::2]))
    bench.reject((ids[66_000], "1", "storage_error"))
    plan = bench.plan(bench.catalog(dict.fromkeys(ids, "1")))
    assert pending(plan) == ids[::2]
    tried = [n for table in plan.pending.batches() for n in table["attempts"].to_pylist()]
    assert [n for n, attempts in enumerate(tried) if attempts] == [33_000]
    assert plan.tracks_of([ids[69_999], "none"]).table()["track_id"].to_pylist() == [ids[69_999]]


STATES = ("new", "scored", "changed", "rejected", "passing", "other limits", "other model")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=8
)
@given(states=st.lists(st.sampled_from(STATES), min_size=1, max_size=12))
def test_every_track_is_pending_scored_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, states: list[str]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    by_state = {s: [f"t{n}" for n, state in enumerate(states) if state == s] for s in STATES}

    def plant(how: Any, state: str, *rest: str, **columns: Any) -> None:
        if by_state[state]:
            how(*((i, *rest) for i in by_state[state]), **columns)

    plant(bench.score, "scored", "1")
    plant(bench.score, "changed", "0")
    plant(bench.score, "other model", "1", identity=Identity("f", "other", "e"))
    plant(bench.reject, "rejected", "1", "silent")
    plant(bench.reject, "passing", "1", "storage_error")
    plant(bench.reject, "other limits", "1", "too_long", identity=Identity("f", "m", "other"))
    plan = bench.plan(bench.catalog({f"t{n}": "1" for n in range(len(states))}))
    assert plan.n_done == len(by_state["scored"])
    assert plan.n_rejected == len(by_state["rejected"])
    done = {"scored", "rejected"}
    assert pending(plan) == [f"t{n}" for n, state in enumerate(states) if state not in done]


# ------------------------------------------------------------------ features

SECONDS = {"fits": 60.0, "short": 0.9, "long": 90.1, "cut": 59.0, "rounded": 59.6}


def with_planted_features(bench: Bench, limits: AudioLimits) -> tuple[list[str], list[str]]:
    """Ids of tracks that are scored from features of these durations, and of those decoded."""
    rows = [
        {
            "track_id": track_id, "segment": 0, "n_segments": 1, "n_frames": 5,
            "duration_seconds": seconds, "audio_uri": f"{track_id}.mp3", "audio_version": "1",
            "features_id": "f", "extracted_at": NOW, "mel": [0.0],
        }
        for track_id, seconds in SECONDS.items()
    ]  # fmt: skip
    ledger = Ledger(bench.storage, bench.output, pa.string(), product="features")
    ledger.fence(1)
    path = bench.folder / "out" / "features" / "r" / "part.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.features_schema(pa.string())), path)
    part = Part("r/part.parquet", path.stat().st_size, len(rows))
    ledger.commit_parts([part], run_id="r", sequence=1)
    bench.ledger = Ledger(bench.storage, bench.output, pa.string())
    bench.ledger.fence(2)
    catalog = bench.catalog(
        dict.fromkeys([*SECONDS, "new"], "1"), seconds={"cut": 60.0, "rounded": 60.0}
    )
    plan = bench.plan(catalog)
    found, to_decode, problems = with_features(plan, bench.ledger, "f", limits)
    assert problems == []
    blocks = found.tracks([[(number, 0, n)] for number, n in enumerate(found.lengths())])
    ids = [track_id for block in blocks for track_id in block["track_id"].to_pylist()]
    return ids, to_decode.table()["track_id"].to_pylist()


def test_features_of_lengths_that_are_rejects_today_are_not_scored(bench: Bench) -> None:
    found, to_decode = with_planted_features(bench, AudioLimits(min_seconds=1, max_seconds=90))
    assert sorted(found) == ["fits", "rounded"]
    assert to_decode == ["short", "long", "cut", "new"]


def test_features_are_scored_where_the_limits_allow_their_length(bench: Bench) -> None:
    found, _ = with_planted_features(bench, AudioLimits(min_seconds=0.5, max_seconds=100))
    assert sorted(found) == ["fits", "long", "rounded", "short"]
