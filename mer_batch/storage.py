"""Files and objects by URI: local paths, ``file://`` and ``s3://`` (``s3a://`` is read as s3).

Audio is read with boto3 (pooled connections, retries), tables with pyarrow.fs and delta-rs.
Credentials come from the usual chain (environment, profile, instance role) and are never logged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import random
import re
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import pyarrow.fs as pafs

from mer_batch.config import StorageConfig
from mer_batch.errors import AudioError, MerBatchError, StorageError

SCHEMES = ("file", "s3", "s3a")

#: Matches what has a scheme. ``file:/folder`` with one slash is how Spark and Java write it.
SCHEME_PATTERN = r"^([A-Za-z][A-Za-z0-9+.-]*)://|^[Ff][Ii][Ll][Ee]:/"

_SCHEME = re.compile(SCHEME_PATTERN)
_BODY_ATTEMPTS = 3
_CLIENT_LOCK = threading.Lock()
_NOT_FOUND = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_DENIED |= {"ExpiredToken", "InvalidToken", "AllAccessDisabled"}
_LOST_RACE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}

_BROKEN_BODY = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    OSError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A parsed URI: an absolute local path, or an S3 bucket and key."""

    bucket: str | None
    path: str

    @property
    def is_s3(self) -> bool:
        return self.bucket is not None

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.path}" if self.is_s3 else self.path

    def child(self, *names: str) -> Location:
        """The location of a file below this one."""
        above = self.path.rstrip("/")
        if self.is_s3 and not above:
            return Location(self.bucket, "/".join(names))
        return Location(self.bucket, "/".join([above, *names]))

    @property
    def fs_path(self) -> str:
        """The path as pyarrow.fs takes it."""
        return f"{self.bucket}/{self.path}".rstrip("/") if self.is_s3 else self.path


@dataclass(frozen=True)
class AudioObject:
    """A track's bytes and the version that was read."""

    content: bytes
    version: str


