"""Exact retrieval metrics between images and texts, in blocks: seconds and peak memory by the number of rows.

python benchmarks/bench_retrieval.py
python benchmarks/bench_retrieval.py --rows 200000     (minutes to an hour, by the number of cores)
python benchmarks/bench_retrieval.py --rows 200000 --device cuda
"""

import argparse
import resource
import time

import torch

from adaptor_hf.evaluation import precision_at_k, retrieval_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10000, help="images, and as many texts")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.rows, options.width, generator=generator)
    texts = images + 8 * torch.randn(options.rows, options.width, generator=generator)
    images, texts = (torch.nn.functional.normalize(part, dim=1).to(options.device) for part in (images, texts))
    ids = torch.arange(options.rows, device=options.device)
    start = time.perf_counter()
    metrics, _ = retrieval_metrics(images, texts, ids)
    middle = time.perf_counter()
    precision = precision_at_k(images, texts, ids % 5, ids % 5)
    end = time.perf_counter()
    print(f"rows: {options.rows:,} x {options.rows:,}, width {options.width}, {torch.get_num_threads()} threads")
    print(f"recalls and ranks, both directions: {middle - start:.1f} s; mean recall {metrics['mean_recall']:.3f}")
    print(f"precision at k, one direction: {end - middle:.1f} s; at 10: {precision[10].mean().item():.3f}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")
    if options.device != "cpu":
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 2**30:.2f} GB")


if __name__ == "__main__":
    main()
