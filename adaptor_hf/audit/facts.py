"""What a run's own files say about it, in sentences for a reporting checklist. What they do not say is not guessed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.aligners import describe_aligner
from ..evaluation.results import RETRIEVAL_FILE
from ..files import read_json
from ..hub.model_card import describe_pretraining, origin_of, revision_of
from ..privacy.nearly_data import nearly_data
from ..random_specs_adaptor import describe_random, is_random
from ..towers.words import describe_layers, describe_training


def run_facts(run: str | os.PathLike) -> dict[str, str]:
    """
    Facts by name, as the checklists ask for them; a fact that the files do not have is absent.

    Args:
        run (`str` or `PathLike`): Output folder of `train_pretrain.py` or `train_downstream.py`.

    Raises:
        FileNotFoundError: the folder has neither `run.json` nor results.
    """
    run = Path(run)
    if (run / "run.json").is_file():
        return pretraining_facts(run)
    if any(run.glob("runs/*/results.jsonl")):
        return downstream_facts(run)
    raise FileNotFoundError(
        f"{run} has neither run.json nor runs/*/results.jsonl: name a finished run's output folder."
    )


def pretraining_facts(run: Path) -> dict[str, str]:
    """Facts of a pre-training run, from `run.json`, `config.json`, `retrieval.json`, and its cache if that is there."""
    record = _read(run / "run.json")
    config, retrieval, manifest = (_read(run / name) for name in ("config.json", RETRIEVAL_FILE, "manifest.json"))
    options, arguments, inputs = (record.get(name) or {} for name in ("options", "training_arguments", "inputs"))
    objective = record.get("objective") or {}
    kind = "a contrastive" if _is_papers(objective) else "an"
    trained = any((config.get(f"{side}_tower") or {}).get("trained") is not None for side in ("vision", "text"))
    on = "with a tower that trained too" if trained else "on embeddings of frozen towers"
    facts = {
        "category": f"Deep learning: {kind} image-text model, trained {on}.",
        "ensemble": "None: one model.",
        "limits": "Retrieval alone was measured, and says little about a clinical task.",
    }
    if options.get("dataset_name"):
        facts["data"] = f"The user calls the data {options['dataset_name']!r}."
    if config:
        facts |= _model_facts(config, record)
    if record.get("versions"):
        facts |= _software_facts(record)
    if inputs.get("rows"):
        rows = ", ".join(f"{count:,} {name}" for name, count in inputs["rows"].items())
        facts["partitions"] = f"Rows: {rows}. Split hash {inputs.get('split_hash')}. Seed {arguments.get('seed')}."
        facts["numbers"] = f"Image rows: {rows}."
        if sources := inputs.get("sources"):
            listed = ", ".join(f"{name} {sum(one['rows'].values()):,}" for name, one in sources.items())
            facts["numbers"] += f" Of {len(sources)} sources, each split by its own patients: {listed}."
    if (share := options.get("train_fraction")) not in (None, 1.0):
        facts["subsets"] = f"{100 * share:g} % of the training patients, seed {arguments.get('seed')}."
    private = []
    if manifest.get("private_key"):
        private.append("Ids in the run's files are keyed hashes. That is no de-identification of images or reports.")
    if near := nearly_data([name for names in (inputs.get("stored") or {}).values() for name in names]):
        private.append(f"The embeddings include {', '.join(near)}, from which images or reports can be recovered.")
    if private:
        facts["private"] = " ".join(private)
    if arguments:
        facts |= _training_facts(arguments, config, objective)
    if retrieval:
        facts |= _retrieval_facts(retrieval)
    return facts | _cache_facts(run, inputs)


def _model_facts(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    towers = {kind: config.get(f"{kind}_tower") or {} for kind in ("vision", "text")}
    named = {
        kind: f"{origin.get('preset') or Path(str(origin.get('name_or_path'))).name}, "
        + (f"{layers}, " if (layers := describe_layers(spec)) else "")
        + (describe_random(spec) if is_random(spec) else f"revision {revision_of(spec)}")
        for kind, spec in towers.items()
        if (origin := origin_of(spec))
    }
    parameters = (record.get("weights") or {}).get("parameters")
    facts = {"model": describe_aligner(config) + (f", {parameters:,} trainable parameters" if parameters else "") + "."}
    facts["inputs"] = "Images, and for training and retrieval reports, as embeddings of their towers."
    if named:
        how = {kind: towers[kind].get("trained") for kind in named}
        described = "; ".join(f"{kind} tower {name}, {describe_training(how[kind])}" for kind, name in named.items())
        seen = "; ".join(f"{kind}: {describe_pretraining(towers[kind])}" for kind in named)
        facts["model"] += f" {described}."
        facts["initialization"] = (
            f"The Adaptor at random; the towers as published ({described}). They were trained on: {seen}."
        )
    if processing := towers["vision"].get("image_processor"):
        names = ("size", "crop_size", "image_mean", "image_std")
        kept = {name: processing[name] for name in names if processing.get(name)}
        facts["preprocessing"] = f"Images as the vision tower asks: {json.dumps(kept)}."
    return facts


def _software_facts(record: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    machine = record.get("machine") or {}
    return {
        "software": f"{versions}. On {machine.get('device')}, {machine.get('processes')} process(es).",
        "availability": f"Software: adaptor-hf {record['versions'].get('adaptor-hf')}, Apache-2.0.",
    }


def _is_papers(objective: Mapping[str, Any]) -> bool:
    """Whether the paper's loss was minimised, as always before records had an objective."""
    return objective.get("name", "adaptor") == "adaptor"


