"""``python -m mer_batch`` is ``mer-batch``."""

from mer_batch.cli import entry_point

entry_point()
