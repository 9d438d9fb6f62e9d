"""What the terminal shows: progress while a comparison runs, and its table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from lossary.compare import wording
from lossary.compare.candidates import Candidate
from lossary.compare.journal import FitRecord
from lossary.compare.load import Table
from lossary.compare.metrics import METRICS, Metric
from lossary.compare.options import Options
from lossary.compare.plan import Plan
from lossary.compare.progress import Progress
from lossary.compare.results import Comparison
from lossary.compare.study import Study
from lossary.compare.work import StackJob

STYLES = {"better": "bold green", "worse": "red", "equivalent": "", "undecided": "dim", "baseline": "dim"}
SIGNS = {"better": "+", "worse": "-", "equivalent": "=", "undecided": "?", "baseline": " "}
LOG_STEPS = 10
"""Lines of progress per phase where the output is no terminal."""


def print_summary(comparison: Comparison, console: Console, *, report: Path | None = None) -> None:
    """Print the table and the lines around it.

    Args:
        comparison: What to print.
        console: Where.
        report: Path of the report, named in the last line.
    """
    _say(console, metric_sentence(comparison.metric))
    console.print("", summary_table(comparison), "", sep="\n")
    _say(console, comparison.judgement.sentence, style="bold")
    if comparison.metric.kind == "decision":
        _say(console, wording.tunings(comparison)[0].sentence)
    detectable = wording.number(comparison.judgement.detectable)
    if detectable != wording.NOTHING:
        _say(console, f"Smallest difference that this run would have found in four of five cases: {detectable}.")
    for note in comparison.notes:
        _say(console, f"Note: {note}")
    if report is not None:
        console.print(Text(f"Report: {report}"), soft_wrap=True)


def print_study(study: Study, console: Console, *, report: Path | None = None) -> None:
    """Print a table for each metric: objectives by levels.

    Args:
        study: What to print.
        console: Where.
        report: Path of the report, named in the last line.
    """
    titles = {result.name: result.title for level in study.levels for result in level.comparison.candidates}
    for metric in study.metrics:
        table = RichTable(box=None, pad_edge=False, header_style="dim", expand=False)
        table.add_column(METRICS[metric].title, overflow="fold")
        for level in study.levels:
            shown = f"{100 * level.level:g}%" if study.handicap == "label_noise" else f"{level.level:g} : 1"
            table.add_column(shown, justify="right", no_wrap=True)
        for name, title in titles.items():
            verdicts = [level.judgements[metric].verdicts.get(name) for level in study.levels]
            cells = [
                Text("") if v is None else Text(f"{wording.number(v.mean)} {SIGNS[v.verdict]}", style=STYLES[v.verdict])
                for v in verdicts
            ]
            table.add_row(Text(title), *cells)
        console.print("", table, sep="\n")
    console.print()
    _say(console, "+ better than cross-entropy, - worse, = equivalent, ? undecided.", style="dim")
    if study.handicap == "label_noise":
        _say(console, "Test labels are as given; log-loss is that of probabilities calibrated on the noisy rows.")
    else:
        _say(console, "Test folds keep the prior of the data; calibrators come from the thinned rows.")
    _say(console, study.sentence, style="bold")
    if report is not None:
        console.print(Text(f"Report: {report}"), soft_wrap=True)


def metric_sentence(metric: Metric) -> str:
    """What the primary metric rewards, and what else there is."""
    return f"Judged by {metric.title}: {metric.rewards} {metric.alternatives}".rstrip()


def summary_table(comparison: Comparison) -> RichTable:
    """The verdicts, the best first, for a terminal of 80 columns."""
    table = RichTable(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("Objective", overflow="fold")
    for heading in (comparison.metric.title, "difference ±95%", "gain", "P(best)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in wording.ranked(comparison):
        verdict = comparison.judgement.verdicts[result.name]
        baseline = verdict.verdict == "baseline"
        half = wording.number((verdict.high - verdict.low) / 2)
        table.add_row(
            Text(result.title, style="bold" if result.name == comparison.judgement.recommended else ""),
            wording.number(verdict.mean),
            "" if baseline else wording.signed(verdict.difference) + ("" if half == wording.NOTHING else f" ±{half}"),
            "" if baseline else wording.percent(verdict.gain, sign=True),
            wording.percent(verdict.probability_best),
            Text(verdict.verdict, style=STYLES[verdict.verdict]),
        )
    return table


class TerminalProgress(Progress):
    """Says what is planned, then shows one line that moves with every epoch; a context manager.

    Where the output is no terminal, it prints a line for each tenth of a phase instead.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._titles: dict[str, str] = {}
        self._phase = ""
        self._total = self._done = self._done_before = self._logged = 0
        self._started = 0.0
        self._running: dict[tuple[str, int, int], tuple[StackJob, int, int]] = {}
        self._live = Live(console=console, get_renderable=lambda: self, refresh_per_second=5, transient=True)

    def __enter__(self) -> TerminalProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_phase()
        self._phase = ""
        self._live.stop()

    def planning(self, table: Table, options: Options, candidates: Sequence[tuple[Candidate, str]]) -> None:
        """Say how it is judged, what the data are, and who competes and why."""
        kinds = {"binary": "two classes", "multiclass": f"{len(table.classes)} classes"}
        task = kinds.get(table.task, f"{len(table.classes)} labels")
        _say(self._console, metric_sentence(METRICS[options.metric]))
        _say(self._console, f"{table.name}: {len(table.target):,} rows, {table.features.shape[1]} columns, {task}.")
        for warning in table.warnings:
            _say(self._console, f"Warning: {warning}", style="yellow")
        reasons = RichTable(box=None, show_header=False, padding=(0, 0, 0, 2))
        for candidate, reason in candidates:
            self._titles[candidate.name] = candidate.title
            reasons.add_row(Text(candidate.title), Text(reason, style="dim"))
        self._console.print(reasons)

    def study_level(self, name: str, place: int, count: int) -> None:
        """Say which level comes."""
        self._end_phase()
        self._phase = ""
        self._console.print()
        _say(self._console, f"Level {place + 1} of {count}: {name}", style="bold")

    def planned(self, plan: Plan) -> None:
        """Say how much there is to do."""
        time_needed = f"; about {wording.duration(plan.estimated_seconds)}" if plan.estimated_seconds else ""
        _say(
            self._console,
            f"{wording.count(len(plan.candidates), 'objective')}, {plan.folds} folds x "
            f"{wording.count(plan.repeats, 'repeat')}, {wording.count(plan.trials, 'trial')} each; "
            f"{wording.count(plan.workers, 'worker')} on {plan.device}{time_needed}.",
        )
        for note in plan.notes:
            _say(self._console, note)

    def phase(self, title: str, total: int, done: int) -> None:
        """Start a new bar."""
        self._end_phase()
        self._phase, self._total, self._done, self._done_before = title, total, done, done
        self._logged, self._started = 0, time.monotonic()

    def stack_started(self, job: StackJob) -> None:
        """Show the stack."""
        self.epoch(job, 0, job.num_fits)

    def epoch(self, job: StackJob, epochs: int, active: int) -> None:
        """Count the fits that have stopped early as done."""
        self._running[_key(job)] = (job, epochs, active)

    def stack_finished(self, job: StackJob, fits: Sequence[FitRecord]) -> None:
        """Count its fits."""
        self._running.pop(_key(job), None)
        self._done += len(fits)
        step = LOG_STEPS * self._done // self._total
        if not self._console.is_terminal and step > self._logged:
            self._logged = step
            _say(self._console, f"{self._phase}: {self._status()}")

    def _end_phase(self) -> None:
        if self._phase and self._done > self._done_before:
            seconds = time.monotonic() - self._started
            _say(
                self._console, f"{self._phase}: {self._done - self._done_before:,} fits in {wording.duration(seconds)}."
            )
        self._running.clear()

    def _done_now(self) -> int:
        """Fits done, with those of running stacks that have stopped early."""
        return self._done + sum(job.num_fits - active for job, _, active in list(self._running.values()))

    def _status(self) -> str:
        """Fits done, fits a second and the time left."""
        done, seconds = self._done_now(), time.monotonic() - self._started
        rate = (done - self._done_before) / seconds if seconds > 0 else 0.0
        left = f"{wording.duration((self._total - done) / rate)} left" if rate else "time left unknown"
        return f"{done:,} of {self._total:,} fits, {rate:.1f} fits/s, {left}"

    def __rich__(self) -> RenderableType:
        """What moves: a bar, the numbers, and a line for every running stack."""
        if not self._phase:
            return Text("")
        lines = RichTable.grid()
        lines.add_row(ProgressBar(self._total, self._done_now(), width=min(self._console.width, 78)))
        lines.add_row(f"{self._phase}: {self._status()}")
        for job, epochs, active in list(self._running.values()):
            title = self._titles.get(job.candidate, job.candidate)
            place = f"split {job.split + 1}" if job.split >= 0 else "all rows"
            text = f"  {title}, {place}: epoch {epochs}, {active} of {job.num_fits} fits go on"
            lines.add_row(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        return lines


def _key(job: StackJob) -> tuple[str, int, int]:
    return job.candidate, job.split, job.round


def _say(console: Console, text: str, style: str = "") -> None:
    """Print words that may come from the data: nothing in them is markup."""
    console.print(Text(text, style=style))
