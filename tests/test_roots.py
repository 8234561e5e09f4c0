"""Where audio may lie: whatever a URI looks like, it does not lead out of the allowed roots."""

from __future__ import annotations

import os
import urllib.parse

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mer_batch.errors import ConfigError
from mer_batch.roots import Roots, resolved
from mer_batch.storage import Location


def admitted(roots: list[str], uris: list[str]) -> list[bool]:
    found = Roots.of(roots).admitted(pa.chunked_array([pa.array(uris, pa.string())]))
    return list(found.to_pylist())


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        (
            "/music",
            [
                "/music/a.mp3", "/music//a.mp3", "/music/./a", "/music/x/../a", "//music/a",
                "/music", "/music/", "/../music/a", "/music/..a", "/music/...", "/music/a\nb",
                "file:///music/a", "file:/music/a", "FILE:///music/a", "file://localhost/music/a",
                "file:///music/two%20words", "file:///%6Dusic/a", "file:///music/x%2F..%2fa",
                "/music/%2e%2e/literally", "/music/é/\U0001f3b5.mp3",
            ],
            [
                "/music-private/a", "/musi", "/music/..", "/music/../etc/passwd", "/music/x/../..",
                "/etc/passwd", "/Music/a", "/x/music/a", "//etc/passwd", "/music/.././music2/a",
                "file:///music/%2e%2e/etc/passwd", "file:///music/..%2Fetc", "file:///etc/passwd",
                "file:///music/%2E./etc", "file:///music%2F..%2Fetc", "file://music/a",
                "file://elsewhere/music/a", "s3://music/a", "s3:///music/a", "gs://music/a",
                "/music\n/a", "\n/music/a",
            ],
        ),
        ("/", ["/a", "//a", "/../a", "file:///a"], ["s3://b/a", "file://a"]),
        (
            "s3://b/p/",
            ["s3://b/p/a", "s3a://b/p/a", "S3://b/p/a", "s3://b/p", "s3://b/p//a", "s3://b/p/..a",
             "s3://b/p/%2e%2e/literally"],
            ["s3://b/pp/a", "s3://b/p/../q/a", "s3://b/p/x/../a", "s3://b/p/a/..", "s3://bb/p/a",
             "s3://b", "s3://b/", "s3://B/p/a", "s3://b//p/a", "s3://b/x/p/a", "/b/p/a",
             "s3a://b/p/\n/../../q"],
        ),
        ("s3a://b", ["s3://b/a", "s3a://b/x/y", "s3://b"], ["s3://b2/a", "s3://b/../c/a", "/b/a"]),
        ("/100%25/two words", ["/100%25/two words/a", "file:///100%2525/two%20words/a"],
         ["file:///100%25/two%20words/a", "/100%/two words/a"]),
        ("file:///100%25", ["/100%/a", "file:///100%25/a"], ["/100%25/a"]),
        ("/a.b(c)|d", ["/a.b(c)|d/x"], ["/aXb(c)|d/x", "/a.b(c)", "/d/x"]),
        ("file:///caf%E9", ["file:///caf%E9/a", "file:///caf%e9/a"], ["/caf", "/café/a", "/x"]),
    ],
)  # fmt: skip
def test_whole_names_of_normal_forms_decide(
    root: str, inside: list[str], outside: list[str]
) -> None:
    assert dict(zip(inside + outside, admitted([root], inside + outside), strict=True)) == {
        **dict.fromkeys(inside, True),
        **dict.fromkeys(outside, False),
    }


def test_any_of_several_roots_admits() -> None:
    roots = ["/music", "s3://b/p", "s3://c"]
    uris = ["/music/a", "s3://b/p/a", "s3://c/x", "/b/p/a", "s3://b/q"]
    assert admitted(roots, uris) == [True, True, True, False, False]
    assert Roots.of([*roots, "/"]).folders == ("/music", "/")


def test_a_root_below_another_changes_nothing_but_stays_a_folder_to_follow_links_to() -> None:
    roots = ["/music/a/b", "/music", "s3://b/p/q/", "s3://b/p", "/music-2"]
    uris = ["/music/a/b/c", "/music/x", "s3://b/p/x", "s3a://b/p/q/x", "/music-2/a", "/music-3/a"]
    assert admitted(roots, uris) == [True, True, True, True, True, False]
    assert admitted(["/", *roots], ["/anything", "s3://b/q"]) == [True, False]
    assert Roots.of(roots).folders == ("/music/a/b", "/music", "/music-2")


