"""The beta mixture: recovery, moments, posteriors, degenerate losses; the noise model's table; scikit-learn's ways."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from lossary.classification import BetaMixture, LossNormalizer, NoiseModel


def losses_of(seed: int = 0, size: int = 2000, noisy: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Losses of right and wrong labels as a half-trained network gives them, and which are wrong."""
    random = np.random.default_rng(seed)
    wrong = random.random(size) < noisy
    return np.where(wrong, random.normal(3.0, 0.7, size).clip(0.5), random.gamma(1.0, 0.3, size)), wrong


def test_a_known_mixture_is_recovered() -> None:
    random = np.random.default_rng(0)
    low = random.random(20_000) < 0.6
    values = np.where(low, random.beta(2, 10, 20_000), random.beta(8, 2, 20_000))
    mixture = BetaMixture(max_iter=30).fit(values)
    np.testing.assert_allclose(mixture.alphas, [2, 8], rtol=0.1)
    np.testing.assert_allclose(mixture.betas, [10, 2], rtol=0.1)
    np.testing.assert_allclose(mixture.weights, [0.6, 0.4], rtol=0.1)
    assert (mixture.predict(values) == ~low).mean() > 0.97
    swapped = BetaMixture(max_iter=30, init=((2, 1), (1, 2))).fit(values)
    np.testing.assert_allclose(swapped.alphas, mixture.alphas, rtol=1e-3)  # component 1 stays the higher one


@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.1, 0.9))
def test_the_mean_is_kept_and_posteriors_are_bayes_rule(seed: int, steps: int, share: float) -> None:
    random = np.random.default_rng(seed)
    values = np.where(random.random(300) < share, random.beta(1.5, 6, 300), random.beta(5, 1.5, 300))
    mixture = BetaMixture(steps).fit(values)
    means = mixture.alphas / (mixture.alphas + mixture.betas)
    assert means[1] >= means[0]
    assert mixture.weights @ means == pytest.approx(values.clip(1e-4, 1 - 1e-4).mean(), rel=1e-9)
    x = np.linspace(0.01, 0.99, 21)
    joint = np.stack(
        [w * stats.beta.pdf(x, a, b) for a, b, w in zip(mixture.alphas, mixture.betas, mixture.weights, strict=True)]
    )
    np.testing.assert_allclose(mixture.probability(x), joint.sum(0))
    np.testing.assert_allclose(mixture.posterior(x), joint[1] / (joint.sum(0) + 1e-12))
    np.testing.assert_allclose(mixture.score_samples(x), np.log(joint.sum(0)))
    np.testing.assert_allclose(mixture.predict_proba(x).sum(1), 1, rtol=1e-6)
    assert mixture.score(x) == pytest.approx(np.log(joint.sum(0)).mean())


@pytest.mark.parametrize("values", [[0.3] * 5, [0.0, 1.0] * 5, [0.0] * 4, [1.0] * 4, [0.5], [0.2] * 9 + [0.9]], ids=str)
def test_degenerate_values_give_numbers(values: list[float]) -> None:
    mixture = BetaMixture().fit(values)
    for parameters in (mixture.alphas, mixture.betas, mixture.weights):
        assert np.isfinite(parameters).all()
        assert (parameters > 0).all()
    x = np.array([0.0, 1e-9, 0.5, 1.0])
    assert np.isfinite(mixture.posterior(x)).all()
    assert np.isfinite(NoiseModel().fit(np.array(values)).noise_probability(np.array(values))).all()


def test_normalizer_stretches_between_percentiles() -> None:
    losses = np.arange(101.0)
    normalizer = LossNormalizer().fit(losses)
    assert (normalizer.low_, normalizer.high_) == pytest.approx((5 + 1e-5, 95))
    expected = ((losses - 5 - 1e-5) / (90 - 1e-5 + 1e-6)).clip(1e-3, 1 - 1e-3)
    inside = slice(6, 95)
    np.testing.assert_allclose(normalizer.transform(losses)[inside], expected[inside])
    assert normalizer.transform(np.array([-1.0, 1e9, np.inf])).tolist() == [1e-3, 1 - 1e-3, 1 - 1e-3]


