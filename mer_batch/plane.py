"""Pictures of the valence-arousal plane: characters for a terminal, PNG for everyone else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WIDTH, _HEIGHT = 61, 21
_COLOURS = ("#c0392b", "#e67e22", "#2471a3", "#229954", "#7d3c98", "#5d6d7e")


@dataclass(frozen=True)
class Point:
    """A scored track on the plane, with the group it belongs to."""

    valence: float
    arousal: float
    group: str


def plane_text(points: Sequence[Point]) -> str:
    """Draw points as the first letters of their groups; ``*`` where two groups meet."""
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for row in range(_HEIGHT):
        grid[row][_WIDTH // 2] = "|"
    grid[_HEIGHT // 2] = ["-"] * _WIDTH
    grid[_HEIGHT // 2][_WIDTH // 2] = "+"
    marks: dict[tuple[int, int], str] = {}
    for point in points:
        column = round((point.valence + 1) / 2 * (_WIDTH - 1))
        row = round((1 - point.arousal) / 2 * (_HEIGHT - 1))
        letter = point.group[:1].upper() or "?"
        marks[row, column] = letter if marks.get((row, column), letter) == letter else "*"
    for (row, column), mark in marks.items():
        grid[row][column] = mark
    body = "\n".join(f"   |{''.join(line)}|" for line in grid)
    border = f"   +{'-' * _WIDTH}+"
    low, high = "valence -1", "+1"
    foot = f"    {low}{' ' * (_WIDTH - len(low) - len(high))}{high}"
    return f"   arousal +1\n{border}\n{body}\n{border}\n{foot}"


def draw_plane(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Draw points as a scatter plot into a PNG file."""
    # Imported here: it takes half a second, and most commands draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.8", linewidth=1)
    axes.axvline(0, color="0.8", linewidth=1)
    for number, group in enumerate(dict.fromkeys(point.group for point in points)):
        at = np.array([(p.valence, p.arousal) for p in points if p.group == group])
        colour = _COLOURS[number % len(_COLOURS)]
        axes.scatter(at[:, 0], at[:, 1], s=46, color=colour, alpha=0.75, label=group)
        valence, arousal = at.mean(axis=0)
        axes.scatter(valence, arousal, s=160, color=colour, marker="x", linewidths=2.5)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xlabel="valence", ylabel="arousal", title=title)
    axes.set_aspect("equal")
    if points:
        axes.legend(loc="lower right")
    figure.savefig(path)
