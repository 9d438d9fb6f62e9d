"""The contract: one battery over every public objective.

An objective is exported, registered, documented, and behaves: finite at extreme logits, true in half precision, smooth
where it should be, the same under compile, grad and vmap, exact about masks, weights and reductions, plain about bad
input. Exemptions are declared on the objective with their reason and printed at the end of the run.
"""

import copy
import importlib
import inspect
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import lossary
from lossary.core.objective import Kind, Objective, Registered
from tests.kinds import CLASSES, KINDS, ROWS

OBJECTIVES = lossary.objectives()
NO_OBJECTIVES = {
    "linear_number_level_loss": "of runs of tokens, of which a row holds any number",
    "normalize_loss": "makes an objective of one",
    "number_level_loss": "of runs of tokens, of which a row holds any number",
    "unconstrained_feature_loss": "of a whole model, its weights and features, not of predictions and targets",
    "weighted_quantile_loss": "scores forecasts",
    "z_loss": "of a statistic of rows, not of their logits",
}
TRACED_BACKWARD = {
    *{found.kind: name for name, found in OBJECTIVES.items()}.values(),
    *(name for name, found in OBJECTIVES.items() if found.stateful),
}
"""One objective of each kind, and those with a state. Tracing the backward pass takes as long again."""
SECTIONS = ["Formula:", "Args:", "Shape:", "Returns:", "Raises:", "Example:", "Source:"]


@pytest.fixture(params=list(OBJECTIVES))
def spec(request: pytest.FixtureRequest) -> Registered:
    found = OBJECTIVES[request.param]
    check = request.node.originalname.removeprefix("test_")
    if check in found.exempt:
        pytest.xfail(f"exempt: {found.exempt[check]}")
    return found


# --- the register ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", lossary.FAMILIES)
def test_everything_exported_is_registered(family: str) -> None:
    module = importlib.import_module(f"lossary.{family}")
    functions = {name for name in module.__all__ if name.endswith("_loss")} - set(NO_OBJECTIVES)
    assert functions <= set(OBJECTIVES), "exported, but without @objective"
    modules = {name for name in module.__all__ if inspect.isclass(getattr(module, name))}
    modules = {name for name in modules if issubclass(getattr(module, name), Objective)}
    known = {found.module.__name__ for found in OBJECTIVES.values() if found.module}
    assert modules <= known, "an Objective whose function is not registered"


def test_every_kind_has_its_data() -> None:
    assert set(KINDS) == set(Kind), "add its Inputs to tests/kinds.py"


def test_public(spec: Registered) -> None:
    family = importlib.import_module(f"lossary.{spec.family}")
    assert getattr(family, spec.name) is spec.function
    assert spec.module is not None, "no module form"
    assert getattr(family, spec.module.__name__) is spec.module


def test_exemptions_are_known_and_written_down() -> None:
    decisions = (Path(__file__).parent.parent / "docs" / "decisions.md").read_text()
    for name, found in OBJECTIVES.items():
        for check in found.exempt:
            assert f"test_{check}" in globals(), f"{name} is exempt from {check}, which is no check"
            assert f"- `{name}`, {check}: " in decisions, "not listed in docs/decisions.md"


def test_words(spec: Registered) -> None:
    wanted = set(arguments(spec, *sample(spec)))
    if "sample_weight_repeats_rows" not in spec.exempt:
        wanted.add("sample_weight")
    if not spec.batch_level:
        wanted |= {"reduction", "normalizer"}
    if spec.kind in (Kind.CLASSES, Kind.TEACHER, Kind.HEAD):
        wanted |= {"weight", "ignore_index"}
    if spec.kind is Kind.HEAD:
        wanted |= {"linear_weight", "linear_bias"}
    assert wanted <= set(spec.parameters)


def test_docstring(spec: Registered) -> None:
    text = inspect.getdoc(spec.function) or ""
    places = [text.find(section) for section in SECTIONS]
    assert -1 not in places, f"missing: {[s for s, p in zip(SECTIONS, places, strict=True) if p < 0]}"
    assert places == sorted(places), "sections out of order"
    for parameter in spec.parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not explained"
    assert spec.name in (inspect.getdoc(spec.module) or ""), "the module does not name its function"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_finite_and_exact_at_extreme_logits(spec: Registered, scale: float) -> None:
    input, target = sample(spec, scale=scale)
    exact = evaluate(spec, input, target, reduction="none")
    input = input.float().requires_grad_()
    value = evaluate(spec, input, target, reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), input)
    assert not value.isnan().any()
    assert spec.unbounded or value.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)


