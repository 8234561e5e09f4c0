"""Where audio may lie: whoever writes the catalog must not choose among all files of the machine.

URIs are compared in their normal form: ``..``, ``.`` and ``//`` of paths resolved, ``file://``
decoded, ``s3a`` read as s3. A store takes its keys as they are, so those are compared as they are.
"""

from __future__ import annotations

import functools
import posixpath
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mer_batch.errors import ConfigError, StorageError
from mer_batch.storage import Location, parse_uri

# Names below one another, none empty, . or .. (RE2 has no lookahead).
_NAMES = r"(/([^/.]|\.[^/.]|\.\.[^/])[^/]*)+"
# URIs that are their own normal form: there a comparison of the first characters decides.
_PLAIN_URI = rf"^(file:(//)?)?{_NAMES}$|^s3a?://[^/]"
_CLIMBS = r"(?s)^s3a?://(|.*/)\.\.(/|$)"
_ENCODED = r"(?s)^file:.*%"
_HIDES = r"%(2[EeFf]|00)"  # a dot, a slash, a NUL
_HAS_DOTS = r"(^|/)\.\.?(/|$)"
_MAX_NAMES = 900  # RE2 repeats nothing more than a thousand times


@dataclass(frozen=True)
class Roots:
    """Folders and prefixes that audio must lie below.

    Attributes
    ----------
    locations : tuple of Location
        Normalised, without a slash at the end.
    """

    locations: tuple[Location, ...]

    @classmethod
    def of(cls, uris: Sequence[str]) -> Roots:
        """Roots out of a configuration.

        Raises
        ------
        ConfigError
            For one that is no path or URI, or climbs.
        """
        return cls(tuple(_root(uri) for uri in uris))

    @classmethod
    def below(cls, folder: Location) -> Roots:
        """A folder or prefix as the only root."""
        return cls((Location(folder.bucket, folder.path.rstrip("/")),))

    @property
    def folders(self) -> tuple[str, ...]:
        """Those on local disks."""
        return tuple(root.path or "/" for root in self.locations if not root.is_s3)

    def admit(self, uri: str) -> bool:
        """Whether a URI lies at or below one of the roots."""
        try:
            location = parse_uri(uri)
        except StorageError:
            return False
        return self.hold(location)

    def hold(self, location: Location) -> bool:
        """Whether a location lies at or below one of the roots."""
        if location.is_s3 and ".." in location.path.split("/"):
            return False  # a store that is kept in folders might resolve it
        path = location.path if location.is_s3 else _normal_path(location.path).rstrip("/")
        top = Location(location.bucket, path)
        return any(_start(top, n) in self._tops for n in self._depths)

    def admitted(self, uris: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which of some absolute URIs lie at or below one of the roots.

        Parameters
        ----------
        uris : pa.ChunkedArray
            Strings, none null.
        """
        is_admitted = self._begin_as_roots(uris)
        is_odd = pc.or_(
            pc.invert(pc.match_substring_regex(uris, _PLAIN_URI)),
            pc.match_substring_regex(uris, _CLIMBS),
        )
        # What is encoded may be admitted by how it begins, but not be kept out.
        is_clear = pc.and_not(is_admitted, pc.match_substring_regex(uris, _HIDES))
        is_encoded = pc.match_substring_regex(uris, _ENCODED)
        is_odd = pc.or_(is_odd, pc.and_not(is_encoded, is_clear))
        if not pc.any(is_odd).as_py():
            return is_admitted
        found = pa.array([self.admit(uri) for uri in uris.filter(is_odd).to_pylist()], pa.bool_())
        return pc.replace_with_mask(is_admitted.combine_chunks(), is_odd.combine_chunks(), found)

    def _begin_as_roots(self, uris: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether plain URIs begin with the whole names of a root."""
        # One spelling of each scheme. One look-up for each depth, however many roots there are:
        # a pattern of all roots outgrows the matcher's memory at some 250 and is 100 times slower.
        uris = pc.replace_substring_regex(uris, "^s3a://", "s3://")
        uris = pc.replace_substring_regex(uris, "^file:/([^/])", r"file:///\1")
        is_below = pc.is_in(uris, pa.array([], pa.string()))
        by_depth: dict[int, list[str]] = {}
        for spelling in self._spellings():
            by_depth.setdefault(spelling.count("/"), []).append(spelling)
        for n_slashes, roots in by_depth.items():
            names = rf"(?s)^([^/]*(?:/[^/]*){{{n_slashes}}})/.*$"
            starts = pc.replace_substring_regex(uris, names, r"\1")
            is_below = pc.or_(is_below, pc.is_in(starts, pa.array(roots, pa.string())))
        return is_below

    def _spellings(self) -> Iterator[str]:
        """How plain URIs may write the roots."""
        for root in self._tops:
            if root.is_s3:
                yield f"s3://{root.bucket}/{root.path}".rstrip("/")
            elif is_text(root.path):
                yield root.path
                yield f"file://{urllib.parse.quote(root.path)}"
                if "%" not in root.path:
                    yield f"file://{root.path}"

    @functools.cached_property
    def _tops(self) -> frozenset[Location]:
        """The roots that lie below no other one."""
        roots = frozenset(self.locations)
        return frozenset(
            root
            for root in roots
            if not any(_start(root, n) in roots for n in range(_n_names(root.path)))
        )

    @functools.cached_property
    def _depths(self) -> frozenset[int]:
        return frozenset(_n_names(root.path) for root in self._tops)


def _n_names(path: str) -> int:
    return len(path.split("/")) if path else 0


def _start(location: Location, n_names: int) -> Location:
    """The first names of a path; of a local one, the first is empty."""
    return Location(location.bucket, "/".join(location.path.split("/")[:n_names]))


def resolved(
    uris: pa.ChunkedArray, folder: Location, *, only: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Relative URIs as those of files below a folder, and whether they stay there.

    ``.`` and ``..`` are resolved, in keys too: a relative URI is a way to go, not yet a key.

    Parameters
    ----------
    uris : pa.ChunkedArray
        Strings, none null.
    folder : Location
    only : pa.ChunkedArray
        Which of them are relative; of the others nothing is said.
    """
    base = folder.uri.rstrip("/")
    joined = pc.binary_join_element_wise(base, uris, "/")
    has_dots = pc.and_(only, pc.match_substring_regex(uris, _HAS_DOTS))
    if not pc.any(has_dots).as_py():
        return joined, pc.invert(has_dots)
    top = f"s3://{folder.bucket}" if folder.is_s3 else ""
    ways = uris.filter(has_dots).to_pylist()
    ends = [top + posixpath.normpath(f"{base.removeprefix(top)}/{way}") for way in ways]
    stays = [not f"{posixpath.normpath(way)}/".startswith("../") for way in ways]
    mask = has_dots.combine_chunks()
    return (
        pc.replace_with_mask(joined.combine_chunks(), mask, pa.array(ends, pa.string())),
        pc.replace_with_mask(pc.invert(mask), mask, pa.array(stays, pa.bool_())),
    )


def _root(uri: str) -> Location:
    try:
        root = parse_uri(uri)
    except StorageError as error:
        raise ConfigError(f"catalog.allowed_roots: {error}") from error
    if _n_names(root.path) > _MAX_NAMES:
        raise ConfigError(
            f"catalog.allowed_roots: {uri[:80]!r}... must hold no more than {_MAX_NAMES} names; "
            "give a folder above it"
        )
    if not root.is_s3:
        return Location(None, _normal_path(root.path).rstrip("/"))
    if ".." in root.path.split("/"):
        raise ConfigError(f"catalog.allowed_roots: {uri!r} must not hold ..; write the prefix out")
    return Location(root.bucket, root.path.rstrip("/"))


def is_text(path: str) -> bool:
    """Whether a URI can spell it without an encoded byte."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normal_path(path: str) -> str:
    # POSIX lets two slashes at the beginning mean something of their own; here they mean one.
    return "/" + posixpath.normpath(path).lstrip("/")
