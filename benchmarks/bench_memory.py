"""
Anonymous memory (RssAnon) of building a cache and of training on it, memory-mapped, with few rows and with many.

    python benchmarks/bench_memory.py --rows 20000 500000

Every measurement is a process of its own, and shows the most that a sample every 20 ms saw over what there was before
the call. Every row has a text of its own; `--images` says how many image files there are, all with other names.
The towers are tiny, so that the rows and not the forward passes are what is measured.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from small_towers import TINY_BERT, TINY_VIT, WORDS, save_bert, save_vit

LIMIT_MB = 50


def anonymous_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def watched(function: Callable[[], object]) -> dict[str, float]:
    """CPU-seconds of a call, and how far RssAnon rose during it (peak) and after it (end), in MB."""
    before = highest = anonymous_megabytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, anonymous_megabytes())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.process_time()
    kept = function()
    seconds = time.process_time() - start
    end = anonymous_megabytes()
    done.set()
    thread.join()
    del kept
    return {"peak": max(highest, end) - before, "end": end - before, "seconds": seconds}


def write_table(folder: Path, rows: int, images: int) -> None:
    """A saved data set: a text for each row, image files that are links to a hundred pictures."""
    import datasets
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(100):
        pixels = generator.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture-{index}.png")
    files = [str(folder / "images" / f"{index}.png") for index in range(images)]
    for index, file in enumerate(files):
        # A file system has a limit of names for one file.
        if index % 1000 == 0:
            shutil.copy(folder / f"picture-{index // 1000 % 100}.png", source := folder / f"source-{index}.png")
        os.link(source, file)

    def lines():
        for row in range(rows):
            words = " ".join(WORDS[index] for index in generator.integers(0, len(WORDS), 12))
            yield {
                "image": files[row * images // rows],
                "text": f"{words} {row}",
                "image_id": f"image-{row:08d}",
                "patient_id": f"patient-{row // 2}",
                "study_id": f"study-{row}",
                "split": "validation" if row < 500 else "train",
            }

    datasets.Dataset.from_generator(lines, cache_dir=str(folder / "generated")).save_to_disk(str(folder / "table"))


def build(folder: Path) -> None:
    """Cold build and the same call again."""
    import datasets
    import torch

    from adaptor_hf.embeddings import build_cache

    torch.set_num_threads(1)
    table = datasets.load_from_disk(str(folder / "table"))
    small = table.select(range(64))

    def run(rows=table, cache_dir: str = "cache", keep: bool = True):
        options = {"num_workers": 0, "batch_size": 64}
        cache = build_cache(rows, folder / "vit", folder / "bert", folder / cache_dir, **options)
        return cache if keep else None

    run(small, "warm-up", keep=False)
    print(json.dumps({"build": watched(run)}))


def again(folder: Path) -> None:
    """The call that finds everything there."""
    import datasets
    import torch

    from adaptor_hf.embeddings import build_cache

    torch.set_num_threads(1)
    table = datasets.load_from_disk(str(folder / "table"))
    build_cache(table.select(range(64)), folder / "vit", folder / "bert", folder / "warm-up", num_workers=0)
    call = lambda: build_cache(table, folder / "vit", folder / "bert", folder / "cache", num_workers=0)  # noqa: E731
    print(json.dumps({"same call again": watched(call)}))


def train(folder: Path) -> None:
    """Open the cache and train some steps of a small Adaptor on memory-mapped batches."""
    import torch

    from adaptor_hf import AdaptorConfig, AdaptorModel
    from adaptor_hf.embeddings import open_cache
    from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

    torch.set_num_threads(1)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}

    def run(cache_dir: str = "cache", steps: int = 60):
        cache = open_cache(folder / cache_dir)
        validation = cache.split("validation").paired()
        dataset = cache.split("train").paired() if "train" in cache.splits else validation
        arguments = AdaptorTrainingArguments(
            str(folder / "run"), per_device_train_batch_size=min(1024, len(dataset)), max_steps=steps, report_to=[],
            use_cpu=True, eval_strategy="steps", eval_steps=steps // 2, save_strategy="no", disable_tqdm=True,
            load_best_model_at_end=False, logging_strategy="steps", logging_steps=steps // 2,
        )  # fmt: skip
        model = AdaptorModel(AdaptorConfig(vision_hidden_size=32, text_hidden_size=32, **shape))
        trainer = AdaptorTrainer(model, arguments, train_dataset=dataset, eval_dataset=validation)
        trainer.train()
        return trainer

    run("warm-up", steps=2)
    print(json.dumps({"training, 60 steps of 1024": watched(run)}))


def measured(command: str, folder: Path) -> dict:
    call = [sys.executable, __file__, "--step", command, "--folder", str(folder)]
    result = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[20_000, 500_000], metavar=("FEW", "MANY"))
    parser.add_argument("--images", type=int, help="Image files; default: as many as rows.")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options.folder)
        return
    found: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        for rows in options.rows:
            folder = Path(name) / str(rows)
            folder.mkdir()
            write_table(folder, rows, min(rows, options.images or rows))
            save_bert(folder / "bert", **TINY_BERT)
            save_vit(folder / "vit", **TINY_VIT)
            found.append({})
            for step in STEPS:
                found[-1] |= measured(step, folder)
            shutil.rmtree(folder)
    from measure import print_table

    few, many = options.rows
    table = []
    for call, small in found[0].items():
        large = found[1][call]
        growth = large["peak"] - small["peak"]
        verdict = "under" if growth < LIMIT_MB else "OVER"
        seconds, end = f"{large['seconds']:.1f}", f"{large['end'] - small['end']:.0f}"
        rise = f"{growth:.0f} ({verdict} {LIMIT_MB})"
        table.append([call, f"{small['peak']:.0f}", f"{large['peak']:.0f}", rise, end, seconds])
    print(f"\n### RssAnon over that before the call, MB: {few} against {many} rows, each with a text of its own\n")
    columns = ["call", f"peak, {few} rows", f"peak, {many} rows", "growth of the peak", "growth at the end"]
    print_table([*columns, f"CPU-seconds, {many} rows"], table)


STEPS = {"build": build, "again": again, "train": train}

if __name__ == "__main__":
    main()
