"""Objects in S3 as files for pyarrow: read by ranges, written in parts.

pyarrow's own S3 file system is not used: it gives a slow store three seconds, gives up a body that
breaks off, and finds credentials in a way of its own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pyarrow.fs as pafs

from mer_batch.faults import NOT_FOUND, code_of, explanation
from mer_batch.objects import Objects

# Read when a file is opened: the footer of a large one, all of a small one.
_TAIL_BYTES = 256 * 1024
_PART_BYTES = 16 * 1024 * 1024


class _ReadFile(io.RawIOBase):
    """An object for reading; a version that is replaced meanwhile is not mixed with the next."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._bucket, _, self._key = path.partition("/")
        self._path = path
        self._at = 0
        with _os_errors(path):
            self._tail = objects.get_tail(self._bucket, self._key, _TAIL_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._tail.n_total

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size()}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        begin = self._at
        end = self.size() if size is None or size < 0 else min(begin + size, self.size())
        if end <= begin:
            return b""
        self._at = end
        if begin >= self._tail.begin:
            return self._tail.content[begin - self._tail.begin : end - self._tail.begin]
        with _os_errors(self._path):
            return self._objects.get_range(self._bucket, self._key, begin, end, self._tail.etag)


class _WrittenFile(io.RawIOBase):
    """An object for writing; it is there when it is closed, and not before."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._bucket, _, self._key = path.partition("/")
        self._path = path
        self._waiting = bytearray()
        self._upload: str | None = None
        self._etags: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self._waiting += content
        if len(self._waiting) >= _PART_BYTES:
            with self._or_nothing():
                self._put_part()
        return len(content)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with self._or_nothing():
            if self._upload is None:
                self._objects.put(self._bucket, self._key, bytes(self._waiting))
                return
            if self._waiting:
                self._put_part()
            self._objects.end_parts(self._bucket, self._key, self._upload, self._etags)

    def _put_part(self) -> None:
        if self._upload is None:
            self._upload = self._objects.begin_parts(self._bucket, self._key)
        number = len(self._etags) + 1
        self._etags.append(
            self._objects.put_part(
                self._bucket, self._key, self._upload, number, bytes(self._waiting)
            )
        )
        self._waiting.clear()

    @contextlib.contextmanager
    def _or_nothing(self) -> Any:
        """What was sent is given up where the rest cannot follow."""
        try:
            with _os_errors(self._path):
                yield
        except OSError:
            super().close()
            if self._upload is not None:
                with contextlib.suppress(botocore.exceptions.BotoCoreError,
                                         botocore.exceptions.ClientError, OSError):  # fmt: skip
                    self._objects.drop_parts(self._bucket, self._key, self._upload)
            raise


class ObjectFiles(pafs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow asks of a file system that readers and writers of tables need.

    Parameters
    ----------
    objects : Objects
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFiles) and other._objects is self._objects

    def __hash__(self) -> int:
        return hash(id(self._objects))

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(_ReadFile(self._objects, path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        return pa.PythonFile(_WrittenFile(self._objects, path), mode="w")

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        bucket, _, key = path.partition("/")
        with _os_errors(path):
            found = self._objects.head(bucket, key) if key else None
            if found is not None:
                return pafs.FileInfo(path, pafs.FileType.File, size=found[0])
            prefix = f"{key.rstrip('/')}/" if key else ""
            is_folder = next(iter(self._objects.list_keys(bucket, prefix)), None) is not None
        return pafs.FileInfo(path, pafs.FileType.Directory if is_folder else pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        bucket, _, folder = selector.base_dir.partition("/")
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        found: dict[str, pafs.FileInfo] = {}
        with _os_errors(selector.base_dir):
            for key, n_bytes, _ in self._objects.list_keys(bucket, prefix):
                names = key[len(prefix) :].split("/")
                for depth in range(1, len(names)):
                    above = f"{bucket}/{prefix}{'/'.join(names[:depth])}"
                    found.setdefault(above, pafs.FileInfo(above, pafs.FileType.Directory))
                path = f"{bucket}/{key}"
                if names[-1] and (selector.recursive or len(names) == 1):
                    found[path] = pafs.FileInfo(path, pafs.FileType.File, size=n_bytes)
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(f"s3://{selector.base_dir}: nothing lies there")
        depth = selector.base_dir.rstrip("/").count("/") + 1
        return [i for i in found.values() if selector.recursive or i.path.count("/") == depth]

    def _not_here(self, *_: object) -> None:
        raise NotImplementedError("objects are deleted and moved by Storage")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _not_here
    delete_file = move = copy_file = open_append_stream = _not_here


class _os_errors:  # noqa: N801  # reads like contextlib.suppress
    """botocore's errors as the OSErrors that pyarrow's callers expect of a file."""

    def __init__(self, path: str) -> None:
        self._uri = f"s3://{path}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, botocore.exceptions.ClientError) and code_of(error) in NOT_FOUND:
            raise FileNotFoundError(f"{self._uri}: {explanation(error)}") from error
        if isinstance(
            error, (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError, OSError)
        ):
            raise OSError(f"{self._uri}: {explanation(error)}") from error
