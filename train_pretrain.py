"""
Pre-train an Adaptor on image-report pairs: table -> embedding cache -> Trainer -> retrieval -> checkpoint and card.

    python train_pretrain.py --vision_tower dinov2-b --text_tower biobert --train_file pairs.csv \
        --image_column path --text_column report --patient_column subject_id --output_dir outputs/run
    accelerate launch --config_file "$(python -m adaptor_hf.configs two_t4)" -m train_pretrain --recipe paper ...

Installed, it is also the command adaptor-pretrain.
"""

import logging

from transformers import set_seed

from adaptor_hf.audit.manifest import refuse_folder_of, write_pretraining_manifest
from adaptor_hf.audit.run_record import RunRecord
from adaptor_hf.evaluation.aligners import system_name
from adaptor_hf.privacy.gate import guarded, knows
from adaptor_hf.privacy.mode import start_private_mode
from adaptor_hf.training import AdaptorTrainer
from adaptor_hf.training.curves import draw_curves
from adaptor_hf.training.dry_run import dry_run
from adaptor_hf.training.interruption import deferred_signals, run_script
from adaptor_hf.training.live_source import live_arguments, live_parts, make_model, names_of_data
from adaptor_hf.training.needs import with_needs
from adaptor_hf.training.pair_cache import options_beside_cache
from adaptor_hf.training.pairs import load_training_pairs
from adaptor_hf.training.plan import kept_epoch, plan_run
from adaptor_hf.training.preparation import (
    cache_of_pairs,
    check_before_start,
    parts_of_run,
    ready_cache,
    start_logging,
    terms_of_sources,
)
from adaptor_hf.training.report import last_words, processor_of, report_run
from adaptor_hf.training.run_folder import run_folder
from adaptor_hf.training.script_arguments import Arguments, parse_arguments, path_arguments
from adaptor_hf.training.summary import describe_run
from adaptor_hf.training.trained_towers import embed_held_out, finish_towers

logger = logging.getLogger("train_pretrain")


@guarded(knows("ids, as keyed hashes, reports, places and columns; it needs a key file"))
def main(arguments: list[str] | None = None) -> None:
    record = RunRecord()
    _, _, run, training = groups = parse_arguments(arguments)
    start_private_mode(run, path_arguments(*groups))
    start_logging(training, logger.name)
    refuse_folder_of("train_pretrain", training.output_dir)
    terms = check_before_start(*groups)
    set_seed(training.seed)
    if run.dry_run:
        print(dry_run(arguments, *groups))
        return
    with run_folder(training.output_dir, training.take_over):
        pretrain(record, arguments, groups, terms)


def pretrain(record: RunRecord, words: list[str] | None, groups: Arguments, terms: dict[str, str] | None) -> None:
    """The run itself, in a folder that is its own."""
    data, model_arguments, run, training = groups
    with record.phase("cache"):
        # Data: the table's pairs of an image and a report, or a ready cache of them; then the plan, with its recipe.
        pairs = ready_cache(data, model_arguments, training) if data.cache else load_training_pairs(data, run)
        plan, model_arguments = plan_run(words, pairs, data, model_arguments, training)

        # Cache: every image and report goes through its tower once, as it is before a step.
        cache = cache_of_pairs(pairs, data, model_arguments, training)
    cache, parts = parts_of_run(cache, pairs, data, run, training)
    terms = terms_of_sources(terms, cache, training)

    # Model: the Adaptor, whose config names the towers, and those of them that train.
    known = {"data_terms": terms, "split_rule": None if data.cache else pairs.rule.to_dict()}
    # Towers that were loaded have drawn numbers: a run that finds its embeddings starts from the same weights.
    set_seed(training.seed)
    model = make_model(model_arguments, cache, training.device, names=names_of_data(data), **known)
    objective = model_arguments.make_objective()

    # Objective: what is minimised, over the pairs of all processes; from the cache, or live where a tower trains.
    read = live_parts(parts, pairs, model, objective, data, model_arguments, training)
    trainer = AdaptorTrainer(
        model=model,
        args=live_arguments(model_arguments, training),
        objective=objective,
        train_dataset=read["train"],
        eval_dataset=read.get("validation"),
        processing_class=processor_of(model.config),
    )
    logger.info(describe_run(trainer, cache, parts, plan.pairs))

    # Train. A signal during the last save waits for its end.
    with deferred_signals(), record.phase("train"):
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        finish_towers(model, model_arguments)
        # An internal call does not push: the card is not there yet.
        trainer.save_model(_internal_call=True)
        trainer.save_state()

    # Report: once on the test split if there is one, beside the controls if asked. All ranks train the controls.
    minimised = model_arguments.objective_record()
    with record.phase("evaluate"):
        towers = embed_held_out(parts, cache, pairs, plan.trained, data, model_arguments, training, **known)
        report_run(
            model,
            training,
            cache,
            # Tokens, too, where objective or aligner needs them.
            with_needs(trainer.objective, parts, model.config),
            dataset_name=data.dataset_name,
            learning_rates=(run.learning_rate_grid or [training.learning_rate]) if run.controls else None,
            objective=minimised,
            make_objective=model_arguments.make_objective,
            recipe=plan.recipe.name,
            towers=towers,
        )
    address = trainer.push_to_hub() if training.push_to_hub else None
    if trainer.is_world_process_zero():
        validation, name = parts.get("validation"), system_name("adaptor", model.config.aligner)
        options, history = (data, model_arguments, run), trainer.state.log_history
        record.write(trainer, options, cache, objective=minimised, recipe=plan.recipe.to_dict(), towers=towers)
        draw_curves(training.output_dir, history, training.global_batch_size, validation, name)
        held_out = None if towers is None else towers.held_out
        write_pretraining_manifest(training.output_dir, cache, data.train_file, held_out)
        kept, more = kept_epoch(trainer, validation), plan.recipe.options() | options_beside_cache(data)
        print(
            last_words(
                training.output_dir, cache, built=not data.cache, address=address, more=more, kept=kept, towers=towers
            )
        )


def start() -> None:
    """Entry point of the command: `main`, with the exit status that a job script expects."""
    run_script(main)


if __name__ == "__main__":
    start()
