"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mer_batch.schema import DOUBTFUL_REASONS, REASONS, TARGETS

if TYPE_CHECKING:
    from mer_batch.labels import LabelsReport, LabelSummary
    from mer_batch.outcome import Outcome
    from mer_batch.pipelines.compaction import CompactSummary
    from mer_batch.pipelines.evaluation import EvaluationSummary
    from mer_batch.pipelines.extraction import ExtractSummary
    from mer_batch.pipelines.planning import PlanSummary
    from mer_batch.pipelines.tagging import TagSummary
    from mer_batch.pipelines.training import TrainSummary


def _print_rate(console: Console, summary: TagSummary | ExtractSummary) -> None:
    if summary.n_tried:
        rate = summary.n_tried / max(summary.work_seconds, 1e-3)
        console.print(
            f"{summary.n_tried:,} tracks decoded in {summary.work_seconds:.1f} s "
            f"({rate:.1f} tracks/s; {summary.seconds:.1f} s with start-up)"
        )


def _reject_rows(n_rejected: dict[str, int]) -> list[tuple[str, str]]:
    """How many in all, then for each reason how many and what it means."""
    rows = [("rejected", f"{sum(n_rejected.values()):,}")]
    for reason, count in n_rejected.items():
        rows.append((f"  {reason}", f"{count:,}  {REASONS.get(reason, '')}"))
    return rows


def print_tag_summary(console: Console, summary: TagSummary) -> None:
    """Print how many tracks were scored, why others were not, and where the result lies."""
    outcome = summary.outcome
    _print_rate(console, summary)
    rows = [
        ("catalog", f"{summary.n_tracks:,} tracks"),
        ("scored", f"{outcome.n_scored:,}"),
        *_reject_rows(outcome.n_rejected),
    ]
    for target in TARGETS:
        if found := outcome.spread(target):
            rows.append((target, "mean {:+.2f}, standard deviation {:.2f}".format(*found)))
    was = "" if summary.was_published else "  (unchanged, published before)"
    rows += [("enriched", f"{summary.night_uri}{was}"), ("run", summary.run_id)]
    if outcome.n_rejected:
        rows.append(("rejects", f"{summary.rejects_uri}  (a Delta table{_hint(outcome)})"))
    _print_rows(console, rows)


def _hint(outcome: Outcome) -> str:
    """How to try again what may do better without a change of the audio or the limits."""
    reasons = ",".join(reason for reason in outcome.n_rejected if reason in DOUBTFUL_REASONS)
    return f"; to try again: mer-batch replay CONFIG reason={reasons}" if reasons else ""


def print_plan_summary(console: Console, summary: PlanSummary) -> None:
    """Print what is to be done, how long it may take and by what that is reckoned."""
    found = summary.estimate
    n_to_decode = summary.n_pending - summary.n_from_features
    for note in summary.notes:
        console.print(note)
    rates = []
    if n_to_decode:
        rates.append(("decoding", found.decoding))
    if summary.n_from_features:
        rates.append(("scoring from features", found.rescoring))
    money = ""
    if summary.cost_per_cpu_hour is not None:
        money = f", {found.cpu_hours * summary.cost_per_cpu_hour:,.2f} in money"
        money += f" at {summary.cost_per_cpu_hour:g} an hour"
    is_there = "is there already" if summary.is_published else "would be published"
    cpus = f"{found.n_cpus:,} CPU" + ("s" if found.n_cpus != 1 else "")
    rows = [
        ("catalog", f"{summary.n_tracks:,} tracks"),
        ("scored", f"{summary.n_done:,} already"),
        ("rejected", f"{summary.n_rejected:,} already, these hold"),
        ("to do", f"{summary.n_pending:,}"),
        ("  new", f"{summary.n_new:,} to this model"),
        ("  changed", f"{summary.n_changed:,}"),
        ("  retried", f"{summary.n_retried:,}"),
        ("by", f"decoding {n_to_decode:,}, from features {summary.n_from_features:,}"),
        ("removed", f"{summary.n_removed:,} known tracks are no longer in the catalog"),
        ("time", f"about {_duration(found.seconds)} on {cpus}"),
        *(
            ("", f"{doing} {rate.tracks_per_second:,.0f} tracks/s a CPU ({rate.source})")
            for doing, rate in rates
        ),
        ("cost", f"{found.cpu_hours:,.2f} CPU hours{money}"),
        ("night", f"{summary.night_uri} {is_there}"),
    ]
    _print_rows(console, rows)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:,.1f} h"


