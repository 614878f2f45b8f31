"""
How many near copies `adaptor_hf.data.near_copies` finds, and how many pairs it names that are none.

    ADAPTOR_REALBENCH=FOLDER python benchmarks/bench_near_copies.py

Recall: copies of a sample of images, encoded anew (JPEG), resized or shifted. Pairs among the originals are printed by
row, for whoever has the images to look at: public sets hold true copies themselves.
"""

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from adaptor_hf.data.images import read_image
from adaptor_hf.data.near_copies import ImageHashes, near_copies, perceptual_hashes


def encoded(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return read_image(stream.getvalue())


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = (max(16, round(image.width * factor)), max(16, round(image.height * factor)))
    return encoded(image.resize(size, Image.Resampling.BICUBIC), 85)


def shifted(image: Image.Image, share: float, signs: tuple[int, int], mode: str) -> Image.Image:
    """Moved along both axes; the border repeats the edge, or is black."""
    values = np.asarray(image)
    moves = [round(sign * share * side) for sign, side in zip(signs, values.shape, strict=True)]
    padded = np.pad(values, [(max(move, 0), max(-move, 0)) for move in moves], mode=mode)
    top, left = (max(-move, 0) for move in moves)
    return Image.fromarray(padded[top : top + values.shape[0], left : left + values.shape[1]])


def variants(generator: np.random.Generator) -> dict:
    def signs():
        return tuple(int(sign) for sign in generator.choice([-1, 1], 2))

    kinds = {f"JPEG, quality {quality}": (lambda image, q=quality: encoded(image, q)) for quality in (30, 60, 90)}
    kinds |= {f"resized x {factor}": (lambda image, f=factor: resized(image, f)) for factor in (0.5, 0.75, 1.5, 2)}
    for share in (0.01, 0.02, 0.03, 0.04, 0.05):
        for mode, name in (("edge", "edge repeated"), ("constant", "black border")):
            kinds[f"shifted {share:.0%} of both sides, {name}"] = lambda image, s=share, m=mode: shifted(
                image, s, signs(), m
            )
    return kinds


def pair_of(originals: ImageHashes, row: int, copies: ImageHashes, place: int) -> ImageHashes:
    names = ("centre", "shifted", "small")
    return ImageHashes(*(np.stack([getattr(originals, name)[row], getattr(copies, name)[place]]) for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="images that are copied in every way")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(os.environ["ADAPTOR_REALBENCH"])
    table = pd.read_csv(folder / "metadata.csv")
    generator = np.random.default_rng(arguments.seed)
    start = time.process_time()
    originals = perceptual_hashes(read_image(folder / name) for name in table["image"])
    printed = time.process_time()
    pairs = near_copies(originals)
    print(
        f"{len(originals)} images: prints {printed - start:.0f} s, search {time.process_time() - printed:.0f} s of CPU"
    )
    print(f"pairs among the originals: {len(pairs)}, {1000 * len(pairs) / len(originals):.2f} per 1,000 images")
    for a, b, value in pairs:
        same = "one patient" if table["patient_id"][a] == table["patient_id"][b] else "two patients"
        print(f"  rows {a} and {b} ({table['dataset'][a]}, {same}): {value:.4f}")
    sample = np.sort(generator.choice(len(table), min(arguments.sample, len(table)), replace=False))
    for kind, change in variants(generator).items():
        copies = perceptual_hashes(change(read_image(folder / table["image"][row])) for row in sample)
        # Whether a pair is found does not depend on the other images.
        hits = sum(bool(near_copies(pair_of(originals, row, copies, place))) for place, row in enumerate(sample))
        print(f"{kind}: {hits} of {len(sample)} found")


if __name__ == "__main__":
    main()
