"""Compiled code beside what does the same without it."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mer_batch
from mer_batch.audio import decode, mpeg, native
from mer_batch.audio.mel import mel_filterbank
from mer_batch.feature_sets import feature_set
from tests.audio.outcomes import outcome, real_paths
from tests.audio.test_mpeg import FRAME, LAYER_2, SLOWER
from tests.fuzz.mutants import made_up_seeds, mutants

needs_library = pytest.mark.skipif(native.library() is None, reason="no C compiler was there")


def test_where_there_is_a_compiler_it_was_compiled() -> None:
    """All else here is skipped otherwise, and nobody would notice."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler is there")
    assert native.library() is not None


@needs_library
def test_what_was_compiled_of_another_version_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (compiled,) = Path(native.__file__).parent.glob("_native*.so")
    assert native._loaded(str(compiled)) is not None
    monkeypatch.setattr(native, "_INTERFACE", native._INTERFACE + 1)
    assert native._loaded(str(compiled)) is None


@needs_library
def test_libsndfile_does_not_ask_python() -> None:
    """It would, without a word, if soundfile no longer had what is used of it."""
    file = io.BytesIO(made_up_seeds()[0])
    with decode._ForwardFile(file) as sound:
        sound.read(1000)
        assert file.tell() == 0
        assert sound._memory.position > 0


@needs_library
def test_sources_that_ray_sends_use_what_is_installed(tmp_path: Path) -> None:
    """Sources without what is compiled come first, and a file that is none is passed over."""
    sent, other, installed = (tmp_path / name for name in ("sent", "other", "installed"))
    package = Path(mer_batch.__file__).parent
    compiled = next(Path(native.__file__).parent.glob("_native*"))
    shutil.copytree(package, sent / "mer_batch", ignore=shutil.ignore_patterns("_native*", "__py*"))
    for folder in (other, installed):
        (folder / "mer_batch" / "audio").mkdir(parents=True)
    (other / "mer_batch" / "audio" / compiled.name).write_bytes(b"no library")
    shutil.copy(compiled, installed / "mer_batch" / "audio")
    program = "from mer_batch.audio import native; print(native.library()._name, native.__file__)"

    def found(*folders: Path) -> list[str]:
        path = os.pathsep.join(map(str, folders))
        # Without site-packages an editable installation is not found either, but numpy is not.
        numpy = str(Path(np.__file__).parent.parent)
        return subprocess.run(
            [sys.executable, "-S", "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{path}{os.pathsep}{numpy}"},
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip

    library, module = found(sent, other, installed)
    assert library.startswith(str(installed)) and module.startswith(str(sent))


def without_compiled_code(
    monkeypatch: pytest.MonkeyPatch, files: list[bytes]
) -> list[tuple[object, bytes]]:
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return [outcome(file, direct=False) for file in files]


@needs_library
def test_files_whole_and_broken_have_the_same_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [*made_up_seeds(), *(mutant for _, mutant in mutants(made_up_seeds(), 9_000, 300))]
    outcomes = [outcome(file, direct=False) for file in files]
    assert outcomes == without_compiled_code(monkeypatch, files)
    assert {isinstance(found[0], str) for found in outcomes} == {True, False}


@needs_library
def test_real_files_have_the_same_outcome(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    paths = real_paths(data_root)
    files = [path.read_bytes() for path in paths]
    assert [outcome(file, direct=False) for file in files] == without_compiled_code(
        monkeypatch, files
    )
    assert len(paths) > 200


@needs_library
@given(
    content=st.binary(max_size=40),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 60)),
            st.tuples(st.just("seek"), st.integers(0, 60)),
            st.tuples(st.just("skip"), st.integers(-60, 60)),
            st.tuples(st.just("from the end"), st.integers(-60, 60)),
        )
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_file_in_memory_is_read_as_pythons_own(
    content: bytes, steps: list[tuple[str, int]]
) -> None:
    expected, memory = io.BytesIO(content), native.MemoryFile(content)
    at = native.MemoryFile.functions()
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    length = ctypes.CFUNCTYPE(number, pointer)(at["get_filelen"])
    tell = ctypes.CFUNCTYPE(number, pointer)(at["tell"])
    seek = ctypes.CFUNCTYPE(number, number, ctypes.c_int, pointer)(at["seek"])
    read = ctypes.CFUNCTYPE(number, pointer, number, pointer)(at["read"])
    file = ctypes.addressof(memory)
    room = ctypes.create_string_buffer(64)
    assert length(file) == len(content)
    for step, n in steps:
        if step == "read":
            found = read(room, n, file)
            assert room.raw[:found] == expected.read(n)
        else:
            whence = {"seek": 0, "skip": 1, "from the end": 2}[step]
            assert seek(n, whence, file) == expected.seek(n, whence)
        assert tell(file) == expected.tell()
    assert seek(-1, 0, file) == 0, "refused, as what Python raises is"
    assert seek(2**62, 1, file) >= 0 and seek(2**63 - 1, 1, file) >= 0
    assert read(room, -1, file) == 0


@needs_library
@given(
    pieces=st.lists(
        st.sampled_from([FRAME, 5_000 * FRAME, SLOWER, LAYER_2, b"\xff", b"junk", FRAME[:100]]),
        max_size=6,
    ),
    begin=st.integers(0, 3 * len(FRAME)),
)
@settings(max_examples=200, deadline=None)
def test_compiled_code_walks_as_python_does(pieces: list[bytes], begin: int) -> None:
    data = b"".join(pieces)
    found, expected = array("q"), array("q")
    end = native.run_of_frames(data, begin, mpeg._LENGTH_OF, found)
    assert end == mpeg._run_of_frames(data, begin, expected)
    assert found == expected


@needs_library
def test_what_is_compiled_takes_powers_of_two_and_nothing_beyond_the_samples() -> None:
    assert native.NativeMelPower.takes(2048)
    assert not native.NativeMelPower.takes(400) and not native.NativeMelPower.takes(8)
    power = native.NativeMelPower(
        np.ones(1024, np.float32), mel_filterbank(feature_set("paper").mel), 1024
    )
    power.put(np.zeros(2048, np.float32), 2)
    assert power.finish().shape == (2, 40)
    with pytest.raises(ValueError, match="2 frames do not lie in 2047 samples"):
        power.put(np.zeros(2047, np.float32), 2)


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=needs_library), False])
def test_half_floats_become_single_ones(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    """All there are: an infinite one stays infinite, what is no number none."""
    if not is_native:
        monkeypatch.setattr(native, "library", lambda: None)
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
    singles = native.singles(halves)
    assert singles.dtype == np.float32
    np.testing.assert_array_equal(singles, [float(half) for half in halves.tolist()])
    np.testing.assert_array_equal(native.singles(halves[::3]), singles[::3])


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=needs_library), False])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 8])
def test_channels_are_mixed_alike(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, n_channels: int
) -> None:
    if not is_native:
        monkeypatch.setattr(native, "library", lambda: None)
    block = np.random.default_rng(0).standard_normal((1001, n_channels)).astype(np.float32)
    mixed = native.mean_of_channels(block, np.empty(1001, np.float32))
    exact = block.astype(np.float64).mean(axis=1)
    if n_channels <= 2:  # by halves of two nothing is rounded but the sum
        np.testing.assert_array_equal(mixed, exact.astype(np.float32))
    np.testing.assert_allclose(mixed, exact, atol=1e-6)
