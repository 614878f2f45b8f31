"""What a run says before a tower runs and at its end: counts are those of the table, and no place in private mode."""

import importlib.util

import pytest
import torch
from datasets import Dataset
from synthetic import synthetic_model

from adaptor_hf.embeddings import open_cache
from adaptor_hf.objectives import AdaptorObjective, Objective
from adaptor_hf.towers.check import is_on_this_machine
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.plan import Part, Plan, describe_kept, describe_plan, parts_of_cache, parts_of_table
from adaptor_hf.training.recipe_choice import Recipe
from adaptor_hf.training.script_arguments import parse_arguments
from adaptor_hf.training.summary import describe_run

ROWS = [("train", "a", "p1"), ("train", "b", "p1"), ("train", None, "p2"), ("train", "c", None), ("test", "d", "p3"),
        ("validation", "e", "p4"), ("validation", "f", "p5")]  # fmt: skip


def table(rows=ROWS) -> Dataset:
    splits, texts, patients = zip(*rows, strict=True)
    return Dataset.from_dict({"split": splits, "text": texts, "patient_id": patients, "other": range(len(rows))})


def test_pairs_and_patients_are_those_of_the_rows_with_a_text():
    parts = {"train": Part(3, 1), "validation": Part(2, 2), "test": Part(1, 1)}
    assert parts_of_table(table()) == parts
    # A selection has its rows in another order in the file.
    assert parts_of_table(table(ROWS[::-1]).select(range(len(ROWS) - 1, -1, -1))) == parts
    assert parts_of_table(table().remove_columns("patient_id"))["train"] == Part(3, 0)
    assert parts_of_table(table(ROWS[2:3])) == {}


def test_a_cache_counts_as_its_splits_do(cache_folder):
    cache = open_cache(cache_folder).paired()
    parts = parts_of_cache(open_cache(cache_folder))
    assert {name: part.pairs for name, part in parts.items()} == cache.splits
    for name, part in parts.items():
        assert part.patients == len(set(cache.split(name).pairs["patient_id"][:]))


def plan(*words: str) -> str:
    given = ["--train_file", "secret/pairs.csv", "--vision_tower", "lite0", "--text_tower", "minilm", "--output_dir",
             "secret/run", "--use_cpu", "--cache_dir", "secret/embeddings", "--global_batch_size", "128",
             *words]  # fmt: skip
    data, model, _, training = parse_arguments(given)
    parts = {"train": Part(1000, 612), "validation": Part(100, 0)}
    return describe_plan(Plan(Recipe("small", chosen=True, steps=50), parts), data, model, training)


def test_the_plan_names_all_that_is_to_come():
    assert plan("--num_train_epochs", "30").splitlines() == [
        "Plan, before anything is embedded:",
        "  pairs: train 1,000 (612 patients), validation 100",
        "  towers: lite0 (vision; on this machine), minilm (text; on this machine)",
        "  embeddings: kept in secret/embeddings",
        "  recipe: small, chosen because the paper's would take 50 steps, fewer than 2,000; --recipe small gives the "
        "same run, --recipe paper the paper's",
        "  steps: 240 (30 epochs), each of 128 pairs, peak learning rate 2e-05",
        "  output: secret/run",
    ]
    # Not the epochs of the recipe, which do not count then.
    assert "  steps: 7 (given by max_steps), each of 128 pairs, " in plan("--max_steps", "7")
    accumulated = plan("--num_train_epochs", "1", "--gradient_accumulation_steps", "4")
    assert "  steps: 2 (1 epoch), each of 4 batches of 128 pairs, " in accumulated


class Headed(AdaptorObjective):
    """One whose parameters are 7 and, beside the model's optimizer, 3."""

    def setup(self, model, args):
        super().setup(model, args)
        self.head = torch.nn.Linear(6, 1)
        self.copy = torch.nn.Parameter(torch.zeros(3), requires_grad=False)


class Plain(Objective):
    def forward(self, encoded, rows, gather):
        return {"loss": (encoded.image.pooled - encoded.text.pooled).square().sum()}


