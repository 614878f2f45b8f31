"""Tables, cards and results call a system by its aligner, and say where it was trained on tokens and scored without."""

import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from script_runs import OPTIONS
from stored_columns import add_columns
from synthetic import synthetic_cache, synthetic_config, synthetic_model

import train_pretrain
from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.audit.card_numbers import card_differences
from adaptor_hf.audit.facts import pretraining_facts
from adaptor_hf.configuration_adaptor import ALIGNERS
from adaptor_hf.embeddings.columns import Column
from adaptor_hf.evaluation import classification_predictions, retrieval_predictions
from adaptor_hf.evaluation.aligners import OTHERS, PAPERS, name_in_controls, system_name
from adaptor_hf.evaluation.controls import CONTROLS
from adaptor_hf.evaluation.naming import row_label
from adaptor_hf.evaluation.notes import reading_notes
from adaptor_hf.evaluation.results import run_key
from adaptor_hf.evaluation.verify import verify_run
from adaptor_hf.tasks.controls import systems_of
from adaptor_hf.tasks.runs import RunList, finish_run
from adaptor_hf.training.report import card_arguments
from adaptor_hf.training.systems import System
from adaptor_hf.verify import verify

OBJECTIVE = """
from adaptor_hf.objectives import AdaptorObjective

class Tokens(AdaptorObjective):
    name = "tokens"
    needs = frozenset({"pairs", "image_tokens"})

    def __init__(self, margin: float = 0.25, word: str = "plain", place: str = "/a/b"):
        super().__init__("text")
"""
NOTE = "Trained on token sequences (image_tokens), scored on pooled embeddings."


