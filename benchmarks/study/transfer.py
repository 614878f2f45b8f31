"""
Why: what a probe reads, scored by five folds on training patients. A residual to the tower's own feature among it.

    ADAPTOR_REALBENCH=FOLDER python benchmarks/study/transfer.py --output_dir study-output

Needs the models that confirm.py trains; each fold uses those of another seed. The test part is never read. The images
of `view` were in the pre-training pairs (without this label), also those of the held-out fold.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from confirm import PROTOCOL, system_of
from explore import NUM_RESAMPLES
from sample import readout_parts
from sklearn.model_selection import KFold

from adaptor_hf.evaluation.controls import CONTROLS
from adaptor_hf.evaluation.statistics import interval_of, resampled_weights
from adaptor_hf.evaluation.weighted import weighted_auroc
from adaptor_hf.tasks.data import labelled_data
from adaptor_hf.tasks.features import tower_features
from adaptor_hf.tasks.probe import fit_probe
from adaptor_hf.tasks.protocols import PROTOCOLS

SYSTEMS = {
    CONTROLS["tower"].name: ("tower",),
    "raw tower, unit length": ("unit",),
    CONTROLS["adaptor"].name: ("adaptor",),
    CONTROLS["projections"].name: ("projections",),
    CONTROLS["untrained"].name: ("untrained",),
    "tower and Adaptor": ("tower", "adaptor"),
    "tower and projections": ("tower", "projections"),
    "tower and untrained Adaptor": ("tower", "untrained"),
}
"""Name in the table, and the controls whose features stand side by side, each standardised by the training rows."""


def inner_split(patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask of the rows that choose step and rate."""
    codes = np.unique(patients)
    chosen = np.random.default_rng(seed).permutation(codes)[: max(1, round(share * len(codes)))]
    return np.isin(patients, chosen)


def held_out(embeds: torch.Tensor, labels: np.ndarray, patients: np.ndarray, protocol: dict, output: Path) -> dict:
    """System to `(fold, rows, scores)` of every fold."""
    codes, found = np.unique(patients), {name: [] for name in SYSTEMS}
    folds = KFold(protocol["exploration"]["folds"], shuffle=True, random_state=0).split(codes)
    for seed, (_, held) in enumerate(folds):
        outside = np.isin(patients, codes[held])
        inside = np.flatnonzero(~outside)
        choosing = inner_split(patients[inside], protocol["data"]["validation_fraction"], seed)
        train, validation = inside[~choosing], inside[choosing]
        parts = {name for names in SYSTEMS.values() for name in names} - {"unit"}
        features = {name: system_of(name, seed, output).features(embeds) for name in parts}
        # What every module but the tower has: vectors of one length.
        features["unit"] = torch.nn.functional.normalize(embeds, dim=-1)
        for system, names in SYSTEMS.items():
            both = torch.cat([features[name] for name in names], dim=1)
            probe = fit_probe(both[train], labels[train], both[validation], labels[validation], PROTOCOLS["rigorous"],
                              num_logits=1, exclusive=False, seed=seed)  # fmt: skip
            found[system].append((np.flatnonzero(outside), probe.predict(both[outside])[:, 0]))
    return found


def draws_of(folds: list, labels: np.ndarray, patients: np.ndarray) -> tuple[float, np.ndarray]:
    """AUROC averaged over folds, and its draws over patients."""
    points, draws = [], []
    for seed, (rows, scores) in enumerate(folds):
        truth = labels[rows, 0] == 1
        points.append(weighted_auroc(scores, truth, np.ones((1, len(rows))))[0])
        resampled = resampled_weights(patients[rows], NUM_RESAMPLES, seed)
        draws.append(np.concatenate([weighted_auroc(scores, truth, weights) for weights in resampled]))
    return float(np.mean(points)), np.mean(draws, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    output = parser.parse_args().output_dir
    protocol = yaml.safe_load(PROTOCOL.read_text())
    results = {}
    for name, readout in protocol["classification"]["readouts"].items():
        data = labelled_data(name, *readout_parts(name, readout, protocol, output / "tables"))
        arrays, labels, patients = [], [], []
        for part in ("train", "validation"):
            embeds, kept, _ = tower_features(data.parts[part], protocol["towers"]["vision"], output / "embeddings")
            arrays.append(embeds)
            labels.append(data.labels[part][kept])
            patients += data.rows(part)["patient_id"].iloc[kept].tolist()
        labels, codes = np.concatenate(labels), np.unique(patients, return_inverse=True)[1]
        found = held_out(torch.cat(arrays), labels, codes, protocol, output)
        reference = draws_of(found["raw tower"], labels, codes)
        for system, folds in found.items():
            value, draws = draws_of(folds, labels, codes)
            results.setdefault(name, {})[system] = {
                "auroc": value,
                "interval": interval_of(draws),
                "difference": value - reference[0],
                "difference_interval": interval_of(draws - reference[1]),
                "n": len(labels),
            }
        print(name, json.dumps(results[name]), flush=True)
    (output / "transfer.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = ["| system, minus raw tower | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for system in SYSTEMS:
        cells = []
        for rows in results.values():
            row = rows[system]
            cells.append("{:.3f} ({:+.3f} [{:+.3f}, {:+.3f}])".format(
                row["auroc"], row["difference"], *row["difference_interval"]))  # fmt: skip
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    (output / "transfer.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
