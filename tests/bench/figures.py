"""What a benchmark hands in: figures, each a value per round, beside the floor measured in that same round."""

from __future__ import annotations

from statistics import median
from typing import Literal

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Smallest, middle and largest over the rounds."""

    min: float
    median: float
    max: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """The spread of at least one value."""
        return Spread(min(values), median(values), max(values))


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A target of the design: on the ratio to the floor, or on the value itself. Shown, never asserted."""

    limit: float
    of: Literal["ratio", "value"] = "ratio"
    sense: Literal["at most", "at least"] = "at most"
    aim: float | None = None
    """Where the design would like it to be."""

    def holds(self, number: float) -> bool:
        """Whether `number` is on the right side of the limit."""
        return number <= self.limit if self.sense == "at most" else number >= self.limit


class Figure(msgspec.Struct, kw_only=True):
    """One line of the table."""

    name: str
    unit: str
    floor: str | None = None
    """What each value is set against, in the same unit."""
    bound: Bound | None = None
    values: list[float] = []
    floors: list[float] = []
    """One per value, from the same round; empty without a floor."""

    def add(self, value: float, floor: float | None = None) -> None:
        """Note one round."""
        self.values.append(value)
        if floor is not None:
            self.floors.append(floor)

    @property
    def ratios(self) -> list[float]:
        """Value to floor, round by round: what the machine did meanwhile cancels out."""
        return [value / floor for value, floor in zip(self.values, self.floors, strict=True)] if self.floors else []

    @property
    def met(self) -> bool | None:
        """Whether the median over the rounds keeps the bound; None where there is none."""
        if self.bound is None:
            return None
        return self.bound.holds(median(self.ratios if self.bound.of == "ratio" else self.values))
