"""Spiking motifs: rasters as sums of repeating patterns of spikes, and finding when which pattern happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape, check_unit_interval, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import label_entries
from lossary.core.types import Reduction
from lossary.core.values import full_precision

Method = Literal["logit", "correlation"]
_MOST_IN_QUANTILE = 10_000_000  # torch.quantile refuses more than 16 million entries


def _trial_by_trial(kernel: Tensor, raster: Tensor) -> dict[str, Tensor]:
    """Trials in which one motif each starts in the middle, so that trial b depends on row b of the kernel alone."""
    rows = kernel.reshape(-1, 1, kernel.shape[-1])
    onset = F.one_hot(torch.tensor(kernel.shape[-1] // 2), kernel.shape[-1])
    activity = torch.eye(rows.shape[0], dtype=rows.dtype).unsqueeze(-1) * onset
    return {"kernel": rows, "activity": activity, "raster": raster.reshape(-1, 1, kernel.shape[-1])}


@objective(
    Kind.RASTERS,
    arguments=_trial_by_trial,
    exempt={
        "nan_stays_visible": "a kernel is shared by all trials, and so is its NaN: tests/classification/test_spikes.py",
        "infinite_logits": "a sum over motifs and delays is not defined for infinite kernels",
        "empty_and_all_ignored": "the contract's empty trials have no motifs; trials alone: test_spikes.py, too",
    },
)
def raster_likelihood_loss(
    kernel: Tensor,
    activity: Tensor,
    raster: Tensor,
    *,
    firing_rate: Tensor | float = 0.001,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""How unlikely a raster is, given when its motifs started: cross-entropy of every neuron and time bin.

    Reach for it to learn unknown motifs from rasters whose onsets are known (:class:`MotifKernelLearner` does).
    It is convex in the kernel. It does not find onsets: that is :func:`motif_evidence`'s.

    Formula:
        .. math:: L_{nt} = \log(1 + e^{z_{nt}}) - A_{nt} z_{nt}, \quad
            z_{nt} = \mathrm{logit}(r) + \sum_{m,d} B_{m, t - d + \lfloor D/2 \rfloor} K_{mnd}

    Args:
        kernel: The K, log-odds that a motif adds to each neuron and delay.
        activity: The onsets B, 0 or 1 (or how many).
        raster: The spikes A, 0 or 1.
        firing_rate: Probability r of a spike where no motif is, in (0, 1).
        sample_weight: Weights of trials or entries.
        reduction: ``none``, ``mean`` or ``sum`` over trials, neurons and bins.
        normalizer: Divisor in place of the number of entries.

    Shape:
        - kernel: ``(M, N, D)`` motifs, neurons and delays, floating point, D odd.
        - activity: ``(B, M, T)``; raster: ``(B, N, T)``, trials and time bins.
        - firing_rate: a number or ``()``; sample_weight: ``(B,)`` or as raster; normalizer: a number or ``()``.

    Returns:
        ``(B, N, T)`` for ``none``, else ``()``; float32 for a half-precision kernel. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, an even D, ``firing_rate``, a value of the raster or reduction is wrong.

    Example:
        >>> kernel, activity = torch.zeros(1, 2, 3), torch.zeros(1, 1, 4)
        >>> raster_likelihood_loss(kernel, activity, torch.ones(1, 2, 4), firing_rate=0.5)
        tensor(0.6931)

    Source:
        Perrinet: Accurate Detection of Spiking Motifs by Learning Heterogeneous Delays of a Spiking Neural Network
        (ICANN 2023, arXiv 2307.14077). The text speaks of cross-entropy of the detector; its public code minimises
        this one, of the generator.
    """
    logits = raster_logits(activity, kernel, firing_rate=firing_rate)
    _check_trials("raster", raster, kernel.shape[1], "neurons")
    check_shape("raster", raster, logits.shape, "spikes (trials, neurons, bins) that fit activity and kernel")
    if may_read_values(raster):
        check_unit_interval("raster", raster)
    entries = label_entries(logits, raster, sample_weight=sample_weight)
    loss = F.binary_cross_entropy_with_logits(entries.logits, entries.target, reduction="none")
    return entries.reduce(loss, reduction=reduction, normalizer=normalizer)


