"""A store that misbehaves: a proxy on loopback in front of a real S3 server.

Rules say which requests suffer which fault, how many of them, and how often. What a rule does not
touch is handed on as it came. A fault is counted under its name.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
_STATUS = {"SlowDown": 503, "InternalError": 500, "NoSuchBucket": 404, "PermanentRedirect": 301}
_STATUS |= {"AuthorizationHeaderMalformed": 400, "ExpiredToken": 400, "RequestTimeout": 400}
_STATUS |= {"NotImplemented": 501, "PreconditionFailed": 412, "NoSuchKey": 404}
_CONDITIONS = {"if-match", "if-none-match"}
_CHUNK_BYTES = 65_536


@dataclass
class Rule:
    """A fault and the requests that suffer it.

    Attributes
    ----------
    fault : str
        ``delay``, ``reset`` (before the store has seen the request), ``lose_answer`` (after it has
        done it), ``cut`` (less than Content-Length says), ``cut_quietly`` (Content-Length says
        what is left), ``trickle``, ``html``, ``stale``, ``hang``, ``redirect`` (to itself, without
        end), ``no_etag``, ``unconditional`` (conditions are not heeded); else a code of S3's, such
        as ``SlowDown``, ``AccessDenied``.
    methods : str
        Separated by spaces; any by default.
    key : str
        A pattern that is searched in ``bucket/key``; for a listing, in ``bucket/prefix``.
    conditional : bool
        Only requests that state a condition.
    share : float
        Of the matching requests.
    n : int, optional
        Only the first so many; all by default.
    above : int, optional
        Only those beyond so many requests in one second.
    seconds : float
        Of a delay, or of the age of what a stale listing shows.
    """

    fault: str
    methods: str = ""
    key: str = ""
    conditional: bool = False
    share: float = 1.0
    n: int | None = None
    above: int | None = None
    seconds: float = 0.0
    n_suffered: int = field(default=0, init=False)
    _recent: deque[float] = field(default_factory=deque, init=False, repr=False)

    def strikes(self, request: _Request, dice: random.Random) -> bool:
        """Whether a request suffers; counts it if so."""
        if self.methods and request.method not in self.methods.split():
            return False
        if not re.search(self.key, request.target) or (self.n is not None and self.n <= 0):
            return False
        if self.fault == "stale" and not request.is_listing:
            return False
        if self.conditional and not _CONDITIONS & {name.lower() for name in request.headers}:
            return False
        if self.above is not None and not self._is_above():
            return False
        if dice.random() >= self.share:
            return False
        self.n_suffered += 1
        if self.n is not None:
            self.n -= 1
        return True

    def _is_above(self) -> bool:
        now = time.monotonic()
        while self._recent and self._recent[0] < now - 1:
            self._recent.popleft()
        if len(self._recent) >= (self.above or 0):
            return True
        self._recent.append(now)  # a request that is turned away does not count
        return False


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def _query(self) -> dict[str, str]:
        query = urllib.parse.urlsplit(self.path).query
        return dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    @property
    def name(self) -> str:
        """``bucket/key``."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type" in self._query

    @property
    def target(self) -> str:
        if self.is_listing:
            return f"{self.name.rstrip('/')}/{self._query.get('prefix', '')}"
        return self.name

    @property
    def listing(self) -> dict[str, str]:
        return self._query


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultyStore:
    """The proxy, as a context.

    Parameters
    ----------
    upstream : str
        URL of the real server.
    seed : int
        Of the dice that `Rule.share` throws.

    Attributes
    ----------
    suffered : Counter
        How many requests suffered each fault.
    asked : Counter
        Requests by method.
    log : list of str
        ``METHOD bucket/key fault`` of every request, in order.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._history = _History()
        self.suffered: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.log: list[str] = []
        store = self

        class Handler(_Handler):
            faulty = store

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that went away is no news here."""

        self._server = Server(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyStore:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, fault: str, **rule: Any) -> Rule:
        """Add a rule; see :class:`Rule`."""
        made = Rule(fault, **rule)
        if fault == "stale":
            self._history.begin(self)
        with self._lock:
            self._rules.append(made)
        return made

    def clear(self) -> None:
        """Take all rules away."""
        with self._lock:
            self._rules.clear()

    @contextlib.contextmanager
    def suffering(self, fault: str, **rule: Any) -> Iterator[Rule]:
        """A rule for the length of a block."""
        made = self.add(fault, **rule)
        try:
            yield made
        finally:
            with self._lock:
                self._rules.remove(made)

    def faults_of(self, request: _Request) -> list[Rule]:
        """The rules that strike a request."""
        with self._lock:
            struck = [rule for rule in self._rules if rule.strikes(request, self._dice)]
            self.asked[request.method] += 1
            self.suffered.update(rule.fault for rule in struck)
            names = "+".join(rule.fault for rule in struck)
            self.log.append(f"{request.method} {request.target} {names}".rstrip())
        return struck

    def forward(self, request: _Request) -> _Reply:
        """Hand a request on to the real server."""
        connection = http.client.HTTPConnection(self._upstream, timeout=120)
        with contextlib.closing(connection):
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in _HOP_BY_HOP | {"expect", "host"}
            }
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            reply = _Reply(answer.status, answer.getheaders(), answer.read())
        if request.method in ("PUT", "DELETE", "POST") and reply.status < 300:
            self._history.note(self, request.name)
        return reply

    def stale_listing(self, request: _Request, seconds: float) -> _Reply:
        """A listing as it was so many seconds ago."""
        return self._history.listing(request, time.monotonic() - seconds)

    def cut(self, n_bytes: int) -> int:
        """How much is left of a body."""
        with self._lock:
            return self._dice.randrange(n_bytes) if n_bytes else 0


