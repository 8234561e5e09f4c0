"""Keep an output's tables in order: merge small parts, sum logs up, delete what is of no use."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from mer_batch.compact import merge, old_runs, small_parts
from mer_batch.config import ExtractConfig, TagConfig
from mer_batch.errors import ConfigError, StorageError
from mer_batch.ledger import held_id_type
from mer_batch.pipelines.session import Holding, Product, held
from mer_batch.run import no_refusal
from mer_batch.schema import SCHEMAS
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage, parse_uri

# So many small parts cost a reader a second or two in a store: then a run merges them by itself.
MANY_PARTS = 64


@dataclass
class TableSummary:
    """What was done to a table.

    Attributes
    ----------
    n_parts_before, n_parts : int
        Of its latest version.
    n_merged : int
        Parts that were merged into others.
    n_deleted : int
        Files that no version of late has named.
    """

    n_parts_before: int
    n_parts: int
    n_merged: int = 0
    n_deleted: int = 0


@dataclass
class CompactSummary:
    """How a run of ``compact`` ended.

    Attributes
    ----------
    run_id : str
    tables : dict of str to TableSummary
    n_run_files : int
        Traces of earlier runs that were deleted.
    seconds : float
    """

    run_id: str
    tables: dict[str, TableSummary] = field(default_factory=dict)
    n_run_files: int = 0
    seconds: float = 0.0


def run(config: TagConfig | ExtractConfig, console: Console) -> CompactSummary:
    """Merge the small parts of an output's tables, and delete what is of no use any more.

    Raises
    ------
    RefusedError
        Before any work: configuration or storage, or there is nothing to keep in order.
    LeaseError
        Another run holds the output.
    Interrupted
        By SIGINT or SIGTERM; what was merged is committed.
    """
    began = time.monotonic()
    storage, output = Storage(config.storage), parse_uri(config.output.uri)
    id_type = held_id_type(storage, output)
    if id_type is None:
        raise ConfigError(
            f"output.uri={config.output.uri!r} must hold scores or features; run mer-batch tag or "
            "extract first"
        )
    product = _product(storage, output)
    with held(config, console, storage, id_type, product=product) as holding:
        holding.sweep()
        summary = CompactSummary(holding.run.run_id)
        with no_refusal():
            for name in holding.ledger.tables:
                summary.tables[name] = _compact(holding, name)
            summary.n_run_files = _forget_runs(holding)
        summary.seconds = time.monotonic() - began
        return summary


def _product(storage: Storage, output: Location) -> Product:
    """A table that is there: none is to be made."""
    has_scores = storage.is_folder(output.child("scores", "_delta_log"))
    return "scores" if has_scores else "features"


def compact_if_due(holding: Holding) -> None:
    """Merge the small parts of tables that have many, at the end of a run, if that is wanted.

    The run's own work is done: where a table cannot be kept in order, that is told and left for
    the next run.

    Raises
    ------
    LeaseError
    """
    if holding.config.compact.when == "never":
        return
    try:
        for name in holding.ledger.tables:
            if len(small_parts(holding.ledger.parts(name))) >= MANY_PARTS:
                found = _compact(holding, name)
                holding.say(f"{name}: {found.n_merged:,} small parts merged, {found.n_parts:,} now")
    except StorageError as error:
        holding.say(f"the tables are left as they are, and are merged another time: {error}")
        holding.run.may_leave_parts = True


def _compact(holding: Holding, name: str) -> TableSummary:
    ledger, settings = holding.ledger, holding.config.compact
    ledger.renew()
    before = ledger.parts(name)
    ledger.keep_replaced(name, settings.retention_days)
    n_merged = _merge(holding, name)
    holding.run.lease.check()
    ledger.checkpoint(name)
    reach("log_summed_up")
    n_deleted = _delete(holding, ledger.unused(name, settings.retention_days))
    reach("unused_deleted")
    done = TableSummary(len(before), len(ledger.parts(name)), n_merged, n_deleted)
    holding.run.manifest.setdefault("compacted", {})[name] = vars(done)
    return done


def _merge(holding: Holding, name: str) -> int:
    """Merge a table's small parts, group by group; how many there were."""
    small, n_merged = small_parts(holding.ledger.parts(name)), 0
    for merged in merge(
        holding.storage,
        holding.output.child(name),
        small,
        holding.run.run_id,
        columns=None if name == "features" else SCHEMAS[name](holding.ledger.id_type),
        say=holding.say,
    ):
        with holding.signals.deferred():
            holding.run.lease.check()
            holding.ledger.renew()
            reach("parts_to_replace")
            holding.ledger.replace_parts(name, merged.replaced, merged.part)
            reach("parts_replaced")
        n_merged += len(merged.replaced)
    return n_merged


def _delete(holding: Holding, unused: list[Location]) -> int:
    """Delete what was listed before the lease is confirmed: none of it is a later holder's."""
    reach("unused_to_delete")
    holding.run.lease.confirm()
    for file in unused:
        holding.storage.delete(file)
    # A local folder that has become empty goes as well; one that has not stays.
    for folder in {Path(file.path).parent for file in unused if not file.is_s3}:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return len(unused)


def _forget_runs(holding: Holding) -> int:
    """Delete the traces of old runs."""
    days = holding.config.compact.keep_runs_days
    if days is None:
        return 0
    open_runs = [holding.run.run_id, *holding.run.cut_short()]
    found = old_runs(holding.storage, holding.output, keep_days=days, kept=open_runs)
    return _delete(holding, found)
