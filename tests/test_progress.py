"""What a run shows while it works."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mer_batch.progress import TrackProgress, describe_rejects


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=120)


def shown(output: Console) -> str:
    assert isinstance(output.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.file.getvalue())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_outcomes_are_counted(is_terminal: bool) -> None:
    with TrackProgress(console(is_terminal=is_terminal), 10) as progress:
        progress.begin_work()
        progress.add(3, [])
        progress.add(2, ["silent", "timeout", "silent"])
        progress.add(0, [])
    assert (progress.n_succeeded, progress.n_done) == (5, 8)
    assert progress.rejects == {"silent": 2, "timeout": 1}
    assert progress.seconds >= 0


def test_without_a_terminal_lines_are_plain() -> None:
    output = console(is_terminal=False)
    with TrackProgress(output, 12_345) as progress:
        progress.add(1, [])
    assert shown(output) == "tagging 12,345 tracks: starting Ray\n"


def test_a_line_is_written_once_in_a_while() -> None:
    output = console(is_terminal=False)
    with TrackProgress(output, 4_000) as progress:
        progress._last_line -= 3600
        progress._started -= 3600
        progress.add(1_000, ["silent"] * 800)
        progress.add(1, [])
    _, line = shown(output).splitlines()
    assert line == "tagging 1,800/4,000 0.5 tracks/s  ETA 1:13:20  rejects 800 (silent 800)"


def test_a_terminal_shows_a_live_line_and_leaves_nothing_behind() -> None:
    output = console(is_terminal=True)
    with TrackProgress(output, 5) as progress:
        progress.add(2, ["silent"])
        assert progress._live is not None
        progress._live.refresh()
        assert "3/5" in shown(output)
        assert "rejects 1 (silent 1)" in shown(output)
    assert progress._live.finished is False
    assert not progress._live.live.is_started


def test_a_live_line_ends_with_an_error_too() -> None:
    progress = TrackProgress(console(is_terminal=True), 5)
    with pytest.raises(ZeroDivisionError), progress:
        raise ZeroDivisionError
    assert progress._live is not None
    assert not progress._live.live.is_started


def test_rejects_are_described_with_the_most_frequent_first() -> None:
    assert (
        describe_rejects({"silent": 1, "truncated": 2_000}) == "2,001 (truncated 2,000, silent 1)"
    )
