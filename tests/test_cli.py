"""The command line as a user meets it: exit codes, and words instead of tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_names_every_command(run_cli: Run) -> None:
    shown = run_cli("--help")
    assert shown.returncode == 0
    for command in ("tag", "replay", "extract", "compact", "train", "evaluate", "labels", "demo"):
        assert command in shown.stdout


def test_help_imports_neither_ray_nor_torch() -> None:
    program = (
        "import sys; from mer_batch.cli import run_command; run_command(['--help']); "
        "sys.exit(bool({'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["tagg"], "Did you mean 'tag'"),
        (["tag"], "Missing argument 'CONFIG'; see mer-batch --help"),
        (["tag", "no-such.yaml"], "no-such.yaml"),
        (["tag", "{config}", "catalog.ur=x"], "did you mean 'catalog.uri'"),
        (["tag", "{config}", "nonsense"], "section.key=value"),
        (["tag", "{config}", "catalog.uri=no-such-folder"], "no such file or folder"),
        (["tag", "{config}", "model.uri=no-such-model"], "no-such-model/card.json"),
        (["tag", "{config}", "catalog.allowed_roots=[/none]"], "8 URIs outside catalog.allowed_r"),
        (["tag", "{config}", "catalog.allowed_roots=['gs://b']"], "catalog.allowed_roots: uri="),
        (["replay", "{config}"], "reason is missing"),
        (["replay", "{config}", "reason=time_out"], "did you mean 'timeout'"),
        (["replay", "{config}", "reason=all", "catalog.ur=x"], "did you mean 'catalog.uri'"),
        (["compact", "{config}"], "must hold scores or features; run mer-batch tag or extract"),
        (["compact", "{config}", "compact.retention_days=1"], "compact.allow_short_retention=true"),
    ],
)
def test_what_is_wrong_is_refused_in_words(
    run_cli: Run, tmp_path: Path, music: Path, arguments: list[str], words: str
) -> None:
    config = tmp_path / "tag.yaml"
    config.write_text(f"catalog: {{uri: {music}}}\noutput: {{uri: {tmp_path / 'out'}}}\n")
    refused = run_cli(*(argument.format(config=config) for argument in arguments))
    assert refused.returncode == 2
    assert words in refused.stderr
    assert refused.stderr.startswith("mer-batch: ")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_secret_in_the_environment_is_refused_before_anything_is_written(
    run_cli: Run, tmp_path: Path, music: Path
) -> None:
    config = tmp_path / "tag.yaml"
    config.write_text(f"catalog: {{uri: {music}}}\noutput: {{uri: {tmp_path / 'out'}}}\n")
    refused = run_cli(
        "tag", config, env={**os.environ, "RAY_ADDRESS": "ray://user:sekritword@host:1"}
    )
    assert refused.returncode == 2
    assert "RAY_ADDRESS='ray://***@host:1' must not hold credentials" in refused.stderr
    assert "sekritword" not in refused.stderr + refused.stdout
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_table_picture_and_24_tracks(run_cli: Run, tmp_path: Path) -> None:
    shown = run_cli("demo", "--output", tmp_path / "demo")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(" scored ") >= 24
    assert "arousal +1" in shown.stdout
    assert (tmp_path / "demo" / "plane.png").read_bytes().startswith(b"\x89PNG")
    # The moods land where they were composed to land.
    means = {
        words[1]: (float(words[3]), float(words[5]))
        for words in (
            line.replace("│", " │ ").replace("mean ", "").split()
            for line in shown.stdout.splitlines()
            if "mean " in line and "│" in line
        )
    }
    assert means["joyful"][0] > means["tense"][0]
    assert means["calm"][0] > means["sad"][0]
    assert min(means["tense"][1], means["joyful"][1]) > max(means["sad"][1], means["calm"][1])
