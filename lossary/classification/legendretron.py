"""Proper losses that are learned: the inverse link is the gradient of a learned convex function (LegendreTron)."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import checks
from lossary.core.estimator import Classifier, class_labels, table
from lossary.core.rows import widen

Array = npt.NDArray[Any]
_LEAST_SCALE = 0.001


def log_softmax_plus(input: Tensor, dim: int = -1) -> Tensor:
    r"""Log-probabilities of C classes from C - 1 scores; the last class is the reference, with a score of 0.

    Reach for it where scores must mean something by themselves: softmax leaves a shift free, this does not.

    Formula:
        .. math:: \log q_k = z_k - \log(1 + \sum_j e^{z_j}), \quad \log q_C = -\log(1 + \sum_j e^{z_j})

    Args:
        input: Scores with C - 1 entries on ``dim``, floating point.
        dim: Axis of the classes.

    Returns:
        Input's shape with C entries on ``dim``; float32 for half-precision input.

    Raises:
        TypeError: ``input`` is not of floating point.
        ValueError: ``input`` has no axes.

    Example:
        >>> log_softmax_plus(torch.tensor([[0.0, 0.0]])).exp()
        tensor([[0.3333, 0.3333, 0.3333]])

    Source:
        Lam, Walder, Penev, Nock: LegendreTron: Uprising Proper Multiclass Loss Learning (ICML 2023, arXiv 2301.11695).
        Its code overflows where all scores are very negative.
    """
    checks.check_floating("input", input)
    if input.ndim == 0:
        raise ValueError("input has shape (); wanted scores (..., C - 1).")
    scores = widen(input)
    shape = list(input.shape)
    shape[dim] = 1
    return F.log_softmax(torch.cat([scores, scores.new_zeros(shape)], dim), dim)


def softmax_plus(input: Tensor, dim: int = -1) -> Tensor:
    """Probabilities of C classes from C - 1 scores; :func:`log_softmax_plus` without the logarithm.

    Args:
        input: Scores with C - 1 entries on ``dim``, floating point.
        dim: Axis of the classes.

    Returns:
        Input's shape with C entries on ``dim``; float32 for half-precision input.

    Example:
        >>> softmax_plus(torch.tensor([0.0]))
        tensor([0.5000, 0.5000])
    """
    return log_softmax_plus(input, dim).exp()


class PositiveLinear(nn.Linear):
    """A linear layer whose weights are positive: softplus of the parameters, all divided by the number of inputs.

    Formula:
        y = (softplus(W) x + b) / in_features

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether there is a bias b, divided too.

    Shape:
        - input: ``(..., in_features)``; output: ``(..., out_features)``.

    Example:
        >>> layer = PositiveLinear(2, 1)
        >>> bool(layer(torch.ones(1, 2)) > layer(torch.zeros(1, 2)))
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output."""
        return F.linear(input, F.softplus(self.weight), self.bias) / self.in_features


class ActNorm(nn.Module):
    r"""A shift and a positive scale for each feature, which the first training batch sets to standardise it.

    Formula:
        y = (x + shift) (exp(log_scale) + 0.001); at first shift = -mean and log_scale = -log(std + 1e-6)

    Args:
        num_features: Number of features d.

    Shape:
        - input, output: ``(N, d)``; the first training batch needs N > 1.

    Attributes:
        shift: ``(1, d, 1)``, learned after the first batch.
        log_scale: ``(1, d, 1)``, learned after the first batch.
        initialized: Whether the first training batch has come ``()``; part of ``state_dict``, so that a reloaded module
            does not start over.

    Example:
        >>> norm = ActNorm(1)
        >>> norm(torch.tensor([[0.0], [2.0]])).squeeze(1)
        tensor([-1.0010,  1.0010], grad_fn=<SqueezeBackward1>)
    """

    initialized: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, num_features, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, num_features, 1))
        self.register_buffer("initialized", torch.tensor(False))
        # The buffer as a Python flag: the branch below depends on no tensor, and compile specialises on it.
        self.pending = True

    def forward(self, input: Tensor) -> Tensor:
        """The standardised features."""
        if self.training and self.pending:
            self._initialize(input.detach())
        return (input + self.shift[0, :, 0]) * (self.log_scale[0, :, 0].exp() + _LEAST_SCALE)

    def _initialize(self, input: Tensor) -> None:
        if len(input) < 2:
            raise ValueError(f"input has shape {tuple(input.shape)}; the first training batch needs 2 rows or more.")
        with torch.no_grad():
            mean = input.mean(0)
            spread = (input - mean).square().mean(0).sqrt()
            self.shift.copy_(-mean.view(1, -1, 1))
            self.log_scale.copy_(-(spread + 1e-6).log().view(1, -1, 1))
            self.initialized.fill_(True)
        self.pending = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.pending = not bool(self.initialized)


class InputConvexNetwork(nn.Module):
    r"""A network whose output is convex in its input.

    Convex because softplus is convex and rising, and the weights from layer to layer are positive; direct paths from
    the input are free.

    Formula:
        .. math:: z_0 = s(W_0 x), \quad z_{i+1} = [\,s(\mathrm{norm}_i(W^+_i z_i + V_i x)),\ s(A_i x)\,], \quad
            y = \mathrm{norm}(W^+ z_L + V x)

        with s = softplus.

    Args:
        dim: Size of the input.
        hidden: Hidden units of each layer, even.
        depth: Number of hidden layers, at least 1.

    Shape:
        - input: ``(N, dim)``; output: ``(N, 1)``.

    Raises:
        ValueError: ``hidden`` is not even, or a size is below its least.

    Example:
        >>> network = InputConvexNetwork(3, hidden=4, depth=2).eval()
        >>> x, y = torch.randn(2, 5, 3)
        >>> bool((network((x + y) / 2) <= (network(x) + network(y)) / 2 + 1e-6).all())
        True

    Source:
        Huang, Chen, Tsirigotis, Courville: Convex Potential Flows (ICLR 2021, arXiv 2012.05942), as used by Lam et al.
        (ICML 2023, arXiv 2301.11695).
    """

    def __init__(self, dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        checks.check_in_range("dim", dim, 1)
        checks.check_in_range("depth", depth, 1)
        checks.check_in_range("hidden", hidden, 2)
        if hidden % 2:
            raise ValueError(f"hidden is {hidden}; wanted an even number: each half of a layer has its own path.")
        half, middle = hidden // 2, range(depth - 1)
        self.z_layers = nn.ModuleList(
            [
                nn.Linear(dim, hidden),
                *(PositiveLinear(hidden, half) for _ in middle),
                PositiveLinear(hidden, 1, bias=False),
            ]
        )
        self.x_layers = nn.ModuleList([*(nn.Linear(dim, half) for _ in middle), nn.Linear(dim, 1, bias=False)])
        self.aug_layers = nn.ModuleList([nn.Linear(dim, half) for _ in middle])
        self.norms = nn.ModuleList([*(ActNorm(half) for _ in middle), ActNorm(1)])
        cast(ActNorm, self.norms[-1]).shift.requires_grad_(False)  # a constant, of which no gradient in x knows

    @property
    def pending(self) -> bool:
        """Whether the norms still wait for the first training batch."""
        return any(cast(ActNorm, norm).pending for norm in self.norms)

    def forward(self, input: Tensor) -> Tensor:
        """The convex function of each row ``(N, 1)``."""
        dim = cast(nn.Linear, self.z_layers[0]).in_features
        checks.check_shape("input", input, (len(input) if input.ndim else 0, dim), "a row for each point")
        z = F.softplus(self.z_layers[0](input))
        for i, augment in enumerate(self.aug_layers):
            from_z = F.softplus(self.norms[i](self.z_layers[i + 1](z) + self.x_layers[i](input)))
            z = torch.cat([from_z, F.softplus(augment(input))], 1)
        output: Tensor = self.norms[-1](self.z_layers[-1](z) + self.x_layers[-1](input))
        return output


class ConvexGradientBlock(nn.Module):
    r"""The gradient of a learned, strictly convex potential: a monotone, invertible map.

    Formula:
        .. math:: f = \nabla P, \quad P(x) = s(a)\, \mathrm{ICNN}(x) + s(c)\, \|x\|^2 / 2

        with s = softplus. Its Jacobian is symmetric and at least s(c).

    Args:
        dim: Size of the input.
        hidden: Hidden units of the network, even.
        depth: Hidden layers of the network.

    Shape:
        - input, output: ``(N, dim)``.

    Attributes:
        raw_potential: a ``(1,)``.
        raw_quadratic: c ``(1,)``.

    Example:
        >>> block = ConvexGradientBlock(3, hidden=2, depth=4)
        >>> block(torch.randn(5, 3)).shape
        torch.Size([5, 3])

    Source:
        Lam et al. (ICML 2023, arXiv 2301.11695).
    """

    def __init__(self, dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.icnn = InputConvexNetwork(dim, hidden, depth)
        self.raw_potential = nn.Parameter(torch.randn(1))
        self.raw_quadratic = nn.Parameter(torch.randn(1))

    def potential(self, input: Tensor) -> Tensor:
        """The convex potential of each row ``(N, 1)``."""
        convex: Tensor = self.icnn(input)
        square = input.square().sum(1, keepdim=True)
        return F.softplus(self.raw_potential) * convex + F.softplus(self.raw_quadratic) * square / 2

    def forward(self, input: Tensor) -> Tensor:
        """The potential's gradient at each row ``(N, dim)``."""
        if self.training and self.icnn.pending:  # before the gradient, which may not write to parameters
            with torch.no_grad():
                self.icnn(input)
        gradient: Tensor = torch.func.grad(lambda x: self.potential(x).sum())(input)
        return gradient


