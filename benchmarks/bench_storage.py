"""
What storing embeddings as float16, and images in a store of resized images, changes.

    ADAPTOR_REALBENCH=FOLDER python benchmarks/bench_storage.py

With ADAPTOR_REALBENCH the pairs are the covidcxr part of that folder's metadata.csv, else phantoms. The towers are
real: lite0 and minilm, from the packages of the extra `demo`. Recall is that of the validation split: of one model that
was trained on float32 and reads both, and of models trained on each, over several seeds.

The store is tried on large JPEG files (2544 x 3056), which are synthetic: fine noise on smooth shapes, the worst case
for resizing twice. How much two different images differ is printed beside it.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_extraction import radiograph
from measure import one_thread, print_table
from torch.nn.functional import cosine_similarity

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.embeddings import build_cache
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import evaluate_retrieval

EPOCHS = 20


def pairs_of(folder: Path):
    """Pairs with a split, and what to call them."""
    from adaptor_hf.data.splits import assign_splits
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.phantom import write_phantoms

    real = os.environ.get("ADAPTOR_REALBENCH")
    if real:
        columns = {"image_column": "image", "patient_column": "patient_id", "split_column": "split"}
        pairs = load_pairs(Path(real) / "metadata.csv", filters=["dataset=covidcxr"], **columns)
        return pairs, "covidcxr radiographs with clinical notes"
    return assign_splits(load_pairs(write_phantoms(folder / "phantoms", 400))), "phantoms"


def trained(cache, folder: Path, seed: int) -> AdaptorModel:
    torch.manual_seed(seed)
    config = AdaptorConfig(
        vision_hidden_size=cache.vision_spec["hidden_size"], text_hidden_size=cache.text_spec["hidden_size"]
    )
    arguments = AdaptorTrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=64, learning_rate=3e-4, seed=seed,
        use_cpu=True, report_to=[], eval_strategy="no", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        load_best_model_at_end=False,
    )  # fmt: skip
    model = AdaptorModel(config)
    AdaptorTrainer(model, arguments, train_dataset=cache.split("train").paired()).train()
    return model


def mean_recall(model: AdaptorModel, cache) -> float:
    return evaluate_retrieval(model, cache.split("validation").paired(), "").metrics["mean_recall"]


def compare_dtypes(folder: Path, seeds: int) -> None:
    pairs, name = pairs_of(folder)
    caches = {
        dtype: build_cache(pairs, "lite0", "minilm", folder / "cache", dtype=dtype) for dtype in ("float16", "float32")
    }
    half, single = caches["float16"], caches["float32"]
    print(f"\n### float16 beside float32: {len(single)} {name}, lite0 and minilm\n")
    rows = []
    for side in ("image_embeddings", "text_embeddings"):
        exact, stored = (getattr(cache.paired(), side)().double() for cache in (single, half))
        distance = 1 - cosine_similarity(exact, stored)
        rows.append([side, len(exact), f"{distance.max():.1e}", f"{distance.mean():.1e}"])
    print_table(["side", "rows", "largest 1 - cosine", "mean"], rows)
    rows = []
    for seed in range(seeds):
        model = trained(single, folder / "run", seed)
        of_single, of_half = mean_recall(model, single), mean_recall(model, half)
        own = mean_recall(trained(half, folder / "run", seed), half)
        rows.append([seed, f"{of_single:.4f}", f"{of_half - of_single:+.4f}", f"{own - of_single:+.4f}"])
    columns = ["seed", "mean recall, float32", "same model on float16", "trained on float16"]
    print(f"Mean recall of {len(single.split('validation').paired())} held-out pairs, and differences to it:\n")
    print_table(columns, rows)


def compare_stores(folder: Path, images: int) -> None:
    import datasets

    files = []
    for seed in range(images):
        files.append(str(folder / f"{seed}.jpg"))
        Path(files[-1]).write_bytes(radiograph(seed))
    table = datasets.Dataset.from_dict({"image": files})

    def embeddings(size: int | None) -> torch.Tensor:
        store = {} if size is None else {"image_store": folder / "store", "image_store_size": size}
        cache = build_cache(table, "lite0", None, folder / "stored", dtype="float32", **store)
        return cache.image_embeddings().double()

    direct = embeddings(None)
    others = cosine_similarity(direct[:-1], direct[1:])
    print(f"\n### Store of resized images beside the files: {images} JPEG of 2544 x 3056, lite0 (resizes to 256)\n")
    print(f"Cosine of different images: {others.min():.4f} to {others.max():.4f}.\n")
    rows = []
    for size in (256, 384, 512):
        cosine = cosine_similarity(embeddings(size), direct)
        sizes = [file.stat().st_size for file in (folder / "store").glob(f"{size}-*/*/*.png")]
        rows.append([size, f"{cosine.min():.6f}", f"{cosine.mean():.6f}", f"{np.mean(sizes) / 1e3:.0f}"])
    print_table(["image_store_size", "smallest cosine", "mean", "KB an image"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12, help="Large JPEG files.")
    options = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as name:
        compare_dtypes(Path(name), options.seeds)
        compare_stores(Path(name), options.images)


if __name__ == "__main__":
    main()
