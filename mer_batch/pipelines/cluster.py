"""Connect to Ray: a cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

# Set before ray is imported: it reads them then.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.data

from mer_batch.config import RayConfig

# Only names of parts and reject rows pass through the object store, never audio or features.
_OBJECT_STORE_BYTES = 512 * 1024 * 1024


@contextlib.contextmanager
def connected(config: RayConfig, *, patience_seconds: float) -> Iterator[int]:
    """Ray, for the length of a job.

    A Ray that this process is connected to already is used and left running. Else
    ``config.address``, else ``RAY_ADDRESS``, else a local Ray that ends with the job.

    Parameters
    ----------
    config : RayConfig
    patience_seconds : float
        The longest that a block may rightly take [s]; Ray fails a job without progress.

    Yields
    ------
    int
        Number of CPUs.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(config)
    try:
        _configure_data(config.verbose, patience_seconds)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield max(1, int(resources.get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


def _connect(config: RayConfig) -> None:
    level = logging.INFO if config.verbose else logging.ERROR
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        ray.init(address=address, log_to_driver=config.verbose, logging_level=level)
        return
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=config.verbose,
        logging_level=level,
    )


def _configure_data(verbose: bool, patience_seconds: float) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    # A block with an error fails the job: tracks never do, and rows must not vanish quietly.
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = max(
        context.execution_no_progress_timeout_s, patience_seconds
    )
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
