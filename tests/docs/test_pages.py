"""What the site holds: a page, a picture and an entry for each paper, whole links, nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lossary
from docs.generator import pages, shelf
from lossary import papers
from lossary.papers._evidence import Series

HERE = [entry for entry in shelf.papers() if entry.card is not None]
FOREIGN = ("src", "srcset", "data", "poster", "action")
"""Attributes that make a browser fetch something."""


class Document(HTMLParser):
    """Tags, ids and text of a page; the text without code, scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.ids: set[str] = set()
        self.text = ""
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self.ids |= {attributes[name] for name in ("id", "name") if name in attributes}
        self._silent += tag in ("code", "script", "style", "pre")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("code", "script", "style", "pre")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


@functools.cache
def document(path: Path) -> Document:
    return Document(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {path: document(path) for path in sorted(site.rglob("*.html"))}


def test_every_paper_has_its_page_picture_and_entries(site: Path) -> None:
    gallery = (site / "gallery.html").read_text()
    index = (site / "papers" / "index.html").read_text()
    assert gallery.count('<a class="card"') == gallery.count('class="chart"') == len(HERE)
    for entry in HERE:
        page = (site / "papers" / f"{entry.slug}.html").read_text()
        family = (site / "families" / f"{entry.family}.html").read_text()
        assert entry.evidence is None or entry.evidence.command in re.sub(r"<[^>]+>", "", page)
        assert f'href="papers/{entry.slug}.html"' in gallery
        assert f'href="{entry.slug}.html"' in index
        assert f"../papers/{entry.slug}.html" in family
        assert f"papers/{entry.slug}.html" in pages_in_navigation(site)


def test_papers_to_come_are_listed(site: Path) -> None:
    index = " ".join(document(site / "papers" / "index.html").text.split())
    for entry in shelf.papers():
        assert " ".join(entry.title.split()) in index
        assert " ".join(entry.title.split()) in " ".join(
            document(site / "families" / f"{entry.family}.html").text.split()
        )


def test_every_public_name_is_described(site: Path, documents: dict[Path, Document]) -> None:
    ids = {place for page in documents.values() for place in page.ids}
    assert set(shelf.names()) <= ids
    assert {f"lossary.{family}" for family in lossary.FAMILIES} <= {name.rpartition(".")[0] for name in shelf.names()}


def test_links_arrive(site: Path, documents: dict[Path, Document]) -> None:
    broken = []
    for path, page in documents.items():
        for tag, attributes in page.tags:
            for target in (attributes[name] for name in ("href", "src") if name in attributes):
                parts = urlsplit(target)
                if parts.scheme or parts.netloc:
                    continue
                to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                if path.name == "404.html":  # shown at any address, so its links begin at the root
                    to = site / unquote(parts.path).lstrip("/")
                to = to / "index.html" if to.is_dir() else to
                missing = parts.fragment and to in documents and unquote(parts.fragment) not in documents[to].ids
                if not to.is_file() or (missing and parts.fragment != "__skip"):
                    broken.append(f"{path.relative_to(site)}: <{tag}> {target}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, documents: dict[Path, Document]) -> None:
    for path, page in documents.items():
        for tag, attributes in page.tags:
            fetched = [attributes[name] for name in FOREIGN if name in attributes]
            fetched += [attributes.get("href", "")] if tag == "link" and attributes.get("rel") != "canonical" else []
            assert not [one for one in fetched if re.match(r"(https?:)?//", one)], f"{path.relative_to(site)}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet
        for file in re.findall(r"url\(['\"]?([^)'\"]+)", sheet.read_text(encoding="utf-8")):
            assert file.startswith(("data:", "#")) or (sheet.parent / file.split("?")[0]).is_file(), f"{sheet}: {file}"


def test_no_markup_is_left_to_readers(site: Path, documents: dict[Path, Document]) -> None:
    marks = (":func:", ":class:", ":math:", ".. math", "$$", "``", "{{", "}}", "](", "**", "::: ")
    for path, page in documents.items():
        without_formulas = re.sub(r"\\\(.*?\\\)|\\\[.*?\\\]", "", page.text, flags=re.DOTALL)
        found = [mark for mark in marks if mark in without_formulas]
        assert not found, f"{path.relative_to(site)}: {found}"


def test_pictures_have_words(documents: dict[Path, Document]) -> None:
    for path, page in documents.items():
        for tag, attributes in page.tags:
            if tag == "img":
                assert attributes.get("alt"), path
            if tag == "svg" and "chart" in attributes.get("class", ""):
                assert attributes["role"] == "img"
                assert attributes["aria-label"]


def test_search_knows_papers_and_names(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"] for entry in index["docs"]}
    assert {f"papers/{entry.slug}.html" for entry in HERE} <= places
    assert any(place.endswith("#lossary.classification.focal_loss") for place in places)
    assert "\N{MINUS SIGN}5" not in "".join(entry["text"] for entry in index["docs"] if "gallery" in entry["location"])


def test_formulas_of_every_objective_are_on_its_page(site: Path) -> None:
    for name in shelf.names().values():
        if "$$" in name.sections.get("formula", ""):
            page = (site / "reference" / name.room / f"{name.idea}.html").read_text()
            assert page.count('<div class="arithmatex">') >= 1, name.place


def test_a_paper_that_is_added_needs_no_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card and evidence alone make its page, its entries and its picture, also where it has no curve."""
    example = next(entry for entry in HERE if entry.slug == "focal_loss")
    assert example.card is not None
    assert example.evidence is not None
    series = Series("Loss", "step", "loss", [0.0, 1.0, 2.0], {"a": [3.0, 2.0, 1.0]})
    card = dataclasses.replace(
        example.card, slug="focal_loss_2", title="A: <new> paper_x", provides=("prior_bias_",), claim="x_1 < *y* | [z]"
    )
    evidence = dataclasses.replace(example.evidence, slug=card.slug, series=[series])
    entry = papers.Entry(card.slug, card.family, card.title, card, evidence)
    module = __import__("lossary.papers.focal_loss", fromlist=["x"])
    monkeypatch.setitem(__import__("sys").modules, "lossary.papers.focal_loss_2", module)
    monkeypatch.setattr(shelf, "papers", lambda: (*papers.catalogue(), entry))
    shelf.families.cache_clear()
    try:
        made = pages.everything()
        assert "# A: &lt;new> paper\\_x" in made["papers/focal_loss_2.md"]
        assert "x\\_1 &lt; \\*y\\* \\| \\[z\\]" in made["papers/focal_loss_2.md"]
        for page in ("gallery.md", "families/classification.md"):
            assert "papers/focal_loss_2.html" in made[page]
        assert "(focal_loss_2.md)" in made["papers/index.md"]
        assert "papers/focal_loss_2.md" in json.dumps(pages.navigation())
        assert 'class="chart"' in pages.picture(entry)
    finally:
        shelf.families.cache_clear()


class TestEvidence:
    @pytest.fixture
    def seen(self) -> papers.Evidence:
        found = papers.evidence("ldam")
        assert found is not None
        return found

    def test_that_is_missing_is_said(self) -> None:
        assert "Nothing is recorded yet" in pages._evidence(dataclasses.replace(HERE[0], evidence=None))

    def test_table_has_every_arm_and_metric(self, seen: papers.Evidence) -> None:
        table = pages._arms_table(seen).split("\n\n")[0].split("\n")
        assert len(table) == 2 + len(seen.arms)
        assert "*(baseline)*" in "".join(table)
        assert "*(method)*" in "".join(table)

    def test_places_that_have_names_are_rows(self, seen: papers.Evidence) -> None:
        assert "cosine CE, s=10" in pages._series(seen)

    @pytest.mark.parametrize("verdict", ["supported", "contradicted", "not seen at this scale"])
    def test_verdicts_have_colours(self, seen: papers.Evidence, verdict: str) -> None:
        marked = pages.badge(dataclasses.replace(seen, verdict=verdict))  # type: ignore[arg-type]
        assert f'"verdict {pages.VERDICTS[verdict]}"' in marked

    def test_values_are_quoted_and_unknown_ones_refused(self, seen: papers.Evidence) -> None:
        mean = sum(seen.arms["CE"]["tail recall"]) / len(seen.seeds)
        assert pages.value("ldam", "CE", "tail recall") == f"{mean:.3g}"
        with pytest.raises(ValueError, match="Nothing is recorded"):
            pages.value("ldam", "CE", "nose recall")
        with pytest.raises(ValueError, match="no paper of the scope"):
            pages.seen(["no_such_paper"], "choose.md")


def pages_in_navigation(site: Path) -> str:
    return "\n".join(_flat(pages.navigation())).replace(".md", ".html")


def _flat(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for one in nav.values():
            yield from _flat(one)
    elif isinstance(nav, list):
        for one in nav:
            yield from _flat(one)
