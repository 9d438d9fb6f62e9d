"""The rule of the verdicts: right in size, defined at the ends, and with teeth against chance."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from lossary.compare.judge import (
    corrected_standard_error,
    detectable_difference,
    interval,
    judge,
    recommend,
)

FOLDS, SPLITS = 5, 10
Array = npt.NDArray[np.float64]
Rule = Callable[[dict[str, Array]], bool]


def corrected(improvements: dict[str, Array]) -> bool:
    """Whether the product's rule leaves the baseline."""
    return recommend(improvements, folds=FOLDS, worth=0.0) is not None


def uncorrected(improvements: dict[str, Array]) -> bool:
    """The careless rule: an ordinary paired t-test for each candidate, splits taken as independent."""
    return any(np.mean(values) > 0 and stats.ttest_1samp(values, 0).pvalue < 0.05 for values in improvements.values())


def too_often(wrong: int, runs: int) -> bool:
    """Whether so many wrong recommendations speak against an error rate of 5%: exact binomial test at 1%."""
    return bool(stats.binomtest(wrong, runs, 0.05, alternative="greater").pvalue < 0.01)


class TestTeeth:
    @pytest.mark.parametrize(("rule", "fails"), [(corrected, False), (uncorrected, True)])
    def test_equal_candidates_on_overlapping_splits(self, rule: Rule, fails: bool) -> None:
        """Six candidates as good as the baseline; splits correlate by 1/folds: training sets overlap."""
        generator = np.random.default_rng(0)
        rho, runs = 1 / FOLDS, 2000
        common = generator.normal(size=(runs, 7, 1)) * math.sqrt(rho)
        scores = common + generator.normal(size=(runs, 7, SPLITS)) * math.sqrt(1 - rho)
        wrong = sum(rule({str(c): run[c] - run[0] for c in range(1, 7)}) for run in scores)
        assert too_often(wrong, runs) is fails

    @pytest.mark.parametrize(("rule", "fails"), [(corrected, False), (uncorrected, True)])
    def test_learners_equal_by_symmetry(self, rule: Rule, fails: bool) -> None:
        """Two different learners, one for each of two exchangeable features, on small tables: equal expected risk."""
        generator = np.random.default_rng(1)
        runs = 1000
        wrong = sum(rule({"second": brier_by_split(*small_table(generator), generator)}) for _ in range(runs))
        assert too_often(wrong, runs) is fails

    def test_a_better_candidate_is_found(self) -> None:
        generator = np.random.default_rng(2)
        found = sum(corrected({"a": generator.normal(2.0, 1.0, SPLITS)}) for _ in range(200))
        assert found > 160


def small_table(generator: np.random.Generator) -> tuple[Array, Array]:
    """80 rows of two exchangeable features and a class that depends on both alike."""
    x = generator.normal(size=(80, 2))
    y = (x.sum(1) + generator.normal(size=80) * 2 > 0).astype(float)
    return x, y


