"""
What each form that a cache can store costs in bytes, and what it loses.

    ADAPTOR_REALPAIRS=FOLDER ADAPTOR_REALBENCH=FOLDER python benchmarks/bench_stored_forms.py --vision_tower lite0

One build a data set, in float32 with all tokens; every other form is made of it by the functions that a build and a
reader use, so differences are those of the form alone. Images are read as squares of the tower's size.

- 1 - cosine: of each stored vector (for tokens: each token) to the same in float32.
- Recall: mean of recall@1, 5 and 10 both ways among held-out pairs, the first text of each image. Vectors go through a
  regularised CCA that was fitted on float32 vectors of the training pairs. "mean": of the mean of the stored tokens.
  "tokens": similarity attention (softmax over the tokens of their cosine to the text / 0.07), which needs the tokens.
- Dice: a ridge regression from a token to the share of its cell that the mask fills, its map enlarged to the image
  (bilinear) and cut where it is best on the fitted images; fitted on float32 tokens of the same grid. Mean over
  held-out images.

Every loss is paired with float32 (and with all tokens): 95 % bootstrap interval over patients or groups of images.
With ADAPTOR_REALPAIRS pairs are its photographs with captions, with ADAPTOR_REALBENCH masks are lungs of its
radiographs; without them both are phantoms.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import one_thread, print_table
from torch.nn import functional

from adaptor_hf.audit.run_record import processor_name
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.columns import Column, quantized
from adaptor_hf.embeddings.sequences import grid_of
from adaptor_hf.evaluation.retrieval import RECALL_AT, retrieval_ranks
from adaptor_hf.evaluation.statistics import bootstrap_interval
from adaptor_hf.towers_adaptor import load_vision_tower

MIMIC_IMAGES = 277_110
TEMPERATURE = 0.07
RIDGE = 0.1
COMPONENTS = 128
CUTS = np.linspace(0.1, 0.9, 17)


@dataclass
class Data:
    """Rows of one data set: float32 arrays, and which rows are for fitting."""

    name: str
    train: np.ndarray  # (n,) bool
    groups: np.ndarray  # (n,) patients, or groups of images
    pooled: np.ndarray  # (n, D)
    tokens: np.ndarray  # (n, h, w, D)
    prefix: int  # class tokens, which a cache stores before these
    texts: np.ndarray | None = None  # (n, E)
    text_tokens: list[np.ndarray] | None = None
    masks: np.ndarray | None = None  # (n, H, W) bool


def square_tower(name: str):
    """A tower that sees whole images, and their side in pixels."""
    tower = load_vision_tower(name)
    fields = tower.spec["image_processor"]
    side = (fields["crop_size"] if fields["do_center_crop"] else fields["size"]).get("height", 224)
    square = {"size": {"height": side, "width": side}, "do_center_crop": False}
    tower.spec = tower.spec | {"image_processor": fields | square}
    return tower, side


def load_rows(folder: Path, kind: str, limit: int):
    """A data set of images with texts or masks (`kind`), two thirds for fitting, and what to call it."""
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.phantom import write_phantoms
    from adaptor_hf.tasks.data import load_table

    real = os.environ.get("ADAPTOR_REALPAIRS" if kind == "texts" else "ADAPTOR_REALBENCH")
    if real is None:
        place = folder / f"phantoms-{limit}"
        table = place / "metadata.csv" if place.exists() else write_phantoms(place, limit)
        columns, name = {"patient_column": "patient_id"}, "phantoms"
    elif kind == "texts":
        table, name = Path(real) / "flickr8k/metadata.csv", "photographs with captions (flickr8k)"
        columns = {"patient_column": "group_id", "image_mode": "RGB"}
    else:
        table, name = Path(real) / "metadata.csv", "radiographs with lung masks (Montgomery, Shenzhen)"
        columns = {"patient_column": "patient_id", "filters": ["dataset=tbmask"]}
    if kind == "texts":
        rows = load_pairs(table, **columns)
    else:
        rows = load_table(table, mask_column="lungs_mask" if real is None else "mask", **columns)
        known = np.array([mask is not None for mask in rows.with_format("arrow")["mask"][:].to_pylist()])
        rows = rows.select(np.flatnonzero(known))
    # The first text of each image, and the first image of each text.
    columns = ["image_path" if "image_path" in rows.column_names else "image"]
    values = rows.with_format("arrow").select_columns(columns)[:][columns[0]].to_pylist()
    seen, kept, texts = set(), [], rows["text"][:] if kind == "texts" else range(len(rows))
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        place = value["path"] if isinstance(value, dict) else value
        if place not in seen and text not in seen:
            seen |= {place, text}
            kept.append(row)
    chosen = np.random.default_rng(0).permutation(kept)[:limit]
    return rows.select(np.sort(chosen)), name


def embedded(rows, name: str, tower, text_tower: str | None, folder: Path) -> Data:
    """All vectors and tokens, in float32, by one build."""
    names = [column for column in ("image", "text", "patient_id") if column in rows.column_names]
    if text_tower is None:
        names.remove("text") if "text" in names else None
    table = rows.select_columns(names).add_column("image_id", np.arange(len(rows)).astype(str))
    asked = {"text_tokens": True} if text_tower else {}
    cache = build_cache(table, tower, text_tower, folder, dtype="float32", image_tokens="all", **asked)
    cache = cache.with_columns("image_tokens", *asked)
    column = cache.stored_columns["image_tokens"]
    batch = cache[np.arange(len(cache))]
    tokens = batch["image_tokens"][:, column.info["prefix"] :].numpy()
    kept = np.array(cache.pairs["image_id"][:], dtype=np.int64)
    groups = np.array(rows["patient_id"][:])[kept]
    patients = np.random.default_rng(1).permutation(np.unique(groups))
    data = Data(
        name, np.isin(groups, patients[: 2 * len(patients) // 3]), groups, batch["image_embeds"].numpy(),
        tokens.reshape(len(tokens), *grid_of(column), -1),
        column.info["prefix"],
    )  # fmt: skip
    if text_tower:
        lengths = batch["text_attention_mask"].sum(1).tolist()
        data.texts = batch["text_embeds"].numpy()
        data.text_tokens = [one[:length].numpy() for one, length in zip(batch["text_tokens"], lengths, strict=True)]
    return data


def masks_of(rows, side: int) -> np.ndarray:
    from PIL import Image

    pictures = (row["mask"].resize((side, side), Image.Resampling.NEAREST) for row in rows.select_columns(["mask"]))
    return np.stack([np.asarray(picture) > 0 for picture in pictures])


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as a cache of `dtype` gives them back."""
    if dtype == "int8":
        steps, scales = quantized(values)
        # A reader gives int8 back as float16.
        return (steps * scales[..., None]).astype(np.float16).astype(np.float32)
    return values.astype(dtype).astype(np.float32)


