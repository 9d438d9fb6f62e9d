"""What an objective asks of a row as its margin moves, computed from its code.

Only where one number says where a row stands: two classes with logits ``[-m/2, m/2]`` (as the report of compare draws
them), or a yes/no label with logit ``m``. Everything else has no such curve.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lossary.core.objective import Registered

REACH, COSINE_REACH = 8.0, 2.0
"""Largest margin drawn; the second for objectives so steep that they are made for cosines."""
STEEP = 5.0
POINTS = 65
PLUMBING = {"input", "target", "weight", "ignore_index", "sample_weight", "reduction", "normalizer", "label_smoothing"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss and its derivative over the margin of the truth, all ``(POINTS,)``."""

    label: str
    loss: tuple[float, ...]
    gradient: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The curves of an objective.

    Attributes:
        margin: Logit for the truth minus the logit against it.
        curves: The objective at its defaults: one curve, or two where classes or yes and no differ.
        variants: The objective with its first shape-giving number halved and doubled.
        baseline: Cross-entropy.
        settings: Defaults in words.
    """

    margin: tuple[float, ...]
    curves: tuple[Curve, ...]
    variants: tuple[Curve, ...]
    baseline: Curve
    settings: str


def draw(entry: Registered) -> Drawing | None:
    """The curves of an objective, or None where it has none of this kind."""
    sweep = _SWEEPS.get(entry.kind.name)
    if sweep is None or "reduction" not in entry.parameters:
        return None
    try:
        return _draw(entry, sweep)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None  # it wants more than logits and labels of two classes


def _draw(entry: Registered, sweep: _Sweep) -> Drawing | None:
    given = entry.example(2)
    reach = REACH
    if _steepness(entry, sweep, given) > STEEP:
        reach = COSINE_REACH
    margin = torch.linspace(-reach, reach, POINTS)
    both = [_curve(entry, sweep, given, margin, truth) for truth in (0, 1)]
    if any(curve is None for curve in both):
        return None
    first, second = (curve for curve in both if curve is not None)
    if _alike(first, second):
        curves: tuple[Curve, ...] = (dataclasses.replace(first, label="any row"),)
        variants = _variants(entry, sweep, given, margin, first)
    else:
        curves, variants = (second, first), ()
    loss = torch.nn.functional.softplus(-margin)
    baseline = Curve("cross-entropy", _numbers(loss), _numbers(-torch.sigmoid(-margin)))
    return Drawing(_numbers(margin), curves, variants, baseline, _in_words(entry, given))


def _curve(
    entry: Registered, sweep: _Sweep, given: Mapping[str, Any], margin: Tensor, truth: int, label: str = ""
) -> Curve | None:
    margin = margin.clone().requires_grad_()
    loss = _rows(entry, sweep, given, margin, truth)
    if loss.shape != margin.shape:
        return None
    alone = _rows(entry, sweep, given, margin[3:4], truth)
    if not torch.allclose(alone, loss[3:4], atol=1e-4, rtol=1e-3):
        return None  # a row's loss depends on the rows around it
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    if not (loss.isfinite().all() and gradient.isfinite().all()):
        return None
    return Curve(label or sweep.names[truth], _numbers(loss.detach()), _numbers(gradient))


def _rows(entry: Registered, sweep: _Sweep, given: Mapping[str, Any], margin: Tensor, truth: int) -> Tensor:
    value = entry.function(*sweep.inputs(margin, truth), reduction="none", **given)
    value = value[0] if entry.stateful else value
    return value.squeeze(-1) if isinstance(value, Tensor) and value.ndim == 2 else value


def _steepness(entry: Registered, sweep: _Sweep, given: Mapping[str, Any]) -> float:
    curves = [_curve(entry, sweep, given, torch.linspace(-REACH, REACH, 9), truth) for truth in (0, 1)]
    return max((max(map(abs, curve.gradient)) for curve in curves if curve is not None), default=0.0)


def _variants(
    entry: Registered, sweep: _Sweep, given: Mapping[str, Any], margin: Tensor, default: Curve
) -> tuple[Curve, ...]:
    """Half and twice the first number that changes the curve's shape and not just its height."""
    for name, value in _numbers_of(entry).items():
        found = []
        for factor in (0.5, 2.0):
            changed = value * factor if value else factor
            try:
                curve = _curve(entry, sweep, {**given, name: changed}, margin, 0, f"{name} = {changed:g}")
            except ValueError:  # out of its range
                continue
            if curve is not None and not _proportional(curve, default):
                found.append(curve)
        if found:
            return tuple(found)
    return ()


def _numbers_of(entry: Registered) -> dict[str, float]:
    signature = inspect.signature(entry.function)
    return {
        name: float(parameter.default)
        for name, parameter in signature.parameters.items()
        if name not in PLUMBING and isinstance(parameter.default, float)
    }


def _in_words(entry: Registered, given: Mapping[str, Any]) -> str:
    values = {**given, **{name: value for name, value in _numbers_of(entry).items() if name not in given}}
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _alike(one: Curve, other: Curve) -> bool:
    pairs = [*zip(one.loss, other.loss, strict=True), *zip(one.gradient, other.gradient, strict=True)]
    return all(abs(a - b) < 1e-3 * (1 + abs(a)) for a, b in pairs)


def _proportional(one: Curve, other: Curve) -> bool:
    a, b = torch.tensor(one.gradient), torch.tensor(other.gradient)
    return bool((a @ b) > 0.9995 * a.norm() * b.norm())


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().tolist())


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """How the margins of rows become the inputs of a kind of objective; ``names`` are those of truth 0 and 1."""

    inputs: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    names: tuple[str, str]


def _classes(margin: Tensor, truth: int) -> tuple[Tensor, Tensor]:
    pair = torch.stack([margin / 2, -margin / 2], 1)
    return (pair.flip(1) if truth else pair), torch.full(margin.shape, truth)


def _labels(margin: Tensor, truth: int) -> tuple[Tensor, Tensor]:
    return (margin if truth else -margin)[:, None], torch.full((len(margin), 1), float(truth))


_SWEEPS = {
    "CLASSES": _Sweep(_classes, ("class 0", "class 1")),
    "LABELS": _Sweep(_labels, ("a no", "a yes")),
}
"""By the name of the kind: a kind that is not here has no curve of one margin."""
