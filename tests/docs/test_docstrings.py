"""Docstrings become Markdown: no markup of reStructuredText reaches a reader, and nothing else changes."""

from __future__ import annotations

import griffe
import pytest

from docs.generator import shelf
from docs.generator.docstrings import first_line, prose, sections, to_markdown

PLACES = {"focal_loss": "lossary.classification.focal_loss"}


def converted(text: str) -> str:
    return to_markdown(text, PLACES.get)


@pytest.mark.parametrize(
    ("source", "markdown"),
    [
        ("As :func:`focal_loss` is.", "As [`focal_loss`][lossary.classification.focal_loss] is."),
        ("As :py:func:`focal_loss` is.", "As [`focal_loss`][lossary.classification.focal_loss] is."),
        ("As :func:`~a.b.other` is.", "As `other` is."),
        ("As :func:`this <focal_loss>` is.", "As [`this`][lossary.classification.focal_loss] is."),
        ("With :math:`p_t^\\gamma` in it.", "With \\(p_t^\\gamma\\) in it."),
        ("Over :math:`a\n    + b` lines.", "Over \\(a + b\\) lines."),
        ("``a * b``, ``x | y`` and `c`.", "``a * b``, ``x | y`` and `c`."),
        ("See `the page <https://example.org/a_b>`_.", "See [the page](https://example.org/a_b)."),
        ("y = x / \\|x\\|", "y = x / |x|"),
        ("a*b*c for a < b, <tag>", "a\\*b\\*c for a < b, &lt;tag>"),
        ("at most x[0][1]", "at most x[0]\\[1]"),
        ("*this* and **that**", "*this* and **that**"),
        ("kept $x_1$ and \\(x_2\\)", "kept $x_1$ and \\(x_2\\)"),
    ],
)
def test_inline_markup(source: str, markdown: str) -> None:
    assert converted(source) == markdown


def test_a_formula_keeps_its_place_in_its_section() -> None:
    text = "One line.\n\nFormula:\n    .. math:: L = -\\log p_t\n\n    More of it.\n\nArgs:\n    x: The input."
    formula, arguments = griffe.Docstring(converted(text)).parse("google")[1:]
    assert formula.value.description == "$$\nL = -\\log p_t\n$$\n\nMore of it."
    assert arguments.value[0].name == "x"


@pytest.mark.parametrize(
    ("source", "formulas"),
    [
        (".. math::\n\n    a = b\n\n    c = d\n\nText.", ["a = b", "c = d"]),
        (".. math:: a =\n    b", ["a =\nb"]),
        (".. math::\n    :label: one\n\n    a = b", ["a = b"]),
        (".. math::\n\n    a &= b \\\\\n    &= c", ["\\begin{aligned}\na &= b \\\\\n&= c\n\\end{aligned}"]),
        (".. math::\n\n    \\begin{cases} a \\\\ b \\end{cases}", ["\\begin{cases} a \\\\ b \\end{cases}"]),
    ],
)
def test_blocks_of_formulas(source: str, formulas: list[str]) -> None:
    blocks = converted(source).split("$$")[1::2]
    assert [block.strip("\n") for block in blocks] == formulas


def test_literal_blocks_and_code_blocks_become_fenced() -> None:
    literal = converted("The error is ::\n\n    se = sqrt(a * b)\n\nand so on.")
    assert literal == "The error is\n\n```text\nse = sqrt(a * b)\n```\n\nand so on."
    code = converted(".. code-block:: python\n\n    x = 1\n\n    y = 2")
    assert code.strip() == "```python\nx = 1\n\ny = 2\n```"


def test_notes_become_admonitions_with_their_markup_converted() -> None:
    assert converted(".. note:: As :func:`focal_loss`.").strip() == (
        "!!! note\n\n    As [`focal_loss`][lossary.classification.focal_loss]."
    )


def test_doctests_stay_as_they_are() -> None:
    text = "Example:\n    >>> print('a*b', x[0][1], '<b>')\n    a*b\n    >>> 1\n    1\n\nSource:\n    A."
    examples, source = griffe.Docstring(converted(text)).parse("google")
    assert examples.kind is griffe.DocstringSectionKind.examples
    assert examples.value[0][1] == ">>> print('a*b', x[0][1], '<b>')\na*b\n>>> 1\n1"
    assert source.title == "Source"


@pytest.mark.parametrize("source", [".. figure:: a.png", ".. _place:", ".. [1] A footnote."])
def test_what_is_not_known_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="does not know"):
        converted(source)


def test_sections_by_title() -> None:
    text = "One.\n\nTwo :func:`focal_loss`.\n\nFormula:\n    .. math:: a\n\nSource:\n    Somebody (1999)."
    parts = sections(text, PLACES.get)
    assert parts == {
        "": "One.\n\nTwo [`focal_loss`][lossary.classification.focal_loss].",
        "formula": "$$\na\n$$",
        "source": "Somebody (1999).",
    }


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("L = -alpha_t (1 - p_t)^gamma", "L = -alpha\\_t (1 - p\\_t)^gamma"),
        ("a * b * c, [0, 1] & <tag> | #1", "a \\* b \\* c, \\[0, 1\\] &amp; &lt;tag> \\| \\#1"),
        ("with $x_1$ and \\(y_2\\) and `z_3`", "with $x_1$ and \\(y_2\\) and `z_3`"),
        ("costs $5 here", "costs \\$5 here"),
    ],
)
def test_prose_of_cards_is_text(text: str, markdown: str) -> None:
    assert prose(text) == markdown


def test_first_line() -> None:
    assert first_line("One\nline.\n\nMore.") == "One line."
    assert first_line(None) == ""


def test_every_docstring_of_the_package_is_understood() -> None:
    for name in shelf.names().values():
        assert name.summary or not callable(name.thing), f"{name.place} has no docstring"
        markdown = to_markdown(name.docstring, shelf.linker(name.place))
        for left in (".. ", ":func:", ":class:", ":meth:", ":math:", ":mod:"):
            assert left not in markdown.replace("...", ""), f"{name.place}: {left!r} is left"


def test_names_lead_to_the_same_class_and_family_first() -> None:
    link = shelf.linker("lossary.classification.margin.LDAMLoss")
    assert link("set_weight") == "lossary.classification.LDAMLoss.set_weight"
    assert link("ldam_loss") == "lossary.classification.ldam_loss"
    assert link("compare") == "lossary.compare.compare"
    assert link("nothing_of_that_name") is None
