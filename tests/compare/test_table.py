"""What the terminal shows fits 80 columns, and no text of the data is markup."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lossary.compare import table
from lossary.compare.candidates import choose
from lossary.compare.journal import FitRecord
from lossary.compare.metrics import METRICS
from lossary.compare.table import TerminalProgress, print_summary
from lossary.compare.train import Training
from lossary.compare.work import StackJob
from tests.compare.fake_comparison import fake_comparison

CANDIDATES = ["cross_entropy", "weighted_cross_entropy", "focal", "poly1", "ldam_drw", "cosine_cross_entropy"]


def printed(*args: Any, **kwargs: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_summary(*args, console, **kwargs)
    return console.file.getvalue()  # type: ignore[attr-defined]


class TestSummary:
    @pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if metric.primary])
    def test_fits_80_columns_and_begins_with_what_the_metric_rewards(self, metric: str) -> None:
        text = printed(fake_comparison("multiclass", CANDIDATES, "abc", metric=metric), report=Path("out/report.html"))
        assert max(map(len, text.splitlines())) <= 80
        words = " ".join(text.split())
        assert words.startswith(f"Judged by {METRICS[metric].title}: {METRICS[metric].rewards}")
        assert words.endswith("Report: out/report.html")
        assert ("tuned threshold" in words) == (METRICS[metric].kind == "decision")

    def test_has_every_verdict_the_best_first(self) -> None:
        comparison = fake_comparison("binary", CANDIDATES[:4], [0, 1])
        lines = printed(comparison).splitlines()
        rows = [
            next(i for i, line in enumerate(lines) if line.startswith(title)) for title in ("Focal", "Cross-", "Poly")
        ]
        assert rows == sorted(rows)
        assert "+0.0300 ±0.0100  +7.5%      80%  better" in lines[rows[0]]
        assert lines[rows[1]].split() == ["Cross-entropy", "0.4000", "3%", "baseline"]
        assert comparison.judgement.sentence in " ".join(" ".join(lines).split())

    def test_of_one_split_has_no_interval(self) -> None:
        text = printed(fake_comparison("binary", CANDIDATES[:2], [0, 1], folds=2, repeats=1, splits=1))
        assert "±" not in text.replace("±95%", "")
        assert "nan" not in text
        assert "Smallest difference" not in text

    def test_prints_markup_of_notes_as_it_is(self) -> None:
        comparison = dataclasses.replace(fake_comparison("binary", CANDIDATES[:2], [0, 1]), notes=["[red]x[/red]"])
        assert "Note: [red]x[/red]" in printed(comparison)

    def test_does_not_break_the_path_of_the_report(self) -> None:
        path = Path("a folder with a name/" * 10) / "report.html"
        assert f"Report: {path}" in printed(fake_comparison("binary", CANDIDATES[:2], [0, 1]), report=path).splitlines()


class TestProgress:
    comparison = fake_comparison(
        "binary", CANDIDATES[:3], [0, 1], shares=[0.9, 0.1], warnings=("Column [b] is constant.",)
    )

    def job(self, split: int = 0) -> StackJob:
        training = Training("binary", 2, "mlp", "log_loss", "temperature", 32, 100, 10, seed=0)
        return StackJob("focal", split, 0, 0, ({"gamma": 1.0},) * 8, (Path("a"), Path("b"), Path("c")), training)

    def fits(self) -> list[FitRecord]:
        return [FitRecord(0, 0, {}, 0.4, 5, 9, False, 0.1, None)] * 24

    def run(self, console: Console) -> None:
        with TerminalProgress(console) as progress:
            progress.planning(self.comparison.table, self.comparison.options, choose(("auto",), self.comparison.table))
            progress.planned(self.comparison.plan)
            progress.phase("Comparing", total=96, done=48)
            for split in (0, 1):
                progress.stack_started(self.job(split))
                progress.epoch(self.job(split), epochs=3, active=20)
                progress.stack_finished(self.job(split), self.fits())

    def test_says_what_is_planned_and_why(self) -> None:
        console = Console(file=io.StringIO(), width=80)
        self.run(console)
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
        assert lines[0].startswith("Judged by log-loss: ")
        assert "fake: 600 rows, 11 columns, two classes." in lines
        assert "Warning: Column [b] is constant." in lines
        assert "  Cross-entropy                    the baseline that every verdict refers to" in lines
        assert max(map(len, lines)) <= 80

    def test_in_a_log_is_a_line_for_each_tenth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = iter(range(0, 1000, 4))
        monkeypatch.setattr(table.time, "monotonic", lambda: next(seconds))
        console = Console(file=io.StringIO(), width=80)
        self.run(console)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert lines[-3:] == [
            "Comparing: 72 of 96 fits, 6.0 fits/s, 4 s left",
            "Comparing: 96 of 96 fits, 6.0 fits/s, 0 s left",
            "Comparing: 48 fits in 12 s.",
        ]

    def test_moves_with_every_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(table.time, "monotonic", lambda: clock[0])
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        progress = TerminalProgress(console)
        progress.planning(self.comparison.table, self.comparison.options, choose(("focal",), self.comparison.table))
        progress.phase("Comparing", total=96, done=48)
        progress.stack_started(self.job())
        with console.capture() as before:
            console.print(progress)
        clock[0] = 2.0
        progress.epoch(self.job(), epochs=7, active=14)
        with console.capture() as after:
            console.print(progress)
        assert "48 of 96 fits, 0.0 fits/s, time left unknown" in before.get()
        assert "58 of 96 fits, 5.0 fits/s, 8 s left" in after.get()
        assert "Focal loss, split 1: epoch 7, 14 of 24 fits go on" in after.get()

    def test_after_a_failure_restores_the_terminal_and_claims_nothing(self) -> None:
        console = Console(file=io.StringIO(), width=80, force_terminal=True)

        def interrupted() -> None:
            with TerminalProgress(console) as progress:
                progress.phase("Comparing", total=48, done=0)
                progress.stack_finished(self.job(), self.fits())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again
        assert "24 fits in" not in text
