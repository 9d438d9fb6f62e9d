"""What the pages are made of: families, their ideas and names, papers with their cards and evidence."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import lossary
from docs.generator.docstrings import first_line, sections
from lossary.core.objective import Objective, Registered
from lossary.papers import Entry, catalogue

ROOMS = ("compare", "datasets", "papers")
"""What the reference shows beside the families."""
TOP = ("Objective", "WeightedSum", "objectives")
"""What ``lossary`` itself offers."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A public name: what it is and where it stands on the site.

    Attributes:
        name: As it is imported.
        room: Package that exports it, such as ``classification``; empty for ``lossary`` itself.
        idea: Module that it stands in, without the packages; that of the room for its own.
        thing: What it names.
        members: Public methods with a docstring of their own, in the order of the code.
    """

    name: str
    room: str
    idea: str
    thing: Any = dataclasses.field(compare=False)  # may be a dictionary, which has no hash
    members: tuple[str, ...]

    @property
    def place(self) -> str:
        """Its identifier on the site, which is also the path to import it by."""
        return ".".join(part for part in ("lossary", self.room, self.name) if part)

    @property
    def docstring(self) -> str:
        """Its docstring, or nothing."""
        return (inspect.getdoc(self.thing) or "") if callable(self.thing) else ""

    @property
    def summary(self) -> str:
        """One line in Markdown."""
        text = sections(first_line(self.docstring), linker(self.place)).get("", "")
        return text.split("; module form of")[0].rstrip(".") + "." if text else ""

    @functools.cached_property
    def sections(self) -> dict[str, str]:
        """The parts of its docstring in Markdown, by lower-case title."""
        return sections(self.docstring, linker(self.place)) if self.docstring else {}


@dataclasses.dataclass(frozen=True)
class Idea:
    """A module of a family: what it is about, and its public names in the order of the code."""

    room: str
    stem: str
    docstring: str
    names: tuple[Name, ...]

    @property
    def title(self) -> str:
        """Its heading."""
        return titled(self.stem)

    @property
    def page(self) -> str:
        """Its page of the reference."""
        return f"reference/{self.room}/{self.stem}.md"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: its package where it is here, and all papers of the scope that belong to it."""

    name: str
    docstring: str
    ideas: tuple[Idea, ...]
    papers: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Its heading."""
        return titled(self.name)

    @property
    def here(self) -> list[Entry]:
        """The papers that are here."""
        return [entry for entry in self.papers if entry.card is not None]

    @property
    def to_come(self) -> list[Entry]:
        """The papers that are not here yet."""
        return [entry for entry in self.papers if entry.card is None]


def titled(name: str) -> str:
    """A name of the code as a heading."""
    return name.replace("_", " ").strip().capitalize()


@functools.cache
def papers() -> tuple[Entry, ...]:
    """Every paper of the scope, those that are here first."""
    return tuple(catalogue())


@functools.cache
def families() -> tuple[Family, ...]:
    """Families with code in the order of ``lossary.FAMILIES``, then those of the papers to come."""
    named = [entry.family for entry in papers()]
    found = []
    for name in dict.fromkeys([*lossary.FAMILIES, *sorted(named)]):
        ideas = ideas_of(name) if name in (*lossary.FAMILIES, *ROOMS) else ()
        about = inspect.getdoc(importlib.import_module(f"lossary.{name}")) or "" if ideas else ""
        found.append(Family(name, about, ideas, tuple(entry for entry in papers() if entry.family == name)))
    return tuple(found)


@functools.cache
def ideas_of(room: str) -> tuple[Idea, ...]:
    """The modules behind the public names of a package, in alphabetic order."""
    package = importlib.import_module(f"lossary.{room}")
    by_idea: dict[str, list[Name]] = {}
    for name in package.__all__:
        thing = getattr(package, name)
        module = _module_of(thing, package)
        by_idea.setdefault(module.__name__, []).append(
            Name(name, room, module.__name__.split(".")[-1].strip("_"), thing, _members(thing))
        )
    ideas = []
    for path, names in by_idea.items():
        module = importlib.import_module(path)
        order = _order(module)
        names.sort(key=lambda one: order.get(one.name, len(order)))
        stem = path.split(".")[-1].strip("_")
        ideas.append(Idea(room, stem, inspect.getdoc(module) or "", tuple(names)))
    return tuple(sorted(ideas, key=lambda idea: idea.stem))


@functools.cache
def top() -> tuple[Name, ...]:
    """What ``import lossary`` offers."""
    return tuple(Name(name, "", "", getattr(lossary, name), _members(getattr(lossary, name))) for name in TOP)


@functools.cache
def names() -> dict[str, Name]:
    """Every public name by its place."""
    rooms = dict.fromkeys([*lossary.FAMILIES, *ROOMS])
    everything = [*top(), *(name for room in rooms for idea in ideas_of(room) for name in idea.names)]
    return {name.place: name for name in everything}


@functools.cache
def registered() -> dict[str, Registered]:
    """Every objective of the register by name."""
    return lossary.objectives()


def provided(entry: Entry) -> list[Name]:
    """The public names of a paper that is here."""
    assert entry.card is not None
    return [names()[place] for place in entry.card.places if place in names()]


def papers_of(name: Name) -> list[Entry]:
    """The papers that provide a name."""
    return [entry for entry in papers() if entry.card is not None and name.place in entry.card.places]


def module_form(name: Name) -> Name | None:
    """The module of a pure objective, or None."""
    entry = registered().get(name.name)
    if entry is None or entry.module is None or entry.family != name.room:
        return None
    return names().get(f"lossary.{name.room}.{entry.module.__name__}")


def is_module_form(name: Name) -> bool:
    """Whether a name is the module of a pure objective."""
    return isinstance(name.thing, type) and issubclass(name.thing, Objective) and "function" in vars(name.thing)


def linker(path: str) -> Callable[[str], str | None]:
    """Where names lead in the docstring of what stands at a path: same class, same room, then anywhere."""
    parts = path.split(".")[1:]
    room = parts[0] if parts else ""
    owner = next((part for part in parts if part[:1].isupper()), "")

    def link(name: str) -> str | None:
        own = [f"lossary.{room}.{name}", f"lossary.{name}", name]
        for place in own:
            if place in names():
                return place
        holder, _, member = name.rpartition(".")
        holding = names().get(f"lossary.{room}.{holder.split('.')[-1] or owner}")
        if holding is not None and member in holding.members:
            return f"{holding.place}.{member}"
        return next((place for place in names() if place.endswith(f".{name}")), None)

    return link


def _module_of(thing: Any, package: ModuleType) -> ModuleType:
    """The module in which a name is written; the package itself where that cannot be told."""
    path = getattr(thing, "__module__", None) or ""
    inside = path.startswith(f"{package.__name__}.") and importlib.util.find_spec(path) is not None
    return importlib.import_module(path) if inside else package


def _order(module: ModuleType) -> dict[str, int]:
    tree = ast.parse(inspect.getsource(module))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name: place for place, name in enumerate(defined)}


def _members(thing: Any) -> tuple[str, ...]:
    """Methods and properties that a class itself documents; none of an objective that only calls its function."""
    if not isinstance(thing, type):
        return ()
    return tuple(name for name, member in vars(thing).items() if not name.startswith("_") and _documented(name, member))


def _documented(name: str, member: Any) -> bool:
    plain = ("extra_repr", "function")  # what a reader of the reference does not call
    inner = getattr(member, "__func__", member)
    return name not in plain and (inspect.isfunction(inner) or isinstance(member, property)) and bool(inner.__doc__)


def listing(items: Iterable[str]) -> str:
    """``a``, ``a and b`` or ``a, b and c``."""
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