def pooled_grid(tokens: np.ndarray, side: int | None) -> np.ndarray:
    """(n, h, w, D) tokens on a side x side grid by average pooling, as a build does; None: as they are."""
    if side is None:
        return tokens
    maps = torch.from_numpy(tokens).permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(maps, side).permute(0, 2, 3, 1).numpy()


def unit(values: np.ndarray) -> np.ndarray:
    # After a ReLU a token may be zero everywhere.
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


class Cca:
    """Regularised CCA of matched rows, in closed form."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self.means = images.mean(0), texts.mean(0)
        sides = [values.astype(np.float64) - mean for values, mean in zip((images, texts), self.means, strict=True)]
        roots = []
        for side in sides:
            covariance = side.T @ side / len(side)
            covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
            values, vectors = np.linalg.eigh(covariance)
            roots.append(vectors / np.sqrt(values) @ vectors.T)
        left, strengths, right = np.linalg.svd(roots[0] @ (sides[0].T @ sides[1] / len(images)) @ roots[1])
        count = min(COMPONENTS, len(strengths))
        scale = np.sqrt(strengths[:count])
        self.weights = roots[0] @ left[:, :count] * scale, roots[1] @ right[:count].T * scale

    def images(self, values: np.ndarray) -> np.ndarray:
        return unit((values - self.means[0]) @ self.weights[0])

    def texts(self, values: np.ndarray) -> np.ndarray:
        return unit((values - self.means[1]) @ self.weights[1])


def hits_of(similarity: np.ndarray) -> np.ndarray:
    """(n,) mean of recall@k both ways of each pair; row i of (n, n) similarities is image i, column j text j."""
    ids = torch.arange(len(similarity))
    found = []
    for matrix in (similarity, similarity.T):
        # `retrieval_ranks` takes vectors: rows of the matrix against the unit vectors give its entries.
        ranks = retrieval_ranks(
            torch.from_numpy(np.ascontiguousarray(matrix)), torch.eye(len(matrix)).double(), ids, ids
        )
        found += [(ranks <= k).double().numpy() for k in RECALL_AT]
    return np.mean(found, axis=0)


def attention_similarity(tokens: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(n, m) similarities of images (n, T, d) and texts (m, d): each text attends to the image's tokens."""
    cosine = np.einsum("ntd,md->nmt", tokens, texts)
    weights = np.exp((cosine - cosine.max(-1, keepdims=True)) / TEMPERATURE)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nmd,md->nm", unit(np.einsum("nmt,ntd->nmd", weights, tokens)), texts)


