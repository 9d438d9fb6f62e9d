"""Cards are complete and true, evidence follows its rule, and every reproduction runs in its quick form."""

import dataclasses
import importlib
import json
import math
import os
from pathlib import Path

import pytest

import lossary
from lossary import papers
from lossary.core.errors import UserError
from lossary.papers._evidence import Evidence, judge

ROOT = Path(__file__).parents[2]
SLUGS = [entry.slug for entry in papers.catalogue() if entry.card]


def test_the_scope_is_listed() -> None:
    catalogue = papers.catalogue()
    assert len(catalogue) == 119
    assert {"focal_loss", "poly_loss", "squentropy", "active_passive", "asymmetric_loss", "ldam"} <= set(SLUGS)
    assert all(entry.title and entry.family for entry in catalogue)


@pytest.mark.parametrize("slug", SLUGS)
def test_card(slug: str) -> None:
    card = papers.card(slug)
    assert card.slug == slug
    for place in card.places:
        module, _, name = place.rpartition(".")
        assert name in importlib.import_module(module).__all__, f"{module} does not export {name}"
    golden = json.loads((ROOT / "tests" / "golden" / f"{slug}.json").read_text())
    assert card.golden == len(golden["cases"])
    for field in dataclasses.fields(card):
        assert getattr(card, field.name) not in ("", ()), f"{field.name} is empty"


def test_every_objective_belongs_to_a_paper() -> None:
    provided = {place.removeprefix("lossary.") for slug in SLUGS for place in papers.card(slug).places}
    assert {f"{found.family}.{name}" for name, found in lossary.objectives().items()} <= provided


@pytest.mark.parametrize("slug", SLUGS)
def test_recorded_evidence_follows_the_card(slug: str) -> None:
    evidence = papers.evidence(slug)
    assert evidence is not None, f"run: lossary reproduce {slug} --out evidence"
    card = papers.card(slug)
    assert not evidence.quick
    assert len(evidence.seeds) == card.seeds
    assert evidence.claim == card.claim
    verdict, differences, mean, low, high = judge(card, evidence.arms)
    assert (evidence.verdict, evidence.margin) == (verdict, card.margin)
    assert evidence.differences == pytest.approx(differences)
    assert (evidence.mean, evidence.low, evidence.high) == pytest.approx((mean, low, high))


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("slug", SLUGS)
def test_quick_form_runs(slug: str, seeds: int, tmp_path: Path) -> None:
    steps = []
    try:
        evidence = papers.reproduce(
            slug, quick=True, seeds=seeds, progress=lambda done, total, what: steps.append((done, total))
        )
    except UserError as missing:  # published data or weights that are neither here nor to be had
        if os.environ.get("LOSSARY_DATA") and "encoder" not in str(missing):
            raise
        pytest.skip(str(missing))
    assert steps[-1][0] == steps[-1][1] > 0
    assert evidence.verdict == "not judged (quick form)"
    assert math.isfinite(evidence.mean)
    card = papers.card(slug)
    assert all(len(evidence.arms[arm][card.metric]) == seeds for arm in (card.baseline, card.method))
    record, figure = evidence.write(tmp_path)
    assert Evidence.from_json(record.read_text()) == Evidence.from_json(evidence.to_json())
    assert "Plotly.newPlot" in figure.read_text()


def test_quick_form_is_reproducible() -> None:
    first, second = (papers.reproduce("ldam", quick=True, seeds=1) for _ in range(2))
    assert first.arms == second.arms


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_full_form_agrees_with_the_evidence(slug: str) -> None:
    recorded = papers.evidence(slug)
    assert recorded is not None
    try:
        again = papers.reproduce(slug)
    except (UserError, ImportError) as missing:  # data, or a library that reads them
        pytest.skip(f"{slug} could not run in full: {missing}")
    assert again.verdict == recorded.verdict
    assert recorded.low <= again.mean <= recorded.high


@pytest.mark.parametrize(
    ("baseline", "method", "verdict"),
    [
        ([0.5, 0.51, 0.52], [0.6, 0.61, 0.63], "supported"),
        ([0.5, 0.51, 0.52], [0.53, 0.54, 0.55], "not seen at this scale"),  # below the margin
        ([0.5, 0.51, 0.52], [0.4, 0.41, 0.43], "contradicted"),
        ([0.5, 0.6, 0.4], [0.6, 0.5, 0.5], "not seen at this scale"),
        ([0.5], [0.9], "not seen at this scale"),  # one seed shows nothing
    ],
)
def test_rule(baseline: list[float], method: list[float], verdict: str) -> None:
    card = dataclasses.replace(papers.card("poly_loss"), margin=0.05)
    arms = {card.baseline: {card.metric: baseline}, card.method: {card.metric: method}}
    assert judge(card, arms)[0] == verdict
    mirrored = dataclasses.replace(card, direction="lower")
    arms = {card.baseline: {card.metric: [-x for x in baseline]}, card.method: {card.metric: [-x for x in method]}}
    assert judge(mirrored, arms)[0] == verdict


def test_unknown_and_future_papers() -> None:
    with pytest.raises(UserError, match="Did you mean focal_loss"):
        papers.card("focal_los")
    with pytest.raises(UserError, match="not here yet"):
        papers.card(next(entry.slug for entry in papers.catalogue() if entry.card is None))
    with pytest.raises(UserError, match="--seeds is 0"):
        papers.reproduce("ldam", seeds=0)