@pytest.fixture(scope="module")
def trained_on_tokens(tmp_path_factory):
    """A finished run of an MLP a side whose objective needs the tokens of images."""
    folder = tmp_path_factory.mktemp("tokens") / "run"
    cache = synthetic_cache(folder / "embeddings")
    images = next(path for path in (folder / "embeddings").glob("images-*") if path.is_dir())
    width, rows = cache.vision_spec["hidden_size"], int(cache.image_rows.max()) + 1
    tokens = Column("image_tokens", (5, width), "float16", {"grid": [2, 2], "prefix": 1})
    add_columns(images, [tokens], np.ones(rows, int), 1 << 20)
    (folder.parent / "mine.py").write_text(OBJECTIVE)
    aligner = {"name": "residual", "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
    changes = {"num_train_epochs": 1, "aligner": json.dumps(aligner), "objective": f"{folder.parent}/mine.py:Tokens"}
    options = OPTIONS | changes | {"cache": folder / "embeddings", "output_dir": folder, "use_cpu": True}
    train_pretrain.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return folder


def test_the_aligners_are_those_of_the_configuration():
    assert {PAPERS, *OTHERS} == set(ALIGNERS)


@pytest.mark.parametrize(
    ("aligner", "expected"),
    [
        ("adaptor", ("Adaptor", "Adaptor, untrained", "two linear projections", "Adaptor, shuffled pairs")),
        ("mlp", ("mlp", "mlp, untrained", "two linear projections", "mlp, shuffled pairs")),
        ("linear", ("linear", "linear, untrained", "two linear projections", "linear, shuffled pairs")),
    ],
)
def test_a_system_is_called_by_its_aligner_and_its_runs_keep_their_keys(aligner, expected):
    model = synthetic_model(aligner=aligner)
    keys = ("adaptor", "untrained", "projections", "shuffled")
    systems = [System(key, model) for key in keys]
    assert tuple(system.label for system in systems) == expected
    described = {"task": "retrieval", "dataset": "d", "split_hash": "s", "protocol": "retrieval", "seed": 0,
                 "tower_saw_dataset": "unknown"}  # fmt: skip
    for system in systems:
        fields = system.fields() | described
        assert (fields["system"], fields["module"]) == (system.label, system.key)
        assert row_label(fields).startswith(f"{system.label}, retrieval")
        assert run_key(fields) == run_key(fields | {"system": CONTROLS[system.key].name})
        assert run_key(fields) != run_key(fields | {"system": "another"})
    assert System("tower").label == "raw tower"
    assert name_in_controls("adaptor", system_name("adaptor", aligner)) == "Adaptor"
    assert name_in_controls(None, "mlp") == name_in_controls("mlp", "mlp") == "mlp"


def test_a_card_names_aligner_and_options_and_verify_compares_them(trained_on_tokens, tmp_path):
    card = (trained_on_tokens / "README.md").read_text()
    parameters = AdaptorModel.from_pretrained(trained_on_tokens).num_parameters()
    sentence = "Two linear projections and an Adaptor branch of 2 layers, width 48, 4 heads"
    assert f"{sentence} ({parameters:,} trainable parameters), trained with" in card
    assert sentence in pretraining_facts(trained_on_tokens)["model"]
    assert "residual, this run" in json.loads((trained_on_tokens / "retrieval.json").read_text())["name"]
    found = re.findall(r"^\| ([\w.\\]+) \| (.*) \|$", card, re.MULTILINE)
    rows = {name.replace("\\", ""): value for name, value in found}
    assert (rows["aligner"], rows["objective.margin"], rows["objective.word"]) == ("residual", "0.25", "plain")
    assert "objective.place" not in rows
    assert "/a/b" not in card
    read = [json.loads((trained_on_tokens / name).read_text()) for name in ("retrieval.json", "run.json")]
    config = json.loads((trained_on_tokens / "config.json").read_text())
    copy = tmp_path / "README.md"
    for wrong, right in ((card, None), (card.replace("| residual |", "| mlp |"), "argument aligner is mlp"),
                         (card.replace("| 0.25 |", "| 0.35 |"), "objective.margin is 0.35"),
                         (card.replace("branch of 2 layers", "branch of 3 layers"), "branch of 3 layers, wid"),
                         (card.replace(sentence, "A light Adaptor"), "A light Adaptor; and config.json")):  # fmt: skip
        copy.write_text(wrong)
        found = card_differences(copy, *read, None, config)
        assert found == [] if right is None else (len(found) == 1 and right in found[0]), found
    # The sentence of cards of before.
    earlier = f"A light Adaptor ({parameters:,} trainable parameters) that maps embeddings, trained with"
    copy.write_text(card.replace(f"{sentence} ({parameters:,} trainable parameters), trained with", earlier))
    assert card_differences(copy, *read, None, config) == []


def test_words_of_an_objective_are_in_no_private_card(monkeypatch):
    names = ("learning_rate num_train_epochs max_steps global_batch_size world_size weight_decay warmup_steps "
             "lr_scheduler_type max_grad_norm positives optim fp16 bf16 seed gradient_accumulation_steps "
             "dataset_weights")  # fmt: skip
    arguments = SimpleNamespace(**dict.fromkeys(names.split()), source_batches="mixed")
    objective = {"name": "Mine", "options": {"margin": 0.5, "on": True, "word": "canary", "lines": "a\nb"}}
    listed = card_arguments(arguments, objective)
    assert (listed["objective.margin"], listed["objective.word"]) == ("0.5", "canary")
    assert "objective.lines" not in listed
    monkeypatch.setattr("adaptor_hf.training.report.is_private", lambda: True)
    listed = card_arguments(arguments, objective)
    assert [name for name in listed if name.startswith("objective.")] == ["objective.margin", "objective.on"]


class TestTrainedOnTokens:
    def test_the_config_says_so_and_the_run_verifies_on_what_was_read(self, trained_on_tokens):
        assert AdaptorConfig.from_pretrained(trained_on_tokens).trained_on == ["image_tokens"]
        checkpoint = next(trained_on_tokens.glob("checkpoint-*"))
        assert json.loads((checkpoint / "config.json").read_text())["trained_on"] == ["image_tokens"]
        assert "Trained on token sequences (image_tokens), on which" in (trained_on_tokens / "README.md").read_text()
        assert verify(trained_on_tokens) == []

    def test_of_pooled_embeddings_nothing_is_saved(self, pretrained_run):
        assert "trained_on" not in json.loads((pretrained_run / "config.json").read_text())
        assert "Trained on token" not in (pretrained_run / "README.md").read_text()
        assert "trained_on" not in synthetic_config().to_dict()
        with pytest.raises(
            StrictDataclassClassValidationError, match="trained_on must be some of image_tokens, text_tokens"
        ):
            synthetic_config(trained_on=["pixels"])

    def test_results_and_the_log_say_it_once(self, tmp_path, caplog):
        model = synthetic_model(trained_on=["image_tokens"]).eval()
        arguments = SimpleNamespace(
            control_model=[], model=str(tmp_path), controls=["tower", "untrained"], task="few_shot"
        )
        with caplog.at_level(logging.WARNING, "adaptor_hf"):
            systems = systems_of(arguments, model, "cpu")
        assert [record.message for record in caplog.records] == [NOTE]
        assert {system.key: system.notes for system in systems} == {"adaptor": [NOTE], "tower": [], "untrained": []}
        assert reading_notes(synthetic_config()) == []
        # Attention pooling reads tokens wherever it is.
        assert reading_notes(synthetic_config(trained_on=["image_tokens"], attention_pooling_heads=1)) == []
        rows = [f"i{row}" for row in range(8)], [f"p{row}" for row in range(8)]
        ranks = {way: torch.arange(1, 9) for way in ("image_to_text", "text_to_image")}
        made = {
            "few_shot": lambda: classification_predictions(
                *rows, [0, 1] * 4, np.linspace(0.1, 0.9, 8), problem_type="multi_label_classification",
                class_names=["a"], num_resamples=10,
            ),
            "retrieval": lambda: retrieval_predictions(*rows, ranks, torch.arange(8), num_resamples=10),
        }  # fmt: skip
        for task, protocol in (("few_shot", "fewshot"), ("retrieval", "retrieval")):
            fields = systems[0].fields() | {"task": task, "dataset": "d", "split_hash": "s", "protocol": protocol,
                                            "seed": 0, "tower_saw_dataset": "unknown"}  # fmt: skip
            found = RunList()
            finish_run(found, tmp_path / task, fields, made[task], {"selected_on": "none"}, systems[0].notes)
            assert all(NOTE in line["run_notes"] for line in found.lines)
            (folder,) = (tmp_path / task / "runs").iterdir()
            assert verify_run(folder) == []
