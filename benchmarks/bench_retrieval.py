"""Exact retrieval metrics between images and texts, in blocks: seconds and peak memory by the number of rows.

python benchmarks/bench_retrieval.py
python benchmarks/bench_retrieval.py --rows 200000 --queries 2000     (the memory of all rows in a minute)
python benchmarks/bench_retrieval.py --rows 200000     (minutes to an hour, by the number of cores)
python benchmarks/bench_retrieval.py --rows 200000 --device cuda
"""

import argparse
import resource
import time

import torch

from adaptor_hf.evaluation import precision_at_k, retrieval_metrics, retrieval_ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10000, help="images, and as many texts")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, help="only so many queries a direction: time is scaled to all of them")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.rows, options.width, generator=generator)
    texts = torch.randn(options.rows, options.width, generator=generator).mul_(8).add_(images)
    for part in (images, texts):
        part /= part.norm(dim=1, keepdim=True)
    images, texts = images.to(options.device), texts.to(options.device)
    ids = torch.arange(options.rows, device=options.device)
    print(f"rows: {options.rows:,} x {options.rows:,}, width {options.width}, {torch.get_num_threads()} threads")
    queries = min(options.queries or options.rows, options.rows)
    start, cpu = time.perf_counter(), time.process_time()
    if queries == options.rows:
        metrics, _ = retrieval_metrics(images, texts, ids)
        recall = metrics["mean_recall"]
    else:
        # The distinct texts are a copy, as in retrieval_metrics.
        sides = (images, texts[ids])
        ranks = [retrieval_ranks(one[:queries], other, ids[:queries], ids) for one, other in (sides, sides[::-1])]
        recall = torch.stack([(rank <= k).double().mean() for rank in ranks for k in (1, 5, 10)]).mean().item()
    middle, cpu_middle = time.perf_counter(), time.process_time()
    precision = precision_at_k(images[:queries], texts, ids[:queries] % 5, ids % 5)
    scale = options.rows / queries
    scaled = "" if scale == 1 else f" for {queries:,} queries a direction, {scale:g} times that for all"
    print(f"recalls and ranks, both directions: {middle - start:.1f} s ({cpu_middle - cpu:.1f} CPU-s){scaled}; "
          f"mean recall {recall:.3f}")  # fmt: skip
    end = time.perf_counter()
    print(f"precision at k, one direction: {end - middle:.1f} s; at 10: {precision[10].mean().item():.3f}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")
    if options.device != "cpu":
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 2**30:.2f} GB")


if __name__ == "__main__":
    main()
