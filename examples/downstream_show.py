"""
Every downstream task on phantoms in one command, beside all controls: no network, under ten minutes on two cores.

    python examples/downstream_show.py --output_dir show-output

Draws phantoms, pre-trains an Adaptor and its controls, runs every task (classification at three fractions;
segmentation at all data, one seed, small), and writes one page with tables and figures.
Interrupted, the same command goes on. Phantoms are drawn by a program: the numbers show that the machinery works, and
nothing about medicine.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch

from adaptor_hf import AdaptorModel
from adaptor_hf.embeddings import open_cache
from adaptor_hf.evaluation.analysis import before_and_after, tsne_map
from adaptor_hf.evaluation.figures import draw_tsne
from adaptor_hf.evaluation.report import PHANTOM, write_report
from adaptor_hf.evaluation.tasks import TASKS
from adaptor_hf.phantom import write_phantoms

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LABELS = ["consolidation", "effusion", "cardiomegaly"]


def plan(table: Path, model: Path) -> dict:
    """The sweep: what all tasks share, and what each adds by what it needs."""
    by_need = {
        "labels": {"label_column": LABELS},
        "prompts": {"prompts": "phantom", "prompts_per_class": 2},
        "reports": {"text_column": "text"},
        "masks": {"mask_column": "lungs_mask", "image_size": 64, "epochs": 1, "seeds": [0]},
    }
    by_task = {
        name: {option: value for need in task.needs for option, value in by_need[need].items()}
        for name, task in TASKS.items()
    }
    by_task["classification"]["fraction"] = [0.01, 0.1, 1.0]
    by_task["few_shot"]["episodes"] = 10
    common = {
        "model": str(model),
        "table": str(table),
        "dataset_name": "phantom",
        "device": "cpu",
        "num_resamples": 500,
    }
    return {"common": common, "over": {"task": list(by_task)}, "by_task": by_task}


def pretrain(table: Path, model: Path) -> None:
    import train_pretrain

    if (model / "run.json").is_file():
        return
    resume = ["--resume_from_checkpoint", "True"] if any(model.glob("checkpoint-*")) else []
    train_pretrain.main([
        "--recipe", "small", "--train_file", str(table), "--patient_column", "patient_id", "--vision_tower", "lite0",
        "--text_tower", "minilm", "--num_train_epochs", "10", "--controls", "--learning_rate_grid", "1e-4", "3e-4",
        "--dataset_name", "phantom", "--output_dir", str(model), "--cache_dir", str(model / "embeddings"), *resume,
    ])  # fmt: skip


def downstream(table: Path, model: Path, output: Path) -> dict[str, str]:
    from adaptor_hf.tasks.run import run_task
    from adaptor_hf.tasks.sweep import run_sweep

    def start(job) -> str:
        started = time.process_time()
        said = run_task(job, "cpu")
        return f"{said}\n\n{job.task}: {time.process_time() - started:.0f} CPU-s"

    return run_sweep(plan(table, model), output, start)


def swaps(results: Path) -> str:
    """The table of text understanding, from its file."""
    from adaptor_hf.tasks.text_understanding import RESULT_FILE, SwapResult, swap_table

    if not (results / RESULT_FILE).is_file():
        return "No result."
    found = json.loads((results / RESULT_FILE).read_text(encoding="utf-8"))["results"]
    known = [{name: float("nan") if value is None else value for name, value in one.items()} for one in found]
    return swap_table([SwapResult(**one) for one in known])


@torch.no_grad()
def analyse(table: Path, model_folder: Path, folder: Path) -> str:
    """What the Adaptor does to the embeddings: numbers as a table, and maps."""
    model = AdaptorModel.from_pretrained(model_folder, load_towers=False).eval()
    pairs = open_cache(next((model_folder / "embeddings").glob("pairs-*"))).paired().split("test")
    images, texts = pairs.image_embeddings().float(), pairs.text_embeddings().float()
    found = before_and_after(model, images, texts)
    names = ["channel_std", "effective_rank", "uniformity"]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for when in ("image_before", "image_after", "text_before", "text_after"):
        lines.append(
            f"| {when.replace('_', ', ')} | " + " | ".join(f"{found[when][name]:.3f}" for name in names) + " |"
        )
    after = found["pairs_after"]
    said = f"Squared distance of pairs {after['alignment']:.3f}, of shuffled pairs {after['shuffled']:.3f}."

    import pandas as pd

    rows = pd.read_csv(table, dtype=str).set_index("image_id")
    records = rows.loc[pairs.pairs["image_id"][:]]
    classes = np.where(records["effusion"] == "1", "effusion", "none")
    mapped = model.get_image_features(image_embeds=images).pooler_output
    near = min(40, len(images) // 3)
    points = {
        "before the Adaptor": tsne_map(images, perplexity=near), "after the Adaptor": tsne_map(mapped, perplexity=near),
    }  # fmt: skip
    draw_tsne(points, classes[:400], folder / "tsne.png")
    return "\n".join([*lines, "", said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("show-output"))
    parser.add_argument("--n", type=int, default=500, help="images to draw")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("adaptor_hf").setLevel(logging.INFO)
    started, cpu = time.perf_counter(), time.process_time()
    folder = options.output_dir.resolve()
    data, model, results = folder / f"phantom-{options.n}", folder / "model", folder / "results"
    table = data / "metadata.csv"
    if not table.is_file():
        write_phantoms(data, options.n)
    pretrain(table, model)
    states = downstream(table, model, results)
    numbers = analyse(table, model, folder / "figures")
    write_report(results / "runs", folder / "report")
    rows = [f"| {json.loads(job)['task']} | {state} |" for job, state in states.items()]
    page = [
        "# All tasks on phantoms", "", PHANTOM, "",
        f"{options.n} images, towers `lite0` and `minilm`. Tables: [report/phantom.md](report/phantom.md).",
        "Every table has the controls beside the Adaptor: the raw tower where there is a score for it, an untrained",
        "Adaptor, two linear projections and an Adaptor of shuffled pairs (trained on the same cache), and the trivial",
        "predictor. Intervals are over patients.",
        "", "| task | state |", "|---|---|", *rows, "",
        "## Text understanding", "", swaps(results), "",
        "## Embeddings before and after the Adaptor", "", numbers, "", "![t-SNE](figures/tsne.png)",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print(f"\n{time.perf_counter() - started:.0f} s, {time.process_time() - cpu:.0f} CPU-s. {folder / 'README.md'}")
    if any(state != "done" for state in states.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
