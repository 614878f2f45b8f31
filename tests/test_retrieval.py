"""Retrieval metrics and intervals: against plain loops, simulation and definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.evaluation import (
    alignment_and_uniformity,
    auroc_interval,
    bootstrap_interval,
    chance_recall,
    chance_retrieval,
    retrieval,
    retrieval_intervals,
    retrieval_metrics,
    retrieval_ranks,
)
from adaptor_hf.evaluation.retrieval import chance_of_ranks
from adaptor_hf.evaluation.statistics import bootstrap_draws
from adaptor_hf.evaluation.weighted import weighted_auroc

RECALLS = {f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} | {"mean_recall"}


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def ranks_by_loop(similarity, query_ids, candidate_ids) -> list[int]:
    ranks = []
    for row, query in zip(similarity, query_ids, strict=True):
        best = max(value for value, candidate in zip(row, candidate_ids, strict=True) if candidate == query)
        ranks.append(
            1 + sum(value >= best and candidate != query for value, candidate in zip(row, candidate_ids, strict=True))
        )
    return ranks


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([-1.0, 0.0, 1.0]), st.booleans()), min_size=1),
    block=st.integers(1, 40),
)
def test_ranks_are_those_of_a_loop_with_copies_ties_and_blocks(rows, block):
    ids = torch.tensor([row[0] for row in rows])
    # Few exact values: many similarities tie.
    queries = torch.tensor([[row[1], 1.0 - abs(row[1])] for row in rows])
    candidates = torch.tensor([[float(row[2]), float(not row[2])] for row in rows])
    expected = ranks_by_loop((queries @ candidates.T).tolist(), ids.tolist(), ids.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK_ELEMENTS", block)
        assert retrieval_ranks(queries, candidates, ids, ids).tolist() == expected


def test_metrics_are_those_of_a_loop_over_images_and_distinct_texts():
    ids = torch.tensor([7, 3, 7, 5, 3, 9, 7, 1, 0, 12, 15, 11, 2])
    images, texts_of = unit(len(ids), 4, seed=0), unit(16, 4, seed=1)
    texts = texts_of[ids]
    metrics, ranks = retrieval_metrics(images, texts, ids)
    distinct = sorted(set(ids.tolist()))
    to_text = ranks_by_loop((images @ texts_of[distinct].T).tolist(), ids.tolist(), distinct)
    to_image = ranks_by_loop((texts_of[distinct] @ images.T).tolist(), distinct, ids.tolist())
    assert ranks["image_to_text"].tolist() == to_text
    assert ranks["text_to_image"].tolist() == to_image
    for way, expected in (("image_to_text", to_text), ("text_to_image", to_image)):
        for k in (1, 5, 10):
            assert metrics[f"{way}_recall@{k}"] == pytest.approx(np.mean(np.array(expected) <= k))
        assert metrics[f"{way}_median_rank"] == np.median(expected)
        assert metrics[f"{way}_mean_rank"] == pytest.approx(np.mean(expected))
    assert metrics["mean_recall"] == pytest.approx(np.mean([metrics[name] for name in RECALLS - {"mean_recall"}]))


def test_blocks_give_the_same_as_one_block(monkeypatch):
    images, texts, ids = unit(300, 32, 0).float(), unit(300, 32, 1).float(), torch.arange(300) % 200
    whole = retrieval_metrics(images, texts, ids)
    monkeypatch.setattr(retrieval, "BLOCK_ELEMENTS", 1000)
    blocks = retrieval_metrics(images, texts, ids)
    assert whole[0] == blocks[0]
    assert all(torch.equal(whole[1][way], blocks[1][way]) for way in whole[1])


@pytest.mark.parametrize("rows", [7, 64, 131])
@pytest.mark.parametrize("width", [1, 48, 767])
def test_constant_embeddings_find_nothing(rows, width):
    embeds = unit(1, width, seed=rows).float().repeat(rows, 1)
    metrics, _ = retrieval_metrics(embeds, embeds, torch.arange(rows))
    assert metrics["image_to_text_recall@5"] == metrics["text_to_image_recall@5"] == 0
    assert metrics["image_to_text_median_rank"] == rows


def test_equal_embeddings_and_all_copies_find_everything():
    embeds = unit(40, 16, seed=0)
    assert retrieval_metrics(embeds, embeds, torch.arange(40))[0]["mean_recall"] == 1
    assert retrieval_metrics(unit(40, 16, 1), embeds, torch.zeros(40, dtype=torch.long))[0]["mean_recall"] == 1


def test_a_query_without_positive_is_named():
    with pytest.raises(ValueError, match="Query 1 has no positive among the 2"):
        retrieval_ranks(unit(2, 3, 0), unit(2, 3, 1), torch.tensor([0, 5]), torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_never_ranks_first(bad):
    images = unit(4, 3, 0)
    images[2, 1] = bad
    if bad == float("inf"):
        images[2, 0] = -bad
    with pytest.raises(ValueError, match="NaN"):
        retrieval_metrics(images, unit(4, 3, 1), torch.arange(4))


def test_chance_is_what_random_rankings_score():
    ids = torch.tensor([0] * 6 + [1] * 3 + list(range(2, 20)))
    expected = chance_retrieval(ids)
    assert {name: value for name, value in expected.items() if "recall" in name} == chance_recall(ids)
    assert set(chance_recall(ids)) == RECALLS
    draws = [retrieval_metrics(unit(len(ids), 8, 2 * n), unit(20, 8, 2 * n + 1)[ids], ids)[0] for n in range(400)]
    assert set(expected) == set(draws[0])
    for name, value in expected.items():
        if name.endswith("_median_rank"):
            continue  # that of the distribution, not the mean of the samples' medians: below
        scores = np.array([draw[name] for draw in draws])
        assert value == pytest.approx(scores.mean(), abs=4 * scores.std() / 20), name


def test_chance_of_ranks_is_that_of_every_order():
    candidates, positives = np.array([4, 5, 5, 3]), np.array([1, 2, 2, 3])
    found = chance_of_ranks(candidates, positives)
    pooled = []
    for row, (n, m) in enumerate(zip(candidates, positives, strict=True)):
        firsts = np.array([1 + min(order.index(one) for one in range(m)) for order in itertools.permutations(range(n))])
        assert found["mrr"][row] == pytest.approx((1 / firsts).mean())
        assert found["mean_rank"][row] == pytest.approx(firsts.mean())
        for k in (1, 5, 10):
            assert found[f"recall@{k}"][row] == pytest.approx((firsts <= k).mean())
        pooled += np.repeat(firsts, 120 // len(firsts)).tolist()
    assert found["median_rank"] == np.median(pooled)


@pytest.mark.parametrize("count", [7, 8])
def test_the_median_rank_by_chance_with_one_positive_is_the_middle(count):
    found = chance_retrieval(torch.arange(count))
    assert found["image_to_text_median_rank"] == found["image_to_text_mean_rank"] == (count + 1) / 2


def test_chance_with_fewer_candidates_than_k_is_one():
    assert chance_recall(torch.tensor([0, 1, 1]))["image_to_text_recall@5"] == 1
    assert chance_recall(torch.tensor([0, 1, 1]))["text_to_image_recall@10"] == 1


def test_alignment_and_uniformity_are_their_definitions():
    images, texts = unit(9, 5, 0), unit(9, 5, 1)
    metrics = alignment_and_uniformity(images, texts)
    distances = [((image - text) ** 2).sum().item() for image, text in zip(images, texts, strict=True)]
    assert metrics["alignment"] == pytest.approx(np.mean(distances))
    for name, rows in (("image", images), ("text", texts)):
        potentials = [np.exp(-2 * ((rows[i] - rows[j]) ** 2).sum().item()) for i in range(len(rows)) for j in range(i)]
        assert metrics[f"{name}_uniformity"] == pytest.approx(np.log(np.mean(potentials)), abs=1e-6)
    assert set(alignment_and_uniformity(images[:1], texts[:1])) == {"alignment"}
    collapsed = alignment_and_uniformity(images[:1].repeat(4, 1), texts[:4])
    assert collapsed["image_uniformity"] == pytest.approx(0, abs=1e-6)


class TestBootstrap:
    def test_it_is_wider_when_rows_of_a_patient_agree(self):
        generator = np.random.default_rng(0)
        of_patient = generator.integers(0, 2, 60).astype(float)
        patients = np.repeat(np.arange(60), 10)
        agreeing = bootstrap_interval(of_patient[patients], patients)
        alone = bootstrap_interval(of_patient[patients], np.arange(600))
        assert np.diff(agreeing) > 2.5 * np.diff(alone)

    def test_it_covers_the_mean_as_often_as_it_says(self):
        generator = np.random.default_rng(1)
        patients = np.repeat(np.arange(50), 4)
        covered = 0
        for run in range(200):
            rates = generator.beta(2, 2, 50)
            hits = (generator.random(200) < rates[patients]).astype(float)
            low, high = bootstrap_interval(hits, patients, num_resamples=300, seed=run)
            covered += low <= 0.5 <= high
        assert 0.89 <= covered / 200 <= 0.99

    def test_same_seed_same_interval_in_any_block_and_group_names(self):
        values, groups = np.random.default_rng(0).random(30), np.arange(30) // 3
        first = bootstrap_interval(values, groups)
        assert first == bootstrap_interval(values, np.array([f"p{group:02}" for group in groups]))
        assert first != bootstrap_interval(values, groups, seed=1)
        assert np.diff(bootstrap_interval(values, groups, level=0.5)) < np.diff(first)

    def test_several_arrays_share_the_resampled_patients(self):
        # What one direction gains the other loses, patient by patient: the mean of both never moves.
        values, groups = np.random.default_rng(0).random(40), np.arange(40)
        low, high = bootstrap_interval([values, 1 - values], [groups, groups])
        assert low == pytest.approx(high) == pytest.approx(0.5)

    def test_resamples_without_a_row_of_one_array_are_left_out(self):
        ones = [np.ones(2), np.ones(1)]
        assert bootstrap_interval(ones, [np.array([0, 1]), np.array([0])]) == (1, 1)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6)), min_size=1, max_size=30))
    def test_it_stays_within_the_means_of_patients(self, rows):
        values, groups = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        means = [values[groups == group].mean() for group in set(groups.tolist())]
        low, high = bootstrap_interval(values, groups, num_resamples=50)
        assert min(means) - 1e-9 <= low <= high <= max(means) + 1e-9

    @pytest.mark.parametrize(
        ("values", "groups", "message"),
        [
            (np.array([]), np.array([]), "at least one row"),
            (np.ones(2), np.ones(3), "one group per value"),
            (np.array([1.0, np.nan]), np.arange(2), "NaN or infinite"),
        ],
    )
    def test_impossible_input_raises(self, values, groups, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(values, groups)


def test_intervals_of_recalls_hold_their_metrics():
    ids = torch.arange(60) % 45
    texts = unit(45, 6, 0)[ids]
    images = torch.nn.functional.normalize(texts + 2 * unit(60, 6, 1), dim=1)
    metrics, ranks = retrieval_metrics(images, texts, ids)
    intervals = retrieval_intervals(ranks, ids, np.arange(60) // 2)
    assert set(intervals) == {name for name in metrics if not name.endswith("median_rank")}
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
        assert low < high


class TestAuroc:
    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40))
    def test_it_is_that_of_sklearn_with_ties(self, rows):
        from sklearn.metrics import roc_auc_score

        scores, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        if labels.all() or not labels.any():
            with pytest.raises(ValueError, match="both classes"):
                auroc_interval(scores, labels, np.arange(len(rows)))
            return
        area, low, high = auroc_interval(scores, labels, np.arange(len(rows)), num_resamples=20)
        assert area == pytest.approx(roc_auc_score(labels, scores))
        few = min(labels.sum(), (~labels).sum()) < 5
        assert np.isnan([low, high]).all() if few else 0 <= low <= area <= high <= 1

    def test_resamples_are_areas_of_the_drawn_rows(self):
        from sklearn.metrics import roc_auc_score

        generator = np.random.default_rng(0)
        labels = generator.integers(0, 2, 80)
        scores, patients = labels + generator.normal(0, 1.5, 80), np.arange(80) // 4
        drawn = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=1000)
        areas = [roc_auc_score(labels, scores, sample_weight=counts[patients] + 0.0) for counts in drawn]
        drawn_here = bootstrap_draws([scores, labels], patients, weighted_auroc, weighted=True, num_resamples=1000)
        np.testing.assert_allclose(drawn_here, areas)

    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            ([0.1, 0.2, 0.3], [1, 0, -1], "0 or 1"),
            ([0.1, 0.2, 0.3], [1, 0, float("nan")], "0 or 1"),
            ([0.1, float("nan"), 0.3], [1, 0, 1], "NaN"),
            ([0.1, 0.2], [1, 0, 1], "2 scores, 3 labels"),
        ],
    )
    def test_uncertain_labels_and_bad_scores_raise(self, scores, labels, message):
        with pytest.raises(ValueError, match=message):
            auroc_interval(np.array(scores), np.array(labels), np.arange(3))
