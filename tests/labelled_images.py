"""Small images whose brightness says what is on them, with a table of labels, masks and reports."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "train", "train", "validation", "test")


def write_labelled_images(folder: Path, count: int = 60, size: int = 32, seed: int = 0) -> Path:
    """
    Images of two a patient with `metadata.csv`: `effusion` is a bright lower half, `edema` a bright left half; `kind`
    is one of three classes, `mask` the file of the bright lower half (empty without), `text` a short report.
    """
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for row in range(count):
        effusion, edema = generator.integers(0, 2, 2)
        pixels = generator.normal(90, 20, (size, size))
        mask = np.zeros((size, size), np.uint8)
        pixels[size // 2 :] += 80 * effusion
        pixels[:, : size // 2] += 60 * edema
        mask[size // 2 :] = 255 * effusion
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"images/{row}.png")
        Image.fromarray(mask).save(folder / f"images/{row}-mask.png")
        patient = row // 2
        text = ("there is a pleural effusion" if effusion else "no pleural effusion") + " . "
        text += "edema seen ." if edema else "lungs clear ."
        rows.append(
            {
                "image": f"images/{row}.png",
                "patient_id": f"p{patient}",
                "split": SPLITS[patient % 5],
                "sex": "FM"[patient % 2],
                "age": 20 + patient,
                "effusion": effusion,
                "edema": edema,
                "kind": ("normal", "one", "both")[effusion + edema],
                "mask": f"images/{row}-mask.png",
                "text": f"{text} {patient % 10}",
            }
        )
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "metadata.csv"
