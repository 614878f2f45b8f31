"""Image-text retrieval: exact search in blocks, every copy of a text a positive, ties counted against us."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from .draws import gather_draws
from .intervals import IntervalMethod, Intervals, make_intervals
from .statistics import resampled_weights

RECALL_AT = (1, 5, 10)
# Similarities of one block: 64 MiB in float32.
BLOCK_ELEMENTS = 2**24
# A matrix product rounds equal rows differently by their place in it; similarities this close are a tie.
TIE_EPSILONS = 16


def retrieval_ranks(
    queries: torch.Tensor, candidates: torch.Tensor, query_ids: torch.Tensor, candidate_ids: torch.Tensor
) -> torch.Tensor:
    """
    Rank of each query's best positive among all candidates.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): L2-normalised embeddings.
        candidates (`torch.Tensor` of shape `(C, D)`): L2-normalised embeddings.
        query_ids (`torch.Tensor` of shape `(Q,)`, int64): A candidate with an equal id is a positive.
        candidate_ids (`torch.Tensor` of shape `(C,)`, int64): Ids of the candidates.

    Returns:
        `torch.Tensor` of shape `(Q,)`, int64: 1 is best. A wrong candidate with the same similarity as the best
        positive, up to rounding, ranks before it, so that constant embeddings score as they should.

    Raises:
        ValueError: if a query has no positive, or a similarity is NaN (it would rank first).
    """
    ranks = []
    block = max(1, BLOCK_ELEMENTS // max(1, len(candidates)))
    for start in range(0, len(queries), block):
        similarity = _similarity(queries, candidates, start, block)
        positive = query_ids[start : start + block, None] == candidate_ids[None, :]
        if not positive.any(1).all():
            row = start + int((~positive.any(1)).nonzero()[0])
            raise ValueError(f"Query {row} has no positive among the {len(candidates)} candidates.")
        best = similarity.masked_fill(~positive, float("-inf")).amax(1, keepdim=True)
        tie = best - TIE_EPSILONS * torch.finfo(similarity.dtype).eps
        ranks.append(1 + ((similarity >= tie) & ~positive).sum(1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.long)


def retrieval_metrics(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, text_ids: torch.Tensor
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """
    Recall@{1, 5, 10}, median, mean and mean reciprocal rank both ways, between all images and all distinct texts.

    Args:
        image_embeds (`torch.Tensor` of shape `(N, D)`): L2-normalised; row i is an image.
        text_embeds (`torch.Tensor` of shape `(N, D)`): L2-normalised; row i is that image's text.
        text_ids (`torch.Tensor` of shape `(N,)`, int64): Equal for equal texts. Copies of a text are one candidate, and
            all images that carry it are its positives.

    Returns:
        `tuple[dict[str, float], dict[str, torch.Tensor]]`: The metrics, `mean_recall` (the mean of the six recalls)
        among them, each recall in [0, 1]; and the ranks `image_to_text` `(N,)` and `text_to_image` `(distinct texts,)`.
    """
    distinct, first = first_occurrences(text_ids)
    texts = text_embeds[first]
    ranks = {
        "image_to_text": retrieval_ranks(image_embeds, texts, text_ids, distinct),
        "text_to_image": retrieval_ranks(texts, image_embeds, distinct, text_ids),
    }
    metrics = {}
    for direction, rank in ranks.items():
        for k in RECALL_AT:
            metrics[f"{direction}_recall@{k}"] = (rank <= k).double().mean().item()
        metrics[f"{direction}_median_rank"] = rank.double().quantile(0.5).item()
        metrics[f"{direction}_mean_rank"] = rank.double().mean().item()
        metrics[f"{direction}_mrr"] = rank.double().reciprocal().mean().item()
    recalls = [value for name, value in metrics.items() if "recall@" in name]
    metrics["mean_recall"] = sum(recalls) / len(recalls)
    return metrics, ranks


def precision_at_k(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_classes: torch.Tensor,
    candidate_classes: torch.Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, torch.Tensor]:
    """
    Share of each query's first k candidates that are of its class (ConVIRT, GLoRIA, MedCLIP).

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): L2-normalised embeddings.
        candidates (`torch.Tensor` of shape `(C, D)`): L2-normalised embeddings.
        query_classes, candidate_classes (`torch.Tensor` of shape `(Q,)` and `(C,)`, int64): One class each.
        ks (`Sequence[int]`): Numbers of candidates.

    Returns:
        `dict[int, torch.Tensor]`: Of each k, `(Q,)` float64. Where similarities tie, up to rounding, candidates of
        another class come first.

    Raises:
        ValueError: fewer candidates than k, or a similarity that is NaN.
    """
    if not ks or min(ks) < 1 or max(ks) > len(candidates):
        raise ValueError(f"k goes from 1 to {len(candidates)}, the number of candidates; got {tuple(ks)}.")
    found = []
    block = max(1, BLOCK_ELEMENTS // len(candidates))
    for start in range(0, len(queries), block):
        similarity = _similarity(queries, candidates, start, block)
        same = query_classes[start : start + block, None] == candidate_classes[None, :]
        similarity -= same * (TIE_EPSILONS * torch.finfo(similarity.dtype).eps)
        first = similarity.topk(max(ks), dim=1).indices
        found.append(same.gather(1, first))
    hits = torch.cat(found).double() if found else torch.empty(0, max(ks), dtype=torch.double)
    return {k: hits[:, :k].mean(1) for k in ks}


def retrieval_intervals(
    ranks: dict[str, torch.Tensor],
    text_ids: torch.Tensor,
    patients: np.ndarray,
    seed: int = 0,
    *,
    num_resamples: int = 1000,
    unit: str = "patients",
) -> Intervals:
    """
    95 % intervals over patients of the recalls and ranks of [`retrieval_metrics`]; none for median ranks.

    Args:
        ranks (`dict[str, torch.Tensor]`): The ranks that `retrieval_metrics` returned.
        text_ids (`torch.Tensor` of shape `(N,)`, int64): The same ids as there.
        patients (`np.ndarray` of shape `(N,)`): Patient of each row. A text belongs to its first row's patient.
        seed (`int`, defaults to 0), num_resamples: Of the resampling.
        unit (`str`, defaults to `"patients"`): `"images"` where no patient is known.

    Returns:
        [`Intervals`]: Of each metric but the median ranks.
    """
    _, first = first_occurrences(text_ids)
    groups = {"image_to_text": np.asarray(patients), "text_to_image": np.asarray(patients)[first.cpu().numpy()]}
    ways = np.concatenate([np.full(len(ranks[way]), way) for way in groups])
    rank = np.concatenate([ranks[way].cpu().numpy() for way in groups]).astype(np.float64)
    candidates = {"image_to_text": len(first), "text_to_image": len(text_ids)}
    parts, scales = {}, {}
    for way in groups:
        parts |= {f"{way}_recall@{k}": (ways == way, rank <= k) for k in RECALL_AT}
        parts[f"{way}_mrr"] = (ways == way, 1 / rank)
        parts[f"{way}_mean_rank"] = (ways == way, rank)
        scales[f"{way}_mean_rank"] = float(candidates[way])
    joined = np.concatenate(list(groups.values()))
    return mean_intervals(parts, joined, scales=scales, num_resamples=num_resamples, seed=seed, unit=unit)


def mean_intervals(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray,
    *,
    scales: Mapping[str, float] | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "patients",
) -> Intervals:
    """
    Intervals of means over queries, and of `mean_recall`, the mean of the recalls.

    Args:
        parts (`Mapping`): Name to `(N,)` bool of its rows and `(N,)` of their values, in [0, 1], or in [0, scale].
        groups (`np.ndarray` of shape `(N,)`): Patient of each query.
        scales (`Mapping[str, float]`, *optional*): Of values with another upper end than 1.
    """
    values = {name: float(value[0]) for name, value in means_under_weights(parts, np.ones((1, len(groups)))).items()}
    blocks = resampled_weights(groups, num_resamples, seed)
    methods = mean_interval_methods(parts, scales)
    draws = gather_draws(lambda weights: means_under_weights(parts, weights), blocks, methods)
    return make_intervals(methods, values, draws, groups, level=level, unit=unit)


def mean_interval_methods(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]], scales: Mapping[str, float] | None = None
) -> dict[str, IntervalMethod]:
    """How each metric of [`mean_intervals`] gets its interval."""
    found = {
        name: IntervalMethod(
            "share" if "_recall@" in name else "mean", rows, needs={"": rows}, scale=(scales or {}).get(name, 1.0)
        )
        for name, (rows, _) in parts.items()
    }
    recalls = tuple(name for name in parts if "_recall@" in name)
    return found | {"mean_recall": IntervalMethod("average", parts=recalls)}


def means_under_weights(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Each mean, and `mean_recall`, `(B,)` under each row of weights `(B, N)`."""
    found = {}
    for name, (rows, values) in parts.items():
        total = weights @ rows
        found[name] = np.divide(weights @ (rows * values), total, out=np.full(len(total), np.nan), where=total > 0)
    found["mean_recall"] = np.mean([found[name] for name in found if "_recall@" in name], axis=0)
    return found


