"""What a pre-training run does before it trains: its log, what is checked before hours of work, its cache and parts."""

import logging
import os
import sys

import transformers

from ..data.duplicates import without_copies
from ..data.pair_arguments import source_arguments
from ..data.places import several
from ..data.stored_arguments import kept_of_images, kept_of_texts
from ..data.terms import check_consent, restricted_terms
from ..embeddings import EmbeddingCache
from ..embeddings.digests import FileChecks
from ..embeddings.joined import join_caches
from ..embeddings.place import place_of_cache
from ..embeddings.ranks import Ranks
from ..embeddings.reader import open_together
from ..privacy.mode import check_private_cache
from ..privacy.nearly_data import NEARLY_DATA
from ..progress import no_bars_in_a_log
from .arguments import AdaptorTrainingArguments
from .checkpoints import find_checkpoint
from .early_checks import check_best_metric, check_optimizer, check_trackers
from .needs import check_labels, check_stored_options
from .pair_cache import check_sources, embed_pairs
from .pairs import TrainingPairs, contrastive_splits, record_training_rows
from .script_arguments import DataArguments, ModelArguments, RunArguments, check_together
from .source_batches import check_weights
from .summary import environment_warnings, fit_batch_to_data

logger = logging.getLogger(__name__)


def start_logging(training: AdaptorTrainingArguments, script: str) -> None:
    """
    Show what this package says, and of other libraries their warnings; then what this machine lacks.

    Args:
        training (`AdaptorTrainingArguments`): Processes other than the first only say what ends them.
        script (`str`): Name of the logger of the script.
    """
    # Ours at INFO, other libraries' at WARNING: a hub client logs every request.
    logging.basicConfig(level=logging.WARNING if training.should_log else logging.ERROR, format="%(message)s")
    for name in ("adaptor_hf", script):
        logging.getLogger(name).setLevel(logging.INFO if training.should_log else logging.ERROR)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    no_bars_in_a_log()
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()
    for problem in environment_warnings():
        logger.warning(problem)


def check_before_start(
    data: DataArguments, model: ModelArguments, run: RunArguments, training: AdaptorTrainingArguments
) -> dict[str, str] | None:
    """
    Fail now on what would fail after hours: options that contradict, places and towers that are not there, a tracker
    that is not installed, a metric that there is not, terms of the data. No table, cache or weights are read.

    Returns:
        `dict[str, str]`, *optional*: Terms of the data that restrict sharing, as of `restricted_terms`.

    Raises:
        OSError, ValueError: naming the option.
    """
    check_together(data, model, run, training)
    # Its code may refuse an option, and the processes may have different files of it.
    model.make_objective()
    check_sources(data, model)
    check_trackers(training.report_to)
    if data.cache is None:
        check_stored_options(model.objective.made, data)
        names = list(source_arguments(data))
        check_best_metric(training, names if len(names) > 1 else ())
        check_weights_of(training, len(names))
    check_optimizer(training)
    terms = restricted_terms(*several(data.dataset), data.dataset_name)
    if training.push_to_hub:
        check_consent(terms, training.accept_data_terms)
        check_no_tokens_beside(data, training.output_dir)
    if training.resume_from_checkpoint:
        training.resume_from_checkpoint = str(find_checkpoint(training.output_dir, training.resume_from_checkpoint))
    return terms


def check_no_tokens_beside(data: DataArguments, output_dir: str) -> None:
    """
    Refuse now what a push refuses after training: tokens of images or texts kept in the folder that is pushed.

    Raises:
        ValueError: saying which, and what to do.
    """
    kept = [name for name in (kept_of_images(data) | kept_of_texts(data)) if name in NEARLY_DATA]
    folder, place = (os.path.abspath(one) for one in (output_dir, place_of_cache(output_dir, data.cache_dir)))
    if data.cache is None and kept and os.path.commonpath([folder, place]) == folder:
        raise ValueError(
            f"--push_to_hub with {' '.join(f'--{name}' for name in kept)}: the embedding cache would lie in the folder "
            "that is pushed, and nearly is the images or reports themselves. Name another folder with --cache_dir."
        )


