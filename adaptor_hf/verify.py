"""
`python -m adaptor_hf.verify RUN`: is a run what it was, and do its numbers follow from its files?

For a pre-training run it compares weights, processor, code, cache, splits, card and records with `manifest.json`, and
computes the retrieval on the held-out split again from cache and weights. For downstream runs it compares files with
the manifest and with each run's own record, and computes every metric again from the predictions. The exit status is 1
when anything differs. There is no signature: who changes files, numbers and records consistently is not noticed.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .file_records import READ_ERRORS
from .markdown import one_line
from .privacy.gate import guarded, knows
from .privacy.mode import error_text
from .progress import no_bars_in_a_log

if TYPE_CHECKING:
    from .embeddings import EmbeddingCache

# Sums in another order differ in the last digits; a recall over n queries moves by 1 / n at least.
TOLERANCE = 1e-6
_NO_CACHE = "The manifest does not say where the embeddings are (a private run keeps no paths). Pass --cache."


@dataclass
class Verification:
    """
    What a comparison of a run with its records gave.

    Args:
        differences (`list[str]`): One sentence a difference, naming the file or metric; none means verified.
        unchecked (`list[str]`): What could not be compared, and why.
        recipe (`str`, *optional*): Of a pre-training run, as its record says.
    """

    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    recipe: str | None = None


def verify(run: str | os.PathLike, cache: str | None = None, device: str = "cpu") -> list[str]:
    """
    What differs between a finished run and its records; nothing means that it is verified, as far as there are records:
    see `verification`, which also says what could not be compared.

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
    return verification(run, cache, device).differences


def verification(run: str | os.PathLike, cache: str | None = None, device: str = "cpu") -> Verification:
    """As `verify`, with what could not be compared."""
    from .audit.manifest import MANIFEST_FILE, read_run_manifest
    from .evaluation.results import RESULTS_FILE

    run, found = Path(run), Verification()
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder. Name the output folder of a run.")
    has_results = any(run.rglob(RESULTS_FILE))
    if not (run / MANIFEST_FILE).is_file() and has_results:
        found.unchecked.append(f"There is no {MANIFEST_FILE}: models, cache and added runs are not compared.")
        _verify_predictions(run, found)
        return found
    try:
        manifest = read_run_manifest(run)
    except ValueError as error:
        found.differences.append(str(error))
        if has_results:
            _verify_predictions(run, found)
        return found
    if manifest["version"] == 1:
        found.unchecked.append(f"Its {MANIFEST_FILE} is of an earlier version, with digests of fewer files.")
    if manifest["script"] == "train_downstream":
        _verify_downstream(run, manifest, cache, found)
    else:
        _verify_pretraining(run, manifest, cache, device, found)
    return found


def _verify_files(run: Path, manifest: dict[str, Any], patterns: tuple[str, ...], found: Verification) -> None:
    """Files of the manifest; and those that would be read and are not in it."""
    from .audit.manifest import changed_files, covered_files
    from .file_records import is_loaded

    found.differences += changed_files(run, manifest["files"])
    others = [name for name in covered_files(run, patterns) if name not in manifest["files"]]
    if manifest["version"] == 1:
        found.unchecked += [f"{name} has no digest in this manifest." for name in others]
        return
    for name in others:
        if is_loaded(Path(name).name) or name.startswith("runs/"):
            found.differences.append(f"{name} is not in the manifest: it was added since, or nothing recorded it.")


def _verify_downstream(run: Path, manifest: dict[str, Any], cache: str | None, found: Verification) -> None:
    from .audit.manifest import cache_settings, changed_files, downstream_patterns
    from .evaluation.results import RESULTS_FILE, read_results

    _verify_files(run, manifest, downstream_patterns(), found)
    recorded = manifest["inputs"]["cache"]
    place = _cache_place(run, cache, recorded)
    if place is None:
        found.differences.append(_NO_CACHE)
    else:
        found.differences += [f"Cache: {what}" for what in changed_files(place, recorded["files"])]
        _verify_settings(place, recorded, cache_settings, found)
    for model in manifest["inputs"].get("models", []):
        _verify_model(run, model, found)
    if any(run.glob(f"runs/*/{RESULTS_FILE}")):
        _verify_predictions(run, found)
        for line in read_results(run / "runs").lines:
            name = line["test_set"] or line["dataset"]
            if manifest["splits"].get(name) != line["split_hash"]:
                what = f"Run {line['run']}: the split of {name} is {line['split_hash']}, the manifest has another one."
                if what not in found.differences:
                    found.differences.append(what)


def _verify_model(run: Path, model: Mapping[str, Any], found: Verification) -> None:
    from .audit.manifest import changed_files

    if model.get("folder") is None:
        found.unchecked.append("A model that was evaluated is not compared: its place is not recorded.")
        return
    folder = run / model["folder"]
    files = model.get("files") or ({"model.safetensors": model["sha256"]} if model.get("sha256") else {})
    found.differences += [f"Model {folder.name}: {what}" for what in changed_files(folder, files)]
    if model.get("state") == "changed":
        found.differences.append(f"Model {folder.name}: its files were changed while it was evaluated.")
    elif model.get("state") != "verified":
        found.unchecked.append(
            f"Model {folder.name}: when it was evaluated, nothing recorded what its files had been after training."
        )


