"""Training on made-up music whose labels follow from how it was made."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mer_batch import train
from mer_batch.audio.decode import AudioLimits
from mer_batch.checkpoint import Checkpoint
from mer_batch.config import TrainConfig, parse_config
from mer_batch.datasets import load_dataset
from mer_batch.errors import ConfigError, DatasetError
from mer_batch.extract import Extractor
from mer_batch.feature_sets import feature_set
from mer_batch.score import Scorer
from tests.datasets.releases import WRITERS, PlantedClip

RATE = 44_100
SECONDS = 3


def knocking(valence: float, arousal: float, *, seed: int) -> bytes:
    """An MP3 of knocks over a hum: quicker with arousal, louder with valence."""
    t = np.arange(SECONDS * RATE) / RATE
    rate_hz = 3.0 * 2.0**arousal
    knocks = np.random.default_rng(seed).standard_normal(len(t)) * np.exp(-9 * (t * rate_hz % 1))
    hum = np.sin(2 * np.pi * 220 * t)
    sound = 10 ** ((valence - 1) / 2) * (0.2 * knocks + 0.1 * hum)
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="MP3")
    return file.getvalue()


def planted_clips(n: int, *, seed: int) -> list[PlantedClip]:
    """Clips of artists with two each; valence and arousal are independent."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(n):
        valence, arousal = rng.uniform(-0.9, 0.9, size=2).tolist()
        audio_bytes = knocking(valence, arousal, seed=1000 * seed + i)
        clips.append(PlantedClip(valence, arousal, f"artist {i // 2}", audio_bytes))
    return clips


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small data sets; one clip of the second is no audio."""
    folder = tmp_path_factory.mktemp("data")
    WRITERS["musifeast17"](folder / "musifeast17", planted_clips(48, seed=1))
    broken = PlantedClip(0.0, 0.0, "artist 0", b"this is no audio" * 100)
    WRITERS["soundtracks"](folder / "soundtracks", [*planted_clips(24, seed=2), broken])
    return folder


def configured(releases: Path, output: Path, **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "data": {"uri": str(releases)},
        "output": {"uri": str(output)},
        "model": {"n_members": 3},
        "n_repeats": 2,
    }
    return parse_config(TrainConfig, content | changes, origin="test")


def ignore(line: str) -> None:
    pass


@pytest.fixture(scope="session")
def trained(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> train.TrainSummary:
    return train.run(configured(releases, tmp_path_factory.mktemp("out")), ignore)


def checkpoint_in(folder: Path) -> Checkpoint:
    card, weights = ((folder / name).read_bytes() for name in ("card.json", "weights.safetensors"))
    return Checkpoint(card, weights, origin=str(folder))


def test_learns_the_planted_rule_out_of_fold(trained: train.TrainSummary) -> None:
    entry = trained.card.r2["musifeast17"]
    assert entry["valence"] > 0.7
    assert entry["arousal"] > 0.7
    low, high = entry["valence_interval"]
    assert low < entry["valence"] < high


def test_the_rule_travels_to_an_unseen_set(trained: train.TrainSummary) -> None:
    for name in ("musifeast17, unseen", "soundtracks, unseen"):
        assert trained.card.r2[name]["valence_correlation"] > 0.7
        assert trained.card.r2[name]["arousal_correlation"] > 0.7


def test_an_unseen_set_is_scored_by_what_the_others_taught(tmp_path: Path) -> None:
    clips = planted_clips(32, seed=1)
    contrary = [PlantedClip(-c.valence, -c.arousal, c.group, c.audio_bytes) for c in clips]
    WRITERS["musifeast17"](tmp_path / "musifeast17", clips)
    WRITERS["soundtracks"](tmp_path / "soundtracks", contrary)
    card = train.run(configured(tmp_path, tmp_path / "out", n_repeats=1), ignore).card
    for name in ("musifeast17, unseen", "soundtracks, unseen"):
        assert card.r2[name]["valence_correlation"] < -0.7
        assert card.r2[name]["arousal_correlation"] < -0.7


def test_labels_without_a_rule_are_not_learned(releases: Path, tmp_path: Path) -> None:
    clips = planted_clips(48, seed=1)
    shuffled = np.random.default_rng(0).permutation(len(clips))
    wrong = [
        PlantedClip(clips[j].valence, clips[j].arousal, clip.group, clip.audio_bytes)
        for clip, j in zip(clips, shuffled, strict=True)
    ]
    WRITERS["musifeast17"](tmp_path / "musifeast17", wrong)
    data = {"uri": str(tmp_path), "related": []}
    card = train.run(configured(releases, tmp_path / "out", data=data), ignore).card
    assert list(card.r2) == ["musifeast17"]
    assert max(card.r2["musifeast17"]["valence"], card.r2["musifeast17"]["arousal"]) < 0.15


def test_the_checkpoint_loads_and_scores_as_training_did(
    trained: train.TrainSummary, releases: Path
) -> None:
    checkpoint = checkpoint_in(trained.folder)
    checkpoint.check()
    datasets = [load_dataset("musifeast17", releases / "musifeast17")]
    features = feature_set("log_mel")
    clips, _ = train.describe(datasets, features, ignore)
    model = checkpoint.build()
    assert isinstance(model, train.Model)
    predicted = train.predict(model, clips, np.arange(3))
    for clip, expected in zip(datasets[0].clips, predicted, strict=False):
        track = Extractor(features, AudioLimits()).extract(clip.audio_path.read_bytes())
        assert Scorer(model).score(track.segments).mean == pytest.approx(expected, abs=1e-6)


def test_the_card_tells_the_whole_story(trained: train.TrainSummary) -> None:
    card = trained.card
    assert [data["name"] for data in card.training_data] == ["musifeast17", "soundtracks"]
    assert [data["n_clips"] for data in card.training_data] == [48, 24]
    assert all(data["licence"] and data["citation"] for data in card.training_data)
    assert "artist" in card.r2["musifeast17"]["protocol"]
    for word in ("research", "compressed", "not an error bar", "optimistic"):
        assert word in card.notes
    text = (trained.folder / "card.json").read_text()
    assert str(trained.folder.parent) not in text
    json.loads(text)


def test_a_clip_that_cannot_be_decoded_is_reported(trained: train.TrainSummary) -> None:
    (reject,) = trained.rejects
    assert (reject.dataset, reject.track_id, reject.reason) == ("soundtracks", "025", "not_audio")


def test_the_same_seed_gives_the_same_weights(
    trained: train.TrainSummary, releases: Path, tmp_path: Path
) -> None:
    again = train.run(configured(releases, tmp_path / "again"), ignore).card
    other = train.run(configured(releases, tmp_path / "other", seed=1), ignore).card
    assert again == trained.card
    assert other.weights_sha256 != trained.card.weights_sha256


@pytest.mark.parametrize("n_folds", [2, 5, 7])
def test_folds_never_split_a_group(n_folds: int) -> None:
    groups = np.random.default_rng(0).integers(20, size=200).astype(str)
    folds = train.grouped_folds(groups, n_folds, seed=0)
    for name in np.unique(groups):
        assert len(set(folds[groups == name])) == 1
    sizes = np.bincount(folds, minlength=n_folds)
    assert sizes.max() - sizes.min() <= np.unique(groups, return_counts=True)[1].max()


def test_folds_are_drawn_anew_by_seed() -> None:
    groups = np.arange(60).astype(str)
    draws = [train.grouped_folds(groups, 5, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_long_clips_are_described_by_all_their_segments(tmp_path: Path) -> None:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE)
    soundfile.write(file, noise, RATE, format="MP3")
    WRITERS["musifeast17"](
        tmp_path / "musifeast17", [PlantedClip(0.0, 0.0, "one", file.getvalue())]
    )
    datasets = [load_dataset("musifeast17", tmp_path / "musifeast17")]
    clips, _ = train.describe(datasets, feature_set("log_mel"), ignore)
    assert clips.statistics[0].shape == (2, len(train.Model().centre))
    assert not torch.equal(clips.statistics[0][0], clips.statistics[0][1])


def test_more_folds_than_groups_are_refused(releases: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_folds=500 must not exceed the 36 groups"):
        train.run(configured(releases, tmp_path, n_folds=500), ignore)


def test_a_set_without_any_audio_is_refused(releases: Path, tmp_path: Path) -> None:
    WRITERS["musifeast17"](tmp_path / "musifeast17", [PlantedClip(0.0, 0.0, "one", b"no audio")])
    data = {"uri": str(tmp_path), "related": []}
    with pytest.raises(DatasetError, match="musifeast17"):
        train.run(configured(releases, tmp_path / "out", data=data), ignore)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"uri": "d", "related": ["musifeast17"]}}, "must name each data set once"),
        ({"model": {"n_members": 0}}, "model.n_members=0"),
        ({"model": {"name": "forest"}}, "model.name='forest'"),
        ({"n_fold": 3}, "did you mean 'n_folds'"),
    ],
)
def test_faults_in_the_configuration_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(Path("data"), Path("out"), **changes)


def test_the_command_prints_what_was_measured(
    releases: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    overrides = [f"data.uri={releases}", f"output.uri={tmp_path / 'out'}", "n_repeats=1"]
    config = Path(__file__).parents[1] / "configs" / "train_builtin.yaml"
    done = run_cli("train", config, *overrides, "model.n_members=1")
    assert done.returncode == 0, done.stderr
    assert "soundtracks, unseen" in done.stdout
    assert str(tmp_path / "out") in done.stdout
    assert "left out soundtracks 025" in done.stdout
    checkpoint_in(tmp_path / "out").check()


def test_a_missing_data_set_ends_without_a_traceback(
    tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    config = Path(__file__).parents[1] / "configs" / "train_builtin.yaml"
    done = run_cli("train", config, f"data.uri={tmp_path}")
    assert done.returncode == 2
    assert "labels.csv" in done.stderr
    assert "Traceback" not in done.stderr
