"""``mer-batch labels``: figures of every set that can be read, then what is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mer_batch.config import LabelledDataConfig, LabelsConfig, load_config
from mer_batch.datasets import dataset_names
from mer_batch.errors import ConfigError
from mer_batch.labels import load_configured, run
from tests.datasets.releases import WRITERS, PlantedClip

Run = Callable[..., "subprocess.CompletedProcess[str]"]

CLIPS = [
    PlantedClip(-0.5, 0.5, "one"),
    PlantedClip(0.5, -0.5, "two"),
    PlantedClip(0.0, 0.0, "one"),
    PlantedClip(0.0, 0.0, "three"),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Deezer, and 1000 Songs after DEAM."""
    data = {}
    for name in ("deezer", "deam", "songs1000"):
        WRITERS[name](tmp_path / name, CLIPS)
        data[name] = {"uri": str(tmp_path / name)}
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump({"data": data}, sort_keys=False))
    return path


def test_figures_are_those_planted(config: Path) -> None:
    report = run(load_config(LabelsConfig, config))
    assert not report.faults
    deezer = report.summaries[0]
    assert (deezer.n_groups, deezer.n_missing, deezer.n_distinct) == (3, 0, 3)
    assert deezer.splits == {"train": 1, "validation": 1, "test": 2}
    assert deezer.correlation == pytest.approx(-1)
    valence = deezer.targets["valence"]
    assert (valence.low, valence.high, valence.mean) == pytest.approx((-0.5, 0.5, 0))
    assert valence.std == pytest.approx(0.125**0.5)
    assert not deezer.has_spread and deezer.ceiling is None
    assert report.summaries[1].has_spread and report.summaries[1].ceiling is not None


def test_notes_tell_of_swaps_torn_groups_and_repeats(config: Path) -> None:
    notes = "\n".join(run(load_config(LabelsConfig, config)).notes)
    assert "deam: valence and arousal of 4 songs up to 1000 are swapped back" in notes
    assert "deezer: 1 artists stand in more than one part of the official split, 1 of them" in notes
    assert "songs1000: 4 of 4 clips are left out, as deam holds them: 2, 3, 4 and 1 more" in notes


def test_one_command_prints_them(run_cli: Run, config: Path) -> None:
    shown = run_cli("labels", config)
    assert shown.returncode == 0, shown.stderr
    header = next(line for line in shown.stdout.splitlines() if "deezer" in line)
    assert header.split().index("deezer") < header.split().index("songs1000")
    assert "1 train, 1 validation, 2 test" in shown.stdout
    assert "note     deam: valence and arousal of 4 songs" in shown.stdout
    assert "licence  deezer: None stated by the authors" in shown.stdout


def test_figures_are_shown_although_audio_is_missing(
    run_cli: Run, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "deezer" / "audio" / "7001.mp3").unlink()
    (tmp_path / "deam" / "MEMD_audio" / "2.mp3").unlink()
    shown = run_cli("labels", config)
    assert shown.returncode == 2
    assert "1 validation" in shown.stdout
    assert "'deezer': 1 of 4 audio files are missing: 7001" in shown.stderr
    assert "'deam': 1 of 4 audio files are missing: 2" in shown.stderr
    assert run_cli("labels", config, "audio=false").returncode == 0


def test_a_set_that_cannot_be_read_does_not_hide_the_others(
    run_cli: Run, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "deezer" / "test.csv").unlink()
    shown = run_cli("labels", config)
    assert shown.returncode == 2
    assert "songs1000" in shown.stdout and "deezer" not in shown.stdout
    assert "test.csv" in shown.stderr


def test_labels_lie_on_a_local_disk() -> None:
    with pytest.raises(ConfigError, match=r"data\.mine\.uri='s3://bucket/x' must be a local path"):
        load_configured("mine", LabelledDataConfig(uri="s3://bucket/x", loader="table"))


def test_the_shipped_configuration_names_every_loader() -> None:
    path = Path(__file__).parents[1] / "configs" / "labels.yaml"
    config = load_config(LabelsConfig, path)
    loaders = {settings.loader or name for name, settings in config.data.items()}
    assert loaders == set(dataset_names())
