"""The order of rows of several sources: shares, no row twice unless it must be, one order on any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from synthetic import synthetic_cache
from torch.utils.data import BatchSampler

from adaptor_hf.training import AdaptorTrainingArguments
from adaptor_hf.training.pair_batches import PairCollator
from adaptor_hf.training.source_batches import SourceSampler, check_weights, source_sampler

NAMES = ["a", "b", "c"]


def cases(number: int):
    """Sizes of sources, weights and batches at random, and codes in no order."""
    generator = np.random.default_rng(7)
    for _ in range(number):
        sizes = generator.integers(8, 60, 3)
        codes = generator.permutation(np.repeat(np.arange(3), sizes))
        yield codes, sizes, generator.uniform(0.2, 5, 3), int(generator.integers(2, 9))


def epoch(sampler: SourceSampler, number: int) -> np.ndarray:
    sampler.set_epoch(number)
    order = np.array(list(sampler))
    assert len(order) == len(sampler)
    return order


def shown(order: np.ndarray, codes: np.ndarray, source: int) -> list[int]:
    """How often each row of a source is in an epoch."""
    counts = Counter(order.tolist())
    return [counts[row] for row in np.flatnonzero(codes == source)]


@pytest.mark.parametrize("by_source", [False, True])
def test_each_source_has_its_share_in_every_epoch_and_exactly_on_average(by_source):
    for codes, _, weights, size in cases(12):
        sampler = SourceSampler(codes, NAMES, size, weights=weights.tolist(), by_source=by_source, seed=3)
        unit = size if by_source else 1
        expected = weights / weights.sum() * len(sampler) / unit
        counts = np.array([np.bincount(codes[epoch(sampler, e)], minlength=3) / unit for e in range(60)])
        assert (np.abs(counts - expected) < 1 + 1e-9).all()
        # Rounded up with the probability of the rest: a mean of 60 draws of variance at most 1/4.
        assert (np.abs(counts.mean(0) - expected) < 4 * 0.5 / 60**0.5).all()


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_row_comes_twice_before_all_rows_of_its_source_came(by_source, weighted):
    for codes, sizes, weights, size in cases(20):
        given = weights.tolist() if weighted else None
        sampler = SourceSampler(codes, NAMES, size, weights=given, by_source=by_source, seed=1)
        order = epoch(sampler, 2)
        for source, rows in enumerate(sizes):
            counts = shown(order, codes, source)
            drawn = sum(counts)
            assert set(counts) <= {drawn // rows, drawn // rows + 1}
            assert len(counts) == rows


def test_without_weights_an_epoch_is_each_row_once():
    for codes, _, _, size in cases(10):
        order = epoch(SourceSampler(codes, NAMES, size), 0)
        assert sorted(order) == list(range(len(codes)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_by_source_are_of_one_source_and_have_no_row_twice(weighted, drop_last):
    for codes, _, weights, size in cases(20):
        given = weights.tolist() if weighted else None
        sampler = SourceSampler(codes, NAMES, size, weights=given, by_source=True, drop_last=drop_last, seed=5)
        batches = epoch(sampler, 1).reshape(-1, size)
        assert len(batches) == (len(codes) // size if drop_last else -(-len(codes) // size))
        assert all(len(set(codes[batch])) == 1 for batch in batches)
        assert all(len(set(batch.tolist())) == size for batch in batches)


def test_a_source_as_small_as_a_batch_fills_batches_without_repeating_a_row():
    codes = np.repeat([0, 1], [7, 50])
    sampler = SourceSampler(codes, ["a", "b"], 6, weights=[5, 1], by_source=True)
    for number in range(20):
        batches = epoch(sampler, number).reshape(-1, 6)
        assert all(len(set(batch.tolist())) == 6 for batch in batches)


def test_the_order_follows_from_seed_and_epoch_alone():
    codes, _, weights, size = next(cases(1))
    first, second = (SourceSampler(codes, NAMES, size, weights=weights.tolist(), seed=9) for _ in range(2))
    orders = [epoch(first, number) for number in range(4)]
    assert (epoch(second, 3) == orders[3]).all()
    assert not (orders[0] == orders[1]).all()
    other = SourceSampler(codes, NAMES, size, weights=weights.tolist(), seed=10)
    assert not (epoch(other, 0) == orders[0]).all()


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_together_have_the_batches_of_one(ranks, by_source):
    codes = np.repeat([0, 1], [37, 24])
    sampler = SourceSampler(codes, ["a", "b"], 8, weights=[1, 2], by_source=by_source, drop_last=True, seed=2)
    whole = list(BatchSampler(sampler, 8, drop_last=True))
    parts = [
        list(BatchSamplerShard(BatchSampler(sampler, 8 // ranks, drop_last=True), ranks, rank)) for rank in range(ranks)
    ]
    joined = [[row for batch in batches for row in batch] for batches in zip(*parts, strict=True)]
    assert joined == whole
    if by_source:
        assert all(len(set(codes[batch])) == 1 for batch in joined)


def test_impossible_weights_and_sources_are_refused():
    with pytest.raises(ValueError, match="3 numbers for 2 sources"):
        check_weights([1, 1, 1], 2)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="are positive numbers"):
            check_weights([1.0, wrong], 2)
    codes = np.repeat([0, 1], [5, 20])
    with pytest.raises(ValueError, match="'a' has 5 training pairs, fewer than a batch of 8"):
        SourceSampler(codes, ["a", "b"], 8, by_source=True)
    with pytest.raises(ValueError, match="'c' has no training pairs"):
        SourceSampler(codes, NAMES, 4)


def test_text_in_a_column_called_source_is_none_of_several():
    example = {"image_embeds": [0.5, 1.0], "text_embeds": [1.0, 2.0], "source": "table.csv:3"}
    assert set(PairCollator()([example, example])) == {"image_embeds", "text_embeds", "text_row"}
    numbered = [example | {"source": code} for code in (0, 1)]
    assert PairCollator()(numbered)["source"].tolist() == [0, 1]


def test_options_of_several_sources_are_refused_for_one(tmp_path):
    cache = synthetic_cache(tmp_path / "cache")
    common = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none"}
    assert source_sampler(cache, AdaptorTrainingArguments(**common)) is None
    for options in ({"dataset_weights": [1.0]}, {"source_batches": "by_source"}):
        with pytest.raises(ValueError, match="is of several sources, and the training data has one"):
            source_sampler(cache, AdaptorTrainingArguments(**common, **options))
    with pytest.raises(ValueError, match="source_batches must be one of"):
        AdaptorTrainingArguments(**common, source_batches="one")
