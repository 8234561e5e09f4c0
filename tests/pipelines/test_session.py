"""A session holds its output, and notices when it does no more."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from mer_batch.block import Job
from mer_batch.catalog import read_catalog
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.config import TagConfig, parse_config
from mer_batch.errors import LeaseError
from mer_batch.lease import lease_location
from mer_batch.pipelines.session import Committer, Session, opened, pause_seconds
from mer_batch.pipelines.tagging import _job
from mer_batch.storage import Storage

_FLEET = """
import sys
from pathlib import Path
from mer_batch.budget import Budget
from mer_batch.errors import MerBatchError
from mer_batch.pipelines.work import Work
from tests.pipelines.test_session import job_of, session_of

with session_of(Path(sys.argv[1]), ray={"address": "127.0.0.1:1"}) as session:
    work = Work(session, job_of(session), Budget(8, 0.5, 0, {}))
    work.n_done = int(sys.argv[2])
    try:
        with work, work.on_a_fleet(1, doing="tagging"):
            raise AssertionError("nobody is there")
    except MerBatchError as error:
        print(error.exit_code, error)
"""


@contextmanager
def session_of(folder: Path, **sections: object) -> Iterator[Session]:
    """A session on `folder`/out, of the music in `folder`/music."""
    content = {"catalog": {"uri": str(folder / "music")}, "output": {"uri": str(folder / "out")}}
    config = parse_config(TagConfig, {**content, **sections}, origin="test")
    storage = Storage(config.storage)
    catalog = read_catalog(config.catalog, storage, taken_names=[])
    console = Console(file=io.StringIO())
    with opened(config, console, storage, catalog, product="scores") as session:
        yield session


def job_of(session: Session) -> Job:
    assert isinstance(session.config, TagConfig)
    return _job(session.config, session, builtin_checkpoint())


def test_a_run_without_anything_to_commit_notices_that_it_lost_its_lease(
    music: Path, tmp_path: Path
) -> None:
    with session_of(tmp_path) as session:
        committer = Committer(session, job_of(session))
        committer.commit_if_due()
        location = lease_location(session.output)
        holder = json.loads(session.storage.read(location))
        later = {**holder, "run_id": "later", "generation": holder["generation"] + 1}
        session.storage.write(location, json.dumps(later).encode())
        with pytest.raises(LeaseError):
            session.run.lease.confirm()
        with pytest.raises(LeaseError, match="another run took it over"):
            committer.commit_if_due()


def test_a_lease_file_that_is_gone_is_no_matter_to_a_clock_that_was_ahead(
    music: Path, tmp_path: Path
) -> None:
    ahead = 10**12
    with session_of(tmp_path) as session:
        session.ledger.fence(ahead)
    for generation in (ahead + 1, ahead + 2):
        (tmp_path / "out" / "runs" / "_lease.json").unlink()
        with session_of(tmp_path) as session:
            assert session.run.lease.generation == generation


@pytest.mark.parametrize(("n_done", "exit_code"), [(0, 2), (1, 1)])
def test_a_fleet_that_is_not_there_is_a_refusal_only_before_work(
    music: Path, tmp_path: Path, n_done: int, exit_code: int
) -> None:
    command = [sys.executable, "-c", _FLEET, str(tmp_path), str(n_done)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.startswith(f"{exit_code} ray.address="), ended


def test_commits_that_take_long_are_made_less_often_within_bounds() -> None:
    assert [pause_seconds(took) for took in (0.0, 0.5, 1.0, 3.0, 100.0)] == [5, 5, 9, 27, 60]
