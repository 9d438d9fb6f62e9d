"""The site and a report of compare in a browser, as a visitor on a desk and on a phone sees them."""

from __future__ import annotations

import functools
import html
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lossary.compare.report import write_report
from tests.compare.fake_comparison import fake_comparison
from tests.conftest import NO_CHROMIUM

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"desktop": (1280, 900), "phone": (360, 740)}
PAGES = {
    "start": "index.html",
    "family": "families/classification.html",
    "paper with curves": "papers/focal_loss.html",
    "paper with many arms": "papers/ldam.html",
    "gallery": "gallery.html",
    "reference": "reference/classification/margin.html",
    "statistics": "compare/statistics.html",
    "report": "report.html",
}
SLOW = 60_000
"""Milliseconds for a page on a busy machine."""

_FORMULAS = """() => [...document.querySelectorAll('.arithmatex')].filter(
    (place) => !place.querySelector('.katex-html') || place.querySelector('.katex-error')).map((p) => p.textContent)"""
_PICTURES = """() => [
    ...[...document.images].filter((image) => !(image.complete && image.naturalWidth > 0)).map((image) => image.src),
    ...[...document.querySelectorAll('svg.chart, .figure')].filter((figure) => {
        const box = figure.getBoundingClientRect();
        return box.width < 60 || box.height < 30 || !figure.querySelector('path, circle, rect');
    }).map((figure) => figure.id || figure.getAttribute('aria-label')),
]"""
_TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter((element) =>
    element.getBoundingClientRect().right > window.innerWidth + 1).slice(0, 5).map(
    (element) => element.tagName + '.' + element.className)"""


def chromium() -> str | None:
    """Where a Chromium is: the system's, or that of Playwright."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    home = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    return next((str(path) for path in sorted(home.glob("chromium*/chrome-*/*")) if path.name == "chrome"), None)


pytestmark = pytest.mark.skipif(chromium() is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def address(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site on a server of this machine, a report of compare beside it."""
    folder = tmp_path_factory.mktemp("report")
    names = ["cross_entropy", "weighted_cross_entropy", "focal", "poly1", "ldam_drw"]
    comparison = fake_comparison("multiclass", names, ["no", "perhaps", "yes"], shares=[0.7, 0.2, 0.1], metric="f1")
    write_report(comparison, folder / "report.html")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(folder / "report.html") if path == "/report.html" else super().translate_path(path)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=SLOW)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what went wrong on it so far."""

    def __init__(self, browser: Any, width: str, scheme: str = "light") -> None:
        across, down = WIDTHS[width]
        self.context = browser.new_context(viewport={"width": across, "height": down}, color_scheme=scheme)
        self.context.set_default_timeout(SLOW)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._response)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_function("document.fonts.status === 'loaded'")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not re.match(r"http://127\.0\.0\.1[:/]|data:|blob:", request.url):
            self.problems.append(f"outside: {request.url}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was opened before this one had its search
            self.problems.append(f"failed: {request.url} ({request.failure})")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(browser, *getattr(request, "param", ("desktop",)))
    yield visit
    visit.context.close()


def problems_of(visit: Visit) -> list[str]:
    """What a visitor of the page that is open would complain about."""
    page = visit.page
    wide = page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
    found = [f"scrolls sideways by {wide} pixels: {page.evaluate(_TOO_WIDE)}"] if wide > 0 else []
    found += [f"formula: {formula}" for formula in page.evaluate(_FORMULAS)]
    found += [f"picture: {picture}" for picture in page.evaluate(_PICTURES)]
    return visit.problems + found


@pytest.mark.parametrize("visit", [(width,) for width in WIDTHS], indirect=True, ids=list(WIDTHS))
def test_pages(visit: Visit, address: str) -> None:
    found = []
    for path in PAGES.values():
        visit.problems.clear()
        visit.open(address + path)
        assert visit.page.locator("h1").first.is_visible()
        found += [f"{path}: {problem}" for problem in problems_of(visit)]
    assert found == []


def test_dark_pages_are_dark_and_light_ones_light(browser: Any, address: str) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        visit = Visit(browser, "phone", scheme)
        for path in (PAGES["paper with curves"], PAGES["report"]):
            visit.open(address + path)
            ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            ink = visit.page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            assert (brightness(ground) < 100) is dark, (path, ground)
            assert abs(brightness(ground) - brightness(ink)) > 80, (path, ground, ink)
        visit.context.close()


def test_search_finds_a_paper_and_a_name(visit: Visit, address: str) -> None:
    visit.open(address + PAGES["start"])
    for words, place in (("deferred resampling", "margin"), ("SquentropyLoss", "squentropy")):
        field = visit.page.locator(".md-search__input")
        field.fill("")
        field.click()
        field.press_sequentially(words)
        found = visit.page.locator(".md-search-result__link")
        found.first.wait_for(state="attached")
        visit.page.wait_for_function(
            "(place) => [...document.querySelectorAll('.md-search-result__link')].some((a) => a.href.includes(place))",
            arg=place,
        )
    assert visit.problems == []


def test_every_formula_of_the_site_can_be_set(visit: Visit, address: str, site: Path) -> None:
    """All formulas of all pages, without opening each page."""
    pattern = re.compile(r'<(?:span|div) class="arithmatex">(.*?)</(?:span|div)>', re.DOTALL)
    formulas = {
        html.unescape(formula).strip()[2:-2]: str(path.relative_to(site))
        for path in site.rglob("*.html")
        for formula in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert len(formulas) > 20
    visit.open(address + PAGES["start"])
    refused = visit.page.evaluate(
        """(formulas) => formulas.filter((formula) => {
            try { katex.renderToString(formula, { strict: 'error' }); return false; } catch (error) { return true; }
        })""",
        list(formulas),
    )
    assert [(formulas[formula], formula) for formula in refused] == []


def test_the_site_opens_from_disk(visit: Visit, site: Path) -> None:
    visit.page.goto((site / "papers" / "ldam.html").as_uri())
    assert visit.page.locator(".katex-html").count() > 0
    assert not [problem for problem in visit.problems if not problem.startswith("outside: file:")]


def brightness(color: str) -> float:
    """Mean of red, green and blue of ``rgb(...)``, 0 to 255."""
    return sum(float(part) for part in re.findall(r"[\d.]+", color)[:3]) / 3
