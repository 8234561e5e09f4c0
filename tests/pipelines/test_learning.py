"""Training and evaluation, whole: labels and audio in, a checkpoint and a page out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from rich.console import Console

from mer_batch.audio.decode import AudioLimits
from mer_batch.checkpoint import Checkpoint
from mer_batch.config import LearnConfig, parse_config
from mer_batch.errors import ConfigError, DatasetError, ErrorBudgetExceeded, FeaturesError
from mer_batch.extract import Extractor
from mer_batch.feature_sets import feature_set
from mer_batch.pipelines import evaluation, training
from mer_batch.score import Scorer
from tests.datasets.releases import WRITERS, PlantedClip
from tests.pipelines.planted import RATE, knocking, planted_clips

ROOT = Path(__file__).parents[2]
BOTH = ("musifeast17", "soundtracks")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small data sets; one clip of the second is no audio."""
    folder = tmp_path_factory.mktemp("data")
    WRITERS["musifeast17"](folder / "musifeast17", planted_clips(48, seed=1))
    broken = PlantedClip(0.0, 0.0, "artist 0", b"this is no audio" * 100)
    WRITERS["soundtracks"](folder / "soundtracks", [*planted_clips(24, seed=2), broken])
    return folder


def configured(
    releases: Path, output: Path, *names: str, pooled: dict[str, Any] | None = None, **changes: Any
) -> LearnConfig:
    content: dict[str, Any] = {
        "data": {name: {"uri": str(releases / name)} for name in names or BOTH},
        "output": {"uri": str(output)},
        "recipes": {"pooled": pooled or {"model": "pooled_gp", "parameters": {"n_members": 3}}},
        "split": {"n_folds": 4, "n_repeats": 2},
    }
    return parse_config(LearnConfig, content | changes, origin="test")


def console() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True)


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="session")
def trained(local_ray: None, releases: Path, output: Path) -> training.TrainSummary:
    return training.run(configured(releases, output), console())


def checkpoint_in(folder: Path) -> Checkpoint:
    card, weights = ((folder / name).read_bytes() for name in ("card.json", "weights.safetensors"))
    return Checkpoint(card, weights, origin=str(folder))


def test_learns_the_planted_rule_out_of_fold(trained: training.TrainSummary) -> None:
    entry = trained.card.r2["musifeast17"]
    assert entry["valence"] > 0.7
    assert entry["arousal"] > 0.7
    low, high = entry["valence_interval"]
    assert low < entry["valence"] < high


def test_the_rule_travels_to_an_unseen_set(trained: training.TrainSummary) -> None:
    for name in ("musifeast17, unseen", "soundtracks, unseen"):
        assert trained.card.r2[name]["valence_correlation"] > 0.7
        assert trained.card.r2[name]["arousal_correlation"] > 0.7


def test_an_unseen_set_is_scored_by_what_the_others_taught(local_ray: None, tmp_path: Path) -> None:
    clips = planted_clips(32, seed=1)
    contrary = [PlantedClip(-c.valence, -c.arousal, c.group, c.audio_bytes) for c in clips]
    WRITERS["musifeast17"](tmp_path / "musifeast17", clips)
    WRITERS["soundtracks"](tmp_path / "soundtracks", contrary)
    card = training.run(configured(tmp_path, tmp_path / "out"), console()).card
    for name in ("musifeast17, unseen", "soundtracks, unseen"):
        assert card.r2[name]["valence_correlation"] < -0.7
        assert card.r2[name]["arousal_correlation"] < -0.7


def test_labels_without_a_rule_are_not_learned(local_ray: None, tmp_path: Path) -> None:
    clips = planted_clips(48, seed=1)
    shuffled = np.random.default_rng(0).permutation(len(clips))
    wrong = [
        PlantedClip(clips[j].valence, clips[j].arousal, clip.group, clip.audio_bytes)
        for clip, j in zip(clips, shuffled, strict=True)
    ]
    WRITERS["musifeast17"](tmp_path / "musifeast17", wrong)
    config = configured(tmp_path, tmp_path / "out", "musifeast17")
    card = training.run(config, console()).card
    assert list(card.r2) == ["musifeast17"]
    assert max(card.r2["musifeast17"]["valence"], card.r2["musifeast17"]["arousal"]) < 0.15