class _History:
    """What every bucket held at any time since the first stale rule."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, list[tuple[float, dict[str, str] | None]]] | None = None

    def begin(self, store: FaultyStore) -> None:
        if self._states is not None:
            return
        self._states = {}
        buckets = store.forward(_Request("GET", "/", {}, b"")).body
        for bucket in ET.fromstring(buckets).iter(f"{_NAMESPACE}Name"):
            path = f"/{bucket.text}?list-type=2&max-keys=100000"
            for entry in _entries(store.forward(_Request("GET", path, {}, b"")).body):
                self._states[f"{bucket.text}/{entry['Key']}"] = [(-math.inf, entry)]

    def note(self, store: FaultyStore, name: str) -> None:
        """Look up what has become of an object, and remember since when."""
        bucket, _, key = name.partition("/")
        if self._states is None or not key:
            return
        query = urllib.parse.urlencode({"list-type": 2, "prefix": key, "max-keys": 1})
        found = _entries(store.forward(_Request("GET", f"/{bucket}?{query}", {}, b"")).body)
        now = time.monotonic()
        with self._lock:
            entry = found[0] if found and found[0]["Key"] == key else None
            self._states.setdefault(name, []).append((now, entry))

    def listing(self, request: _Request, moment: float) -> _Reply:
        bucket, asked = request.name.rstrip("/"), request.listing
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = asked.get("continuation-token") or asked.get("start-after", "")
        most = int(asked.get("max-keys", 1000))
        keys: list[dict[str, str]] = []
        folders: list[str] = []
        next_token = None
        for entry in self._at(bucket, moment):
            key = entry["Key"]
            if not key.startswith(prefix) or key <= after:
                continue
            folder, separator, _ = key[len(prefix) :].partition(delimiter or "\0")
            if delimiter and separator:
                name = prefix + folder + delimiter
                if name not in folders and not name < after:
                    folders.append(name)
                continue
            if len(keys) == most:
                next_token = keys[-1]["Key"]
                break
            keys.append(entry)
        encode = urllib.parse.quote if asked.get("encoding-type") == "url" else escape
        return _Reply(
            200,
            [("Content-Type", "application/xml")],
            _listing_xml(bucket, asked, keys, folders, next_token, encode),
        )

    def _at(self, bucket: str, moment: float) -> list[dict[str, str]]:
        with self._lock:
            found = []
            for name, states in (self._states or {}).items():
                past = [entry for since, entry in states if since <= moment]
                if name.startswith(f"{bucket}/") and past and past[-1] is not None:
                    found.append(past[-1])
        return sorted(found, key=lambda entry: entry["Key"])


def _entries(listing: bytes) -> list[dict[str, str]]:
    return [
        {child.tag.removeprefix(_NAMESPACE): child.text or "" for child in contents}
        for contents in ET.fromstring(listing).iter(f"{_NAMESPACE}Contents")
    ]


def _listing_xml(
    bucket: str,
    asked: dict[str, str],
    keys: list[dict[str, str]],
    folders: list[str],
    next_token: str | None,
    encode: Any,
) -> bytes:
    fields = {"Name": bucket, "Prefix": encode(asked.get("prefix", "")), "KeyCount": len(keys)}
    fields |= {"MaxKeys": asked.get("max-keys", 1000), "IsTruncated": str(bool(next_token)).lower()}
    if asked.get("encoding-type"):
        fields["EncodingType"] = "url"
    if next_token:
        fields["NextContinuationToken"] = encode(next_token)
    lines = [f"<{name}>{value}</{name}>" for name, value in fields.items()]
    for entry in keys:
        inner = "".join(
            f"<{name}>{encode(entry[name]) if name == 'Key' else escape(entry[name])}</{name}>"
            for name in ("Key", "LastModified", "ETag", "Size")
        )
        lines.append(f"<Contents>{inner}<StorageClass>STANDARD</StorageClass></Contents>")
    lines += [f"<CommonPrefixes><Prefix>{encode(f)}</Prefix></CommonPrefixes>" for f in folders]
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    space = _NAMESPACE.strip("{}")
    return f'{head}<ListBucketResult xmlns="{space}">{"".join(lines)}</ListBucketResult>'.encode()


def _refusal(code: str, request: _Request) -> _Reply:
    """An error of S3's, with all that a real one tells, the key id and the token among it."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    credential = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
    key_id = credential[1] if credential else ""
    token = headers.get("x-amz-security-token", "")
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
        f"<Message>{code} said of {key_id}</Message><AWSAccessKeyId>{key_id}</AWSAccessKeyId>"
        f"<Token-0>{escape(token)}</Token-0><Region>eu-north-1</Region>"
        "<RequestId>1</RequestId></Error>"
    )
    content = b"" if request.method == "HEAD" else body.encode()
    return _Reply(_STATUS.get(code, 403), [("Content-Type", "application/xml")], content)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request a connection."""

    protocol_version = "HTTP/1.1"
    faulty: FaultyStore

    def _serve(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("Content-Length") or 0)
        request = _Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
        reply: _Reply | None = None
        faults = self.faulty.faults_of(request)
        for rule in faults:
            if rule.fault == "delay":
                time.sleep(rule.seconds)
            elif rule.fault == "hang":
                time.sleep(600)
            elif rule.fault == "reset":
                self._reset()
                return
            elif rule.fault == "stale":
                reply = self.faulty.stale_listing(request, rule.seconds)
            elif rule.fault == "html":
                page = b"<html><body><p>It works!<br></body></html>"
                reply = _Reply(200, [("Content-Type", "text/html")], page)
            elif rule.fault == "redirect":
                reply = _Reply(307, [("Location", f"{self.faulty.endpoint}{self.path}")], b"")
            elif rule.fault == "unconditional":
                headers = {n: v for n, v in request.headers.items() if n.lower() not in _CONDITIONS}
                request = replace(request, headers=headers)
            elif rule.fault[0].isupper():
                reply = _refusal(rule.fault, request)
        if reply is None:
            reply = self.faulty.forward(request)
        self._answer(request, reply, {rule.fault for rule in faults})

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(self, request: _Request, reply: _Reply, faults: set[str]) -> None:
        if "lose_answer" in faults:
            self._reset()
            return
        body = reply.body
        is_cut = faults & {"cut", "cut_quietly"} and reply.status < 300
        if is_cut:
            body = body[: self.faulty.cut(len(body))]
        length = str(len(body) if "cut_quietly" in faults else len(reply.body))
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() == "content-length" and request.method == "HEAD":
                length = value
            elif name.lower() == "etag" and "no_etag" in faults:
                continue
            elif name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        if request.method == "HEAD":
            return
        if "trickle" in faults:
            for begin in range(0, len(body), 1 + len(body) // 8):
                self.wfile.write(body[begin : begin + 1 + len(body) // 8])
                time.sleep(0.2)
            return
        self.wfile.write(body)

    def _reset(self) -> None:
        """End the connection with RST, as a router that has lost its mind does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.wfile = self.rfile = _NoFile()  # type: ignore[assignment]

    def log_message(self, *_: object) -> None:
        """Nothing on the console."""


class _NoFile:
    """What is left of a connection that was reset."""

    closed = True

    def flush(self) -> None: ...

    def close(self) -> None: ...
