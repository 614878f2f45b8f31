"""
Evaluate an Adaptor: data -> cached features -> heads or prompts -> predictions and results, beside their controls.

    python train_downstream.py --task classification --model outputs/run --table labels.csv --label_column effusion \
        --patient_column subject_id --fraction 0.01 0.1 1.0 --output_dir outputs/effusion
    python train_downstream.py --recipe rsna --model outputs/run --data_root /data/rsna

Installed, it is also the command adaptor-downstream.
"""

import logging
import os

import datasets
import torch
import transformers

from adaptor_hf.audit.manifest import files_before, refuse_folder_of, write_downstream_manifest
from adaptor_hf.privacy.gate import guarded, knows
from adaptor_hf.privacy.mode import start_private_mode
from adaptor_hf.progress import no_bars_in_a_log
from adaptor_hf.tasks.arguments import parse_arguments, path_arguments
from adaptor_hf.tasks.early_checks import check_before_start
from adaptor_hf.tasks.loading import cache_dir_of, used_models
from adaptor_hf.tasks.run import run_job
from adaptor_hf.training.interruption import run_script
from adaptor_hf.training.run_folder import requeue_file

logger = logging.getLogger("train_downstream")


def only_process() -> bool:
    """
    Whether this is the process that works. Heads are small: of several that a launcher starts, the first does all, as
    if it were alone.
    """
    rank = int(os.environ.get("RANK", "0"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return rank == 0


@guarded(knows("ids, as keyed hashes, reports, places and columns; it needs a key file"))
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if not only_process():
        return
    start_private_mode(options, path_arguments(options))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("adaptor_hf", logger.name):
        logging.getLogger(name).setLevel(logging.INFO)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    no_bars_in_a_log()
    refuse_folder_of("train_downstream", options.output_dir)
    before = files_before(options.output_dir)
    check_before_start(options)
    with requeue_file(options.output_dir):
        run_job(options, options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        write_downstream_manifest(
            options.output_dir, used_models(options), cache_dir_of(options), options.table, before, check=options.check
        )


def start() -> None:
    """Entry point of the command: `main`, with the exit status that a job script expects."""
    run_script(main, "Go on with the same command: finished runs and embeddings are kept.")


if __name__ == "__main__":
    start()