def test_the_checkpoint_scores_mp3s_as_training_measured(
    trained: training.TrainSummary, releases: Path, output: Path
) -> None:
    checkpoint = checkpoint_in(output / "checkpoint")
    checkpoint.check()
    extractor = Extractor(feature_set("log_mel"), AudioLimits())
    scorer = Scorer(checkpoint.function())
    with open(releases / "musifeast17" / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    paths = [releases / "musifeast17" / "audio" / f"{row['CLIP_NAME']}.mp3" for row in rows]
    scores = [scorer.score(extractor.extract(path.read_bytes()).segments).mean for path in paths]
    rated = [[(float(row[f"{t}_M"]) - 3) / 2 for t in ("valence", "arousal")] for row in rows]
    # Fitted to these clips: closer than out of fold.
    assert np.abs(np.array(scores) - rated).mean() < 0.15


def test_the_card_tells_the_whole_story(trained: training.TrainSummary, output: Path) -> None:
    card = trained.card
    assert [data["name"] for data in card.training_data] == list(BOTH)
    assert [(data["n_clips"], data["n_rejected"]) for data in card.training_data] == [
        (48, 0), (24, 1),
    ]  # fmt: skip
    assert all(data["licence"] and data["citation"] for data in card.training_data)
    assert "artist" in card.r2["musifeast17"]["protocol"]
    assert card.recipe["model"] == "pooled_gp" and card.recipe["split"]["n_folds"] == 4
    assert card.intervals is not None
    for target in ("valence", "arousal"):
        half_width = card.intervals.half_width[target]
        assert half_width is not None and 0.01 < half_width < 0.6
        assert card.intervals.coverage[target] == pytest.approx(0.9, abs=0.08)
    for word in ("research", "another scale", "not an error bar"):
        assert word in card.notes
    text = (output / "checkpoint" / "card.json").read_text()
    assert str(output.parent) not in text
    json.loads(text)


def test_a_clip_that_cannot_be_decoded_is_reported(trained: training.TrainSummary) -> None:
    (reject,) = trained.rejects
    assert (reject.dataset, reject.track_id, reject.reason) == ("soundtracks", "025", "not_audio")


def test_the_run_leaves_its_traces(trained: training.TrainSummary, output: Path) -> None:
    (manifest,) = (json.loads(path.read_text()) for path in output.glob("runs/*/manifest.json"))
    assert (manifest["state"], manifest["recipe"]) == ("complete", "pooled")
    assert manifest["r2"]["musifeast17"]["valence"] == trained.card.r2["musifeast17"]["valence"]


def test_the_same_seed_gives_the_same_weights_and_nothing_is_decoded_again(
    trained: training.TrainSummary, releases: Path, output: Path, tmp_path: Path
) -> None:
    features = {
        name: {"uri": str(releases / name), "features": str(output / name)} for name in BOTH
    }
    del features["soundtracks"]["features"]
    said = console()
    again = training.run(configured(releases, tmp_path / "a", data=features), said)
    assert again.card == trained.card
    split = {"n_folds": 4, "n_repeats": 2, "seed": 1}
    other = training.run(configured(releases, tmp_path / "a", split=split), console())
    assert other.card.weights_sha256 != trained.card.weights_sha256


def test_long_clips_are_learned_from_by_all_their_segments(local_ray: None, tmp_path: Path) -> None:
    def long(level: float, seed: int) -> bytes:
        file = io.BytesIO()
        noise = np.random.default_rng(seed).standard_normal(62 * RATE)
        soundfile.write(file, level * noise, RATE, format="MP3")
        return file.getvalue()

    clips = [PlantedClip(v, -v, f"artist {i}", long(0.02 + 0.05 * i, i))
             for i, v in enumerate((-0.5, 0.0, 0.3, 0.5))]  # fmt: skip
    WRITERS["musifeast17"](tmp_path / "musifeast17", clips)
    config = configured(
        tmp_path, tmp_path / "out", "musifeast17", split={"n_folds": 2, "n_repeats": 1}
    )
    training.run(config, console())
    parts = list((tmp_path / "out" / "musifeast17" / "features").rglob("*.parquet"))
    rows = [
        row
        for part in parts
        for row in pq.read_table(part, columns=["track_id", "segment"]).to_pylist()
    ]
    assert sorted({row["segment"] for row in rows}) == [0, 1]
    assert len(rows) == 8


# ------------------------------------------------------------------------------ evaluation


def test_an_evaluation_stands_every_recipe_beside_every_baseline(
    local_ray: None, releases: Path, output: Path, trained: training.TrainSummary
) -> None:
    config = configured(releases, output, title="Planted", baselines=["mean", "ridge"])
    summary = evaluation.run(config, console())
    results = pq.read_table(output / "evaluation" / "results.parquet").to_pandas()
    measured = results[results["kind"].isin(["baseline", "recipe", "unseen"])]
    assert len(measured) == 2 * 2 * 3 + 2 * 2  # sets, targets, learners; then unseen
    pooled = measured[(measured["model"] == "pooled") & (measured["kind"] == "recipe")]
    assert (pooled["r2"] > 0.5).all()
    assert (measured[measured["model"] == "mean"]["r2"] <= 0).all()
    own = pooled[(pooled["dataset"] == "musifeast17") & (pooled["target"] == "valence")]
    # The same folds, the same models: the card says the same.
    assert own["r2"].item() == trained.card.r2["musifeast17"]["valence"]
    predictions = pq.read_table(output / "evaluation" / "predictions.parquet").to_pandas()
    counts = predictions[predictions["kind"] == "recipe"].groupby(["dataset", "repeat"]).size()
    assert counts.to_dict() == {
        ("musifeast17", 0): 48, ("musifeast17", 1): 48,
        ("soundtracks", 0): 24, ("soundtracks", 1): 24,
    }  # fmt: skip
    page = (output / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "<h1>Planted</h1>" in page and "'025' left out" in page.replace("&#x27;", "'")
    ridge = measured[measured["model"] == "ridge"].set_index(["dataset", "target"])["r2"]
    for line in summary.evaluation.verdicts():
        dataset, target = line.partition(":")[0].split(", ")
        mine = pooled[(pooled["dataset"] == dataset) & (pooled["target"] == target)]["r2"].item()
        says = "beats the best" if mine > ridge[dataset, target] else "does not beat the best"
        assert f"{says} baseline, ridge" in line
    assert len(summary.evaluation.verdicts()) == 4


def test_a_labelled_table_is_learned_from_like_any_set(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "mp3").mkdir()
    rows = []
    for i, clip in enumerate(planted_clips(32, seed=3)):
        (tmp_path / "mp3" / f"{i}.mp3").write_bytes(clip.audio_bytes)
        rows.append([i, f"mp3/{i}.mp3", 50 + 50 * clip.valence, 50 + 50 * clip.arousal, clip.group])
    with open(tmp_path / "moods.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["no", "file", "v", "a", "singer"], *rows])
    columns = {"track_id": "no", "audio": "file", "valence": "v", "arousal": "a", "group": "singer"}
    data = {
        "mine": {
            "loader": "table",
            "uri": str(tmp_path / "moods.csv"),
            "options": columns | {"scale": [0, 100]},
        }
    }
    card = training.run(configured(tmp_path, tmp_path / "out", data=data), console()).card
    assert card.r2["mine"]["arousal"] > 0.5
    assert card.r2["mine"]["n_groups"] == 16


# ------------------------------------------------------------------------------ bad input


def test_more_folds_than_groups_are_refused(
    trained: training.TrainSummary, releases: Path, output: Path
) -> None:
    config = configured(releases, output, split={"n_folds": 500})
    with pytest.raises(ConfigError, match="n_folds=500 must not exceed the 24 groups"):
        training.run(config, console())


def test_a_set_without_any_audio_ends_with_its_budget(local_ray: None, tmp_path: Path) -> None:
    WRITERS["musifeast17"](
        tmp_path / "musifeast17",
        [PlantedClip(0.1 * i, -0.1 * i, f"artist {i}", b"no audio" * 99) for i in range(5)],
    )
    with pytest.raises(ErrorBudgetExceeded, match=r"not_audio .*max_reject_rate"):
        training.run(configured(tmp_path, tmp_path / "out", "musifeast17"), console())
    config = configured(tmp_path, tmp_path / "out", "musifeast17", max_reject_rate=1.0)
    with pytest.raises(DatasetError, match="0 of its 5 have"):
        training.run(config, console())


def test_a_constant_target_is_refused(local_ray: None, tmp_path: Path) -> None:
    clips = [
        PlantedClip(0.5, 0.1 * i, f"artist {i}", knocking(0.5, 0.1 * i, seed=i)) for i in range(4)
    ]
    WRITERS["musifeast17"](tmp_path / "musifeast17", clips)
    with pytest.raises(DatasetError, match="valence must vary"):
        training.run(configured(tmp_path, tmp_path / "out", "musifeast17"), console())


def test_features_of_another_set_or_kind_are_refused_by_name(
    trained: training.TrainSummary, releases: Path, output: Path, tmp_path: Path
) -> None:
    data = {
        "musifeast17": {
            "uri": str(releases / "musifeast17"), "features": str(output / "soundtracks"),
        }
    }  # fmt: skip
    with pytest.raises(DatasetError, match=r"48 of 48 clips have no features .*'Genre_MED_01'"):
        training.run(configured(releases, tmp_path / "out", data=data), console())
    data["musifeast17"]["features"] = str(output / "musifeast17")
    paper = {
        "model": "paper_model1", "features": {"name": "paper"}, "training": {"standardise": False},
    }  # fmt: skip
    config = configured(releases, tmp_path / "out", data=data, pooled=paper)
    with pytest.raises(FeaturesError, match=r"another features_id: .* features\.name=paper"):
        training.run(config, console())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "poolde"}, "did you mean 'pooled'"),
        ({"baselines": ["forest"]}, "baseline='forest' must be one of"),
        ({"recipes": {"x": {"model": "pooled_pg"}}}, "did you mean 'pooled_gp'"),
        ({"recipes": {"x": {"model": "paper_model1"}}}, "does not accept features"),
        (
            {"recipes": {"x": {"model": "paper_model1", "features": {"name": "paper"}}}},
            "standardise=True must be false",
        ),
        (
            {"recipes": {"x": {"model": "log_mel_cnn"}}, "workers": {"n_workers": 3}},
            "batch_size=32 must be a multiple",
        ),
        (
            {"recipes": {"x": {"model": "log_mel_cnn", "fit": {"coupling": 1}}}},
            "must be empty: 'log_mel_cnn' has no closed form",
        ),
        (
            {"recipes": {"x": {"model": "pooled_gp", "fit": {"coupling": 1}}}},
            "must hold only what 'pooled_gp' is fitted with: nothing",
        ),
        (
            {"recipes": {"x": {"model": "pooled_gp", "training": {"epochs": 1}}}},
            "training must be left out",
        ),
        (
            {"recipes": {"x": {"model": "pooled_gp", "features": {"name": "paper"}}}},
            "must be in decibels",
        ),
        (
            {"recipes": {"x": {"model": "pooled_gp", "parameters": {"n_member": 3}}}},
            "n_member",
        ),
        (
            {"recipes": {"x": {"model": "pooled_gp", "features": {"name": "log_mle"}}}},
            "did you mean 'log_mel'",
        ),
    ],
)
def test_names_that_do_not_exist_are_refused_before_any_work(
    releases: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = configured(releases, tmp_path / "out", **changes)
    with pytest.raises(ConfigError, match=words):
        evaluation.run(config, console())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["checkpoint", "../elsewhere", ""])
