"""
Pre-train an Adaptor on image-report pairs: table -> embedding cache -> Trainer -> retrieval -> checkpoint and card.

    python train_pretrain.py --vision_tower dinov2-b --text_tower biobert --train_file pairs.csv \
        --image_column path --text_column report --patient_column subject_id --output_dir outputs/run
    accelerate launch --config_file "$(python -m adaptor_hf.configs two_t4)" -m train_pretrain --recipe paper ...

Installed, it is also the command adaptor-pretrain.
"""

import logging
import sys
from pathlib import Path

import transformers
from transformers import set_seed

from adaptor_hf import AdaptorModel
from adaptor_hf.audit.manifest import write_pretraining_manifest
from adaptor_hf.audit.run_record import RunRecord, last_evaluation
from adaptor_hf.data.duplicates import without_copies
from adaptor_hf.data.terms import check_consent, restricted_terms
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.privacy.mode import check_private_cache, start_private_mode
from adaptor_hf.tower_bundles_adaptor import use_towers_dir
from adaptor_hf.training import AdaptorTrainer
from adaptor_hf.training.checkpoints import find_checkpoint
from adaptor_hf.training.dry_run import estimate_run
from adaptor_hf.training.interruption import deferred_signals, run_script
from adaptor_hf.training.pairs import contrastive_splits, load_training_pairs, record_training_rows
from adaptor_hf.training.recipe import check_together, parse_arguments, path_arguments
from adaptor_hf.training.report import processor_of, report_run
from adaptor_hf.training.summary import describe_run, environment_warnings, fit_batch_to_data

logger = logging.getLogger("train_pretrain")


def main(arguments: list[str] | None = None) -> None:
    record = RunRecord()
    data, model_arguments, run, training = parse_arguments(arguments)
    start_private_mode(run, path_arguments(data, model_arguments, run, training))
    # Ours at INFO, other libraries' at WARNING: a hub client logs every request. Other ranks only say what ends them.
    logging.basicConfig(level=logging.WARNING if training.should_log else logging.ERROR, format="%(message)s")
    for name in ("adaptor_hf", logger.name):
        logging.getLogger(name).setLevel(logging.INFO if training.should_log else logging.ERROR)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    # A bar that cannot overwrite itself fills a log file with its copies.
    training.disable_tqdm = training.disable_tqdm or not sys.stderr.isatty()
    for problem in environment_warnings():
        logger.warning(problem)
    check_together(data, model_arguments, run, training)
    if model_arguments.towers_dir:
        use_towers_dir(model_arguments.towers_dir)
    terms = restricted_terms(data.dataset, data.dataset_name)
    if training.push_to_hub:
        # Now rather than after the training.
        check_consent(terms, training.accept_data_terms)
    if training.resume_from_checkpoint:
        # Now rather than after the extraction.
        training.resume_from_checkpoint = str(find_checkpoint(training.output_dir, training.resume_from_checkpoint))
    set_seed(training.seed)

    # Data: every image and report goes through its frozen tower once.
    if run.dry_run:
        print(estimate_run(load_training_pairs(data, run).dataset, data, model_arguments, training))
        return
    pairs = None
    with record.phase("cache"):
        if data.cache:
            cache = open_cache(data.cache)
            check_private_cache(cache.modality_manifests().values())
        else:
            pairs = load_training_pairs(data, run)
            cache = build_cache(
                pairs.dataset,
                vision_tower=model_arguments.vision_tower,
                text_tower=model_arguments.text_tower,
                cache_dir=data.cache_dir or Path(training.output_dir) / "embeddings",
                batch_size=data.extraction_batch_size,
                max_text_length=data.max_text_length,
                device=training.device,
                image_store=data.image_store,
                image_store_size=data.image_store_size,
            )
    cache = without_copies(cache, data.duplicates)
    views = contrastive_splits(cache)
    train, validation = views["train"], views.get("validation")
    fit_batch_to_data(training, len(train))
    if validation is None:
        if run.controls:
            raise ValueError("--controls chooses learning rates and epochs on a validation split, and there is none.")
        logger.warning("There is no validation split: no evaluation, and the last checkpoint is kept, not the best.")
        training.eval_strategy, training.load_best_model_at_end = "no", False

    if training.process_index == 0:
        record_training_rows(training.output_dir, views, pairs, data.id_namespace or data.dataset_name)

    # Model: the Adaptor alone; its config names the towers.
    config = model_arguments.config(
        vision_hidden_size=cache.vision_spec["hidden_size"],
        text_hidden_size=cache.text_spec["hidden_size"],
        vision_tower=cache.vision_spec,
        text_tower=cache.text_spec,
        data_terms=terms,
        split_rule=pairs.rule.to_dict() if pairs else None,
    )
    model = AdaptorModel(config)
    logger.info(describe_run(model, training, cache, views))

    trainer = AdaptorTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor_of(config),
    )
    # A signal during the last save waits for its end.
    with deferred_signals(), record.phase("train"):
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        # An internal call does not push: the card is not there yet.
        trainer.save_model(_internal_call=True)
        trainer.save_state()

    # Evaluation: once on the test split if there is one, beside the controls if asked. All ranks train the controls.
    rates = (run.learning_rate_grid or [training.learning_rate]) if run.controls else None
    with record.phase("evaluate"):
        report_run(model, training, cache, views, dataset_name=data.dataset_name, learning_rates=rates)
    address = trainer.push_to_hub() if training.push_to_hub else None
    if trainer.is_world_process_zero():
        record.write(training, (data, model_arguments, run), cache, model, last_evaluation(trainer.state.log_history))
        write_pretraining_manifest(training.output_dir, cache, data.train_file)
        print(f"Model: {training.output_dir}" + (f"\nPushed: {address}" if address else ""))


def start() -> None:
    """Entry point of the command: `main`, with the exit status that a job script expects."""
    run_script(main)


if __name__ == "__main__":
    start()