class LegendreLink(nn.Module):
    """A learned inverse link: scores through convex-gradient blocks, then to log-probabilities.

    Reach for it in place of softmax as the last layer, with ``torch.nn.NLLLoss``: minimising the log-loss of these
    probabilities is minimising the proper loss of the learned link. With one block the link is canonical and monotone;
    with more, which fit better, no proof of that is known.

    Args:
        num_classes: Number of classes C, at least 2.
        n_blocks: Number of blocks.
        hidden: Hidden units of each block's network, even.
        depth: Hidden layers of each block's network.

    Shape:
        - input: scores ``(N, C - 1)``; output: log-probabilities ``(N, C)``, the reference class last. float64 is
          worth its price here.

    Example:
        >>> link = LegendreLink(num_classes=4)
        >>> link(torch.randn(6, 3)).exp().sum(1).detach().round(decimals=3)
        tensor([1., 1., 1., 1., 1., 1.])

    Source:
        Lam, Walder, Penev, Nock: LegendreTron (ICML 2023, arXiv 2301.11695).
    """

    def __init__(self, num_classes: int, n_blocks: int = 2, hidden: int = 2, depth: int = 4) -> None:
        super().__init__()
        checks.check_in_range("num_classes", num_classes, 2)
        checks.check_in_range("n_blocks", n_blocks, 0)
        self.num_classes = num_classes
        self.blocks = nn.ModuleList([ConvexGradientBlock(num_classes - 1, hidden, depth) for _ in range(n_blocks)])

    def forward(self, input: Tensor) -> Tensor:
        """Log-probabilities ``(N, C)`` of scores ``(N, C - 1)``."""
        checks.check_floating("input", input)
        wanted = (len(input) if input.ndim else 0, self.num_classes - 1)
        checks.check_shape("input", input, wanted, "a score for each class but the reference")
        for block in self.blocks:
            input = block(input)
        return log_softmax_plus(input)


