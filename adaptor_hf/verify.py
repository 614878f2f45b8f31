"""
`python -m adaptor_hf.verify RUN`: is a run what it was, and do its numbers follow from its files?

For a pre-training run it compares weights, cache, splits and records with `manifest.json`, and computes the retrieval
on the held-out split again from cache and weights. For downstream runs it compares files with the manifest and computes
every metric again from the predictions. The exit status is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import check_regular, read_json

if TYPE_CHECKING:
    from .embeddings import EmbeddingCache

# Sums in another order differ in the last digits; a recall over n queries moves by 1 / n at least.
TOLERANCE = 1e-6
# The card rounds to four digits.
CARD_TOLERANCE = 6e-5


def verify(run: str | os.PathLike, cache: str | None = None, device: str = "cpu") -> list[str]:
    """
    What differs between a finished run and its records; nothing means that it is verified.

    Args:
        run (`str` or `PathLike`): Output folder of `train_pretrain.py` or `train_downstream.py`, or a folder of single
            downstream runs.
        cache (`str`, *optional*): Where the embeddings are now, if not where the manifest says: for pre-training the
            `pairs-...` folder or the cache folder.
        device (`str`, defaults to `"cpu"`): Where pre-training's retrieval is computed.

    Returns:
        `list[str]`: One sentence a difference, naming the file or metric.

    Raises:
        FileNotFoundError: there is no such run.
    """
    from .audit.manifest import MANIFEST_FILE, read_run_manifest
    from .evaluation.results import RESULTS_FILE

    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder. Name the output folder of a run.")
    if not (run / MANIFEST_FILE).is_file() and any(run.rglob(RESULTS_FILE)):
        return _verify_predictions(run)
    try:
        manifest = read_run_manifest(run)
    except ValueError as error:
        return [str(error)]
    if manifest["script"] == "train_downstream":
        return _verify_downstream(run, manifest, cache)
    return _verify_pretraining(run, manifest, cache, device)


def _verify_downstream(run: Path, manifest: dict[str, Any], cache: str | None) -> list[str]:
    from .audit.manifest import changed_files
    from .evaluation.results import RESULTS_FILE, read_results

    found = changed_files(run, manifest["files"])
    recorded = manifest["inputs"]["cache"]
    place = _cache_place(run, cache, recorded)
    found += [_NO_CACHE] if place is None else [f"Cache: {what}" for what in changed_files(place, recorded["files"])]
    for model in manifest["inputs"]["models"]:
        if model["folder"] is not None and model["sha256"] is not None:
            name = "model.safetensors"
            folder = run / model["folder"]
            found += [f"Model {folder.name}: {what}" for what in changed_files(folder, {name: model["sha256"]})]
    if any(run.glob(f"runs/*/{RESULTS_FILE}")):
        found += _verify_predictions(run)
        for line in read_results(run / "runs").lines:
            name = line["test_set"] or line["dataset"]
            if manifest["splits"].get(name) != line["split_hash"]:
                what = f"Run {line['run']}: the split of {name} is {line['split_hash']}, the manifest has another one."
                if what not in found:
                    found.append(what)
    return found


def _verify_predictions(run: Path) -> list[str]:
    from .evaluation.verify import verify_tree

    return [f"{Path(folder).name}: {what}" for folder, differences in verify_tree(run).items() for what in differences]


_NO_CACHE = "The manifest does not say where the embeddings are (a private run keeps no paths). Pass --cache."


def _verify_pretraining(run: Path, manifest: dict[str, Any], cache: str | None, device: str) -> list[str]:
    from .audit.manifest import changed_files, split_digests

    found = changed_files(run, manifest["files"])
    recorded = manifest["inputs"]["cache"]
    place = _cache_place(run, cache, recorded)
    if place is None:
        return [*found, _NO_CACHE]
    try:
        opened = _open(place, recorded)
    except (OSError, ValueError) as error:
        return [*found, f"The cache cannot be read: {error}"]
    found += [f"Cache: {what}" for what in changed_files(opened.path.parent, recorded["files"])]
    if opened.fingerprint != recorded["fingerprint"]:
        found.append("Cache: it stands for other rows, towers or ids; its fingerprint is another one.")
    splits = split_digests(opened)
    for name in sorted(splits.keys() | manifest["splits"].keys()):
        if splits.get(name) != manifest["splits"].get(name):
            what = "of all rows" if name == "all" else name
            found.append(f"Split {what}: its rows are not those of the run (hash {splits.get(name)}).")
    return found + _verify_retrieval(run, opened, device)


def _open(place: Path, recorded: Mapping[str, Any]) -> EmbeddingCache:
    """The recorded pairs of a cache folder, also when others were built there since."""
    from .embeddings import open_cache

    name = next((file.partition("/")[0] for file in recorded["files"] if file.startswith("pairs-")), "")
    return open_cache(place / name if (place / name).is_dir() and not place.name.startswith("pairs-") else place)


def _verify_retrieval(run: Path, cache: EmbeddingCache, device: str) -> list[str]:
    from .evaluation.results import RETRIEVAL_FILE
    from .modeling_adaptor import AdaptorModel
    from .training.controls import evaluate_retrieval
    from .training.pairs import contrastive_splits

    path = run / RETRIEVAL_FILE
    if not path.is_file():
        return []  # nothing was held out; a lost file is named above
    try:
        recorded = read_json(path)
        views = contrastive_splits(cache)
        model = AdaptorModel.from_pretrained(run, load_towers=False).to(device).eval()
        result = evaluate_retrieval(model, views[recorded["split"]], recorded["name"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return [f"Retrieval cannot be computed again: {error}"]
    found = _differences("Retrieval", recorded["metrics"], result.metrics, TOLERANCE)
    found += _differences("Chance", recorded.get("chance", {}), result.chance, TOLERANCE)
    none = [math.nan, math.nan]
    for name in sorted(recorded["intervals"].keys() | result.intervals.keys()):
        before, ends = (intervals.get(name, none) for intervals in (recorded["intervals"], result.intervals))
        pairs = {"low": (before[0], ends[0]), "high": (before[1], ends[1])}
        for end, (old, new) in pairs.items():
            found += _differences("Retrieval", {f"{name}, {end} end": old}, {f"{name}, {end} end": new}, TOLERANCE)
    return found + _verify_card(run, recorded["split"], result.metrics)


def _verify_card(run: Path, split: str, metrics: Mapping[str, float]) -> list[str]:
    from huggingface_hub import ModelCard

    path = run / "README.md"
    if not path.is_file():
        return ["README.md is missing."]
    listed = ModelCard.load(check_regular(path)).data.eval_results or []
    # Downstream results that were added to the card since have settings of their own, beside the split's hash.
    stated = {
        result.metric_type: result.metric_value
        for result in listed
        if set(result.dataset_args or ()) == {"split_hash"} and result.dataset_split == split
    }
    return _differences("Model card", stated, metrics, CARD_TOLERANCE)


def _differences(
    where: str, recorded: Mapping[str, float], computed: Mapping[str, float], tolerance: float
) -> list[str]:
    return [
        f"{where}: {name} is {value:.6g} in the record, and {computed.get(name, math.nan):.6g} computed again."
        for name, value in recorded.items()
        if not (
            math.isclose(value, computed.get(name, math.nan), rel_tol=tolerance, abs_tol=tolerance)
            or (math.isnan(value) and math.isnan(computed.get(name, 0.0)))
        )
    ]


def _cache_place(run: Path, given: str | None, recorded: Mapping[str, Any]) -> Path | None:
    if given is not None:
        return Path(given)
    return None if recorded["folder"] is None else run / recorded["folder"]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 on an error or a difference."""
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.verify", description=__doc__)
    parser.add_argument("run", help="output folder of train_pretrain.py or train_downstream.py")
    parser.add_argument("--cache", help="where the embeddings are now, if they were moved or the run is private")
    parser.add_argument("--device", default="cpu", help="where retrieval is computed again")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        differences = verify(arguments.run, arguments.cache, arguments.device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.run}: " + ("verified" if not differences else f"{len(differences)} differences"))
    for difference in differences:
        print(f"  {difference}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
