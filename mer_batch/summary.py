"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc
from rich.console import Console

from mer_batch.schema import REASONS, TARGETS

if TYPE_CHECKING:
    from mer_batch.pipelines.extraction import ExtractSummary
    from mer_batch.pipelines.tagging import TagSummary


def print_tag_summary(console: Console, summary: TagSummary) -> None:
    """Print how many tracks were scored, why others were not, and where the result lies."""
    outcome = summary.outcome
    n_rejected = sum(outcome.n_rejected.values())
    if summary.n_tried:
        rate = summary.n_tried / max(summary.work_seconds, 1e-3)
        console.print(
            f"{summary.n_tried:,} tracks decoded in {summary.work_seconds:.1f} s "
            f"({rate:.1f} tracks/s; {summary.seconds:.1f} s with start-up)"
        )
    rows = [
        ("catalog", f"{summary.n_tracks:,} tracks"),
        ("scored", f"{outcome.n_scored:,}"),
        ("rejected", f"{n_rejected:,}"),
    ]
    for reason, count in outcome.n_rejected.items():
        rows.append((f"  {reason}", f"{count:,}  {REASONS.get(reason, '')}"))
    for target in TARGETS:
        mean, std = (f(outcome.columns[target]).as_py() for f in (pc.mean, pc.stddev))
        if mean is not None:
            rows.append((target, f"mean {mean:+.2f}, standard deviation {std:.2f}"))
    was = "" if summary.was_published else "  (unchanged, published before)"
    rows += [("enriched", f"{summary.night_uri}{was}"), ("run", summary.run_id)]
    _print_rows(console, rows)


def print_extract_summary(console: Console, summary: ExtractSummary) -> None:
    """Print how many tracks have features, why others have none, and what they take."""
    if summary.n_tried:
        rate = summary.n_tried / max(summary.work_seconds, 1e-3)
        console.print(
            f"{summary.n_tried:,} tracks decoded in {summary.work_seconds:.1f} s "
            f"({rate:.1f} tracks/s; {summary.seconds:.1f} s with start-up)"
        )
    rows = [
        ("catalog", f"{summary.n_tracks:,} tracks"),
        ("extracted", f"{summary.n_with_features:,}"),
        ("rejected", f"{sum(summary.n_rejected.values()):,}"),
    ]
    for reason, count in summary.n_rejected.items():
        rows.append((f"  {reason}", f"{count:,}  {REASONS.get(reason, '')}"))
    if summary.n_extracted:
        kib = summary.n_bytes / 1024
        rows += [
            ("segments", f"{summary.n_segments:,} in this run"),
            ("written", f"{kib / 1024:,.1f} MiB, {kib / summary.n_extracted:,.1f} KiB a track"),
        ]
    features = f"{summary.features_uri}  (features_id {summary.features_id})"
    _print_rows(console, [*rows, ("features", features), ("run", summary.run_id)])


def _print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}")
