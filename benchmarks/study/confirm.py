"""
The study that protocol.yaml fixes: pre-train on the real pairs, score every readout once, compare, correct.

    ADAPTOR_REALBENCH=FOLDER python benchmarks/study/confirm.py --output_dir study-output

Each model and run is kept in the output folder; the same command goes on where it was stopped. `--only` takes a part:
pretraining, classification, retrieval, segmentation, report. `--seeds` takes some of the seeds, so that several
processes can share the work; the report reads what is there and says if a run is missing.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from sample import pairs_table, readout_parts
from transformers import set_seed

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.embeddings import EmbeddingCache, build_cache
from adaptor_hf.evaluation import (
    Predictions,
    chance_recall,
    compare_predictions,
    holm,
    load_predictions,
    segmentation_counts,
    segmentation_predictions,
)
from adaptor_hf.evaluation.compare import mean_interval
from adaptor_hf.evaluation.controls import CONTROLS
from adaptor_hf.evaluation.results import RESULTS_FILE, read_results
from adaptor_hf.tasks.data import LabelledData, labelled_data, plain_rows
from adaptor_hf.tasks.embedded import EmbeddedData, embed_labelled
from adaptor_hf.tasks.frozen_heads import run_classification
from adaptor_hf.tasks.protocols import PROTOCOLS, SEGMENTATION_PROTOCOLS
from adaptor_hf.tasks.retrieval import run_retrieval
from adaptor_hf.tasks.segmentation import MaskCollator, masked_rows, run_segmentation
from adaptor_hf.training import AdaptorTrainingArguments
from adaptor_hf.training.controls import ShuffledPairs, train_control
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.systems import System

PROTOCOL = Path(__file__).with_name("protocol.yaml")
PIXELS = 28
NAMES = {key: control.name for key, control in CONTROLS.items()} | {
    "pixels": "pixels, 28 x 28",
    "mean_mask": "mean training mask",
    "all_empty": "all-empty mask",
    "chance": "random order",
}


class Pixels(System):
    """The control that has no network: its features are the image itself."""

    def fields(self) -> dict:
        return {"system": NAMES["pixels"], "module": "pixels", "checkpoint": None}


def seeds_of(protocol: dict, system: str) -> list[int]:
    """Seeds of a system on classification and retrieval: the shuffled control has fewer (amendment 1)."""
    settings = protocol["pretraining"]
    return settings["shuffled_seeds"] if system == "shuffled" else settings["seeds"]


def expected_seeds(protocol: dict, readout: str, system: str) -> list[int]:
    return protocol["segmentation"]["seeds"] if readout == "lungs" else seeds_of(protocol, system)


def pair_cache(protocol: dict, output: Path) -> EmbeddingCache:
    towers = protocol["towers"]
    return build_cache(pairs_table(protocol), towers["vision"], towers["text"], output / "embeddings")


def study_pretraining(protocol: dict, output: Path, seeds: list[int]) -> None:
    """Every system and seed, saved; what is there already is left alone."""
    settings, cache = protocol["pretraining"], pair_cache(protocol, output)
    views = contrastive_splits(cache)
    print({name: len(view) for name, view in views.items()}, "pairs", flush=True)
    config = AdaptorConfig(
        vision_hidden_size=cache.vision_spec["hidden_size"], text_hidden_size=cache.text_spec["hidden_size"],
        vision_tower=cache.vision_spec, text_tower=cache.text_spec,
    )  # fmt: skip
    for seed in seeds:
        arguments = AdaptorTrainingArguments(
            str(output / "unused"), num_train_epochs=settings["num_train_epochs"], seed=seed, use_cpu=True,
            global_batch_size=settings["global_batch_size"], save_strategy="no", load_best_model_at_end=False,
        )  # fmt: skip
        for system in settings["variants"]:
            folder = output / "models" / f"{system}-{seed}"
            if seed not in seeds_of(protocol, system) or (folder / "chosen.json").is_file():
                continue
            shape = AdaptorConfig(**{**config.to_dict(), "num_hidden_layers": 0}) if system == "projections" else config
            chosen = {}
            if system == "untrained":
                set_seed(seed)
                model = AdaptorModel(shape)
            else:
                train = ShuffledPairs(views["train"], seed) if system == "shuffled" else views["train"]
                model, rate, recall = train_control(
                    shape, train, views["validation"], arguments, settings["learning_rates"]
                )
                chosen = {"learning_rate": rate, "validation_mean_recall": recall}
            model.save_pretrained(folder)
            (folder / "chosen.json").write_text(json.dumps(chosen) + "\n")
            print(system, seed, chosen, flush=True)


def system_of(name: str, seed: int, output: Path) -> System:
    if name == "tower":
        return System("tower")
    if name == "pixels":
        return Pixels("pixels")
    folder = output / "models" / f"{name}-{seed}"
    return System(name, AdaptorModel.from_pretrained(folder, load_towers=False).eval())


def pixel_features(data: LabelledData) -> dict[str, torch.Tensor]:
    """`(n, 784)` float32 of each part: the whole image in grey, resized."""
    found = {}
    for part, rows in data.parts.items():
        images = (row["image"].convert("F").resize((PIXELS, PIXELS)) for row in rows.select_columns(["image"]))
        found[part] = torch.stack([torch.from_numpy(np.asarray(image).reshape(-1)) for image in images]).float()
    return found


def study_classification(protocol: dict, output: Path, seeds: list[int]) -> None:
    settings = protocol["classification"]
    for name, readout in settings["readouts"].items():
        parts, split_hash = readout_parts(name, readout, protocol, output / "tables")
        data = labelled_data(name, parts, split_hash)
        embedded = embed_labelled(data, protocol["towers"]["vision"], output / "embeddings")
        raw = EmbeddedData(embedded.data, pixel_features(embedded.data), embedded.vision_spec)
        for seed in seeds:
            for system in (name for name in settings["systems"] if seed in seeds_of(protocol, name)):
                found = run_classification(
                    raw if system == "pixels" else embedded, [system_of(system, seed, output)], PROTOCOLS["rigorous"],
                    output, seeds=[seed], text_tower=protocol["towers"]["text"],
                )  # fmt: skip
                assert not found.failed, found.failed
        print(name, {part: len(rows) for part, rows in data.parts.items()}, flush=True)


def study_retrieval(protocol: dict, output: Path, seeds: list[int]) -> None:
    from adaptor_hf.data.splits import split_hash

    test = contrastive_splits(pair_cache(protocol, output))["test"]
    hashed = split_hash(pairs_table(protocol))
    for seed in seeds:
        systems = [name for name in protocol["retrieval"]["systems"] if seed in seeds_of(protocol, name)]
        loaded = [system_of(name, seed, output) for name in systems]
        run_retrieval(test, loaded, output, dataset=protocol["retrieval"]["dataset"], split_hash=hashed)
    print("retrieval", len(test), "pairs,", test.num_texts, "texts", flush=True)


def study_segmentation(protocol: dict, output: Path, seeds: list[int]) -> None:
    from adaptor_hf.towers import load_vision_tower

    settings = protocol["segmentation"]
    parts, split_hash = readout_parts("lungs", {"dataset": settings["dataset"]}, protocol, output / "tables")
    tower = load_vision_tower(protocol["towers"]["vision"])
    mean_mask(parts, tower, settings["image_size"], output)
    for seed in (seed for seed in settings["seeds"] if seed in seeds):
        for system in settings["systems"]:
            run_segmentation(
                parts, [system_of(system, seed, output)], tower, SEGMENTATION_PROTOCOLS["rigorous"], output,
                dataset="lungs", split_hash=split_hash, size=settings["image_size"], seeds=[seed],
                epochs=settings["epochs"], text_tower=protocol["towers"]["text"],
            )  # fmt: skip
            print("segmentation", system, seed, flush=True)


def mean_mask(parts: dict, tower, size: int, output: Path) -> None:
    """The same answer for every image: the training masks' mean, cut at a half. Written as predictions of its own."""
    from adaptor_hf.evaluation.predictions import save_predictions

    collate = MaskCollator(tower.processor, size, augment=False)

    def masks(part: str) -> np.ndarray:
        rows = masked_rows(parts[part], part).select_columns(["image", "mask"])
        return np.concatenate([collate([row])["labels"].numpy() > 0 for row in rows]).reshape(-1, size, size)

    target = masks("test")
    guess = masks("train").mean(0) > 0.5
    rows = plain_rows(parts["test"])
    counts = segmentation_counts([guess] * len(target), target)
    save_predictions(segmentation_predictions(rows["image_id"], rows["patient_id"], counts), output / "mean_mask")


