"""The demo: compose two dozen pieces, tag them through the real pipeline, show where they land."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from rich.console import Console
from rich.table import Table

from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.config import TagConfig, parse_config
from mer_batch.pipelines import tagging
from mer_batch.plane import Point, draw_plane, plane_text
from mer_batch.summary import print_tag_summary

_PIECES_PER_MOOD = 6


def run_demo(folder: Path, console: Console) -> None:
    """Compose, tag and show.

    Parameters
    ----------
    folder : Path
        Gets ``audio/``, ``catalog.csv``, ``out/`` and ``plane.png``.
    console : Console
    """
    n_pieces = _PIECES_PER_MOOD * len(MOODS)
    console.print(f"composing {n_pieces} pieces in {len(MOODS)} moods into {folder / 'audio'}")
    catalog = write_catalog(folder)
    config = parse_config(
        TagConfig,
        {"catalog": {"uri": str(catalog)}, "output": {"uri": str(folder / "out")}},
        origin="demo",
    )
    summary = tagging.run(config, console)
    print_tag_summary(console, summary)
    tracks = pads.dataset(summary.night_uri, format="parquet").to_table()
    console.print()
    console.print(_table(tracks))
    points = [
        Point(row["valence"], row["arousal"], row["mood"])
        for row in tracks.to_pylist()
        if row["valence"] is not None
    ]
    console.print(plane_text(points))
    console.print(f"    {', '.join(f'{mood[0].upper()} {mood}' for mood in MOODS)}")
    picture = folder / "plane.png"
    draw_plane(points, picture, title="Where the composed pieces land")
    console.print(f"\npicture  {picture}\ntracks   {summary.night_uri}")


def write_catalog(folder: Path) -> Path:
    """Compose the pieces and write them and their catalog; returns the catalog's path."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    path = folder / "catalog.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["track_id", "audio_uri", "title", "mood"])
        for mood in MOODS:
            for number in range(1, _PIECES_PER_MOOD + 1):
                name = f"{mood}-{number}"
                audio = folder / "audio" / f"{name}.mp3"
                content = encode_mp3(compose(mood, number))
                # An unchanged file keeps its time: a second demo then finds nothing to do.
                if not audio.exists() or audio.read_bytes() != content:
                    audio.write_bytes(content)
                rows.writerow([name, f"audio/{name}.mp3", f"Study in {mood} no. {number}", mood])
    return path


def _table(tracks: pa.Table) -> Table:
    table = Table(title="scores by mood", title_justify="left")
    for heading in ("track", "valence", "arousal", "status"):
        table.add_column(heading, justify="left" if heading in ("track", "status") else "right")
    for mood in MOODS:
        rows = [row for row in tracks.to_pylist() if row["mood"] == mood]
        for row in rows:
            table.add_row(row["track_id"], *_scores(row), row["tag_status"])
        means = [
            np.mean([row[t] for row in rows if row[t] is not None] or [np.nan])
            for t in ("valence", "arousal")
        ]
        table.add_row(
            f"mean {mood}", *(f"{mean:+.2f}" for mean in means), "", style="bold", end_section=True
        )
    return table


def _scores(row: dict[str, float | None]) -> list[str]:
    values = (row["valence"], row["arousal"])
    return ["" if value is None else f"{value:+.2f}" for value in values]
