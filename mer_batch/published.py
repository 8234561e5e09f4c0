"""R^2 that others have printed, to stand beside ours. Protocols differ: read with care."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One printed result.

    Attributes
    ----------
    dataset : str
        Name of the loader of the data it was measured on; empty for the paper's own mixture.
    system : str
        What was measured.
    valence, arousal : float
        R^2.
    """

    dataset: str
    system: str
    valence: float
    arousal: float


#: Table 1 of Quan and Dong (2020); the last row is what it compares itself with, Delbouys et al.
#: (2018), "Music Mood Detection Based on Audio and Lyrics with Deep Neural Net".
PAPER = (
    Published("", "paper, model 1", -1.12, 0.76),
    Published("", "paper, model 2", 0.981, 0.173),
    Published("", "paper, quoting Deezer", 0.179, 0.235),
)

#: The best that is printed for each data set.
BEST = (
    Published("songs1000", "Music2Emo", 0.596, 0.749),
    Published("songs1000", "Jukebox representations", 0.617, 0.721),
    Published("deam", "Music2Emo", 0.513, 0.603),
    Published("pmemo", "Music2Emo", 0.547, 0.794),
    Published("deezer", "independent re-implementation", 0.115, 0.155),
)


def published_for(dataset: str) -> list[Published]:
    """The paper's rows, and those for one data set."""
    return [*PAPER, *(row for row in BEST if row.dataset == dataset)]