def _verify_predictions(run: Path, found: Verification) -> None:
    from .evaluation.results import RESULTS_FILE
    from .evaluation.verify import verify_tree
    from .file_records import SUMS_FILE

    for folder, differences in verify_tree(run).items():
        found.differences += [f"{Path(folder).name}: {what}" for what in differences]
    found.unchecked += [
        f"{path.parent.name} has no {SUMS_FILE}: fields that do not follow from the predictions are not compared."
        for path in sorted(run.rglob(RESULTS_FILE))
        if not (path.parent / SUMS_FILE).is_file()
    ]


def _verify_pretraining(
    run: Path, manifest: dict[str, Any], cache: str | None, device: str, found: Verification
) -> None:
    from .audit.manifest import cache_settings, changed_files, pretraining_patterns, split_digests
    from .file_records import CHECKPOINT_FILE
    from .training.checkpoints import check_checkpoint, checkpoint_steps

    _verify_files(run, manifest, pretraining_patterns(), found)
    for folder in checkpoint_steps(run).values():
        if not (folder / CHECKPOINT_FILE).is_file():
            found.unchecked.append(f"{folder.name} has no {CHECKPOINT_FILE}.")
            continue
        try:
            check_checkpoint(folder)
        except READ_ERRORS as error:
            found.differences.append(f"{folder.name}: {error}")
    found.differences += _verify_card(run, manifest)
    found.recipe = _recipe(run)
    recorded = manifest["inputs"]["cache"]
    joined = recorded.get("joined")
    if joined and cache is not None:
        raise ValueError("--cache names one place, and the run joined several caches. Verify it where they were.")
    places = [_cache_place(run, cache, one) for one in joined or [recorded]]
    if None in places:
        found.differences.append(_NO_CACHE)
        return
    try:
        opened = _open_all(places, recorded)
    except READ_ERRORS as error:
        found.differences.append(f"The cache cannot be read: {error}")
        return
    for member, one in zip(opened.members, joined or [recorded], strict=True):
        found.differences += [f"Cache: {what}" for what in changed_files(member.path.parent, one["files"])]
        _verify_settings(member.path.parent, one, cache_settings, found)
    if opened.fingerprint != recorded.get("fingerprint"):
        found.differences.append("Cache: it stands for other rows, towers or ids; its fingerprint is another one.")
    try:
        opened = _without_dropped_copies(run, opened)
    except READ_ERRORS as error:
        found.differences.append(f"The copies that the run left out cannot be found again: {error}")
    splits = split_digests(opened)
    for name in sorted(splits.keys() | manifest["splits"].keys()):
        if splits.get(name) != manifest["splits"].get(name):
            what = "of all rows" if name == "all" else name
            found.differences.append(f"Split {what}: its rows are not those of the run (hash {splits.get(name)}).")
    held_out = None
    if recorded := manifest["inputs"].get("held_out"):
        # Towers trained: the splits are by the towers as they started, and the retrieval by those that the run saved.
        place = _cache_place(run, cache, recorded)
        if place is None:
            found.differences.append(_NO_CACHE)
            return
        # --cache may name the pairs of the run; these lie beside them.
        place = place.parent if place.name.startswith("pairs-") else place
        try:
            held_out = _open(place, recorded)
        except READ_ERRORS as error:
            found.differences.append(f"The held-out rows by the trained towers cannot be read: {error}")
            return
        found.differences += [
            f"Held-out rows: {what}" for what in changed_files(held_out.path.parent, recorded["files"])
        ]
        _verify_settings(held_out.path.parent, recorded, cache_settings, found)
    found.differences += _verify_retrieval(run, opened, device, held_out)


def _recipe(run: Path) -> str | None:
    """Name of the recipe in the record, and whether the run chose it."""
    from .audit.run_record import RUN_FILE
    from .file_records import read_json_object

    try:
        recipe = read_json_object(run / RUN_FILE).get("recipe")
        name, chosen = recipe["name"], recipe["chosen"]
    except READ_ERRORS:
        return None  # of a version before, or damaged, which is named above
    return f"{name or 'of a file'}{', chosen by the number of steps' if chosen is True else ''}"


def _verify_settings(place: Path, recorded: Mapping[str, Any], settings_of: Any, found: Verification) -> None:
    recorded = recorded.get("settings")
    if not isinstance(recorded, dict):
        found.unchecked.append("Cache: nothing recorded its settings (towers, reading of images, lengths of texts).")
        return
    for name, digest in recorded.items():
        try:
            if settings_of(place, [name])[name] != digest:
                found.differences.append(f"Cache: the settings in {name}/cache.json are not those of the run.")
        except READ_ERRORS as error:
            found.differences.append(f"Cache: {name} cannot be read: {error}")


def _open(place: Path, recorded: Mapping[str, Any]) -> EmbeddingCache:
    """The recorded pairs of a cache folder, also when others were built there since."""
    from .embeddings import open_cache

    name = next((file.partition("/")[0] for file in recorded["files"] if file.startswith("pairs-")), "")
    return open_cache(place / name if (place / name).is_dir() and not place.name.startswith("pairs-") else place)


