"""The generated pages as Markdown, by their path: a page per paper and family, gallery, reference, lists."""

from __future__ import annotations

import functools
import html
import importlib
import inspect
import math
import posixpath
import re
import statistics
from collections.abc import Iterable, Sequence

from docs.generator import charts, shelf
from docs.generator.calls import Incomplete, complete
from docs.generator.charts import Dots, Line
from docs.generator.curves import REACH, Curve, Drawing, draw
from docs.generator.docstrings import prose, sections
from docs.generator.shelf import Family, Idea, Name
from lossary.compare import wording
from lossary.papers import Entry, Evidence, Paper
from lossary.papers._evidence import Series

VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "not seen at this scale": "unseen",
    "not judged (quick form)": "none",
}
"""The style of each verdict."""
NOT_RUN = "not run yet"
NAMES_IN_BOX = 4
PALETTE = 6
"""Colours of the style sheet beside those of baseline and method."""


def everything() -> dict[str, str]:
    """Every generated page: path to Markdown."""
    here = [entry for entry in shelf.papers() if entry.card is not None]
    found = {"gallery.md": gallery(here), "papers/index.md": papers_index(), "families/index.md": families_index()}
    found |= {paper_page(entry.slug): paper(entry) for entry in here}
    found |= {family_page(family.name): family_text(family) for family in shelf.families()}
    found |= {"reference/index.md": reference_index(), "reference/lossary.md": reference_top()}
    for idea in _all_ideas():
        found[idea.page] = reference(idea)
    return found


def navigation() -> dict[str, list[object]]:
    """The entries below ``families/``, ``papers/`` and ``reference/`` of the navigation."""
    ready = [family for family in shelf.families() if family.ideas or family.here]
    return {
        "families/": ["families/index.md", *({family.title: family_page(family.name)} for family in ready)],
        "papers/": [
            "papers/index.md",
            *(
                {family.title: [{_short(entry): paper_page(entry.slug)} for entry in family.here]}
                for family in ready
                if family.here
            ),
        ],
        "reference/": [
            "reference/index.md",
            {"lossary": "reference/lossary.md"},
            *({shelf.titled(room): [{idea.title: idea.page} for idea in ideas]} for room, ideas in _rooms().items()),
        ],
    }


def paper_page(slug: str) -> str:
    """The page of a paper."""
    return f"papers/{slug}.md"


def family_page(name: str) -> str:
    """The page of a family."""
    return f"families/{name}.md"


# Papers