def test_noise_model_by_its_steps() -> None:
    losses, wrong = losses_of()
    model = NoiseModel().fit(losses)
    low, high = np.percentile(losses, [5, 95])
    t = (losses - low - 1e-5) / (high - low - 1e-5 + 1e-6)
    t = np.where(t >= 1, 1 - 1e-3, np.where(t <= 0, 1e-3, t))
    mixture = BetaMixture().fit(t[(losses >= low) & (losses <= high)])
    np.testing.assert_allclose(mixture.alphas, model.mixture_.alphas)
    table = mixture.posterior(np.linspace(1e-12, 1 - 1e-12, 100))
    expected = np.maximum.accumulate(table)[(100 * t).astype(int)].clip(1e-4, 1 - 1e-4)
    np.testing.assert_allclose(model.noise_probability(losses), expected)
    assert np.average(model.noise_probability(losses)[wrong] > 0.5) > 0.9
    assert np.average(model.noise_probability(losses)[~wrong] < 0.5) > 0.9


@given(st.integers(0, 2**31), st.floats(0.1, 0.8))
def test_larger_losses_are_never_less_likely_wrong(seed: int, noisy: float) -> None:
    losses, _ = losses_of(seed, 400, noisy)
    probability = NoiseModel().fit(losses).noise_probability(np.linspace(0, 2 * losses.max(), 300))
    after = probability.argmin()
    assert (np.diff(probability[after:]) >= 0).all()
    assert probability.min() >= 1e-4
    assert probability.max() <= 1 - 1e-4


def test_tensors_for_tensors() -> None:
    losses, _ = losses_of()
    model = NoiseModel().fit(torch.from_numpy(losses).requires_grad_())
    probability = model.noise_probability(torch.from_numpy(losses).float())
    assert probability.dtype == torch.float32
    np.testing.assert_allclose(probability, model.noise_probability(losses), atol=0.05)
    assert torch.equal(model.mixture_.predict(torch.tensor([0.1, 0.9])), torch.tensor([False, True]))
    assert model.noise_probability(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]
    assert model.noise_probability(torch.zeros(2, 3)).shape == (2, 3)
    half = torch.from_numpy(losses).bfloat16()
    probability = NoiseModel().fit(half).noise_probability(half)
    assert probability.dtype == torch.float32
    assert probability.max() < 1


def test_scikit_learn_knows_them() -> None:
    losses, _ = losses_of(size=300)
    for estimator in (BetaMixture(5, init_weights=(0.7, 0.3)), LossNormalizer(1, 99), NoiseModel(3, lookup=50)):
        twin = clone(estimator)
        assert twin.get_params() == estimator.get_params()
        assert twin.set_params(**twin.get_params()) is twin
        assert type(estimator).__name__ in repr(estimator)
        fitted = estimator.fit(losses / losses.max())
        assert fitted is estimator
    assert BetaMixture().fit(losses[:, None] / losses.max()).n_iter_ == 10
    for call in (BetaMixture().predict, LossNormalizer().transform, NoiseModel().noise_probability):
        with pytest.raises(NotFittedError):
            call(losses)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values run from 0.5 to 1.5; wanted numbers in"):
        BetaMixture().fit([0.5, 1.5])
    with pytest.raises(ValueError, match="values holds 0 numbers"):
        BetaMixture().fit([])
    with pytest.raises(ValueError, match="losses holds 2 numbers, not all finite"):
        NoiseModel().fit([0.5, np.nan])
    with pytest.raises(ValueError, match=r"values has shape \(2, 2\)"):
        BetaMixture().fit(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="lower is 60 and upper 40"):
        LossNormalizer(60, 40).fit([0.5, 0.6])
    for words, message in [
        (
            {"init": ((1, 2, 3), (2, 1, 1))},
            r"init has \(1, 2, 3\); wanted a positive number for each of two components",
        ),
        ({"init": ((-1, 2), (2, 1))}, r"init has \(-1, 2\)"),
        ({"init_weights": (-0.5, 1.5)}, r"init_weights has \(-0.5, 1.5\)"),
        ({"init_weights": (float("nan"), 1.0)}, r"init_weights has \(nan, 1.0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            BetaMixture(**words).fit([0.5, 0.7])
    with pytest.raises(ValueError, match="max_iter is 0"):
        BetaMixture(0).fit([0.5])
    with pytest.raises(ValueError, match="component is 2"):
        BetaMixture().fit([0.5, 0.7]).posterior(np.array([0.1]), 2)