def test_many_roots_cost_no_more_than_one_look_up_a_depth() -> None:
    """A thousand labels' prefixes: with one pattern of them all this took minutes."""
    roots = [f"s3://music/labels/label-{i:04}/masters" for i in range(1_000)]
    inside = [f"s3://music/labels/label-{i % 1_000:04}/masters/{i}.mp3" for i in range(200_000)]
    outside = [f"s3://music/labels/label-{i % 1_000:04}/drafts/{i}.mp3" for i in range(1_000)]
    odd = [f"S3://music/labels/label-{i % 1_000:04}/masters/{i}.mp3" for i in range(1_000)]
    found = admitted(roots, [*inside, *outside, *odd])
    assert found == [True] * 200_000 + [False] * 1_000 + [True] * 1_000


def test_a_root_of_many_names_is_taken_and_one_of_too_many_refused() -> None:
    root = "/a" * 800
    assert admitted([root], [f"{root}/x", f"file:{root}", root[:-2]]) == [True, True, False]
    with pytest.raises(ConfigError, match="must hold no more than 900 names"):
        Roots.of(["/a" * 1_000])


def test_a_relative_root_is_below_the_working_directory(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert admitted(["music"], [f"{tmp_path}/music/a", f"{tmp_path}/a"]) == [True, False]


@pytest.mark.parametrize("root", ["gs://b", "s3://", "file://music", "s3://b/../c"])
def test_a_root_that_cannot_be_one_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match=r"catalog\.allowed_roots: .*"):
        Roots.of([root])


name = st.sampled_from(
    ["", ".", "..", "...", "music", "music2", "a", "..a", "é", "two words", "%2e"]
)
way = st.lists(name, max_size=7).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    roots=st.lists(way.map("/".__add__), min_size=1, max_size=4),
    path=way.map("/".__add__),
    encode=st.sampled_from(["", "%", ".", "file:"]),
)
@example(roots=["/music"], path="/music/../../music2", encode="")
@example(roots=["/", "/music"], path="/a", encode="file:")
def test_a_local_path_is_admitted_exactly_when_its_normal_form_is_below(
    roots: list[str], path: str, encode: str
) -> None:
    *tops, found = (os.path.normpath("/" + p.lstrip("/")) for p in (*roots, path))
    expected = any(os.path.commonpath([top, found]) == top for top in tops)
    uri = path
    if encode == "file:":
        uri = "file:" + urllib.parse.quote("/" + path.lstrip("/"))
    elif encode:
        uri = "file://" + urllib.parse.quote("/" + path.lstrip("/"))
    if encode == ".":
        uri = "file:///" + uri.removeprefix("file:///").replace("/", "%2F").replace(".", "%2E")
    assert admitted(roots, [uri]) == [expected]


@settings(max_examples=150, deadline=None)
@given(root=way, key=way, scheme=st.sampled_from(["s3", "s3a", "S3"]))
def test_a_key_is_admitted_only_where_it_is_below_read_either_way(
    root: str, key: str, scheme: str
) -> None:
    if ".." in root.split("/"):
        return
    (found,) = admitted([f"s3://b/{root}"], [f"{scheme}://b/{key}"])
    top = root.rstrip("/")
    if found:
        assert not top or key == top or key.startswith(f"{top}/")
        resolved_top, resolved_key = (os.path.normpath("/" + k.lstrip("/")) for k in (top, key))
        assert os.path.commonpath([resolved_top, resolved_key]) == resolved_top
    else:
        assert ".." in key.split("/") or not (not top or f"{key}/".startswith(f"{top}/"))


@settings(max_examples=150, deadline=None)
@given(way=way.filter(lambda text: text and not text.startswith("/")), s3=st.booleans())
def test_a_relative_way_is_resolved_as_a_path_and_said_to_climb_or_not(way: str, s3: bool) -> None:
    folder = Location("b" if s3 else None, "lib/x" if s3 else "/lib/x")
    uris = pa.chunked_array([pa.array([way])])
    found, stays = (c[0].as_py() for c in resolved(uris, folder, only=pa.chunked_array([[True]])))
    expected = os.path.normpath(f"/lib/x/{way}")
    assert os.path.normpath("/" + found.removeprefix("s3://b").lstrip("/")) == expected
    assert found.startswith("s3://b/" if s3 else "/")
    climbs = os.path.normpath(way).split("/")[0] == ".."
    assert stays is not climbs
    if stays:
        assert os.path.commonpath(["/lib/x", expected]) == "/lib/x"
