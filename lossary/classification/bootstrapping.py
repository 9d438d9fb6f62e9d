"""Dynamic bootstrapping: a label counts as far as it is likely right, the network's own guess for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.classification.adversarial import evaluating
from lossary.classification.beta_mixture import NoiseModel
from lossary.classification.mixing import mixup, weighted_mixup
from lossary.core import checks
from lossary.core.numerics import logsumexp, product
from lossary.core.objective import BatchObjective, Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction

Mode = Literal["hard", "soft"]
Mixing = Literal["none", "static", "dynamic"]


@objective(
    Kind.CLASSES,
    arguments=lambda input, target: {
        "input": input,
        "target": target,
        "noise_probability": torch.full_like(input.select(min(1, input.ndim - 1), 0), 0.3, dtype=torch.float64),
    },
)
def dynamic_bootstrapping_loss(
    input: Tensor,
    target: Tensor,
    noise_probability: Tensor,
    clean_logits: Tensor | None = None,
    *,
    mode: Mode = "hard",
    temperature: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy against a mixture of each row's label and the network's own guess.

    Reach for it when a good share of the labels may be wrong, after a warm-up on cross-entropy, with the probabilities
    of a :class:`NoiseModel`. Not on clean labels, nor from the start: the guesses are worthless then.

    Formula:
        .. math:: L = -(1 - B) \log p_y - B \sum_k q_k \log p_k

        where q has all its mass on the guess (``hard``) or is the softmax of ``clean_logits / temperature`` (``soft``).

    Args:
        input: Logits.
        target: Class indices.
        noise_probability: The probability B that each label is wrong, a constant to the gradient.
        clean_logits: Logits that the guess is taken from, constants to the gradient; None takes ``input``.
        mode: ``hard`` or ``soft``.
        temperature: Sharpness of the soft guess, positive; towards 0 it becomes the hard one.
        weight: Class weights of the label, on the whole row.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, clean_logits: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer; noise_probability: ``(N, ...)``, in [0, 1].
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``mode``, ``temperature`` or reduction is wrong.

    Example:
        >>> input = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> dynamic_bootstrapping_loss(input, torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
        tensor(0.1269)

    Source:
        Arazo, Ortego, Albert, O'Connor, McGuinness: Unsupervised Label Noise Modeling and Loss Correction (ICML 2019,
        arXiv 1904.11238), equations 8 and 9.
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    wrong = _probability(noise_probability, rows, target)
    guess = _guess(rows, clean_logits, mode, temperature)
    return rows.reduce(_bootstrapped(rows, wrong, guess), reduction=reduction, normalizer=normalizer)


class DynamicBootstrappingLoss(Objective):
    """Cross-entropy against label and guess; module form of :func:`dynamic_bootstrapping_loss`.

    Example:
        >>> loss = DynamicBootstrappingLoss("soft")
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), torch.tensor([0.9]))
        tensor(0.5415)
    """

    function = dynamic_bootstrapping_loss

    def __init__(
        self,
        mode: Mode = "hard",
        temperature: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode=mode, temperature=temperature, weight=weight, ignore_index=ignore_index, reduction=reduction
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        noise_probability: Tensor,
        clean_logits: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective; see :func:`dynamic_bootstrapping_loss`.

        Args:
            input: Logits.
            target: Class indices.
            noise_probability: The probability that each label is wrong.
            clean_logits: Logits that the guess is taken from; None takes ``input``.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return dynamic_bootstrapping_loss(
            input,
            target,
            noise_probability,
            clean_logits,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(
    Kind.CLASSES,
    example=lambda num_classes: {"mode": "hard"},
    arguments=lambda input, target: _mixed_with_itself(input, target),
)
def dynamic_bootstrapping_mixup_loss(
    input: Tensor,
    target: Tensor,
    clean_logits: Tensor,
    noise_probability: Tensor,
    index: Tensor,
    *,
    lam: Tensor | float,
    mode: Mode = "soft",
    temperature: Tensor | float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Dynamic bootstrapping of mixed examples: each partner with its own label, guess and probability.

    Reach for it in place of :func:`dynamic_bootstrapping_loss` where mixtures of inputs make sense: mixing keeps the
    network from memorising wrong labels (the paper's M-DYR).

    Formula:
        .. math:: L = \lambda\, \ell(\tilde z, y_i, B_i, q_i) + (1 - \lambda)\, \ell(\tilde z, y_j, B_j, q_j),
            \quad j = \pi(i)

        with :math:`\ell` of :func:`dynamic_bootstrapping_loss`.

    Args:
        input: Logits of the mixed examples.
        target: Class indices of the batch.
        clean_logits: Logits of the unmixed batch, constants to the gradient.
        noise_probability: The probability that each label of the batch is wrong.
        index: The permutation that the batch was mixed with.
        lam: Share of each row's own example, in [0, 1]: one for the batch or one for each row; 0.5 with
            :func:`weighted_mixup`.
        mode: ``hard`` or ``soft``.
        temperature: Sharpness of the soft guess, positive.
        weight: Class weights, of each term by its own label.
        ignore_index: Label of rows that count for nothing; as the label mixed in, it drops that share of its row.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, clean_logits: ``(N, C, ...)``, floating point.
        - target: ``(N, ...)`` integer; noise_probability: ``(N, ...)``, in [0, 1]; index: ``(N,)`` int64.
        - lam: a number, ``()`` or ``(N,)``; weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or
          ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. ``mean`` divides by the summed weights
        of the batch's own labels. Empty or all-ignored ``mean`` is NaN as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability, ``lam``, ``mode``, ``temperature`` or reduction is wrong.

    Example:
        >>> mixed, clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> target, wrong, index = torch.tensor([0, 0]), torch.tensor([0.1, 0.9]), torch.tensor([1, 0])
        >>> dynamic_bootstrapping_mixup_loss(mixed, target, clean, wrong, index, lam=0.7)
        tensor(0.6442)

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238), equation 10. The public code weighs both terms of the soft form by
        0.5 whatever ``lam`` is.
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    checks.check_shape("index", index, target.shape[:1], "the permutation of the batch")
    checks.check_shape("clean_logits", clean_logits, input.shape, "logits shaped as input")
    wrong = _probability(noise_probability, rows, target)
    checks.check_in_range("lam", lam, 0.0, 1.0)
    share = torch.as_tensor(lam, dtype=rows.logits.dtype, device=input.device)
    if share.ndim:
        checks.check_shape("lam", share, target.shape[:1], "one share for the batch, or one for each row")
        share = share.reshape([-1] + [1] * (target.ndim - 1))
    if isinstance(lam, Tensor) and checks.may_read_values(lam):
        checks.check_unit_interval("lam", lam)
    guess = _guess(rows, clean_logits, mode, temperature)

    def bootstrapped(label: Tensor, wrong: Tensor, guess: Tensor) -> Tensor:
        one = class_rows(input, label, weight=weight, ignore_index=ignore_index, index_only=True)
        return one.reduce(_bootstrapped(one, wrong, guess), reduction="none", normalizer=None)

    own, other = bootstrapped(target, wrong, guess), bootstrapped(target[index], wrong[index], guess[index])
    return rows.reduce(product(share, own) + product(1 - share, other), reduction=reduction, normalizer=normalizer)


class DynamicBootstrappingMixupLoss(Objective):
    """Dynamic bootstrapping of mixed examples; module form of :func:`dynamic_bootstrapping_mixup_loss`.

    Example:
        >>> mixed, clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        >>> target, wrong, index = torch.tensor([0, 0]), torch.tensor([0.1, 0.9]), torch.tensor([1, 0])
        >>> DynamicBootstrappingMixupLoss()(mixed, target, clean, wrong, index, lam=0.7)
        tensor(0.6442)
    """

    function = dynamic_bootstrapping_mixup_loss

    def __init__(
        self,
        mode: Mode = "soft",
        temperature: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode=mode, temperature=temperature, weight=weight, ignore_index=ignore_index, reduction=reduction
        )

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        clean_logits: Tensor,
        noise_probability: Tensor,
        index: Tensor,
        *,
        lam: Tensor | float,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective; see :func:`dynamic_bootstrapping_mixup_loss`.

        Args:
            input: Logits of the mixed examples.
            target: Class indices of the batch.
            clean_logits: Logits of the unmixed batch.
            noise_probability: The probability that each label of the batch is wrong.
            index: The permutation that the batch was mixed with.
            lam: Share of each row's own example.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return dynamic_bootstrapping_mixup_loss(
            input,
            target,
            clean_logits,
            noise_probability,
            index,
            lam=lam,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


_NO_LABELS = "it looks at predictions alone, without labels"


@objective(
    Kind.CLASSES,
    arguments=lambda input, target: {"input": input},
    batch_level=True,
    exempt={
        check: _NO_LABELS
        for check in ("words", "class_weight_and_ignored_rows", "bad_input", "unseen_bad_label_is_nan")
    },
)
def uniform_prior_loss(input: Tensor, *, prior: Tensor | None = None, sample_weight: Tensor | None = None) -> Tensor:
    r"""Divergence of the batch's mean prediction from a prior over the classes: keeps guesses from collapsing.

    Reach for it beside a bootstrapped loss, which one class for all would minimise; it looks at each rank's own batch,
    which must be large enough to hold all classes. Not where classes are imbalanced, unless ``prior`` says so.

    Formula:
        .. math:: R = \sum_k \pi_k \log \frac{\pi_k}{\bar p_k}, \quad
            \bar p = \frac 1 N \sum_i \mathrm{softmax}(z_i)

    Args:
        input: Logits.
        prior: Expected share of each class, summing to 1; None takes equal shares.
        sample_weight: Weights of rows in the mean.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point; prior: ``(C,)``; sample_weight: ``(N, ...)``.

    Returns:
        ``()``, at least 0; float32 for half-precision input. NaN for an empty batch, +inf if a class of the prior has
        no probability at all.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong, or a share lies outside [0, 1].

    Example:
        >>> uniform_prior_loss(torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
        tensor(0.8554)

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238), section 3.3, after Tanaka et al. (CVPR 2018, arXiv 1803.11364).
    """
    checks.check_floating("input", input)
    dim = min(1, input.ndim - 1)
    checks.check_class_vector("prior", prior, input.shape[dim])
    if prior is not None and checks.may_read_values(prior):
        checks.check_unit_interval("prior", prior)
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    log_p = F.log_softmax(wide, dim).movedim(dim, -1).reshape(-1, input.shape[dim])
    share = log_p.new_ones(len(log_p))
    if sample_weight is not None:
        checks.check_shape("sample_weight", sample_weight, input.shape[:dim] + input.shape[dim + 1 :], "a weight a row")
        share = sample_weight.reshape(-1).to(log_p.dtype)
    log_mean = logsumexp(log_p + share.log().unsqueeze(1), 0) - share.sum().log()
    pi = torch.full_like(log_mean, 1 / len(log_mean)) if prior is None else prior.to(log_mean.dtype)
    return (torch.xlogy(pi, pi) - product(pi, log_mean)).sum()


class UniformPriorLoss(BatchObjective):
    """Divergence of the mean prediction from a prior; module form of :func:`uniform_prior_loss`.

    Example:
        >>> UniformPriorLoss()(torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
        tensor(0.8554)
    """

    function = uniform_prior_loss

    def __init__(self, prior: Tensor | None = None) -> None:
        super().__init__(prior=prior)

    def forward(self, input: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The divergence for a batch of logits.

        Args:
            input: Logits.
            sample_weight: One weight for each row.
        """
        return uniform_prior_loss(input, sample_weight=sample_weight, **self.hyperparameters())


class BootstrapSchedule:
    """What each epoch does: when bootstrapping begins, its temperature, and the learning rate. Epochs count from 0.

    Reach for it with :class:`BootstrapTraining`. Bootstrapping shall begin soon after the first drop of the learning
    rate: before, guesses are poor; much later, wrong labels are memorised.

    Args:
        start_epoch: First epoch that looks at the noise model.
        dynamic_epochs: With dynamic mixing, epochs of weighted mixup without bootstrapping that come first.
        hard_epoch: With dynamic mixing, epoch at which the guesses have become hard.
        milestones: Epochs at which the learning rate falls tenfold.

    Example:
        >>> schedule = BootstrapSchedule()
        >>> schedule.phase(104), schedule.phase(105), schedule.phase(105, "dynamic"), schedule.phase(110, "dynamic")
        ('warm-up', 'bootstrap', 'dynamic', 'bootstrap')

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238), section 4.1, and its public code: 300 epochs of SGD 0.1.
    """

    def __init__(
        self,
        start_epoch: int = 105,
        *,
        dynamic_epochs: int = 5,
        hard_epoch: int = 199,
        milestones: tuple[int, ...] = (100, 250),
    ) -> None:
        self.start_epoch = start_epoch
        self.dynamic_epochs = dynamic_epochs
        self.hard_epoch = hard_epoch
        self.milestones = milestones

    def phase(self, epoch: int, mixing: Mixing = "static") -> Literal["warm-up", "dynamic", "bootstrap"]:
        """Plain training, weighted mixup without bootstrapping, or bootstrapping."""
        if epoch < self.start_epoch:
            return "warm-up"
        return "dynamic" if mixing == "dynamic" and epoch < self.start_epoch + self.dynamic_epochs else "bootstrap"

    def temperature(self, epoch: int) -> float:
        """Temperature of the guesses with dynamic mixing: from 1 down to 0.001, in equal steps."""
        first = self.start_epoch + self.dynamic_epochs
        done = (epoch - first) / max(self.hard_epoch - first, 1)
        return 1.0 - 0.999 * min(max(done, 0.0), 1.0)

    def learning_rate_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by, as ``torch.optim.lr_scheduler.LambdaLR`` wants it."""
        return float(0.1 ** sum(epoch >= milestone for milestone in self.milestones))


class BootstrapTraining:
    """The training procedure around a model: noise model, mixing, bootstrapping, regulariser.

    Reach for it where labels may be wrong; each step costs one more forward, each epoch a pass over the training set.
    With a loop of your own::

        for epoch in range(300):
            for x, target in batches:
                training.loss(x, target, epoch).backward()
                ...
            training.fit_noise(batches_without_augmentation)

    Args:
        model: From examples ``(N, ...)`` to logits ``(N, C)``.
        schedule: When bootstrapping begins; None takes the paper's.
        mixing: ``none``; ``static``, mixup throughout (M-DYR); or ``dynamic``, once the noise model is there mixup
            weighted by it, with soft guesses that become hard (MD-DYR-SH).
        mode: ``hard`` or ``soft`` guesses, without dynamic mixing.
        alpha: Parameter of the mixing share's Beta distribution.
        regularization: Weight of :func:`uniform_prior_loss`, at least 0.
        noise_model: What finds wrong labels by their losses; None takes a :class:`NoiseModel` as it comes.
        generator: Source of randomness of mixing.

    Raises:
        ValueError: ``mixing``, ``mode`` or ``regularization`` is wrong.

    Example:
        >>> model, x, target = nn.Linear(4, 3), torch.randn(30, 4), torch.randint(3, (30,))
        >>> training = BootstrapTraining(model, schedule=BootstrapSchedule(start_epoch=1))
        >>> warm_up = training.loss(x, target, epoch=0)
        >>> training.fit_noise([(x, target)])
        >>> training.loss(x, target, epoch=1).backward()

    Source:
        Arazo et al. (ICML 2019, arXiv 1904.11238), section 3, and its public code. Here guesses come from the same
        forward in evaluation mode as the losses, the code runs another one in training mode.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        schedule: BootstrapSchedule | None = None,
        mixing: Mixing = "static",
        mode: Mode = "hard",
        alpha: float = 32.0,
        regularization: float = 1.0,
        noise_model: NoiseModel | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if mixing not in ("none", "static", "dynamic"):
            raise ValueError(f"mixing is {mixing!r}; wanted 'none', 'static' or 'dynamic'.")
        _check_mode(mode)
        checks.check_in_range("regularization", regularization, 0.0)
        self.model = model
        self.schedule = schedule or BootstrapSchedule()
        self.mixing: Mixing = mixing
        self.mode: Mode = mode
        self.alpha = alpha
        self.regularization = regularization
        self.noise_model = noise_model or NoiseModel()
        self.generator = generator

    def loss(self, x: Tensor, target: Tensor, epoch: int) -> Tensor:
        """The loss of a batch ``x (N, ...)`` with class indices ``(N,)`` in an epoch counted from 0."""
        phase = self.schedule.phase(epoch, self.mixing)
        if phase == "warm-up":
            return self._warm_up(x, target)
        clean, wrong = self._look(x, target)
        if self.mixing == "none":
            logits = self.model(x)
            loss = dynamic_bootstrapping_loss(logits, target, wrong, clean, mode=self.mode)
            return loss + self.regularization * uniform_prior_loss(logits)
        index, lam = self._draw(x)
        mixed = weighted_mixup(x, wrong, index) if self.mixing == "dynamic" else mixup(x, lam=lam, index=index)
        logits = self.model(mixed)
        if phase == "dynamic":
            return _mixed_cross_entropy(logits, target, target[index], lam)
        soft_to_hard = self.mixing == "dynamic"
        loss = dynamic_bootstrapping_mixup_loss(
            logits,
            target,
            clean,
            wrong,
            index,
            lam=0.5 if soft_to_hard else lam,
            mode="soft" if soft_to_hard else self.mode,
            temperature=self.schedule.temperature(epoch) if soft_to_hard else 1.0,
        )
        return loss + self.regularization * uniform_prior_loss(logits)

    def fit_noise(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the noise model to the losses of the training set, in evaluation mode; call it after each epoch.

        Args:
            batches: Examples and labels of the training set, without augmentation.
        """
        losses = [F.cross_entropy(self._predict(x), target, reduction="none").cpu() for x, target in batches]
        self.noise_model.fit(torch.cat(losses))

    def noise_probability(self, x: Tensor, target: Tensor) -> Tensor:
        """Probability ``(N,)`` that each label is wrong."""
        return self._look(x, target)[1]

    def _warm_up(self, x: Tensor, target: Tensor) -> Tensor:
        if self.mixing == "none":
            return F.cross_entropy(self.model(x), target)
        index, lam = self._draw(x)
        return _mixed_cross_entropy(self.model(mixup(x, lam=lam, index=index)), target, target[index], lam)

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """The permutation of a batch and its share."""
        order = torch.arange(len(x), device=x.device)
        _, _, index, lam = mixup(x, order, alpha=self.alpha, generator=self.generator)
        return index, lam

    def _look(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the examples as they are, and the probability that each label is wrong."""
        logits = self._predict(x)
        return logits, self.noise_model.noise_probability(F.cross_entropy(logits.float(), target, reduction="none"))

    def _predict(self, x: Tensor) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            logits: Tensor = self.model(x)
        return logits


def _mixed_cross_entropy(logits: Tensor, own: Tensor, other: Tensor, lam: Tensor | float) -> Tensor:
    return lam * F.cross_entropy(logits, own) + (1 - lam) * F.cross_entropy(logits, other)


def _bootstrapped(rows: ClassRows, wrong: Tensor, guess: Tensor) -> Tensor:
    """The loss of each row: its label's and its guess's, a class ``(N, 1, ...)`` or probabilities ``(N, C, ...)``."""
    soft = guess.is_floating_point()
    guessed = product(guess, rows.log_softmax()).sum(rows.dim) if soft else rows.log_p_of(guess)
    return rows.label_weight() * (-product(1 - wrong, rows.log_p_of_label()) - product(wrong, guessed))


def _guess(rows: ClassRows, clean_logits: Tensor | None, mode: Mode, temperature: Tensor | float) -> Tensor:
    _check_mode(mode)
    checks.check_in_range("temperature", temperature, 0.0, low_open=True)
    clean = rows.logits if clean_logits is None else clean_logits
    checks.check_floating("clean_logits", clean)
    checks.check_shape("clean_logits", clean, rows.logits.shape, "logits shaped as input")
    clean = clean.detach().to(rows.logits.dtype)
    return clean.argmax(rows.dim, keepdim=True) if mode == "hard" else F.softmax(clean / temperature, rows.dim)


def _probability(noise_probability: Tensor, rows: ClassRows, target: Tensor) -> Tensor:
    checks.check_floating("noise_probability", noise_probability)
    checks.check_shape("noise_probability", noise_probability, target.shape, "a probability for each row")
    if checks.may_read_values(noise_probability):
        checks.check_unit_interval("noise_probability", noise_probability)
    return noise_probability.detach().to(rows.logits.dtype)


def _check_mode(mode: str) -> None:
    if mode not in ("hard", "soft"):
        raise ValueError(f"mode is {mode!r}; wanted 'hard' or 'soft'.")


def _mixed_with_itself(input: Tensor, target: Tensor) -> dict[str, Any]:
    """Rows as the mixture of each example with itself, for the contract."""
    if input.ndim == 1:
        input, target = input[None], target[None]
    return {
        "input": input,
        "target": target,
        "clean_logits": input.detach(),
        "noise_probability": torch.full_like(input[:, 0], 0.3, dtype=torch.float64),
        "index": torch.arange(len(input), device=input.device),
        "lam": 0.4,
    }
