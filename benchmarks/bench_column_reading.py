"""
Random rows of a file of tokens: a call for each row beside the memory mapping, with the file in the page cache and not.

    python benchmarks/bench_column_reading.py --folder /data

The file is dropped from the page cache before each cold measurement, which Linux does for files that nothing maps. What
the disk or its host keeps beyond that is not dropped, so cold figures are of this machine.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import arguments, print_header, print_table

from adaptor_hf.embeddings.columns import Column, to_arrow
from adaptor_hf.embeddings.files import write_batch
from adaptor_hf.embeddings.vectors import LARGE_ROW, ColumnFile

WIDTH = 768
TOKENS = {"all, 257": 257, "7 x 7 and class, 50": 50, "4 x 4 and class, 17": 17, "pooled, 1": 1}


def write_tokens(folder: Path, tokens: int, megabytes: int) -> tuple[Path, Column, int]:
    column = Column("image_tokens", (tokens, WIDTH), "float16")
    rows = megabytes * 1_000_000 // column.row_bytes
    part = np.random.default_rng(0).normal(size=(min(rows, 64), tokens, WIDTH))
    values = np.resize(part, (rows, tokens, WIDTH))
    path = folder / f"image_tokens-{tokens:05d}.arrow"
    write_batch(path, pa.RecordBatch.from_pydict(to_arrow(column, values)))
    return path, column, rows


def read(path: Path, column: Column, rows: int, chosen: np.ndarray, by_calls: bool, cold: bool) -> tuple[float, float]:
    """GB a second, and CPU-seconds a GB."""
    if cold:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    out = np.empty((len(chosen), *column.shape), column.dtype)
    size = out.nbytes / 1e9
    start, worked = time.perf_counter(), time.process_time()
    ColumnFile(path, column, rows, by_calls).copy_rows(chosen, [out], np.arange(len(chosen)))
    return size / (time.perf_counter() - start), (time.process_time() - worked) / size


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--folder", help="Where the files are written; default: a temporary folder.")
    parser.add_argument("--megabytes", type=int, default=400, help="Size of each file.")
    options = parser.parse_args()
    print_header("Random rows of a column", "the memory mapping", options.repeats)
    table = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, tokens in TOKENS.items():
            path, column, rows = write_tokens(Path(folder), tokens, options.megabytes)
            generator = np.random.default_rng(1)
            found: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
            for _ in range(options.repeats):
                for cold in (True, False):
                    chosen = generator.permutation(rows)[: rows // 8]
                    for by_calls in (True, False):
                        if not cold:
                            read(path, column, rows, chosen, True, False)
                        measured = read(path, column, rows, chosen, by_calls, cold)
                        found.setdefault((cold, by_calls), []).append(measured)
            for cold in (True, False):
                mapped, called = (
                    [statistics.median(values) for values in zip(*found[cold, by_calls], strict=True)]
                    for by_calls in (False, True)
                )
                kept = "by calls" if column.row_bytes >= LARGE_ROW else "mapping"
                table.append([
                    name, f"{column.row_bytes / 1000:.0f}", "disk" if cold else "page cache",
                    *(f"{mapped[place]:.2f}" for place in (0, 1)), *(f"{called[place]:.2f}" for place in (0, 1)), kept,
                ])  # fmt: skip
            path.unlink()
    print_table(
        ["tokens a row", "KB a row", "read from", "mapping, GB/s", "CPU-s a GB", "calls, GB/s", "CPU-s a GB", "used"],
        table,
    )


if __name__ == "__main__":
    main()