def test_infinite_logits(spec: Registered) -> None:
    found = KINDS[spec.kind].infinite(*sample(spec))
    if found is None:
        return
    input, target, options = found
    input.requires_grad_()
    value = evaluate(spec, input, target, reduction="none", **options)
    assert by_row(value)[1:].isfinite().all()
    assert not value.isnan().any()
    (gradient,) = torch.autograd.grad(value.sum(), input)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(spec: Registered, dtype: torch.dtype) -> None:
    input, target = sample(spec, scale=3.0)
    input = input.to(dtype)
    half = evaluate(spec, input, target, reduction="none")
    exact = evaluate(spec, input.double(), target, reduction="none")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=1e-4)


def test_gradcheck(spec: Registered) -> None:
    input, target = sample(spec)
    assert torch.autograd.gradcheck(lambda z: evaluate(spec, z, target, reduction="none"), input.requires_grad_())


def test_nan_stays_visible(spec: Registered) -> None:
    input, target = sample(spec)
    input[0] = math.nan
    value = evaluate(spec, input, target, reduction="none")
    assert by_row(value)[0].isnan().all()
    assert by_row(value)[1:].isfinite().all()
    assert evaluate(spec, input, target).isnan()


# --- transformations ------------------------------------------------------------------------------------------------


def test_compile(spec: Registered) -> None:
    """In one graph, with its value and gradient; ``test_inductor`` does the rest of compiling for every objective."""
    input, target = sample(spec)
    input.requires_grad_()
    backend = "aot_eager" if spec.name in TRACED_BACKWARD else "eager"
    torch._dynamo.reset()
    value = torch.compile(lambda z, t: evaluate(spec, z, t), fullgraph=True, backend=backend)(input, target)
    eager = evaluate(spec, input, target)
    torch.testing.assert_close(value, eager)
    torch.testing.assert_close(*(torch.autograd.grad(loss, input)[0] for loss in (value, eager)))


