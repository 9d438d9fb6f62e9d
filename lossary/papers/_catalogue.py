"""All papers in the scope: those that are here with their cards and evidence, and those still to come."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import importlib
import importlib.util
from pathlib import Path

from lossary.core.errors import UserError
from lossary.papers._evidence import Evidence
from lossary.papers._paper import Paper

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Entry:
    """A paper in the scope: its card and recorded evidence, where they exist."""

    slug: str
    family: str
    title: str
    card: Paper | None
    evidence: Evidence | None


@functools.cache
def _index() -> dict[str, tuple[str, str]]:
    with (_HERE / "_index.tsv").open(encoding="utf-8", newline="") as file:
        return {row["slug"]: (row["family"], row["title"]) for row in csv.DictReader(file, delimiter="\t")}


def catalogue() -> list[Entry]:
    """Every paper in the scope, those that are here first."""
    entries = []
    for slug, (family, title) in _index().items():
        here = importlib.util.find_spec(f"lossary.papers.{slug}") is not None
        entries.append(Entry(slug, family, title, card(slug) if here else None, evidence(slug)))
    return sorted(entries, key=lambda entry: (entry.card is None, entry.family, entry.slug))


def card(slug: str) -> Paper:
    """The card of a paper.

    Raises:
        UserError: There is no such paper (the nearest are offered), or it is not here yet.
    """
    if slug not in _index():
        nearest = difflib.get_close_matches(slug, _index(), n=3, cutoff=0.4)
        offer = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        raise UserError(f"There is no paper {slug!r}. {offer}`lossary papers` lists all.")
    if importlib.util.find_spec(f"lossary.papers.{slug}") is None:
        raise UserError(f"The paper {slug!r} is in the scope, but not here yet. `lossary papers` lists what is.")
    found: Paper = importlib.import_module(f"lossary.papers.{slug}").CARD
    return found


def evidence(slug: str) -> Evidence | None:
    """The recorded evidence of a paper, or None where there is none."""
    for folder in (_HERE.parent / "evidence", _HERE.parent.parent / "evidence"):  # installed; a checkout
        path = folder / f"{slug}.json"
        if path.is_file():
            return Evidence.from_json(path.read_text())
    return None
