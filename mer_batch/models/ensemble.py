"""Several models as one: their outputs side by side on the member axis.

Members may differ in kind, as long as they are shown the same features.

References
----------
Lakshminarayanan, B., Pritzel, A. and Blundell, C. "Simple and Scalable Predictive Uncertainty
Estimation Using Deep Ensembles", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mer_batch.models import build_model


class Model(nn.Module):
    """Members by name and parameters.

    Parameters
    ----------
    members : sequence of dict
        ``{"model": a file in models/, "parameters": its constructor's arguments}``.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        faulty = [member for member in members if set(member) != {"model", "parameters"}]
        if not members or faulty:
            raise ValueError(
                f"members={faulty[:1] or members!r} must be one or more of "
                "{'model': name, 'parameters': {...}}"
            )
        self.members = nn.ModuleList(
            build_model(member["model"], dict(member["parameters"])) for member in members
        )

    @property
    def masks_padding(self) -> bool:
        """Whether `forward` can tell real frames from padding: if every member can."""
        return all(getattr(member, "masks_padding", False) for member in self.members)

    def forward(self, features: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """(batch, n_mels, n_frames) to (batch, sum of the members' members, 2)."""
        arguments = [features] if n_frames is None else [features, n_frames]
        return torch.cat([member(*arguments) for member in self.members], dim=1)
