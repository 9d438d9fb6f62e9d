"""Markov sources in closed form, tokenizers that lose nothing, and losses between the entropy rate and no tokens."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossary.language import (
    BPETokenizer,
    DictionaryTokenizer,
    LZWTokenizer,
    MarkovSource,
    SwitchingSource,
    fixed_length_tokenizer,
    tokenization_gap,
    unigram_cross_entropy,
)

SEEDS = st.integers(0, 10_000)
SHARES = st.floats(0.01, 1.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(seed: int, length: int = 60, alphabet: int = 2) -> list[int]:
    source = torch.rand(alphabet, alphabet, generator=generator(seed)) + 0.05
    return MarkovSource(source / source.sum(1, keepdim=True)).sample(length, generator(seed)).tolist()


def tokenizers(alphabet: int = 2) -> list[DictionaryTokenizer]:
    return [
        DictionaryTokenizer([(0, 0), (0, 1, 1), (1, 0, 1, 1)], alphabet),
        LZWTokenizer(7, alphabet),
        BPETokenizer(6, alphabet_size=alphabet),
        fixed_length_tokenizer(3, alphabet),
    ]


# Sources


@given(SHARES, SHARES, st.integers(1, 4))
def test_switching_sources_in_closed_form(p: float, q: float, order: int) -> None:
    source = SwitchingSource(order, p, q)
    h = lambda x: -sum(y * math.log(y) for y in (x, 1 - x) if y > 0)  # noqa: E731
    one = p / (p + q)
    expected = {"entropy_rate": (1 - one) * h(p) + one * h(q), "unigram_entropy": h(one), "stationary_one": one}
    assert source.entropies() == pytest.approx(expected, abs=1e-12)
    if p * q < 0.99:  # for p = q = 1 and k > 1 the general form finds several laws
        general = MarkovSource(source.transition)
        torch.testing.assert_close(general.stationary(), source.stationary())
        del expected["stationary_one"]
        assert general.entropies() == pytest.approx(expected, abs=1e-9)


@given(SEEDS, st.integers(1, 3), st.integers(2, 3))
def test_the_stationary_law_stays(seed: int, order: int, alphabet: int) -> None:
    transition = torch.rand((alphabet,) * (order + 1), generator=generator(seed), dtype=torch.float64) + 0.01
    source = MarkovSource(transition / transition.sum(-1, keepdim=True))
    law = source.stationary()
    joint = law.unsqueeze(-1) * source.transition
    torch.testing.assert_close(joint.sum(0), law)  # the law of symbols 2 to k + 1
    assert source.entropy_rate() <= source.unigram_entropy() + 1e-12
    assert law.sum().item() == pytest.approx(1)


def test_samples_follow_the_transition() -> None:
    transition = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    source = MarkovSource(transition)
    sample = source.sample(60_000, generator(0))
    counts = torch.zeros(3, 3, dtype=torch.float64).index_put_(
        (sample[:-1], sample[1:]), torch.ones((), dtype=torch.float64), accumulate=True
    )
    torch.testing.assert_close(counts / counts.sum(1, keepdim=True), transition, atol=0.015, rtol=0)
    torch.testing.assert_close(counts.sum(1) / counts.sum(), source.symbol_law(), atol=0.015, rtol=0)


def test_switching_samples_depend_on_the_bit_k_before() -> None:
    sample = SwitchingSource(3, 0.2, 0.4).sample(60_000, generator(1))
    before, now = sample[:-3], sample[3:]
    assert now[before == 0].double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert now[before == 1].double().mean().item() == pytest.approx(0.6, abs=0.01)
    between = sample[2:-1]
    assert now[(before == 0) & (between == 1)].double().mean().item() == pytest.approx(0.2, abs=0.015)
    assert SwitchingSource(5, 0.2, 0.4).sample(3).shape == (3,)


def test_sources_say_what_was_wrong() -> None:
    with pytest.raises(ValueError, match="no probability"):
        MarkovSource(torch.tensor([[0.5, 0.4], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="several stationary laws"):
        MarkovSource(torch.eye(2)).stationary()
    with pytest.raises(ValueError, match="transition has shape"):
        MarkovSource(torch.ones(2, 3))
    with pytest.raises(ValueError, match="p is 0"):
        SwitchingSource(1, 0, 0.1)
    with pytest.raises(TypeError, match="order is"):
        SwitchingSource(1.0, 0.1, 0.1)  # type: ignore[arg-type]


# Tokenizers


@given(SEEDS, st.integers(2, 3), st.integers(0, 3))
def test_tokens_spell_the_text(seed: int, alphabet: int, which: int) -> None:
    tokenizer = tokenizers(alphabet)[which].fit(text(seed, alphabet=alphabet))
    other = text(seed + 1, alphabet=alphabet)
    methods = ["greedy", "minimal"] + (["merges"] if isinstance(tokenizer, BPETokenizer) else [])
    counts = {}
    for method in methods:
        ids = tokenizer.encode(other, method)  # type: ignore[arg-type]
        assert tokenizer.decode(ids).tolist() == other
        assert tokenizer.lengths[ids].sum() == len(other)
        counts[method] = len(ids)
    assert tokenizer.min_tokens(other) == counts["minimal"] == min(counts.values())


@given(SEEDS, st.integers(0, 3))
def test_no_segmentation_has_fewer_tokens(seed: int, which: int) -> None:
    tokenizer = tokenizers()[which].fit(text(seed))
    other = tuple(text(seed + 1, length=9))
    known = set(tokenizer.dictionary)
    fewest = min(
        len(cuts) + 1
        for count in range(9)
        for cuts in itertools.combinations(range(1, 9), count)
        if all(other[a:b] in known for a, b in itertools.pairwise((0, *cuts, 9)))
    )
    assert tokenizer.min_tokens(other) == fewest


@given(SEEDS, st.integers(1, 12), st.integers(2, 3))
def test_lzw_is_closed_under_prefixes(seed: int, size: int, alphabet: int) -> None:
    train = text(seed, alphabet=alphabet)
    dictionary = LZWTokenizer(size, alphabet).fit(train).dictionary
    learned = dictionary[:size]
    assert len(set(dictionary)) == len(dictionary) <= size + alphabet
    assert all(token[:-1] in {(), *learned[:place]} for place, token in enumerate(learned) if len(token) > 1)
    assert {(symbol,) for symbol in range(alphabet)} <= set(dictionary)
    spelled = [symbol for token in learned for symbol in token]
    if size <= 5:  # the text is long enough for these
        assert spelled[: len(train)] == train[: len(spelled)]


def test_lzw_ends_with_its_text() -> None:
    assert LZWTokenizer(10).fit([0, 0, 0]).dictionary == [(0,), (0, 0), (1,)]
    assert LZWTokenizer(10).fit([0, 0, 0, 0]).dictionary == [(0,), (0, 0), (1,)]  # what is left is a token already


def plain_merge(ids: list[int], left: int, right: int, token: int) -> list[int]:
    out, place = [], 0
    while place < len(ids):
        if ids[place : place + 2] == [left, right]:
            out.append(token)
            place += 2
        else:
            out.append(ids[place])
            place += 1
    return out


@given(SEEDS, st.integers(0, 10), st.integers(1, 3))
def test_bpe_merges_the_most_frequent_pair(seed: int, merges: int, alphabet: int) -> None:
    train = text(seed, alphabet=max(alphabet, 2)) if alphabet > 1 else [0] * 37
    tokenizer = BPETokenizer(merges, alphabet_size=alphabet).fit(train)
    ids = train
    for left, right, token in tokenizer.merges:
        pairs = list(itertools.pairwise(ids))
        assert pairs.count((left, right)) == max(map(pairs.count, pairs)) >= 2
        assert tokenizer.dictionary[token] == tokenizer.dictionary[left] + tokenizer.dictionary[right]
        ids = plain_merge(ids, left, right, token)
    assert tokenizer.encode(train, "merges").tolist() == ids
    if len(tokenizer.merges) < merges:  # it ended early: nothing was left that occurs twice
        pairs = list(itertools.pairwise(ids))
        assert not pairs or max(map(pairs.count, pairs)) < 2


def test_bpe_sizes() -> None:
    train = text(0, length=400)
    assert len(BPETokenizer(dict_size=9).fit(train).dictionary) == 9
    assert len(BPETokenizer(dict_size=9, min_count=10_000).fit(train).dictionary) == 2
    with pytest.raises(ValueError, match="exactly one of them"):
        BPETokenizer()
    with pytest.raises(ValueError, match="exactly one of them"):
        BPETokenizer(3, 5)


def test_fixed_length_tokens() -> None:
    tokenizer = fixed_length_tokenizer(3, 3)
    assert tokenizer.dictionary[:27] == list(itertools.product(range(3), repeat=3))
    assert tokenizer.dictionary[27:] == [(0,), (1,), (2,)]
    assert fixed_length_tokenizer(1).dictionary == [(0,), (1,)]


def test_tokenizers_say_what_was_wrong() -> None:
    tokenizer = DictionaryTokenizer([(0, 1)])
    with pytest.raises(ValueError, match="text contains 2"):
        tokenizer.encode([0, 2])
    with pytest.raises(ValueError, match="ids contains 3"):
        tokenizer.decode([3])
    with pytest.raises(ValueError, match="method is 'merges'"):
        tokenizer.encode([0], "merges")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dictionary contains"):
        DictionaryTokenizer([(0, 2)])
    with pytest.raises(ValueError, match="wanted integers"):
        tokenizer.encode(torch.rand(3))
    assert tokenizer.encode([]).tolist() == tokenizer.encode([], "minimal").tolist() == []


# Losses


@given(SEEDS)
def test_unigram_loss_is_the_entropy_of_tokens_times_tokens_per_character(seed: int) -> None:
    ids = torch.randint(5, (40,), generator=generator(seed))
    lengths = torch.tensor([1, 1, 2, 3, 5])
    law = torch.bincount(ids, minlength=5) / 40
    expected = (torch.special.entr(law).sum() * 40 / lengths[ids].sum()).item()
    assert unigram_cross_entropy(ids, lengths) == pytest.approx(expected, rel=1e-6)
    assert unigram_cross_entropy(ids, lengths, base="2") == pytest.approx(expected / math.log(2), rel=1e-6)
    other = torch.randint(5, (40,), generator=generator(seed + 1))
    assert unigram_cross_entropy(ids, lengths, test_ids=other) >= unigram_cross_entropy(other, lengths) - 1e-12


def test_tokens_never_seen() -> None:
    assert unigram_cross_entropy([0, 0], [1, 1], test_ids=[1], smoothing=0) == math.inf
    assert unigram_cross_entropy([0, 0], [1, 1], test_ids=[1]) == pytest.approx(math.log(6))
    assert unigram_cross_entropy([0, 0], [1, 1], test_ids=[0], smoothing=0) == 0
    with pytest.raises(ValueError, match="ids is empty"):
        unigram_cross_entropy([], [1])
    with pytest.raises(ValueError, match="base is 1"):
        unigram_cross_entropy([0], [1], base=1)


@pytest.mark.parametrize("order", [1, 2])
def test_larger_dictionaries_come_nearer_to_the_entropy_rate(order: int) -> None:
    source = SwitchingSource(order, 0.1, 0.1)
    gaps = [tokenization_gap(source, LZWTokenizer(d), 40_000, 10_000, generator=generator(0)) for d in (8, 64, 512)]
    losses = [gap["loss"] for gap in gaps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.65 * gaps[0]["unigram_loss"]
    assert all(loss > gaps[0]["entropy_rate"] for loss in losses)
    assert gaps[0]["ratio"] == losses[0] / gaps[0]["entropy_rate"]
    plain = tokenization_gap(source, DictionaryTokenizer(()), 40_000, 10_000, generator=generator(0))
    assert plain["loss"] == pytest.approx(math.log(2), abs=0.01)


def test_the_encoder_matters_as_much_as_the_dictionary() -> None:
    source = SwitchingSource(2, 0.1, 0.1)

    def loss(size: int, method: str) -> float:
        tokenizer = BPETokenizer(dict_size=size)
        return tokenization_gap(source, tokenizer, 20_000, 5_000, method=method, generator=generator(0))["loss"]

    assert loss(4, "greedy") > 1.2 * source.unigram_entropy()  # tokens that cut what belongs together
    assert loss(8, "minimal") < loss(8, "greedy") < loss(8, "merges") - 0.03


def test_alphabets_must_agree() -> None:
    with pytest.raises(ValueError, match="tokenizer has 3 symbols"):
        tokenization_gap(SwitchingSource(1, 0.1, 0.1), LZWTokenizer(4, 3), 10, 10)
