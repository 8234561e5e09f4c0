"""How many rejects a job may end with, and which reasons have grown since the last good night."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mer_batch.errors import ErrorBudgetExceeded
from mer_batch.progress import describe_rejects


@dataclass(frozen=True)
class Night:
    """The last published night.

    Attributes
    ----------
    run_date : str
    run_id : str
        Of the run that published it. Run ids sort by time, all by the drivers' clocks.
    shares : dict of str to float
        Rejects by reason, as shares of its catalog.
    """

    run_date: str
    run_id: str
    shares: dict[str, float]

    @classmethod
    def of(cls, marker: Mapping[str, Any]) -> Night:
        """What a night's marker says."""
        rejects = marker.get("n_rejected", {})
        n_tracks = marker.get("n_scored", 0) + sum(rejects.values())
        return cls(
            run_date=marker["run_date"],
            run_id=marker["run_id"],
            shares={reason: count / n_tracks for reason, count in rejects.items()},
        )


@dataclass(frozen=True)
class Budget:
    """The error budget, counted over this run and what counts from before it.

    Tracks that were rejects by the last published night already do not count: to try them again,
    by themselves or on demand, makes no night a sick one. New audio of theirs that is no better
    does not count either, nor is it looked up whether that night's catalog held them.

    Attributes
    ----------
    n_tracks : int
        Tracks that count, tried before this run or to be tried by it.
    max_reject_rate : float
    n_tried : int
        Of them, those tried before this run.
    rejects : dict of str to int
        Of those, the rejects by reason.
    since : Night, optional
        The last published night.
    scope : str
        Which tracks count, for messages.
    consequence : str
        What it means to exceed it, for messages.
    """

    n_tracks: int
    max_reject_rate: float
    n_tried: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    since: Night | None = None
    scope: str = "tracks tried since the last published night"
    consequence: str = "What was scored is kept, nothing is published"

    def counts(self, first_run_id: str, *, run_id: str) -> bool:
        """Whether a reject of the run `run_id` counts that the run `first_run_id` was first to see.

        What this run is the first to see counts whatever its clock says.
        """
        return self.since is None or first_run_id == run_id or first_run_id > self.since.run_id

    def allows(self, n_rejected: int) -> bool:
        """Whether a run with so many rejects that count may end well."""
        # Rounded up to a whole track: one bad file in a small catalog is no sick night.
        # By way of its decimals: 70 * 0.1 is a little more than 7 in binary.
        allowed = math.ceil(self.n_tracks * Fraction(str(self.max_reject_rate)))
        return sum(self.rejects.values()) + n_rejected <= allowed

    def standing(self, n_done: int, rejects: Mapping[str, int]) -> dict[str, Any]:
        """Where the budget stands, as the manifest keeps it; the reason that grew most is first.

        Parameters
        ----------
        n_done : int
            Tracks that this run has done.
        rejects : mapping of str to int
            Its rejects that count, by reason.
        """
        total = Counter(self.rejects) + Counter(rejects)
        n_tried = min(self.n_tracks, self.n_tried + n_done + sum(rejects.values()))
        then = self.since.shares if self.since else {}
        shares = {reason: count / max(1, n_tried) for reason, count in total.items()}
        growth = sorted(shares, key=lambda reason: then.get(reason, 0.0) - shares[reason])
        return {
            "max_reject_rate": self.max_reject_rate,
            "since": self.since.run_date if self.since else None,
            "n_tracks": self.n_tracks,
            "n_tried": n_tried,
            "n_rejected": total.total(),
            "reasons": {
                reason: {
                    "n_rejected": total[reason],
                    "share": round(shares[reason], 6),
                    "share_then": round(then.get(reason, 0.0), 6) if self.since else None,
                }
                for reason in growth
            },
        }

    def check(self, n_done: int, rejects: Mapping[str, int]) -> None:
        """Stop as soon as the run cannot end well any more; parameters as for `standing`.

        Raises
        ------
        ErrorBudgetExceeded
        """
        if self.allows(sum(rejects.values())):
            return
        standing = self.standing(n_done, rejects)
        own = f"; this run's rejects: {describe_rejects(dict(rejects))}" if rejects else ""
        raise ErrorBudgetExceeded(
            f"{standing['n_rejected']:,} of {self.n_tracks:,} {self.scope} were rejected, more "
            f"than max_reject_rate={self.max_reject_rate:g} allows{own}. {_describe(standing)}. "
            f"{self.consequence}. Look at the rejects table, then mend the cause or raise "
            "max_reject_rate"
        )


def _describe(standing: dict[str, Any]) -> str:
    """Shares by reason, beside those of the last night where there was one."""
    reasons = standing["reasons"].items()
    if standing["since"] is None:
        shares = [f"{reason} {found['share']:.1%}" for reason, found in reasons]
        return f"Of {standing['n_tried']:,} tracks tried so far: {', '.join(shares)}"
    grown = [
        f"{reason} {found['share']:.1%} of tracks tried ({found['share_then']:.1%} then)"
        for reason, found in reasons
        if found["share"] > found["share_then"]
    ]
    return f"Grew since the night of {standing['since']}: {', '.join(grown) or 'none'}"
