"""Folders that exchange their names, and files that are flushed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mer_batch.disk import exchange, flush, make_folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
def test_two_folders_exchange_their_names_at_any_depth(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "deep" / "Björk 100%"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    before = one.stat().st_ino, other.stat().st_ino
    assert exchange(one, other)
    assert (one / "file").read_text() == "Björk 100%"
    assert (other / "file").read_text() == "one"
    assert (other.stat().st_ino, one.stat().st_ino) == before, "moved, not copied"


def test_what_is_not_there_cannot_be_exchanged(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    if sys.platform == "linux":
        with pytest.raises(FileNotFoundError, match="one"):
            exchange(tmp_path / "one", tmp_path / "none")
    else:
        assert not exchange(tmp_path / "one", tmp_path / "none")
    assert (tmp_path / "one").is_dir()


def test_folders_are_made_once_and_files_are_in_the_way(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    flush(tmp_path / "a")
    (tmp_path / "file").write_text("text")
    flush(tmp_path / "file")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError):
            make_folder(path)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "none")
