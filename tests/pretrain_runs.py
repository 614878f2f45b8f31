"""Small runs of train_pretrain.py on 40 made-up pairs, for tests."""

import csv
import os
import re
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

import train_pretrain

ROOT = Path(__file__).parent.parent


ROWS = 40


FINDINGS = ("effusion", "pneumothorax", "consolidation", "cardiomegaly", "edema")


SMALL = {"aligner": '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}', "num_train_epochs": 2}


def write_table(folder: Path, rows: list[dict], name: str = "pairs.csv") -> Path:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def make_rows(folder: Path) -> list[dict]:
    """40 rows of 20 patients with 40 different images and 35 different reports, paths absolute."""
    generator = np.random.default_rng(0)
    table = []
    for index in range(ROWS):
        path = folder / f"image_{index}.png"
        Image.fromarray(generator.integers(0, 255, (40, 36)).astype(np.uint8)).save(path)
        text = f"small {FINDINGS[index % 5]} on the left, size {index % 35}"
        table.append({"path": str(path), "report": text, "subject": f"subject-{index // 2:02}", "part": ""})
    return table


def make_options(rows: list[dict], vision_tower: Path, text_tower: Path, folder: Path) -> dict:
    """Options of a small run; all runs share one folder of embeddings."""
    plain = [{name: row[name] for name in ("path", "report", "subject")} for row in rows]
    return {
        "train_file": write_table(folder, plain),
        "image_column": "path",
        "text_column": "report",
        "patient_column": "subject",
        "vision_tower": vision_tower,
        "text_tower": text_tower,
        "cache_dir": folder / "embeddings",
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "global_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        **SMALL,
    }


def words(options: dict) -> list[str]:
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [word for name, values in listed.items() for word in (f"--{name}", *map(str, values)) if values != [None]]


def main(output: Path, options: dict, *first: str, **changes) -> None:
    """Run in this process. `None` drops an option."""
    train_pretrain.main([*first, *words({**options, "output_dir": output, **changes})])


def planned_pairs(said: str) -> list[list[int]]:
    """Pairs for training, validation and test of each plan in a log."""
    found = re.findall(r"  pairs: train ([\d,]+).*?, validation ([\d,]+).*?, test ([\d,]+)", said)
    return [[int(number.replace(",", "")) for number in numbers] for numbers in found]


def launch(command: list[str], **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
    )
