"""The option of ``plane serve`` that recommends a poll mode to new devices."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Recommendation(StrEnum):
    """Poll modes as in the configuration of agents."""

    LONG_POLL = "long-poll"
    INTERVAL = "interval"
    PUSH = "push"
    NONE = "none"

    @property
    def sent_as(self) -> str:
        """The mode in an answer to a registration; empty: none."""
        return "" if self is Recommendation.NONE else self.replace("-", "_")


RecommendPollMode = Annotated[
    Recommendation,
    typer.Option(
        "--recommend-poll-mode",
        help="Poll mode that `register` writes into the configuration of new hosts whose operator has chosen none.",
    ),
]
