"""Storage on a local disk and on a real S3 server."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.config import StorageConfig
from mer_batch.delta import open_table
from mer_batch.errors import AudioError, StorageError
from mer_batch.storage import Location, Storage, parse_uri
from tests.canned_store import CannedStore
from tests.faulty_store import FaultyStore

Place = tuple[Storage, Location]

# Names that have been somebody's bug before.
ODD_NAMES = [
    "two words",
    "100%",
    "a%20b",
    "Björk",
    "日本語",
    "a+b",
    "a&b=c;d",
    "q?x#y",
    "[1]*",
    "'\"",
]


def reject_reason(storage: Storage, uri: str, *, max_bytes: int = 100) -> str:
    with pytest.raises(AudioError) as caught:
        storage.read_audio(uri, max_bytes=max_bytes)
    return caught.value.reason


# ------------------------------------------------------------------ URIs


@pytest.mark.parametrize(
    ("uri", "bucket", "path"),
    [
        ("/music/a b%20.mp3", None, "/music/a b%20.mp3"),
        ("/music/../other/./x", None, "/other/x"),
        ("file:///music/a%20b.mp3", None, "/music/a b.mp3"),
        ("FILE:///music/x", None, "/music/x"),
        ("file://localhost/music/x", None, "/music/x"),
        ("file:/music/a%20b.mp3", None, "/music/a b.mp3"),
        ("s3://bucket/a b%20.mp3", "bucket", "a b%20.mp3"),
        ("s3a://bucket/x", "bucket", "x"),
        ("S3://bucket/x", "bucket", "x"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket//x/../y", "bucket", "/x/../y"),
    ],
)
def test_a_uri_is_a_place(uri: str, bucket: str | None, path: str) -> None:
    assert parse_uri(uri) == Location(bucket, path)


def test_a_relative_path_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_uri("a/b").path == str(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_uri("~/b").path == "/home/somebody/b"


@pytest.mark.parametrize(
    "uri", ["gs://bucket/x", "http://host/x", "s3:///x", "s3://", "file://host/x", "file://x"]
)
def test_a_uri_that_is_no_place_is_refused_with_its_value(uri: str) -> None:
    with pytest.raises(StorageError, match="must") as caught:
        parse_uri(uri)
    assert repr(uri) in str(caught.value)


def test_a_percent_encoded_name_may_hold_any_bytes() -> None:
    assert os.fsencode(parse_uri("file:///a%FF%00").path) == b"/a\xff\x00"


@given(st.text(alphabet=st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1))
def test_a_location_reads_back_from_its_uri(name: str) -> None:
    if name not in (".", ".."):
        place = Location(None, f"/folder/{name}")
        assert parse_uri(place.uri) == place
    key = Location("bucket", f"prefix/{name}")
    assert parse_uri(key.uri) == key


@pytest.mark.parametrize("uri", ["s3://b", "s3://b/", "s3://b/x", "s3://b/x/", "/x", "/"])
def test_a_child_has_one_slash_before_its_name(uri: str) -> None:
    child = parse_uri(uri).child("y", "z.txt")
    assert child.uri.endswith("/y/z.txt")
    assert "//" not in child.uri.removeprefix("s3://")
    assert child.fs_path.endswith("/y/z.txt")


# ------------------------------------------------------------------ small files


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_written_is_read_listed_and_deleted(place: Place, name: str) -> None:
    storage, folder = place
    file = folder.child(name, f"{name}.bin")
    assert not storage.exists(file)
    storage.write(file, b"first")
    storage.write(file, b"second")
    assert storage.exists(file)
    assert storage.read(file) == b"second"
    assert storage.is_folder(folder)
    assert not storage.is_folder(file)
    assert not storage.exists(folder)
    ((found, n_bytes, version),) = storage.list_files(folder)
    assert (found, n_bytes) == (file, 6)
    assert version == storage.version(file) != ""
    storage.delete(file)
    storage.delete(file)
    assert not storage.exists(file)
    assert list(storage.list_files(folder)) == []


def test_a_listing_is_all_that_lies_below_and_nothing_beside(place: Place) -> None:
    storage, folder = place
    for name in ("a/1", "a/b/2", "ab/3", "a.txt"):
        storage.write(folder.child(name), name.encode())
    found = {
        entry.path.rpartition("/")[2]: size
        for entry, size, _ in storage.list_files(folder.child("a"))
    }
    assert found == {"1": 3, "2": 5}


def listed(folder: Path) -> list[str]:
    found = Storage(StorageConfig()).list_files(parse_uri(str(folder)))
    return sorted(str(Path(entry.path).relative_to(folder)) for entry, _, _ in found)


def linked_to_one_another(top: Path, n: int = 12) -> list[str]:
    """Folders of one file, each with links to all of them and to what is above them."""
    for number in range(n):
        folder = top / f"{number:02}"
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"")
        (folder / "up").symlink_to("..")
        for other in range(n):
            (folder / f"to-{other:02}").symlink_to(f"../{other:02}")
    return [f"{number:02}/x" for number in range(n)]


def test_a_folder_keeps_its_names_whatever_links_lead_to_it(tmp_path: Path) -> None:
    names = linked_to_one_another(tmp_path / "music")
    (tmp_path / "music" / "+first").symlink_to("05")
    assert listed(tmp_path / "music") == names
    (tmp_path / "linked").symlink_to("music")
    assert listed(tmp_path / "linked") == names


def test_every_link_to_a_folder_outside_has_names_of_its_own(tmp_path: Path) -> None:
    names = linked_to_one_another(tmp_path / "music")
    catalog = tmp_path / "catalog"
    (catalog / "own").mkdir(parents=True)
    (catalog / "own" / "y").write_bytes(b"")
    (tmp_path / "music" / "back").symlink_to(catalog)
    ways: list[str] = []
    for link in ("b", "a", "own/c"):  # what comes later changes no name
        (catalog / link).symlink_to(tmp_path / "music")
        ways += [f"{link}/{name}" for name in names]
        assert listed(catalog) == sorted(["own/y", *ways])
    (catalog / "own" / "one").symlink_to(tmp_path / "music" / "07")
    assert set(ways) < set(listed(catalog))
    assert "own/one/x" in listed(catalog)


def test_a_listing_goes_beyond_one_page(s3: Any) -> None:
    storage, folder = Storage(StorageConfig(endpoint_url=s3.endpoint)), Location(s3.bucket, "many")
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda n: storage.write(folder.child(f"{n:04}"), b""), range(25)))
    pages = storage._objects.client.meta.events
    pages.register("before-parameter-build.s3.ListObjectsV2", _ten_a_page)
    assert len(list(storage.list_files(folder))) == 25


def _ten_a_page(params: dict[str, Any], **_: object) -> None:
    params["MaxKeys"] = 10


def test_reading_what_is_not_there_is_refused_with_its_uri(place: Place) -> None:
    storage, folder = place
    storage.write(folder.child("other"), b"")
    with pytest.raises(StorageError) as caught:
        storage.read(folder.child("none"))
    assert folder.child("none").uri in str(caught.value)
    assert storage.version(folder.child("none")) == ""


def test_a_bucket_that_does_not_exist_is_refused(s3: Any) -> None:
    storage, nowhere = (
        Storage(StorageConfig(endpoint_url=s3.endpoint)),
        Location("no-such-bucket", "x"),
    )
    for use in (
        storage.read,
        lambda at: list(storage.list_files(at)),
        lambda at: storage.write(at, b""),
        lambda at: storage.write_if(at, b"", token=None),
        storage.read_with_token,
        storage.check_writable,
    ):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            use(nowhere)


def test_a_bucket_itself_is_no_file(s3: Any) -> None:
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    assert not storage.exists(Location(s3.bucket, ""))
    assert not storage.is_folder(Location(s3.bucket, ""))


def test_what_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path) -> None:
    storage = Storage(StorageConfig())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="check the path"):
        storage.write(parse_uri(str(tmp_path / "file" / "below")), b"")
    with pytest.raises(StorageError, match="check the path"):
        storage.write(parse_uri(str(tmp_path)), b"a folder is in the way")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    with pytest.raises(StorageError):
        list(storage.list_files(parse_uri(str(tmp_path / "none"))))


def test_a_full_disk_is_refused_with_a_remedy() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StorageError, match="free some space"), open("/dev/full", "wb") as full:
        from mer_batch.storage import _storage_errors

        with _storage_errors("write", Location(None, "/dev/full")):
            full.write(b"x" * 100_000)
            full.flush()


def test_a_probe_of_writability_leaves_nothing(place: Place) -> None:
    storage, folder = place
    storage.check_writable(folder)
    assert list(storage.list_files(folder)) == []


def test_writers_of_one_file_do_not_disturb_each_other(place: Place) -> None:
    storage, folder = place
    contents = [bytes([n]) * 50_000 for n in range(16)]
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda content: storage.write(folder.child("x"), content), contents * 4))
    assert storage.read(folder.child("x")) in contents
    assert [found.path.rpartition("/")[2] for found, _, _ in storage.list_files(folder)] == ["x"]


def test_a_storage_can_be_pickled_after_use(place: Place) -> None:
    storage, folder = place
    storage.write(folder.child("x"), b"content")
    storage.filesystem(folder)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read(folder.child("x")) == b"content"


def test_pyarrow_and_delta_find_the_same_files(place: Place) -> None:
    storage, folder = place
    storage.write(folder.child("x"), b"content")
    with storage.filesystem(folder).open_input_file(folder.child("x").fs_path) as file:
        assert file.read() == b"content"
    assert (storage.delta_options(folder) is None) == (not folder.is_s3)


# ------------------------------------------------------------------ conditional writes


def test_a_conditional_write_needs_the_present_token(place: Place) -> None:
    storage, folder = place
    file = folder.child("lease.json")
    assert storage.read_with_token(file) is None
    assert storage.write_if(file, b"too early", token="some token") is None
    first = storage.write_if(file, b"1", token=None)
    assert first is not None
    assert storage.read_with_token(file) == (b"1", first)
    assert storage.write_if(file, b"x", token=None) is None
    second = storage.write_if(file, b"2", token=first)
    assert second is not None
    assert storage.write_if(file, b"x", token=first) is None
    assert storage.read_with_token(file) == (b"2", second)


def test_a_write_whose_answer_was_lost_counts_as_done(place: Place) -> None:
    storage, folder = place
    file = folder.child("lease.json")
    token = storage.write_if(file, b"mine", token=None)
    # The client tries again what the store has already done.
    assert storage.write_if(file, b"mine", token=None) == token


@pytest.mark.parametrize("is_new", [True, False])
def test_of_many_writers_at_once_one_wins(place: Place, is_new: bool) -> None:
    storage, folder = place
    file = folder.child("lease.json")
    token = None if is_new else storage.write_if(file, b"before", token=None)
    barrier = threading.Barrier(8)

    def write(content: bytes) -> str | None:
        barrier.wait()
        return storage.write_if(file, content, token=token)

    contents = [f"writer {n}".encode() for n in range(8)]
    with ThreadPoolExecutor(8) as writers:
        tokens = list(writers.map(write, contents))
    winners = [(c, t) for c, t in zip(contents, tokens, strict=True) if t is not None]
    assert winners == [storage.read_with_token(file)]


def test_counting_with_conditional_writes_loses_nothing(place: Place) -> None:
    storage, folder = place
    file = folder.child("counter")
    storage.write(file, b"0 ")

    def count(_: int) -> None:
        while True:
            present = storage.read_with_token(file)
            assert present is not None
            # A lease's content is its holder's own too: the same content would be the same state.
            content = f"{int(present[0].split()[0]) + 1} {uuid.uuid4()}".encode()
            if storage.write_if(file, content, token=present[1]):
                return

    with ThreadPoolExecutor(4) as counters:
        list(counters.map(count, range(12)))
    assert storage.read(file).startswith(b"12 ")


# ------------------------------------------------------------------ audio


@pytest.mark.parametrize("name", ODD_NAMES)
def test_audio_is_read_with_the_version_that_a_listing_gives(place: Place, name: str) -> None:
    storage, folder = place
    file = folder.child(f"{name}.mp3")
    storage.write(file, b"x" * 100)
    audio = storage.read_audio(file.uri, max_bytes=100)
    assert audio.content == b"x" * 100
    assert [audio.version] == storage.audio_versions([file.uri])
    assert audio.version != ""


def test_a_version_changes_with_the_content(place: Place) -> None:
    storage, folder = place
    file = folder.child("a.mp3")
    storage.write(file, b"before")
    before = storage.audio_versions([file.uri])
    storage.write(file, b"after that")
    assert storage.audio_versions([file.uri]) != before


def test_audio_that_is_not_there_or_too_large_is_a_reject(place: Place) -> None:
    storage, folder = place
    storage.write(folder.child("a.mp3"), b"x" * 101)
    assert reject_reason(storage, folder.child("b.mp3").uri) == "not_found"
    assert reject_reason(storage, folder.child("a.mp3").uri) == "too_large"
    for max_bytes in (101, 2**40):  # the largest that a configuration may name
        audio = storage.read_audio(folder.child("a.mp3").uri, max_bytes=max_bytes)
        assert audio.content == b"x" * 101


def test_of_a_file_that_grows_what_was_admitted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"x" * 10)
    storage = Storage(StorageConfig())
    (before,) = storage.audio_versions([str(path)])

    def grow(n_bytes: int) -> None:
        path.write_bytes(b"x" * (n_bytes + 10))

    audio = storage.read_audio(str(path), max_bytes=100, admit=grow)
    assert (audio.content, audio.version) == (b"x" * 10, before)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host/a.mp3",
        "s3:///a.mp3",
        "s3://Not_A_Bucket!/x",
        "s3://bucket/",
        "file://elsewhere/x",
        "/nul\0byte",
        "/" + "long" * 100,
        "/dev/null/below",
        "",
    ],
)
def test_a_uri_that_leads_nowhere_is_a_permanent_reject(s3: Any, uri: str) -> None:
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    assert reject_reason(storage, uri) in ("not_found", "not_audio")


def test_what_is_no_regular_file_is_not_audio(tmp_path: Path) -> None:
    storage = Storage(StorageConfig())
    os.mkfifo(tmp_path / "pipe.mp3")
    (tmp_path / "folder.mp3").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for name in ("pipe.mp3", "folder.mp3", "s"):
            assert reject_reason(storage, str(tmp_path / name)) == "not_audio"
    assert reject_reason(storage, "/dev/zero") == "not_audio"


@pytest.mark.parametrize("path", ["/proc/self/status", "/proc/kmsg"])
def test_a_file_that_has_more_than_its_size_says_is_read_by_its_size(path: str) -> None:
    # The second one would give nothing at all, rather than wait, once it has been read.
    if not os.access(path, os.R_OK):
        pytest.skip(f"{path} cannot be read here")
    assert Storage(StorageConfig()).read_audio(path, max_bytes=100).content == b""


def test_a_file_that_is_cut_while_it_is_read_is_a_passing_reject(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"x" * 50)

    def cut(n_bytes: int) -> None:
        os.truncate(tmp_path / "a.mp3", 20)

    with pytest.raises(AudioError, match="20 of 50 bytes") as caught:
        Storage(StorageConfig()).read_audio(str(tmp_path / "a.mp3"), max_bytes=100, admit=cut)
    assert caught.value.reason == "storage_error"


def test_a_link_is_followed_and_a_loop_of_links_is_not_found(tmp_path: Path) -> None:
    storage = Storage(StorageConfig())
    (tmp_path / "a.mp3").write_bytes(b"x")
    (tmp_path / "link.mp3").symlink_to(tmp_path / "a.mp3")
    (tmp_path / "loop.mp3").symlink_to(tmp_path / "loop.mp3")
    (tmp_path / "dangling.mp3").symlink_to(tmp_path / "none")
    assert storage.read_audio(str(tmp_path / "link.mp3"), max_bytes=1).content == b"x"
    assert reject_reason(storage, str(tmp_path / "loop.mp3")) == "not_found"
    assert reject_reason(storage, str(tmp_path / "dangling.mp3")) == "not_found"


def test_a_link_that_leads_out_of_the_folders_is_not_followed(tmp_path: Path) -> None:
    music, secret = tmp_path / "disk" / "music", tmp_path / "secret"
    (music / "deep").mkdir(parents=True)
    secret.write_bytes(b"secret")
    (music / "a").write_bytes(b"a")
    (tmp_path / "music").symlink_to(music)
    (music / "out").symlink_to(secret)
    (music / "up").symlink_to(tmp_path)
    (music / "deep" / "in").symlink_to("../a")
    (music / "loop").symlink_to(music / "loop")
    storage = Storage(StorageConfig())
    linked = str(tmp_path / "music")

    def read(name: str, folders: list[str] | None) -> bytes:
        return storage.read_audio(f"{linked}/{name}", max_bytes=9, folders=folders).content

    for folder in (linked, str(music), "/"):  # a root may be a link itself
        assert read("a", [folder]) == read("deep/in", ["/nowhere", folder]) == b"a"
    assert read("out", None) == read("up/secret", ["/"]) == b"secret"
    for name, folders in (("out", [linked]), ("up/secret", [str(music)]), ("a", []), ("a", ["/x"])):
        with pytest.raises(AudioError) as denied:
            read(name, folders)
        assert denied.value.reason == "access_denied"
    for name in ("loop", "none", "a/b", "nul\0"):
        with pytest.raises(AudioError) as missing:
            read(name, [linked])
        assert missing.value.reason == "not_found"


def test_a_file_that_is_exchanged_while_it_is_looked_at_is_read_as_it_was(tmp_path: Path) -> None:
    music, secret = tmp_path / "music", tmp_path / "secret"
    music.mkdir()
    secret.write_bytes(b"secret")
    storage = Storage(StorageConfig())
    track = music / "a.mp3"

    def leads_out() -> None:
        track.symlink_to(secret)

    def never_answers() -> None:
        os.mkfifo(track)

    for exchange in (leads_out, never_answers):
        track.unlink(missing_ok=True)
        track.write_bytes(b"music")
        version = storage.version(Location(None, str(track)))

        def admit(n_bytes: int, exchange: Callable[[], None] = exchange) -> None:
            track.unlink()
            exchange()

        found = storage.read_audio(str(track), max_bytes=9, folders=[str(music)], admit=admit)
        assert (found.content, found.version) == (b"music", version)


def test_what_is_no_regular_file_leaves_no_handle_open(tmp_path: Path) -> None:
    storage = Storage(StorageConfig())
    before = sum(1 for _ in Path("/dev/fd").iterdir())
    for _ in range(50):
        assert reject_reason(storage, str(tmp_path)) == "not_audio"
    assert sum(1 for _ in Path("/dev/fd").iterdir()) < before + 50


def test_a_file_that_may_not_be_read_is_access_denied(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    path = tmp_path / "a.mp3"
    path.write_bytes(b"x")
    path.chmod(0)
    assert reject_reason(Storage(StorageConfig()), str(path)) == "access_denied"


def test_a_store_that_knows_no_such_key_id_denies_access(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _denying_store() as endpoint:
        storage = Storage(StorageConfig(endpoint_url=endpoint))
        assert reject_reason(storage, "s3://bucket/a.mp3") == "access_denied"
        with pytest.raises(StorageError, match="check the credentials") as caught:
            storage.audio_versions(["s3://bucket/a.mp3"])
    assert "test-secret-word" not in str(caught.value)
    assert "test-key-id" not in str(caught.value)


def test_a_body_that_breaks_off_is_read_again(s3: Any) -> None:
    with CannedStore(_broken_once()) as endpoint:
        storage = Storage(StorageConfig(endpoint_url=endpoint))
        audio = storage.read_audio("s3://bucket/a.mp3", max_bytes=100)
    assert audio.content == b"0123456789"


def test_a_store_that_always_fails_is_a_passing_reject(s3: Any) -> None:
    with CannedStore(
        lambda: b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: "e"\r\n\r\n012'
    ) as endpoint:
        storage = Storage(StorageConfig(endpoint_url=endpoint, patience_seconds=1))
        assert reject_reason(storage, "s3://bucket/a.mp3") == "storage_error"


def test_no_credentials_are_told_apart_and_no_secret_is_told(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        storage.read(Location(s3.bucket, "x"))


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("misnamed", "ProfileNotFound: .*misnamed.* check AWS_PROFILE"),
        ("failing", "CredentialRetrievalError: .*out of order.* check AWS_PROFILE"),
    ],
)
def test_a_profile_that_gives_no_credentials_is_told(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str, words: str
) -> None:
    config = tmp_path / "config"
    program = f"{sys.executable} -c \"raise SystemExit('out of order')\""
    config.write_text(f"[profile failing]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", profile)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint, patience_seconds=1))
    place = Location(s3.bucket, "x")
    for use in (storage.delta_options, storage.read, partial(open_table, storage)):
        with pytest.raises(StorageError, match=words) as caught:
            use(place)
        assert "\n" not in str(caught.value)
    assert storage.explain(OSError("another fault")) == "another fault"
    assert reject_reason(storage, f"s3://{s3.bucket}/a.mp3") == "storage_error"


def test_no_error_tells_the_secret(s3: Any) -> None:
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    messages = [repr(storage), repr(storage.__dict__)]
    for use in (storage.read, storage.check_writable, lambda at: list(storage.list_files(at))):
        with pytest.raises(StorageError) as caught:
            use(Location("no-such-bucket", "x"))
        messages.append(str(caught.value))
    assert not any("test-secret-word" in message for message in messages)


def test_an_endpoint_without_its_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL='localhost:9000' must begin with"):
        Storage(StorageConfig()).read(Location("bucket", "x"))


def test_the_endpoint_of_the_environment_is_used(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    storage = Storage(StorageConfig())
    storage.write(Location(s3.bucket, "x"), b"1")
    assert storage.read(Location(s3.bucket, "x")) == b"1"


def test_versions_of_objects_come_from_one_listing(s3: Any) -> None:
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    keys = [f"music/{n % 3}/{n}.mp3" for n in range(30)]
    for key in keys:
        storage.write(Location(s3.bucket, key), key.encode())
    requests: list[str] = []
    storage._objects.client.meta.events.register(
        "before-send.s3", lambda request, **_: requests.append(request.url)
    )
    uris = [f"s3://{s3.bucket}/{key}" for key in [*keys, "music/none.mp3"]]
    versions = storage.audio_versions(uris)
    # One more for what the listing does not show: it may be new.
    assert len(requests) == 2
    assert len(set(versions[:-1])) == 30
    assert versions[-1] == ""


def test_versions_keep_the_order_of_mixed_uris(s3: Any, tmp_path: Path) -> None:
    storage = Storage(StorageConfig(endpoint_url=s3.endpoint))
    (tmp_path / "a.mp3").write_bytes(b"12345")
    storage.write(Location(s3.bucket, "top.mp3"), b"x")
    uris = [
        str(tmp_path / "none.mp3"),
        f"s3://{s3.bucket}/top.mp3",
        "s3:///no-bucket",
        str(tmp_path / "a.mp3"),
        f"s3a://{s3.bucket}/top.mp3",
        str(tmp_path / "a.mp3"),
    ]
    none, top, malformed, a, top_again, a_again = storage.audio_versions(uris)
    assert (none, malformed) == ("", "")
    assert top == top_again == s3.head_object(Bucket=s3.bucket, Key="top.mp3")["ETag"].strip('"')
    assert a == a_again
    assert a.startswith("5-")
    assert storage.audio_versions([]) == []


# ------------------------------------------------------------------ stores that misbehave


def _denying_store() -> CannedStore:
    body = b"<Error><Code>InvalidAccessKeyId</Code><Message>test-key-id</Message></Error>"
    head = f"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return CannedStore(lambda: head.encode() + body)


def _broken_once() -> Any:
    head = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\nETag: "e"\r\n\r\n'
    answers = iter([head + b"01234", head + b"0123456789"])
    return lambda: next(answers)


# ------------------------------------------------------------------ faults that pass, and that last


PASSING = ["SlowDown", "InternalError", "reset", "lose_answer", "cut", "cut_quietly"]


def storage_behind(faulty: FaultyStore, **config: Any) -> Storage:
    return Storage(StorageConfig(endpoint_url=faulty.endpoint, **config))


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_waited_for_in_every_use(
    s3: Any, faulty: FaultyStore, fault: str
) -> None:
    storage, folder = storage_behind(faulty), Location(s3.bucket, "lib")
    content = bytes(range(256)) * 40

    def suffer(methods: str) -> None:
        faulty.add(fault, methods=methods, n=2)

    suffer("PUT")
    storage.write(folder.child("a.mp3"), content)
    suffer("GET")
    assert storage.read(folder.child("a.mp3")) == content
    suffer("GET")
    assert storage.read_audio(folder.child("a.mp3").uri, max_bytes=10**6).content == content
    suffer("GET")
    assert [size for _, size, _ in storage.list_files(folder)] == [len(content)]
    suffer("HEAD")
    assert storage.exists(folder.child("a.mp3"))
    assert not storage.exists(folder.child("b.mp3"))
    suffer("PUT")
    token = storage.write_if(folder.child("lease"), b"1", token=None)
    assert token is not None
    suffer("PUT GET")
    assert storage.write_if(folder.child("lease"), b"2", token=token) is not None
    suffer("GET")
    assert storage.read_with_token(folder.child("none")) is None
    suffer("DELETE")
    storage.delete(folder.child("a.mp3"))
    assert not storage.exists(folder.child("a.mp3"))
    expected = 2 if fault.startswith("cut") else 14  # only answers with a body can be cut
    assert faulty.suffered[fault] >= expected


def test_a_body_cut_to_the_length_it_states_is_found_whatever_its_etag(
    s3: Any, faulty: FaultyStore
) -> None:
    storage, content = storage_behind(faulty), os.urandom(6 * 1024 * 1024)
    s3.put_object(Bucket=s3.bucket, Key="one", Body=content)
    upload = s3.create_multipart_upload(Bucket=s3.bucket, Key="parts")["UploadId"]
    parts = [
        {"PartNumber": n, "ETag": s3.upload_part(
            Bucket=s3.bucket, Key="parts", UploadId=upload, PartNumber=n, Body=piece)["ETag"]}
        for n, piece in ((1, content[: 5 * 1024 * 1024]), (2, content[5 * 1024 * 1024 :]))
    ]  # fmt: skip
    s3.complete_multipart_upload(
        Bucket=s3.bucket, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    for key in ("one", "parts"):
        with faulty.suffering("cut_quietly", key=key, n=3):
            audio = storage.read_audio(f"s3://{s3.bucket}/{key}", max_bytes=10**8)
        assert audio.content == content
    assert faulty.suffered["cut_quietly"] == 6


def test_bytes_that_are_not_those_of_the_etag_are_read_again_and_then_believed(s3: Any) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n"
        b'ETag: "0123456789abcdef0123456789abcdef"\r\n\r\n'
    )
    # Damaged, then as it is: of this store the etag only looks like an MD5.
    answers = iter([head + b"01234?6789", head + b"0123456789", head + b"0123456789"])
    with CannedStore(lambda: next(answers)) as endpoint:
        storage = Storage(StorageConfig(endpoint_url=endpoint))
        assert storage.read_audio("s3://bucket/a.mp3", max_bytes=100).content == b"0123456789"


@pytest.mark.parametrize(("share", "above"), [(0.4, None), (1.0, 25)])
def test_a_store_that_throttles_serves_many_readers_in_the_end(
    s3: Any, faulty: FaultyStore, share: float, above: int | None
) -> None:
    storage = storage_behind(faulty)
    uris = [f"s3://{s3.bucket}/{n}.mp3" for n in range(60)]
    for n in range(60):
        s3.put_object(Bucket=s3.bucket, Key=f"{n}.mp3", Body=b"%d" % n)
    faulty.add("SlowDown", share=share, above=above)
    with ThreadPoolExecutor(16) as readers:
        found = list(readers.map(lambda uri: storage.read_audio(uri, max_bytes=9).content, uris))
    assert found == [b"%d" % n for n in range(60)]
    assert faulty.suffered["SlowDown"] > 10


def test_a_store_that_throttles_for_ever_is_a_passing_reject(s3: Any, faulty: FaultyStore) -> None:
    faulty.add("SlowDown")
    storage = storage_behind(faulty, patience_seconds=1)
    with pytest.raises(AudioError) as caught:
        storage.read_audio(f"s3://{s3.bucket}/a.mp3", max_bytes=9)
    assert (caught.value.reason, caught.value.message) == (
        "storage_error",
        "SlowDown from the store",
    )
    with pytest.raises(StorageError, match="SlowDown; the store turns requests away: try again"):
        storage.read(Location(s3.bucket, "a.mp3"))


@pytest.mark.parametrize("code", ["ExpiredToken", "SignatureDoesNotMatch", "AccessDenied"])
def test_who_is_not_let_in_is_told_at_once_and_no_secret_with_it(
    s3: Any, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-session-token")
    faulty.add(code)
    storage, place = storage_behind(faulty), Location(s3.bucket, "x")
    for use in (storage.read, storage.check_writable, lambda at: list(storage.list_files(at))):
        with pytest.raises(StorageError, match=f"'s3://{s3.bucket}/.*': {code}; ") as caught:
            use(place)
        for secret in ("test-key-id", "test-secret-word", "test-session-token"):
            assert secret not in str(caught.value)
    assert faulty.suffered[code] == 3
    assert reject_reason(storage, place.uri) == "access_denied"


def test_an_endpoint_that_is_not_s3_is_refused(s3: Any, faulty: FaultyStore) -> None:
    faulty.add("html")
    storage = storage_behind(faulty, patience_seconds=1)
    with pytest.raises(StorageError, match="the answer is not S3's; check the endpoint"):
        list(storage.list_files(Location(s3.bucket, "x")))


def test_versions_are_looked_up_where_a_listing_is_stale(s3: Any, faulty: FaultyStore) -> None:
    storage = storage_behind(faulty)
    s3.put_object(Bucket=s3.bucket, Key="lib/old.mp3", Body=b"1")
    faulty.add("stale", seconds=3600)
    storage.write(Location(s3.bucket, "lib/new.mp3"), b"2")
    storage.delete(Location(s3.bucket, "lib/old.mp3"))
    listed = [found.path for found, _, _ in storage.list_files(Location(s3.bucket, "lib"))]
    assert listed == ["lib/old.mp3"]
    uris = [f"s3://{s3.bucket}/lib/{name}.mp3" for name in ("new", "none")]
    etag = s3.head_object(Bucket=s3.bucket, Key="lib/new.mp3")["ETag"].strip('"')
    assert storage.audio_versions(uris) == [etag, ""]


@pytest.mark.parametrize("uri", ["s3://KEY:password@bucket/x", "s3a://KEY:pass/word@bucket/x"])
def test_a_uri_that_holds_credentials_is_refused_without_them(uri: str) -> None:
    with pytest.raises(StorageError, match="must not hold credentials") as caught:
        parse_uri(uri)
    assert "word@" not in str(caught.value)


def test_an_endpoint_that_holds_credentials_is_refused_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:pass/word@localhost:9000")
    with pytest.raises(StorageError, match="must not hold credentials") as caught:
        Storage(StorageConfig()).read(Location("bucket", "x"))
    assert "word@" not in str(caught.value)
