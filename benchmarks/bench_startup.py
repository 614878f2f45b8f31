"""
CPU-seconds from `python train_pretrain.py` on a ready cache to its first training step, beside the bare imports.

    python benchmarks/bench_startup.py --repeats 7
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_loader import write_rows
from measure import arguments, print_header, print_table

BASELINE = "from transformers import Trainer; import datasets"
SCRIPT = "train_pretrain.py up to its first step"
# The script itself, stopped where its first step would begin. Neither process is charged for tidying up at its end.
UNTIL_FIRST_STEP = """
import os, sys
sys.path.insert(0, {root!r})
from train_pretrain import main
from adaptor_hf.training import AdaptorTrainer
AdaptorTrainer.training_step = lambda *args: os._exit(0)
main(sys.argv[1:])
sys.exit("the run ended without a step")
"""


def cpu_seconds(code: str, *words: str) -> float:
    """User and system seconds of a fresh Python process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--rows", type=int, default=20_480)
    options = parser.parse_args()
    from adaptor_hf.embeddings import import_embeddings

    code = UNTIL_FIRST_STEP.format(root=str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, text = write_rows(folder, options.rows)
        import_embeddings(image=image, text=text, cache_dir=folder / "cache")
        words = [
            "--cache",
            str(folder / "cache"),
            "--use_cpu",
            "--eval_strategy",
            "no",
            "--load_best_model_at_end",
            "no",
        ]
        seconds: dict[str, list[float]] = {BASELINE: [], SCRIPT: []}
        for turn in range(options.repeats + 1):
            for variant in (BASELINE, SCRIPT) if turn % 2 else (SCRIPT, BASELINE):
                output = ["--output_dir", str(folder / f"run-{turn}")]
                taken = (
                    cpu_seconds(f"{BASELINE}; import os; os._exit(0)")
                    if variant == BASELINE
                    else cpu_seconds(code, *words, *output)
                )
                if turn:  # the first fills the caches of files and bytecode
                    seconds[variant].append(taken)
    print_header(f"Start-up on a ready cache of {options.rows} pairs", BASELINE, options.repeats)
    median = {variant: statistics.median(values) for variant, values in seconds.items()}
    print_table(
        ["process", "CPU-s", "least", "above the baseline"],
        [[v, f"{m:.2f}", f"{min(seconds[v]):.2f}", f"{m - median[BASELINE]:.2f}"] for v, m in median.items()],
    )


if __name__ == "__main__":
    main()