def test_a_data_set_must_be_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="it names a folder below output"):
        configured(tmp_path, tmp_path / "out", data={name: {"uri": str(tmp_path)}})


def test_a_card_measures_what_tag_writes(releases: Path, tmp_path: Path) -> None:
    raw = {"model": "log_mel_cnn", "clip": False}
    with pytest.raises(ConfigError, match="clip=False must be left out"):
        training.run(configured(releases, tmp_path / "out", pooled=raw), console())


# ------------------------------------------------------------------------------ the commands


def test_the_commands_from_mp3s_to_scores(
    releases: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    config = ROOT / "configs" / "builtin.yaml"
    overrides = [
        *(f"data.{name}.uri={releases / name}" for name in BOTH),
        f"output.uri={tmp_path / 'out'}", "split.n_repeats=1",
    ]  # fmt: skip
    done = run_cli("train", config, *overrides)
    assert done.returncode == 0, done.stderr
    assert "soundtracks, unseen" in done.stdout
    assert "left out soundtracks 025" in done.stdout
    assert "intervals reach" in done.stdout
    done = run_cli("evaluate", config, *overrides)
    assert done.returncode == 0, done.stderr
    assert "the best baseline" in done.stdout
    assert "ceiling" in done.stdout
    done = run_cli(
        "tag", ROOT / "configs" / "tag.yaml", f"catalog.uri={releases / 'musifeast17' / 'audio'}",
        f"output.uri={tmp_path / 'tagged'}", f"model.uri={tmp_path / 'out' / 'checkpoint'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (part,) = (tmp_path / "tagged" / "enriched").rglob("*.parquet")
    tracks = pq.read_table(part).to_pandas()
    for target in ("valence", "arousal"):
        assert (tracks[f"{target}_low"] <= tracks[target]).all()
        assert (tracks[target] <= tracks[f"{target}_high"]).all()
        assert (tracks[f"{target}_high"] - tracks[f"{target}_low"] > 0.01).all()


def test_a_missing_data_set_ends_without_a_traceback(
    tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    done = run_cli(
        "train", ROOT / "configs" / "builtin.yaml", f"data.musifeast17.uri={tmp_path}",
        f"data.soundtracks.uri={tmp_path}", f"output.uri={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "labels.csv" in done.stderr
    assert "Traceback" not in done.stderr