class LegendreTron(nn.Module):
    r"""Multinomial regression that learns its proper loss: a linear layer under a :class:`LegendreLink`.

    Reach for it where softmax regression fits badly, above all with many classes or noisy labels, and a linear score is
    wanted. :class:`LegendreTronClassifier` is the scikit-learn estimator. Standardise the features.

    Args:
        in_features: Number of features.
        num_classes: Number of classes C; class C - 1 is the reference.
        n_blocks: Blocks of the link; 0 is multinomial logistic regression.
        hidden: Hidden units of each block's network, even.
        depth: Hidden layers of each block's network.
        weight_decay: Weight of half the squared parameters, all of them, in :meth:`loss`.

    Shape:
        - input: ``(N, in_features)``; output: log-probabilities ``(N, C)``.

    Example:
        >>> model = LegendreTron(4, 3)
        >>> model(torch.randn(5, 4)).shape
        torch.Size([5, 3])

    Source:
        Lam et al. (ICML 2023, arXiv 2301.11695); defaults are its public code's.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        n_blocks: int = 2,
        hidden: int = 2,
        depth: int = 4,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        checks.check_in_range("weight_decay", weight_decay, 0.0)
        self.linear = nn.Linear(in_features, num_classes - 1)
        self.link = LegendreLink(num_classes, n_blocks, hidden, depth)
        self.weight_decay = weight_decay

    def forward(self, input: Tensor) -> Tensor:
        """Log-probabilities ``(N, C)`` of features ``(N, in_features)``."""
        log_p: Tensor = self.link(self.linear(input))
        return log_p

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-probability of the labels, and half the squared parameters times ``weight_decay``.

        Args:
            x: Features ``(N, in_features)``.
            target: Class indices ``(N,)``.
        """
        likelihood = F.nll_loss(self(x), target)  # first, since the first batch sets the norms
        squares = torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()
        return likelihood + 0.5 * self.weight_decay * squares

    def fit(
        self,
        X: Any,
        y: Any,
        epochs: int = 240,
        lr: float = 0.01,
        batch_size: int = 64,
        gamma: float = 0.95,
        step_every: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Train with Adam in shuffled batches, the learning rate falling by ``gamma`` every ``step_every`` epochs.

        Args:
            X: Features ``(n, in_features)``, two rows or more.
            y: Class indices ``(n,)``.
            epochs: Passes over the rows.
            lr: Learning rate at the start.
            batch_size: Rows in a batch.
            gamma: What the learning rate is multiplied by.
            step_every: Epochs from one such step to the next.
            generator: Source of randomness of the shuffling.

        Returns:
            Itself, in evaluation mode.

        Raises:
            ValueError: A shape or label is wrong, X is not finite, or a number is out of range.
        """
        x, labels = self._features(X), torch.as_tensor(y, device=self.linear.weight.device)
        target = labels.long()
        checks.check_shape("y", target, x.shape[:1], "a class index for each row of X")
        if not torch.equal(labels, target.to(labels.dtype)):
            raise ValueError("y holds fractions; wanted class indices.")
        if not bool(x.isfinite().all()):
            raise ValueError("X contains NaN or infinity; wanted finite numbers.")
        checks.check_in_range("epochs", epochs, 0)
        checks.check_in_range("step_every", step_every, 1)
        checks.check_labels(target, self.link.num_classes, -100)
        checks.check_in_range("batch_size", batch_size, 1)
        optimizer = torch.optim.Adam(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_every, gamma)
        self.train()
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=generator), batch_size):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self.loss(x[rows], target[rows]))
                optimizer.step()
            schedule.step()
        return self.eval()

    def predict_proba(self, X: Any) -> Tensor:
        """Probabilities ``(n, C)`` without gradient, in evaluation mode.

        Args:
            X: Features ``(n, in_features)``.
        """
        training = self.training
        with torch.no_grad():
            p: Tensor = self.eval()(self._features(X)).exp()
        self.train(training)
        return p

    def _features(self, X: Any) -> Tensor:
        x = torch.as_tensor(X).to(self.linear.weight)
        checks.check_shape("X", x, (len(x) if x.ndim else 0, self.linear.in_features), "features of each row")
        return x


class LegendreTronClassifier(Classifier):
    """:class:`LegendreTron` as a scikit-learn classifier: any labels, float64, standardised features.

    Works in pipelines, searches and cross-validation without importing scikit-learn itself.

    Args:
        n_blocks: Blocks of the link; 0 is multinomial logistic regression.
        hidden: Hidden units of each block's network, even.
        depth: Hidden layers of each block's network.
        weight_decay: Weight of half the squared parameters.
        epochs: Passes over the rows.
        lr: Learning rate at the start.
        batch_size: Rows in a batch.
        gamma: What the learning rate is multiplied by every ``step_every`` epochs.
        step_every: Epochs from one such step to the next.
        standardize: Whether features are brought to mean 0 and standard deviation 1 by the training rows.
        random_state: Seed of the initial weights and the shuffling.

    Attributes:
        classes_: The labels seen, sorted ``(C,)``; the last one is the reference class.
        model_: The :class:`LegendreTron`.
        n_features_in_: Number of features.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(60, 2))
        >>> y = np.where(X[:, 0] > 0, "yes", "no")
        >>> classifier = LegendreTronClassifier(epochs=40, lr=0.05).fit(X, y)
        >>> classifier.score(X, y) > 0.9
        True
    """

    model_: LegendreTron

    def __init__(
        self,
        *,
        n_blocks: int = 2,
        hidden: int = 2,
        depth: int = 4,
        weight_decay: float = 0.01,
        epochs: int = 240,
        lr: float = 0.01,
        batch_size: int = 64,
        gamma: float = 0.95,
        step_every: int = 4,
        standardize: bool = True,
        random_state: int = 0,
    ) -> None:
        self.n_blocks = n_blocks
        self.hidden = hidden
        self.depth = depth
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.gamma = gamma
        self.step_every = step_every
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to features ``(n, d)`` and labels ``(n,)``."""
        features = table(X)
        labels = class_labels(y, len(features))
        self.classes_, target = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; wanted two or more.")
        self.n_features_in_ = features.shape[1]
        spread = features.std(0)
        self.mean_ = features.mean(0) if self.standardize else np.zeros(features.shape[1])
        self.scale_ = np.where(spread > 0, spread, 1.0) if self.standardize else np.ones(features.shape[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.model_ = LegendreTron(
                features.shape[1],
                len(self.classes_),
                n_blocks=self.n_blocks,
                hidden=self.hidden,
                depth=self.depth,
                weight_decay=self.weight_decay,
            ).double()
        self.model_.fit(
            (features - self.mean_) / self.scale_,
            target,
            self.epochs,
            self.lr,
            self.batch_size,
            self.gamma,
            self.step_every,
            generator=torch.Generator().manual_seed(self.random_state),
        )
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``(n, C)``, columns in the order of ``classes_``."""
        self._check_fitted()
        features = table(X)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {features.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        return np.asarray(self.model_.predict_proba((features - self.mean_) / self.scale_).numpy())

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of :meth:`predict_proba`."""
        return np.asarray(np.log(self.predict_proba(X)))
