"""
The paper's pre-training on one GPU: 50 epochs over 277,110 cached pairs, from the start of the process to its end.

    python benchmarks/gpu_pretrain.py --output gpu_pretrain.json

No network, one JSON file. The embeddings are synthetic: matched pairs share a latent code, so recall means something.

    eager, float32      train_pretrain.py in float32; several seeds give the spread of the final recall
    eager               train_pretrain.py with its defaults on this GPU (half precision, resident data, fused AdamW)
    compiled            the same with --torch_compile in mode "reduce-overhead", that is with CUDA graphs
    naive               the reference written plainly, its loader and AdamW, float32: steps a second, not a whole run
    T4-like             fp16, two processes that share this GPU, at most 15 GB each; a T4 itself is slower

Each variant evaluates and saves ten times. The file is written anew after each of them: a machine that is lent for too
short a time leaves what is done. --device cpu with small --rows and --epochs only shows that this works.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from naive_reference import NaiveAdaptor, naive_loader, naive_optimizer, unit

from adaptor_hf.embeddings import import_embeddings
from adaptor_hf.training.report import package_versions

ROOT = Path(__file__).parents[1]
LATENT = 64
# Two processes on one GPU: NCCL refuses that, gloo does not. Both see it as their device 0.
SHARED_GPU = """
import sys
sys.path.insert(0, {root!r})
import torch
if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(min(1.0, 15e9 / torch.cuda.mem_get_info()[1]))
from train_pretrain import main
main(sys.argv[1:])
"""


def write_data(folder: Path, rows: int, held_out: int, width: int = 768, noise: float = 1.0) -> tuple[Path, Path]:
    """Float32 `.npy` files of the training rows, for the naive loader, and a float16 cache of all rows."""
    generator = np.random.default_rng(0)
    mixes = [generator.standard_normal((LATENT, width), dtype=np.float32) for _ in range(2)]
    files = folder / "image.npy", folder / "text.npy"
    arrays = [
        np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows + held_out, width)) for file in files
    ]
    for start in range(0, rows + held_out, 16384):
        count = min(16384, rows + held_out - start)
        latent = generator.standard_normal((count, LATENT), dtype=np.float32)
        for array, mix in zip(arrays, mixes, strict=True):
            spread = noise * np.sqrt(LATENT) * generator.standard_normal((count, width), dtype=np.float32)
            array[start : start + count] = latent @ mix + spread
    for array in arrays:
        array.flush()
    total = rows + held_out
    table = Dataset.from_dict(
        {
            "image_id": [str(row) for row in range(total)],
            "patient_id": [str(row) for row in range(total)],
            "text": [f"report {row}" for row in range(total)],
            "split": ["train"] * rows + ["validation"] * held_out,
        }
    )
    import_embeddings(image=files[0], text=files[1], table=table, cache_dir=folder / "cache", dtype="float16")
    return files


def run_script(folder: Path, options: argparse.Namespace, name: str, *extra: str, processes: int = 1) -> dict:
    """One run of train_pretrain.py in fresh processes; wall seconds from start to end, and what run.json says."""
    output = folder / name.replace(" ", "-").replace(",", "")
    words = f"--cache {folder / 'cache'} --output_dir {output} --num_train_epochs {options.epochs}"
    words += f" --global_batch_size {options.batch} --learning_rate {options.learning_rate} --report_to none"
    words += " --eval_strategy steps --eval_steps 0.1 --save_strategy steps --save_steps 0.1"
    words += " --logging_strategy steps --logging_steps 0.02"
    words += " --use_cpu" if options.device == "cpu" else ""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    program = [str(ROOT / "train_pretrain.py")]
    if processes > 1:
        program = ["-c", SHARED_GPU.format(root=str(ROOT))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"LOCAL_RANK": "0"}
    start = time.perf_counter()
    ranks = [
        subprocess.Popen(
            [sys.executable, *program, *words.split(), *extra],
            env=environment | ({"RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    messages = [rank.communicate()[1] for rank in ranks]
    seconds = time.perf_counter() - start
    if any(rank.returncode for rank in ranks):
        return {"failed": messages[0][-1500:]}
    run = json.loads((output / "run.json").read_text(encoding="utf-8"))
    steps = -(-options.rows // options.batch) * options.epochs
    found = {
        "wall_seconds": round(seconds, 2),
        "pairs_a_second_of_training": round(steps * options.batch / run["seconds"]["train"]),
        "seconds": run["seconds"],
        "peak_memory_bytes": run["peak_memory_bytes"],
        "mean_recall": run["metrics"]["eval_mean_recall"],
    }
    print(f"{name}: {found['wall_seconds']} s, mean recall {found['mean_recall']:.4f}", file=sys.stderr, flush=True)
    return found


def naive_steps(files: tuple[Path, Path], options: argparse.Namespace) -> dict:
    """Seconds a step of the reference on the same device and data, after a tenth of the steps to warm up."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = NaiveAdaptor().to(device).train()
    optimizer, scheduler = naive_optimizer(model, lr=options.learning_rate, total_steps=10_000)
    warm_up, start, done = max(1, options.naive_steps // 10), 0.0, 0
    for batch in naive_loader(*files, options.batch):
        if done == warm_up:
            synchronize(device)
            start = time.perf_counter()
        optimizer.zero_grad()
        image, text = model(batch["image_embeds"].to(device), batch["text_embeds"].to(device))
        logits = model.logit_scale.exp() * unit(text)[:, 0] @ unit(image)[:, 0].T
        targets = torch.arange(len(logits), device=device)
        cross_entropy = torch.nn.functional.cross_entropy
        (0.25 * cross_entropy(logits, targets) + 0.75 * cross_entropy(logits.T, targets)).backward()
        optimizer.step()
        scheduler.step()
        done += 1
        if done == warm_up + options.naive_steps:
            break
    synchronize(device)
    return {
        "steps": done - warm_up,
        "pairs_a_second_of_training": round((done - warm_up) * options.batch / (time.perf_counter() - start)),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(runs: dict[str, dict]) -> dict:
    """The ratios and the spread that the runs are judged by; a run that failed, or is still to come, is left out."""
    whole = {name: run for name, run in runs.items() if "wall_seconds" in run}
    seeds = [run["mean_recall"] for name, run in whole.items() if name.startswith("eager, float32")]
    summary = {
        "float32_recall_over_seeds": [min(seeds), max(seeds)] if seeds else None,
        "wall_seconds": {name: run["wall_seconds"] for name, run in whole.items()},
        "failed": sorted(name for name, run in runs.items() if "failed" in run),
    }
    if "naive" in runs:
        naive = runs["naive"]["pairs_a_second_of_training"]
        summary["times_the_naive_rate"] = {
            name: round(run["pairs_a_second_of_training"] / naive, 2) for name, run in whole.items()
        }
    return summary


def variants(folder: Path, files: tuple[Path, Path], options: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """All runs by name, those that the gates are about first."""

    def script(name: str, *extra: str, processes: int = 1) -> Callable[[], dict]:
        return lambda: run_script(folder, options, name, *extra, processes=processes)

    compiled = ("--torch_compile", "--torch_compile_mode", "reduce-overhead", "--dataloader_drop_last", "True")
    shared = ("--ddp_backend", "gloo", "--auto_mixed_precision", "False")
    shared += ("--fp16",) if options.device == "cuda" else ()
    runs = {
        "naive": lambda: naive_steps(files, options),
        "eager": script("eager"),
        "compiled": script("compiled", *compiled),
        "T4-like": script("T4-like", *shared, processes=2),
    }
    for seed in range(options.seeds):
        name = f"eager, float32, seed {seed}"
        runs[name] = script(name, "--auto_mixed_precision", "False", "--seed", str(seed))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_pretrain.json"))
    parser.add_argument("--rows", type=int, default=277_110)
    parser.add_argument("--held_out", type=int, default=2_991)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--naive_steps", type=int, default=200)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No GPU that this torch build can use. --device cpu with small --rows and --epochs tries the script.")
    report = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": package_versions(),
        "options": {name: str(value) for name, value in vars(options).items()},
        "summary": {},
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_data(folder, options.rows, options.held_out)
        for variant, run in variants(folder, files, options).items():
            report["runs"][variant] = run()
            report["summary"] = summarize(report["runs"])
            options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
