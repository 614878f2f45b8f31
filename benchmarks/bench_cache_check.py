"""
What it costs to compare a cache of embeddings with its digests when it is opened, and to take them when it is written.

    python benchmarks/bench_cache_check.py

A cache of random float16 vectors is opened with each `check`, and with manifests as version 0.1 wrote them, which have
SHA-256 alone. Its files lie in the page cache: the disk's own time comes on top where they do not. Beside them: one
record batch written with and without digests.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import arguments, interleaved, medians, one_thread, print_header, print_table

from adaptor_hf.embeddings import import_embeddings, open_cache
from adaptor_hf.embeddings.files import embedding_batch, write_batch, write_json

WIDTH = 768


def as_version_0_1(folder: Path) -> None:
    """Take away what version 0.1 did not write."""
    for path in folder.glob("*-*/cache.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name in ("digest", "embedding_files", "files"):
            manifest.pop(name, None)
        for entry in manifest["shards"]:
            del entry["xxh3"]
        write_json(path, manifest | {"version": 1})


def write_plain(path: Path, batch: pa.RecordBatch) -> None:
    with open(path, "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="Size of the cache.")
    options = parser.parse_args()
    one_thread()
    rows = int(options.gigabytes * 1e9 / (2 * WIDTH))
    vectors = np.random.default_rng(0).integers(0, 0x7BFF, (rows, WIDTH), dtype=np.uint16).view(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = import_embeddings(image=vectors, cache_dir=folder / "new")
        size = sum((folder / "new" / file).stat().st_size for file in cache.files()) / 1e9
        del cache
        shutil.copytree(folder / "new", folder / "old")
        as_version_0_1(folder / "old")
        variants = {f"open, {check}": lambda check=check: open_cache(folder / "new", check=check)
                    for check in ("off", "touched", "full")}  # fmt: skip
        variants["open, touched, SHA-256 of a cache of version 0.1"] = lambda: open_cache(folder / "old")
        opened = medians(interleaved(variants, options.repeats))
        waited = {}
        for title, run in variants.items():
            start = time.perf_counter()
            run()
            waited[title] = time.perf_counter() - start
        batch = embedding_batch(vectors[:65_536], {})
        writes = {
            "write, without digests": lambda: write_plain(folder / "plain.arrow", batch),
            "write, XXH3-128 and SHA-256": lambda: write_batch(folder / "digested.arrow", batch),
        }
        written = medians(interleaved(writes, options.repeats))
        written_size = (folder / "plain.arrow").stat().st_size / 1e9
    print_header("Digests of a cache", "`off` and no digests", options.repeats)
    lines = [[title, f"{seconds / size:.2f}", f"{waited[title] / size:.2f}"] for title, seconds in opened.items()]
    lines += [[title, f"{seconds / written_size:.2f}", ""] for title, seconds in written.items()]
    print_table([f"what, a cache of {size:.2f} GB", "CPU-seconds a GB", "seconds a GB, once"], lines)


if __name__ == "__main__":
    main()
