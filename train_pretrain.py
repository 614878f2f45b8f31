"""
Pre-train an Adaptor on image-report pairs: table -> embedding cache -> Trainer -> retrieval -> checkpoint and card.

    python train_pretrain.py --vision_tower dinov2-b --text_tower biobert --train_file pairs.csv \
        --image_column path --text_column report --patient_column subject_id --output_dir outputs/run
    accelerate launch --config_file "$(python -m adaptor_hf.configs two_t4)" -m train_pretrain --recipe paper ...

Installed, it is also the command adaptor-pretrain.
"""

import logging

from transformers import set_seed

from adaptor_hf import AdaptorModel
from adaptor_hf.audit.manifest import refuse_folder_of, write_pretraining_manifest
from adaptor_hf.audit.run_record import RunRecord, last_evaluation
from adaptor_hf.evaluation.aligners import system_name
from adaptor_hf.privacy.gate import guarded, knows
from adaptor_hf.privacy.mode import start_private_mode
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.curves import draw_curves
from adaptor_hf.training.dry_run import estimate_run
from adaptor_hf.training.interruption import deferred_signals, run_script
from adaptor_hf.training.needs import with_needs
from adaptor_hf.training.pair_cache import options_beside_cache
from adaptor_hf.training.pairs import load_training_pairs, record_training_rows
from adaptor_hf.training.plan import describe_plan, kept_epoch, pairs_of, parts_of_cache, parts_of_table
from adaptor_hf.training.preparation import (
    cache_of_pairs,
    check_before_start,
    parts_of_run,
    start_logging,
    terms_of_sources,
)
from adaptor_hf.training.recipe_choice import choose_recipe
from adaptor_hf.training.report import last_words, processor_of, report_run
from adaptor_hf.training.run_folder import run_folder
from adaptor_hf.training.script_arguments import (
    DataArguments,
    ModelArguments,
    RunArguments,
    parse_arguments,
    path_arguments,
)
from adaptor_hf.training.summary import describe_run
from adaptor_hf.training.terms import last_terms

logger = logging.getLogger("train_pretrain")


@guarded(knows("ids, as keyed hashes, reports, places and columns; it needs a key file"))
def main(arguments: list[str] | None = None) -> None:
    record = RunRecord()
    data, model_arguments, run, training = parse_arguments(arguments)
    start_private_mode(run, path_arguments(data, model_arguments, run, training))
    start_logging(training, logger.name)
    refuse_folder_of("train_pretrain", training.output_dir)
    terms = check_before_start(data, model_arguments, run, training)
    set_seed(training.seed)
    if run.dry_run:
        pairs = load_training_pairs(data, run).dataset
        recipe, model_arguments = choose_recipe(arguments, pairs_of(parts_of_table(pairs)), model_arguments, training)
        print(f"{recipe.describe()}\n{estimate_run(pairs, data, model_arguments, training)}")
        return
    with run_folder(training.output_dir, training.take_over):
        pretrain(record, arguments, data, model_arguments, run, training, terms)


def pretrain(
    record: RunRecord,
    words: list[str] | None,
    data: DataArguments,
    model_arguments: ModelArguments,
    run: RunArguments,
    training: AdaptorTrainingArguments,
    terms: dict[str, str] | None,
) -> None:
    """The run itself, in a folder that is its own."""
    # Load: pairs of an image and a report, but for a ready cache, which holds them.
    with record.phase("cache"):
        pairs = None if data.cache else load_training_pairs(data, run)
        cache = cache_of_pairs(None, data, model_arguments, training) if pairs is None else None

        # Plan: the recipe where none is named, and what is to come.
        counted = parts_of_cache(cache) if pairs is None else parts_of_table(pairs.dataset)
        recipe, model_arguments = choose_recipe(words, pairs_of(counted), model_arguments, training)
        logger.info(describe_plan(counted, recipe, data, model_arguments, training))

        # Cache: every image and report goes through its frozen tower once.
        if cache is None:
            cache = cache_of_pairs(pairs, data, model_arguments, training)
    cache, parts = parts_of_run(cache, data, run, training)
    if training.process_index == 0:
        owner = data.id_namespace or (None if cache.source_names else data.dataset_name)
        record_training_rows(training.output_dir, parts, pairs, owner)

    terms = terms_of_sources(terms, cache, training)

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
    logger.info(describe_run(model, training, cache, parts))

    # Objective: what is minimised, over the pairs of all processes.
    trainer = AdaptorTrainer(
        model=model,
        args=training,
        objective=model_arguments.make_objective(),
        train_dataset=parts["train"],
        eval_dataset=parts.get("validation"),
        processing_class=processor_of(config),
    )

    # Train. A signal during the last save waits for its end.
    with deferred_signals(), record.phase("train"):
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        # An internal call does not push: the card is not there yet.
        trainer.save_model(_internal_call=True)
        trainer.save_state()

    minimised = model_arguments.objective_record()
    # Report: once on the test split if there is one, beside the controls if asked. All ranks train the controls.
    rates = (run.learning_rate_grid or [training.learning_rate]) if run.controls else None
    # The model reads here what it has read in training: tokens, too, where the objective needs them.
    read = {name: with_needs(trainer.objective, part) for name, part in parts.items()}
    with record.phase("evaluate"):
        named = {"dataset_name": data.dataset_name, "recipe": recipe.name, "objective": minimised}
        named["make_objective"] = model_arguments.make_objective
        report_run(model, training, cache, read, learning_rates=rates, **named)
    address = trainer.push_to_hub() if training.push_to_hub else None
    if trainer.is_world_process_zero():
        history, options = trainer.state.log_history, (data, model_arguments, run)
        known = {"objective": minimised, "terms": last_terms(history), "recipe": recipe.to_dict()}
        record.write(training, options, cache, model, last_evaluation(history), **known)
        name = system_name("adaptor", config.aligner)
        draw_curves(training.output_dir, history, training.global_batch_size, parts.get("validation"), name)
        write_pretraining_manifest(training.output_dir, cache, data.train_file)
        kept = kept_epoch(trainer, parts.get("validation"))
        built, more = data.cache is None, recipe.options() | options_beside_cache(data)
        print(last_words(training.output_dir, cache, built=built, address=address, more=more, kept=kept))


def start() -> None:
    """Entry point of the command: `main`, with the exit status that a job script expects."""
    run_script(main)


if __name__ == "__main__":
    start()