def _training_facts(
    arguments: Mapping[str, Any], config: Mapping[str, Any], objective: Mapping[str, Any]
) -> dict[str, str]:
    names = (
        "learning_rate", "num_train_epochs", "max_steps", "global_batch_size", "optim", "weight_decay", "warmup_steps",
        "lr_scheduler_type", "max_grad_norm", *(["positives"] if _is_papers(objective) else []), "fp16", "bf16", "seed",
    )  # fmt: skip
    listed = ", ".join(f"{name} {arguments[name]}" for name in names if arguments.get(name) is not None)
    if arguments.get("dataset_weights") or arguments.get("source_batches") not in (None, "mixed"):
        listed += f", dataset_weights {arguments['dataset_weights']}, source_batches {arguments['source_batches']}"
    if _is_papers(objective):
        loss = "Contrastive loss"
        listed += f", image_to_text_weight {config['image_to_text_weight']}" if "image_to_text_weight" in config else ""
    else:
        options = ", ".join(f"{name} {value}" for name, value in (objective.get("options") or {}).items())
        own = f", own code with SHA-256 {objective['sha256']}" if objective.get("sha256") else ""
        loss = f"Objective {objective['name']}{own}" + (f", with {options}" if options else "")
    facts = {"training": f"{loss}; no augmentation (embeddings are computed once); {listed}."}
    if arguments.get("load_best_model_at_end") and arguments.get("eval_strategy") != "no":
        facts["selection"] = (
            f"The checkpoint with the best {arguments.get('metric_for_best_model')} on the validation split."
        )
    else:
        facts["selection"] = "The last checkpoint: nothing was chosen on held-out data."
    return facts


def _retrieval_facts(retrieval: Mapping[str, Any]) -> dict[str, str]:
    split, intervals, chance = retrieval["split"], retrieval["intervals"], retrieval.get("chance") or {}
    values = "; ".join(
        f"{name} {value:.3f}"
        + (" [{:.3f}, {:.3f}]".format(*intervals[name]) if name in intervals else "")
        + (f" (chance {chance[name]:.3f})" if name in chance else "")
        for name, value in retrieval["metrics"].items()
    )
    chosen = " The same split chose the checkpoint." if split == "validation" else ""
    return {
        "metrics": "Recall@k and median rank between images and reports, both ways; equal reports count as one.",
        "uncertainty": "95 % intervals over patients (over images where no patient is known); one seed.",
        "internal": f"On the {split} split.{chosen}",
        "performance": f"On the {split} split: {values}.{chosen}",
        "outputs": "Embeddings whose cosine ranks reports for an image and images for a report; no threshold.",
    }


def _cache_facts(run: Path, inputs: Mapping[str, Any]) -> dict[str, str]:
    """What the cache says, where it still is: exclusions, missing texts, patients in several splits."""
    from ..embeddings import join_caches, open_cache

    try:
        places = inputs["cache"] if isinstance(inputs["cache"], list) else [inputs["cache"]]
        cache = join_caches([open_cache(run / place) for place in places])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    frame = cache.pairs.select_columns(["patient_id", "split"]).with_format("arrow")[:].to_pandas()
    known = frame.dropna(subset=["patient_id"])
    several = int((known.groupby("patient_id")["split"].nunique() > 1).sum())
    facts = {
        "exclusions": f"{len(cache.excluded):,} rows were left out as unreadable or faulty; what was selected before "
        "is not known.",
        "missing": f"{cache.num_image_only:,} rows have no report and were left out of training.",
        "disjoint": f"{several:,} of {known['patient_id'].nunique():,} known patients are in more than one split; "
        f"{len(frame) - len(known):,} rows have no patient id.",
        "table1": "`python -m adaptor_hf.audit table1` counts them.",
    }
    if "truncated_texts" in cache.manifest:
        manifest = cache.manifest
        facts["preprocessing_texts"] = (
            f"Reports were cut to {manifest['max_text_length']} tokens: {manifest['truncated_texts']:,} of "
            f"{manifest['distinct_texts']:,} distinct ones."
        )
    return facts


