"""What the Adaptor does to embeddings: spread, rank and alignment before and after it, maps, attention over patches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache
    from ..modeling_adaptor import AdaptorModel

# A singular value decomposition of more rows takes minutes and changes the third digit.
MAX_ROWS = 4096


def embedding_statistics(embeds: torch.Tensor) -> dict[str, float]:
    """
    Spread of a set of embeddings; rows are L2-normalised first, and at most the first 4,096 are used.

    Args:
        embeds (`torch.Tensor` of shape `(N, D)`): At least two rows.

    Returns:
        `dict[str, float]`: `channel_std`, the mean standard deviation of a channel times sqrt(D) (LoVT): 1 is spread in
        all directions, 0 is collapse; `effective_rank` (Roy and Vetterli, 2007): exp of the entropy of the shares of
        singular values of the centred rows, from 1 to min(N - 1, D); `uniformity` (Wang and Isola): lower is more even.

    Raises:
        ValueError: fewer than two rows, or a value that is NaN or infinite.
    """
    if embeds.ndim != 2 or len(embeds) < 2:
        raise ValueError(f"Need embeddings (N, D) of two rows or more, got {tuple(embeds.shape)}.")
    rows = nn.functional.normalize(embeds[:MAX_ROWS].double(), dim=1)
    if not rows.isfinite().all():
        raise ValueError(f"Row {int((~rows.isfinite()).any(1).nonzero()[0])} is NaN or infinite.")
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred)
    # Equal rows leave rounding alone: their rank is none, which we call 1.
    shares = values[values > 1e-9] / values[values > 1e-9].sum() if (values > 1e-9).any() else torch.ones(1).double()
    return {
        "channel_std": (rows.std(0).mean() * rows.shape[1] ** 0.5).item(),
        "effective_rank": shares.mul(shares.log()).sum().neg().exp().item(),
        "uniformity": nn.functional.pdist(rows).pow(2).mul(-2).exp().mean().log().item(),
    }


@torch.no_grad()
def before_and_after(
    model: "AdaptorModel", image_embeds: torch.Tensor, text_embeds: torch.Tensor, batch_size: int = 1024
) -> dict[str, dict[str, float]]:
    """
    Statistics of matched embeddings before and after the Adaptor.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        image_embeds (`torch.Tensor` of shape `(N, D)`), text_embeds (`torch.Tensor` of shape `(N, E)`): As cached;
            row i of both belong together.
        batch_size (`int`): Rows embedded at once.

    Returns:
        `dict[str, dict[str, float]]`: `image_before`, `image_after`, `text_before`, `text_after`, of
        [`embedding_statistics`]; `pairs_after` with `alignment`, the mean squared distance of pairs, and `shuffled`,
        that of random pairs, without which the first means nothing. The spaces before the Adaptor do not compare.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout changes embeddings. Call model.eval() first.")
    if len(image_embeds) != len(text_embeds):
        raise ValueError(f"Got {len(image_embeds)} images and {len(text_embeds)} texts, expected matched rows.")
    images = torch.cat(
        [model.get_image_features(image_embeds=part.to(model.device)).pooler_output.cpu()
         for part in image_embeds.split(batch_size)]
    )  # fmt: skip
    texts = torch.cat(
        [model.get_text_features(text_embeds=part.to(model.device)).pooler_output.cpu()
         for part in text_embeds.split(batch_size)]
    )  # fmt: skip
    images, texts = (nn.functional.normalize(part.double(), dim=1) for part in (images, texts))
    other = torch.from_numpy(np.random.default_rng(0).permutation(len(texts)))
    return {
        "image_before": embedding_statistics(image_embeds),
        "image_after": embedding_statistics(images),
        "text_before": embedding_statistics(text_embeds),
        "text_after": embedding_statistics(texts),
        "pairs_after": {
            "alignment": (images - texts).pow(2).sum(1).mean().item(),
            "shuffled": (images - texts[other]).pow(2).sum(1).mean().item(),
        },
    }


