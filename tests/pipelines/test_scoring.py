"""A pool of actors that score: the same scores, whoever dies, on however few CPUs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import yaml

from mer_batch.block import Job
from mer_batch.checkpoint import (
    Checkpoint,
    builtin_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from mer_batch.config import ScoringConfig, StorageConfig
from mer_batch.feature_sets import feature_set
from mer_batch.limits import ChildLimits
from mer_batch.models import build_model
from mer_batch.pipelines.scoring import (
    PoolSizeError,
    ScoringError,
    most_segments,
    pool_size,
    pooled,
)
from mer_batch.schema import Identity
from mer_batch.score import Scorer
from mer_batch.storage import Storage, parse_uri
from mer_batch.tag import Scores
from tests.chaos.breakpoints import Breakpoints
from tests.chaos.crash import end, wait_for
from tests.pipelines.conftest import table

POOL = {"device": "cpu", "actors": 1}
EXACT = {"abs": 1e-5}


def columns(rows: pa.Table) -> dict[str, dict[str, Any]]:
    names = ["valence", "arousal", "valence_std", "valence_low", "n_segments", "duration_seconds"]
    return {row["track_id"]: {n: row[n] for n in names} for row in rows.to_pylist()}


def job_of(checkpoint: Checkpoint, folder: Path) -> Job:
    identity = Identity.of(checkpoint.feature_set.features_id, checkpoint.model_id, {})
    product = Scores(checkpoint.card_json, checkpoint.weights, checkpoint.model_id)
    output = parse_uri(str(folder))
    return Job(Storage(StorageConfig()), output, "run", identity, product, ChildLimits())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Checkpoints of networks with random weights, by model and feature set."""
    import torch

    def made(model: str, features: str) -> str:
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("model")
        save_checkpoint(
            Storage(StorageConfig()),
            parse_uri(str(folder)),
            state=build_model(model, {}).state_dict(),
            features=feature_set(features),
            model=model,
            parameters={},
            training_data=[],
            r2={},
        )
        return str(folder)

    return made


# ------------------------------------------------------------------ the same scores


@pytest.mark.parametrize(
    ("model", "features"),
    [("builtin", ""), ("log_mel_cnn", "log_mel"), ("paper_model1", "paper")],
)
def test_scores_are_those_of_decoders_that_score_for_themselves(
    tag: Callable[..., Any],
    network: Callable[[str, str], str],
    music: Path,
    long_mp3: bytes,
    tmp_path: Path,
    model: str,
    features: str,
) -> None:
    """Of tracks of many lengths: shorter than a segment, and of several."""
    (music / "long.mp3").write_bytes(long_mp3 * 3)
    (music / "broken.mp3").write_bytes(b"no music")
    uri = model if model == "builtin" else network(model, features)
    found = []
    for name, scoring in (("fused", {}), ("pool", {**POOL, "batch_segments": 5})):
        run = tag(
            music,
            model={"uri": uri},
            scoring=scoring,
            output={"uri": str(tmp_path / name)},
            max_reject_rate=0.5,
        )
        assert [r["reason"] for r in run.rejects.to_pylist()] == ["not_audio"]
        found.append(columns(run.scores))
    fused, pool = found
    assert fused.keys() == pool.keys()
    assert len(fused) == 9
    for track_id, row in fused.items():
        assert pool[track_id] == pytest.approx(row, **EXACT, nan_ok=False), track_id
    assert fused["long.mp3"]["n_segments"] >= 3


def test_features_that_are_kept_are_scored_by_the_pool_as_well(
    tag: Callable[..., Any], extract: Callable[..., Any], music: Path, tmp_path: Path
) -> None:
    extract(music)
    pool = tag(music, scoring=POOL)
    assert (pool.summary.n_rescored, pool.summary.n_tried) == (8, 0)
    extract(music, output={"uri": str(tmp_path / "other")})
    here = tag(music, output={"uri": str(tmp_path / "other")})
    assert here.summary.n_rescored == 8
    expected = columns(here.scores)
    for track_id, row in columns(pool.scores).items():
        assert row == pytest.approx(expected[track_id], **EXACT)


# ------------------------------------------------------------------ small machines, deaths