def _open_all(places: list[Path], recorded: Mapping[str, Any]) -> EmbeddingCache:
    """The recorded cache, or those that the run joined."""
    from .embeddings import join_caches

    if len(places) == 1:
        return _open(places[0], recorded)
    caches = [_open(place, one) for place, one in zip(places, recorded["joined"], strict=True)]
    return join_caches(caches, recorded["names"], one_namespace=bool(recorded.get("one_namespace")))


def _without_dropped_copies(run: Path, cache: EmbeddingCache) -> EmbeddingCache:
    """The rows of a cache that a run with `--duplicates drop` was trained and evaluated on."""
    from .audit.run_record import RUN_FILE
    from .data.duplicates import without_copies
    from .file_records import read_json_object

    options = read_json_object(run / RUN_FILE).get("options") if (run / RUN_FILE).is_file() else None
    dropped = isinstance(options, dict) and options.get("duplicates") == "drop"
    return without_copies(cache, "drop") if dropped else cache


def _verify_retrieval(
    run: Path, cache: EmbeddingCache, device: str, held_out: EmbeddingCache | None = None
) -> list[str]:
    from .evaluation.results import RETRIEVAL_FILE
    from .file_records import read_json_object
    from .modeling_adaptor import AdaptorModel
    from .training.controls import evaluate_retrieval
    from .training.pairs import contrastive_splits

    path = run / RETRIEVAL_FILE
    if not path.is_file():
        return []  # nothing was held out; a lost file is named above
    try:
        recorded = read_json_object(path)
        views = contrastive_splits(cache)
        model = AdaptorModel.from_pretrained(run, load_towers=False).to(device).eval()
        part = views[recorded["split"]] if held_out is None else held_out.paired()
        if tokens := model.config.trained_on:
            # What the run measured: what the model has read in training.
            part = part.with_columns(*part.columns, *tokens, sequences=True)
        result = evaluate_retrieval(model, part, recorded["name"])
        found = _differences("Retrieval", recorded["metrics"], result.metrics, TOLERANCE)
        found += _differences("Chance", recorded.get("chance", {}), result.chance, TOLERANCE)
        if isinstance(recorded.get("sources"), dict):
            for source, values in recorded["sources"].items():
                again = evaluate_retrieval(model, part.source(source), source)
                found += _differences(f"Retrieval of {source}", values["metrics"], again.metrics, TOLERANCE)
        none = [math.nan, math.nan]
        for name in sorted(recorded["intervals"].keys() | result.intervals.keys()):
            before, ends = (intervals.get(name, none) for intervals in (recorded["intervals"], result.intervals))
            pairs = {"low": (before[0], ends[0]), "high": (before[1], ends[1])}
            for end, (old, new) in pairs.items():
                found += _differences("Retrieval", {f"{name}, {end} end": old}, {f"{name}, {end} end": new}, TOLERANCE)
        return found
    except (*READ_ERRORS, RuntimeError) as error:
        return [f"Retrieval cannot be computed again: {type(error).__name__}: {error}"]


def _verify_card(run: Path, manifest: Mapping[str, Any]) -> list[str]:
    from .audit.card_numbers import card_differences
    from .audit.run_record import RUN_FILE
    from .evaluation.results import RETRIEVAL_FILE
    from .file_records import read_json_object

    try:
        retrieval = read_json_object(run / RETRIEVAL_FILE) if (run / RETRIEVAL_FILE).is_file() else None
        record = read_json_object(run / RUN_FILE) if (run / RUN_FILE).is_file() else {}
        config = read_json_object(run / "config.json") if (run / "config.json").is_file() else None
        return card_differences(run / "README.md", retrieval, record, manifest["splits"].get("all"), config)
    except READ_ERRORS as error:
        return [f"The card cannot be compared: {type(error).__name__}: {error}"]


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
    return None if recorded.get("folder") is None else run / recorded["folder"]


@guarded(knows("places, and what other libraries say of damage"))
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 on an error or a difference."""
    parser = argparse.ArgumentParser(prog="python -m adaptor_hf.verify", description=__doc__)
    parser.add_argument("run", help="output folder of train_pretrain.py or train_downstream.py")
    parser.add_argument("--cache", help="where the embeddings are now, if they were moved or the run is private")
    parser.add_argument("--device", default="cpu", help="where retrieval is computed again")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    no_bars_in_a_log()
    try:
        found = verification(arguments.run, arguments.cache, arguments.device)
    except READ_ERRORS as error:
        print(f"error: {one_line(error_text(error))}", file=sys.stderr)
        return 1
    count = len(found.differences)
    said = "verified" if not count else f"{count} difference" + "s" * (count > 1)
    print(f"{arguments.run}: {said}" + (", but not all could be compared" if found.unchecked and not count else ""))
    if found.recipe:
        print(f"  recipe: {one_line(found.recipe)}")
    for difference in found.differences:
        print(f"  {one_line(difference)}")
    for what in found.unchecked:
        print(f"  not compared: {one_line(what)}")
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
