"""
Anonymous memory (RssAnon) and time of a prediction: 1,000 and 10,000 images, classes and masks.

    python benchmarks/bench_predict.py --rows 1000 10000

Every measurement is a process of its own, and shows the most that a sample every 20 ms saw over what there was before
the call. The tower is tiny, so that reading, keeping and writing are measured and not the forward passes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_memory import LIMIT_MB, watched
from small_towers import TINY_BERT, TINY_VIT, save_bert, save_vit

KINDS = ("classification", "segmentation")


def write_images(folder: Path, rows: int) -> None:
    """PNG files of 256 x 256; they are links to a hundred pictures."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(rows):
        file = folder / f"images/{number:06d}.png"
        if number < 100:
            pixels = generator.integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(file)
        else:
            os.link(folder / f"images/{number % 100:06d}.png", file)


def save_models(folder: Path) -> None:
    import torch

    from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel

    torch.manual_seed(0)
    save_bert(folder / "bert", **TINY_BERT)
    save_vit(folder / "vit", **TINY_VIT)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    adaptor = AdaptorModel.from_towers(str(folder / "vit"), str(folder / "bert"), **shape)
    for kind, cls in zip(KINDS, (AdaptorForImageClassification, AdaptorForSemanticSegmentation), strict=True):
        model = cls.from_adaptor(adaptor, id2label={0: "background", 1: "effusion"})
        model.save_pretrained(folder / kind)
        adaptor.vision_model.processor.save_pretrained(folder / kind)


def measure(kind: str, folder: Path, images: Path) -> None:
    import torch

    from adaptor_hf.prediction.arguments import PredictionArguments
    from adaptor_hf.prediction.run import predict

    torch.set_num_threads(1)

    def run(place: Path, name: str) -> None:
        options = {"num_workers": 0, "batch_size": 32, "device": "cpu"}
        predict(PredictionArguments(
            model=str(folder / kind), image_folder=str(place), output_dir=str(folder / f"{name}-{kind}"), **options
        ))  # fmt: skip

    run(folder / "few/images", f"warm-up-{images.name}")
    print(json.dumps(watched(lambda: run(images / "images", images.name))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000, 10_000], metavar=("FEW", "MANY"))
    parser.add_argument("--step", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.folder, options.images)
        return
    from measure import print_table

    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        write_images(folder / "few", 40)
        for rows in options.rows:
            write_images(folder / str(rows), rows)
        for kind in KINDS:
            few, many = (_measured(kind, folder, folder / str(rows)) for rows in options.rows)
            growth = many["peak"] - few["peak"]
            verdict = "under" if growth < LIMIT_MB else "OVER"
            table.append([
                kind, f"{few['peak']:.0f}", f"{many['peak']:.0f}", f"{growth:.0f} ({verdict} {LIMIT_MB})",
                f"{many['seconds']:.0f}",
            ])  # fmt: skip
    few, many = options.rows
    print("\n### RssAnon over that before the call, MB\n")
    print_table(["kind", f"peak, {few} images", f"peak, {many} images", "growth", f"CPU-seconds, {many} images"], table)


def _measured(kind: str, folder: Path, images: Path) -> dict[str, float]:
    call = [sys.executable, __file__, "--step", kind, "--folder", str(folder), "--images", str(images)]
    result = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    print(f"{kind}, {images.name} images: {found}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