@pytest.mark.slow
def test_inductor(spec: Registered) -> None:
    input, target = sample(spec)
    input = input.float().requires_grad_()
    torch._dynamo.reset()
    value = torch.compile(lambda z, t: evaluate(spec, z, t), fullgraph=True)(input, target)
    eager = evaluate(spec, input, target)
    torch.testing.assert_close(value, eager, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(loss, input)[0] for loss in (value, eager)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_grad_and_vmap_over_data(spec: Registered) -> None:
    batches = [sample(spec, seed=seed) for seed in range(3)]
    inputs, targets = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
    gradient = torch.func.grad(lambda z, t: evaluate(spec, z, t))
    together = torch.func.vmap(gradient)(inputs, targets)
    alone = torch.stack([gradient(z, t) for z, t in batches])
    torch.testing.assert_close(together, alone)
    keep = spec.batch_level or not KINDS[spec.kind].single_rows
    row = lambda z, t: evaluate(spec, z[None], t[None]) if keep else evaluate(spec, z, t)  # noqa: E731
    rows = torch.func.vmap(row)(inputs[0], targets[0])  # one row at a time
    alone = torch.stack([row(z, t) for z, t in zip(inputs[0], targets[0], strict=True)])
    torch.testing.assert_close(rows, alone, equal_nan=spec.batch_level)  # one row may be too few for a batch


def test_vmap_over_hyperparameters(spec: Registered) -> None:
    input, target = sample(spec)
    for name, default in continuous(spec).items():
        values = torch.stack([default, 0.5 * default, default]) if default.any() else torch.tensor([0.0, 0.1, 0.0])
        call = lambda value, name=name: evaluate(spec, input, target, **{name: value})  # noqa: E731
        together = torch.func.vmap(call)(values.double())
        alone = torch.stack([call(value) for value in values.double()])
        torch.testing.assert_close(together, alone, msg=lambda text, name=name: f"{name}: {text}")
        if default.ndim == 0:
            plain = evaluate(spec, input, target, **{name: float(values[1])})
            torch.testing.assert_close(together[1], plain, msg=lambda text, name=name: f"{name}: {text}")


def test_autocast(spec: Registered) -> None:
    input, target = sample(spec)
    with torch.autocast("cpu", torch.bfloat16):
        value = evaluate(spec, input.float(), target)
    torch.testing.assert_close(value, evaluate(spec, KINDS[spec.kind].under_autocast(input.float()), target))


def test_non_contiguous_and_untouched(spec: Registered) -> None:
    input, target = sample(spec)
    strided = torch.stack([input, input], -1)[..., 0]
    assert not strided.is_contiguous()
    before = strided.clone(), target.clone()
    torch.testing.assert_close(evaluate(spec, strided, target), evaluate(spec, input, target))
    assert torch.equal(strided, before[0])
    assert torch.equal(target, before[1])


# --- masks, weights and reductions ------------------------------------------------------------------------------------


def test_reductions(spec: Registered) -> None:
    if spec.batch_level:
        return
    for input, target in shapes(spec):
        rows = evaluate(spec, input, target, reduction="none")
        torch.testing.assert_close(evaluate(spec, input, target, reduction="sum"), rows.sum())
        torch.testing.assert_close(evaluate(spec, input, target), rows.mean())
        torch.testing.assert_close(evaluate(spec, input, target, normalizer=7.0), rows.sum() / 7)
        torch.testing.assert_close(evaluate(spec, input, target, reduction="sum", normalizer=7), rows.sum() / 7)
        torch.testing.assert_close(evaluate(spec, input, target, normalizer=torch.tensor(7.0)), rows.sum() / 7)


def test_sample_weight_repeats_rows(spec: Registered) -> None:
    input, target = sample(spec)
    times = torch.tensor([2, 0, 1, 3, 1, 1])
    repeated = evaluate(spec, input.repeat_interleave(times, 0), target.repeat_interleave(times, 0))
    torch.testing.assert_close(evaluate(spec, input, target, sample_weight=times.double()), repeated)


def test_class_weight_and_ignored_rows(spec: Registered) -> None:
    kind = KINDS[spec.kind]
    if not (kind.indexed and kind.single_rows):
        return
    weight, word = torch.linspace(0.2, 2.0, CLASSES, dtype=torch.float64), class_weight(spec)
    if not word:
        weight = torch.ones_like(weight)
    by_class = {word: weight} if word else {}
    smooth = {"label_smoothing": 0.0} if "label_smoothing" in spec.parameters else {}  # some smooth by default
    for input, target in shapes(spec):
        rows = evaluate(spec, input, target, reduction="none", **smooth)
        weighted = evaluate(spec, input, target, reduction="none", **by_class, **smooth)
        if kind.row_weight:
            torch.testing.assert_close(weighted, weight[target] * rows)
        mean = evaluate(spec, input, target, **by_class, **smooth)
        torch.testing.assert_close(mean, weighted.sum() / weight[target].sum())
        ignored = torch.zeros(target.shape, dtype=torch.bool)
        ignored.view(-1)[::2] = True
        for label in (-100, 3):
            masked = torch.where(ignored, label, torch.where(target == 3, 2, target))
            poisoned = torch.where(ignored.unsqueeze(kind.axis), math.nan, input).requires_grad_()
            value = evaluate(spec, poisoned, masked, ignore_index=label, reduction="none")
            assert (value[ignored] == 0).all()
            assert value.isfinite().all()
            mean = evaluate(spec, poisoned, masked, ignore_index=label, **by_class)
            (gradient,) = torch.autograd.grad(mean, poisoned)
            assert (gradient.movedim(kind.axis, -1)[ignored] == 0).all()
            assert gradient.isfinite().all()
            kept = ~ignored
            expected = evaluate(spec, input.movedim(kind.axis, -1)[kept], masked[kept], **by_class)
            torch.testing.assert_close(mean, expected)


def test_ignored_places(spec: Registered) -> None:
    """Pixels or tokens that are ignored might as well not be there; a row without any other does not count."""
    kind = KINDS[spec.kind]
    if not kind.indexed or kind.single_rows:
        return
    input, target = sample(spec)
    place = 1 if kind.axis == -1 else -1  # where the axis of pixels or tokens is
    kept = input.narrow(place, 1, input.shape[place] - 1)
    expected = evaluate(spec, kept, target[:, 1:], reduction="none")
    for label in (-100, 7):
        masked, poisoned = target.clone(), input.clone()
        masked[:, 0], poisoned.select(place, 0)[:] = label, math.nan
        poisoned.requires_grad_()
        value = evaluate(spec, poisoned, masked, ignore_index=label, reduction="none")
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value.sum(), poisoned)
        assert (gradient.select(place, 0) == 0).all()
        assert gradient.isfinite().all()
        masked[0] = label
        torch.testing.assert_close(evaluate(spec, poisoned, masked, ignore_index=label), expected[1:].mean())


