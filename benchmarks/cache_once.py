"""
One build and one reading of a cache in a process of its own, by whichever version of the package is on PYTHONPATH;
`bench_extraction.py --against` runs it for two versions. Prints one JSON object.

    python benchmarks/cache_once.py FOLDER build_images|build_texts|build_large_images|read
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def seconds() -> float:
    """CPU-seconds of this process and of the workers that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main(folder: Path, work: str) -> None:
    import datasets
    import torch

    from adaptor_hf.embeddings import build_cache, open_cache

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    prepared = folder / "prepared"
    if work == "read":
        cache = open_cache(prepared)
        began = time.process_time()
        generator = torch.Generator().manual_seed(0)
        rows = 0
        for _ in range(4):
            for batch in torch.randperm(len(cache), generator=generator).split(2048):
                rows += len(cache.__getitems__(batch.numpy())["row"])
        spent = time.process_time() - began
    else:
        from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

        table = datasets.load_from_disk(folder / work)
        images = "image" in table.column_names
        load = load_vision_tower if images else load_text_tower
        towers = {"vision_tower" if images else "text_tower": load(str(folder / f"tower_of_{work}"))}
        target = folder / f"cache-{os.getpid()}"
        began = seconds()
        cache = build_cache(table, **towers, cache_dir=target, batch_size=64, num_workers=1)
        spent, rows = seconds() - began, len(cache)
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    [memory] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({"rows": rows, "cpu_seconds": spent, "peak_megabytes": int(memory.split()[1]) / 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
