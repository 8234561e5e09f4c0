"""Networks on Ray Train: the same as without it, on any number of workers, through any crash."""

from __future__ import annotations

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
import pytest
import torch
from tensorboardX.proto import event_pb2

from mer_batch.batches import ShardBatches
from mer_batch.config import AugmentConfig, TrainingConfig, WorkersConfig
from mer_batch.errors import ConfigError, DatasetError, TrainingError
from mer_batch.models import build_model
from mer_batch.network import predict
from mer_batch.pipelines.ray_training import TrainedNetwork, train_network
from tests.feature_parts import LONG, SMALL, write_parts

Train = Callable[..., TrainedNetwork]
CNN = {"n_mels": 16, "channels": [8, 8], "n_hidden": 32, "dropout": 0.1}
RULE = TrainingConfig(
    epochs=20, batch_size=16, learning_rate=0.01,
    augment=AugmentConfig(gain_db=1.0, n_time_masks=1, max_time_mask_seconds=0.05, mixup=0.1),
)  # fmt: skip


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train on 96 clips that follow a rule, and watch 32 more: ``train(n_workers, **changes)``."""
    parts, labels = write_parts(tmp_path / "features", 128, min_frames=12)
    names = list(labels)

    def run(n_workers: int, **changes: Any) -> TrainedNetwork:
        arguments: dict[str, Any] = {
            "parts": parts,
            "feature_set": SMALL,
            "labels": {name: labels[name] for name in names[:96]},
            "validation_labels": {name: labels[name] for name in names[96:]},
            "model_name": "log_mel_cnn",
            "model_parameters": CNN,
            "settings": RULE,
            "workers": WorkersConfig(n_workers=n_workers),
            "seed": 0,
            "storage_folder": tmp_path / f"training-{n_workers}",
            "say": print,
        }
        return train_network(**{**arguments, **changes})

    return run


def losses(trained: TrainedNetwork) -> list[float]:
    return [record.train_loss for record in trained.history]


def assert_same(one: TrainedNetwork, other: TrainedNetwork, *, tolerance: float) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=tolerance)
    for name, value in one.state.items():
        torch.testing.assert_close(
            value, other.state[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs"
        )


def test_the_rule_is_learned_and_all_is_written_down(train: Train, tmp_path: Path) -> None:
    lines: list[str] = []
    trained = train(0, say=lines.append)
    assert trained.history[trained.best_epoch].validation_r2 is not None
    assert min(trained.history[trained.best_epoch].validation_r2 or [0]) > 0.7
    assert trained.resumed_from_epoch is None
    assert [line.split()[1] for line in lines] == [f"{n}/20" for n in range(1, 21)]
    # The weights alone are enough to score with.
    model = build_model("log_mel_cnn", CNN)
    model.load_state_dict(trained.state)
    parts, labels = write_parts(tmp_path / "unseen", 64, seed=9)
    scores = predict(
        model, ShardBatches(parts, SMALL, labels, batch_size=32, seed=0)(), torch.device("cpu")
    )
    truth = np.array([labels[name] for name in scores.track_ids])
    assert (1 - ((truth - scores.mean) ** 2).sum(0) / truth.var(axis=0) / 64 > 0.7).all()
    # TensorBoard's own format, read back.
    points = dict(scalars(trained.folder / "tensorboard"))
    assert points["loss/train", 19] == pytest.approx(trained.history[19].train_loss, rel=1e-6)
    assert {("r2/valence", n) for n in range(20)} | {("r2/arousal", n) for n in range(20)} <= set(
        points
    )


def scalars(folder: Path) -> Iterator[tuple[tuple[str, int], float]]:
    """Points of a folder of event files: records of length, checksum, event, checksum."""
    for path in folder.iterdir():
        content, begin = path.read_bytes(), 0
        while begin < len(content):
            n_bytes = int.from_bytes(content[begin : begin + 8], "little")
            event = event_pb2.Event.FromString(content[begin + 12 : begin + 12 + n_bytes])
            for value in event.summary.value:
                yield (value.tag, event.step), value.simple_value
            begin += 12 + n_bytes + 4


def test_one_ray_worker_gives_what_no_ray_gives(local_ray: None, train: Train) -> None:
    settings = RULE.model_copy(update={"epochs": 3})
    ray_lines: list[str] = []
    with_ray = train(1, settings=settings, say=ray_lines.append)
    without = train(0, settings=settings)
    assert_same(with_ray, without, tolerance=1e-4)
    assert [line.split()[1] for line in ray_lines] == ["1/3", "2/3", "3/3"]
    assert ("loss/validation", 2) in dict(scalars(with_ray.folder / "tensorboard"))
    # Asked again, there is nothing left to do.
    again = train(1, settings=settings)
    assert_same(again, with_ray, tolerance=0)
    assert again.resumed_from_epoch == 3


def test_two_workers_give_the_same_network_as_one(local_ray: None, train: Train) -> None:
    # Without batch normalisation and dropout a step depends on the batch as a whole alone, and
    # with all clips in it both ways take the same steps.
    arguments: dict[str, Any] = {
        "model_name": "paper_model2",
        "model_parameters": {"n_mels": 16, "n_frames": 256},
        "feature_set": LONG,
        "settings": TrainingConfig(
            epochs=4, batch_size=96, learning_rate=1e-3, standardise=False,
            augment=AugmentConfig(gain_db=3.0, n_band_masks=1),
        ),
    }  # fmt: skip
    folder = Path(train(0, settings=RULE.model_copy(update={"epochs": 1})).folder).parent.parent
    parts, labels = write_parts(folder / "long", 96, feature_set=LONG)
    arguments |= {
        "parts": parts,
        "labels": labels,
        "validation_labels": dict(list(labels.items())[:9]),
    }
    one, two = train(0, **arguments), train(2, **arguments)
    assert [record.n_clips for record in two.history] == [96] * 4
    assert_same(one, two, tolerance=1e-3)
    # What is measured over shares is what is measured over all.
    for ours, theirs in zip(one.history, two.history, strict=True):
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
    moved = sum(
        float((one.state[name] - start).abs().sum())
        for name, start in _first_weights(arguments).items()
    )
    assert moved > 1, "the networks must have learned for their likeness to say something"


def _first_weights(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(arguments["model_name"], arguments["model_parameters"])
    return model.state_dict()


def test_two_workers_learn_the_rule_with_batch_normalisation(local_ray: None, train: Train) -> None:
    trained = train(2, settings=TrainingConfig(epochs=6, batch_size=24, learning_rate=0.01))
    assert min(trained.history[trained.best_epoch].validation_r2 or [0]) > 0.6


def test_a_killed_worker_costs_no_more_than_its_epoch(local_ray: None, train: Train) -> None:
    killed: list[int] = []

    def kill(line: str) -> None:
        # Told of the second epoch, the worker is in the third, which is read again from the start.
        if line.startswith("epoch 2/") and not killed:
            (worker,) = [pid for pid, name in _ray_workers() if "RayTrainWorker" in name]
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    settings = RULE.model_copy(update={"epochs": 15})
    crashed = train(1, settings=settings, say=kill)
    assert killed
    undisturbed = train(0, settings=settings)
    assert_same(crashed, undisturbed, tolerance=1e-3)


def _ray_workers() -> list[tuple[int, str]]:
    """Ray's processes below this one, with the names that they go by."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append((process.pid, " ".join(process.cmdline())))
        except psutil.Error:
            continue
    return found


_DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from mer_batch.config import RayConfig, TrainingConfig, WorkersConfig
from mer_batch.pipelines import cluster
from mer_batch.pipelines.ray_training import train_network
from tests.feature_parts import SMALL, write_parts

folder = Path({folder!r})
parts, labels = write_parts(folder / "features", 64)
cluster._start(RayConfig(num_cpus=1))  # one CPU must do for a worker and its reading
trained = train_network(
    parts=parts, feature_set=SMALL, labels=labels, validation_labels=labels,
    model_name="log_mel_cnn", model_parameters={model!r},
    settings=TrainingConfig(epochs=15, batch_size=16), workers=WorkersConfig(n_workers=1),
    seed=0, storage_folder=folder / "training", say=lambda line: print(line, flush=True),
)
print(json.dumps([trained.resumed_from_epoch, [r.train_loss for r in trained.history]]))
"""


def test_a_killed_driver_is_taken_up_again(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = _DRIVER.format(tests=str(root), folder=str(tmp_path / "killed"), model=CNN)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, cwd=tmp_path,
        )  # fmt: skip

    first = start()
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("epoch 3/"):
            first.kill()
            break
    first.wait()
    first.stdout.close()
    second = start()
    output, _ = second.communicate(timeout=240)
    resumed_at, history = json.loads(output.splitlines()[-1])
    assert 3 <= resumed_at < 15
    assert f"going on from epoch {resumed_at}" in output
    parts, labels = write_parts(tmp_path / "features", 64)
    undisturbed = train_network(
        parts=parts, feature_set=SMALL, labels=labels, validation_labels=labels,
        model_name="log_mel_cnn", model_parameters=CNN,
        settings=TrainingConfig(epochs=15, batch_size=16), workers=WorkersConfig(n_workers=0),
        seed=0, storage_folder=tmp_path / "undisturbed", say=lambda line: None,
    )  # fmt: skip
    np.testing.assert_allclose(history, losses(undisturbed), rtol=1e-3)


def test_a_loop_without_ray_resumes_too(train: Train) -> None:
    class _PulledPlug(Exception):
        pass

    def pull(line: str) -> None:
        if line.startswith("epoch 4/"):
            raise _PulledPlug

    with pytest.raises(_PulledPlug):
        train(0, say=pull)
    resumed = train(0)
    assert resumed.resumed_from_epoch == 4
    undisturbed = train(0, storage_folder=resumed.folder.parent.parent / "elsewhere")
    assert_same(resumed, undisturbed, tolerance=0)
    # Anything that changes the outcome is another training.
    other = train(0, seed=1)
    assert other.resumed_from_epoch is None
    assert losses(other) != losses(resumed)


def test_a_damaged_state_is_named(train: Train) -> None:
    folder = train(0).folder
    (folder / "trained.pt").write_bytes((folder / "trained.pt").read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"trained\.pt.*remove its folder"):
        train(0)


def test_a_worker_that_cannot_learn_says_why_and_is_not_tried_again(
    local_ray: None, train: Train
) -> None:
    settings = RULE.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"epoch \d+.*must be finite.*learning rate"):
        train(2, settings=settings)


def test_configurations_that_cannot_work_are_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=16 must be a multiple.*n_workers=3"):
        train(3)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"use_gpu=True.*there are 0"):
            train(0, workers=WorkersConfig(n_workers=0, use_gpu=True))
    with pytest.raises(ConfigError, match="precision='mixed' must have a GPU"):
        train(0, settings=RULE.model_copy(update={"precision": "mixed"}))
    with pytest.raises(ConfigError, match=r"crop_seconds=0\.1.*must be 0 for feature set 'long'"):
        train(
            0, feature_set=LONG,
            settings=RULE.model_copy(update={"augment": AugmentConfig(crop_seconds=0.1)}),
        )  # fmt: skip
    with pytest.raises(DatasetError, match=r"1 of 1 labelled tracks.*nobody"):
        train(0, labels={"nobody": (0.0, 0.0)})
    with pytest.raises(TrainingError, match=r"standardise=false"):
        train(0, model_name="paper_model1", model_parameters={"n_mels": 16, "n_frames": 200})