def parse_uri(uri: str) -> Location:
    """Parse a URI or a local path; relative paths are below the working directory.

    Raises
    ------
    StorageError
        For a scheme that is not supported.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return Location(None, os.path.abspath(os.path.expanduser(uri)))
    if match[1] is None:
        return parse_uri(f"file:///{uri[match.end() :]}")
    scheme, rest = match[1].lower(), uri[match.end() :]
    if scheme == "file":
        path = urllib.parse.unquote(rest.removeprefix("localhost"), errors="surrogateescape")
        if not path.startswith("/"):
            raise StorageError(f"uri={uri!r} must hold an absolute path: file:///folder/name")
        return Location(None, os.path.normpath(path))
    if scheme in ("s3", "s3a"):
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise StorageError(f"uri={uri!r} must name a bucket: s3://bucket/key")
        return Location(bucket, key)
    raise StorageError(f"uri={uri!r} must be a path or begin with one of {', '.join(SCHEMES)}://")


class Storage:
    """Everything this package reads and writes goes through here.

    Picklable: each process makes its own clients when it first needs them.

    Parameters
    ----------
    config : StorageConfig
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config

    def __reduce__(self) -> tuple[type[Storage], tuple[StorageConfig]]:
        return Storage, (self._config,)

    # ------------------------------------------------------------------ clients

    @functools.cached_property
    def _session(self) -> boto3.Session:
        return boto3.Session(region_name=self._region)

    @property
    def _endpoint(self) -> str | None:
        if self._config.endpoint_url:
            return self._config.endpoint_url
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            url = os.environ.get(name)
            if url and not url.startswith(("http://", "https://")):
                raise StorageError(f"{name}={url!r} must begin with http:// or https://")
            if url:
                return url
        return None

    @property
    def _region(self) -> str:
        named = (
            self._config.region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
        )
        return named or boto3.Session().region_name or "us-east-1"

    @property
    def _s3(self) -> Any:
        # Making a client is not safe in several threads at once, using one is.
        with _CLIENT_LOCK:
            return self._s3_client

    @functools.cached_property
    def _s3_client(self) -> Any:
        return self._session.client(
            "s3",
            endpoint_url=self._endpoint,
            config=botocore.config.Config(
                max_pool_connections=32,
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 5},
            ),
        )

    @functools.cached_property
    def _s3_filesystem(self) -> pafs.S3FileSystem:
        endpoint = urllib.parse.urlsplit(self._endpoint) if self._endpoint else None
        return pafs.S3FileSystem(
            region=self._region,
            endpoint_override=endpoint.netloc if endpoint else None,
            scheme=endpoint.scheme if endpoint else "https",
        )

    def filesystem(self, location: Location) -> pafs.FileSystem:
        """The pyarrow file system that `location.fs_path` lies in."""
        return self._s3_filesystem if location.is_s3 else pafs.LocalFileSystem()

    def delta_options(self, location: Location) -> dict[str, str] | None:
        """Options for delta-rs. Made anew for every use: temporary credentials expire."""
        if not location.is_s3:
            return None
        options = {"AWS_REGION": self._region, "aws_conditional_put": "etag"}
        if self._endpoint:
            options["AWS_ENDPOINT_URL"] = self._endpoint
            options["AWS_ALLOW_HTTP"] = str(self._endpoint.startswith("http://")).lower()
        credentials = self._session.get_credentials()
        if credentials is not None:
            frozen = credentials.get_frozen_credentials()
            options["AWS_ACCESS_KEY_ID"] = frozen.access_key or ""
            options["AWS_SECRET_ACCESS_KEY"] = frozen.secret_key or ""
            if frozen.token:
                options["AWS_SESSION_TOKEN"] = frozen.token
        return options

    # ------------------------------------------------------------------ small files

    def read(self, location: Location) -> bytes:
        """Read a whole small file.

        Raises
        ------
        StorageError
        """
        with _storage_errors("read", location):
            if location.is_s3:
                reply = self._s3.get_object(Bucket=location.bucket, Key=location.path)
                return bytes(reply["Body"].read())
            return Path(location.path).read_bytes()

    def write(self, location: Location, content: bytes) -> None:
        """Write a whole small file, making the folders above it; readers never see half of it."""
        with _storage_errors("write", location):
            if location.is_s3:
                self._s3.put_object(Bucket=location.bucket, Key=location.path, Body=content)
                return
            path = Path(location.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of this call alone: threads may write the same file at the same time.
            unfinished = path.with_name(f".{path.name}.{os.getpid()}-{random.randrange(2**32):08x}")
            try:
                unfinished.write_bytes(content)
                unfinished.replace(path)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise

    def list_files(self, location: Location) -> Iterator[tuple[Location, int, str]]:
        """Every file below a folder or prefix: where it is, its size [bytes] and its version."""
        with _storage_errors("list", location):
            if location.is_s3:
                yield from self._list_s3(location)
            else:
                yield from _list_local(location)

    def _list_s3(self, location: Location) -> Iterator[tuple[Location, int, str]]:
        prefix = location.path.rstrip("/") + "/" if location.path else ""
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=prefix
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    found = Location(location.bucket, entry["Key"])
                    yield found, entry["Size"], entry["ETag"].strip('"')

    def is_folder(self, location: Location) -> bool:
        """Whether something lies below this location, or it is a local folder."""
        if not location.is_s3:
            return os.path.isdir(location.path)
        return next(iter(self.list_files(location)), None) is not None

    def exists(self, location: Location) -> bool:
        """Whether there is a file or object exactly here."""
        with _storage_errors("look up", location):
            if not location.is_s3:
                return os.path.isfile(location.path)
            if not location.path:
                return False  # a bucket is no object
            try:
                self._s3.head_object(Bucket=location.bucket, Key=location.path)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _NOT_FOUND:
                    return False
                raise
            return True

    def delete(self, location: Location) -> None:
        """Delete a file if it is there."""
        with _storage_errors("delete", location):
            if location.is_s3:
                self._s3.delete_object(Bucket=location.bucket, Key=location.path)
            else:
                Path(location.path).unlink(missing_ok=True)

    def check_writable(self, location: Location) -> None:
        """Write and delete a probe, so that a store which refuses is found before work begins."""
        probe = location.child(f".probe-{os.getpid()}-{random.randrange(2**32):08x}")
        self.write(probe, b"mer_batch looks whether it may write here\n")
        self.delete(probe)

    # ------------------------------------------------------------------ conditional writes

    def read_with_token(self, location: Location) -> tuple[bytes, str] | None:
        """A small file and the token of its present state; None if there is none."""
        with _storage_errors("read", location):
            if not location.is_s3:
                try:
                    content = Path(location.path).read_bytes()
                except FileNotFoundError:
                    return None
                return content, _local_token(content)
            try:
                reply = self._s3.get_object(Bucket=location.bucket, Key=location.path)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _NOT_FOUND - {"NoSuchBucket"}:
                    return None
                raise
            return bytes(reply["Body"].read()), reply["ETag"]

    def write_if(self, location: Location, content: bytes, *, token: str | None) -> str | None:
        """Write a small file only if its state is still `token` (None: only if it is not there).

        On S3 a conditional put decides, on a local disk a lock file beside it. The same content
        counts as the same state.

        Returns
        -------
        str or None
            The new token; None where somebody else was faster.
        """
        if not location.is_s3:
            return self._write_local_if(location, content, token)
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with _storage_errors("write", location):
            try:
                reply = self._s3.put_object(
                    Bucket=location.bucket, Key=location.path, Body=content, **condition
                )
            except botocore.exceptions.ClientError as error:
                if _code(error) not in _LOST_RACE | _NOT_FOUND - {"NoSuchBucket"}:
                    raise
                # The put may be ours: done, its answer lost, and tried again by botocore.
                present = self.read_with_token(location)
                return present[1] if present and present[0] == content else None
            return str(reply["ETag"])

    def _write_local_if(self, location: Location, content: bytes, token: str | None) -> str | None:
        path = Path(location.path)
        with _storage_errors("write", location):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path.with_name(f".{path.name}.lock"), "w", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                present = self.read_with_token(location)
                if (present[1] if present else None) != token:
                    return present[1] if present and present[0] == content else None
                self.write(location, content)
                return _local_token(content)

    # ------------------------------------------------------------------ audio

    def read_audio(
        self, uri: str, *, max_bytes: int, folders: Sequence[str] | None = None
    ) -> AudioObject:
        """Read a track's bytes and their version.

        Parameters
        ----------
        uri : str
        max_bytes : int
        folders : sequence of str, optional
            What a local file must lie below, links followed; anywhere by default.

        Raises
        ------
        AudioError
            ``not_found``, ``access_denied``, ``too_large``, ``not_audio`` for what is no regular
            file, or ``storage_error`` where a passing fault outlasts all retries.
        """
        try:
            location = parse_uri(uri)
        except StorageError as error:
            raise AudioError("not_found", str(error)) from error
        if location.is_s3:
            return self._read_audio_s3(location, max_bytes)
        return _read_audio_file(location.path, max_bytes, folders)

    def _read_audio_s3(self, location: Location, max_bytes: int) -> AudioObject:
        def fetch() -> AudioObject:
            reply = self._s3.get_object(Bucket=location.bucket, Key=location.path)
            length = reply["ContentLength"]
            # Not `with reply["Body"]`: that gives the stream below, whose errors are urllib3's.
            with contextlib.closing(reply["Body"]) as body:
                _check_size(length, max_bytes)
                content = bytes(body.read())
            if len(content) != length:
                raise botocore.exceptions.IncompleteReadError(
                    actual_bytes=len(content), expected_bytes=length
                )
            return AudioObject(content, reply["ETag"].strip('"'))

        try:
            return _with_retries(fetch)
        except botocore.exceptions.ClientError as error:
            code = _code(error)
            reason = "not_found" if code in _NOT_FOUND else "storage_error"
            reason = "access_denied" if code in _DENIED else reason
            raise AudioError(reason, f"{code} from the store") from error
        except botocore.exceptions.ParamValidationError as error:
            raise AudioError("not_found", f"not a usable bucket or key: {error}") from error
        except (botocore.exceptions.BotoCoreError, OSError) as error:
            raise AudioError("storage_error", f"{type(error).__name__}: {error}") from error

    def version(self, location: Location) -> str:
        """Today's version of one file, "" where there is none; see :meth:`audio_versions`."""
        if not location.is_s3:
            return _file_version(location.path)
        with _storage_errors("look up", location):
            try:
                reply = self._s3.head_object(Bucket=location.bucket, Key=location.path)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _NOT_FOUND:
                    return ""
                raise
            return str(reply["ETag"]).strip('"')

    def audio_versions(self, uris: Sequence[str]) -> list[str]:
        """Today's version of every track's audio, "" where there is none.

        Files: size and modification time, by a local stat call each. Objects: the etag, by one
        listing per bucket of the prefix that the URIs share, never a request per track. A URI that
        cannot be read has no version: to read it is what finds out why.

        Raises
        ------
        StorageError
            Where a store cannot be listed.
        """
        locations = [_location_or_none(uri) for uri in uris]
        wanted: dict[str, set[str]] = {}
        for location in locations:
            if location is not None and location.bucket is not None:
                wanted.setdefault(location.bucket, set()).add(location.path)
        etags = {bucket: self._etags(bucket, keys) for bucket, keys in wanted.items()}

        def version(location: Location | None) -> str:
            if location is None:
                return ""
            if location.bucket is None:
                return _file_version(location.path)
            return etags[location.bucket].get(location.path, "")

        return [version(location) for location in locations]

    def _etags(self, bucket: str, keys: set[str]) -> dict[str, str]:
        shared = os.path.commonprefix([min(keys), max(keys)])  # noqa: RUF071  # keys are no paths
        folder = Location(bucket, shared.rpartition("/")[0])
        return {
            found.path: version
            for found, _, version in self.list_files(folder)
            if found.path in keys
        }


class _storage_errors:  # noqa: N801  # reads like contextlib.suppress
    """Turn what the libraries raise into StorageError, with the URI and a remedy."""

    def __init__(self, verb: str, location: Location) -> None:
        self._verb = verb
        self._location = location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, MerBatchError):
            return
        if isinstance(error, botocore.exceptions.ClientError):
            code = _code(error)
            remedy = "check the bucket's name and the endpoint"
            if code in _DENIED:
                remedy = "check the credentials and that they allow this"
        elif isinstance(error, botocore.exceptions.NoCredentialsError):
            code, remedy = "no credentials", "set AWS_ACCESS_KEY_ID or a profile, or attach a role"
        elif isinstance(error, botocore.exceptions.BotoCoreError):
            code, remedy = f"{type(error).__name__}: {error}", "check the endpoint and the network"
        elif isinstance(error, OSError):
            code = error.strerror or str(error)
            remedy = (
                "free some space"
                if error.errno == errno.ENOSPC
                else "check the path and its permissions"
            )
        else:
            return
        raise StorageError(
            f"cannot {self._verb} {self._location.uri!r}: {code}; {remedy}"
        ) from error


