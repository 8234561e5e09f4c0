"""One Ray for all pipeline tests of this session, and the job as a function."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable
from rich.console import Console

from mer_batch.config import ExtractConfig, TagConfig, parse_config
from mer_batch.summary import print_tag_summary


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine, started once."""
    import ray

    from mer_batch.config import RayConfig
    from mer_batch.pipelines import cluster

    cluster._start(RayConfig(num_cpus=2))
    yield
    ray.shutdown()


class Tagged:
    """The outcome of a run, and the tables as they are now."""

    def __init__(self, output: Path, summary: Any, text: str) -> None:
        self.output = output
        self.summary = summary
        self.text = text

    @property
    def enriched(self) -> pa.Table:
        return pads.dataset(self.summary.night_uri, format="parquet").to_table()

    @property
    def scores(self) -> pa.Table:
        return table(self.output / "scores")

    @property
    def rejects(self) -> pa.Table:
        return table(self.output / "rejects")


def table(folder: Path) -> pa.Table:
    """A Delta table as any reader sees it."""
    delta = DeltaTable(str(folder))
    uris = delta.file_uris()
    if not uris:
        return pa.schema(delta.schema().to_arrow()).empty_table()
    return pads.dataset(uris, format="parquet").to_table()


@pytest.fixture
def tag(local_ray: None, tmp_path: Path) -> Callable[..., Tagged]:
    """Run the job in this process: ``tag(catalog=..., **sections)``.

    With ``replayed`` the rejects of these reasons are tried again.
    """
    from mer_batch.pipelines import tagging

    def run(catalog: object, *, replayed: frozenset[str] | None = None, **sections: Any) -> Tagged:
        catalog = catalog if isinstance(catalog, dict) else {"uri": str(catalog)}
        content = {"catalog": catalog, "output": {"uri": str(tmp_path / "out")}, **sections}
        text = io.StringIO()
        console = Console(file=text, soft_wrap=True, highlight=False, markup=False)
        config = parse_config(TagConfig, content, origin="test")
        if replayed is None:
            summary = tagging.run(config, console)
        else:
            summary = tagging.replay(config, console, replayed)
        print_tag_summary(console, summary)
        return Tagged(Path(content["output"]["uri"]), summary, text.getvalue())

    return run


class Extracted:
    """The outcome of a run of ``extract``, and the tables as they are now."""

    def __init__(self, output: Path, summary: Any, text: str) -> None:
        self.output = output
        self.summary = summary
        self.text = text

    @property
    def features(self) -> pa.Table:
        return table(self.output / "features").drop_columns(["mel"])

    @property
    def rejects(self) -> pa.Table:
        return table(self.output / "rejects")


@pytest.fixture
def extract(local_ray: None, tmp_path: Path) -> Callable[..., Extracted]:
    """Run the job in this process: ``extract(catalog=..., **sections)``."""
    from mer_batch.pipelines import extraction

    def run(catalog: object, **sections: Any) -> Extracted:
        catalog = catalog if isinstance(catalog, dict) else {"uri": str(catalog)}
        content = {"catalog": catalog, "output": {"uri": str(tmp_path / "out")}, **sections}
        text = io.StringIO()
        console = Console(file=text, soft_wrap=True, highlight=False, markup=False)
        summary = extraction.run(parse_config(ExtractConfig, content, origin="test"), console)
        return Extracted(Path(content["output"]["uri"]), summary, text.getvalue())

    return run
