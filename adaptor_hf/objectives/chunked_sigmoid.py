"""The sigmoid loss for large batches: never more than a block of rows of the similarity matrix at once."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .chunked import CHUNK_ROWS, block_logits, blocks

# Beyond it log(1 + exp(x)) is x in float64.
LINEAR_FROM = 40


class ChunkedSigmoid(torch.autograd.Function):
    """
    Sum over all pairs of the pairwise sigmoid loss, by blocks of rows. No pair's gradient depends on another pair, so
    the gradients are taken together with the loss and no block is computed twice.
    """

    @staticmethod
    def forward(ctx, images, texts, scale, bias, start, image_ids, text_ids, chunk_rows, with_gradients):
        loss = images.new_zeros(())
        gradients = [torch.zeros_like(value) for value in (images, texts, scale, bias)] if with_gradients else []
        for rows in blocks(len(images), chunk_rows):
            logits = block_logits(images, texts, scale, start, image_ids, text_ids, rows).add_(bias)
            place = torch.arange(rows.stop - rows.start, device=images.device)
            own = place, place + start + rows.start
            logits[own] *= -1
            loss += nn.functional.softplus(logits, threshold=LINEAR_FROM).sum()
            if with_gradients:
                weights = logits.sigmoid_()
                weights[own] *= -1
                unscaled = weights @ texts
                gradients[0][rows] = unscaled * scale
                gradients[1].addmm_(weights.T, images[rows] * scale)
                gradients[2] += (unscaled * images[rows]).sum()
                gradients[3] += weights.sum()
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return *(grad_output * gradient for gradient in ctx.saved_tensors), *(None,) * 5


def chunked_sigmoid_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    start: int = 0,
    image_ids: torch.Tensor | None = None,
    text_ids: torch.Tensor | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """
    Sum over all pairs of images and texts of the pairwise sigmoid loss, without the whole matrix in memory.

    Args:
        images (`torch.Tensor` of shape `(B, D)`): L2-normalised.
        texts (`torch.Tensor` of shape `(N, D)`): L2-normalised; row `start + i` is image i's own.
        scale (`torch.Tensor`, scalar): `exp(logit_scale)`.
        bias (`torch.Tensor`, scalar): Added to the scaled similarities.
        start (`int`, defaults to 0): Where this rank's rows lie among the texts.
        image_ids, text_ids (`torch.Tensor` of shape `(B,)`, `(N,)`, *optional*): Pairs of equal ids are left out of
            the sum, an image's own text stays.
        chunk_rows (`int`, *optional*): Rows of the matrix that exist at once.

    Returns:
        `torch.Tensor`: scalar. It can be differentiated once.
    """
    with_gradients = torch.is_grad_enabled() and any(value.requires_grad for value in (images, texts, scale, bias))
    chunk_rows = chunk_rows or CHUNK_ROWS
    return ChunkedSigmoid.apply(images, texts, scale, bias, start, image_ids, text_ids, chunk_rows, with_gradients)


__all__ = ["chunked_sigmoid_loss"]
