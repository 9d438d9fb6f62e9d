"""METEOR by hand: matches, pieces, stems, several references."""

import pytest

from lossary.language import meteor_score


def test_by_hand() -> None:
    assert meteor_score("a b c d", "a b c d") == pytest.approx(1 - 0.5 * (1 / 4) ** 3)
    # a and c of three words match; a lies alone, so does c: two pieces of two words.
    assert meteor_score("a x c", "a y y c") == pytest.approx(0.5 * (2 / 3 * 1 / 2) / (0.9 * 2 / 3 + 0.1 * 1 / 2))
    assert meteor_score("a x c", "a y y c", gamma=0.0, alpha=1.0) == pytest.approx(1 / 2), "recall"
    assert meteor_score("a x c", "a y y c", gamma=0.0, alpha=0.0) == pytest.approx(2 / 3), "precision"
    assert meteor_score("c d a b", "a b c d", beta=1.0) == pytest.approx(1 - 0.5 * 2 / 4)
    assert meteor_score("x", "y") == meteor_score("", "y") == meteor_score("y", "") == 0


def test_repeated_words_match_once_and_from_the_end() -> None:
    """The hypothesis's last word meets the reference's last: with two, two pieces become one."""
    assert meteor_score("the the", "the", gamma=0.0, alpha=0.0) == pytest.approx(1 / 2)
    assert meteor_score("a the", "the a the") == pytest.approx((1 - 0.5 / 8) * (2 / 3) / (0.9 + 0.1 * 2 / 3))


def test_stems_and_references() -> None:
    stem = lambda word: word.removesuffix("s")  # noqa: E731
    assert meteor_score("Cats sleep", ("cat", "sleeps")) == 0
    assert meteor_score("Cats sleep", ("cat", "sleeps"), stem=stem) == pytest.approx(1 - 0.5 / 8)
    assert meteor_score("cats cat", "cat cats", stem=stem) == meteor_score("cats cat", "cat cats"), (
        "the same word goes first"
    )
    assert meteor_score("a b", ["x y", "a b", "a"]) == meteor_score("a b", "a b")


@pytest.mark.parametrize(
    ("words", "said"),
    [({"alpha": 1.5}, "alpha is 1.5"), ({"beta": -1.0}, "beta is -1.0"), ({"gamma": float("nan")}, "gamma is nan")],
)
def test_bad_numbers(words: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        meteor_score("a", "a", **words)
    with pytest.raises(ValueError, match="at least one reference"):
        meteor_score("a", [])