def downstream_facts(run: Path) -> dict[str, str]:
    """Facts of downstream runs, from their result lines."""
    from ..evaluation.results import read_results
    from ..evaluation.tasks import tasks_with

    lines = read_results(run / "runs").lines
    manifest = _read(run / "manifest.json")

    def values(name: str) -> list[str]:
        return sorted({str(line[name]) for line in lines if line.get(name) is not None})

    internal = [line for line in lines if not line.get("test_set")]
    external = [line for line in lines if line.get("test_set")]
    hashes = "; ".join(f"{name}: split hash {value}" for name, value in (manifest.get("splits") or {}).items())
    sizes = sorted(
        {(line["dataset"], line.get("n_train"), line["n_test"], line["n_patients"]) for line in lines}, key=str
    )

    def listed(name: str) -> str:
        return ", ".join(values(name)) or "unknown"

    accuracy = [line for line in internal if line["task"] in tasks_with(kind="classification")]
    facts = {
        "category": f"Deep learning: heads, prompts or retrieval on an image-text model (task: {listed('task')}).",
        "data": f"The results call the data {listed('dataset')}.",
        "model": f"Systems {listed('system')}; vision towers {listed('vision_tower')}; readouts {listed('protocol')}; "
        f"heads of {listed('head_params')} parameters.",
        "metrics": f"{listed('metric')}.",
        "uncertainty": f"{listed('ci_method')}; seeds {listed('seed')}.",
        "numbers": "; ".join(
            f"{name}: {train} training and {test} test rows, {patients or 'unknown'} test patients"
            for name, train, test, patients in sizes
        )
        + ".",
        "performance": _first_lines(internal),
        "internal": f"On the test part of {listed('dataset')}.",
        "controls": f"Systems beside each other: {listed('module')}.",
        "predictions": "One row a test image in `predictions.parquet` of each run.",
        "initialization": f"Whether the vision tower saw the data in its pretraining: {listed('tower_saw_dataset')}.",
    }
    if accuracy:
        facts["accuracy"] = _first_lines(accuracy)
    if hashes:
        facts["partitions"] = hashes + "."
    if chosen := values("selected_on"):
        facts["selection"] = f"Chosen on: {', '.join(chosen)}."
    chosen = {"learning rates": values("lr"), "C of logistic regressions": values("C")}
    if said := "; ".join(f"{what} {', '.join(of_runs)}" for what, of_runs in chosen.items() if of_runs):
        facts["training"] = f"Chosen: {said}; protocols {', '.join(values('recipe'))}."
    if external:
        facts["external"] = _first_lines(external)
    if lines and lines[0].get("versions"):
        versions = lines[0]["versions"]
        facts["software"] = ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
        facts["availability"] = f"Software: adaptor-hf {versions.get('adaptor-hf')}, Apache-2.0."
    if manifest.get("private_key"):
        facts["private"] = "Ids in the run's files are keyed hashes. That is no de-identification of images or reports."
    return facts


def _first_lines(lines: list[Mapping[str, Any]], limit: int = 12) -> str:
    """The first values as they stand in the result lines, and how many more there are; nothing is picked by value."""
    from ..evaluation.naming import row_label

    shown = [
        f"{row_label(line)}, {line['test_set'] or line['dataset']}, {100 * (line['fraction'] or 1):g} %, seed "
        f"{line['seed']}: {line['metric']} {line['value']:.3f} [{line['ci_lo']:.3f}, {line['ci_hi']:.3f}]"
        for line in lines
        if line["value"] == line["value"]
    ]
    more = f"; and {len(shown) - limit} more in results.jsonl" if len(shown) > limit else ""
    return "; ".join(shown[:limit]) + more + "."


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


__all__ = ["downstream_facts", "pretraining_facts", "run_facts"]