def _location_or_none(uri: str) -> Location | None:
    try:
        return parse_uri(uri)
    except StorageError:
        return None


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown error"))


def _with_retries(fetch: Callable[[], T]) -> T:
    """Try again what botocore does not: bodies that break off half-way."""
    for attempt in range(1, _BODY_ATTEMPTS):
        try:
            return fetch()
        except _BROKEN_BODY:
            # Full jitter: workers that failed together do not come back together.
            time.sleep(random.uniform(0, 0.2 * 2**attempt))
    return fetch()


def _local_token(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise AudioError("too_large", f"{n_bytes:,} bytes, more than max_bytes={max_bytes:,}")


def _read_audio_file(path: str, max_bytes: int, folders: Sequence[str] | None) -> AudioObject:
    try:
        if folders is not None:
            path = _below(path, folders)
        # Looked at before it is opened: opening a named pipe would wait for ever.
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise AudioError("not_audio", "not a regular file")
        _check_size(found.st_size, max_bytes)
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
        _check_size(len(content), max_bytes)
        return AudioObject(content, _version_of(found))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError("not_found", "no such file") from error
    except PermissionError as error:
        raise AudioError("access_denied", "the file may not be read") from error
    except ValueError as error:
        raise AudioError("not_found", f"not a usable path: {error}") from error
    except OSError as error:
        is_name = error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
        reason = "not_found" if is_name else "storage_error"
        raise AudioError(reason, error.strerror or str(error)) from error


def _below(path: str, folders: Sequence[str]) -> str:
    """The file that a path leads to, links followed; it must lie below one of the folders."""
    found = os.path.realpath(path)
    tops = {os.path.realpath(folder) for folder in folders}
    if not any(os.path.commonpath([found, top]) == top for top in tops):
        raise AudioError("access_denied", "a link leads out of catalog.allowed_roots")
    return found


def _file_version(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return _version_of(found)


def _version_of(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"


def _list_local(location: Location) -> Iterator[tuple[Location, int, str]]:
    def stop(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(location.path, onerror=stop, followlinks=True):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            version = _file_version(path)
            yield Location(None, path), int(version.partition("-")[0] or 0), version
