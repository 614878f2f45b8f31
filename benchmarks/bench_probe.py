"""
Linear probing from cached features: 3 fractions x 5 seeds on 20,000 images, for the Adaptor and the raw tower.

python benchmarks/bench_probe.py

Features stand for those that the cache gives (synthetic, one label, two images a patient). Each run chooses among three
learning rates on validation, is scored once on its test part with intervals over patients, and is written to disk.
"""

import argparse
import resource
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.tasks.controls import load_systems
from adaptor_hf.tasks.data import LabelledData
from adaptor_hf.tasks.embedded import EmbeddedData
from adaptor_hf.tasks.frozen_heads import run_classification
from adaptor_hf.tasks.protocols import get_protocol


def synthetic_data(rows: int, width: int) -> EmbeddedData:
    """70 % to train on, 10 % validation, 20 % test, by patient; a fifth positive, ten features know it a little."""
    generator = np.random.default_rng(0)
    patients = np.arange(rows) // 2
    labels = (generator.random(rows) < 0.2).astype(np.float32)[:, None]
    features = generator.standard_normal((rows, width), dtype=np.float32)
    features[:, :10] += 0.4 * labels
    share = generator.permutation(patients.max() + 1)[patients] / (patients.max() + 1)
    chosen = {"train": share < 0.7, "validation": (share >= 0.7) & (share < 0.8), "test": share >= 0.8}
    parts = {
        part: Dataset.from_dict(
            {"image_id": np.flatnonzero(kept).astype(str), "patient_id": patients[kept].astype(str)}
        )
        for part, kept in chosen.items()
    }
    known = {part: labels[kept] for part, kept in chosen.items()}
    data = LabelledData("phantom", ["finding"], False, parts, known, "0123456789ab")
    spec = {"name_or_path": "synthetic", "hidden_size": width}
    return EmbeddedData(data, {part: torch.from_numpy(features[kept]) for part, kept in chosen.items()}, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000, help="images, in three parts")
    parser.add_argument("--width", type=int, default=768, help="of the tower's features")
    parser.add_argument("--protocol", default="rigorous")
    parser.add_argument("--num_resamples", type=int, default=1000, help="of the bootstrap over patients")
    options = parser.parse_args()
    embedded = synthetic_data(options.rows, options.width)
    torch.manual_seed(0)
    systems = load_systems(AdaptorModel(AdaptorConfig(vision_hidden_size=options.width)).eval(), ["tower"])
    print(
        f"{options.rows:,} images, {options.width} wide, {torch.get_num_threads()} threads, protocol {options.protocol}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for system in systems:
            wall, cpu = time.perf_counter(), time.process_time()
            found = run_classification(
                embedded, [system], get_protocol(options.protocol), folder, fractions=(0.01, 0.1, 1.0), seeds=range(5),
                num_resamples=options.num_resamples,
            )  # fmt: skip
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            values = [line["value"] for line in found.lines if line["metric"] == "auroc"]
            print(f"{system.key}: {len(values)} runs in {wall:.1f} s ({cpu:.1f} CPU-s), {cpu / len(values):.2f} a run; "
                  f"AUROC {min(values):.3f} to {max(values):.3f}")  # fmt: skip
        started = time.perf_counter()
        run_classification(embedded, systems, get_protocol(options.protocol), folder, fractions=(0.01, 0.1, 1.0),
                           seeds=range(5))  # fmt: skip
        print(f"all of them again, finished before: {time.perf_counter() - started:.1f} s")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
