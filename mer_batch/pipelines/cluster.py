"""Connect to Ray: a cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

# Set before ray is imported: it reads them then.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from mer_batch.config import RayConfig
from mer_batch.errors import ConfigError

# Only names of parts and reject rows pass through the object store, never audio or features.
_OBJECT_STORE_BYTES = 512 * 1024 * 1024


@contextlib.contextmanager
def connected(config: RayConfig, *, meanwhile: Callable[[], None]) -> Iterator[int]:
    """Ray, for the length of a job.

    A Ray that this process is connected to already is used and left running. Else
    ``config.address``, else ``RAY_ADDRESS``, else a local Ray that ends with the job.

    Parameters
    ----------
    config : RayConfig
    meanwhile : callable
        Run in another thread while Ray starts; what it raises is raised here.

    Yields
    ------
    int
        Number of CPUs.
    """
    ours = not ray.is_initialized()
    try:
        # Ray's start is waiting for the most part. It has the main thread: its processes die with
        # the thread that started them.
        with ThreadPoolExecutor(1) as second:
            other = second.submit(meanwhile)
            if ours:
                _connect(config)
            other.result()
        yield cluster_cpus()
    finally:
        if ours:
            ray.shutdown()


def cluster_cpus() -> int:
    """CPUs that the cluster has now, at least one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


def _connect(config: RayConfig) -> None:
    level = logging.INFO if config.verbose else logging.ERROR
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        try:
            ray.init(address=address, log_to_driver=config.verbose, logging_level=level)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"ray.address={address!r} cannot be reached: {error}; check that the cluster runs"
            ) from error
        return
    ray.init(
        address="local",
        num_cpus=config.num_cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=config.verbose,
        logging_level=level,
    )
