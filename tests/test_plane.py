"""Pictures of the plane: points lie where their numbers say."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_batch.plane import Point, draw_plane, plane_text


def grid(points: list[Point]) -> list[str]:
    """The rows of the plane without its frame."""
    lines = plane_text(points).splitlines()
    return [line[4:-1] for line in lines if line.startswith("   |")]


@pytest.mark.parametrize(
    ("valence", "arousal", "row", "column"),
    [
        (-1, 1, 0, 0),
        (1, 1, 0, 60),
        (-1, -1, 20, 0),
        (1, -1, 20, 60),
        (0, 0, 10, 30),
        (0.5, 0.5, 5, 45),
    ],
)
def test_a_point_lies_where_its_numbers_say(
    valence: float, arousal: float, row: int, column: int
) -> None:
    assert grid([Point(valence, arousal, "x")])[row][column] == "X"


def test_axes_cross_in_the_middle_of_an_empty_plane() -> None:
    rows = grid([])
    assert {len(row) for row in rows} == {61}
    assert rows[10] == "-" * 30 + "+" + "-" * 30
    assert {row[30] for row in rows[:10] + rows[11:]} == {"|"}


def test_groups_that_meet_are_told_from_one_group_twice() -> None:
    assert grid([Point(0, 0, "calm"), Point(0, 0, "calm")])[10][30] == "C"
    assert grid([Point(0, 0, "calm"), Point(0, 0, "tense")])[10][30] == "*"
    assert grid([Point(0, 0, "")])[10][30] == "?"


unit = st.floats(-1, 1)


@given(st.lists(st.builds(Point, unit, unit, st.sampled_from(["a", "b"])), max_size=20))
def test_any_points_keep_the_plane_in_shape(points: list[Point]) -> None:
    lines = plane_text(points).splitlines()
    assert len(lines) == 25
    assert {len(row) for row in grid(points)} == {61}


def test_up_is_aroused_and_right_is_pleasant() -> None:
    text = plane_text([])
    assert text.index("arousal +1") < text.index("valence -1") < text.rindex("+1")
    higher, lower = (
        next(i for i, row in enumerate(grid([Point(0.2, a, "x")])) if "X" in row)
        for a in (0.8, 0.1)
    )
    assert higher < lower


def test_a_picture_has_a_colour_for_every_group_where_it_lies(tmp_path: Path) -> None:
    points = [Point(-0.8, 0.8, "tense"), Point(0.8, -0.8, "calm")]
    draw_plane(points, tmp_path / "plane.png", title="two tracks")
    image = matplotlib.image.imread(tmp_path / "plane.png")[..., :3]
    height, width = image.shape[:2]
    red = np.argwhere((image[..., 0] > 0.6) & (image[..., 2] < 0.4))
    orange_or_red_rows, columns = red[:, 0] / height, red[:, 1] / width
    # The first group's point is at the top left; the legend is at the bottom right.
    assert ((orange_or_red_rows < 0.3) & (columns < 0.4)).any()
    assert not ((orange_or_red_rows < 0.3) & (columns > 0.6)).any()


def test_a_picture_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    draw_plane([], tmp_path / "plane.png", title="no tracks")
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
