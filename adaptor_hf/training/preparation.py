"""What a pre-training run does before it trains: its log, what is checked before hours of work, its cache and parts."""

import logging
import sys

import transformers

from ..data.duplicates import without_copies
from ..data.terms import check_consent, restricted_terms
from ..embeddings import EmbeddingCache
from ..embeddings.digests import FileChecks
from ..embeddings.place import place_of_cache
from ..embeddings.ranks import Ranks
from ..embeddings.reader import open_together
from ..privacy.mode import check_private_cache
from ..progress import no_bars_in_a_log
from .arguments import AdaptorTrainingArguments
from .checkpoints import find_checkpoint
from .early_checks import check_best_metric, check_optimizer, check_trackers
from .pair_cache import check_sources, embed_pairs
from .pairs import TrainingPairs, contrastive_splits
from .script_arguments import DataArguments, ModelArguments, RunArguments, check_together
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
    check_sources(data, model)
    check_trackers(training.report_to)
    check_best_metric(training)
    check_optimizer(training)
    terms = restricted_terms(data.dataset, data.dataset_name)
    if training.push_to_hub:
        check_consent(terms, training.accept_data_terms)
    if training.resume_from_checkpoint:
        training.resume_from_checkpoint = str(find_checkpoint(training.output_dir, training.resume_from_checkpoint))
    return terms


def cache_of_pairs(
    pairs: TrainingPairs | None, data: DataArguments, model: ModelArguments, training: AdaptorTrainingArguments
) -> EmbeddingCache:
    """The cache that the options name, or else the pairs' own: every image and report through its tower once."""
    if pairs is None:
        cache = open_together(data.cache, FileChecks(data.check), Ranks())
        check_private_cache(cache.modality_manifests().values())
        return cache
    ranks = Ranks()
    folder = ranks.on_main(lambda: place_of_cache(training.output_dir, data.cache_dir))
    rebuild = data.rebuild
    if rebuild and training.resume_from_checkpoint:
        logger.info("--rebuild: the run that is resumed has begun on embeddings made anew, which are used.")
        rebuild = False
    return embed_pairs(pairs, data, model, folder, device=training.device, rebuild=rebuild)


def parts_of_run(
    cache: EmbeddingCache, data: DataArguments, run: RunArguments, training: AdaptorTrainingArguments
) -> tuple[EmbeddingCache, dict[str, EmbeddingCache]]:
    """
    The cache without copies, if so asked, and its parts `train`, `validation`, `test`; arguments are fitted to them.

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
    return cache, parts


__all__ = ["cache_of_pairs", "check_before_start", "parts_of_run", "start_logging"]
