"""What an evaluation found: rows for Parquet, a table for a terminal, a page for a browser."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich import box
from rich.table import Table

from mer_batch.clips import Clips
from mer_batch.evaluate import Repeat, number
from mer_batch.published import published_for
from mer_batch.schema import TARGETS

Float64 = npt.NDArray[np.float64]

_MAX_VECTOR_POINTS = 2000
_METRICS = ("rmse", "correlation", "ccc", "coverage")


@dataclass(frozen=True)
class Measured:
    """One learner on one data set.

    Attributes
    ----------
    dataset, name : str
        Of the data set and the learner.
    kind : {"baseline", "recipe", "unseen"}
        ``unseen``: a recipe that was fitted to the other data sets.
    entry : dict
        See ``evaluate.measure``.
    repeats : list of Repeat
        The scores behind it.
    """

    dataset: str
    name: str
    kind: str
    entry: dict[str, Any]
    repeats: list[Repeat]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured.

    Attributes
    ----------
    clips : Clips
    measured : list of Measured
    ceilings : dict
        By data set the R^2 that a perfect model would have against these labels, where the
        spread between raters tells.
    notes : list of str
        What a reader has to know: clips left out, and the configuration's own words.
    """

    clips: Clips
    measured: list[Measured]
    ceilings: dict[str, tuple[float, float] | None]
    notes: list[str]

    def verdicts(self) -> list[str]:
        """For each recipe and data set whether it beats every baseline, in words."""
        lines = []
        for ours in self.measured:
            if ours.kind != "recipe":
                continue
            for target in TARGETS:
                rivals = [
                    m
                    for m in self.measured
                    if m.kind == "baseline"
                    and m.dataset == ours.dataset
                    and m.entry[target] is not None
                ]
                if not rivals or ours.entry[target] is None:
                    continue
                best = max(rivals, key=lambda rival: float(rival.entry[target]))
                does = "beats" if ours.entry[target] > best.entry[target] else "does not beat"
                lines.append(
                    f"{ours.dataset}, {target}: {ours.name} ({ours.entry[target]:.3f}) {does} the "
                    f"best baseline, {best.name} ({best.entry[target]:.3f})"
                )
        return lines


def results_table(evaluation: Evaluation) -> pa.Table:
    """One row per data set, learner and target."""
    rows = []
    for measured in evaluation.measured:
        entry = measured.entry
        for target in TARGETS:
            low, high = entry[f"{target}_interval"]
            rows.append(
                {
                    "dataset": measured.dataset,
                    "model": measured.name,
                    "kind": measured.kind,
                    "target": target,
                    "r2": entry[target],
                    "r2_std": entry[f"{target}_std"],
                    "r2_low": low,
                    "r2_high": high,
                    **{name: entry[f"{target}_{name}"] for name in _METRICS},
                    "n_clips": entry["n_clips"],
                    "n_groups": entry["n_groups"],
                    "protocol": entry["protocol"],
                }
            )
    for dataset in evaluation.clips.datasets:
        for system, values, kind in _beside(evaluation, dataset.name):
            for target, value in zip(TARGETS, values, strict=True):
                rows.append(
                    {"dataset": dataset.name, "model": system, "kind": kind, "target": target,
                     "r2": value}
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_RESULTS)


_RESULTS = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "model", "kind", "target")),
        *((name, pa.float64()) for name in ("r2", "r2_std", "r2_low", "r2_high", *_METRICS)),
        *((name, pa.int64()) for name in ("n_clips", "n_groups")),
        ("protocol", pa.string()),
    ]
)


def predictions_table(evaluation: Evaluation) -> pa.Table:
    """One row per data set, learner, repeat and clip."""
    clips, tables = evaluation.clips, []
    for measured in evaluation.measured:
        for drawing, repeat in enumerate(measured.repeats):
            n = len(repeat.rows)
            columns: dict[str, Any] = {
                "dataset": [measured.dataset] * n,
                "model": [measured.name] * n,
                "kind": [measured.kind] * n,
                "repeat": np.full(n, drawing),
                "fold": repeat.fold_of,
                "track_id": clips.track_ids[repeat.rows],
                "group": clips.groups[repeat.rows],
            }
            for column, target in enumerate(TARGETS):
                columns[f"{target}_label"] = clips.labels[repeat.rows, column]
                columns[target] = repeat.scores.mean[:, column]
                columns[f"{target}_std"] = pa.array(repeat.scores.std[:, column], from_pandas=True)
            tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _beside(evaluation: Evaluation, dataset: str) -> list[tuple[str, tuple[float, float], str]]:
    """What else stands in the table: the ceiling, and what others have printed."""
    rows = []
    loader = next(d.loader for d in evaluation.clips.datasets if d.name == dataset)
    ceiling = evaluation.ceilings.get(dataset)
    if ceiling is not None:
        rows.append(("ceiling: label noise", ceiling, "ceiling"))
    rows += [(row.system, (row.valence, row.arousal), "published") for row in published_for(loader)]
    return rows


#: Of the table; a row for each target.
_HEADINGS = ("model", "target", "R²", "95 % interval", "r", "CCC", "RMSE", "covers")