def paper(entry: Entry) -> str:
    """The page of a paper that is here."""
    card = entry.card
    assert card is not None
    page = paper_page(entry.slug)
    names = shelf.provided(entry)
    parts = [
        _front(title=card.title, description=card.claim),
        f"# {prose(card.title)}",
        _byline(entry, card, page),
        f"{_badge(entry, link='#what-was-seen-here')} {prose(card.claim)}",
        '<div class="when" markdown>',
        f"<div markdown>\n\n**Reach for it** when {prose(card.use_when)}.\n\n</div>\n<div markdown>\n\n**Not** when "
        f"{prose(card.avoid_when)}.\n\n</div>\n</div>",
        "## Use it",
        _call(card),
        _names_list(names),
        "## Formula",
        _formulas(card, names),
        _curves(names),
        "## What was seen here",
        _evidence(entry),
        "## Source and differences from the original code",
        _sources(card, names),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(**values: str | list[str]) -> str:
    lines = [f"{key}: {_yaml(value) if isinstance(value, str) else value}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    return "'" + " ".join(text.split()).replace("'", "''") + "'"


def _byline(entry: Entry, card: Paper, page: str) -> str:
    source = f"[arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else ""
    family = f"[{shelf.titled(entry.family)}]({_link(page, family_page(entry.family))})"
    return " · ".join(part for part in (prose(card.authors), str(card.year), source, family) if part) + "\n{ .byline }"


def _call(card: Paper) -> str:
    try:
        code = complete(card.call)
    except Incomplete:  # the tests say so; the page shows what the card says
        code = card.call
    return f"```python\n{code}\n```"


def _names_list(names: Sequence[Name]) -> str:
    """Each objective beside its module form, with a line on what it is."""
    entries = [f"- {_both(name)}\n\n    {name.summary}" for name in names if not _is_second(name, names)]
    return '<div class="names short" markdown>\n\n' + "\n\n".join(entries) + "\n\n</div>" if entries else ""


def _is_second(name: Name, names: Sequence[Name]) -> bool:
    """Whether a module stands beside its function already."""
    return any(shelf.module_form(other) == name for other in names)


def _both(name: Name) -> str:
    return " · ".join(_reference(one) for one in (shelf.module_form(name), name) if one is not None)


def _reference(name: Name) -> str:
    return f"[`{name.name}`][{name.place}]"


def _formulas(card: Paper, names: Sequence[Name]) -> str:
    """Of every objective with its formula, the first at large; the card's own line where code has none."""
    stated = [name for name in names if "formula" in name.sections]
    if not stated:
        return _card_formula(card)
    first, *others = stated
    parts = [first.sections["formula"], f"This is {_reference(first)}."]
    if others:
        parts.append("Its relatives:" if len(others) > 1 else "Its relative:")
        parts += [f"- {_reference(name)}\n\n{_indented(name.sections['formula'])}" for name in others]
    return "\n\n".join(parts)


def _card_formula(card: Paper) -> str:
    if re.search(r"\$|\\\(", card.formula):
        return prose(card.formula)
    if re.search(r"\\[a-zA-Z]", card.formula):
        return f"$$\n{card.formula}\n$$"
    return f"```text\n{card.formula}\n```"


def _curves(names: Sequence[Name]) -> str:
    panels = [panel for name in names if (panel := curve_panel(name))]
    if not panels:
        return ""
    two = any(drawing(name) and drawing(name).curves[0].label.startswith("class") for name in names)  # type: ignore[union-attr]
    intro = (
        "Drawn from the code: the loss of one row and its slope over the margin of the truth, which is the logit for "
        "the right answer minus the logit against it. Right and sure is on the right, wrong and sure on the left; "
        "where the slope is flat, a row is no longer learnt from. Several classes are drawn as two."
    )
    intro += " The two classes differ where an objective treats frequent and rare ones differently." if two else ""
    return "\n\n".join(["## What it asks of a row", intro, f'<div class="panels">{"".join(panels)}</div>'])


@functools.cache
def drawing(name: Name) -> Drawing | None:
    """The curves of a public name, where it is an objective that has some."""
    entry = shelf.registered().get(name.name)
    return draw(entry) if entry is not None and entry.family == name.room else None


def curve_panel(name: Name) -> str:
    """The figure with an objective's loss and slope, or nothing."""
    drawn = drawing(name)
    if drawn is None:
        return ""
    shown = [(drawn.baseline, "base", "solid"), *_styled(drawn)]
    loss, slope = (
        charts.lines(
            [Line(curve.label, drawn.margin, getattr(curve, part), style, kind) for curve, style, kind in shown],
            title=f"{words} of {name.name} over the margin of the truth, with cross-entropy's for comparison",
            x_label="margin of the truth" if part == "gradient" else "",
            y_label=words,
            height=180 if part == "loss" else 190,
        )
        for part, words in (("loss", "loss"), ("gradient", "slope"))
    )
    legend = charts.legend((curve.label, style, kind) for curve, style, kind in shown)
    settings = f'<span class="settings">{html.escape(drawn.settings)}</span>' if drawn.settings else ""
    caption = f"<figcaption><code>{html.escape(name.name)}</code>{settings}</figcaption>"
    return f'<figure class="panel" data-search-exclude>{caption}{loss}{slope}{legend}</figure>'


def _styled(drawn: Drawing) -> list[tuple[Curve, str, str]]:
    variants = [(curve, "0", kind) for curve, kind in zip(drawn.variants, ("dotted", "dashed"), strict=False)]
    if len(drawn.curves) == 1:
        default = Curve("defaults" if variants else "the objective", drawn.curves[0].loss, drawn.curves[0].gradient)
        return [*variants, (default, "main", "solid")]
    return [(curve, style, "solid") for curve, style in zip(drawn.curves, ("main", "1"), strict=False)]


# Evidence


def _evidence(entry: Entry) -> str:
    card, seen = entry.card, entry.evidence
    assert card is not None
    rule = (
        f"The rule was fixed before the first run: *supported* if the 95% interval of the improvement over "
        f"{card.seeds} seeds lies above {card.margin:g}, *contradicted* if it lies below zero, else *not seen at this "
        f"scale*. What is measured is {prose(card.metric)}, of which "
        f"{'more' if card.direction == 'higher' else 'less'} is better."
    )
    if seen is None:
        return f"Nothing is recorded yet. `lossary reproduce {card.slug}` runs it.\n\n{rule}"
    parts = [
        f"{_badge(entry)} {_finding(seen)}",
        _differences(seen),
        rule,
        _design(card),
        "### All arms",
        _arms_table(seen),
        _arms_chart(seen),
        _series(seen),
        _notes(seen),
        f"**What this cannot show.** {prose(seen.limits)}",
        "### To run it again",
        f"```bash\n{seen.command}\n```",
        f"It took {wording.duration(seen.seconds)} with {_versions(seen)}, seeds {_seeds(seen)}. The recorded numbers "
        f"are in `evidence/{seen.slug}.json`.",
    ]
    return "\n\n".join(part for part in parts if part)


def _finding(seen: Evidence) -> str:
    return (
        f"**{prose(seen.method)}** over **{prose(seen.baseline)}** in {prose(seen.metric)}: "
        f"**{wording.signed(seen.mean)}**, 95% interval {wording.interval(seen.low, seen.high)}, "
        f"{len(seen.seeds)} seeds; positive is better."
    )


def _differences(seen: Evidence) -> str:
    style = {"supported": "good", "contradicted": "bad"}.get(seen.verdict, "main")
    marks = [(0.0, "zero"), *([(seen.margin, "margin")] if seen.margin else [])]
    chart = charts.intervals(
        [(seen.method, [Dots(seen.differences, seen.mean, seen.low, seen.high, style)])],
        title=f"Improvement of {seen.method} over {seen.baseline} by seed, with its mean and 95% interval",
        x_label=f"improvement over {seen.baseline} in {seen.metric}",
        marks=marks,
    )
    return _figure(chart, "Small dots are seeds, the large one their mean with its 95% interval.")


def _figure(chart: str, caption: str = "") -> str:
    if not chart:
        return ""
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="wide" data-search-exclude>{chart}{words}</figure>'


def _design(card: Paper) -> str:
    module = importlib.import_module(f"lossary.papers.{card.slug}")
    text = sections(inspect.getdoc(module.reproduce) or "", shelf.linker(module.__name__)).get("", "")
    return f"**How it was run.** {text}" if text else ""


def _arms_table(seen: Evidence) -> str:
    metrics = list(dict.fromkeys(metric for arm in seen.arms.values() for metric in arm))
    roles = {seen.baseline: " *(baseline)*", seen.method: " *(method)*"}
    rows = []
    for arm, measured in seen.arms.items():
        name = f"**{prose(arm)}**{roles[arm]}" if arm in roles else prose(arm)
        rows.append([name, *(_mean_and_spread(measured.get(metric)) for metric in metrics)])
    head = ["Arm", *(prose(metric) for metric in metrics)]
    lines = [head, ["---", *["--:"] * len(metrics)], *rows]
    several = len(seen.seeds) > 1
    words = f"Mean ± standard deviation over {len(seen.seeds)} seeds." if several else "One seed."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{words}\n{{ .small }}"


def _mean_and_spread(values: Sequence[float] | None) -> str:
    """As many decimals as the spread has with two digits."""
    if not values or not all(map(math.isfinite, values)):
        return wording.NOTHING
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if not spread:
        return _significant(mean)
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:,.{decimals}f} ±\N{NO-BREAK SPACE}{spread:,.{decimals}f}".replace("-", wording.MINUS)


def _significant(value: float, digits: int = 4) -> str:
    """So many significant digits."""
    return f"{value:.{digits}g}".replace("-", wording.MINUS)


def _arms_chart(seen: Evidence) -> str:
    rows = _arm_rows(seen)
    if len(rows) < 3:
        return ""
    chart = charts.intervals(rows, title=f"{seen.metric} of every arm, by seed and on average", x_label=seen.metric)
    return _figure(chart)


def _arm_rows(seen: Evidence) -> list[tuple[str, list[Dots]]]:
    styles = {seen.baseline: "base", seen.method: "main"}
    return [
        (arm, [Dots(values, statistics.fmean(values), style=styles.get(arm, "other"))])
        for arm, measured in seen.arms.items()
        if (values := measured.get(seen.metric))
    ]


def _series(seen: Evidence) -> str:
    panels, charted = [], []
    for series in seen.series:
        drawn = _series_lines(seen, series)
        caption = f"<figcaption>{html.escape(series.title)}</figcaption>"
        legend = charts.legend((line.name, line.style, line.kind) for line in drawn)
        title = f"{series.title}: {series.y_label}"
        names = _places(series)
        if names:
            rows = [(name, [Dots((), line.y[place], style=line.style) for line in drawn]) for place, name in names]
            chart = charts.intervals(rows, title=title, x_label=series.y_label)
            charted.append(f'<figure class="wide named" data-search-exclude>{caption}{chart}{legend}</figure>')
        elif chart := charts.lines(drawn, title=title, x_label=series.x_label, y_label=series.y_label, height=230):
            panels.append(f'<figure class="panel" data-search-exclude>{caption}{chart}{legend}</figure>')
    if panels:
        charted.append(f'<div class="panels">{"".join(panels)}</div>')
    return "\n\n".join(charted)


def _places(series: Series) -> list[tuple[int, str]]:
    """The names of a series' places where its label lists them (``a | b | c``); none where x is a quantity."""
    names = series.x_label.split(" | ")
    return list(enumerate(names)) if len(names) == len(series.x) > 1 else []


def _series_lines(seen: Evidence, series: Series) -> list[Line]:
    styles = _styles(list(series.y), seen.baseline, seen.method)
    dots = len(series.x) <= 20
    return [Line(name, series.x, values, styles[name], dots=dots) for name, values in series.y.items()]


def _styles(names: Sequence[str], baseline: str, method: str) -> dict[str, str]:
    fixed = {baseline: "base", method: "main"}
    others = iter(range(100))
    return {name: fixed.get(name) or str(next(others) % PALETTE) for name in names}


def _notes(seen: Evidence) -> str:
    if not seen.notes:
        return ""
    return "**What else was seen.**\n\n" + "\n".join(f"- {prose(note)}" for note in seen.notes)


def _versions(seen: Evidence) -> str:
    return shelf.listing(f"{shelf_name} {version}" for shelf_name, version in seen.versions.items())


def _seeds(seen: Evidence) -> str:
    seeds = list(seen.seeds)
    run = seeds == list(range(seeds[0], seeds[0] + len(seeds))) if seeds else False
    return f"{seeds[0]} to {seeds[-1]}" if run and len(seeds) > 2 else shelf.listing(map(str, seeds))


def _sources(card: Paper, names: Sequence[Name]) -> str:
    stated = [(name, name.sections["source"]) for name in names if "source" in name.sections]
    lines = [f"- {_reference(name)}: {_indented(text).strip()}" for name, text in stated]
    checked = (
        f"{card.golden} recorded value{'s' if card.golden != 1 else ''} of the original code, outputs and gradients, "
        f"{'are' if card.golden != 1 else 'is'} run by the tests (`tests/golden/{card.slug}.json`). Where this code "
        f"departs from the original on purpose, the source of the objective says so:"
    )
    return "\n".join([checked, "", *lines]) if lines else checked.removesuffix(", the source of the objective says so:")


def badge(seen: Evidence | None, link: str = "") -> str:
    """A verdict in its colour."""
    verdict = seen.verdict if seen else NOT_RUN
    span = f'<span class="verdict {VERDICTS.get(verdict, "none")}">{verdict}</span>'
    return f'<a class="plain" href="{link}">{span}</a>' if link else span


def _badge(entry: Entry, link: str = "") -> str:
    return badge(entry.evidence, link)


# Lists of papers


def picture(entry: Entry) -> str:
    """A paper in small: its first objective's curve, else the first series of its evidence, else its arms."""
    assert entry.card is not None
    title = f"Picture of {entry.card.title}"
    for name in shelf.provided(entry):
        drawn = drawing(name)
        if drawn is not None:
            shown = [(drawn.baseline, "base", "solid"), *_styled(drawn)]
            cut = [(curve, *_upper(drawn.margin, curve.loss), style, kind) for curve, style, kind in shown]
            return charts.thumbnail(
                [Line(curve.label, x, y, style, kind) for curve, x, y, style, kind in cut], title=title
            )
    if entry.evidence is None:
        return ""
    for series in entry.evidence.series:
        if not _places(series):
            return charts.thumbnail(_series_lines(entry.evidence, series), title=title)
    return charts.bars([dots for _, row in _arm_rows(entry.evidence)[:8] for dots in row], title=title)


def _upper(margin: Sequence[float], loss: Sequence[float]) -> tuple[list[float], list[float]]:
    """From half the way out on the wrong side: what is beyond looks alike for all."""
    reach = 0.6 * max(margin)
    kept = [(x, y) for x, y in zip(margin, loss, strict=True) if abs(x) <= reach or reach < 0.5 * REACH]
    return [x for x, _ in kept], [y for _, y in kept]


def cards(entries: Iterable[Entry], page: str) -> str:
    """Papers as a grid of pictures that lead to their pages."""
    return f'<div class="gallery">{"".join(_card(entry, page) for entry in entries)}</div>'


def _card(entry: Entry, page: str) -> str:
    card = entry.card
    assert card is not None
    to = _link(page, paper_page(entry.slug)).removesuffix(".md") + ".html"
    return (
        f'<a class="card" href="{to}"><span class="picture" data-search-exclude>{picture(entry)}</span>'
        f'<span class="title">{html.escape(card.title)}</span>'
        f'<span class="about">When {html.escape(_without_markup(card.use_when))}</span>'
        f"{_badge(entry)}</a>"
    )


def _without_markup(text: str) -> str:
    return text.replace("`", "").replace("$", "")


def gallery(here: Sequence[Entry]) -> str:
    """A picture per paper."""
    parts = [
        _front(title="Gallery", description="One picture per paper.", hide=["navigation"]),
        "# Gallery",
        "One picture per paper that is here. Where an objective has a curve, it is drawn over cross-entropy's in grey: "
        "loss against the margin of the truth, wrong and sure on the left, right and sure on the right. Otherwise the "
        "picture is from what its small reproduction recorded.",
    ]
    for family in shelf.families():
        shown = [entry for entry in here if entry.family == family.name]
        if shown:
            parts += [f"## {family.title}", cards(shown, "gallery.md")]
    return "\n\n".join(parts) + "\n"


def papers_index() -> str:
    """All papers by family, with what was seen."""
    page = "papers/index.md"
    here = [entry for entry in shelf.papers() if entry.card is not None]
    parts = [
        _front(title="Papers", description="Every paper of the scope, and what was seen when its claim was re-run."),
        "# Papers",
        f"{len(here)} of the {len(shelf.papers())} papers of the scope are here, each with all of its method, the "
        f"recorded values of its original code, and a small reproduction of its claim. The others are listed as what "
        f"is to come.",
        "## What the verdicts mean { #verdicts }",
        "Every claim is re-run small: a few minutes on a processor, baseline and method side by side over seeds, by a "
        "rule that was fixed before the first run.",
        f"- {_verdict('supported')} The 95% interval of the improvement lies above the margin that the rule asks for.\n"
        f"- {_verdict('contradicted')} It lies below zero: here, the method did worse.\n"
        f"- {_verdict('not seen at this scale')} Neither. This says as much about the size of the run as about the "
        f"claim.",
        "A verdict is about the small run, never about the paper: each page says what such a run cannot show.",
    ]
    for family in shelf.families():
        if family.papers:
            parts += [f"## {family.title}", _papers_list(family, page), _to_come(family)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {VERDICTS[verdict]}">{verdict}</span>'


def _papers_list(family: Family, page: str) -> str:
    entries = [
        f"- [{prose(entry.card.title)}]({_link(page, paper_page(entry.slug))}) {entry.card.year}<br>{_badge(entry)}\n\n"
        f"    {prose(entry.card.claim)}"
        for entry in family.here
        if entry.card is not None
    ]
    return '<div class="names short" markdown>\n\n' + "\n\n".join(entries) + "\n\n</div>" if entries else ""


def _to_come(family: Family) -> str:
    if not family.to_come:
        return ""
    lines = [f"- {prose(entry.title)}" for entry in family.to_come]
    return "\n".join([f"Not here yet ({len(family.to_come)}):", "", *lines])


def _short(entry: Entry) -> str:
    """A paper's title up to its colon, for the navigation."""
    assert entry.card is not None
    head = entry.card.title.split(": ")[0]
    return head if len(head) <= 48 else head[:47].rsplit(" ", 1)[0] + " …"


# Families


def families_index() -> str:
    """All families with what they hold."""
    page = "families/index.md"
    parts = [
        _front(title="Families", description="Objectives by what a person trains."),
        "# Families",
        "A family is a package of objectives for one thing that a person trains: "
        "`from lossary.classification import FocalLoss`. Not sure which objective you need? "
        "[Choose](../choose.md) begins with what is special about your data.",
        "| Family | What it is | Objectives | Papers here | Papers to come |\n|---|---|--:|--:|--:|",
    ]
    rows = []
    for family in shelf.families():
        objectives = sum(entry.family == family.name for entry in shelf.registered().values())
        about = (
            _cell(sections(family.docstring.split("\n\n")[0], shelf.linker("lossary")).get("", "")) or "not here yet"
        )
        rows.append(
            f"| [{family.title}]({_link(page, family_page(family.name))}) | {about} | {objectives or '–'} "
            f"| {len(family.here) or '–'} | {len(family.to_come) or '–'} |"
        )
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


def family_text(family: Family) -> str:
    """The page of a family."""
    page = family_page(family.name)
    about = sections(family.docstring, shelf.linker(f"lossary.{family.name}")).get("", "")
    parts = [
        _front(title=family.title, description=f"Objectives of lossary.{family.name}."),
        f"# {family.title}",
        about,
    ]
    if not family.ideas:
        parts.append(f"Nothing of this family is here yet. Its papers, {len(family.papers)} in all, are in the scope:")
    else:
        parts.append(f"Import from `lossary.{family.name}`; every name leads to its full description in the reference.")
    for idea in family.ideas:
        parts += [f"## {idea.title}", sections(idea.docstring, shelf.linker(f"lossary.{idea.room}")).get("", "")]
        shown = [name for name in idea.names if not _is_second(name, idea.names)]
        parts.append('<div class="names" markdown>\n\n' + "\n".join(_name_entry(name) for name in shown) + "\n\n</div>")
        panels = [panel for name in shown[:2] if (panel := curve_panel(name))]
        if panels:
            parts.append(f'<div class="panels">{"".join(panels)}</div>')
    if family.here:
        parts += ["## Papers", cards(family.here, page)]
    parts.append(("## Papers to come\n\n" if family.ideas else "") + _to_come(family) if family.to_come else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _name_entry(name: Name) -> str:
    text = name.sections.get("", "").split("\n\n")
    when = " ".join(" ".join(text[1:2]).split())
    papers = shelf.listing(
        f"[{prose(entry.card.title.split(': ')[0])}]({_link(family_page(name.room), paper_page(entry.slug))})"
        for entry in shelf.papers_of(name)
        if entry.card is not None
    )
    lines = [f"- {_both(name)}", "", f"    {name.summary}"]
    lines += ["", f"    {when}"] if when else []
    lines += ["", f"    Paper: {papers}\n    {{ .small }}"] if papers else []
    return "\n".join([*lines, ""])


# Reference


def reference_index() -> str:
    """All public names by package and idea."""
    page = "reference/index.md"
    parts = [
        _front(title="Reference", description="Every public name of Lossary."),
        "# Reference",
        "Every public name, by the package that it is imported from and the idea that it belongs to. Names in lower "
        "case are pure functions on tensors, those with capitals modules that remember hyperparameters; both take the "
        "same words in the same order.",
        "## lossary",
        _names_list(shelf.top()),
    ]
    for room, ideas in _rooms().items():
        parts.append(f"## lossary.{room}")
        for idea in ideas:
            parts += [
                f"### [{idea.title}]({_link(page, idea.page)}) {{ #{room}-{idea.stem} }}",
                _names_list(idea.names),
            ]
    return "\n\n".join(parts) + "\n"


def reference_top() -> str:
    """What ``lossary`` itself offers."""
    parts = [
        _front(title="lossary", description="What import lossary offers."),
        "# lossary",
        sections(inspect.getdoc(importlib.import_module("lossary")) or "", shelf.linker("lossary")).get("", ""),
        *(_described(name) for name in shelf.top()),
    ]
    return "\n\n".join(parts) + "\n"


def reference(idea: Idea) -> str:
    """The page of an idea: the full description of its names."""
    about = sections(idea.docstring, shelf.linker(f"lossary.{idea.room}")).get("", "")
    parts = [
        _front(title=idea.title, description=f"Reference of lossary.{idea.room}: {idea.title}."),
        f"# {idea.title}",
        about,
        f"Import from `lossary.{idea.room}`.",
        *(_described(name) for name in idea.names),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _described(name: Name) -> str:
    members = "\n".join(f"        - {member}" for member in name.members) or "        []"
    options = f"    options:\n      members:\n{members}" if name.members else "    options:\n      members: []"
    return f"::: {name.place}\n{options}"


def _rooms() -> dict[str, tuple[Idea, ...]]:
    """Ideas by package: the families that are here, then the other rooms."""
    rooms = {family.name: family.ideas for family in shelf.families() if family.ideas}
    return rooms | {room: shelf.ideas_of(room) for room in shelf.ROOMS if room not in rooms}


def _all_ideas() -> list[Idea]:
    return [idea for ideas in _rooms().values() for idea in ideas]


# Evidence in pages that people write


def seen(slugs: Sequence[str], page: str) -> str:
    """What is recorded of some papers, as a box; those that are not here are named as to come."""
    by_slug = {entry.slug: entry for entry in shelf.papers()}
    unknown = [slug for slug in slugs if slug not in by_slug]
    if unknown:
        raise ValueError(f"{page} asks for the evidence of {', '.join(unknown)}: no paper of the scope has that name.")
    lines, coming = [], []
    for entry in (by_slug[slug] for slug in slugs):
        if entry.card is None:
            coming.append(f"*{prose(entry.title)}*")
            continue
        words = _finding(entry.evidence) if entry.evidence else prose(entry.card.claim)
        title = prose(entry.card.title.split(": ")[0])
        forms = [shelf.module_form(name) or name for name in shelf.provided(entry)]
        names = list(dict.fromkeys(_reference(name) for name in forms))
        brings = ", ".join(names[:NAMES_IN_BOX]) + (" ..." if len(names) > NAMES_IN_BOX else "")
        lines.append(f"- [{title}]({_link(page, paper_page(entry.slug))}) {_badge(entry)}<br>{words}<br>{brings}")
    if coming:
        lines.append(f"- To come: {shelf.listing(coming)}.")
    if len(lines) == bool(coming):
        return '!!! coming "Not measured here yet"\n\n' + _indented("\n".join(lines), first=True)
    return '!!! seen "Seen here"\n\n' + _indented("\n".join(lines), first=True)


def value(slug: str, arm: str, metric: str) -> str:
    """The recorded mean of an arm of a reproduction, to three digits."""
    seen = next((entry.evidence for entry in shelf.papers() if entry.slug == slug), None)
    measured = seen.arms.get(arm, {}).get(metric) if seen is not None else None
    if not measured:
        raise ValueError(f"Nothing is recorded of {metric!r} for the arm {arm!r} of {slug!r}.")
    return _significant(statistics.fmean(measured), 3)


def state() -> str:
    """How much is here, in a sentence."""
    here = sum(entry.card is not None for entry in shelf.papers())
    return (
        f"{here} of {len(shelf.papers())} papers and {len(shelf.registered())} objectives are here so far; "
        f"the others are [listed as what is to come](papers/index.md)."
    )


def _indented(text: str, *, first: bool = True) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in text.split("\n"))


def _cell(text: str) -> str:
    """Text in a cell of a table: one line, its bars escaped outside formulas' and code's own."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _link(page: str, to: str) -> str:
    return posixpath.relpath(to, posixpath.dirname(page) or ".")
