"""
Reading a batch of 1024 pairs: the cache over several shards beside a loader of one memory-mapped row at a time.

    python benchmarks/bench_loader.py --repeats 9
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_step import our_step
from measure import arguments, interleaved, medians, one_thread, print_header, print_table
from naive_reference import naive_loader
from torch.utils.data import DataLoader

from adaptor_hf.embeddings import import_embeddings, importing
from adaptor_hf.training.base_trainer import keep_batch

BASELINE = "naive: one memory-mapped .npy row at a time, float32, default_collate"
BATCH = 1024


def write_rows(folder: Path, rows: int, width: int = 768) -> tuple[Path, Path]:
    """Random float32 embeddings of both sides as `.npy` files."""
    generator = np.random.default_rng(0)
    files = folder / "image.npy", folder / "text.npy"
    for file in files:
        np.save(file, generator.standard_normal((rows, width), dtype=np.float32))
    return files


def build_caches(folder: Path, files: tuple[Path, Path], shard_rows: int) -> dict[str, object]:
    # import_embeddings has no option for this: only a benchmark wants small shards.
    importing.SHARD_ROWS = shard_rows
    caches = {
        dtype: import_embeddings(image=files[0], text=files[1], cache_dir=folder / dtype, dtype=dtype)
        for dtype in ("float16", "float32")
    }
    for cache in caches.values():
        shards = [name for name in cache.files() if name.endswith(".arrow")]
        assert len(shards) >= 9, "fewer than four shards a side; use more rows or smaller shards"
    return caches


def epoch(loader: DataLoader, upcast: bool = False):
    """One pass over a loader; returns CPU-seconds a batch."""

    def read() -> float:
        start, batches = time.process_time(), 0
        for batch in loader:
            batches += 1
            if upcast:
                batch["image_embeds"].float(), batch["text_embeds"].float()
        return (time.process_time() - start) / batches

    return read


def shuffled(dataset, batch_size: int = BATCH) -> DataLoader:
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, collate_fn=keep_batch)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=20_480)
    parser.add_argument("--shard_rows", type=int, default=5_120)
    options = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_rows(folder, options.rows)
        caches = build_caches(folder, files, options.shard_rows)
        batch = {name: torch.randn(BATCH, 768) for name in ("image_embeds", "text_embeds")}
        step = "(one training step of ours, for the share)"
        variants = {
            BASELINE: epoch(naive_loader(*files, BATCH)),
            "cache, float16": epoch(shuffled(caches["float16"])),
            "cache, float16, widened to float32 on the CPU": epoch(shuffled(caches["float16"]), upcast=True),
            "cache, float32": epoch(shuffled(caches["float32"])),
            step: our_step(batch, torch.arange(BATCH)),
        }
        seconds = interleaved(variants, options.repeats)
    median = medians(seconds)
    shards = -(-options.rows // options.shard_rows)
    print_header(
        f"Reading a batch of {BATCH} of {options.rows} pairs, 768/768, {shards} shards a side",
        BASELINE,
        options.repeats,
    )
    rows = [
        [
            name,
            f"{1e3 * value:.2f}",
            f"{1e3 * min(seconds[name]):.2f}",
            f"{median[BASELINE] / value:.1f}",
            f"{100 * value / median[step]:.2f} %",
        ]
        for name, value in median.items()
    ]
    print_table(["loader", "CPU-ms a batch", "least", "times less than the baseline", "of a step"], rows)


if __name__ == "__main__":
    main()