def brier_by_split(x: Array, y: Array, generator: np.random.Generator) -> Array:
    """Brier score of regression on the first feature less that on the second, over 2 x 5 folds."""
    differences = []
    for _ in range(SPLITS // FOLDS):
        fold = np.empty(len(y), dtype=int)
        for label in (0, 1):  # stratified
            members = generator.permutation(np.flatnonzero(y == label))
            fold[members] = np.arange(len(members)) % FOLDS
        for k in range(FOLDS):
            train, test = fold != k, fold == k
            scores = []
            for feature in (0, 1):
                design = np.stack([np.ones(len(y)), x[:, feature]], 1)
                coefficients = np.linalg.lstsq(design[train], y[train], rcond=None)[0]
                scores.append(np.mean((np.clip(design[test] @ coefficients, 0, 1) - y[test]) ** 2))
            differences.append(scores[0] - scores[1])
    return np.array(differences)


class TestNumbers:
    def test_standard_error_is_nadeau_bengio(self) -> None:
        differences = np.array([0.1, 0.3, 0.2, 0.5, 0.1])
        expected = math.sqrt(np.var(differences, ddof=1) * (1 / 5 + 1 / 4))
        assert corrected_standard_error(differences, folds=5) == pytest.approx(expected)

    def test_interval_is_simultaneous(self) -> None:
        differences = np.random.default_rng(0).normal(size=10)
        one, six = (interval(differences, folds=5, comparisons=m) for m in (1, 6))
        assert six[0] < one[0] < np.mean(differences) < one[1] < six[1]
        half = stats.t.ppf(1 - 0.05 / 12, 9) * corrected_standard_error(differences, 5)
        assert six[1] - six[0] == pytest.approx(2 * half)

    def test_detectable_difference_has_power(self) -> None:
        """Draws with that true difference are found in four of five cases."""
        generator = np.random.default_rng(0)
        rho, found, runs = 1 / FOLDS, 0, 4000
        # The corrected standard error estimates the true one of the mean: var (1/J + rho/(1 - rho)) of the residuals.
        sizes = []
        for _ in range(runs):
            noise = math.sqrt(rho) * generator.normal() + math.sqrt(1 - rho) * generator.normal(size=SPLITS)
            sizes.append(detectable_difference(noise, folds=FOLDS, comparisons=3))
        true = float(np.mean(sizes))
        for _ in range(runs):
            noise = math.sqrt(rho) * generator.normal() + math.sqrt(1 - rho) * generator.normal(size=SPLITS)
            found += interval(noise + true, folds=FOLDS, comparisons=3)[0] > 0
        assert 0.74 < found / runs < 0.88

    def test_probability_of_being_best_is_symmetric_and_sums_to_one(self) -> None:
        generator = np.random.default_rng(0)
        scores = {"cross_entropy": generator.normal(size=10), "b": generator.normal(size=10)}
        verdicts = judge(scores, folds=5, higher_is_better=True).verdicts
        mirrored = judge({k: -v for k, v in scores.items()}, folds=5, higher_is_better=False).verdicts
        assert sum(v.probability_best for v in verdicts.values()) == pytest.approx(1)
        assert verdicts["b"].probability_best == pytest.approx(mirrored["b"].probability_best, abs=0.01)

    def test_probability_of_being_best_is_the_correlated_t_test(self) -> None:
        generator = np.random.default_rng(3)
        a, b = generator.normal(size=10), generator.normal(0.3, 1, size=10)
        verdict = judge({"cross_entropy": a, "b": b}, folds=5, higher_is_better=True).verdicts["b"]
        d = b - a
        exact = stats.t.cdf(d.mean() / math.sqrt(np.var(d, ddof=1) * (1 / 10 + 0.2 / 0.8)), 9)
        assert verdict.probability_best == pytest.approx(exact, abs=0.015)


def scores_of(*differences: float, base: float = 1.0) -> dict[str, Array]:
    """Cross-entropy and candidates that differ from it by about so much, lower being better."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(len(differences), SPLITS)) * 1e-3
    scores = {"cross_entropy": np.full(SPLITS, base)}
    return scores | {f"c{i}": base - d + noise[i] for i, d in enumerate(differences)}


class TestVerdicts:
    def test_words(self) -> None:
        judged = judge(scores_of(0.1, -0.1, 0.0), folds=FOLDS, higher_is_better=False, min_effect=0.01)
        words = [judged.verdicts[name].verdict for name in ("cross_entropy", "c0", "c1", "c2")]
        assert words == ["baseline", "better", "worse", "equivalent"]
        assert judged.recommended == "c0"
        assert judged.tied == ()
        assert judged.verdicts["c0"].gain == pytest.approx(0.1, abs=0.01)

    def test_better_but_too_small_is_not_recommended(self) -> None:
        judged = judge(scores_of(0.02), folds=FOLDS, higher_is_better=False, min_effect=0.05)
        assert judged.verdicts["c0"].verdict == "better"
        assert judged.recommended == "cross_entropy"
        assert "no reason to leave cross-entropy" in judged.sentence
        assert "c0" in judged.sentence

    def test_undecided(self) -> None:
        generator = np.random.default_rng(0)
        scores = {"cross_entropy": generator.normal(1, 0.2, SPLITS), "c0": generator.normal(1, 0.2, SPLITS)}
        assert judge(scores, folds=FOLDS, higher_is_better=False).verdicts["c0"].verdict == "undecided"

    def test_those_not_told_apart_are_named(self) -> None:
        judged = judge(scores_of(0.1, 0.1001, 0.05), folds=FOLDS, higher_is_better=False)
        assert judged.recommended in ("c0", "c1")
        assert set(judged.tied) == {"c0", "c1"} - {judged.recommended}

    def test_zero_variance(self) -> None:
        scores = {"cross_entropy": np.ones(SPLITS), "same": np.ones(SPLITS), "always": np.full(SPLITS, 0.9)}
        judged = judge(scores, folds=FOLDS, higher_is_better=False)
        assert judged.verdicts["same"].verdict == "undecided"  # difference 0: no evidence of anything
        assert judged.verdicts["always"].verdict == "better"
        assert judged.recommended == "always"

    def test_one_split_tells_nothing(self) -> None:
        scores = {"cross_entropy": np.array([1.0]), "c0": np.array([0.1])}
        judged = judge(scores, folds=2, higher_is_better=False)
        assert judged.recommended == "cross_entropy"
        assert "no test was made" in judged.sentence
        assert math.isnan(judged.detectable)

    def test_baseline_alone(self) -> None:
        judged = judge({"cross_entropy": np.ones(SPLITS)}, folds=FOLDS, higher_is_better=False)
        assert judged.recommended == "cross_entropy"