def chance_of_ranks(candidates: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray | float]:
    """
    What a random order of the candidates gives, exactly.

    Args:
        candidates, positives (`np.ndarray` of shape `(Q,)`, int): Of each query: their number, and how many of them are
            positives, at least one.

    Returns:
        `dict`: `(Q,)` expected `recall@1`, `recall@5`, `recall@10`, `mrr` and `mean_rank` of the first positive; and
        `median_rank`, a `float`: the median of its distribution over all queries.
    """
    kinds, of_query, counts = np.unique(
        np.stack([candidates, positives]), axis=1, return_inverse=True, return_counts=True
    )
    of_query = np.ravel(of_query)
    found: dict[str, list[float]] = {}
    below = np.zeros(int(kinds[0].max()) + 1)
    for (n, m), count in zip(kinds.T.tolist(), counts.tolist(), strict=True):
        draws = np.arange(n - m + 1)
        # Share of orders without a positive among the first r, for r from 0 on.
        missed = np.concatenate([[1.0], np.cumprod((n - m - draws) / (n - draws))])
        for k in RECALL_AT:
            found.setdefault(f"recall@{k}", []).append(1 - missed[min(k, n - m + 1)])
        found.setdefault("mrr", []).append(float((-np.diff(missed) / (draws + 1)).sum()))
        found.setdefault("mean_rank", []).append((n + 1) / (m + 1))
        below[: len(missed)] += count * (1 - missed)
        below[len(missed) :] += count
    share = below / len(of_query)
    rounding = 1e-9
    median = ((share >= 0.5 - rounding).argmax() + (share > 0.5 + rounding).argmax()) / 2
    return {name: np.array(values)[of_query] for name, values in found.items()} | {"median_rank": float(median)}


