"""Spark on this machine: pandas in batches (``mapInPandas``), Parquet in and out.

Chosen for speed: paths travel, not audio, which each Python worker reads for itself; Python
workers are kept from task to task (Spark's default) and hold their model; several partitions a
core, so that no core waits for the last one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession

from tests.benchmarks.engines.taggers import arguments, tagger

_PARTITIONS_A_CORE = 4


def main() -> None:
    """Tag a list of tracks."""
    chosen = arguments()
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{chosen.n_cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    name = chosen.tagger

    def scores(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        tag = tagger(name)  # the same from partition to partition, in a worker that is kept
        for batch in batches:
            valence, arousal = zip(*(tag(path) for path in batch["path"]), strict=True)
            yield pd.DataFrame(
                {"track_id": batch["track_id"], "valence": valence, "arousal": arousal}
            )

    (
        spark.read.schema("track_id string, path string")
        .parquet(chosen.tracks)
        .repartition(_PARTITIONS_A_CORE * chosen.n_cores)
        .mapInPandas(scores, "track_id string, valence double, arousal double")
        .write.parquet(chosen.output)
    )
    spark.stop()


if __name__ == "__main__":
    main()