def test_empty_and_all_ignored(spec: Registered) -> None:
    input, target = sample(spec)
    if spec.batch_level:
        return
    empty = input[:0].requires_grad_()
    nothing = torch.tensor(0.0 if spec.nothing_is_zero else math.nan, dtype=input.dtype)
    torch.testing.assert_close(evaluate(spec, empty, target[:0]), nothing, equal_nan=True)
    assert evaluate(spec, empty, target[:0], reduction="sum") == 0
    assert evaluate(spec, empty, target[:0], reduction="none").shape[0] == 0
    zero = evaluate(spec, empty, target[:0], normalizer=3)
    assert zero == 0
    zero.backward()
    if KINDS[spec.kind].indexed:
        ignored = torch.full_like(target, -100)
        torch.testing.assert_close(evaluate(spec, input, ignored), nothing, equal_nan=True)
        zero = evaluate(spec, input.requires_grad_(), ignored, normalizer=3)
        assert zero == 0
        zero.backward()
        assert (input.grad == 0).all()


def test_accumulation_and_ranks_equal_one_batch(spec: Registered) -> None:
    """Shards with the global normalizer, in an accumulation loop or on two ranks, add up to the whole."""
    if spec.batch_level:
        return
    input, target = sample(spec)
    kind, word = KINDS[spec.kind], class_weight(spec)
    options: dict[str, Any] = {}
    count = torch.tensor(float(evaluate(spec, input, target, reduction="none").numel()))
    if kind.indexed:
        target[1] = -100
        count = torch.tensor(ROWS - 1.0)
        if word and kind.single_rows:  # elsewhere they weigh the classes of an image
            options[word] = torch.linspace(0.2, 2.0, CLASSES, dtype=torch.float64)
            count = options[word][target[target != -100]].sum()
    whole = input.clone().requires_grad_()
    evaluate(spec, whole, target, **options).backward()
    parts = input.clone().requires_grad_()
    for rows in (slice(0, 2), slice(2, 6)):
        evaluate(spec, parts[rows], target[rows], normalizer=count, **options).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input(spec: Registered) -> None:
    input, target = sample(spec)
    kind, given = KINDS[spec.kind], arguments(spec, input, target)
    first, *others = given
    if not spec.batch_level:
        with pytest.raises(ValueError, match=r"reduction is 'average'; wanted 'none', 'mean' or 'sum'"):
            evaluate(spec, input, target, reduction="average")
        with pytest.raises(ValueError, match="normalizer"):
            evaluate(spec, input, target, normalizer=0)
    with pytest.raises(ValueError, match=rf"({'|'.join(others or [first])}) has shape .*; wanted"):
        evaluate(spec, input if others else input[:-1], target[:-1])
    if "sample_weight" in spec.parameters:
        with pytest.raises(ValueError, match=r"sample_weight has shape .*; wanted"):
            evaluate(spec, input, target, sample_weight=torch.ones(ROWS + 1))
    with pytest.raises(TypeError, match=rf"{first} has dtype torch.int64; wanted floating point"):
        evaluate(spec, input.long(), target)
    for name in others:
        if isinstance(given[name], Tensor):
            with pytest.raises(TypeError, match=name.rpartition("_")[2]):
                spec.function(**{**given, **spec.example(CLASSES), name: given[name].tolist()})
    if kind.indexed:
        with pytest.raises(
            ValueError, match=rf"target contains {CLASSES}; wanted class indices from 0 to {CLASSES - 1}"
        ):
            evaluate(spec, input, target.index_fill(0, torch.tensor([0]), CLASSES))
        if word := class_weight(spec):
            with pytest.raises(ValueError, match=rf"{word} has shape .*; wanted \(5,\)"):
                evaluate(spec, input, target, **{word: torch.ones(CLASSES + 1)})
    if kind.unit_interval:
        with pytest.raises(ValueError, match=rf"{kind.unit_interval} contains 2; wanted values in \[0, 1\]"):
            evaluate(spec, input, torch.full_like(target, 2))


def test_unseen_bad_label_is_nan(spec: Registered) -> None:
    """Where checks of values stand aside, a bad label gives NaN or an error, never a plausible number."""
    if not KINDS[spec.kind].indexed:
        return
    input, target = sample(spec)
    for label in (CLASSES, -5):
        bad = target.index_fill(0, torch.tensor([0]), label)
        rows = torch.func.vmap(lambda z, t: evaluate(spec, z, t, reduction="none"))(input[None], bad[None])[0]
        assert rows[0].isnan()
        assert rows[1:].isfinite().all()


# --- modules --------------------------------------------------------------------------------------------------------