def write_config(folder: Path, music: Path, n_cpus: int, **scoring: Any) -> Path:
    config = folder / "tag.yaml"
    content = {
        "catalog": {"uri": str(music)},
        "output": {"uri": str(folder / "out")},
        "ray": {"num_cpus": n_cpus},
        "scoring": {**POOL, **scoring},
    }
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.mark.parametrize(("n_cpus", "n_actors"), [(1, 1), (1, 3), (2, 1), (4, 2)])
def test_no_number_of_cpus_is_too_small(
    run_cli: Callable[..., Any], music: Path, tmp_path: Path, n_cpus: int, n_actors: int
) -> None:
    config = write_config(tmp_path, music, n_cpus, actors=n_actors, batch_segments=1)
    done = run_cli("tag", config)
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "out" / "scores")) == 8


def test_a_cluster_without_gpus_is_refused_before_work(
    run_cli: Callable[..., Any], music: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    refused = run_cli("tag", write_config(tmp_path, music, 2, device="cuda"))
    assert refused.returncode == 2
    assert "must fit the cluster's 0 GPUs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(table(tmp_path / "out" / "scores")) == 0


@pytest.fixture
def held_in_the_pool(
    music: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Breakpoints]]:
    """A run whose actor is stopped whenever it has a batch."""
    config = write_config(tmp_path, music, 2, batch_segments=2)
    with Breakpoints() as breakpoints, open(tmp_path / "log", "wb") as log:
        breakpoints.hold("batch_to_score", times=6)
        driver = subprocess.Popen(
            [sys.executable, "-m", "mer_batch", "tag", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **breakpoints.environment},
            start_new_session=True,
        )
        try:
            yield driver, breakpoints
        finally:
            breakpoints.clear()
            end(driver)


def kill_next(driver: subprocess.Popen[bytes], breakpoints: Breakpoints) -> bool:
    held = wait_for(breakpoints, driver)
    if held is None:
        return False
    assert "ScoringActor" in " ".join(psutil.Process(held.pid).cmdline())
    os.kill(held.pid, signal.SIGKILL)
    held.let_go()
    return True


def test_an_actor_that_is_killed_costs_nothing(
    held_in_the_pool: tuple[subprocess.Popen[bytes], Breakpoints], tmp_path: Path
) -> None:
    driver, breakpoints = held_in_the_pool
    assert kill_next(driver, breakpoints)
    assert kill_next(driver, breakpoints)
    breakpoints.clear()
    assert driver.wait(240) == 0, (tmp_path / "log").read_text()
    scores = table(tmp_path / "out" / "scores")
    assert len(set(scores["track_id"].to_pylist())) == len(scores) == 8
    parts = set((tmp_path / "out" / "scores").glob("2*/*.parquet"))
    (manifest,) = (tmp_path / "out" / "runs").glob("2*/manifest.json")
    assert json.loads(manifest.read_text())["totals"] == {"n_scored": 8, "n_rejected": {}}
    assert sum(pa.parquet.read_metadata(part).num_rows for part in parts) == 8


def test_a_driver_that_is_killed_takes_its_pool_along(
    held_in_the_pool: tuple[subprocess.Popen[bytes], Breakpoints],
    run_cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    driver, breakpoints = held_in_the_pool
    held = wait_for(breakpoints, driver)
    assert held is not None
    actor = psutil.Process(held.pid)
    driver.kill()
    driver.wait()
    held.let_go()
    breakpoints.clear()
    psutil.wait_procs([actor], timeout=30)
    assert not actor.is_running()
    done = run_cli("tag", tmp_path / "tag.yaml")
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "out" / "scores")) == 8


# ------------------------------------------------------------------ the pool by itself


@pytest.mark.parametrize("n_segments", [0, 1, 7])
def test_what_the_pool_says_is_what_the_model_says(
    local_ray: None, tmp_path: Path, n_segments: int
) -> None:
    checkpoint = builtin_checkpoint()
    features = checkpoint.feature_set
    shape = (n_segments, features.mel.n_mels, features.segment_frames)
    segments = np.random.default_rng(1).normal(-40, 10, shape).astype(np.float32)
    n_frames = np.full(n_segments, features.segment_frames)
    with pooled(ScoringConfig(**POOL), job_of(checkpoint, tmp_path), 2) as pool:
        assert pool is not None
        found = pool.ask(segments, n_frames)()
    expected = Scorer(checkpoint.function()).outputs(segments, n_frames)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_actor_that_cannot_go_on_is_told_in_words(local_ray: None, tmp_path: Path) -> None:
    with pooled(ScoringConfig(**POOL), job_of(builtin_checkpoint(), tmp_path), 2) as pool:
        assert pool is not None
        wrong = pool.ask(np.zeros((1, 3, 5), np.float32), np.array([5]))
        with pytest.raises(ScoringError, match="an actor of the scoring pool could not go on"):
            wrong()


