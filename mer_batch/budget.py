"""How many rejects a job may end with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from mer_batch.errors import ErrorBudgetExceeded
from mer_batch.progress import describe_rejects


@dataclass(frozen=True)
class Budget:
    """The error budget, counted over this run and what counts from before it.

    Attributes
    ----------
    n_tried, n_rejected : int
        Before this run.
    max_reject_rate : float
    scope : str
        Which tracks count, for messages.
    consequence : str
        What it means to exceed it, for messages.
    """

    n_tried: int
    n_rejected: int
    max_reject_rate: float
    scope: str = "tracks tried since the last published night"
    consequence: str = "What was scored is kept, nothing is published"

    def allows(self, n_rejected: int, n_tried: int) -> bool:
        """Whether a run with so many rejects among so many tracks may end well."""
        total = self.n_tried + n_tried
        # Rounded up to a whole track: one bad file in a small catalog is no sick night.
        # By way of its decimals: 70 * 0.1 is a little more than 7 in binary.
        allowed = math.ceil(total * Fraction(str(self.max_reject_rate)))
        return self.n_rejected + n_rejected <= allowed

    def check(self, n_tried: int, rejects: dict[str, int]) -> None:
        """Stop as soon as the run cannot end well any more.

        Parameters
        ----------
        n_tried : int
            Tracks that this run tries in all.
        rejects : dict of str to int
            Its rejects so far, by reason.

        Raises
        ------
        ErrorBudgetExceeded
        """
        n_rejected = sum(rejects.values())
        if self.allows(n_rejected, n_tried):
            return
        total, tried = self.n_rejected + n_rejected, self.n_tried + n_tried
        reasons = f"; this run's rejects: {describe_rejects(rejects)}" if rejects else ""
        raise ErrorBudgetExceeded(
            f"{total:,} of {tried:,} {self.scope} were rejected, more than "
            f"max_reject_rate={self.max_reject_rate:g} allows{reasons}. {self.consequence}. Look "
            "at the rejects table, then mend the cause or raise max_reject_rate"
        )
