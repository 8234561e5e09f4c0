"""A plugin is a file in a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mer_batch.errors import ConfigError
from mer_batch.registry import load_plugin, plugin_names, unknown_name


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of two plugins, importable for one test."""
    folder = tmp_path / "some_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "zebra.py").write_text("STRIPES = 7\n")
    (folder / "antelope.py").write_text("STRIPES = 0\n")
    (folder / "notes.txt").write_text("no plugin")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_plugins"
    for name in [name for name in sys.modules if name.split(".")[0] == "some_plugins"]:
        del sys.modules[name]


def test_the_names_are_the_files(package: str) -> None:
    assert plugin_names(package) == ["antelope", "zebra"]


def test_a_file_that_is_added_is_a_plugin(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "yak.py").write_text("STRIPES = 1\n")
    assert load_plugin(package, "yak", kind="animal").STRIPES == 1


def test_a_plugin_is_loaded_by_its_name(package: str) -> None:
    assert load_plugin(package, "zebra", kind="animal").STRIPES == 7


@pytest.mark.parametrize("name", ["zebre", "", "..", "os", "notes", "zebra.py", "__init__"])
def test_an_unknown_name_is_refused_with_the_names_there_are(package: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plugin(package, name, kind="animal")
    assert str(caught.value).startswith(f"animal={name!r} must be one of antelope, zebra")


def test_the_closest_name_is_suggested_and_a_far_one_is_not() -> None:
    assert unknown_name("x", "zebar", ["antelope", "zebra"]).endswith("; did you mean 'zebra'?")
    assert "did you mean" not in unknown_name("x", "whale", ["antelope", "zebra"])


@pytest.mark.parametrize("folder", ["mer_batch.models", "mer_batch.feature_sets"])
def test_the_packages_own_plugins_load(folder: str) -> None:
    names = plugin_names(folder)
    assert names == sorted(names) != []
    for name in names:
        assert load_plugin(folder, name, kind="plugin").__name__ == f"{folder}.{name}"
