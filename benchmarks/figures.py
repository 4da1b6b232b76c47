"""Values of several runs, each beside that of its yardstick in the same run, and their target."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from textwrap import fill
from typing import Final, NamedTuple

WIDTH: Final = 100
"""Columns of a terminal that the table has to fit."""

RUNS: Final = 5


class Scale(NamedTuple):
    """How much is measured: all of it, or one run of a hundredth to show that it runs."""

    short: bool = False

    @property
    def runs(self) -> int:
        """Number of runs of each row."""
        return 1 if self.short else RUNS

    def of(self, amount: int, least: int = 1) -> int:
        """Return the share of a full amount that is measured."""
        return max(amount // 100, least) if self.short else amount

    def seconds(self, full: float) -> float:
        """Return how long a measurement lasts that takes `full` seconds otherwise."""
        return full / 50 if self.short else full


class Figure(NamedTuple):
    """One line of the table: the value of each run, and that of its yardstick.

    `what` is a short name, and `about` has the details, which do not fit into the table. `unit` is a format such as
    "{:,.0f}/s". `at_least` or `at_most` is the target: of the ratio of the two where there is a yardstick, else of the
    value itself; without a target the line is only reported.
    """

    what: str
    values: Sequence[float]
    unit: str
    yardstick: str = ""
    yardsticks: Sequence[float] = ()
    at_least: float | None = None
    at_most: float | None = None
    about: str = ""

    @property
    def ratios(self) -> list[float]:
        """The values that are judged, one for each run."""
        if not self.yardsticks:
            return list(self.values)
        return [
            value / other if other else float("inf") for value, other in zip(self.values, self.yardsticks, strict=True)
        ]

    @property
    def target(self) -> str:
        """The target as text, empty without one."""
        form = "{:g}" if self.yardsticks else self.unit
        if self.at_least is not None:
            return f"≥ {form.format(self.at_least)}"
        return "" if self.at_most is None else f"≤ {form.format(self.at_most)}"

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        middle = median(self.ratios)
        if self.at_least is not None:
            return middle >= self.at_least
        return None if self.at_most is None else middle <= self.at_most

    def cells(self) -> tuple[str, ...]:
        """Return a line of the table."""
        ratios, number = self.ratios, "{:.2f}" if self.yardsticks else self.unit.partition("}")[0] + "}"
        ratio = number.format(median(ratios)) if self.yardsticks else ""
        spread = f"{number.format(min(ratios))} to {number.format(max(ratios))}" if len(ratios) > 1 else ""
        verdict = {True: "yes", False: "no", None: ""}[self.met]
        return self.what, self.unit.format(median(self.values)), ratio, spread, self.target, verdict

    def note(self) -> str:
        """Return what the table has no room for, empty if that is nothing."""
        beside = [f"{self.yardstick}: {self.unit.format(median(self.yardsticks))}"] if self.yardsticks else []
        return "; ".join([*([self.about] if self.about else []), *beside])


HEADINGS: Final = ("what", "median", "ratio", "least to most", "target", "met")

Measure = Callable[[Scale], Iterator[Figure]]


def table(figures: Sequence[Figure]) -> str:
    """Write figures as a table of Markdown, with a list of their notes below it."""
    rows = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADINGS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = " | ".join("-" * width for width in widths)
    notes = [f"* **{figure.what}**: {figure.note()}" for figure in figures if figure.note()]
    wrapped = [fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for note in notes]
    return "\n".join([*(f"| {line} |" for line in (lines[0], rule, *lines[1:])), *([""] if notes else []), *wrapped])


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which that part of them is."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]
