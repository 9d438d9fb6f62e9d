"""The card of a paper."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a paper offers, what it claims, and by which rule a small run of the claim is judged.

    The rule (metric, direction, margin, seeds, arms) is committed before the first recorded run.

    Attributes:
        slug: Short name: that of the module, of the golden file and of the evidence.
        title: Title.
        authors: Authors.
        arxiv: arXiv number.
        year: Year of first publication.
        family: Package that its objectives live in.
        provides: Public names, as importable from the family; with their full path where they live elsewhere.
        formula: The objective in one line.
        call: Lines that use it.
        claim: The claim in one sentence.
        use_when: When to reach for it.
        avoid_when: When not to.
        golden: Number of recorded values of the original code that the tests run.
        metric: What is measured for the verdict; a fraction or a plain number.
        direction: Whether a higher or a lower metric is better.
        margin: How much better the method must be, in the metric's units.
        baseline: Arm that the method is held against.
        method: Arm that the claim is about.
        seeds: Seeds of a full run.
        limits: What the small scale cannot show.
    """

    slug: str
    title: str
    authors: str
    arxiv: str
    year: int
    family: str
    provides: tuple[str, ...]
    formula: str
    call: str
    claim: str
    use_when: str
    avoid_when: str
    golden: int
    metric: str
    direction: Literal["higher", "lower"]
    margin: float
    baseline: str
    method: str
    seeds: int
    limits: str

    @property
    def places(self) -> tuple[str, ...]:
        """Full paths of what it provides."""
        return tuple(name if "." in name else f"lossary.{self.family}.{name}" for name in self.provides)
