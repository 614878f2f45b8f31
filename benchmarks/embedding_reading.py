"""CPU time to read a batch of 1024 pairs: the cache's reader against a per-item memory-mapped .npy loader.

The baseline is the usual loader of cached embeddings: one memory-mapped float32 .npy a side, one item a row, default
collate. Variants are interleaved and rotated in one process, one thread; the table shows the median CPU milliseconds.

    python benchmarks/embedding_reading.py --rows 20480 --shard_rows 4096
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 1024


class NumpyPairs(Dataset):
    """The baseline: row by row out of memory-mapped files."""

    def __init__(self, image: Path, text: Path) -> None:
        self.image, self.text = np.load(image, mmap_mode="r"), np.load(text, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.image[index].copy()), torch.from_numpy(self.text[index].copy())


def same(batch):
    """Identity collator: the cache gives whole batches."""
    return batch


def make_cache(folder: Path, rows: int, width: int, shard_rows: int):
    """A cache of random float16 pairs in several shards, and the same numbers as float32 .npy files."""
    from adaptor_hf.embeddings import import_embeddings, importing

    generator = np.random.default_rng(0)
    paths = []
    for name in ("image", "text"):
        paths.append(folder / f"{name}.npy")
        np.save(paths[-1], generator.standard_normal((rows, width), dtype=np.float32))
    importing.SHARD_ROWS = shard_rows
    return import_embeddings(*paths, cache_dir=folder / "cache", dtype="float16"), NumpyPairs(*paths)


def epoch_cpu(loader: Callable[[], DataLoader]) -> float:
    """CPU milliseconds a batch over one shuffled epoch, iterator start included."""
    batches = loader()
    start = time.process_time()
    count = sum(1 for _ in batches)
    return 1e3 * (time.process_time() - start) / count


def benchmark(rows: int = 20_480, width: int = 768, shard_rows: int = 4096, repeats: int = 7) -> dict:
    """Median CPU milliseconds a batch of each variant, and the ratio to the baseline."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cache, baseline = make_cache(Path(folder), rows, width, shard_rows)
        resident = cache.to_device("cpu")
        options = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
        variants = {
            "per-item .npy, default collate": lambda: DataLoader(baseline, **options),
            f"cache, {-(-rows // shard_rows)} record batches": lambda: DataLoader(cache, collate_fn=same, **options),
            "cache, resident": lambda: DataLoader(resident, collate_fn=same, **options),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        names = list(variants)
        for repeat in range(repeats + 1):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                spent = epoch_cpu(variants[name])
                if repeat:  # the first round warms the page cache
                    times[name].append(spent)
        medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians[names[0]]
    return {name: {"cpu_ms": round(value, 3), "ratio": round(base / value, 2)} for name, value in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_480)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--shard_rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    print(json.dumps(benchmark(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
