from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.compare import metrics, train
from lossary.compare.candidates import Candidate, Dimension, get_candidate
from lossary.compare.models import ResNet, build_model, predict_output
from lossary.compare.train import Fit, Fold, Member, Training, train_stack, vmap_refuses
from lossary.core.errors import UserError
from lossary.core.seeding import derive, generator

TRAINING = Training(
    task="multiclass",
    num_outputs=3,
    model="mlp",
    metric="log_loss",
    calibrate="temperature",
    batch_size=16,
    max_epochs=12,
    patience=3,
    seed=7,
    dtype="float64",
)
CROSS_ENTROPY = get_candidate("cross_entropy", "multiclass")
DEFERRED = get_candidate("deferred_weighted_cross_entropy", "multiclass")
LDAM_DRW = get_candidate("ldam_drw", "multiclass")
LINKED = get_candidate("legendretron", "multiclass")


def item_weighted(output: Tensor, target: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy by way of a Python number, which vmap refuses."""
    loss = F.cross_entropy(output, target)
    return loss * (2.0 if loss.item() > 0 else 1.0)


def mixing(
    settings: Mapping[str, float], target: np.ndarray, batches: int, size: int, numbers: np.random.Generator
) -> dict[str, np.ndarray]:
    return {
        "share": numbers.beta(settings["alpha"], settings["alpha"], batches),
        "partner": np.stack([numbers.permutation(size) for _ in range(batches)]),
    }


def mixed_loss(output: Tensor, target: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    share = parts["share"]
    other = target.gather(0, parts["partner"])
    return share * F.cross_entropy(output, target) + (1 - share) * F.cross_entropy(output, other)


def pairs(
    settings: Mapping[str, float], target: np.ndarray, batches: int, size: int, numbers: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rows two by two, of one class each pair."""
    by_class = [np.flatnonzero(target == label) for label in np.unique(target)]
    chosen = [numbers.choice(by_class[numbers.integers(len(by_class))], 2) for _ in range(batches * size // 2)]
    return {"row": np.concatenate(chosen).reshape(batches, -1)}


def by_loss(output: Tensor, target: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows with a large loss count less, from the third epoch on."""
    loss = F.cross_entropy(output, target, reduction="none")
    return {"trust": torch.where(parts["epoch"] < 2, torch.ones_like(loss), torch.exp(-parts["doubt"] * loss))}


def remembering(
    output: Tensor, target: Tensor, parts: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each row is weighted by its own mean loss so far; a count goes along."""
    loss = F.cross_entropy(output, target, reduction="none")
    seen = state["mean"].gather(0, parts["row"])
    moved = 0.9 * seen + 0.1 * loss.detach()
    return (loss * (1 + seen)).mean(), {
        "mean": state["mean"].scatter(0, parts["row"], moved),
        "steps": state["steps"] + 1,
    }


MIXUP = Candidate(
    "mixup",
    "",
    "",
    mixed_loss,
    space=(Dimension("alpha", 0.2, 5.0),),
    draws=mixing,
    inputs=lambda x, parts: parts["share"] * x + (1 - parts["share"]) * x[parts["partner"]],
)
PAIRS = Candidate(
    "pairs",
    "",
    "",
    lambda output, target, parts: F.cross_entropy(output.unflatten(0, (-1, 2)).sum(1), target[::2]),
    draws=pairs,
)
TRUST = Candidate(
    "trust",
    "",
    "",
    lambda output, target, parts: (parts["trust"] * F.cross_entropy(output, target, reduction="none")).mean(),
    space=(Dimension("doubt", 0.1, 2.0),),
    rows=by_loss,
)
REMEMBERING = Candidate(
    "remembering",
    "",
    "",
    remembering,
    state=lambda rows, parts: {"mean": parts["start"].expand(rows), "steps": torch.zeros((), dtype=torch.int64)},
    space=(Dimension("start", 0.0, 1.0),),
)


@pytest.fixture
def user_models(tmp_path, monkeypatch):
    """A module of user's models, importable as ``users_models``."""
    (tmp_path / "users_models.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def normed(in_features, out_features):
                hidden = nn.Sequential(nn.Linear(in_features, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
                return nn.Sequential(hidden, nn.Linear(8, out_features))

            def dropping(in_features, out_features):
                return nn.Sequential(nn.Linear(in_features, 8), nn.Dropout(0.5), nn.Linear(8, out_features))

            class Branching(nn.Module):
                def __init__(self, in_features, out_features):
                    super().__init__()
                    self.first, self.unused = nn.Linear(in_features, out_features), nn.Linear(2, 2)

                def forward(self, x):
                    output = self.first(x)
                    return output if output.sum().item() > 1e9 else 2 * output

            def too_wide(in_features, out_features):
                return nn.Linear(in_features, out_features + 1)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("candidate", [DEFERRED, LDAM_DRW], ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("model", ["linear", "mlp", "resnet"])
def test_each_member_equals_a_plain_adamw_loop(model, candidate):
    training = dataclasses.replace(TRAINING, model=model)
    folds = make_folds()
    members = make_members(candidate, folds)
    fits = train_stack(candidate, folds, members, training, keep_weights=True)
    assert len({fit.epochs for fit in fits}) > 1, "wanted members that stop at different epochs"
    for fit, member in zip(fits, members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, training), 1e-9)


@pytest.mark.parametrize("candidate", [MIXUP, PAIRS, TRUST, REMEMBERING], ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("loop", [False, True])
def test_declared_parts_equal_a_plain_loop(candidate, loop, monkeypatch):
    assert vmap_refuses(candidate, TRAINING) is None
    if loop:
        monkeypatch.setattr(train, "vmap_refuses", lambda *args, **kwargs: "forced")
    training = dataclasses.replace(TRAINING, max_epochs=6, patience=2)
    folds = make_folds()
    members = make_members(candidate, folds)
    fits = train_stack(candidate, folds, members, training, keep_weights=True)
    assert len({fit.epochs for fit in fits}) > 1, "wanted members that stop at different epochs"
    for fit, member in zip(fits, members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, training), 1e-9)


@pytest.mark.parametrize("name", ["mixup", "regmixup", "oko", "bootstrapping", "aldr_kl"])
def test_methods_that_need_more_than_a_loss_equal_a_plain_loop(name):
    candidate = get_candidate(name, "multiclass")
    folds = make_folds()
    members = make_members(candidate, folds)
    if name == "bootstrapping":  # its first epochs are cross-entropy's
        members = [dataclasses.replace(m, settings={**m.settings, "start_epoch": 2.0}) for m in members]
    for fit, member in zip(train_stack(candidate, folds, members, TRAINING), members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, TRAINING), 1e-9)


@pytest.mark.parametrize(
    ("model", "loop"), [("linear", False), ("linear", True), ("resnet", False), ("users_models:normed", False)]
)
def test_a_learned_link_equals_a_plain_loop(model, loop, user_models, monkeypatch):
    training = dataclasses.replace(TRAINING, model=model, max_epochs=6, patience=1)
    assert vmap_refuses(LINKED, training) is None
    if loop:
        monkeypatch.setattr(train, "vmap_refuses", lambda *args, **kwargs: "forced")
    folds = make_folds()
    members = make_members(LINKED, folds)
    fits = train_stack(LINKED, folds, members, training, keep_weights=True)
    assert len({fit.epochs for fit in fits}) > 1, "wanted members that stop at different epochs"
    for fit, member in zip(fits, members, strict=True):
        expected = plain_fit(LINKED, folds, member, training)
        assert_same_fit(fit, expected, 1e-9)
        learned = [name for name in expected.weights if name.startswith("link.")]
        assert learned
        np.testing.assert_allclose(np.exp(fit.test_logits).sum(1), 1)


def test_links_are_learned_by_each_member_on_its_own():
    folds = make_folds()
    members = [Member(0, {"learning_rate": rate, "weight_decay": 0.0}) for rate in (0.001, 0.01)]
    fits = train_stack(LINKED, folds, members, dataclasses.replace(TRAINING, max_epochs=2), keep_weights=True)
    first, second = (fit.weights["link.blocks.0.raw_potential"] for fit in fits)
    assert first != second


def test_a_state_of_several_labels_equals_a_plain_loop():
    candidate = get_candidate("adaptive_asymmetric", "multilabel")
    training = dataclasses.replace(TRAINING, task="multilabel", max_epochs=5)
    folds = make_folds(task="multilabel")
    members = make_members(candidate, folds)
    for fit, member in zip(train_stack(candidate, folds, members, training), members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, training), 1e-9)


def test_multilabel_member_equals_a_plain_adamw_loop():
    candidate = get_candidate("weighted_cross_entropy", "multilabel")
    training = dataclasses.replace(TRAINING, task="multilabel", max_epochs=5)
    folds = make_folds(task="multilabel")
    members = make_members(candidate, folds)
    for fit, member in zip(train_stack(candidate, folds, members, training), members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, training), 1e-9)


def test_users_model_with_batch_norm_equals_a_plain_adamw_loop(user_models):
    training = dataclasses.replace(TRAINING, model="users_models:normed")
    folds = make_folds()
    members = make_members(LDAM_DRW, folds)
    assert vmap_refuses(LDAM_DRW, training) is None
    fits = train_stack(LDAM_DRW, folds, members, training, keep_weights=True)
    for fit, member in zip(fits, members, strict=True):
        assert_same_fit(fit, plain_fit(LDAM_DRW, folds, member, training), 1e-9)


@pytest.mark.parametrize("model", ["mlp", "resnet", "users_models:normed", "users_models:Branching"])
def test_what_vmap_refuses_is_trained_by_the_loop_with_the_same_numbers(model, user_models):
    candidate = Candidate("item_weighted", "", "", item_weighted)
    training = dataclasses.replace(TRAINING, model=model, max_epochs=3)
    assert "item" in vmap_refuses(candidate, training)
    folds = make_folds()
    members = make_members(candidate, folds)
    for fit, member in zip(train_stack(candidate, folds, members, training), members, strict=True):
        assert_same_fit(fit, plain_fit(candidate, folds, member, training), 1e-9)


def test_dropout_of_a_users_model_is_the_same_by_vmap_and_by_loop(user_models, monkeypatch):
    training = dataclasses.replace(TRAINING, model="users_models:dropping", max_epochs=3)
    folds = make_folds()
    members = make_members(CROSS_ENTROPY, folds)
    by_vmap = train_stack(CROSS_ENTROPY, folds, members, training)
    monkeypatch.setattr(train, "vmap_refuses", lambda *args, **kwargs: "forced")
    by_loop = train_stack(CROSS_ENTROPY, folds, members, training)
    for one, other in zip(by_vmap, by_loop, strict=True):
        assert_same_fit(one, other, 1e-9)


def test_alone_in_64_and_elsewhere_a_member_is_the_same():
    training = dataclasses.replace(TRAINING, dtype="float32", max_epochs=6)
    folds = make_folds()
    settings = {"learning_rate": 3e-3, "weight_decay": 1e-3, "start_epoch": 2.0}
    others = [
        Member(fold=i % 3, settings={"learning_rate": 1e-3 * (1 + i), "weight_decay": 1e-2, "start_epoch": float(i)})
        for i in range(63)
    ]
    member = Member(fold=1, settings=settings)
    (alone,) = train_stack(DEFERRED, [folds[1]], [dataclasses.replace(member, fold=0)], training)
    first = train_stack(DEFERRED, folds, [member, *others], training)[0]
    last = train_stack(DEFERRED, folds[::-1], [*others[::-1], member], training)[-1]
    for fit in (first, last):
        assert_same_fit(fit, alone, 1e-6)


def test_a_second_run_gives_the_same_bits_and_test_rows_touch_nothing():
    training = dataclasses.replace(TRAINING, model="resnet", dtype="float32", max_epochs=3)
    folds = make_folds()
    members = make_members(LDAM_DRW, folds)
    replaced = [dataclasses.replace(fold, x_test=fold.x_test * -5 + 1) for fold in folds]
    torch.manual_seed(0)
    first = train_stack(LDAM_DRW, folds, members, training, keep_weights=True)
    torch.manual_seed(1)
    second = train_stack(LDAM_DRW, replaced, members, training, keep_weights=True)
    for one, other in zip(first, second, strict=True):
        assert (one.score, one.best_epoch) == (other.score, other.best_epoch)
        assert np.array_equal(one.validation_logits, other.validation_logits)
        assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
        assert not np.array_equal(one.test_logits, other.test_logits)


def test_the_seed_and_the_fold_decide_what_is_drawn():
    folds = make_folds()
    member = make_members(CROSS_ENTROPY, folds)[0]

    def logits(seed: int, key: tuple[int, ...]) -> np.ndarray:
        training = dataclasses.replace(TRAINING, model="resnet", max_epochs=1, seed=seed)
        return train_stack(CROSS_ENTROPY, [dataclasses.replace(folds[0], key=key)], [member], training)[0].test_logits

    assert not np.allclose(logits(0, (0, 0)), logits(1, (0, 0)))
    assert not np.allclose(logits(0, (0, 0)), logits(0, (1, 0)))


def test_a_member_that_diverges_stops_and_leaves_the_others_alone():
    folds = make_folds()
    calm = make_members(CROSS_ENTROPY, folds)
    wild = Member(fold=1, settings={"learning_rate": 1e6, "weight_decay": 0.1})
    training = dataclasses.replace(TRAINING, dtype="float32")
    fits = train_stack(CROSS_ENTROPY, folds, [wild, *calm], training, keep_weights=True)
    assert math.isinf(fits[0].score)
    assert fits[0].best_epoch == 0
    assert fits[0].epochs < training.max_epochs
    assert not fits[0].at_cap
    assert np.isfinite(fits[0].test_logits).all()
    without = train_stack(CROSS_ENTROPY, folds, calm, training, keep_weights=True)
    for fit, expected in zip(fits[1:], without, strict=True):
        assert_same_fit(fit, expected, 1e-6)


def test_a_member_that_diverges_late_keeps_its_best_epoch():
    candidate = Candidate(
        "late_nan",
        "",
        "",
        lambda output, target, parts: F.cross_entropy(output, target) * parts["factor"],
        schedule=lambda epoch, parts: {"factor": torch.where(parts["last"] < epoch, math.nan, 1.0)},
        space=(Dimension("last", 0, 9),),
    )
    folds = make_folds()
    member = Member(fold=0, settings={"learning_rate": 1e-3, "weight_decay": 0.0, "last": 1.0})
    (fit,) = train_stack(candidate, folds, [member], TRAINING)
    assert (fit.best_epoch, fit.epochs, fit.at_cap) == (2, 3, False)
    (expected,) = train_stack(CROSS_ENTROPY, folds, [member], dataclasses.replace(TRAINING, max_epochs=2))
    np.testing.assert_allclose(fit.validation_logits, expected.validation_logits, rtol=0, atol=1e-12)


def test_early_stopping_waits_for_patience_and_the_cap_is_told(monkeypatch):
    folds = make_folds()[:1]
    members = [Member(fold=0, settings={"learning_rate": 1e-3 * (1 + i), "weight_decay": 0.0}) for i in range(3)]
    epochs = 0

    def criterion(metric: str, logits: Tensor, target: Tensor, *, task: str, calibrate: str) -> Tensor:
        nonlocal epochs
        epochs += 1
        scores = [[5.0, 4.0, 3.0], [5.0, 4.0, 3.0], [6.0, 4.0, 2.0], [6.0, 4.0, 1.0], [6.0, 3.0, 1.0]]
        live = [0, 1, 2] if epochs < 4 else [2]
        return torch.tensor([scores[epochs - 1][member] for member in live])

    monkeypatch.setattr(metrics, "stacked_criterion", criterion)
    calls: list[tuple[int, int]] = []
    training = dataclasses.replace(TRAINING, max_epochs=5, patience=2)
    fits = train_stack(
        CROSS_ENTROPY, folds, members, training, on_epoch=lambda epoch, live: calls.append((epoch, live))
    )
    assert [(fit.score, fit.best_epoch, fit.epochs, fit.at_cap) for fit in fits] == [
        (5.0, 1, 3, False),
        (4.0, 1, 3, False),
        (1.0, 4, 5, True),
    ]
    assert calls == [(1, 3), (2, 3), (3, 1), (4, 1), (5, 0)]


def test_batches_are_full_and_equal_in_number_for_all_folds():
    sizes: list[tuple[int, ...]] = []

    def spy(output: Tensor, target: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        sizes.append(tuple(output.shape))
        return F.cross_entropy(output, target)

    folds = make_folds()  # 75 to 90 training rows
    members = make_members(CROSS_ENTROPY, folds)
    candidate = dataclasses.replace(CROSS_ENTROPY, objective=spy)
    for batch_size, steps, rows in ((16, 4, 16), (1000, 1, 75)):
        training = dataclasses.replace(TRAINING, batch_size=batch_size, max_epochs=2, patience=2)
        sizes.clear()
        train_stack(candidate, folds, members, training)
        probe, *real = sizes
        assert probe != real[0]
        assert real == [(rows, 3)] * (2 * steps)


def test_kept_weights_predict_the_same_at_the_folds_own_width(user_models):
    for model in ("mlp", "resnet", "users_models:normed"):
        for candidate in (CROSS_ENTROPY, LDAM_DRW, LINKED):
            training = dataclasses.replace(TRAINING, model=model, dtype="float32", max_epochs=2)
            folds = make_folds()
            members = make_members(candidate, folds)
            fits = train_stack(candidate, folds, members, training, keep_weights=True)
            for fit, member in zip(fits, members, strict=True):
                x = folds[member.fold].x_test
                output = predict_output(model, candidate.head, fit.weights, x, out_features=3, link=candidate.link)
                if candidate.logits is not None:
                    output = member.settings["scale"] * output
                np.testing.assert_allclose(output, fit.test_logits, rtol=1e-4, atol=1e-5)


def test_no_test_rows_and_no_weights_by_default():
    fold = dataclasses.replace(make_folds()[0], x_test=np.zeros((0, 5), np.float32))
    member = make_members(CROSS_ENTROPY, [fold])[0]
    (fit,) = train_stack(CROSS_ENTROPY, [fold], [member], dataclasses.replace(TRAINING, max_epochs=1))
    assert fit.test_logits.shape == (0, 3)
    assert fit.weights is None
    assert fit.seconds > 0


def test_bundled_candidates_go_by_vmap():
    from lossary.compare.candidates import names

    for task in ("binary", "multiclass", "multilabel"):
        training = dataclasses.replace(TRAINING, task=task, num_outputs=2 if task == "binary" else 3)
        for name in names(task):
            assert vmap_refuses(get_candidate(name, task), training) is None, name


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda output, target, parts: F.cross_entropy(output, target, reduction="none"), "without dimensions"),
        (lambda output, target, parts: F.cross_entropy(output, target[:, None]), "made-up rows"),
        (lambda output, target, parts: float(output.detach().sum()), "made-up rows"),
    ],
)
def test_objectives_that_fail_everywhere_are_the_users_mistake(objective, message):
    with pytest.raises(UserError, match=message):
        vmap_refuses(Candidate("own:objective", "", "", objective), TRAINING)


def test_models_of_the_wrong_width_are_the_users_mistake(user_models):
    with pytest.raises(UserError, match=r"returned shape \(6, 4\)"):
        vmap_refuses(CROSS_ENTROPY, dataclasses.replace(TRAINING, model="users_models:too_wide"))


def make_folds(task: str = "multiclass") -> list[Fold]:
    """Three folds of unequal rows and columns, three classes or labels of which one is rare."""
    folds = []
    for inner, (n, n_val, f) in enumerate([(90, 31, 5), (75, 26, 7), (80, 40, 6)]):
        draw = np.random.default_rng(inner)
        x = draw.standard_normal((n + n_val + 20, f), dtype=np.float32)
        scores = x[:, :3] + np.array([0.5, 0.0, -1.0]) + 0.8 * draw.standard_normal((len(x), 3))
        y = (scores > 0).astype(np.float32) if task == "multilabel" else scores.argmax(1)
        folds.append(Fold((4, inner), x[:n], y[:n], x[n : n + n_val], y[n : n + n_val], x[n + n_val :]))
    return folds


def make_members(candidate: Candidate, folds: list[Fold]) -> list[Member]:
    """Members in no order of folds, whose learning rates make some stop early and some reach the cap."""
    return [
        Member(
            fold=(2 * i) % len(folds),
            settings={"learning_rate": rate, "weight_decay": 10.0**-i}
            | {d.name: d.low + (d.high - d.low) * i / 10 for d in candidate.space},
        )
        for i, rate in enumerate([0.03, 0.001, 0.01, 0.003, 0.1])
    ]


def plain_fit(candidate: Candidate, folds: list[Fold], member: Member, training: Training) -> Fit:
    """What the trainer promises, as one would write it for one model."""
    fold = folds[member.fold]
    size = min(training.batch_size, *(len(other.y_train) for other in folds))
    batches = min(len(other.y_train) for other in folds) // size
    x_train, x_val, x_test = (torch.tensor(x, dtype=torch.float64) for x in (fold.x_train, fold.x_val, fold.x_test))
    y_train, y_val = (
        torch.tensor(y, dtype=torch.float64 if training.task == "multilabel" else None)
        for y in (fold.y_train, fold.y_val)
    )
    torch.manual_seed(derive(training.seed, "init", *fold.key))
    model = build_model(training.model, x_train.shape[1], training.num_outputs, candidate.head, candidate.link).double()
    if candidate.link is not None:
        with torch.no_grad():  # its scales are set by all rows, dropout off
            model.link.train()(model.model.eval()(x_train))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=member.settings["learning_rate"], weight_decay=member.settings["weight_decay"]
    )
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in member.settings.items()}
    if candidate.statistics is not None:
        parts |= candidate.statistics(y_train, training.num_outputs)

    def logits(x: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad():
            output = model(x)
            return output if candidate.logits is None else candidate.logits(output, parts)

    state = () if candidate.state is None else candidate.state(max(len(other.y_train) for other in folds), parts)
    score, best_epoch, best = math.inf, 0, None
    for epoch in range(training.max_epochs):
        of_epoch = parts | (candidate.schedule(epoch, parts) if candidate.schedule else {})
        order = torch.randperm(len(x_train), generator=generator(training.seed, "batches", *fold.key, epoch))
        drawn = {}
        if candidate.draws is not None:
            numbers = np.random.default_rng(derive(training.seed, "draws", *fold.key, epoch))
            drawn = candidate.draws(member.settings, fold.y_train, batches, size, numbers)
        if candidate.rows is not None:
            with torch.no_grad():
                of_rows = candidate.rows(model(x_train), y_train, of_epoch | {"epoch": torch.tensor(epoch)})
        model.train()
        for batch in range(batches):
            rows = order[batch * size : (batch + 1) * size]
            if "row" in drawn:
                rows = torch.tensor(drawn["row"][batch])
            now = of_epoch | {"row": rows} | {name: torch.tensor(values[batch]) for name, values in drawn.items()}
            if candidate.rows is not None:
                now |= {name: values[rows] for name, values in of_rows.items()}
            inputs = (x_train[rows],) if candidate.inputs is None else (candidate.inputs(x_train[rows], now),)
            if training.model == "resnet":
                draw = generator(training.seed, "dropout", *fold.key, epoch * batches + batch)
                inputs = (x_train[rows], ResNet.draw_masks(size, draw).double())
            optimizer.zero_grad()
            if candidate.state is None:
                loss = candidate.objective(model(*inputs), y_train[rows], now)
            else:
                loss, state = candidate.objective(model(*inputs), y_train[rows], now, state)
            loss.backward()
            optimizer.step()
        value = metrics.stacked_criterion(
            training.metric, logits(x_val)[None], y_val, task=training.task, calibrate=training.calibrate
        )
        if value.item() < score:
            score, best_epoch = value.item(), epoch + 1
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            best = (logits(x_val).numpy(), logits(x_test).numpy(), weights)
        waited = epoch + 1 - best_epoch >= training.patience
        if waited:
            break
    validation_logits, test_logits, weights = best
    weights = {name: tensor.numpy() for name, tensor in weights.items() if tensor.is_floating_point()}
    return Fit(score, best_epoch, epoch + 1, not waited, 0.0, validation_logits, test_logits, weights)


def assert_same_fit(fit: Fit, expected: Fit, tolerance: float) -> None:
    assert (fit.best_epoch, fit.epochs, fit.at_cap) == (expected.best_epoch, expected.epochs, expected.at_cap)
    assert fit.score == pytest.approx(expected.score, abs=tolerance, rel=0)
    pairs = [(fit.validation_logits, expected.validation_logits), (fit.test_logits, expected.test_logits)]
    if fit.weights is not None:
        pairs += [(fit.weights[name], weight) for name, weight in expected.weights.items()]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
