"""Every error this package raises on purpose, under one root.

::

    MerBatchError
    ├── RefusedError            before work began: fix the input, run again   (exit 2)
    │   ├── ConfigError
    │   ├── CatalogError
    │   ├── CheckpointError
    │   ├── DatasetError
    │   ├── FeaturesError
    │   ├── StorageError
    │   └── ClusterError
    ├── ChildStartError         no decoder can be started (``child``)         (exit 1)
    ├── FleetError              Ray or a machine cannot go on                 (exit 1)
    │                           (``pipelines.fleet``)
    ├── ScoringError            the scoring pool cannot go on                 (exit 1)
    ├── PoolSizeError           the cluster lacks the GPUs asked for          (exit 2)
    │                           (``pipelines.scoring``)
    ├── Mpg123Error             libmpg123 does not take a stream: libsndfile is asked
    │                           (``audio.mpg123``)
    ├── TrainingError           a network cannot go on learning               (exit 1)
    ├── ErrorBudgetExceeded     too many rejects: nothing was published       (exit 3)
    ├── LeaseError              another run holds, or took over, the output   (exit 4)
    ├── Interrupted             SIGINT, SIGTERM or SIGHUP; finished work is kept (exit 130)
    └── AudioError              one track cannot be scored: becomes a reject row
"""

from __future__ import annotations

import re


class MerBatchError(Exception):
    """Root of all errors raised by mer_batch; ``exit_code`` is what the command line returns."""

    exit_code = 1


class RefusedError(MerBatchError):
    """The input was refused before any work began."""

    exit_code = 2


class ConfigError(RefusedError):
    """The configuration is not valid; the message lists every fault found."""


class CatalogError(RefusedError):
    """The catalog cannot be used; the message names the count and the first offenders."""


class CheckpointError(RefusedError):
    """The checkpoint is damaged, or does not fit the feature set."""


class DatasetError(RefusedError):
    """A labelled data set cannot be used; the message names the missing file or the rows."""


class FeaturesError(RefusedError):
    """Features are not there, or are those of another feature set."""


class StorageError(RefusedError):
    """A URI cannot be read or written."""


class ClusterError(RefusedError):
    """Ray cannot be started on this machine."""


class TrainingError(MerBatchError):
    """A network cannot go on learning; the message names the epoch and what to change."""


class ErrorBudgetExceeded(MerBatchError):
    """More tracks were rejected than ``max_reject_rate`` allows."""

    exit_code = 3


class LeaseError(MerBatchError):
    """Another run holds the output's lease, or has taken it over."""

    exit_code = 4


class Interrupted(MerBatchError):
    """The run was asked to stop; everything finished so far is committed."""

    exit_code = 130


class AudioError(MerBatchError):
    """One track cannot be scored.

    Parameters
    ----------
    reason : str
        A code out of ``schema.REASONS``.
    message : str
        What was found, in words for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


# What stands before the path is a host and a port; elsewhere a colon may divide key and secret.
_HOSTED = frozenset({"http", "https", "ray"})

# No scheme is longer: without a bound, a long word would be searched from each of its letters on.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://([^\s'\"]*)")


def masked(text: str) -> str:
    """Text with the credentials taken out of whatever URIs stand in it."""
    return _URI.sub(_without_credentials, text)


def holds_credentials(uri: str) -> bool:
    """Whether a URI names a user or a key before its host or bucket.

    What looks like another URI further on is part of its key, though not shown in messages.
    """
    first = _URI.search(uri)
    return first is not None and _without_credentials(first) != first[0]


def _without_credentials(uri: re.Match[str]) -> str:
    scheme, rest = uri[1].lower(), uri[2]
    # A key's secret may hold slashes: what stands before the last @ may all be secret.
    _, at, after = rest.rpartition("@")
    authority = rest.partition("/")[0]
    is_hosted = scheme in _HOSTED
    is_named = "@" in authority or (":" in authority and not _is_plain(authority, is_hosted))
    if is_named:
        return f"{uri[1]}://***@{after}" if at else f"{uri[1]}://***"
    if is_hosted and "?" in rest:  # as in a presigned URL
        return f"{uri[1]}://{rest.partition('?')[0]}?***"
    return uri[0]


def _is_plain(authority: str, is_hosted: bool) -> bool:
    """Whether what follows the colon is a port, or the authority a resource's name."""
    if is_hosted:
        return re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority) is not None
    return authority.startswith("arn:")