def test_a_model_that_cannot_be_loaded_is_told_in_words(local_ray: None, tmp_path: Path) -> None:
    job = job_of(builtin_checkpoint(), tmp_path)
    card = json.loads(builtin_checkpoint().card_json)
    card["parameters"] = {"n_landmarks": 3}
    broken = dataclasses.replace(job.product, card_json=json.dumps(card).encode())  # type: ignore[type-var]
    with (
        pytest.raises(ScoringError, match="cannot start"),
        pooled(ScoringConfig(**POOL), dataclasses.replace(job, product=broken), 2),
    ):
        pass


@pytest.mark.parametrize(
    ("scoring", "n_gpus", "expected"),
    [
        ({}, 0, ("cpu", 0)),
        ({}, 8, ("cpu", 0)),
        ({"actors": 3}, 8, ("cpu", 3)),
        ({"device": "auto"}, 0, ("cpu", 0)),
        ({"device": "auto", "actors": 2}, 0, ("cpu", 2)),
        ({"device": "auto"}, 4, ("cuda", 4)),
        ({"device": "cuda"}, 4, ("cuda", 4)),
        ({"device": "cuda", "actors": 2}, 4, ("cuda", 2)),
        ({"device": "cuda", "gpus_per_actor": 0.1}, 1, ("cuda", 10)),
        ({"device": "cuda", "gpus_per_actor": 2}, 5, ("cuda", 2)),
        ({"device": "cuda"}, 0, None),
        ({"device": "cuda", "actors": 5}, 4, None),
        ({"device": "auto", "gpus_per_actor": 2}, 1, None),
    ],
)
def test_the_pool_is_as_large_as_it_is_said_to_be(
    scoring: dict[str, Any], n_gpus: int, expected: tuple[str, int] | None
) -> None:
    config = ScoringConfig(**scoring)
    if expected is None:
        with pytest.raises(PoolSizeError, match=f"must fit the cluster's {n_gpus} GPUs"):
            pool_size(config, n_gpus)
    else:
        assert pool_size(config, n_gpus) == expected


@pytest.mark.parametrize("n_cpus", [1, 2, 16, 64])
def test_batches_fit_into_the_object_store(tmp_path: Path, n_cpus: int) -> None:
    job = job_of(builtin_checkpoint(), tmp_path)
    features = builtin_checkpoint().feature_set
    store = 512 * 2**20
    segment_bytes = features.mel.n_mels * features.segment_frames * 4
    most = most_segments(job, store, n_cpus)
    assert most >= 1
    # A batch ends with a whole track.
    assert n_cpus * 2 * (most + features.max_segments - 1) * segment_bytes <= 0.75 * store


def test_a_model_runs_on_one_device_whole(network: Callable[[str, str], str]) -> None:
    """Anything that is left on the CPU does not go together with a device that computes nothing."""
    import torch

    for uri in ("builtin", network("log_mel_cnn", "log_mel"), network("paper_model2", "paper")):
        checkpoint = read_checkpoint(uri, Storage(StorageConfig()))
        features = checkpoint.feature_set
        model = checkpoint.build().to("meta")
        shown = torch.zeros(2, features.mel.n_mels, features.segment_frames, device="meta")
        with torch.inference_mode():
            outputs = model(shown)
        assert outputs.device.type == "meta"


def test_a_gpu_says_what_a_cpu_says(network: Callable[[str, str], str]) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for uri in ("builtin", network("log_mel_cnn", "log_mel"), network("paper_model1", "paper")):
        checkpoint = read_checkpoint(uri, Storage(StorageConfig()))
        features = checkpoint.feature_set
        shape = (40, features.mel.n_mels, features.segment_frames)
        segments = np.random.default_rng(1).normal(-40, 10, shape).astype(np.float32)
        n_frames = np.repeat([features.segment_frames, features.segment_frames // 2], 20)
        if features.fixed_length:
            n_frames[:] = features.segment_frames
        here = Scorer(checkpoint.function()).outputs(segments, n_frames)
        there = Scorer(checkpoint.function("cuda")).outputs(segments, n_frames)
        np.testing.assert_allclose(there, here, atol=1e-5)
