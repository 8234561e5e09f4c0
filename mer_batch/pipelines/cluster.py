"""Connect to Ray: a cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Set before ray is imported: it reads them then.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A raylet asks whether its own object store answers, and would ask again after a whole second.
os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")

import ray
import ray._private.node
import ray._private.services
import ray._private.state
import ray._private.utils
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mer_batch.config import RayConfig
from mer_batch.errors import ClusterError, ConfigError

# Only names of parts and reject rows pass through the object store, never audio; with a scoring
# pool batches of features as well, which are made to fit.
_OBJECT_STORE_BYTES = 512 * 1024 * 1024

# Processes of a local Ray that nothing of ours asks: its dashboard's server, its autoscaler, and
# what copies workers' logs to the driver. Their imports and their end are half of Ray's start and
# stop on two cores. No option of Ray 2.60 leaves them out.
_SPARED = ("start_api_server", "start_monitor", "start_log_monitor")
# How often to look whether a raylet is up, and how long, before Ray looks itself [s]: it would
# sleep for a whole one between two looks.
_LOOK_SECONDS, _LOOK_UNTIL_SECONDS = 0.02, 10.0

# How long nodes may take to unpack a job's files, and a cluster to answer at all [s].
_UNPACK_SECONDS = 60.0
_ANSWER_SECONDS = 10.0


@contextlib.contextmanager
def connected(config: RayConfig, *, meanwhile: Callable[[], None]) -> Iterator[int]:
    """Ray, for the length of a job.

    A Ray that this process is connected to already is used and left running. Else
    ``config.address``, else ``RAY_ADDRESS``, else a local Ray that ends with the job.

    Parameters
    ----------
    config : RayConfig
    meanwhile : callable
        Run while a local Ray starts; what it raises is raised here.

    Yields
    ------
    int
        Number of CPUs.

    Raises
    ------
    ConfigError
        Where the cluster cannot be reached.
    ClusterError
        Where no local Ray can be started.
    """
    ours = not ray.is_initialized()
    try:
        if ours and config.cluster_address() == "local":
            # Ray's start is waiting for the most part. It has the main thread: its processes die
            # with the thread that started them.
            with ThreadPoolExecutor(1) as second:
                other = second.submit(meanwhile)
                _start(config)
                other.result()
        else:
            # Before, not while a cluster is joined: it may unpack our modules anew.
            meanwhile()
            if ours:
                _join(config.cluster_address(), config)
        yield max(1, cluster_cpus())
    finally:
        if ours:
            with _quiet_stderr(config):
                ray.shutdown()
            _keep_handlers()


def _keep_handlers() -> None:
    """Have signals reach Python's handlers again: Ray takes SIGTERM from them as it goes down.

    Python is not told. Who is asked to stop while a night is published would end on the spot, and
    leave a lease that the next run must wait for.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_stderr(config: RayConfig) -> Iterator[None]:
    """Keep what Ray's own threads write to descriptor 2 from the user, unless it is wanted.

    As it goes down it complains about tasks that are given up, as whoever stopped it knows.
    """
    with contextlib.ExitStack() as restored:
        # Without a handle to spare, words too many are the smaller evil.
        with contextlib.suppress(OSError):
            if not config.verbose:
                sys.stderr.flush()
                kept = os.dup(2)
                restored.callback(os.close, kept)
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
                restored.callback(os.dup2, kept, 2)
        yield


def cluster_cpus() -> int:
    """CPUs that the cluster has now: none where all its nodes with CPUs are gone."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))


def _start(config: RayConfig) -> None:
    """Start a Ray on this machine."""
    try:
        with contextlib.nullcontext() if config.verbose else _lean():
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **_quiet_unless(config.verbose),
            )
    except Exception as error:  # Ray raises plain ones too
        raise ClusterError(
            f"Ray cannot be started on this machine: {first_line(error)}; it needs free space in "
            "its temporary folder (RAY_TMPDIR, TMPDIR or /tmp), in /dev/shm and in the home "
            "folder, and some hundred file handles (ulimit -n); with ray.verbose=true it says more"
        ) from error


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Have a local Ray start without the processes that are spared, and without sleeping.

    A release that starts in another way starts all of it, which takes its time and does no harm.
    """
    private = ray._private
    with contextlib.ExitStack() as restored:

        def replace(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
            if hasattr(owner, name):
                original = getattr(owner, name)
                restored.callback(setattr, owner, name, original)
                setattr(owner, name, make(original))

        for name in _SPARED:
            replace(private.node.Node, name, lambda _: lambda *args, **options: None)
        # The raylet waits for its agent, which then comes without a web server.
        replace(private.utils, "get_dashboard_dependency_error", lambda _: lambda: "not asked for")
        replace(private.services, "get_node", _without_sleeping)
        yield


def _without_sleeping(get_node: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Ray's own look for a node that starts, begun when it is there."""

    def get(gcs_address: str, node_id: str) -> Any:
        services: Any = ray._private.services
        deadline = time.monotonic() + _LOOK_UNTIL_SECONDS
        with contextlib.suppress(Exception):  # what is amiss, Ray's own look will tell
            state: Any = ray._private.state.GlobalState()  # type: ignore[no-untyped-call]
            options = services._get_gcs_client_options(gcs_address)
            state._initialize_global_state(options)
            while time.monotonic() < deadline and node_id not in {
                node["NodeID"] for node in state.node_table()
            }:
                time.sleep(_LOOK_SECONDS)
        return get_node(gcs_address, node_id)

    return get


def _join(address: str, config: RayConfig) -> None:
    """Join a cluster that is there."""
    folder = os.getcwd()
    try:
        _probe(address)
        ray.init(address=address, **_quiet_unless(config.verbose))
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"ray.address={address!r} cannot be reached: {first_line(error)}; check that the "
            "cluster runs, with this release of Ray, and that RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH hold its token where it asks for one (RAY_AUTH_MODE=token)"
        ) from error
    if ray.get_runtime_context().runtime_env.get("working_dir"):
        _wait_until_unpacked()
        with contextlib.suppress(OSError):
            os.chdir(folder)


def _probe(address: str) -> None:
    """OSError where nobody listens: Ray itself would go on asking for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()


def _wait_until_unpacked() -> None:
    """Wait until every node has unpacked the files that were submitted with the job.

    Nodes on one machine share the folder, and each takes away what another has unpacked, for a
    moment (Ray 2.60). A worker that starts in that moment would never find our modules again: that
    is what is mended here.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    # Not a function of this module: it must run where the module cannot be imported.
    look_again = ray.remote(num_cpus=0)(lambda: importlib.invalidate_caches())
    looked = [
        look_again.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    ]
    ray.wait(looked, num_returns=len(looked), timeout=_UNPACK_SECONDS)


def _quiet_unless(verbose: bool) -> dict[str, Any]:
    level = logging.INFO if verbose else logging.ERROR
    return {"log_to_driver": verbose, "logging_level": level}


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, without its traces; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
