"""The contrastive loss for large batches: never more than a block of rows of the similarity matrix at once."""

import torch

# Rows of one block; measured fastest between 512 and 2048 on CPU.
CHUNK_ROWS = 1024


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    Sum of weighted cross-entropies of a similarity matrix, by blocks of rows, each recomputed in the backward pass.

    Row i's own key is column `start + i`. With a column weight the matrix is square and its columns are the queries of
    the other direction, so that one product serves both.
    """

    @staticmethod
    def forward(ctx, queries, keys, scale, start, row_weight, column_weight, query_ids, key_ids, chunk_rows):
        own = scale * (queries * keys[start : start + len(queries)]).sum(1)
        row_lse = queries.new_empty(len(queries))
        column_lse = queries.new_full((len(keys),), float("-inf")) if column_weight else None
        for rows in blocks(len(queries), chunk_rows):
            logits = block_logits(queries, keys, scale, start, query_ids, key_ids, rows)
            row_lse[rows] = logits.logsumexp(1)
            if column_weight:
                column_lse = torch.logaddexp(column_lse, logits.logsumexp(0))
        ctx.save_for_backward(queries, keys, scale, query_ids, key_ids, row_lse, column_lse)
        ctx.settings = start, row_weight, column_weight, chunk_rows
        loss = row_weight * (row_lse - own).sum()
        return loss + column_weight * (column_lse - own).sum() if column_weight else loss

    @staticmethod
    def backward(ctx, grad_output):
        queries, keys, scale, query_ids, key_ids, row_lse, column_lse = ctx.saved_tensors
        start, row_weight, column_weight, chunk_rows = ctx.settings
        grad_queries, grad_keys, grad_scale = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(scale)
        for rows in blocks(len(queries), chunk_rows):
            logits = block_logits(queries, keys, scale, start, query_ids, key_ids, rows)
            weights = (logits - row_lse[rows, None]).exp_().mul_(row_weight)
            if column_weight:
                weights += logits.sub_(column_lse).exp_().mul_(column_weight)
            place = torch.arange(rows.stop - rows.start, device=queries.device)
            weights[place, place + start + rows.start] -= row_weight + column_weight
            unscaled = weights @ keys
            grad_scale += (unscaled * queries[rows]).sum()
            grad_queries[rows] = unscaled
            grad_keys.addmm_(weights.T, queries[rows])
        factor = grad_output * scale
        return factor * grad_queries, factor * grad_keys, grad_output * grad_scale, *(None,) * 6


def blocks(count: int, size: int):
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def block_logits(queries, keys, scale, start, query_ids, key_ids, rows: slice) -> torch.Tensor:
    """(rows, all keys) scaled similarities; other positives of a row are -inf, its own key stays."""
    logits = (queries[rows] @ keys.T).mul_(scale)
    if query_ids is not None:
        same = query_ids[rows, None] == key_ids[None, :]
        place = torch.arange(rows.stop - rows.start, device=queries.device)
        same[place, place + start + rows.start] = False
        logits.masked_fill_(same, float("-inf"))
    return logits


def chunked_cross_entropy(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    *,
    start: int = 0,
    row_weight: float,
    column_weight: float = 0.0,
    query_ids: torch.Tensor | None = None,
    key_ids: torch.Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> torch.Tensor:
    """
    Weighted sum of the cross-entropies of each query's own key among all keys, without the whole matrix in memory.

    Args:
        queries (`torch.Tensor` of shape `(B, D)`): L2-normalised.
        keys (`torch.Tensor` of shape `(N, D)`): L2-normalised; row `start + i` is query i's own.
        scale (`torch.Tensor`, scalar): `exp(logit_scale)`.
        start (`int`, defaults to 0): Where this rank's rows lie among the keys.
        row_weight (`float`): Weight of each query's cross-entropy.
        column_weight (`float`, defaults to 0): Weight of each key's cross-entropy among the queries; needs B = N.
        query_ids, key_ids (`torch.Tensor` of shape `(B,)`, `(N,)`, *optional*): Equal ids are no negatives.
        chunk_rows (`int`): Rows of the matrix that exist at once.

    Returns:
        `torch.Tensor`: scalar.
    """
    if column_weight and len(queries) != len(keys):
        raise ValueError(f"column_weight needs a square matrix, got {len(queries)} queries and {len(keys)} keys.")
    return ChunkedCrossEntropy.apply(
        queries, keys, scale, start, row_weight, column_weight, query_ids, key_ids, chunk_rows
    )


__all__ = ["chunked_cross_entropy"]