def test_module(spec: Registered) -> None:
    assert spec.module is not None
    input, target = sample(spec)
    module = build(spec).double().eval()  # in training the state would move from call to call
    given = called_with(spec, module, input, target)
    value = module(**given)
    torch.testing.assert_close(value, evaluate(spec, input, target, **module.hyperparameters()))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin(**given), value)
    fresh = build(spec).double().eval()
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(**given), value)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    torch.testing.assert_close(torch.func.functional_call(module, state, (), given), value)
    assert set(module.hyperparameters()) <= set(spec.parameters)
    assert spec.module.__name__ in repr(module)
    options: dict[str, Any] = {} if spec.batch_level else {"normalizer": 2.0}
    if "sample_weight" in spec.parameters:
        options["sample_weight"] = torch.arange(1.0, ROWS + 1)
    torch.testing.assert_close(
        module(**given, **options), evaluate(spec, input, target, **options, **module.hyperparameters())
    )


def test_state(spec: Registered) -> None:
    """A state is a pure result: batched by vmap, carried in buffers, saved and restored, frozen in evaluation."""
    if not spec.stateful:
        return
    input, target = sample(spec)
    module = build(spec)
    before = copy.deepcopy(module.state_dict())
    given = called_with(spec, module, input, target)
    module.eval()(**given)
    torch.testing.assert_close(module.state_dict(), before, equal_nan=True)
    module.train()(**given)
    moved = module.state_dict()
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    restored = build(spec)
    restored.load_state_dict(moved)
    torch.testing.assert_close(restored(**given), module(**given))
    inputs = torch.stack([input, 2 * input])
    call = lambda z: spec.function(**arguments(spec, z, target), **spec.example(CLASSES))  # noqa: E731
    together = torch.func.vmap(call)(inputs)
    for member in range(2):
        of_member = tree_map(lambda part, member=member: part[member], together)
        torch.testing.assert_close(tree_leaves(of_member), tree_leaves(call(inputs[member])))


# --- helpers --------------------------------------------------------------------------------------------------------


def sample(spec: Registered, *, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    return KINDS[spec.kind].sample(scale, torch.Generator().manual_seed(seed))


def shapes(spec: Registered) -> list[tuple[Tensor, Tensor]]:
    return KINDS[spec.kind].shapes(*sample(spec))


def evaluate(spec: Registered, input: Tensor, target: Tensor, **options: Any) -> Tensor:
    required = {
        name: value.to(input.dtype) if isinstance(value, Tensor) and input.is_floating_point() else value
        for name, value in spec.example(CLASSES).items()
    }
    if spec.batch_level and options.get("reduction") == "none":
        options = {name: value for name, value in options.items() if name != "reduction"}
    result = spec.function(**{**arguments(spec, input, target), **required, **options})
    return result[0] if spec.stateful else result


def arguments(spec: Registered, input: Tensor, target: Tensor) -> dict[str, Any]:
    """The objective's data by name."""
    return KINDS[spec.kind].arguments(spec.arguments(input, target))


def called_with(spec: Registered, module: Objective, input: Tensor, target: Tensor) -> dict[str, Any]:
    """What the module is called with: the function's arguments without those that it remembers itself."""
    known = module.hyperparameters()
    return {name: value for name, value in arguments(spec, input, target).items() if name not in known}


def class_weight(spec: Registered) -> str | None:
    """What the objective calls the weights of classes, if it has any."""
    word = KINDS[spec.kind].class_weight
    if "class_weight" in spec.parameters:  # where "weight" is another's name
        word = "class_weight"
    return word if word in spec.parameters else None


def by_row(value: Tensor) -> Tensor:
    """A loss by row; one value for the whole batch is a single row."""
    return value.reshape(-1, *value.shape[1:])


def continuous(spec: Registered) -> dict[str, Tensor]:
    """The continuous hyperparameters with their defaults: what may be a 0-d tensor or batched by vmap."""
    found: dict[str, Tensor] = {}
    needed = spec.example(CLASSES)
    for name, parameter in inspect.signature(spec.function).parameters.items():
        known = parameter.default is not parameter.empty and name not in ("normalizer", *needed)
        if parameter.annotation in ("Tensor | float", "Tensor | float | None") and known:
            found[name] = torch.tensor(0.5 if parameter.default is None else float(parameter.default))
    for name, value in needed.items():
        if not isinstance(value, str | int):  # names, switches and counts stay Python's
            found[name] = torch.as_tensor(value)
    return found


def build(spec: Registered) -> Objective:
    """The module with arguments that it cannot do without."""
    assert spec.module is not None
    needed = inspect.signature(spec.module).parameters
    sizes = {
        "class_counts": [100, 50, 20, 10, 5],
        "embedding_dim": CLASSES,
        "num_classes": CLASSES,
        "num_features": CLASSES,
        "num_samples": ROWS,  # keeps a state for each of them
        "warmup_epochs": 0,
    }
    known: Callable[..., Objective] = spec.module
    return known(**{name: value for name, value in {**sizes, **spec.example(CLASSES)}.items() if name in needed})
