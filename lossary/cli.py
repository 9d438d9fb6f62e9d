"""The command line: parses, calls, prints."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from lossary.core.errors import UserError

try:
    import typer
    from rich.console import Console
except ImportError as error:  # pragma: no cover - only without the extra
    raise SystemExit(f"{error}.\nThe command line needs its tools: pip install 'lossary[compare]'") from error

app = typer.Typer(
    help="Training objectives: compare them on your data, use them, and see what their papers' claims are worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()


def main() -> None:
    """Run the command line; mistakes of the user end in one or two lines and exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # how Typer ends on Ctrl-C
            print("\nStopped. What was finished is kept: the same command goes on from there.", file=sys.stderr)
        raise


@app.command()
def compare(
    data: Annotated[str, typer.Argument(help="CSV, TSV, JSONL, Parquet or Feather file, or a bundled name.")],
    target: Annotated[
        str | None,
        typer.Option(help="Target column; several, with commas, for a multi-label task. Bundled data know theirs."),
    ] = None,
    objectives: Annotated[
        str, typer.Option(help="'auto', or names with commas; your own as package.module:callable.")
    ] = "auto",
    metric: Annotated[
        str,
        typer.Option(help="log_loss, brier, accuracy, balanced_accuracy, f1, auroc or average_precision."),
    ] = "log_loss",
    model: Annotated[str, typer.Option(help="linear, mlp, resnet or package.module:function.")] = "mlp",
    task: Annotated[str, typer.Option(help="auto, binary, multiclass or multilabel.")] = "auto",
    folds: Annotated[int, typer.Option(help="Outer folds.")] = 5,
    repeats: Annotated[int, typer.Option(help="Repeats of the outer cross-validation.")] = 2,
    trials: Annotated[int, typer.Option(help="Settings tried per candidate and split.")] = 16,
    budget: Annotated[
        str | None, typer.Option(help="Time for the whole command, such as 10m; no limit if left out.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for training, such as 4GB.")] = "4GB",
    device: Annotated[str, typer.Option(help="auto (CUDA when there is one), cpu or cuda.")] = "auto",
    groups: Annotated[str | None, typer.Option(help="Column whose rows stay on one side of every split.")] = None,
    calibrate: Annotated[str, typer.Option(help="temperature, vector, isotonic or none.")] = "temperature",
    min_effect: Annotated[str, typer.Option(help="Smallest relative gain worth a recommendation.")] = "1%",
    merge_rare: Annotated[int | None, typer.Option(help="Merge classes with fewer rows than this into one.")] = None,
    label_noise: Annotated[
        str | None,
        typer.Option(help="A study: percentages of training labels to make wrong, such as 0,10,20,40."),
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="A study: ratios of the most frequent to the rarest class in training, such as 1,10,50."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder; lossary-compare-NAME if left out.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in the output folder.")] = False,
) -> None:
    """Train the candidates fairly on your data and say, with statistics and pictures, which objective suits it."""
    started = time.monotonic()
    from lossary.compare.load import load_table
    from lossary.compare.options import Options
    from lossary.compare.run import compare_table
    from lossary.compare.study import run_study
    from lossary.compare.table import TerminalProgress, print_study, print_summary

    if label_noise is not None and imbalance is not None:
        raise UserError("--label-noise and --imbalance are two studies; ask for one at a time.")
    options = Options(
        target=tuple(name.strip() for name in target.split(",")) if target else (),
        task=task,  # type: ignore[arg-type]
        objectives=tuple(name.strip() for name in objectives.split(",")),
        metric=metric,
        model=model,
        folds=folds,
        repeats=repeats,
        trials=trials,
        budget=None if budget is None else parse_seconds(budget),
        memory=parse_bytes(memory),
        device=device,
        groups=groups,
        calibrate=calibrate,
        min_effect=parse_share(min_effect),
        merge_rare=merge_rare,
        seed=seed,
    )
    table = load_table(
        data, options.target, task=options.task, groups=options.groups, merge_rare=merge_rare, folds=folds
    )
    folder = out or Path(f"lossary-compare-{table.name}")
    if label_noise is not None or imbalance is not None:
        folder = out or Path(f"lossary-compare-{table.name}-{'imbalance' if label_noise is None else 'label-noise'}")
        with TerminalProgress(console) as progress:
            study = run_study(
                table,
                options,
                "imbalance" if label_noise is None else "label_noise",
                parse_levels(imbalance, "--imbalance", "1,10,50")
                if label_noise is None
                else [level / 100 for level in parse_levels(label_noise, "--label-noise", "0,10,20,40")],
                out=folder,
                fresh=fresh,
                progress=progress,
                started=started,
            )
        print_study(study, console, report=folder / "report.html")
        return
    with TerminalProgress(console) as progress:
        comparison = compare_table(table, options, out=folder, fresh=fresh, progress=progress, started=started)
    print_summary(comparison, console, report=folder / "report.html")


@app.command()
def predict(
    best: Annotated[Path, typer.Argument(help="The folder best/ of a comparison.")],
    data: Annotated[Path, typer.Argument(help="File with the columns that the model was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the predictions go (CSV).")],
    model: Annotated[str | None, typer.Option(help="The --model of the comparison, if it was your own code.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
) -> None:
    """Predict with the model that a comparison left in best/."""
    from lossary.compare.artifact import load_best, predict_file

    for note in predict_file(load_best(best, model=model), data, out, force=force):
        console.print(note, highlight=False)


@app.command()
def calibrate(
    best: Annotated[Path, typer.Argument(help="The folder best/ of a comparison.")],
    labelled: Annotated[Path, typer.Argument(help="File with the columns and the target.")],
    model: Annotated[str | None, typer.Option(help="The --model of the comparison, if it was your own code.")] = None,
) -> None:
    """Refit the calibrator of best/ on labelled rows."""
    from lossary.compare.artifact import calibrate_file, load_best

    for note in calibrate_file(load_best(best, model=model), labelled):
        console.print(note, highlight=False)


@app.command()
def datasets() -> None:
    """List the data sets that load by name."""
    from rich.table import Table

    from lossary import datasets as sets

    listing = Table(box=None, header_style="bold")
    listing.add_column("name", no_wrap=True)
    for heading in ("what", "rows", "kind", "from"):
        listing.add_column(heading)
    for name in sets.names():
        entry = sets.describe(name)
        listing.add_row(name, entry.description, f"{entry.rows:,}", entry.kind, entry.origin)
    console.print(listing)


@app.command()
def papers(slug: Annotated[str | None, typer.Argument(help="A paper; all if left out.")] = None) -> None:
    """List the papers with their state, or show one card."""
    from lossary import papers as shelf

    if slug is None:
        console.print(_catalogue_table(shelf.catalogue()))
        return
    _print_card(shelf.card(slug), shelf.evidence(slug))


@app.command()
def reproduce(
    slug: Annotated[str, typer.Argument(help="A paper, as `lossary papers` lists them.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the card's if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short form that proves that everything runs.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the evidence and its figure.")] = Path("reproductions"),
) -> None:
    """Re-run a paper's claim, small and honestly: baseline and method side by side."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from lossary import papers as shelf

    columns = (TextColumn("{task.description:32}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(slug, total=None)
        evidence = shelf.reproduce(
            slug,
            seeds=seeds,
            quick=quick,
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
        )
    _print_evidence(evidence)
    record, figure = evidence.write(out)
    console.print(f"\nEvidence: {record}\nFigure:   {figure}", highlight=False)


def parse_seconds(text: str) -> float:
    """Seconds of a duration such as 90s, 10m, 1.5h or 600."""
    return _parse(
        text, r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}, "--budget", "10m"
    )


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 4GB, 500MB or 2GiB."""
    units = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30, "m": 10**6, "g": 10**9}
    return int(_parse(text, r"(\d+(?:\.\d+)?)\s*(mi?b|gi?b|m|g)", units, "--memory", "4GB"))


def parse_levels(text: str | None, option: str, example: str) -> list[float]:
    """Numbers with commas between, such as 0,10,20,40; a percent sign behind each is taken too."""
    parts = [part.strip() for part in (text or "").replace("%", "").split(",")]
    if not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        raise UserError(f"{option} is {text!r}; wanted numbers with commas between, such as {example}.")
    return [float(part) for part in parts]


def parse_share(text: str) -> float:
    """A share such as 1% or 0.01."""
    return _parse(text, r"(\d+(?:\.\d+)?)\s*(%|)", {"%": 0.01, "": 1.0}, "--min-effect", "1%")


def _parse(text: str, pattern: str, units: dict[str, Any], option: str, example: str) -> float:
    found = re.fullmatch(pattern, text.strip().lower())
    if not found:
        raise UserError(f"{option} is {text!r}; wanted something like {example}.")
    return float(found[1]) * float(units[found[2]])


def _catalogue_table(entries: list[Any]) -> Any:
    from rich.table import Table

    listing = Table("paper", "family", "objectives", "recorded values", "claim", box=None, header_style="bold")
    for entry in entries:
        if entry.card is None:
            listing.add_row(f"[dim]{entry.slug}[/]", f"[dim]{entry.family}[/]", "[dim]not here yet[/]", "", "")
        else:
            verdict = entry.evidence.verdict if entry.evidence else "not run yet"
            card = entry.card
            listing.add_row(card.slug, card.family, f"{len(card.provides)} names", f"{card.golden}", _coloured(verdict))
    return listing


def _print_card(card: Any, evidence: Any) -> None:
    console.print(f"[bold]{_escape(card.title)}[/]\n{_escape(card.authors)}, {card.year}, arXiv {card.arxiv}\n")
    console.print(f"[bold]Claim[/]        {_escape(card.claim)}")
    console.print(f"[bold]Reach for it[/] when {_escape(card.use_when)}")
    console.print(f"[bold]Not[/]          when {_escape(card.avoid_when)}")
    console.print(f"[bold]Formula[/]      {_escape(card.formula)}\n", highlight=False)
    console.print(_escape(card.call), highlight=False)
    console.print()
    rooms: dict[str, list[str]] = {}
    for place in card.places:
        room, _, name = place.rpartition(".")
        rooms.setdefault(room, []).append(name)
    for room, names in rooms.items():
        console.print(f"[bold]Names[/] in {room}: {', '.join(names)}", highlight=False)
    console.print(f"[bold]Recorded values[/] of the original code run by the tests: {card.golden}\n", highlight=False)
    if evidence is None:
        console.print(f"No evidence recorded yet: lossary reproduce {card.slug}")
    else:
        _print_evidence(evidence)


def _print_evidence(evidence: Any) -> None:
    from rich.table import Table

    metrics = list(dict.fromkeys(metric for arm in evidence.arms.values() for metric in arm))
    listing = Table(box=None, header_style="bold")
    for heading in ("", *metrics):
        listing.add_column(heading, overflow="fold", min_width=7)
    for arm, measured in evidence.arms.items():
        cells = [f"{_mean(measured[metric]):.4g}" if metric in measured else "" for metric in metrics]
        listing.add_row(arm, *cells)
    console.print(listing)
    console.print(
        f"\n{evidence.method} over {evidence.baseline}, {evidence.metric}: {evidence.mean:+.4f} "
        f"(95% interval {evidence.low:+.4f} to {evidence.high:+.4f} over {len(evidence.seeds)} seeds; "
        f"margin {evidence.margin:g})",
        highlight=False,
    )
    console.print(f"[bold]{_coloured(evidence.verdict)}[/]: {_escape(evidence.claim)}", highlight=False)
    for note in evidence.notes:
        console.print(f"- {_escape(note)}", highlight=False)
    console.print(f"What this cannot show: {_escape(evidence.limits)}", highlight=False)
    console.print(f"[dim]{evidence.command}, {evidence.seconds:g} s[/]", highlight=False)


def _mean(values: Any) -> float:
    return float(sum(values) / len(values))


def _coloured(verdict: str) -> str:
    colour = {"supported": "green", "contradicted": "red"}.get(verdict, "yellow")
    return f"[{colour}]{verdict}[/]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
