"""A fast S3 server as far away as it is told to be: latency, a link of some width, stalls.

    python -m tests.benchmarks.slow_store FOLDER [--latency 0.06] [--gbit 1] [--core 0]

Prints its URL. Serves the files of FOLDER, links followed, as bucket ``music``; what is written
to any bucket stays in memory. Its first page, ``/``, says how much it was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

BUCKET = "music"
_CHUNK_BYTES = 128 * 1024
_PAGE_KEYS = 1_000


class Link:
    """Bytes a second that all connections share.

    Parameters
    ----------
    bytes_per_second : float
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def pass_on(self, n_bytes: int) -> None:
        """Wait until so many bytes have gone through."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + n_bytes / self._bytes_per_second
        if self._free_at - now > 0.001:  # timers are no finer
            await asyncio.sleep(self._free_at - now)


@dataclass
class Store:
    """Objects by bucket and key, and how far away they are.

    Attributes
    ----------
    latency_seconds : float
        From a request to the first byte of its answer; as much again to open a connection [s].
    stall_share, stall_seconds : float
        Of the objects read, and by how much they are late [s].
    """

    link: Link
    latency_seconds: float
    stall_share: float = 0.0
    stall_seconds: float = 2.0
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def add_folder(self, folder: Path) -> None:
        """Take in files; those behind several links are held once."""
        held: dict[str, tuple[bytes, str]] = {}
        for path in folder.iterdir():
            name = os.path.realpath(path)
            if name not in held:
                content = Path(name).read_bytes()
                held[name] = content, _etag(content)
            self.objects[f"{BUCKET}/{path.name}"] = held[name]

    def put(self, name: str, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Write under the conditions that are stated."""
        present = self.objects.get(name)
        if "if-none-match" in headers and present:
            return 412, {}
        if "if-match" in headers and (not present or present[1] != headers["if-match"]):
            return 412, {}
        self.objects[name] = content, _etag(content)
        return 200, {"ETag": self.objects[name][1]}

    def listing(self, bucket: str, query: dict[str, str]) -> bytes:
        """One page of ListObjectsV2."""
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        keys = sorted(name.partition("/")[2] for name in self.objects if name.startswith(bucket))
        keys = [key for key in keys if key.startswith(prefix) and key > after]
        page, is_cut = keys[:_PAGE_KEYS], len(keys) > _PAGE_KEYS
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{etag}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in page
            for content, etag in [self.objects[f"{bucket}/{key}"]]
        )
        following = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
            f"{following if is_cut else ''}{entries}</ListBucketResult>"
        ).encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class Connection:
    """Answers the requests of one connection, one after the other."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the client goes."""
        store = self._store
        store.asked["connections"] += 1
        writer.transport.set_write_buffer_limits(_CHUNK_BYTES)
        try:
            await asyncio.sleep(store.latency_seconds)  # the handshake
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.decode("latin-1"), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line, *lines = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (h.partition(":") for h in lines) if n}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self._store.asked[method] += 1
        status, told, content = self._reply(method, target, headers, body)
        await asyncio.sleep(self._seconds(method, target))
        length = len(content) if "Content-Length" not in told else int(told["Content-Length"])
        fields = {"x-amz-request-id": "1", **told, "Content-Length": length}
        told_lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {status} .\r\n{told_lines}\r\n".encode())
        whole = memoryview(content)
        for begin in range(0, len(whole), _CHUNK_BYTES):
            chunk = whole[begin : begin + _CHUNK_BYTES]
            await self._store.link.pass_on(len(chunk))
            writer.write(chunk)
            await writer.drain()

    def _seconds(self, method: str, target: str) -> float:
        store = self._store
        is_audio = method == "GET" and target.startswith(f"/{BUCKET}/")
        is_late = is_audio and store.dice.random() < store.stall_share
        return store.latency_seconds + store.stall_seconds * is_late

    def _reply(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        name = urllib.parse.unquote(url.path).lstrip("/")
        store = self._store
        if method == "PUT":
            content = (
                _unchunked(body) if "aws-chunked" in headers.get("content-encoding", "") else body
            )
            status, told = store.put(name, content, headers)
            return (status, told, b"") if status == 200 else _refusal(status, "PreconditionFailed")
        if method == "DELETE":
            store.objects.pop(name, None)
            return 204, {}, b""
        if not name:
            return 200, {}, json.dumps(store.asked).encode()
        if "list-type" in query:
            return 200, {}, store.listing(name.rstrip("/"), query)
        if name not in store.objects:
            return _refusal(404, "NoSuchKey") if method == "GET" else (404, {}, b"")
        content, etag = store.objects[name]
        if method == "HEAD":
            return 200, {"ETag": etag, "Content-Length": str(len(content))}, b""
        return self._part(content, etag, headers.get("range", ""))

    def _part(self, content: bytes, etag: str, asked: str) -> tuple[int, dict[str, str], bytes]:
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
        if found is None:
            return 200, {"ETag": etag}, content
        if not content:
            return _refusal(416, "InvalidRange")
        first, last = found.groups()
        begin = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1) if first and last else len(content)
        place = f"bytes {begin}-{end - 1}/{len(content)}"
        part = content if (begin, end) == (0, len(content)) else content[begin:end]
        return 206, {"ETag": etag, "Content-Range": place}, part


def _refusal(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _unchunked(body: bytes) -> bytes:
    """What a client has sent in signed chunks."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        n_bytes = int(size.partition(b";")[0], 16)
        content, body = content + rest[:n_bytes], rest[n_bytes + 2 :]
        if not n_bytes:
            break
    return content


async def _serve(store: Store) -> None:
    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        return Connection(store).serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**20, backlog=256)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--latency", type=float, default=0.06)
    options.add_argument("--gbit", type=float, default=1.0)
    options.add_argument("--stalls", type=float, default=0.0, help="share of reads 2 s late")
    options.add_argument("--core", type=int)
    chosen = options.parse_args()
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})
    store = Store(Link(chosen.gbit * 1e9 / 8), chosen.latency, chosen.stalls)
    store.add_folder(chosen.folder)
    asyncio.run(_serve(store))


if __name__ == "__main__":
    main()