class RasterLikelihoodLoss(Objective):
    """How unlikely a raster is, given its onsets; module form of :func:`raster_likelihood_loss`.

    Example:
        >>> loss = RasterLikelihoodLoss(firing_rate=0.5)
        >>> loss(torch.zeros(1, 2, 3), torch.zeros(1, 1, 4), torch.ones(1, 2, 4))
        tensor(0.6931)
    """

    function = raster_likelihood_loss

    def __init__(self, *, firing_rate: Tensor | float = 0.001, reduction: Reduction = "mean") -> None:
        super().__init__(firing_rate=firing_rate, reduction=reduction)

    def forward(  # type: ignore[override]
        self,
        kernel: Tensor,
        activity: Tensor,
        raster: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            kernel: Log-odds ``(M, N, D)``.
            activity: Onsets ``(B, M, T)``.
            raster: Spikes ``(B, N, T)``.
            sample_weight: Weights of trials or entries.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return raster_likelihood_loss(
            kernel, activity, raster, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )


def raster_logits(activity: Tensor, kernel: Tensor, *, firing_rate: Tensor | float = 0.001) -> Tensor:
    r"""Log-odds of a spike of each neuron in each time bin, given when the motifs start.

    Formula:
        .. math:: z_{nt} = \mathrm{logit}(r) + \sum_{m,d} B_{m, t - d + \lfloor D/2 \rfloor} K_{mnd}

    Args:
        activity: Onsets ``(B, M, T)``.
        kernel: Log-odds that a motif adds to each neuron and delay ``(M, N, D)``, D odd.
        firing_rate: Probability r of a spike where no motif is, in (0, 1).

    Returns:
        ``(B, N, T)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, an even D or ``firing_rate`` is wrong.

    Example:
        >>> onset = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
        >>> raster_logits(onset, torch.tensor([[[1.0, 2.0, 3.0]]]), firing_rate=0.5)
        tensor([[[0., 1., 2., 3., 0.]]])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), the generative model.
    """
    check_in_range("firing_rate", firing_rate, 0.0, 1.0, low_open=True, high_open=True)
    kernel = _checked(kernel)
    _check_trials("activity", activity, kernel.shape[0], "motifs")
    with full_precision(kernel):
        added = F.conv_transpose1d(activity.to(kernel.dtype), kernel, padding=kernel.shape[-1] // 2)
    return added + torch.as_tensor(firing_rate, dtype=kernel.dtype, device=kernel.device).logit()


def motif_evidence(
    raster: Tensor,
    kernel: Tensor,
    *,
    bias: Tensor | None = None,
    method: Method = "logit",
    firing_rate: Tensor | float = 0.001,
) -> Tensor:
    r"""How much a raster speaks for each motif starting in each time bin.

    Reach for it with ``method="logit"``: the sum of the kernel's log-odds at the spikes, which inverts
    :func:`raster_logits`. ``"correlation"`` sums a template of firing rates instead, the usual baseline.

    Formula:
        .. math:: e_{mt} = b_m + \sum_{n,d} A_{n, t + d - \lfloor D/2 \rfloor} K_{mnd}

        For the correlation :math:`\sigma(\mathrm{logit}(r) + K)` stands in place of K.

    Args:
        raster: Spikes A ``(B, N, T)``.
        kernel: Log-odds ``(M, N, D)``, D odd.
        bias: What is added to each motif's evidence ``(M,)``; its sigmoid is then a probability.
        method: ``logit`` or ``correlation``.
        firing_rate: Probability r of a spike where no motif is, for ``correlation``.

    Returns:
        ``(B, M, T)``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, an even D, ``method`` or ``firing_rate`` is wrong.

    Example:
        >>> spikes = torch.tensor([[[0.0, 1.0, 1.0, 1.0, 0.0]]])
        >>> motif_evidence(spikes, torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([[[3., 5., 6., 3., 1.]]])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), its inversion of the generative model.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; wanted 'logit' or 'correlation'.")
    check_in_range("firing_rate", firing_rate, 0.0, 1.0, low_open=True, high_open=True)
    kernel = _checked(kernel)
    _check_trials("raster", raster, kernel.shape[1], "neurons")
    if bias is not None:
        check_shape("bias", bias, (kernel.shape[0],), "a number for each motif")
    if method == "correlation":
        kernel = torch.sigmoid(torch.as_tensor(firing_rate, dtype=kernel.dtype, device=kernel.device).logit() + kernel)
    bias = None if bias is None else bias.to(kernel.dtype)
    with full_precision(kernel):
        return F.conv1d(raster.to(kernel.dtype), kernel, bias, padding=kernel.shape[-1] // 2)


def threshold_evidence(evidence: Tensor, *, rate: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    """Call a motif where the evidence exceeds its (1 - rate) quantile over all entries.

    Args:
        evidence: Of any shape.
        rate: Share of entries to call, in [0, 1], a number or ``()``: the onsets' prior, or their known share in an
            evaluation.
        generator: Source of the subset that the quantile is taken from where there are more than 10 million entries.

    Returns:
        1 where called and 0 elsewhere, in evidence's shape and dtype. Nothing exceeds the maximum: a rate of 0 calls
        nothing.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: ``evidence`` is empty, or ``rate`` is out of range.

    Example:
        >>> threshold_evidence(torch.tensor([0.1, 3.0, 2.0, -1.0]), rate=0.25)
        tensor([0., 1., 0., 0.])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), its public code.
    """
    check_floating("evidence", evidence)
    check_in_range("rate", rate, 0.0, 1.0)
    if evidence.numel() == 0:
        raise ValueError(f"evidence has shape {tuple(evidence.shape)}; wanted at least one entry.")
    entries = evidence.detach().flatten()
    if entries.numel() > _MOST_IN_QUANTILE:
        draw = torch.randint(entries.numel(), (_MOST_IN_QUANTILE,), generator=generator, device=entries.device)
        entries = entries[draw]
    entries = entries.to(torch.promote_types(entries.dtype, torch.float32))  # quantile wants float or double
    level = torch.as_tensor(1 - rate, dtype=entries.dtype, device=entries.device)
    return (evidence > torch.quantile(entries, level)).to(evidence.dtype)


def detection_scores(detected: Tensor, activity: Tensor) -> dict[str, Tensor]:
    """Share of entries that are right, of onsets that were found and of other bins that were left alone.

    Args:
        detected: 1 where a motif was called, else 0.
        activity: The onsets, 1 or 0, in the same shape.

    Returns:
        ``accuracy``, ``true_positive`` (NaN without onsets) and ``true_negative``, each ``()``.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> detection_scores(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
        {'accuracy': tensor(0.7500), 'true_positive': tensor(1.), 'true_negative': tensor(0.6667)}

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), its public code.
    """
    check_shape("detected", detected, activity.shape, "as activity")
    dtype = torch.promote_types(detected.dtype, torch.float32)
    found, onset = detected.to(dtype), (activity == 1).to(dtype)
    return {
        "accuracy": (detected == activity).to(dtype).mean(),
        "true_positive": (found * onset).sum() / onset.sum(),
        "true_negative": 1 - (found * (1 - onset)).sum() / (1 - onset).sum(),
    }


def make_motif_kernel(
    noise: Tensor,
    *,
    excitability: float = 4.0,
    density: float = 0.05,
    tau_decay: float = 0.4,
    tau_rise: float = 0.05,
    duration: float = 1.0,
    spike_shape: Sequence[float] = (1.0, -0.8, -0.2),
) -> Tensor:
    r"""Random motifs: sparse spikes at random delays, each followed by a dip that balances it.

    Formula:
        .. math:: S = E Z \cdot [Z > \Phi^{-1}(1 - p)] \cdot e^{-t/\tau_{decay}} (1 - e^{-t/\tau_{rise}}), \quad
            K_d = \sum_j s_j S_{d + 1 - j}

    Args:
        noise: The Z, standard normal ``(N, M, D)`` neurons, motifs and delays.
        excitability: The E, how many log-odds a spike adds.
        density: Share p of delays that have a spike, in (0, 1).
        tau_decay: Time in which spikes become weaker along the motif.
        tau_rise: Time from the motif's start in which they become possible.
        duration: Time of the last delay; the first is at 0.
        spike_shape: What a spike adds at its bin and at later ones, from the one before on; sums to 0 by default.

    Returns:
        ``(M, N, D)``, in noise's dtype.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: The shape, an even D or length of ``spike_shape``, ``density``, ``tau_decay``, ``tau_rise`` or
            ``duration`` is wrong.

    Example:
        >>> kernel = make_motif_kernel(torch.randn(128, 144, 31, generator=torch.Generator().manual_seed(0)))
        >>> kernel.shape
        torch.Size([144, 128, 31])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), its public code.
    """
    check_floating("noise", noise)
    check_in_range("density", density, 0.0, 1.0, low_open=True, high_open=True)
    for name, value in (("tau_decay", tau_decay), ("tau_rise", tau_rise), ("duration", duration)):
        check_in_range(name, value, 0.0, low_open=True)
    if noise.ndim != 3 or noise.shape[-1] % 2 == 0:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; wanted (neurons, motifs, delays), delays odd.")
    if len(spike_shape) % 2 == 0:
        raise ValueError(f"spike_shape has {len(spike_shape)} numbers; wanted an odd number of them.")
    threshold = torch.special.ndtri(torch.tensor(1 - density, dtype=torch.float64)).item()
    time = torch.linspace(0, duration, noise.shape[-1], dtype=noise.dtype, device=noise.device)
    envelope = torch.exp(-time / tau_decay) * (1 - torch.exp(-time / tau_rise))
    spikes = excitability * torch.where(noise > threshold, noise, 0.0) * envelope
    shape = torch.tensor(list(spike_shape)[::-1], dtype=noise.dtype, device=noise.device)
    balanced = F.conv1d(spikes.flatten(0, 1).unsqueeze(1), shape.reshape(1, 1, -1), padding=len(spike_shape) // 2)
    return balanced.reshape(noise.shape).transpose(0, 1).contiguous()


def sample_activity(
    num_trials: int,
    num_motifs: int,
    num_bins: int,
    *,
    rate: float = 0.001,
    num_delays: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw when motifs start: independent onsets, none where a motif would not fit.

    Args:
        num_trials: B.
        num_motifs: M.
        num_bins: T.
        rate: Probability of an onset in a bin, in [0, 1].
        num_delays: D, odd; the first and last D // 2 bins have no onsets.
        generator: Source of the draw.

    Returns:
        ``(B, M, T)`` of 0 and 1.

    Raises:
        ValueError: ``rate`` is out of range, or ``num_delays`` is even or exceeds ``num_bins``.

    Example:
        >>> activity = sample_activity(10, 3, 100, rate=0.02, num_delays=31)
        >>> bool(activity[..., :15].any())
        False

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), its public code.
    """
    check_in_range("rate", rate, 0.0, 1.0)
    if num_delays < 1 or num_delays % 2 == 0 or num_delays > num_bins:
        raise ValueError(f"num_delays is {num_delays}; wanted an odd number up to num_bins={num_bins}.")
    onsets = torch.rand(num_trials, num_motifs, num_bins, generator=generator) < rate
    time = torch.arange(num_bins)
    fits = (time >= num_delays // 2) & (time < num_bins - num_delays // 2)
    return (onsets & fits).float()


def sample_raster(
    activity: Tensor,
    kernel: Tensor,
    *,
    firing_rate: float = 0.001,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw the spikes that onsets and motifs cause.

    Args:
        activity: Onsets ``(B, M, T)``.
        kernel: Log-odds ``(M, N, D)``, D odd.
        firing_rate: Probability of a spike where no motif is, in (0, 1).
        generator: Source of the draw.
        noise: The draw itself, uniform in [0, 1) ``(B, N, T)``.

    Returns:
        ``(B, N, T)`` of 0 and 1.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, an even D or ``firing_rate`` is wrong.

    Example:
        >>> kernel = torch.full((1, 2, 3), 100.0)
        >>> sample_raster(torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]), kernel, firing_rate=1e-9)
        tensor([[[0., 1., 1., 1., 0.],
                 [0., 1., 1., 1., 0.]]])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), the generative model.
    """
    probability = raster_logits(activity, kernel, firing_rate=firing_rate).sigmoid()
    if noise is None:
        noise = torch.rand(probability.shape, generator=generator, dtype=probability.dtype, device=probability.device)
    check_shape("noise", noise, probability.shape, "one draw for each trial, neuron and bin")
    return (noise < probability).to(probability.dtype)


class MotifKernelLearner(nn.Module):
    """Learns motifs from rasters whose onsets are known.

    Reach for it where a stimulus or a behaviour tells when motifs start. The problem is convex: where it starts does
    not matter, and it starts from no motif at all.

    Args:
        num_neurons: N.
        num_motifs: M.
        num_delays: D, odd.
        firing_rate: Probability of a spike where no motif is, in (0, 1).

    Attributes:
        kernel: Log-odds that each motif adds to each neuron and delay ``(M, N, D)``, learnable.

    Example:
        >>> learner = MotifKernelLearner(num_neurons=2, num_motifs=1, num_delays=3, firing_rate=0.5)
        >>> learner(torch.zeros(1, 1, 4))[0, 0]
        tensor([0., 0., 0., 0.], grad_fn=<SelectBackward0>)

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077), the supervised mode of its public code.
    """

    def __init__(self, num_neurons: int, num_motifs: int, num_delays: int, *, firing_rate: float = 0.001) -> None:
        super().__init__()
        check_in_range("firing_rate", firing_rate, 0.0, 1.0, low_open=True, high_open=True)
        _check_odd(num_delays)
        self.firing_rate = firing_rate
        self.kernel = nn.Parameter(torch.zeros(num_motifs, num_neurons, num_delays))

    def forward(self, activity: Tensor) -> Tensor:
        """Log-odds of spikes ``(B, N, T)`` given onsets ``(B, M, T)``."""
        return raster_logits(activity, self.kernel, firing_rate=self.firing_rate)

    def fit(
        self,
        batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
        *,
        num_steps: int | None = None,
        learning_rate: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> list[float]:
        """Minimise :func:`raster_likelihood_loss` over the kernel.

        Args:
            batches: Pairs (activity, raster), a step each, endless ones with ``num_steps``; or one pair of tensors
                that every step sees.
            num_steps: Number of steps; all batches where it is None (1000 for one pair).
            learning_rate: Of Adam.
            optimizer: In place of Adam.

        Returns:
            The loss of each step.
        """

        def loss(activity: Tensor, raster: Tensor) -> Tensor:
            return raster_likelihood_loss(self.kernel, activity, raster, firing_rate=self.firing_rate)

        return _fit(self, loss, batches, num_steps, learning_rate, optimizer)

    def extra_repr(self) -> str:
        """The sizes and the firing rate."""
        motifs, neurons, delays = self.kernel.shape
        return f"num_neurons={neurons}, num_motifs={motifs}, num_delays={delays}, firing_rate={self.firing_rate!r}"


class SpikingMotifDetector(nn.Conv1d):
    """Detects motifs in rasters: logistic regression over neurons and delays.

    Reach for it where motifs are to be found and onsets to learn from are known. With the kernel known,
    :meth:`from_kernel` needs no training.

    Args:
        num_neurons: N.
        num_motifs: M.
        num_delays: D, odd.
        bias: Whether each motif has a learnable bias.

    Shape:
        - input: rasters ``(B, N, T)``; output: log-odds of an onset ``(B, M, T)``.

    Attributes:
        weight: Log-odds ``(M, N, D)``.
        bias: ``(M,)``, or None.

    Example:
        >>> SpikingMotifDetector(num_neurons=8, num_motifs=2, num_delays=5)(torch.zeros(3, 8, 20)).shape
        torch.Size([3, 2, 20])

    Source:
        Perrinet (ICANN 2023, arXiv 2307.14077): the paper trains it with binary cross-entropy on the true onsets, as
        :meth:`fit` does; its public code only uses it as a container of the kernel.
    """

    def __init__(self, num_neurons: int, num_motifs: int, num_delays: int, bias: bool = True) -> None:
        _check_odd(num_delays)
        super().__init__(num_neurons, num_motifs, num_delays, padding=num_delays // 2, bias=bias)

    @classmethod
    def from_kernel(cls, kernel: Tensor, *, bias: Tensor | None = None) -> SpikingMotifDetector:
        """A detector whose weights are the kernel ``(M, N, D)`` and the bias ``(M,)`` (none where it is None)."""
        motifs, neurons, delays = _checked(kernel).shape
        detector = cls(neurons, motifs, delays, bias=bias is not None).to(kernel)
        with torch.no_grad():
            detector.weight.copy_(kernel)
            if bias is not None and detector.bias is not None:
                detector.bias.copy_(bias)
        return detector

    def fit(
        self,
        batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
        *,
        num_steps: int | None = None,
        learning_rate: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> list[float]:
        """Minimise the binary cross-entropy of the true onsets.

        Args:
            batches: Pairs (activity, raster), a step each, endless ones with ``num_steps``; or one pair of tensors
                that every step sees.
            num_steps: Number of steps; all batches where it is None (1000 for one pair).
            learning_rate: Of Adam.
            optimizer: In place of Adam.

        Returns:
            The loss of each step.
        """

        def loss(activity: Tensor, raster: Tensor) -> Tensor:
            logits = self(raster.to(self.weight.dtype))
            return F.binary_cross_entropy_with_logits(logits, activity.to(logits.dtype))

        return _fit(self, loss, batches, num_steps, learning_rate, optimizer)


def _fit(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    num_steps: int | None,
    learning_rate: float,
    optimizer: torch.optim.Optimizer | None,
) -> list[float]:
    optimizer = optimizer or torch.optim.Adam(module.parameters(), learning_rate)
    losses = []
    for activity, raster in _steps(batches, num_steps):
        optimizer.zero_grad()
        value = loss(activity, raster)
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(value.item())
    return losses


def _steps(
    batches: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]], num_steps: int | None
) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(batches, tuple):
        activity, raster = batches
        if isinstance(activity, Tensor) and isinstance(raster, Tensor):
            return repeat((activity, raster), 1000 if num_steps is None else num_steps)
    return islice(cast("Iterable[tuple[Tensor, Tensor]]", batches), num_steps)


def _checked(kernel: Tensor) -> Tensor:
    """The kernel with halves widened."""
    check_floating("kernel", kernel)
    if kernel.ndim != 3:
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; wanted (motifs, neurons, delays).")
    if kernel.shape[-1] % 2 == 0:
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; wanted an odd number of delays on the last axis.")
    return kernel.float() if kernel.dtype in (torch.float16, torch.bfloat16) else kernel


def _check_trials(name: str, trials: Tensor, size: int, of: str) -> None:
    if not isinstance(trials, Tensor):
        raise TypeError(f"{name} is {type(trials).__name__}; wanted a tensor.")
    if trials.ndim != 3 or trials.shape[1] != size:
        raise ValueError(
            f"{name} has shape {tuple(trials.shape)}; wanted (trials, {size}, bins): kernel has {size} {of}."
        )


def _check_odd(num_delays: int) -> None:
    if num_delays < 1 or num_delays % 2 == 0:
        raise ValueError(f"num_delays is {num_delays}; wanted an odd number, so that the padding keeps the length.")
