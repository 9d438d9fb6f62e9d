"""Which training objective suits a table: ``lossary compare`` and :func:`compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lossary.compare.progress import Progress
    from lossary.compare.results import Comparison

__all__ = ["compare"]


def compare(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto",
    objectives: str | Sequence[str] = "auto",
    metric: str = "log_loss",
    model: str = "mlp",
    folds: int = 5,
    repeats: int = 2,
    trials: int = 16,
    budget: float | None = None,
    memory: int = 4 * 10**9,
    device: str = "auto",
    calibrate: str = "temperature",
    min_effect: float = 0.01,
    merge_rare: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Train the candidates fairly on your data and judge them: ``lossary compare`` for arrays and data frames.

    Args:
        X: Features (n, f): a data frame, or an array of numbers.
        y: Target (n,), or (n, L) of 0 and 1 for several labels.
        groups: Group of each row (n,); rows of a group stay on one side of every split.
        task: ``auto`` detects it from the target.
        objectives: ``auto``, or names of candidates or ``package.module:callable``.
        metric: Primary metric: early stopping, the choice among trials and the verdicts use it.
        model: ``linear``, ``mlp``, ``resnet`` or ``package.module:function``.
        folds: Outer folds.
        repeats: Repeats of the outer cross-validation.
        trials: Settings tried per candidate and outer split.
        budget: Seconds for all of it; None sets no limit.
        memory: Bytes that training may hold.
        device: ``auto``, ``cpu`` or ``cuda``.
        calibrate: ``temperature``, ``vector``, ``isotonic`` or ``none``.
        min_effect: Smallest relative gain worth a recommendation.
        merge_rare: Classes with fewer rows than this are merged into one.
        seed: Seed of everything that is drawn.
        out: Folder for the report, ``results.parquet`` and ``best/``; None writes nothing.
        fresh: Start over in that folder.
        progress: Is told what happens.

    Returns:
        The comparison; ``comparison.judgement.sentence`` is the answer.

    Raises:
        UserError: Something about the data, the options or the folder; it says what and how to mend it.
    """
    from lossary.compare.load import table_from_arrays
    from lossary.compare.options import Options
    from lossary.compare.run import compare_table

    table = table_from_arrays(X, y, groups=groups, task=task, merge_rare=merge_rare, folds=folds)
    options = Options(
        target=table.target_names,
        task=task,
        objectives=(objectives,) if isinstance(objectives, str) else tuple(objectives),
        metric=metric,
        model=model,
        folds=folds,
        repeats=repeats,
        trials=trials,
        budget=budget,
        memory=memory,
        device=device,
        groups=None if groups is None else "groups",
        calibrate=calibrate,
        min_effect=min_effect,
        merge_rare=merge_rare,
        seed=seed,
    )
    return compare_table(table, options, out=None if out is None else Path(out), fresh=fresh, progress=progress)