def read_runs(output: Path) -> dict[tuple[str, str], list[Predictions]]:
    """(readout, system) to the predictions of its seeds."""
    found: dict[tuple[str, str], list[Predictions]] = {}
    for path in sorted((output / "runs").glob(f"*/{RESULTS_FILE}")):
        line = read_results(path).lines[0]
        readout = "retrieval" if line["task"] == "retrieval" else line["dataset"]
        found.setdefault((readout, line["module"]), []).append(load_predictions(path.parent))
    return found


def plan(protocol: dict) -> list[tuple[str, str, list[str]]]:
    """(readout, metric, systems) of the whole study."""
    classification = protocol["classification"]
    found = [(name, classification["metric"], classification["systems"]) for name in classification["readouts"]]
    for readout, part in (("lungs", "segmentation"), ("retrieval", "retrieval")):
        found.append((readout, protocol[part]["metric"], protocol[part]["systems"]))
    return found


def report(protocol: dict, output: Path) -> None:
    """Tables of all readouts, and the thirteen comparisons with Holm's correction, as Markdown and JSON."""
    runs, settings = read_runs(output), protocol["comparisons"]
    resampling = {"num_resamples": settings["num_resamples"], "level": settings["level"]}
    values, tests = [], []
    for readout, metric, systems in plan(protocol):
        for system in systems:
            found, expected = runs.get((readout, system), []), expected_seeds(protocol, readout, system)
            if len(found) != len(expected):
                raise ValueError(f"{readout}, {system}: {len(found)} finished runs, expected {len(expected)}. Run the "
                                 "part again, without --only and --seeds.")  # fmt: skip
            value = mean_interval(found, metric, **resampling)
            values.append({"readout": readout, "system": system, "metric": metric, "value": value[0],
                           "interval": value[1:], "seeds": len(found), "n_test": len(found[0])})  # fmt: skip
            if system in settings["against"]:
                difference = compare_predictions(runs[readout, "adaptor"], found, metric, **resampling)
                tests.append({"readout": readout, "against": system, **vars(difference)})
    values += trivial_values(protocol, output, resampling)
    for test, adjusted in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = float(adjusted)
    chosen = {path.parent.name: json.loads(path.read_text()) for path in sorted(output.glob("models/*/chosen.json"))}
    (output / "study.json").write_text(
        json.dumps({"values": values, "tests": tests, "chosen": chosen}, indent=1) + "\n"
    )
    page = f"{values_page(values)}\n\n{tests_page(tests)}\n"
    (output / "study.md").write_text(page)
    print(page)


