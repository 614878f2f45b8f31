"""Modules and names that have moved: for one release the old name gives the new one, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import Any

MOVED = {
    "adaptor_hf.data.local": "adaptor_hf.data.public_datasets",
    "adaptor_hf.data.local_boxes": "adaptor_hf.data.public_boxes",
    "adaptor_hf.data.local_cache": "adaptor_hf.data.public_cache",
    "adaptor_hf.data.local_columns": "adaptor_hf.data.public_columns",
    "adaptor_hf.data.local_report": "adaptor_hf.data.public_report",
    "adaptor_hf.data.local_rows": "adaptor_hf.data.public_rows",
    "adaptor_hf.data.pacs.headers": "adaptor_hf.data.dicom_headers",
    "adaptor_hf.data.phantom": "adaptor_hf.phantom",
    "adaptor_hf.downstream": "adaptor_hf.tasks",
    "adaptor_hf.downstream.modules": "adaptor_hf.tasks.controls",
    "adaptor_hf.downstream.predicting": "adaptor_hf.tasks.final_heads",
    "adaptor_hf.downstream.recipes": "adaptor_hf.tasks.protocols",
    "adaptor_hf.downstream.tasks": "adaptor_hf.tasks.run",
    "adaptor_hf.embeddings.progress": "adaptor_hf.progress",
    "adaptor_hf.embeddings.sides": "adaptor_hf.embeddings.modalities",
    "adaptor_hf.evaluation.card": "adaptor_hf.hub.results_card",
    "adaptor_hf.hub.data_terms": "adaptor_hf.data.terms",
    "adaptor_hf.identifying": "adaptor_hf.privacy.identifying",
    "adaptor_hf.objectives.segmentation": "adaptor_hf.segmentation_loss_adaptor",
    "adaptor_hf.private_messages": "adaptor_hf.privacy.messages",
    "adaptor_hf.private_mode": "adaptor_hf.privacy.mode",
    "adaptor_hf.tasks.label_columns": "adaptor_hf.data.label_columns",
    "adaptor_hf.training.choices": "adaptor_hf.training.objective_fields",
    "adaptor_hf.training.recipe": "adaptor_hf.training.script_arguments",
    "adaptor_hf.training.run_record": "adaptor_hf.audit.run_record",
}
"""Old name and new one; what lies below an old name lies below the new one, unless it has its own line."""

MOVED_NAMES = {
    "adaptor_hf.data.catalog.TASKS": "adaptor_hf.data.catalog.ROW_TASKS",
    "adaptor_hf.downstream.masks.GreyMasks": "adaptor_hf.tasks.masks.ToleratedMasks",
    "adaptor_hf.downstream.loading.load_text_side": "adaptor_hf.tasks.loading.load_checkpoint_text_tower",
    "adaptor_hf.audit.manifest.place_beside": "adaptor_hf.audit.manifest.relative_to_run",
    "adaptor_hf.data.load_local_dataset": "adaptor_hf.data.load_public_dataset",
    "adaptor_hf.data.catalog.Found": "adaptor_hf.data.catalog.LoadedRows",
    "adaptor_hf.data.local.load_local_dataset": "adaptor_hf.data.public_datasets.load_public_dataset",
    "adaptor_hf.data.local_rows.NEEDS": "adaptor_hf.data.catalog.ROW_TASKS",
    "adaptor_hf.data.near_copies.Prints": "adaptor_hf.data.near_copies.ImageHashes",
    "adaptor_hf.data.near_copies.image_prints": "adaptor_hf.data.near_copies.perceptual_hashes",
    "adaptor_hf.data.pacs.walk.Found": "adaptor_hf.data.pacs.walk.WalkedFile",
    "adaptor_hf.data.public.conceptual_captions.shards_found": "adaptor_hf.data.public.conceptual_captions.shard_rows",
    "adaptor_hf.data.report_sentences.RECIPES": "adaptor_hf.data.report_sentences.SENTENCE_RULES",
    "adaptor_hf.downstream.arguments.places_of": "adaptor_hf.tasks.arguments.path_arguments",
    "adaptor_hf.downstream.classification.EmbeddedData": "adaptor_hf.tasks.embedded.EmbeddedData",
    "adaptor_hf.downstream.classification.RunList": "adaptor_hf.tasks.runs.RunList",
    "adaptor_hf.downstream.classification.class_frequencies": "adaptor_hf.tasks.frozen_heads.class_frequencies",
    "adaptor_hf.downstream.classification.decisions": "adaptor_hf.tasks.frozen_heads.decisions",
    "adaptor_hf.downstream.classification.distinct_seeds": "adaptor_hf.tasks.frozen_heads.distinct_seeds",
    "adaptor_hf.downstream.classification.finish_run": "adaptor_hf.tasks.runs.finish_run",
    "adaptor_hf.downstream.classification.finished_lines": "adaptor_hf.tasks.runs.finished_lines",
    "adaptor_hf.downstream.classification.predict": "adaptor_hf.tasks.frozen_heads.predict",
    "adaptor_hf.downstream.classification.set_aside_earlier_probes": "adaptor_hf.tasks.frozen_heads.set_aside_earlier_probes",  # noqa: E501
    "adaptor_hf.downstream.classification.subgroup_columns": "adaptor_hf.tasks.runs.subgroup_columns",
    "adaptor_hf.downstream.features.weights_digest": "adaptor_hf.evaluation.naming.weights_digest",
    "adaptor_hf.downstream.modules.Module": "adaptor_hf.training.systems.System",
    "adaptor_hf.downstream.modules.load_modules": "adaptor_hf.tasks.controls.load_systems",
    "adaptor_hf.downstream.modules.save_variants": "adaptor_hf.training.controls.save_controls",
    "adaptor_hf.downstream.predicting.take_away": "adaptor_hf.tasks.final_heads.save_and_predict",
    "adaptor_hf.downstream.recipes.ProbeRecipe": "adaptor_hf.tasks.protocols.ProbeProtocol",
    "adaptor_hf.downstream.recipes.RECIPES": "adaptor_hf.tasks.protocols.PROTOCOLS",
    "adaptor_hf.downstream.recipes.get_recipe": "adaptor_hf.tasks.protocols.get_protocol",
    "adaptor_hf.downstream.segmentation.SEGMENTATION_RECIPES": "adaptor_hf.tasks.protocols.SEGMENTATION_PROTOCOLS",
    "adaptor_hf.downstream.segmentation.SegmentationRecipe": "adaptor_hf.tasks.protocols.SegmentationProtocol",
    "adaptor_hf.downstream.segmentation.get_segmentation_recipe": "adaptor_hf.tasks.protocols.get_segmentation_protocol",  # noqa: E501
    "adaptor_hf.embeddings.sides.Side": "adaptor_hf.embeddings.modalities.Modality",
    "adaptor_hf.evaluation.classification.NUM_BINS": "adaptor_hf.evaluation.calibration.NUM_BINS",
    "adaptor_hf.evaluation.classification.classification_recipes": "adaptor_hf.evaluation.classification.classification_interval_methods",  # noqa: E501
    "adaptor_hf.evaluation.classification.f1_thresholds": "adaptor_hf.evaluation.thresholds.f1_thresholds",
    "adaptor_hf.evaluation.classification.reliability_curve": "adaptor_hf.evaluation.calibration.reliability_curve",
    "adaptor_hf.evaluation.classification.specificity_thresholds": "adaptor_hf.evaluation.thresholds.specificity_thresholds",  # noqa: E501
    "adaptor_hf.evaluation.draws.without": "adaptor_hf.evaluation.draws.regression_residuals",
    "adaptor_hf.evaluation.figures.look": "adaptor_hf.evaluation.figures.line_style",
    "adaptor_hf.evaluation.figures.point": "adaptor_hf.evaluation.figures.marker_style",
    "adaptor_hf.evaluation.intervals.Recipe": "adaptor_hf.evaluation.intervals.IntervalMethod",
    "adaptor_hf.evaluation.predictions.digest": "adaptor_hf.files.file_sha256",
    "adaptor_hf.evaluation.retrieval.mean_recipes": "adaptor_hf.evaluation.retrieval.mean_interval_methods",
    "adaptor_hf.evaluation.scoring.interval_recipes": "adaptor_hf.evaluation.scoring.interval_methods",
    "adaptor_hf.evaluation.segmentation.segmentation_recipes": "adaptor_hf.evaluation.segmentation.segmentation_interval_methods",  # noqa: E501
    "adaptor_hf.privacy.KEY_BYTES": "adaptor_hf.privacy.keys.KEY_BYTES",
    "adaptor_hf.private_mode.private_rows": "adaptor_hf.data.private_rows.private_rows",
    "adaptor_hf.private_mode.refuse_identifying_columns": "adaptor_hf.data.private_rows.refuse_identifying_columns",
    "adaptor_hf.training.controls.train_variant": "adaptor_hf.training.controls.train_control",
    "adaptor_hf.training.run_record.sha256": "adaptor_hf.files.file_sha256",
    "adaptor_hf.training.trainer.embed_pairs": "adaptor_hf.training.pair_embeddings.embed_pairs",
    "adaptor_hf.training.trainer.keep_batch": "adaptor_hf.training.base_trainer.keep_batch",
}
"""Old name and new one, of what lies in a module; the modules are called what they were then."""

REPLACED_NAMES = {
    "adaptor_hf.data.pacs.reports_table.DELIMITERS": "adaptor_hf.data.delimited.NAMES",
    "adaptor_hf.data.pacs.reports_table.ENCODINGS": "`fallback` of adaptor_hf.data.delimited.read_delimited",
    "adaptor_hf.hub.data_terms.RESTRICTED": "`restricted` of each of adaptor_hf.data.list_datasets()",
    "adaptor_hf.downstream.compare.METRIC": "`decides_by` of each of adaptor_hf.evaluation.tasks.TASKS",
    "adaptor_hf.downstream.modules.BUILT_IN": 'adaptor_hf.evaluation.controls.controls_made("built")',
    "adaptor_hf.downstream.modules.SYSTEMS": "`name` of each of adaptor_hf.evaluation.controls.CONTROLS",
    "adaptor_hf.downstream.summary.HEADLINES": "`headline` of each of adaptor_hf.evaluation.tasks.TASKS",
    "adaptor_hf.downstream.tasks.TASK_FUNCTIONS": "adaptor_hf.tasks.run.run_task",
    "adaptor_hf.evaluation.naming.HEADLINES": "`headline` of each of adaptor_hf.evaluation.tasks.TASKS",
    "adaptor_hf.evaluation.overlap.UNTRAINED": 'adaptor_hf.evaluation.controls.controls_made("built")',
    "adaptor_hf.evaluation.notes.grey_mask_note": "adaptor_hf.evaluation.notes.tolerated_mask_notes, a list",
    "adaptor_hf.training.controls.Variant": "adaptor_hf.training.systems.System",
    "adaptor_hf.training.controls.train_variants": "adaptor_hf.training.controls.train_controls (`label` was `name`)",
    "adaptor_hf.training.pair_evaluation.fixed_batch_loss": "adaptor_hf.training.pair_evaluation.fixed_batch_terms",
    "adaptor_hf.training.recipe.places_of": "adaptor_hf.training.script_arguments.path_arguments, of all four groups",
    "adaptor_hf.training.trainer.fixed_batch_loss": "adaptor_hf.training.pair_evaluation.fixed_batch_terms",
}
"""Names that nothing has any more, and what to use; `adaptor_hf.old_names` makes them for one release."""


@cache
def new_name(name: str) -> str | None:
    """Where a module is now; None if it has not moved."""
    for old in sorted(MOVED, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return MOVED[old] + name.removeprefix(old)
    return None


def warn_of(old: str, new: str, stacklevel: int = 2) -> None:
    """Say that a name has moved, where the caller uses the old one."""
    warnings.warn(f"{old} is now {new}; the old name goes with the next release.", FutureWarning, stacklevel + 1)


def moved_names(module: str) -> dict[str, tuple[str, str, str]]:
    """Old names in a module, as it is called now: the whole old name, where its object is, and what to use."""
    found = {}
    for old, use in (MOVED_NAMES | REPLACED_NAMES).items():
        place, _, name = old.rpartition(".")
        if (new_name(place) or place) == module:
            found[name] = (old, f"{__package__}.old_names.{name}" if old in REPLACED_NAMES else use, use)
    return found


class _NamesLoader(SourceFileLoader):
    """Gives a module the `__getattr__` that finds its old names."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        names, own = moved_names(module.__name__), vars(module).get("__getattr__")

        def get(name: str) -> Any:
            if name in names:
                old, target, use = names[name]
                warn_of(old, use)
                place, _, last = target.rpartition(".")
                return getattr(import_module(place), last)
            if own is not None:
                return own(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = get


class _MovedLoader(Loader):
    """Gives the module itself, under its old name too, and its code to `python -m`."""

    def __init__(self, target: str):
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.target)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the old name's spec there.
        module.__spec__ = self.spec

    def get_code(self, name: str) -> CodeType | None:
        spec = find_spec(self.target)
        return None if spec is None else spec.loader.get_code(self.target)


class MovedFinder(MetaPathFinder):
    """Finds modules of `MOVED` under their old names, and gives modules the old names of what they hold or held."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{__package__}."):
            return None
        new = new_name(name)
        if new is None:
            found = PathFinder.find_spec(name, path) if moved_names(name) else None
            if found is not None:
                found.loader = _NamesLoader(found.loader.name, found.loader.path)
            return found
        found = find_spec(new)
        if found is None:
            return None
        warn_of(name, new)
        is_package = found.submodule_search_locations is not None
        return spec_from_loader(name, _MovedLoader(new), is_package=is_package)


def install() -> None:
    """Make old names importable; twice is once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        # First: a package under its old name has the path of the new one, where what lies below it would be found and
        # loaded a second time.
        sys.meta_path.insert(0, MovedFinder())


__all__ = ["MOVED", "MOVED_NAMES", "REPLACED_NAMES", "MovedFinder", "install", "moved_names", "new_name", "warn_of"]
