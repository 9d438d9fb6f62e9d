"""Code on the pages runs as it is shown."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

import lossary.compare
from docs.generator import calls, shelf
from docs.generator.calls import Incomplete, complete, completed, free_names, run
from lossary import cli, papers
from tests.compare.fake_comparison import fake_comparison

ROOT = Path(__file__).parents[2]
CARDS = [entry.card for entry in shelf.papers() if entry.card is not None]
WRITTEN = [
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generator" not in path.parts),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.slug)
def test_the_call_of_a_card_runs(card: papers.Paper) -> None:
    code, namespace = completed(card.call)
    assert free_names(code) == []
    provided = {name.rpartition(".")[2] for name in card.provides}  # a survey's names are in several families
    assert namespace.keys() & provided, "the call uses nothing of the paper"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_on_written_pages_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect.signature(lossary.compare.compare)

    def compare(*args: Any, **words: Any) -> Any:
        signature.bind(*args, **words)
        return fake_comparison("binary", ["cross_entropy", "focal"], [0, 1])

    monkeypatch.setattr(lossary.compare, "compare", compare)  # what takes minutes is only called rightly
    for code in blocks(path, "python"):
        run(complete(code))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_written_pages_parse(path: Path) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    slugs = {entry.slug for entry in shelf.papers()}
    lines = [line for code in blocks(path, "bash") for line in code.splitlines()]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["lossary"]:
            context = commands[words[1]].make_context(words[1], [word for word in words[2:] if word != "--help"])
            assert context.params.get("slug") in {None, *slugs}
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


class TestComplete:
    def test_puts_what_is_needed_first(self) -> None:
        code = complete("from math import pi\nloss = logits.sum() * pi + labels.sum()")
        assert code.split("\n")[:2] == ["import torch", "from math import pi"]
        assert "logits = torch.randn(8, 10)" in code
        assert code.endswith("loss = logits.sum() * pi + labels.sum()")

    def test_takes_the_first_stand_ins_that_fit(self) -> None:
        code = complete("assert labels.is_floating_point() and labels.shape == logits.shape")
        assert "torch.randint(2, (8, 10)).float()" in code

    def test_leaves_complete_code_alone(self) -> None:
        assert complete("x = 1\nprint([y + x for y in range(3)])") == "x = 1\nprint([y + x for y in range(3)])"

    @pytest.mark.parametrize(
        ("call", "why"),
        [("loss(my_own_thing)", "takes loss, my_own_thing for granted"), ("logits.no_such", "no_such")],
    )
    def test_says_why_not(self, call: str, why: str) -> None:
        with pytest.raises(Incomplete, match=why):
            complete(call)

    def test_stand_ins_are_code(self) -> None:
        for choices in calls.STAND_INS.values():
            for choice in choices:
                run(f"import torch\nvalue = {choice}")
        assert set(calls.SAME.values()) <= set(calls.STAND_INS)
