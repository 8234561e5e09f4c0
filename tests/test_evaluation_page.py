"""The table, the rows and the page, of made-up measurements and in a real browser."""

from __future__ import annotations

import html.parser
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mer_batch.clips import Clips
from mer_batch.datasets import Dataset
from mer_batch.evaluate import Repeat, measure
from mer_batch.evaluation_page import (
    Evaluation,
    Measured,
    page,
    predictions_table,
    results_table,
    text_tables,
)
from mer_batch.learners import Scores

N = 40
rng = np.random.default_rng(0)
LABELS = rng.uniform(-0.8, 0.8, size=(N, 2))


def dataset(name: str) -> Dataset:
    words = dict.fromkeys(("licence", "citation", "source", "grouped_by", "scale"), "words")
    return Dataset(name=name, clips=[], music="<music> & more", **words)


@pytest.fixture
def evaluation() -> Evaluation:
    clips = Clips(
        datasets=[dataset("soundtracks")],
        track_ids=np.array([f"t{i}" for i in range(N)]),
        labels=LABELS,
        tasks=np.zeros(N, np.int64),
        groups=np.array([f"g{i // 2}" for i in range(N)]),
        splits=np.full(N, ""),
    )

    def measured(name: str, kind: str, noise: float) -> Measured:
        mean = np.clip(LABELS + noise * rng.normal(size=(N, 2)), -1, 1)
        repeat = Repeat(np.arange(N), np.arange(N) % 5, Scores(mean, np.full((N, 2), np.nan)))
        entry = measure(clips, [repeat, repeat], protocol=f"{kind} protocol", seed=0)
        return Measured("soundtracks", name, kind, entry, [repeat, repeat])

    return Evaluation(
        clips=clips,
        measured=[
            measured("ridge", "baseline", 0.3),
            measured("good", "recipe", 0.1),
            measured("bad <b>", "recipe", 0.6),
        ],
        ceilings={"soundtracks": (0.77, 0.82)},
        notes=["A note <script>alert(1)</script>"],
    )


class Outline(html.parser.HTMLParser):
    """Opening and closing tags in balance, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "path", "use", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "use", "image"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_recipe_is_told_when_it_does_not_beat_the_baselines(evaluation: Evaluation) -> None:
    verdicts = evaluation.verdicts()
    assert sum("good" in line and " beats " in line for line in verdicts) == 2
    assert sum("bad" in line and "does not beat" in line for line in verdicts) == 2
    assert all("best baseline, ridge" in line for line in verdicts)


def test_results_hold_every_figure_and_what_stands_beside(evaluation: Evaluation) -> None:
    rows = results_table(evaluation).to_pylist()
    good = next(row for row in rows if row["model"] == "good" and row["target"] == "arousal")
    entry = evaluation.measured[1].entry
    assert good["r2"] == entry["arousal"]
    assert [good["r2_low"], good["r2_high"]] == entry["arousal_interval"]
    assert (good["n_clips"], good["kind"]) == (N, "recipe")
    assert {row["kind"] for row in rows} == {"baseline", "recipe", "ceiling", "published"}
    ceiling = {row["target"]: row["r2"] for row in rows if row["kind"] == "ceiling"}
    assert ceiling == {"valence": 0.77, "arousal": 0.82}
    paper = {row["r2"] for row in rows if row["model"].startswith("paper, model")}
    assert {-1.12, 0.76, 0.981, 0.173} <= paper


def test_predictions_reproduce_the_figures(evaluation: Evaluation) -> None:
    frame = predictions_table(evaluation).to_pandas()
    assert len(frame) == 3 * 2 * N
    good = frame[(frame["model"] == "good") & (frame["repeat"] == 1)]
    residual = ((good["valence_label"] - good["valence"]) ** 2).sum()
    total = ((good["valence_label"] - good["valence_label"].mean()) ** 2).sum()
    assert 1 - residual / total == pytest.approx(evaluation.measured[1].entry["valence"], abs=1e-4)


def test_the_terminal_has_one_row_for_each(evaluation: Evaluation) -> None:
    (table,) = text_tables(evaluation)
    names = list(table.columns[0].cells)
    text = io.StringIO()
    Console(file=text, width=80).print(table)
    assert "…" not in text.getvalue()
    assert names[:4] == ["ridge, baseline", "good", "bad <b>", "ceiling: label noise"]


def test_the_page_is_whole_and_takes_names_for_text(evaluation: Evaluation) -> None:
    text = page(evaluation, title="A & B")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.counts["svg"] == 4  # two recipes, two targets
    assert "script" not in outline.counts and "b" not in outline.counts
    assert "<script>alert(1)</script>" in outline.text
    assert "does not beat" in outline.text and "0.820" in outline.text
    assert not {"script", "link", "img"} & set(outline.counts)  # nothing is fetched


def test_a_browser_shows_the_page(evaluation: Evaluation, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: chromium is not installed")
    (tmp_path / "report.html").write_text(page(evaluation, title="The title"), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2600",
        f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'report.html'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    import matplotlib.image

    picture = matplotlib.image.imread(tmp_path / "page.png")[:, :, :3]
    assert picture.shape[:2] == (2600, 1200)
    # The dots of the plots are there, in their colour, over white.
    blue = picture[:, :, 2] - picture[:, :, 0] > 0.25
    assert blue.sum() > 1000
    assert (picture > 0.98).all(axis=2).mean() > 0.5