def tsne_map(
    embeds: np.ndarray | torch.Tensor,
    *,
    num_rows: int = 400,
    num_components: int = 50,
    perplexity: float = 40,
    seed: int = 1024,
) -> np.ndarray:
    """
    Two-dimensional map by PCA and t-SNE, with the reference's settings (first 400 rows, 50 components, perplexity 40).
    It shows neighbours; distances between clusters mean nothing, and neither does a nicer picture.

    Args:
        embeds (`(N, D)`): Rows.

    Returns:
        `np.ndarray` of shape `(min(N, num_rows), 2)`.

    Raises:
        ValueError: no more rows than the perplexity needs.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.asarray(embeds, dtype=np.float32)[:num_rows]
    if len(rows) <= perplexity:
        raise ValueError(f"t-SNE with perplexity {perplexity:g} needs more rows than that, got {len(rows)}.")
    rows = PCA(min(num_components, *rows.shape), random_state=seed).fit_transform(rows)
    return TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(rows)


@torch.no_grad()
def attention_maps(
    model: "AdaptorModel", image_embeds: torch.Tensor, grid: tuple[int, int], *, layer: int = -1
) -> np.ndarray:
    """
    How the pooled token attends to the patches in a layer of the Adaptor, mean of the heads.

    With one cached vector an image there is nothing to attend to: see [`cached_attention_maps`], or take the tower's
    tokens. An Adaptor that was pre-trained on pooled vectors never trained this attention: what its maps show was not
    learned.

    Args:
        model (`AdaptorModel`): In evaluation mode, with at least one layer.
        image_embeds (`torch.Tensor` of shape `(N, 1 + h * w, D)`): Pooled token first, then patches row by row.
        grid (`tuple[int, int]`): `(h, w)`.
        layer (`int`, defaults to -1): The last one.

    Returns:
        `np.ndarray` of shape `(N, h, w)`: Each sums to 1.

    Raises:
        ValueError: one token an image, another number of tokens than the grid's, no layers, or training mode.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout changes attention. Call model.eval() first.")
    if image_embeds.ndim != 3 or image_embeds.shape[1] != 1 + grid[0] * grid[1]:
        raise ValueError(
            f"Need (N, {1 + grid[0] * grid[1]}, D) for a grid of {grid[0]} x {grid[1]} patches and the pooled token, "
            f"got {tuple(image_embeds.shape)}. With one vector an image there are no patches to attend to: build the "
            "cache with --image_tokens all of `python -m adaptor_hf.embeddings build`."
        )
    attentions = model(image_embeds=image_embeds.to(model.device), output_attentions=True).attentions
    if not attentions:
        raise ValueError("This model has no attention layers: it is two linear projections.")
    weights = attentions[layer][0].float().mean(1)[:, 0, 1:]
    return (weights / weights.sum(1, keepdim=True)).unflatten(1, tuple(grid)).cpu().numpy()


def cached_attention_maps(
    model: "AdaptorModel",
    cache: "EmbeddingCache",
    rows: Sequence[int] | None = None,
    *,
    layer: int = -1,
    batch_size: int = 64,
) -> np.ndarray:
    """
    [`attention_maps`] of a cache that was built with `--image_tokens all` (or a grid, and then on that grid).

    Args:
        model (`AdaptorModel`): In evaluation mode, with at least one layer.
        cache (`EmbeddingCache`): Any view; its images' tokens are read from the files.
        rows (`Sequence[int]`, *optional*): Rows of the view that have an image. By default all.
        layer (`int`, defaults to -1): The last one.
        batch_size (`int`): Images at once.

    Returns:
        `np.ndarray` of shape `(n, h, w)`: Each sums to 1.

    Raises:
        ValueError: the cache has no image tokens, a row has no image, or as of `attention_maps`.
    """
    from ..embeddings.sequences import grid_of, image_sequence, stored_column

    column = stored_column(cache.stored_columns, "image_tokens")
    view = cache.with_columns("image_tokens")
    rows = np.arange(len(view)) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(absent := np.flatnonzero(view.image_rows[rows] < 0)):
        raise ValueError(
            f"Row {rows[absent[0]]} of this view has no image: {len(absent)} of {len(rows)} rows have none."
        )
    found = [
        attention_maps(
            model, image_sequence(view[rows[start : start + batch_size]], column), grid_of(column), layer=layer
        )
        for start in range(0, len(rows), batch_size)
    ]
    return np.concatenate(found) if found else np.zeros((0, *grid_of(column)), np.float32)


__all__ = ["attention_maps", "before_and_after", "cached_attention_maps", "embedding_statistics", "tsne_map"]