@pytest.fixture
def said_by(cache_folder, tmp_path):
    """Lines of a run with an objective, by what they begin with."""

    def describe(objective, planned=None, **more) -> dict[str, str]:
        cache = open_cache(cache_folder)
        views = contrastive_splits(cache)
        arguments = AdaptorTrainingArguments(str(tmp_path), use_cpu=True, global_batch_size=16, **more)
        more = {"objective": objective, "eval_dataset": views["validation"]}
        trainer = AdaptorTrainer(model=synthetic_model(), args=arguments, **more)
        planned = planned or {name: len(view) for name, view in views.items()}
        return dict(line.split(": ", 1) for line in describe_run(trainer, cache, views, planned).splitlines())

    return describe


def test_what_the_objective_adds_is_counted_beside_the_model(said_by):
    said = said_by(Headed())["Parameters"]
    assert said == said_by(AdaptorObjective())["Parameters"] + "; + 7 of the objective"
    assert "receive a gradient" in said
    reads_tokens = AdaptorObjective()
    reads_tokens.needs = frozenset({"pairs", "text_tokens"})
    assert "receive a gradient" not in said_by(reads_tokens)["Parameters"]


def test_texts_that_repeat_are_counted_for_objectives_that_ask_for_positives(said_by):
    assert said_by(AdaptorObjective("pair"))["Texts"].endswith("share their text with another (positives: pair)")
    assert said_by(AdaptorObjective())["Texts"].endswith("(positives: text)")
    assert "Texts" not in said_by(Plain())


def test_what_the_plan_has_said_is_said_again_only_where_it_came_otherwise(said_by):
    assert not {"Pairs", "Steps"} & said_by(Plain()).keys()
    said = said_by(Plain(), planned={"train": 1}, max_steps=9)
    assert said["Steps"] == "9 (given by max_steps), each of 16 pairs, peak learning rate 2e-05"
    assert said["Pairs"].endswith(" test")


def test_private_mode_names_no_place(monkeypatch):
    monkeypatch.setattr("adaptor_hf.training.plan.is_private", lambda: True)
    said = plan()
    assert "secret" not in said
    assert "private-embeddings beside --output_dir" in said


def test_a_missing_matplotlib_is_said_at_the_start_with_the_command_that_adds_it(monkeypatch):
    real = importlib.util.find_spec
    assert "matplotlib" not in plan()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else real(name))
    assert plan().splitlines()[-1].endswith("pip install matplotlib (also while this runs)")


def test_a_tower_is_here_when_its_weights_are(tmp_path, tiny_dinov2, monkeypatch):
    assert is_on_this_machine("vision", str(tiny_dinov2))
    assert is_on_this_machine("text", "minilm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not is_on_this_machine("vision", "dinov2-b")
    repository = tmp_path / "models--facebook--dinov2-base"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    assert not is_on_this_machine("vision", "facebook/dinov2-base")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert is_on_this_machine("vision", "facebook/dinov2-base")


@pytest.mark.parametrize(
    ("validation", "words"),
    [(Part(30, 16), "on 30 pairs of 16 patients: few"), (Part(300, 99), "on 300 pairs of 99 patients: few"),
     (Part(300, 100), "on 300 pairs of 100 patients"), (Part(99, 0), "on 99 pairs: few"),
     (Part(100, 0), "on 100 pairs")],
)  # fmt: skip
def test_the_kept_epoch_is_named_with_what_it_was_chosen_on(validation, words):
    log = [{"step": step, "epoch": step / 5, "eval_mean_recall": 0.29 + step / 1000} for step in range(5, 151, 5)]
    said = describe_kept(log, 40, "mean_recall", 30.0, validation, 0.1)
    assert said == f"Kept: epoch 8 of 30, validation mean recall 0.330 (chance 0.100) {words}"
    assert "last epoch" in describe_kept(log, None, "eval_mean_recall", 30.0, validation)
    assert "last epoch" in describe_kept([], None, "eval_mean_recall", 30.0, None)
    log = [{"step": 5, "epoch": 1.0, "eval_loss": 2.0}]
    assert "validation loss 2.000 on" in describe_kept(log, 5, "loss", 30.0, validation, 0.1)
