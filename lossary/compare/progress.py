"""How a run tells what it is doing."""

from __future__ import annotations

from collections.abc import Sequence

from lossary.compare.candidates import Candidate
from lossary.compare.journal import FitRecord
from lossary.compare.load import Table
from lossary.compare.options import Options
from lossary.compare.plan import Plan
from lossary.compare.work import StackJob


class Progress:
    """What a run calls as it goes, from the thread that started it. This one says nothing; override what to show."""

    def study_level(self, name: str, place: int, count: int) -> None:
        """The comparison of a study's level begins, the one at ``place`` from 0 of ``count``."""

    def planning(self, table: Table, options: Options, candidates: Sequence[tuple[Candidate, str]]) -> None:
        """The candidates are chosen, each with the reason why, and a plan is being made or read."""

    def planned(self, plan: Plan) -> None:
        """The plan is fixed."""

    def phase(self, title: str, total: int, done: int) -> None:
        """A phase begins, of ``total`` fits of which ``done`` were in the journal already."""

    def stack_started(self, job: StackJob) -> None:
        """A worker has taken a stack."""

    def epoch(self, job: StackJob, epochs: int, active: int) -> None:
        """A stack has trained ``epochs`` epochs, and ``active`` of its ``job.num_fits`` fits go on."""

    def stack_finished(self, job: StackJob, fits: Sequence[FitRecord]) -> None:
        """A stack is finished and in the journal."""
