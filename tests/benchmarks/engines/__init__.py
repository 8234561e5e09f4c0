"""One catalog tagged by other engines: one file each, a command of its own, started from a shell.

All are given a Parquet list of ``track_id`` and ``path`` and write Parquet with ``track_id``,
``valence`` and ``arousal``. What is done to a track is chosen from ``taggers.py``.
"""