def print_extract_summary(console: Console, summary: ExtractSummary) -> None:
    """Print how many tracks have features, why others have none, and what they take."""
    _print_rate(console, summary)
    rows = [
        ("catalog", f"{summary.n_tracks:,} tracks"),
        ("extracted", f"{summary.n_with_features:,}"),
        *_reject_rows(summary.n_rejected),
    ]
    if summary.n_extracted:
        kib = summary.n_bytes / 1024
        rows += [
            ("segments", f"{summary.n_segments:,} in this run"),
            ("written", f"{kib / 1024:,.1f} MiB, {kib / summary.n_extracted:,.1f} KiB a track"),
        ]
    features = f"{summary.features_uri}  (features_id {summary.features_id})"
    _print_rows(console, [*rows, ("features", features), ("run", summary.run_id)])


def print_compact_summary(console: Console, summary: CompactSummary) -> None:
    """Print how many parts each table has now, and what was deleted."""
    rows = [
        (
            name,
            f"{table.n_parts_before:,} parts before, {table.n_parts:,} now; {table.n_deleted:,} "
            "files deleted that no version of late names",
        )
        for name, table in summary.tables.items()
    ]
    if summary.n_run_files:
        rows.append(("runs", f"{summary.n_run_files:,} traces of old runs deleted"))
    _print_rows(console, [*rows, ("run", f"{summary.run_id}  ({summary.seconds:.1f} s)")])


def _print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}")


def print_train_summary(console: Console, summary: TrainSummary) -> None:
    """Print how good the model is, how far its intervals reach, and where it lies."""
    from mer_batch.evaluate import describe_r2

    table = Table("R^2 (95 % interval)", "clips", *TARGETS)
    for name, entry in summary.card.r2.items():
        cells = [describe_r2(entry, target) for target in TARGETS]
        table.add_row(name, str(entry["n_clips"]), *cells)
    console.print(table)
    intervals = summary.card.intervals
    if intervals is not None:
        for target in TARGETS:
            width, coverage = intervals.half_width[target], intervals.coverage[target]
            if width is not None and coverage is not None:
                console.print(
                    f"{target}: {intervals.level:.0%} intervals reach {width:.2f} either way; on "
                    f"clips they were not calibrated on they cover {coverage:.1%}"
                )
    for reject in summary.rejects:
        console.print(f"left out {reject.dataset} {reject.track_id}: {reject.message}")
    console.print(f"checkpoint  {summary.checkpoint_uri}")


def print_evaluation_summary(console: Console, summary: EvaluationSummary) -> None:
    """Print a table for each data set, what beats what, and where the page lies."""
    from mer_batch.evaluation_page import text_tables

    for note in summary.evaluation.notes:
        console.print(note)
    for table in text_tables(summary.evaluation):
        console.print(table)
    for line in summary.evaluation.verdicts():
        console.print(line)
    console.print(f"page     {summary.folder_uri}/report.html")
    console.print(f"results  {summary.folder_uri}/results.parquet, predictions.parquet")


def print_labels_report(console: Console, report: LabelsReport) -> None:
    """Print a column of figures for each labelled data set, then their terms and what to note."""
    columns = [_label_figures(summary) for summary in report.summaries]
    if columns:
        table = Table("", *(summary.dataset.name for summary in report.summaries))
        for name in columns[0]:
            table.add_row(name, *(column[name] for column in columns))
        # As wide as its cells: a narrow or unknown terminal must not break figures.
        table.width = console.measure(table, options=console.options.update(max_width=999)).maximum
        console.print(table)
    for summary in report.summaries:
        console.print(f"licence  {summary.dataset.name}: {summary.dataset.licence}")
    for note in report.notes:
        console.print(f"note     {note}")


def _label_figures(summary: LabelSummary) -> dict[str, str]:
    n_clips, n_missing = len(summary.dataset.clips), summary.n_missing
    n_raters = summary.dataset.n_raters
    figures = {
        "clips": f"{n_clips:,}",
        "groups": f"{summary.n_groups:,} by {summary.dataset.grouped_by}",
        "audio found": "not looked for" if n_missing is None else f"{n_clips - n_missing:,}",
        "audio missing": "" if n_missing is None else f"{n_missing:,}",
        "source scale": summary.dataset.scale,
    }
    for target, found in summary.targets.items():
        figures[f"{target}: range"] = f"{found.low:+.2f} to {found.high:+.2f}"
        figures[f"{target}: mean, std"] = f"{found.mean:+.2f}, {found.std:.2f}"
    figures["correlation"] = f"{summary.correlation:+.2f}"
    figures["distinct pairs"] = f"{summary.n_distinct:,}"
    figures["official split"] = (
        ", ".join(f"{count:,} {name}" for name, count in summary.splits.items()) or "none"
    )
    figures["spread between raters"] = "known" if summary.has_spread else "unknown"
    figures["raters a clip"] = "unknown" if n_raters is None else f"{n_raters}"
    figures["ceiling of R^2 (V, A)"] = (
        "unknown" if summary.ceiling is None else "{:.2f}, {:.2f}".format(*summary.ceiling)
    )
    return figures