def chance_retrieval(text_ids: torch.Tensor) -> dict[str, float]:
    """
    What a random order of the same images and texts scores, exactly: expected recalls, mean rank and reciprocal rank,
    and the median of the rank's distribution.

    Args:
        text_ids (`torch.Tensor` of shape `(N,)`, int64): As in [`retrieval_metrics`].

    Returns:
        `dict[str, float]`: In the names of [`retrieval_metrics`].
    """
    distinct, copies = text_ids.cpu().unique(return_counts=True)
    num_images, num_texts = len(text_ids), len(distinct)
    ways = {
        "image_to_text": (np.full(num_images, num_texts), np.ones(num_images, dtype=np.int64)),
        "text_to_image": (np.full(num_texts, num_images), copies.numpy()),
    }
    metrics = {
        f"{way}_{name}": float(np.mean(values))
        for way, counts in ways.items()
        for name, values in chance_of_ranks(*counts).items()
    }
    recalls = [value for name, value in metrics.items() if "recall@" in name]
    return metrics | {"mean_recall": sum(recalls) / len(recalls)}


def chance_recall(text_ids: torch.Tensor) -> dict[str, float]:
    """The recalls of [`chance_retrieval`]."""
    return {name: value for name, value in chance_retrieval(text_ids).items() if "recall" in name}


def _similarity(queries: torch.Tensor, candidates: torch.Tensor, start: int, block: int) -> torch.Tensor:
    similarity = queries[start : start + block] @ candidates.T
    if similarity.isnan().any():
        row = start + int(similarity.isnan().any(1).nonzero()[0])
        raise ValueError(f"Query {row} has a NaN similarity: its embedding or a candidate's is NaN or infinite.")
    return similarity


def first_occurrences(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct values of `ids` `(N,)` in ascending order, and the first row of each."""
    distinct, inverse = ids.unique(return_inverse=True)
    first = torch.full_like(distinct, len(ids)).scatter_reduce(
        0, inverse, torch.arange(len(ids), device=ids.device), reduce="amin"
    )
    return distinct, first


def alignment_and_uniformity(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, float]:
    """
    Alignment and uniformity of Wang and Isola (arXiv 2005.10242), lower is better in both.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(N, D)`): L2-normalised matched rows. Uniformity uses the
            first 4,096 rows: it needs all pairs.

    Returns:
        `dict[str, float]`: `alignment` (mean squared distance of pairs), `image_uniformity` and `text_uniformity`
        (log of the mean Gaussian potential of distinct rows, at least two).
    """
    metrics = {"alignment": (image_embeds - text_embeds).double().pow(2).sum(1).mean().item()}
    for name, embeds in (("image", image_embeds), ("text", text_embeds)):
        if len(embeds) > 1:
            squared = nn.functional.pdist(embeds[:4096].float()).pow(2)
            metrics[f"{name}_uniformity"] = squared.mul(-2).exp().mean().log().item()
    return metrics


__all__ = [
    "alignment_and_uniformity",
    "chance_of_ranks",
    "chance_recall",
    "chance_retrieval",
    "first_occurrences",
    "mean_interval_methods",
    "mean_intervals",
    "means_under_weights",
    "precision_at_k",
    "retrieval_intervals",
    "retrieval_metrics",
    "retrieval_ranks",
]
