"""
Evaluation of a split on several gloo processes: divided over them, against each doing all, as versions before did.

    python benchmarks/bench_evaluation.py
    python benchmarks/bench_evaluation.py --rows 4096 --processes 3

CPU-seconds are those of all processes together, by turns in the same ones. The metrics of both ways are compared.
"""

import tempfile
import time
from pathlib import Path

from measure import arguments, medians, print_header, print_table

WIDTH = 768


def process(rank: int, count: int, rows: list[int], repeats: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    from adaptor_hf import AdaptorConfig, AdaptorModel
    from adaptor_hf.training.pair_evaluation import Retrieval, evaluate_pairs

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.manual_seed(0)
    model = AdaptorModel(AdaptorConfig(vision_hidden_size=WIDTH, text_hidden_size=WIDTH))
    found = {}
    for number in rows:
        pairs = Pairs(number)

        def run(divided: bool, pairs=pairs) -> tuple[list[float], dict]:
            dist.barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            _, metrics = evaluate_pairs(model, pairs, [Retrieval()], divided=divided)
            taken = torch.tensor([time.process_time() - cpu])
            dist.all_reduce(taken)
            return [taken.item(), time.perf_counter() - wall], metrics

        ways = {"each all": False, "divided": True}
        metrics = [run(divided)[1] for divided in ways.values()]
        assert metrics[0] == metrics[1]
        times: dict[str, list[list[float]]] = {name: [] for name in ways}
        for turn in range(repeats):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                times[name].append(run(ways[name])[0])
        found[number] = times
    if rank == 0:
        torch.save(found, Path(folder) / "times.pt")
    dist.destroy_process_group()


class Pairs:
    """Finished batches of drawn embeddings."""

    def __init__(self, rows: int):
        import torch

        generator = torch.Generator().manual_seed(1)
        self.columns = {f"{side}_embeds": torch.randn(rows, WIDTH, generator=generator) for side in ("image", "text")}
        self.columns["text_row"] = torch.arange(rows)

    def __len__(self) -> int:
        return len(self.columns["text_row"])

    def __getitems__(self, rows: list[int]) -> dict:
        return {name: values[rows] for name, values in self.columns.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            process, (options.processes, options.rows, options.repeats, folder), nprocs=options.processes
        )
        found = torch.load(Path(folder) / "times.pt", weights_only=True)
    print_header(f"Evaluation on {options.processes} processes", "each process evaluates all", options.repeats)
    table = []
    for number, times in found.items():
        cpu = medians({name: [one[0] for one in values] for name, values in times.items()})
        wall = medians({name: [one[1] for one in values] for name, values in times.items()})
        table += [
            [f"{number:,}", name, f"{cpu[name]:.2f}", f"{cpu[name] / cpu['each all']:.2f}", f"{wall[name]:.2f}"]
            for name in times
        ]
    print_table(["pairs", "evaluation", "CPU-s of all processes", "ratio", "seconds"], table)


if __name__ == "__main__":
    main()