def check_weights_of(training: AdaptorTrainingArguments, sources: int) -> None:
    """Raise ValueError where what is said of several sources does not fit their number."""
    if training.dataset_weights is not None and sources > 1:
        check_weights(training.dataset_weights, sources)
    if sources < 2 and (training.dataset_weights is not None or training.source_batches != "mixed"):
        option = "--source_batches by_source" if training.dataset_weights is None else "--dataset_weights"
        raise ValueError(f"{option} is of several sources, and the training data has one. Leave it out.")


def ready_cache(data: DataArguments, training: AdaptorTrainingArguments) -> EmbeddingCache:
    """The cache that the options name; several of them as one."""
    opened = [open_together(path, FileChecks(data.check), Ranks()) for path in several(data.cache)]
    check_private_cache(one for cache in opened for one in cache.modality_manifests().values())
    cache = join_caches(opened, one_namespace=data.id_namespace is not None)
    check_best_metric(training, cache.source_names)
    check_weights_of(training, max(1, len(cache.source_names)))
    return cache


def cache_of_pairs(
    pairs: TrainingPairs | EmbeddingCache,
    data: DataArguments,
    model: ModelArguments,
    training: AdaptorTrainingArguments,
) -> EmbeddingCache:
    """A ready cache as it is, or that of the pairs of a table: every image and report through its tower once."""
    if isinstance(pairs, EmbeddingCache):
        return pairs
    check_labels(model.objective.made, pairs.dataset.column_names)
    ranks = Ranks()
    folder = ranks.on_main(lambda: place_of_cache(training.output_dir, data.cache_dir))
    rebuild = data.rebuild
    if rebuild and training.resume_from_checkpoint:
        logger.info("--rebuild: the run that is resumed has begun on embeddings made anew, which are used.")
        rebuild = False
    return embed_pairs(pairs, data, model, folder, device=training.device, rebuild=rebuild)


def terms_of_sources(
    terms: dict[str, str] | None, cache: EmbeddingCache, training: AdaptorTrainingArguments
) -> dict[str, str] | None:
    """
    Terms with those of the sources that a ready cache names. A push asks for consent to all of them.

    Raises:
        PermissionError: a push is asked for, and the terms are not said to allow it.
    """
    found = (terms or {}) | (restricted_terms(*cache.source_names) or {})
    if training.push_to_hub:
        check_consent(found, training.accept_data_terms)
    return found or None


def parts_of_run(
    cache: EmbeddingCache,
    pairs: TrainingPairs | EmbeddingCache,
    data: DataArguments,
    run: RunArguments,
    training: AdaptorTrainingArguments,
) -> tuple[EmbeddingCache, dict[str, EmbeddingCache]]:
    """
    The cache without copies, if so asked, and its parts `train`, `validation`, `test`; arguments are fitted to them,
    and `training_rows.safetensors` names the rows that the model will be trained and chosen on.

    Raises:
        ValueError: too few training pairs, or no validation part to choose controls on.
    """
    cache = without_copies(cache, data.duplicates)
    parts = contrastive_splits(cache)
    fit_batch_to_data(training, len(parts["train"]))
    if "validation" not in parts:
        if run.controls:
            raise ValueError("--controls chooses learning rates and epochs on a validation split, and there is none.")
        logger.warning("There is no validation split: no evaluation, and the last checkpoint is kept, not the best.")
        training.eval_strategy, training.load_best_model_at_end = "no", False
    if training.process_index == 0:
        owner = data.id_namespace or (None if cache.source_names else data.dataset_name)
        of_table = pairs if isinstance(pairs, TrainingPairs) else None
        record_training_rows(training.output_dir, parts, of_table, owner)
    return cache, parts


__all__ = [
    "cache_of_pairs",
    "check_before_start",
    "parts_of_run",
    "ready_cache",
    "start_logging",
    "terms_of_sources",
]
