"""x"""

from typing import Any


class NetworkTrainer:
    def __init__(self, *a: Any):
        self.sources: Any = {}

    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass
