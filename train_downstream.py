"""
Evaluate an Adaptor: data -> cached features -> heads or prompts -> predictions and results, beside their controls.

    python train_downstream.py --task classification --model outputs/run --table labels.csv --label_column effusion \
        --patient_column subject_id --fraction 0.01 0.1 1.0 --output_dir outputs/effusion
    python train_downstream.py configs/recipes/downstream/rsna.yaml --model outputs/run --data_root /data/rsna
"""

import logging

import datasets
import torch
import transformers

from adaptor_hf.downstream.arguments import DownstreamArguments, pairs_of, parse_arguments
from adaptor_hf.downstream.classification import RunList, embed_labelled, run_classification
from adaptor_hf.downstream.loading import (
    cache_dir_of,
    load_adaptor,
    load_classification,
    load_external,
    vision_tower_of,
)
from adaptor_hf.downstream.modules import load_modules
from adaptor_hf.downstream.provenance import tower_name
from adaptor_hf.downstream.recipes import get_recipe
from adaptor_hf.downstream.summary import summarize
from adaptor_hf.training.interruption import run_script

logger = logging.getLogger("train_downstream")


def classification(arguments: DownstreamArguments, device: str) -> RunList:
    data = load_classification(arguments)
    model = load_adaptor(arguments)
    options = {"batch_size": arguments.extraction_batch_size, "device": device}
    tower, cache_dir = vision_tower_of(arguments, model), cache_dir_of(arguments)
    embedded = embed_labelled(data, tower, cache_dir, **options)
    external = [embed_labelled(other, tower, cache_dir, **options) for other in load_external(arguments)]
    modules = load_modules(
        model,
        arguments.controls,
        pairs_of(arguments.control_model),
        num_logits=data.num_logits,
        device=device,
    )
    return run_classification(
        embedded,
        modules,
        get_recipe(arguments.recipe, arguments.dataset, arguments.head),
        arguments.output_dir,
        fractions=arguments.fraction,
        seeds=arguments.seeds,
        external=external,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
        device=device,
    )


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("adaptor_hf", logger.name):
        logging.getLogger(name).setLevel(logging.INFO)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tasks = {"classification": classification}
    print(summarize(tasks[options.task](options, device)))


if __name__ == "__main__":
    run_script(main)
