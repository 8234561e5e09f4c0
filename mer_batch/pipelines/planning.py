"""What a night would do, and what it would take: reads only, holds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from mer_batch.checkpoint import read_checkpoint
from mer_batch.config import TagConfig
from mer_batch.enrich import is_published
from mer_batch.estimate import Estimate, estimate, latest_manifests
from mer_batch.ledger import Ledger
from mer_batch.pipelines.tagging import (
    catalog_of,
    identity_of,
    night_content_id,
    night_folder,
)
from mer_batch.plan import make_plan, with_features
from mer_batch.schema import utc_now
from mer_batch.storage import Storage, parse_uri


@dataclass(frozen=True)
class PlanSummary:
    """What ``tag`` would do now.

    Attributes
    ----------
    n_tracks, n_done, n_rejected : int
        Rows of the catalog; those that are scored, or rejects that hold.
    n_pending, n_new, n_changed, n_retried : int
        Tracks to do: new to this model, with audio that has changed, rejects that are tried again.
    n_from_features : int
        Of these, those scored from their features, without decoding.
    n_removed : int
        Tracks that the output knows and the catalog does not have.
    night_uri : str
    is_published : bool
        Whether the night is there as it would be published.
    estimate : Estimate
    cost_per_cpu_hour : float or None
    notes : list of str
    """

    n_tracks: int
    n_done: int
    n_rejected: int
    n_pending: int
    n_new: int
    n_changed: int
    n_retried: int
    n_from_features: int
    n_removed: int
    night_uri: str
    is_published: bool
    estimate: Estimate
    cost_per_cpu_hour: float | None
    notes: list[str]


def run(config: TagConfig, *, cost_per_cpu_hour: float | None = None) -> PlanSummary:
    """Say what ``tag`` would do. Nothing is written and no lease is taken.

    Raises
    ------
    RefusedError
        Where ``tag`` would refuse: configuration, catalog, checkpoint or storage.
    """
    storage, output = Storage(config.storage), parse_uri(config.output.uri)
    checkpoint = read_checkpoint(config.model.uri, storage)
    catalog = catalog_of(config, storage)
    ledger = Ledger(storage, output, catalog.id_type, product=None)
    identity = identity_of(config, checkpoint)
    detects = config.catalog.changes == "detect"
    plan = make_plan(catalog, ledger, storage, identity, detect_changes=detects)
    from_features, to_decode, problems = with_features(
        plan, ledger, identity.features_id, config.audio.limits().audio
    )
    found = estimate(
        latest_manifests(storage, output),
        n_tracks=len(plan),
        n_to_decode=len(to_decode),
        n_to_rescore=len(from_features),
        n_cpus=config.ray.num_cpus,
    )
    folder = night_folder(config, output, utc_now())
    is_there = plan.n_pending == 0 and is_published(
        storage, folder, night_content_id(config, catalog, plan, ledger, identity)
    )
    return PlanSummary(
        len(plan), plan.n_done, plan.n_rejected, plan.n_pending, plan.n_new, plan.n_changed,
        plan.n_retried, len(from_features), plan.n_removed, folder.uri, is_there, found,
        cost_per_cpu_hour, [*catalog.notes, *problems],
    )  # fmt: skip