def text_tables(evaluation: Evaluation) -> list[Table]:
    """One table for each data set, for a terminal of 80 columns."""
    tables = []
    for dataset in evaluation.clips.datasets:
        rows = _rows(evaluation, dataset.name)
        n_clips = len(evaluation.clips.of(evaluation.clips.datasets.index(dataset)))
        table = Table(
            title=f"{dataset.name}: {n_clips} clips ({dataset.music})",
            title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        for heading in _HEADINGS:
            is_text = heading in ("model", "target")
            table.add_column(
                heading, justify="left" if is_text else "right", no_wrap=heading != "model"
            )
        for _, name, cells in rows:
            table.add_row(name, *("\n".join(column) for column in zip(*cells, strict=True)))
        tables.append(table)
    return tables


def _rows(evaluation: Evaluation, dataset: str) -> list[tuple[str, str, list[list[str]]]]:
    """Kind and name of each row of the table, and for each target its cells."""
    rows = [
        (m.kind, _name(m), [_cells(m.entry, target) for target in TARGETS])
        for m in evaluation.measured
        if m.dataset == dataset
    ]
    for system, values, kind in _beside(evaluation, dataset):
        cells = [
            [target, f"{value:.3f}", "", "", "", "", ""]
            for target, value in zip(TARGETS, values, strict=True)
        ]
        rows.append((kind, system, cells))
    return rows


def _name(measured: Measured) -> str:
    return measured.name if measured.kind == "recipe" else f"{measured.name}, {measured.kind}"


def _cells(entry: dict[str, Any], target: str) -> list[str]:
    deviation, coverage = entry[f"{target}_std"], entry[f"{target}_coverage"]
    return [
        target,
        number(entry[target], 3) + ("" if deviation is None else f" ±{deviation:.3f}"),
        " to ".join(number(end, 2) for end in entry[f"{target}_interval"]),
        *(number(entry[f"{target}_{name}"], 2) for name in ("correlation", "ccc", "rmse")),
        "-" if coverage is None else f"{coverage:.1%}",
    ]


# ----------------------------------------------------------------------------------- the page

_LEGEND = (
    "R² is followed by its deviation over repeats; the 95 % interval is over which groups of clips "
    "were measured. r is Pearson's correlation, CCC Lin's concordance. Covers: share of clips "
    "within intervals of 90 % that were calibrated on the other folds. The mean predictor's R² is "
    "zero at best. Unseen: fitted to the other data sets alone, with ratings on another scale. "
    "Baselines learn from the one data set alone. Published figures were measured on other data or "
    "splits."
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td[rowspan] + td { text-align: left; }
td[rowspan] { vertical-align: top; } tr.recipe td[rowspan] { font-weight: 600; }
tr.published, tr.ceiling { color: #666; }
figure { display: inline-block; margin: .5rem; } figcaption { text-align: center; }
svg { max-width: 100%; height: auto; }
"""


def page(evaluation: Evaluation, *, title: str) -> str:
    """The whole evaluation as one HTML file that needs nothing beside it."""
    parts = [f"<h1>{html.escape(title)}</h1>", *_paragraphs(evaluation.notes)]
    for dataset in evaluation.clips.datasets:
        ours = [measured for measured in evaluation.measured if measured.dataset == dataset.name]
        parts.append(f"<h2>{html.escape(dataset.name)}: {html.escape(dataset.music)}</h2>")
        parts.append(_html_table(evaluation, dataset.name))
        for measured in ours:
            if measured.kind == "recipe":
                parts += [_figure(evaluation.clips, measured, column) for column in range(2)]
        parts += _paragraphs([f"{dataset.citation} Terms: {dataset.licence}"])
    parts += ["<h2>Against the baselines</h2>", "<ul>"]
    parts += [f"<li>{html.escape(line)}</li>" for line in evaluation.verdicts()]
    parts += ["</ul>", "<h2>How it was measured</h2>", f"<p>{html.escape(_LEGEND)}</p>", "<ul>"]
    protocols = dict.fromkeys(str(measured.entry["protocol"]) for measured in evaluation.measured)
    parts += [f"<li>{html.escape(protocol)}</li>" for protocol in protocols]
    body = "\n".join([*parts, "</ul>"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [f"<p>{html.escape(text)}</p>" for text in texts]


def _html_table(evaluation: Evaluation, dataset: str) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(heading)}</th>" for heading in _HEADINGS), "</tr>"]
    for kind, name, (first, *others) in _rows(evaluation, dataset):
        name_cell = f'<td rowspan="{len(TARGETS)}">{html.escape(name)}</td>'
        lines.append(f'<tr class="{kind}">{name_cell}{_tags(first)}</tr>')
        lines += [f'<tr class="{kind}">{_tags(cells)}</tr>' for cells in others]
    return "\n".join([*lines, "</table>"])


def _tags(cells: list[str]) -> str:
    return "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)


def _figure(clips: Clips, measured: Measured, column: int) -> str:
    """Predicted against true, of the first repeat, with the line where both are equal."""
    # Imported here: it takes half a second, and most commands draw nothing.
    from matplotlib.figure import Figure

    repeat, target = measured.repeats[0], TARGETS[column]
    labels, scores = clips.labels[repeat.rows, column], repeat.scores.mean[:, column]
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([-1, 1], [-1, 1], color="0.6", linewidth=1)
    axes.scatter(
        labels, scores, s=14, alpha=0.6, color="#2471a3", linewidths=0,
        rasterized=len(labels) > _MAX_VECTOR_POINTS,
    )  # fmt: skip
    reach = max(1.0, float(np.abs(scores).max()))
    axes.set(
        xlim=(-1, 1), ylim=(-reach, reach), xlabel=f"rated {target}", ylabel=f"predicted {target}"
    )
    axes.set_aspect("equal" if reach == 1 else "auto")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    picture = text.getvalue()
    caption = f"{measured.name}, {target}: R² {number(measured.entry[target], 3)}"
    if len(measured.repeats) > 1:
        caption += f" over {len(measured.repeats)} repeats, the first of them shown"
    return (
        f"<figure>{picture[picture.index('<svg') :]}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
