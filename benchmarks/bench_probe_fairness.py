"""
Does a tuner of its own get more out of the same features than the probe of the protocol `rigorous`? On ten splits each.

    python benchmarks/bench_probe_fairness.py
    ADAPTOR_REALBENCH=FOLDER python benchmarks/bench_probe_fairness.py

The tuner is scikit-learn's: standardisation and LogisticRegression, quarter decades of C from 1e-7 to 1e5, chosen by
AUROC on the same validation rows, fitted to the same training rows. Features are those of the tower `lite0`; labels of
phantoms (500 test rows) and, with the real sample, its tuberculosis, Effusion and Edema (a quarter of the patients to
test on). The probe by gradient that the protocol was before stands beside them. Gains in AUROC on the test rows.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adaptor_hf.tasks.probe import fit_probe
from adaptor_hf.tasks.protocols import PROTOCOLS, ProbeProtocol

PHANTOM_LABELS = ("consolidation", "effusion", "pneumothorax", "cardiomegaly")
QUARTERS = tuple(10.0 ** np.arange(-7, 5.25, 0.25))
RIGOROUS = PROTOCOLS["rigorous"]
BY_GRADIENT = replace(RIGOROUS, strengths=None)


def split_by_patient(patients: np.ndarray, seed: int, test_rows: int) -> dict[str, np.ndarray]:
    """Rows of three parts: test patients until `test_rows` rows, then 15 % of the others for validation."""
    order = np.random.default_rng(seed).permutation(patients.max() + 1)
    sizes = np.bincount(patients)[order]
    held = np.searchsorted(np.cumsum(sizes), test_rows) + 1
    choosing = held + round(0.15 * (len(order) - held))
    parts = {"test": order[:held], "validation": order[held:choosing], "train": order[choosing:]}
    return {part: np.flatnonzero(np.isin(patients, members)) for part, members in parts.items()}


def tuned_auroc(
    features: torch.Tensor, labels: np.ndarray, rows: dict[str, np.ndarray], strengths: Sequence[float] = QUARTERS
) -> float:
    """Test AUROC of scikit-learn's logistic regression, C chosen on validation; `labels` is `(n,)`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, best = features.numpy().astype(np.float64), (-1.0, 0.0)
    train = rows["train"]
    for strength in strengths:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-6, max_iter=5000))
        model.fit(values[train], labels[train])
        scores = model.decision_function(values)
        chosen = roc_auc_score(labels[rows["validation"]], scores[rows["validation"]])
        if chosen > best[0]:
            best = (chosen, roc_auc_score(labels[rows["test"]], scores[rows["test"]]))
    return best[1]


def probe_auroc(
    features: torch.Tensor, labels: np.ndarray, rows: dict[str, np.ndarray], protocol: ProbeProtocol = RIGOROUS
) -> float:
    """Test AUROC of the package's probe; `labels` is `(n,)`."""
    from sklearn.metrics import roc_auc_score

    columns = labels[:, None].astype(np.float32)
    train, validation = rows["train"], rows["validation"]
    probe = fit_probe(features[train], columns[train], features[validation], columns[validation], protocol,
                      num_logits=1, exclusive=False, seed=0)  # fmt: skip
    return roc_auc_score(labels[rows["test"]], probe.predict(features[rows["test"]])[:, 0])


def compare(name: str, features: torch.Tensor, labels: np.ndarray, patients: np.ndarray, test_rows: int) -> None:
    """Ten splits of one label, printed."""
    found, seconds = [], np.zeros(3)
    for seed in range(10):
        rows = split_by_patient(patients, seed, test_rows)
        values = []
        for number, score in enumerate((probe_auroc, tuned_auroc, lambda *data: probe_auroc(*data, BY_GRADIENT))):
            started = time.process_time()
            values.append(score(features, labels, rows))
            seconds[number] += time.process_time() - started
        found.append(values)
    ours, tuned, earlier = np.array(found).T
    print(f"{name}: test rows {len(rows['test'])}; probe {np.median(ours):.3f}, tuner {np.median(tuned):.3f}; gain of "
          f"the tuner: median {np.median(tuned - ours):+.4f}, {(tuned - ours).min():+.4f} to "
          f"{(tuned - ours).max():+.4f}; by gradient {np.median(earlier):.3f}, the tuner's gain over it "
          f"{np.median(tuned - earlier):+.4f}; CPU-s a split: probe {seconds[0] / 10:.2f}, tuner "
          f"{seconds[1] / 10:.1f}, by gradient {seconds[2] / 10:.2f}", flush=True)  # fmt: skip


def features_of(table: Path, root: Path, folder: Path) -> torch.Tensor:
    """`(n, 1280)` of the tower, for every row of a table with `image` and `patient_id`."""
    from adaptor_hf.tasks.data import load_table
    from adaptor_hf.tasks.features import tower_features

    dataset = load_table(table, label_columns=[], image_root=root, patient_column="patient_id")
    embeds, kept, _ = tower_features(dataset, "lite0", folder / "embeddings")
    if len(kept) < len(dataset):
        raise ValueError(f"{len(dataset) - len(kept)} images cannot be read: rows and features would not fit.")
    return embeds


def main() -> None:
    import pandas as pd

    from adaptor_hf.phantom import write_phantoms

    warnings.filterwarnings("ignore", "The table has no")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=1500, help="images drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_phantoms(folder / "phantoms", options.phantoms)
        rows = pd.read_csv(folder / "phantoms/metadata.csv")
        features = features_of(folder / "phantoms/metadata.csv", folder / "phantoms", folder)
        patients = rows["patient_id"].astype("category").cat.codes.to_numpy()
        for label in PHANTOM_LABELS:
            compare(f"phantoms, {label}", features, rows[label].to_numpy(), patients, 500)
        if not os.environ.get("ADAPTOR_REALBENCH"):
            print("Set ADAPTOR_REALBENCH for the real sample.")
            return
        for name, (features, labels, patients) in realbench(Path(os.environ["ADAPTOR_REALBENCH"]), folder).items():
            compare(name, features, labels, patients, len(labels) // 4)


def realbench(root: Path, folder: Path) -> dict[str, tuple[torch.Tensor, np.ndarray, np.ndarray]]:
    """Features, labels and patient codes of three readouts, all patients of the sample."""
    import json

    import pandas as pd

    found = {}
    rows = pd.read_csv(root / "metadata.csv", dtype=str)
    for dataset, labels in (("tbmask", ["tuberculosis"]), ("nih14", ["Effusion", "Edema"])):
        part = rows[rows["dataset"] == dataset]
        table = folder / f"{dataset}.csv"
        part[["image", "patient_id"]].to_csv(table, index=False)
        features = features_of(table, root, folder)
        patients = part["patient_id"].astype("category").cat.codes.to_numpy()
        values = part["labels"].map(json.loads)
        for label in labels:
            truth = values.map(lambda row, label=label: int(row[label])).to_numpy()
            found[f"{dataset}, {label}"] = (features, truth, patients)
    return found


if __name__ == "__main__":
    main()
