"""Docstrings of this project (reStructuredText in Google's sections) as Markdown, for every page of the site.

Written once, used twice: by :class:`MarkdownDocstrings` for what mkdocstrings shows, and by :func:`sections` for what
the generated pages quote. Markup that is not understood raises, so that none reaches a reader.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import griffe

Link = Callable[[str], str | None]
"""From a name in a docstring to the identifier of its place on the site, or None where it has none."""

_DIRECTIVE = re.compile(r"(?P<indent> *)\.\. (?P<name>[\w-]+)::(?: (?P<argument>.*))?$")
_ADMONITIONS = {"note": "note", "warning": "warning", "tip": "tip", "important": "warning", "seealso": "info"}
_INLINE = re.compile(
    r"(?P<code>``.+?``)"
    r"|:(?P<role>[a-z]+(?::[a-z]+)*):`(?P<content>[^`]+)`"
    r"|`(?P<label>[^`<]+?)\s*<(?P<url>[^`>]+)>`__?"
    r"|(?P<plain>`[^`]+`)"
    r"|(?P<math>\\\(.+?\\\)|\$[^\s$](?:[^$]*[^\s$])?\$)",
    re.DOTALL,
)


def to_markdown(text: str, link: Link = lambda name: None) -> str:
    """A docstring as Markdown that the Google parser still reads: sections, lists and indentation stay as they are.

    Args:
        text: The docstring, its indentation removed.
        link: Where names in roles such as ``:func:`` lead.

    Raises:
        ValueError: A directive is not known here.
    """
    converted = re.sub(r"\n{3,}", "\n\n", "\n".join(_converted(text.split("\n"), link)).rstrip())
    return re.sub(r"^([A-Z][\w ]*:)\n\n+(?= )", r"\1\n", converted, flags=re.MULTILINE)  # the parser wants none there


def prose(text: str) -> str:
    """Plain text of a card or of evidence as Markdown: only formulas in ``$`` or ``\\(`` and code in backticks act."""
    return _outside(text, _literal)


def sections(text: str, link: Link = lambda name: None) -> dict[str, str]:
    """A docstring's parts in Markdown by lower-case title; ``""`` is what stands before the first title.

    Only free-form parts are given (Formula, Shape, Source and text), not arguments.
    """
    parts: dict[str, str] = {}
    with_sections = griffe.Docstring(to_markdown(text, link)).parse("google", warnings=False)
    for section in with_sections:
        if section.kind is griffe.DocstringSectionKind.text:
            parts.setdefault("", str(section.value))
        elif section.kind is griffe.DocstringSectionKind.admonition:
            parts[str(section.title).lower()] = str(section.value.description)
    return parts


def first_line(text: str | None) -> str:
    """The docstring's first sentence as it stands, on one line; empty where there is none."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


class MarkdownDocstrings(griffe.Extension):
    """Gives mkdocstrings the Markdown form of every docstring of the package."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with every object that is loaded."""
        from docs.generator import shelf

        if obj.docstring is None or obj.path.split(".")[0] != "lossary" or obj.name.startswith("_"):
            return
        obj.docstring.value = to_markdown(obj.docstring.value, shelf.linker(obj.path))


def _converted(lines: list[str], link: Link) -> Iterator[str]:
    """The lines one block after the other: doctests as they are, directives, literal blocks, text."""
    at = 0
    while at < len(lines):
        line = lines[at]
        directive = _DIRECTIVE.match(line)
        if re.match(r" *>>> ", line):
            end = _end_of_doctest(lines, at)
            yield from lines[at:end]
        elif directive is not None:
            end = _end_of_indented(lines, at + 1, len(directive["indent"]))
            yield from _directive(directive, lines[at + 1 : end], link)
        elif line.lstrip().startswith(".. "):
            raise ValueError(f"The site does not know what to make of {line.strip()!r}.")
        elif line.endswith("::"):
            indent = len(line) - len(line.lstrip())
            end = _end_of_indented(lines, at + 1, indent)
            if line.strip() != "::":
                yield _inline(re.sub(r" ::$|:$", "", line), link)
            yield from _fenced("text", lines[at + 1 : end], " " * indent)
        elif not line.strip():
            end = at + 1
            yield ""
        else:
            end = at + 1
            while end < len(lines) and lines[end].strip() and not _starts_block(lines[end]):
                end += 1
            # A paragraph at once: inline markup may go over the end of a line.
            yield from _inline("\n".join(_singular_titles(lines[at:end])), link).split("\n")
        at = end


def _starts_block(line: str) -> bool:
    return bool(re.match(r" *(>>> |\.\. )", line)) or line.endswith("::")


def _singular_titles(lines: list[str]) -> list[str]:
    """The parser knows ``Examples:`` alone."""
    return ["Examples:" if line == "Example:" else line for line in lines]


def _end_of_doctest(lines: list[str], start: int) -> int:
    return next((at for at in range(start, len(lines)) if not lines[at].strip()), len(lines))


def _end_of_indented(lines: list[str], start: int, indent: int) -> int:
    """The line after the last that is indented by more."""
    end = start
    for at in range(start, len(lines)):
        if lines[at].strip():
            if len(lines[at]) - len(lines[at].lstrip()) <= indent:
                break
            end = at + 1
    return end


def _directive(found: re.Match[str], body: list[str], link: Link) -> Iterator[str]:
    indent, name, argument = found["indent"], found["name"], (found["argument"] or "").strip()
    if name == "math":
        formulas = [argument] if argument else []
        inside = textwrap.dedent("\n".join(body)).strip("\n")
        inside = re.sub(r"^:\w+:.*\n?", "", inside, flags=re.MULTILINE)  # options such as :label:
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", inside) if part.strip()]
        if formulas and paragraphs and body[0].strip():  # the formula goes on below its first line
            formulas[0] += "\n" + paragraphs.pop(0)
        for formula in formulas + paragraphs:
            yield from ("", f"{indent}$$", *(indent + line.strip() for line in _aligned(formula)), f"{indent}$$", "")
    elif name in ("code-block", "code"):
        yield from _fenced(argument or "text", body, indent)
    elif name in _ADMONITIONS:
        yield from ("", f"{indent}!!! {_ADMONITIONS[name]}", "")
        inside = ([argument] if argument else []) + textwrap.dedent("\n".join(body)).strip("\n").split("\n")
        yield from (f"{indent}    {line}".rstrip() for line in _converted(inside, link))
        yield ""
    else:
        raise ValueError(f"The site does not know the directive {name!r} (in {found[0].strip()!r}).")


def _aligned(formula: str) -> list[str]:
    """The lines of a formula; several rows are aligned at their ``&`` as Sphinx does."""
    if r"\\" in formula and r"\begin" not in formula:
        formula = f"\\begin{{aligned}}\n{formula}\n\\end{{aligned}}"
    return formula.split("\n")


def _fenced(language: str, body: list[str], indent: str) -> Iterator[str]:
    inside = textwrap.dedent("\n".join(body)).strip("\n").split("\n")
    yield from ("", f"{indent}```{language}", *(f"{indent}{line}".rstrip() for line in inside), f"{indent}```", "")


def _inline(text: str, link: Link) -> str:
    return _outside(text, _unescaped, link)


def _outside(text: str, convert: Callable[[str], str], link: Link = lambda name: None) -> str:
    """Convert what is neither code nor formula nor role by ``convert``, and those by their own rules."""
    parts, at = [], 0
    for found in _INLINE.finditer(text):
        parts += [convert(text[at : found.start()]), _marked(found, link)]
        at = found.end()
    return "".join([*parts, convert(text[at:])])


def _marked(found: re.Match[str], link: Link) -> str:
    if found["role"] is None:
        return f"[{found['label']}]({found['url']})" if found["url"] else found[0]
    content = " ".join(found["content"].split())
    role = found["role"].split(":")[-1]
    if role == "math":
        return f"\\({content}\\)"
    label, _, target = content.removesuffix(">").partition(" <") if content.endswith(">") else (content, "", content)
    name = target.lstrip("~.")
    if label == target:
        label = name.split(".")[-1] if target.startswith("~") else name
    place = link(name)
    return f"[`{label}`][{place}]" if place else f"`{label}`"


def _unescaped(text: str) -> str:
    """Text of a docstring: its backslashes undone where Markdown has none, and nothing that Markdown alone reads."""
    text = re.sub(r"\\([^\w\s\\`*_{}\[\]()#+.!-])", r"\1", text)
    text = re.sub(r"(?<=\w)\*(?=\w)", r"\\*", text)
    return re.sub(r"<(?=[\w/!?])", "&lt;", text).replace("][", "]\\[")


def _literal(text: str) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\*_{}\[\]#|`~$])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")
