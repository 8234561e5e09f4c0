"""Files and objects by URI: local paths, ``file://`` and ``s3://`` (``s3a://`` is read as s3).

Objects are read and written by ``objects``, in which faults that pass are waited for, and tables
in them through ``object_files`` and delta-rs. Credentials come from the usual chain (environment,
profile, instance role) and are never logged.
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
import urllib.parse
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import botocore.exceptions
import pyarrow.fs as pafs
from botocore.parsers import ResponseParserError

from mer_batch.config import StorageConfig
from mer_batch.disk import flush, make_folder
from mer_batch.errors import AudioError, MerBatchError, StorageError, holds_credentials, masked
from mer_batch.faults import DENIED, NOT_FOUND, code_of, explanation, is_refusal
from mer_batch.object_files import ObjectFiles
from mer_batch.objects import Objects
from mer_batch.steps import reach

SCHEMES = ("file", "s3", "s3a")

#: Matches what has a scheme. ``file:/folder`` with one slash is how Spark and Java write it.
SCHEME_PATTERN = r"^([A-Za-z][A-Za-z0-9+.-]*)://|^[Ff][Ii][Ll][Ee]:/"

_SCHEME = re.compile(SCHEME_PATTERN)
# Objects that a listing does not show are looked up one by one, if they are no more than these.
_MAX_LOOK_UPS = 10_000
_LOOK_UP_THREADS = 16


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
        For a scheme that is not supported, and for credentials in the URI.
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
            raise StorageError(
                f"uri={masked(uri)!r} must hold an absolute path: file:///folder/name"
            )
        return Location(None, os.path.normpath(path))
    if scheme in ("s3", "s3a"):
        if holds_credentials(uri):
            raise StorageError(
                f"uri={masked(uri)!r} must not hold credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a profile"
            )
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise StorageError(f"uri={masked(uri)!r} must name a bucket: s3://bucket/key")
        return Location(bucket, key)
    raise StorageError(
        f"uri={masked(uri)!r} must be a path or begin with one of {', '.join(SCHEMES)}://"
    )


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
    def _objects(self) -> Objects:
        return Objects(self._config)

    @functools.cached_property
    def _object_files(self) -> pafs.PyFileSystem:
        return pafs.PyFileSystem(ObjectFiles(self._objects))

    def filesystem(self, location: Location) -> pafs.FileSystem:
        """The pyarrow file system that `location.fs_path` lies in."""
        return self._object_files if location.is_s3 else pafs.LocalFileSystem()

    def delta_options(self, location: Location) -> dict[str, str] | None:
        """Options for delta-rs. Made anew for every use: temporary credentials expire."""
        if not location.is_s3:
            return None
        options = {
            "AWS_REGION": self._objects.region,
            "aws_conditional_put": "etag",
            # Of single requests; whole commits are tried again by the ledger.
            "max_retries": "20",
            "retry_timeout": f"{self._config.patience_seconds:.0f}s",
            "backoff_config.max_backoff": "5s",
            "connect_timeout": "5s",
            "timeout": "30s",
        }
        endpoint = self._objects.endpoint
        if endpoint:
            options["AWS_ENDPOINT_URL"] = endpoint
            options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return options | {
            name: value
            for name, value in zip(names, self._objects.credentials, strict=True)
            if value
        }

    @property
    def patience_seconds(self) -> float:
        """For how long a fault that may pass is waited for [s]."""
        return self._config.patience_seconds

    def refuses(self, error: BaseException) -> bool:
        """Whether a library's fault is a refusal of the store: it will not pass."""
        return is_refusal(error)

    def explain(self, error: BaseException) -> str:
        """What a library says of a fault, on one line, with a remedy and without credentials."""
        secrets: tuple[str, ...] = ()
        with contextlib.suppress(StorageError):  # where there are none, none can be told
            secrets = self._objects.credentials
        return explanation(error, secrets)

    # ------------------------------------------------------------------ small files

    def read(self, location: Location) -> bytes:
        """Read a whole small file.

        Raises
        ------
        StorageError
        """
        with _storage_errors("read", location):
            if location.bucket is not None:
                return self._objects.get(location.bucket, location.path).content
            return Path(location.path).read_bytes()

    def write(self, location: Location, content: bytes) -> None:
        """Write a whole small file, making the folders above it; readers never see half of it.

        On a local disk it outlasts a loss of power from here on.
        """
        with _storage_errors("write", location):
            if location.bucket is not None:
                self._objects.put(location.bucket, location.path, content)
                return
            path = Path(location.path)
            make_folder(path.parent)
            # Of this call alone: threads may write the same file at the same time.
            unfinished = path.with_name(f".{path.name}.{os.getpid()}-{random.randrange(2**32):08x}")
            try:
                unfinished.write_bytes(content)
                flush(unfinished)
                reach("file_to_place")
                unfinished.replace(path)
                flush(path.parent)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise

    def list_files(self, location: Location) -> Iterator[tuple[Location, int, str]]:
        """Every file below a folder or prefix: where it is, its size [bytes] and its version."""
        with _storage_errors("list", location):
            if location.bucket is not None:
                yield from self._list_s3(location.bucket, location.path)
            else:
                yield from _list_local(location)

    def _list_s3(self, bucket: str, folder: str) -> Iterator[tuple[Location, int, str]]:
        prefix = folder.rstrip("/") + "/" if folder else ""
        for key, n_bytes, etag in self._objects.list_keys(bucket, prefix):
            if not key.endswith("/"):
                yield Location(bucket, key), n_bytes, etag.strip('"')

    def is_folder(self, location: Location) -> bool:
        """Whether something lies below this location, or it is a local folder."""
        if not location.is_s3:
            return os.path.isdir(location.path)
        return next(iter(self.list_files(location)), None) is not None

    def exists(self, location: Location) -> bool:
        """Whether there is a file or object exactly here."""
        with _storage_errors("look up", location):
            if location.bucket is None:
                return os.path.isfile(location.path)
            if not location.path:
                return False  # a bucket is no object
            return self._objects.head(location.bucket, location.path) is not None

    def delete(self, location: Location) -> None:
        """Delete a file if it is there."""
        with _storage_errors("delete", location):
            if location.bucket is not None:
                self._objects.delete(location.bucket, location.path)
            else:
                Path(location.path).unlink(missing_ok=True)

    def list_begun(self, location: Location) -> list[tuple[Location, str]]:
        """What lies half written in a store below a prefix, and the upload that it is part of.

        Such parts are in no listing of objects, and are paid for all the same.
        """
        if location.bucket is None:
            return []
        bucket, prefix = location.bucket, location.path.rstrip("/") + "/"
        with _storage_errors("list", location):
            begun = list(self._objects.list_begun(bucket, prefix))
        return [(Location(bucket, key), upload) for key, upload in begun]

    def drop_begun(self, location: Location, upload: str) -> None:
        """Give up what lies half written in a store."""
        if location.bucket is not None:
            with _storage_errors("delete", location):
                self._objects.drop_parts(location.bucket, location.path, upload)

    def check_writable(self, location: Location, *, below: Sequence[str] = ()) -> None:
        """Write and delete a probe, so that a store which refuses is found before work begins.

        A store's rules go by prefixes: there, the folders `below` are tried as well. And whether it
        heeds conditions, as :meth:`write_if` needs, which not all do that speak S3's language.
        """
        folders = [location, *(location.child(name) for name in below if location.is_s3)]
        for folder in folders:
            probe = folder.child(f".probe-{os.getpid()}-{random.randrange(2**32):08x}")
            self.write(probe, b"mer_batch looks whether it may write here\n")
            self.delete(probe)
        if location.bucket is not None:
            with _storage_errors("write", location):
                self._objects.check_conditions(location.bucket, probe.path)
            self.delete(probe)

    # ------------------------------------------------------------------ conditional writes

    def read_with_token(self, location: Location) -> tuple[bytes, str] | None:
        """A small file and the token of its present state; None if there is none."""
        with _storage_errors("read", location):
            if location.bucket is not None:
                found = self._objects.get_if_there(location.bucket, location.path)
                return (found.content, found.etag) if found else None
            try:
                content = Path(location.path).read_bytes()
            except FileNotFoundError:
                return None
            return content, _local_token(content)

    def write_if(self, location: Location, content: bytes, *, token: str | None) -> str | None:
        """Write a small file only if its state is still `token` (None: only if it is not there).

        On S3 a conditional put decides, on a local disk a lock file beside it. The same content
        counts as the same state.

        Returns
        -------
        str or None
            The new token; None where somebody else was faster.
        """
        if location.bucket is None:
            return self._write_local_if(location, content, token)
        with _storage_errors("write", location):
            return self._objects.put_if(location.bucket, location.path, content, etag=token)

    def _write_local_if(self, location: Location, content: bytes, token: str | None) -> str | None:
        path = Path(location.path)
        with _storage_errors("write", location):
            make_folder(path.parent)
            with open(path.with_name(f".{path.name}.lock"), "w", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                present = self.read_with_token(location)
                if (present[1] if present else None) != token:
                    return present[1] if present and present[0] == content else None
                self.write(location, content)
                return _local_token(content)

    # ------------------------------------------------------------------ audio

    def read_audio(
        self,
        uri: str,
        *,
        max_bytes: int,
        folders: Sequence[str] | None = None,
        admit: Callable[[int], None] = lambda n_bytes: None,
    ) -> AudioObject:
        """Read a track's bytes and their version.

        Parameters
        ----------
        uri : str
        max_bytes : int
        admit : callable
            Called with the number of bytes before they are read, once an attempt, while the file
            or the answer is open: it must not wait, but it may raise.
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
        if location.bucket is not None:
            return self._read_audio_s3(location.bucket, location.path, max_bytes, admit)
        return _read_audio_file(location.path, max_bytes, folders, admit)

    def _read_audio_s3(
        self, bucket: str, key: str, max_bytes: int, admit: Callable[[int], None]
    ) -> AudioObject:
        def check_size(n_bytes: int) -> None:
            _check_size(n_bytes, max_bytes)
            admit(n_bytes)

        try:
            found = self._objects.get(bucket, key, check_size=check_size)
        except botocore.exceptions.ClientError as error:
            code = code_of(error)
            reason = "not_found" if code in NOT_FOUND else "storage_error"
            reason = "access_denied" if code in DENIED else reason
            raise AudioError(reason, f"{code} from the store") from error
        except botocore.exceptions.ParamValidationError as error:
            raise AudioError("not_found", f"not a usable bucket or key: {error}") from error
        except (botocore.exceptions.BotoCoreError, ResponseParserError, OSError) as error:
            raise AudioError("storage_error", self.explain(error)) from error
        return AudioObject(found.content, found.etag.strip('"'))

    def version(self, location: Location) -> str:
        """Today's version of one file, "" where there is none; see :meth:`audio_versions`."""
        if location.bucket is None:
            return _file_version(location.path)
        with _storage_errors("look up", location):
            found = self._objects.head(location.bucket, location.path)
            return found[1].strip('"') if found else ""

    def audio_versions(self, uris: Sequence[str]) -> list[str]:
        """Today's version of every track's audio, "" where there is none.

        Files: size and modification time, by a local stat call each. Objects: the etag, by one
        listing per bucket of the prefix that the URIs share, never a request per track; what a
        listing does not show, which may be stale, is looked up. A URI that cannot be read has no
        version: to read it is what finds out why.

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
        etags = {bucket: self._etags_or_refusal(bucket, keys) for bucket, keys in wanted.items()}

        def version(location: Location | None) -> str:
            if location is None:
                return ""
            if location.bucket is None:
                return _file_version(location.path)
            return etags[location.bucket].get(location.path, "")

        return [version(location) for location in locations]

    def _etags_or_refusal(self, bucket: str, keys: set[str]) -> dict[str, str]:
        try:
            return self._etags(bucket, keys)
        except StorageError as error:
            first = Location(bucket, min(keys)).uri
            raise StorageError(
                f"{error} ({len(keys):,} of the catalog's URIs lie there, one of them {first!r})"
            ) from error

    def _etags(self, bucket: str, keys: set[str]) -> dict[str, str]:
        shared = os.path.commonprefix([min(keys), max(keys)])  # noqa: RUF071  # keys are no paths
        folder = Location(bucket, shared.rpartition("/")[0])
        etags = {
            found.path: version
            for found, _, version in self.list_files(folder)
            if found.path in keys
        }
        unseen = sorted(keys - etags.keys() - {""})
        if len(unseen) <= _MAX_LOOK_UPS:
            with ThreadPoolExecutor(_LOOK_UP_THREADS, thread_name_prefix="look-up") as pool:
                etags |= zip(
                    unseen,
                    pool.map(lambda key: self._version_or_none(Location(bucket, key)), unseen),
                    strict=True,
                )
        return etags

    def _version_or_none(self, location: Location) -> str:
        try:
            return self.version(location)
        except StorageError:
            return ""


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
        libraries = (
            botocore.exceptions.ClientError,
            botocore.exceptions.BotoCoreError,
            ResponseParserError,
        )
        if isinstance(error, libraries) or (isinstance(error, OSError) and self._location.is_s3):
            what = explanation(error)
        elif isinstance(error, OSError):
            is_full = error.errno == errno.ENOSPC
            remedy = "free some space" if is_full else "check the path and its permissions"
            what = f"{error.strerror or error}; {remedy}"
        else:
            return
        raise StorageError(f"cannot {self._verb} {self._location.uri!r}: {what}") from error


def _location_or_none(uri: str) -> Location | None:
    try:
        return parse_uri(uri)
    except StorageError:
        return None


def _local_token(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise AudioError("too_large", f"{n_bytes:,} bytes, more than max_bytes={max_bytes:,}")


def _read_audio_file(
    path: str, max_bytes: int, folders: Sequence[str] | None, admit: Callable[[int], None]
) -> AudioObject:
    # All is asked of the open file: what a path leads to may be exchanged in between. Opening a
    # named pipe would wait for ever without O_NONBLOCK, which files do not heed.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise AudioError("not_audio", "not a regular file")
            if folders is not None:
                _check_below(_path_of(file.fileno(), path), folders)
            _check_size(found.st_size, max_bytes)
            admit(found.st_size)
            # What was admitted, and no more: a file that grows has another version from then on.
            # Nor is so much memory asked for as `max_bytes` would allow.
            content = file.read(found.st_size)
        if content is None or len(content) < found.st_size:
            raise AudioError(
                "storage_error", f"{len(content or b''):,} of {found.st_size:,} bytes could be read"
            )
        return AudioObject(content, _version_of(found))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError("not_found", "no such file") from error
    except PermissionError as error:
        raise AudioError("access_denied", "the file may not be read") from error
    except ValueError as error:
        raise AudioError("not_found", f"not a usable path: {error}") from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV):  # a folder, socket or device
            raise AudioError("not_audio", "not a regular file") from error
        is_name = error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
        reason = "not_found" if is_name else "storage_error"
        raise AudioError(reason, error.strerror or str(error)) from error


def _path_of(descriptor: int, path: str) -> str:
    """Where an open file lies, links followed."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # not Linux: at least it must be the same file still
        found = os.path.realpath(path)
        if not os.path.samestat(os.stat(found), os.fstat(descriptor)):
            raise AudioError("storage_error", "the file was exchanged while it was read") from None
        return found


def _check_below(found: str, folders: Sequence[str]) -> None:
    if not any(os.path.commonpath([found, top]) == top for top in _real(tuple(folders))):
        raise AudioError("access_denied", "a link leads out of catalog.allowed_roots")


@functools.lru_cache(maxsize=8)
def _real(folders: tuple[str, ...]) -> frozenset[str]:
    """Where folders lie, links followed: looked up once, not once a track."""
    return frozenset(os.path.realpath(folder) for folder in folders)


def _file_version(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ""
    return _version_of(found)


def _version_of(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"


def _list_local(location: Location) -> Iterator[tuple[Location, int, str]]:
    """Every file below a folder, also behind links: under the same name whatever links there are.

    What lies below the folder itself has just its own names. Of every link to a folder outside
    follows all that it leads to, but each folder once: links to one another would have no end.
    """
    own: set[tuple[int, int]] = set()
    links: deque[str] = deque()
    yield from _list_tree(location.path, own, links, passed=())
    for link in links:
        seen, ways = set(own), deque([link])
        while ways:
            yield from _list_tree(ways.popleft(), seen, ways, passed=seen)


def _list_tree(
    top: str,
    seen: set[tuple[int, int]],
    links: deque[str],
    *,
    passed: Collection[tuple[int, int]],
) -> Iterator[tuple[Location, int, str]]:
    """The files of a folder's own tree; adds to the folders seen and to the links to folders."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(top, onerror=stop):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in passed:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders.sort()
        paths = [os.path.join(folder, name) for name in folders]
        links.extend(path for path in paths if Path(path).is_symlink())
        for name in sorted(names):
            path = os.path.join(folder, name)
            version = _file_version(path)
            yield Location(None, path), int(version.partition("-")[0] or 0), version