def dice_of(data: Data, tokens: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(m,) Dice of the held-out images: a ridge fitted on `tokens` reads `stored`, both (n, h, w, D)."""
    height, width = tokens.shape[1:3]
    masks = torch.from_numpy(data.masks).float()[:, None]
    shares = functional.adaptive_avg_pool2d(masks, (height, width))[:, 0].numpy()
    inputs = tokens[data.train].reshape(-1, tokens.shape[-1]).astype(np.float64)
    targets = shares[data.train].reshape(-1)
    mean, middle = inputs.mean(0), targets.mean()
    covariance = (inputs - mean).T @ (inputs - mean)
    covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, (inputs - mean).T @ (targets - middle))

    def maps(values: np.ndarray) -> np.ndarray:
        shares = torch.from_numpy((values - mean) @ weights + middle)[:, None]
        size = data.masks.shape[1:]
        return functional.interpolate(shares, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()

    def dice(maps: np.ndarray, cut: float, truth: np.ndarray) -> np.ndarray:
        guess = maps > cut
        return 2 * (guess & truth).sum((1, 2)) / (guess.sum((1, 2)) + truth.sum((1, 2)))

    fitted = maps(tokens[data.train])
    cut = max(CUTS, key=lambda cut: dice(fitted, cut, data.masks[data.train]).mean())
    return dice(maps(stored[~data.train]), cut, data.masks[~data.train])


@dataclass
class Form:
    """A row of the table, as far as it is known."""

    name: str
    bytes: float
    distance: np.ndarray | None = None
    recall: np.ndarray | None = None
    recall_tokens: np.ndarray | None = None
    dice: np.ndarray | None = None


def image_forms(pairs: Data, segmented: Data, sides: list[int]) -> list[Form]:
    """Pooled vectors, tokens on grids and regions; the first form with a value is what the others are paired with."""
    test, width = ~pairs.train, pairs.pooled.shape[-1]
    texts_fit, texts = pairs.texts[pairs.train], pairs.texts[test]
    forms, cca = [], Cca(pairs.pooled[pairs.train], texts_fit)
    for dtype in ("float32", "float16", "int8"):
        values = as_stored(pairs.pooled[test], dtype)
        form = Form(f"pooled, {dtype}", Column("embedding", (width,), dtype).row_bytes)
        form.distance = distance_of(values, pairs.pooled[test])
        form.recall = hits_of(cca.images(values) @ cca.texts(texts).T)
        forms.append(form)
    flat = pairs.tokens.reshape(len(pairs.tokens), -1, pairs.tokens.shape[-1])
    cca = Cca(flat[pairs.train].mean(1), texts_fit)
    grids = [None, *(side for side in sides if side < min(pairs.tokens.shape[1:3]))]
    for side in grids:
        exact, exact_masks = pooled_grid(pairs.tokens[test], side), pooled_grid(segmented.tokens, side)
        rows, columns, wide = exact.shape[1:]
        for dtype in ("float32", "float16", "int8"):
            if side is not None and dtype == "float32":
                continue
            values = as_stored(exact, dtype).reshape(len(exact), -1, wide)
            name = f"tokens {rows} x {columns}{' (all)' if side is None else ''}, {dtype}"
            form = Form(name, Column("image_tokens", (pairs.prefix + rows * columns, wide), dtype).row_bytes)
            form.distance = distance_of(values, exact.reshape(values.shape))
            shared = cca.texts(texts)
            form.recall = hits_of(cca.images(values.mean(1)) @ shared.T)
            form.recall_tokens = hits_of(attention_similarity(cca.images(values), shared))
            form.dice = dice_of(segmented, exact_masks, as_stored(exact_masks, dtype))
            forms.append(form)
    return forms


def text_forms(pairs: Data) -> list[Form]:
    test, forms = ~pairs.train, []
    cca = Cca(pairs.pooled[pairs.train], pairs.texts[pairs.train])
    images = cca.images(pairs.pooled[test])
    for dtype in ("float32", "float16", "int8"):
        values = as_stored(pairs.texts[test], dtype)
        form = Form(f"text, pooled, {dtype}", Column("embedding", values.shape[1:], dtype).row_bytes)
        form.distance = distance_of(values, pairs.texts[test])
        form.recall = hits_of(images @ cca.texts(values).T)
        forms.append(form)
    tokens = [one for one, kept in zip(pairs.text_tokens, test, strict=True) if kept]
    length = np.mean([len(one) for one in tokens])
    for dtype in ("float32", "float16", "int8"):
        row = Column("text_tokens", (None, tokens[0].shape[-1]), dtype).row_bytes
        form = Form(f"text tokens ({length:.0f} on average), {dtype}", length * row)
        form.distance = np.concatenate([distance_of(as_stored(one, dtype), one) for one in tokens])
        forms.append(form)
    return forms


def distance_of(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """1 - cosine along the last axis, of vectors that have a direction."""
    values, exact = (
        side.reshape(-1, side.shape[-1])[exact.reshape(-1, exact.shape[-1]).any(1)] for side in (values, exact)
    )
    return 1 - (unit(values.astype(np.float64)) * unit(exact.astype(np.float64))).sum(-1).reshape(-1)


def show(forms: list[Form], groups: dict[str, np.ndarray], resamples: int) -> None:
    names = {"recall": "recall", "recall_tokens": "recall of tokens", "dice": "Dice"}
    used = [name for name in names if any(getattr(form, name) is not None for form in forms)]
    rows, first = [], {}
    for form in forms:
        size = form.bytes * MIMIC_IMAGES / 1e9
        row = [form.name, f"{form.bytes:,.0f}", f"{size:.2f}" if size < 10 else f"{size:.0f}",
               f"{form.distance.mean():.1e}", f"{form.distance.max():.1e}"]  # fmt: skip
        for name in used:
            values = getattr(form, name)
            if values is None:
                row.append("")
                continue
            # Pooled vectors and tokens have each their own float32.
            kind = (name, form.name.partition(",")[0].partition(" ")[0])
            if kind not in first:
                first[kind] = values
                row.append(f"{values.mean():.4f}")
                continue
            difference = values - first[kind]
            low, high = bootstrap_interval(difference, groups[name], num_resamples=resamples)
            row.append(f"{difference.mean():+.4f} ({low:+.4f} to {high:+.4f})")
        rows.append(row)
    columns = ["stored", "bytes a row", f"GB of {MIMIC_IMAGES:,}", "1 - cosine, mean", "largest"]
    print_table([*columns, *(names[name] for name in used)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision_tower", nargs="+", default=["lite0"])
    parser.add_argument("--text_tower", default="minilm")
    parser.add_argument("--images", type=int, default=600, help="Images with texts; a third is held out.")
    parser.add_argument("--masks", type=int, default=240, help="Images with masks; a third is held out.")
    parser.add_argument("--grids", type=int, nargs="+", default=[7, 4, 3], help="G x G grids, as of --image_tokens G.")
    parser.add_argument("--num_resamples", type=int, default=2000)
    options = parser.parse_args()
    one_thread()
    print(f"Machine: {processor_name()}, {os.cpu_count()} CPUs, one thread.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, texts_name = load_rows(folder, "texts", options.images)
        masked, masks_name = load_rows(folder, "masks", options.masks)
        for place in options.vision_tower:
            tower, side = square_tower(place)
            pairs = embedded(texts, texts_name, tower, options.text_tower, folder / "cache")
            segmented = embedded(masked, masks_name, tower, None, folder / "cache")
            segmented = replace(segmented, masks=masks_of(masked, side))
            held, held_masks = ~pairs.train, ~segmented.train
            groups = {"recall": pairs.groups[held], "recall_tokens": pairs.groups[held]}
            groups["dice"] = segmented.groups[held_masks]
            print(f"\n### {Path(place).name} at {side} pixels, {options.text_tower}\n")
            print(f"Pairs: {pairs.train.sum()} to fit, {held.sum()} held out, {pairs.name}. "
                  f"Masks: {segmented.train.sum()} and {held_masks.sum()}, {segmented.name}.\n")  # fmt: skip
            show(image_forms(pairs, segmented, options.grids), groups, options.num_resamples)
            show(text_forms(pairs), groups, options.num_resamples)
            print(f"Chance of the recall: {np.mean([min(k, held.sum()) for k in RECALL_AT]) / held.sum():.4f}.")


if __name__ == "__main__":
    main()
