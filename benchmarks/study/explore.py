"""
Why: settings of the Adaptor and of the projections, each scored on training patients it was not trained on.

    ADAPTOR_REALBENCH=FOLDER python benchmarks/study/explore.py --output_dir study-output
    python benchmarks/study/explore.py --output_dir study-output --phantoms 300 1000 3000

Folds by patient, one training a fold and setting, no early stopping. The test part of the sample is never scored, and
nothing here is a test: many settings are looked at. `--phantoms` asks the same of drawn radiographs, by number of
pairs, with one set of held-out patients.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from confirm import PROTOCOL, pair_cache
from torch.utils.data import Dataset
from transformers import set_seed

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.embeddings import EmbeddingCache
from adaptor_hf.evaluation import Predictions, chance_recall, retrieval_metrics, retrieval_predictions
from adaptor_hf.evaluation.scoring import values_under_weights
from adaptor_hf.evaluation.statistics import interval_of, resampled_weights
from adaptor_hf.layers_adaptor import AdaptorLayer
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import patients_of
from adaptor_hf.training.pairs import contrastive_splits

NUM_RESAMPLES = 2000
HELD_OUT = 400
PATIENT_MARGIN = 20
"""Rows beyond, for patients that reach into the held-out rows."""


@dataclass
class Setting:
    """
    What differs from the default: the Adaptor, small.yaml's epochs and batch, rate 3e-4.

    Args:
        name (`str`): In the table.
        config, training (`dict`): Fields of `AdaptorConfig` and `AdaptorTrainingArguments`.
        inputs (`str`): `plain`, or `standardized` by the training rows.
        pooling (`str`): `mean` (both towers' own), `image max` or `text cls`.
        start (`str`): `default`, or `as projections`: the layers' branches start at zero.
        skip (`bool`): Add what enters the layers to what leaves them.
        share (`float`): Of the training patients.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    inputs: str = "plain"
    pooling: str = "mean"
    start: str = "default"
    skip: bool = False
    share: float = 1.0


LINEAR = {"num_hidden_layers": 0}


def rate(value: float, **others: Any) -> dict[str, Any]:
    return {"learning_rate": value, **others}


def settings() -> list[Setting]:
    """The list, what matters most first: each is kept as it is done."""
    found = [Setting(f"projections, rate {value:g}", LINEAR, rate(value)) for value in (1e-4, 3e-4, 1e-3, 3e-3)]
    found += [Setting(f"Adaptor, rate {value:g}", {}, rate(value)) for value in (1e-4, 3e-4, 1e-3)]
    found += [
        Setting("Adaptor, skip over all layers", {}, rate(3e-4), skip=True),
        Setting("Adaptor, starts as projections", {}, rate(3e-4), start="as projections"),
        Setting("Adaptor, 10 epochs", {}, rate(3e-4, num_train_epochs=10)),
    ]
    for share in (0.25, 0.5):
        found += [Setting(f"projections, {share:.0%} of patients", LINEAR, rate(1e-3), share=share)]
        found += [Setting(f"Adaptor, {share:.0%} of patients", {}, rate(3e-4), share=share)]
    for epochs in (10, 100):
        found += [Setting(f"projections, {epochs} epochs", LINEAR, rate(1e-3, num_train_epochs=epochs))]
    for temperature in (0.02, 0.2):
        scale = {"logit_scale_init_value": float(np.log(1 / temperature))}
        found += [Setting(f"projections, temperature {temperature:g}", LINEAR | scale, rate(1e-3))]
        found += [Setting(f"Adaptor, temperature {temperature:g}", scale, rate(3e-4))]
    found += [
        Setting("projections, image max pooling", LINEAR, rate(1e-3), pooling="image max"),
        Setting("projections, text cls pooling", LINEAR, rate(1e-3), pooling="text cls"),
        Setting("projections, standardised inputs", LINEAR, rate(1e-3), inputs="standardized"),
        Setting("Adaptor, text cls pooling", {}, rate(3e-4), pooling="text cls"),
        Setting("Adaptor, image max pooling", {}, rate(3e-4), pooling="image max"),
        Setting("Adaptor, one layer", {"num_hidden_layers": 1}, rate(3e-4)),
        Setting("Adaptor, rate 2e-05", {}, rate(2e-5)),
    ]
    return found


class Pairs(Dataset):
    """Rows of two arrays of embeddings, as AdaptorTrainer reads them."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor, text_rows: torch.Tensor):
        self.columns = {"image_embeds": image, "text_embeds": text, "text_row": text_rows}

    def __len__(self) -> int:
        return len(self.columns["text_row"])

    def __getitems__(self, rows) -> dict[str, torch.Tensor]:
        return {name: values[torch.as_tensor(rows)] for name, values in self.columns.items()}


class SkippedLayers(torch.nn.ModuleList):
    """Layers whose sum with what entered the first one is returned."""

    def __iter__(self):
        *first, last = super().__iter__()
        kept = []

        def enter(layer):
            return lambda states, *rest: (kept.append(states), layer(states, *rest))[1]

        def leave(layer):
            def run(states, *rest):
                states, weights = layer(states, *rest)
                return states + kept.pop(), weights

            return run

        yield enter(first[0])
        yield from first[1:]
        yield leave(last)


def new_model(setting: Setting, image_width: int, text_width: int, seed: int) -> AdaptorModel:
    set_seed(seed)
    model = AdaptorModel(AdaptorConfig(vision_hidden_size=image_width, text_hidden_size=text_width, **setting.config))
    if setting.start == "as projections":
        for layer in (module for module in model.modules() if isinstance(module, AdaptorLayer)):
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    if setting.skip:
        model.shared_encoder.layers = SkippedLayers(model.shared_encoder.layers)
    return model


def train(setting: Setting, pairs: Pairs, seed: int, output: Path, batch: int, epochs: int) -> AdaptorModel:
    model = new_model(setting, pairs.columns["image_embeds"].shape[1], pairs.columns["text_embeds"].shape[1], seed)
    options = {"num_train_epochs": epochs, "global_batch_size": batch} | setting.training
    options["global_batch_size"] = min(options["global_batch_size"], len(pairs))
    arguments = AdaptorTrainingArguments(
        str(output / "unused"), seed=seed, use_cpu=True, save_strategy="no", eval_strategy="no", disable_tqdm=True,
        load_best_model_at_end=False, report_to=[], **options,
    )  # fmt: skip
    AdaptorTrainer(model=model, args=arguments, train_dataset=pairs, quiet=True).train()
    return model.eval()


@torch.no_grad()
def score(model: AdaptorModel, pairs: Pairs, patients: np.ndarray) -> Predictions:
    columns = pairs.columns
    image = model.get_image_features(image_embeds=columns["image_embeds"]).pooler_output
    text = model.get_text_features(text_embeds=columns["text_embeds"]).pooler_output
    _, ranks = retrieval_metrics(image, text, columns["text_row"])
    return retrieval_predictions(range(len(pairs)), [str(patient) for patient in patients], ranks, columns["text_row"])


def max_pooled(cache: EmbeddingCache, protocol: dict, output: Path) -> torch.Tensor:
    """`(n, D)`: the highest value of each channel over the image, in place of the mean."""
    from sample import pairs_table

    from adaptor_hf.towers import load_vision_tower

    kept = output / "image_max.npy"
    if not kept.is_file():
        tower = load_vision_tower(protocol["towers"]["vision"])
        images = dict(zip((table := pairs_table(protocol))["image_id"][:], range(len(table)), strict=True))
        found = []
        for name in cache.pairs["image_id"][:]:
            pixels = tower.processor(table[images[name]]["image"], return_tensors="pt")
            with torch.no_grad():
                found.append(tower(**pixels).last_hidden_state.amax(1)[0])
        np.save(kept, torch.stack(found).numpy())
    return torch.from_numpy(np.load(kept))


def features(cache: EmbeddingCache, protocol: dict, output: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pooling to the arrays of image and text embeddings of a view."""
    from sample import pairs_table

    from adaptor_hf.embeddings import build_cache
    from adaptor_hf.towers import load_text_tower

    image, text = cache.image_embeddings().float(), cache.text_embeddings().float()
    table, towers = pairs_table(protocol), protocol["towers"]
    other = build_cache(table, towers["vision"], load_text_tower(towers["text"], pooling="cls"), output / "embeddings")
    row_of = {name: row for row, name in enumerate(other.pairs["image_id"][:])}
    rows = [row_of[name] for name in cache.pairs["image_id"][:]]
    cls = other.select(rows).text_embeddings().float()
    return {"mean": (image, text), "text cls": (image, cls), "image max": (max_pooled(cache, protocol, output), text)}


def real_pairs(protocol: dict, output: Path) -> EmbeddingCache:
    """Training patients with a note, those that confirm.py validates on among them; no row of the test part."""
    cache = pair_cache(protocol, output).paired()
    splits = np.array(cache.pairs["split"][:])
    contrastive_splits(cache)
    return cache.select(np.flatnonzero(splits != "test"))


def patient_folds(patients: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows to score, of each fold; no patient is in both."""
    from sklearn.model_selection import KFold

    codes = np.unique(patients)
    return [
        tuple(np.flatnonzero(np.isin(patients, codes[part])) for part in parts)
        for parts in KFold(folds, shuffle=True, random_state=0).split(codes)
    ]


def run_folds(setting: Setting, arrays: tuple, text_rows: torch.Tensor, patients: np.ndarray, folds: list,
              output: Path, batch: int, epochs: int) -> list[Predictions]:  # fmt: skip
    """Predictions of each held-out fold."""
    found = []
    for seed, (inside, outside) in enumerate(folds):
        if setting.share < 1:
            kept = np.unique(patients[inside])
            kept = np.random.default_rng(seed).permutation(kept)[: round(setting.share * len(kept))]
            inside = inside[np.isin(patients[inside], kept)]
        image, text = arrays
        if setting.inputs == "standardized":
            image, text = (
                (side - side[inside].mean(0)) / side[inside].std(0).clamp(min=1e-6) for side in (image, text)
            )
        model = train(setting, Pairs(image[inside], text[inside], text_rows[inside]), seed, output, batch, epochs)
        found.append(score(model, Pairs(image[outside], text[outside], text_rows[outside]), patients[outside]))
    return found


def draws_of(folds: list[Predictions]) -> tuple[float, np.ndarray]:
    """Mean recall, averaged over folds, and its draws over patients (the same for all settings)."""
    points, draws = [], []
    for seed, predictions in enumerate(folds):
        function = values_under_weights(predictions)
        points.append(function(np.ones((1, len(predictions))))["mean_recall"][0])
        resampled = resampled_weights(predictions.patients, NUM_RESAMPLES, seed)
        draws.append(np.concatenate([function(weights)["mean_recall"] for weights in resampled]))
    return float(np.mean(points)), np.mean(draws, axis=0)


def explore(name: str, todo: list[Setting], arrays: dict, text_rows: torch.Tensor, patients: np.ndarray, output: Path,
            *, folds: list, batch: int, epochs: int, against: str) -> None:  # fmt: skip
    """Score every setting, print it beside the reference setting `against`, keep what is done."""
    path = output / f"explore-{name}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    reference = None
    for setting in sorted(todo, key=lambda setting: setting.name != against):
        if setting.name in done and reference is not None:
            continue
        predictions = run_folds(setting, arrays[setting.pooling], text_rows, patients, folds, output, batch, epochs)
        value, draws = draws_of(predictions)
        reference = reference or (value, draws)
        done[setting.name] = {
            "mean_recall": value,
            "interval": interval_of(draws),
            "difference": value - reference[0],
            "difference_interval": interval_of(draws - reference[1]),
        }
        path.write_text(json.dumps(done, indent=1) + "\n")
        print(name, setting.name, {key: np.round(number, 3).tolist() for key, number in done[setting.name].items()},
              flush=True)  # fmt: skip
    chance = np.mean([chance_recall(text_rows[held])["mean_recall"] for _, held in folds])
    lines = ["| setting | mean recall | minus " + against + " |", "|---|---|---|", f"| random order | {chance:.3f} | |"]
    for setting in (setting for setting in todo if setting.name in done):
        row = done[setting.name]
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["difference"], *row["difference_interval"])
        lines.append("| {} | {:.3f} [{:.3f}, {:.3f}] | ".format(setting.name, row["mean_recall"], *row["interval"])
                     + f"{difference} |")  # fmt: skip
    (output / f"explore-{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def phantom_settings(size: int) -> list[Setting]:
    """What a recipe for few pairs may choose; as many steps for 3,000 pairs as for 1,000, for time."""
    epochs = 10 if size > 1000 else 30
    found = [Setting(f"Adaptor, rate {value:g}", {}, rate(value, num_train_epochs=epochs))
             for value in (2e-5, 1e-4, 3e-4, 1e-3)]  # fmt: skip
    found += [Setting(f"projections, rate {value:g}", LINEAR, rate(value, num_train_epochs=epochs))
              for value in (1e-4, 1e-3, 3e-3)]  # fmt: skip
    for other, module in (("Adaptor", {}), ("projections", LINEAR)):
        value = 1e-4 if other == "Adaptor" else 1e-3
        if size <= 300:
            found += [Setting(f"{other}, 100 epochs", module, rate(value, num_train_epochs=100))]
        if size <= 1000:
            found += [Setting(f"{other}, 10 epochs", module, rate(value, num_train_epochs=10))]
        if size <= 300:
            found += [Setting(f"{other}, batch 64", module, rate(value, global_batch_size=64))]
    return found


def phantom_rows(patients: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `size` rows of patients that are not among the last `HELD_OUT` rows; and all rows of those patients."""
    held = np.isin(patients, patients[-HELD_OUT:])
    return np.flatnonzero(~held)[:size], np.flatnonzero(held)


def explore_phantoms(sizes: list[int], protocol: dict, output: Path) -> None:
    """The same for drawn pairs, by number of pairs; one training a setting, scored on the same held-out patients."""
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.embeddings import build_cache
    from adaptor_hf.phantom import write_phantoms

    folder = output / "phantoms"
    if not (folder / "metadata.csv").is_file():
        write_phantoms(folder, max(sizes) + HELD_OUT + PATIENT_MARGIN)
    towers = protocol["towers"]
    cache = build_cache(load_pairs(folder / "metadata.csv"), towers["vision"], towers["text"], output / "embeddings")
    cache = cache.paired()
    patients = patients_of(cache)
    arrays = {"mean": (cache.image_embeddings().float(), cache.text_embeddings().float())}
    for size in sizes:
        fold = phantom_rows(patients, size)
        if len(fold[0]) < size:
            raise ValueError(f"{folder} has {len(fold[0])} pairs to train on, {size} are asked for. Delete the folder.")
        explore(f"phantoms-{size}", phantom_settings(size), arrays, torch.from_numpy(cache.text_rows), patients,
                output, folds=[fold], batch=128, epochs=30, against="projections, rate 0.001")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, nargs="*", default=[], help="Numbers of pairs to draw.")
    options = parser.parse_args()
    protocol, output = yaml.safe_load(PROTOCOL.read_text()), options.output_dir
    folds, pretraining = protocol["exploration"]["folds"], protocol["pretraining"]
    if options.phantoms:
        explore_phantoms(options.phantoms, protocol, output)
        return
    cache = real_pairs(protocol, output)
    patients = patients_of(cache)
    explore("real", settings(), features(cache, protocol, output), torch.from_numpy(cache.text_rows), patients, output,
            folds=patient_folds(patients, folds), batch=pretraining["global_batch_size"],
            epochs=pretraining["num_train_epochs"], against="projections, rate 0.001")  # fmt: skip


if __name__ == "__main__":
    main()
