"""The loss in blocks is the plain loss, in value and gradient, with repeated texts and uneven blocks."""

import pytest
import torch
from reference import assert_relative
from torch import nn

from adaptor_hf.objectives import chunked_cross_entropy, contrastive_loss, gather, gathered_contrastive_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(23, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [nn.functional.normalize(value, dim=1).requires_grad_() for value in values]


@pytest.mark.parametrize("chunk_rows", [1, 5, 23, 100])
@pytest.mark.parametrize("repeat", [False, True])
def test_blocks_equal_the_whole_matrix(batch, chunk_rows, repeat):
    ids = torch.arange(23) // 3 if repeat else None
    log_scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    expected = contrastive_loss(*batch, log_scale, normalize=False, positives=ids)
    actual = chunked_cross_entropy(
        *batch,
        log_scale.exp(),
        row_weight=0.75 / 23,
        column_weight=0.25 / 23,
        query_ids=ids,
        key_ids=ids,
        chunk_rows=chunk_rows,
    )
    assert_relative(actual, expected, 1e-12)
    inputs = [*batch, log_scale]
    for one, other in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert_relative(one, other, 1e-11)


def test_rows_of_one_rank_among_all_keys(batch):
    queries, keys = batch[0][7:15], batch[1]
    logits = 3.0 * queries @ keys.T
    expected = nn.functional.cross_entropy(logits, torch.arange(7, 15), reduction="sum")
    scale = torch.tensor(3.0, dtype=torch.float64)
    actual = chunked_cross_entropy(queries, keys, scale, start=7, row_weight=1.0, chunk_rows=3)
    assert_relative(actual, expected, 1e-12)
    for one, other in zip(torch.autograd.grad(actual, batch), torch.autograd.grad(expected, batch), strict=True):
        assert_relative(one, other, 1e-11)


def test_gradients_equal_finite_differences(batch):
    ids = torch.arange(23) % 9

    def loss(queries, keys, scale):
        weights = {"row_weight": 0.6, "column_weight": 0.4}
        return chunked_cross_entropy(queries, keys, scale, query_ids=ids, key_ids=ids, chunk_rows=4, **weights)

    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (*batch, scale))


def test_large_batches_take_the_blocks_by_themselves(batch, monkeypatch):
    called = []
    original = gather.chunked_cross_entropy
    monkeypatch.setattr(gather, "chunked_cross_entropy", lambda *a, **k: called.append(1) or original(*a, **k))
    small = gathered_contrastive_loss(*batch, 1.0)
    assert not called
    monkeypatch.setattr(gather, "CHUNKED_FROM", 8)
    assert_relative(gathered_contrastive_loss(*batch, 1.0), small, 1e-12)
    assert called


def test_columns_of_a_rectangle_are_refused(batch):
    with pytest.raises(ValueError, match="square"):
        chunked_cross_entropy(batch[0][:4], batch[1], torch.tensor(1.0), row_weight=1.0, column_weight=1.0)
