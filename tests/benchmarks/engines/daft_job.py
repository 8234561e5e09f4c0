"""Daft on this machine: a class with a batch method, Parquet in and out.

Chosen for speed: as many processes of the class as there are cores (threads would share one
interpreter); small batches, as a row costs tens of milliseconds; paths travel, not audio.
"""

from __future__ import annotations

import daft
from daft import DataType, Series

from tests.benchmarks.engines.taggers import arguments, tagger

_BATCH_TRACKS = 16
_SCORES = DataType.struct({"valence": DataType.float64(), "arousal": DataType.float64()})


class Scores:
    """Holds the tagger of its process."""

    def __init__(self, name: str) -> None:
        self._tag = tagger(name)

    @daft.method.batch(return_dtype=_SCORES, unnest=True, batch_size=_BATCH_TRACKS)
    def of(self, paths: Series) -> list[dict[str, float]]:
        """Valence and arousal of each path."""
        scores = map(self._tag, paths.to_pylist())
        return [{"valence": valence, "arousal": arousal} for valence, arousal in scores]


def main() -> None:
    """Tag a list of tracks."""
    chosen = arguments()
    scores = daft.cls(use_process=True, max_concurrency=chosen.n_cores)(Scores)(chosen.tagger)
    tracks = daft.read_parquet(chosen.tracks)
    tracks.select(tracks["track_id"], scores.of(tracks["path"])).write_parquet(chosen.output)


if __name__ == "__main__":
    main()