def trivial_values(protocol: dict, output: Path, resampling: dict) -> list[dict]:
    """What needs no training: the mean mask and the all-empty mask of lungs, a random order for retrieval."""
    mean = load_predictions(output / "mean_mask")
    test = contrastive_splits(pair_cache(protocol, output))["test"]
    chance = chance_recall(torch.from_numpy(test.text_rows))["mean_recall"]
    value, *interval = mean_interval([mean], "dice_positive", **resampling)
    # An empty mask has Dice 0 with every lung, and a random order one expected recall: neither has an interval.
    rows = [("lungs", "mean_mask", value, interval, mean), ("lungs", "all_empty", 0.0, None, mean),
            ("retrieval", "chance", chance, None, test)]  # fmt: skip
    return [{"readout": readout, "system": system, "value": value, "interval": interval, "seeds": 1,
             "n_test": len(rows)} for readout, system, value, interval, rows in rows]  # fmt: skip


def values_page(values: list[dict]) -> str:
    systems = list(dict.fromkeys(row["system"] for row in values))
    lines = ["| readout | n | " + " | ".join(NAMES[name] for name in systems) + " |", "|---" * (len(systems) + 2) + "|"]
    for readout in dict.fromkeys(row["readout"] for row in values):
        cells = {row["system"]: row for row in values if row["readout"] == readout}
        texts = [cell_text(cells[name]) if name in cells else "" for name in systems]
        lines.append(f"| {readout} | {cells['adaptor']['n_test']} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def cell_text(row: dict) -> str:
    interval = " [{:.3f}, {:.3f}]".format(*row["interval"]) if row["interval"] else ""
    return f"{row['value']:.3f}{interval}"


def tests_page(tests: list[dict]) -> str:
    lines = ["| readout | Adaptor minus | difference | p | p, Holm |", "|---|---|---|---|---|"]
    for test in tests:
        difference = f"{test['value']:+.3f} [{test['ci_lo']:+.3f}, {test['ci_hi']:+.3f}]"
        lines.append(f"| {test['readout']} | {NAMES[test['against']]} | {difference} | {test['p_value']:.4f} | "
                     f"{test['p_holm']:.4f} |")  # fmt: skip
    return "\n".join(lines)


STEPS = {
    step.__name__.removeprefix("study_"): step
    for step in (study_pretraining, study_classification, study_retrieval, study_segmentation)
}
PARTS = (*STEPS, "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="*", help="By default all of the protocol.")
    options = parser.parse_args()
    protocol = yaml.safe_load(PROTOCOL.read_text())
    planned = protocol["pretraining"]["seeds"]
    seeds = [seed for seed in planned if options.seeds is None or seed in options.seeds]
    for name, step in STEPS.items():
        if name in options.only:
            step(protocol, options.output_dir, seeds)
    if "report" in options.only:
        report(protocol, options.output_dir)


if __name__ == "__main__":
    main()
