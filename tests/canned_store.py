"""A store of few words: it answers every request with what it was given."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable


class CannedStore:
    """A server on loopback that answers every request with the bytes a function gives.

    Attributes
    ----------
    heads : list of str
        Of the requests, as they came.
    """

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self.heads: list[str] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        """The endpoint's URL."""
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65_536)
                self.heads.append(head.decode())
                connection.sendall(self._answer())
