"""Which training objective suits a table: ``lossary compare`` and :func:`compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lossary.compare.progress import Progress
    from lossary.compare.results import Comparison
    from lossary.compare.study import Study

__all__ = ["compare", "compare_levels"]


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


def compare_levels(
    X: Any,
    y: Any,
    *,
    label_noise: Sequence[float] = (),
    imbalance: Sequence[float] = (),
    groups: Any = None,
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto",
    merge_rare: int | None = None,
    folds: int = 5,
    objectives: str | Sequence[str] = "auto",
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Study:
    """Compare at each level of a handicap: ``lossary compare --label-noise`` or ``--imbalance`` for arrays and frames.

    Args:
        X: Features (n, f): a data frame, or an array of numbers.
        y: Target (n,), or (n, L) of 0 and 1 for several labels.
        label_noise: Shares of training and validation labels to make wrong, such as (0.0, 0.1, 0.2, 0.4).
        imbalance: Training rows of the most frequent class for one of the rarest, such as (1, 10, 50).
        groups: Group of each row (n,).
        task: ``auto`` detects it from the target.
        merge_rare: Classes with fewer rows than this are merged into one.
        folds: Outer folds.
        objectives: ``auto``, or names of candidates or ``package.module:callable``.
        out: Folder for the reports; None writes nothing.
        fresh: Start over in that folder.
        progress: Is told what happens.
        options: Further words of :func:`compare`.

    Returns:
        The study; ``study.sentence`` is the answer, ``study.levels`` holds a comparison each.

    Raises:
        UserError: Not exactly one of the two handicaps is given, or as :func:`compare`.
    """
    from lossary.compare.load import table_from_arrays
    from lossary.compare.options import Options
    from lossary.compare.study import run_study
    from lossary.core.errors import UserError

    if bool(label_noise) == bool(imbalance):
        raise UserError("compare_levels wants levels of label_noise or of imbalance; one of them.")
    table = table_from_arrays(X, y, groups=groups, task=task, merge_rare=merge_rare, folds=folds)
    asked = Options(
        target=table.target_names,
        task=task,
        objectives=(objectives,) if isinstance(objectives, str) else tuple(objectives),
        folds=folds,
        groups=None if groups is None else "groups",
        merge_rare=merge_rare,
        **options,
    )
    return run_study(
        table,
        asked,
        "label_noise" if label_noise else "imbalance",
        label_noise or imbalance,
        out=None if out is None else Path(out),
        fresh=fresh,
        progress=progress,
    )
