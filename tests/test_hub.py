"""What a model card says, and which bytes leave the machine."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from synthetic import synthetic_cache, synthetic_config

from adaptor_hf import AdaptorForImageClassification, AdaptorImageProcessor, AdaptorModel, AdaptorProcessor
from adaptor_hf.data.catalog import list_datasets
from adaptor_hf.data.splits import split_hash
from adaptor_hf.data.terms import restricted_terms
from adaptor_hf.embeddings import build_cache
from adaptor_hf.hub import push_folder, write_model_card
from adaptor_hf.hub.model_card import LICENSES, strictest_license
from adaptor_hf.hub.push import PUSHED_FILES, files_to_push, without_local_paths
from adaptor_hf.tasks.final_heads import save_classifier
from adaptor_hf.tasks.probe import Probe
from adaptor_hf.tasks.protocols import get_protocol
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import RetrievalResult
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.report import processor_of, report_run

CANARIES = {"text": "canaryreport effusion", "patient_id": "canarypatient", "study_id": "canarystudy"}
SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def trained(tiny_dinov2, tiny_bert, radiographs, tmp_path_factory):
    """A run with embeddings and logs inside its output folder, with private words in its table and its paths."""
    folder = tmp_path_factory.mktemp("canaryfolder")
    shutil.copytree(radiographs, folder / "images")
    paths = sorted((folder / "images").glob("*.jpg"))
    table = Dataset.from_dict(
        {"image": [str(path) for path in paths], "image_id": [f"canaryimage-{n}" for n in range(len(paths))]}
        | {name: [f"{word} {n}" for n in range(len(paths))] for name, word in CANARIES.items()}
        | {"split": ["train"] * 3 + ["validation"] * 1 + ["test"] * 2}
    )
    output = folder / "model"
    towers = {"vision_tower": str(tiny_dinov2), "text_tower": str(tiny_bert)}
    cache = build_cache(table, **towers, cache_dir=output / "embeddings", num_workers=0)
    views = contrastive_splits(cache)
    config = synthetic_config(cache, vision_hidden_size=32, text_hidden_size=32)
    arguments = AdaptorTrainingArguments(
        output_dir=str(output), num_train_epochs=1, global_batch_size=3, use_cpu=True, disable_tqdm=True
    )
    trainer = AdaptorTrainer(
        model=AdaptorModel(config),
        args=arguments,
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        processing_class=processor_of(config),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    report_run(trainer.model, arguments, cache, views)
    return trainer, folder


@pytest.fixture
def pushable(trained, tmp_path):
    """The run's folder with its towers named by hub ids."""
    folder = tmp_path / "model"
    shutil.copytree(trained[1] / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_tower"]["name_or_path"] = "owner/vision"
    config["text_tower"]["name_or_path"] = "owner/text"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The Hub as this machine sees it: what was created, and the files of what was uploaded."""
    calls = {"public": False}

    def create_repo(self, repo_id, private=None, exist_ok=False, **kwargs):
        calls["created"] = {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}
        return huggingface_hub.RepoUrl(f"https://huggingface.co/owner/{repo_id.split('/')[-1]}")

    def upload_folder(self, *, repo_id, folder_path, commit_message=None, **kwargs):
        files = {str(path.relative_to(folder_path)): path.read_bytes() for path in Path(folder_path).rglob("*")}
        calls["uploaded"] = {"repo_id": repo_id, "files": files, "message": commit_message}
        return f"https://huggingface.co/{repo_id}/commit/0"

    def repo_info(self, repo_id, **kwargs):
        return huggingface_hub.hf_api.ModelInfo(id=repo_id, private=not calls["public"])

    for function in (create_repo, upload_folder, repo_info):
        monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
    return calls


class TestFiles:
    def test_only_the_fixed_list_goes_whatever_else_is_there(self, pushable):
        for extra in ("notes.txt", "excluded.csv", "report.json", ".env", "optimizer.bin", "events.out.tfevents.1"):
            (pushable / extra).write_text("private")
        assert (pushable / "training_args.json").is_file()
        assert (pushable / "embeddings" / "latest.json").is_file()
        assert list(pushable.glob("checkpoint-*/optimizer.pt"))
        names = set(files_to_push(pushable))
        assert names <= set(PUSHED_FILES)
        assert names >= {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
        unwanted = ("training_args", "trainer_state", "optimizer", "embeddings", "events", "excluded", ".csv", ".pt")
        assert not [name for name in PUSHED_FILES if any(word in name for word in unwanted)]

    def test_all_that_a_model_needs_is_on_the_list(self, pushable, tiny_dinov2, tiny_bert, tmp_path):
        model = AdaptorModel.from_towers(load_vision_tower(str(tiny_dinov2)), load_text_tower(str(tiny_bert)), **SMALL)
        model.save_pretrained(tmp_path / "plain")
        AdaptorProcessor(model.vision_model.processor, model.text_model.processor).save_pretrained(tmp_path / "plain")
        written = {path.name for path in (tmp_path / "plain").iterdir()}
        assert written <= set(PUSHED_FILES)

    def test_no_report_path_or_id_is_in_a_file_or_in_the_card(self, trained, pushable):
        for name, content in files_to_push(pushable).items():
            assert b"canary" not in content, name
        assert "canary" not in (trained[1] / "model" / "README.md").read_text(encoding="utf-8")

    def test_local_paths_are_cut_at_any_depth(self, pushable):
        config = json.loads((pushable / "config.json").read_text())
        config["vision_config"] = {"_name_or_path": "/home/canary/model", "more": [{"path": "C:\\Users\\canary\\x"}]}
        (pushable / "config.json").write_text(json.dumps(config))
        pushed = json.loads(files_to_push(pushable)["config.json"])
        assert pushed["vision_config"] == {"_name_or_path": "model", "more": [{"path": "x"}]}
        assert pushed["vision_tower"]["name_or_path"] == "owner/vision"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("/home/someone/towers/bert/", "bert"),
            ("~/towers/bert", "bert"),
            ("~someone/bert", "bert"),
            ("file:///home/someone/bert", "bert"),
            ("\\\\server\\share\\bert", "bert"),
            ("owner/bert", "owner/bert"),
            # Tokens of a tokenizer, not paths.
            ("/", "/"),
            ("~", "~"),
            ("</s>", "</s>"),
        ],
    )
    def test_what_counts_as_a_local_path(self, value, expected):
        assert without_local_paths({"a": [value]}) == {"a": [expected]}

    @pytest.mark.parametrize("side", ["vision_tower", "text_tower"])
    def test_a_tower_in_a_local_folder_is_refused_unless_it_is_in_the_checkpoint(self, pushable, side, tmp_path):
        config = json.loads((pushable / "config.json").read_text())
        config[side]["name_or_path"] = str(tmp_path)
        (pushable / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"names its {side.replace('_', ' ')} by a folder of this machine"):
            files_to_push(pushable)
        config["towers_in_checkpoint"] = True
        (pushable / "config.json").write_text(json.dumps(config))
        assert str(tmp_path).encode() not in files_to_push(pushable)["config.json"]

    def test_a_model_without_towers_can_be_pushed(self, tmp_path):
        AdaptorModel(synthetic_config()).save_pretrained(tmp_path)
        assert "model.safetensors" in files_to_push(tmp_path)

    def test_a_folder_without_model_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config.json: save the model there first"):
            files_to_push(tmp_path)


class TestPush:
    def test_it_is_private_and_sends_the_list(self, pushable, hub):
        assert push_folder(pushable, "name") == "https://huggingface.co/owner/name/commit/0"
        assert hub["created"] == {"repo_id": "name", "private": True, "exist_ok": True}
        assert hub["uploaded"]["repo_id"] == "owner/name"
        assert hub["uploaded"]["files"] == files_to_push(pushable)

    def test_a_repository_that_is_public_already_gets_nothing_unless_asked(self, pushable, hub):
        hub["public"] = True
        with pytest.raises(PermissionError, match="owner/name is public, and nothing was pushed"):
            push_folder(pushable, "name")
        assert "uploaded" not in hub
        push_folder(pushable, "name", private=False)
        assert hub["created"]["private"] is False
        assert "uploaded" in hub

    def test_the_trainer_pushes_the_same_files_privately(self, trained, pushable, hub, monkeypatch):
        trainer = trained[0]
        monkeypatch.setattr(trainer.args, "output_dir", str(pushable))
        monkeypatch.setitem(trainer.model.config.vision_tower, "name_or_path", "owner/vision")
        monkeypatch.setitem(trainer.model.config.text_tower, "name_or_path", "owner/text")
        trainer.push_to_hub()
        assert hub["created"] == {"repo_id": "model", "private": True, "exist_ok": True}
        assert set(hub["uploaded"]["files"]) == set(files_to_push(pushable))
        assert not any(b"canary" in content for content in hub["uploaded"]["files"].values())
        monkeypatch.setattr(trainer.args, "hub_private_repo", False)
        monkeypatch.setattr(trainer.args, "hub_model_id", "owner/other")
        trainer.push_to_hub()
        assert hub["created"] == {"repo_id": "owner/other", "private": False, "exist_ok": True}

    def test_the_trainer_refuses_a_local_tower_before_anything_is_created(self, trained, hub):
        with pytest.raises(ValueError, match="by a folder of this machine"):
            trained[0].push_to_hub()
        assert "created" not in hub


TOWERS = {
    "vision_tower": {
        "library": "transformers",
        "name_or_path": "facebook/dinov2-base",
        "preset": "dinov2-b",
        "revision": "abc123",
        "license": "Apache-2.0",
        "pretraining_data": ["LVD-142M"],
    },
    "text_tower": {"library": "transformers", "name_or_path": "owner/bert", "license": "cc-by-nc-4.0"},
}


CHANCE = {"image_to_text_recall@1": 0.2, "image_to_text_median_rank": 9.5, "text_to_image_recall@1": 0.05}


def card_of(folder, **changes) -> tuple[dict, str]:
    """Metadata and text of a card with known numbers."""
    metrics = {"image_to_text_recall@1": 0.25, "image_to_text_median_rank": 4.0, "text_to_image_recall@1": 0.5}
    intervals = {name: (value - 0.1, value + 0.1) for name, value in metrics.items() if "recall" in name}
    known = {
        "model_name": "toy",
        "config": TOWERS,
        "num_parameters": 12_345,
        "pairs": {"train": 100, "test": 20},
        "split_hash": "0123456789ab",
        "arguments": {"learning_rate": "2e-05"},
        "result": RetrievalResult(
            "x", metrics, intervals, {"image_to_text": 20, "text_to_image": 17}, chance=dict(CHANCE)
        ),
        "evaluated_on": "test",
        "dataset_name": "Some: data | set",
        "versions": {"torch": "2.0"},
    }
    path = write_model_card(folder, **known | changes)
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text


class TestCard:
    @pytest.mark.parametrize(("bias", "function"), [({}, "softmax(-1)"), ({"logit_bias_init_value": -10}, "sigmoid()")])
    def test_probabilities_are_those_of_the_models_loss(self, tmp_path, bias, function):
        _, text = card_of(tmp_path, config=TOWERS | bias)
        assert f".logits_per_image.{function}\n" in text

    def test_it_has_every_section_and_no_gap(self, tmp_path):
        _, text = card_of(tmp_path)
        sections = re.findall(r"^##+ (.*)$", text, flags=re.MULTILINE)
        assert sections == ["Use", "Towers", "Data", "Evaluation", "Controls", "Training", "Limits"]
        assert "{{" not in text
        assert "For research only. Not a medical device" in text
        assert "12,345 trainable parameters" in text
        assert "| vision | dinov2-b (facebook/dinov2-base) | abc123 | Apache-2.0 | LVD-142M |" in text
        assert "| text | owner/bert | not pinned | cc-by-nc-4.0 | unknown |" in text
        assert "100 train, 20 test pairs. Split hash `0123456789ab`" in text
        assert "| learning_rate | 2e-05 |" in text

    def test_numbers_carry_n_interval_and_split(self, tmp_path):
        metadata, text = card_of(tmp_path)
        assert "| image_to_text_recall@1 | 0.250 † | [0.150, 0.350] | 0.200 | 20 |" in text
        assert "| text_to_image_recall@1 | 0.500 | [0.400, 0.600] | 0.050 | 17 |" in text
        # Of a median no interval is made, so that no mark says anything of it.
        assert "| image_to_text_median_rank | 4.000 | n/a | 9.500 | 20 |" in text
        assert "† Not above its best trivial baseline" in text
        (result,) = metadata["model-index"][0]["results"]
        assert result["dataset"]["args"] == {"split_hash": "0123456789ab"}
        assert result["dataset"]["split"] == "test"
        assert [(m["type"], m["value"], m["args"]) for m in result["metrics"]] == [
            (
                "image_to_text_recall@1",
                0.25,
                {"n": 20, "interval_95": [0.15, 0.35], "chance": 0.2, "above_chance": False},
            ),
            ("image_to_text_median_rank", 4.0, {"n": 20, "chance": 9.5, "above_chance": True}),
            ("text_to_image_recall@1", 0.5, {"n": 17, "interval_95": [0.4, 0.6], "chance": 0.05, "above_chance": True}),
        ]

    def test_the_hub_reads_it(self, tmp_path):
        card_of(tmp_path)
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.license == "cc-by-nc-4.0"
        assert data.base_model == ["facebook/dinov2-base", "owner/bert"]
        assert data.library_name == "transformers"
        assert data.eval_results[0].dataset_name == "Some: data | set"

    def test_an_unknown_licence_leaves_the_card_without_one(self, tmp_path):
        config = {**TOWERS, "text_tower": {**TOWERS["text_tower"], "license": None}}
        metadata, text = card_of(tmp_path, config=config)
        assert "license" not in metadata
        assert "Not stated: the licence of a tower is unknown" in text

    def test_a_local_tower_shows_its_last_folder_only(self, tmp_path, monkeypatch):
        (tmp_path / "secret" / "bert").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        for name in (str(tmp_path / "secret" / "bert"), "secret/bert", "./secret/bert"):
            config = {**TOWERS, "text_tower": {**TOWERS["text_tower"], "name_or_path": name}}
            metadata, text = card_of(tmp_path, config=config)
            assert "secret" not in text
            assert str(tmp_path) not in text
            assert metadata["base_model"] == ["facebook/dinov2-base"]

    def test_ready_made_embeddings_have_no_tower(self, tmp_path):
        metadata, text = card_of(tmp_path, config={})
        assert text.count("ready-made embeddings") == 2
        assert not {"license", "base_model"} & metadata.keys()

    def test_without_held_out_pairs_it_claims_nothing(self, tmp_path):
        metadata, text = card_of(tmp_path, result=None, evaluated_on=None, pairs={"train": 100})
        assert "model-index" not in metadata
        assert "Not evaluated" in text


class TestTerms:
    def test_the_card_says_what_is_recorded_of_commercial_use(self, tmp_path):
        _, text = card_of(tmp_path)
        assert "* vision tower: yes (Apache-2.0 in the model card, recorded 2026-11-22)" in text
        assert "* text tower: unclear (nothing is recorded)" in text
        assert "Terms of the training data: none are recorded here" in text
        _, text = card_of(tmp_path, config={**TOWERS, "data_terms": restricted_terms("mimic_cxr")})
        assert "restrict what may be shared.** mimic_cxr: PhysioNet Credentialed Health Data License" in text

    def test_every_data_set_with_restricting_words_is_restricted_and_no_other(self):
        words = r"credentialed|no sharing|no redistribution|research only|non-commercial|have none|competition|\bNC\b"
        restricting = {d.name for d in list_datasets() if re.search(words, d.license, re.IGNORECASE)}
        assert restricting == {d.name for d in list_datasets() if d.restricted}

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (("mimic_cxr", None), ["mimic_cxr"]),
            ((None, "MIMIC-CXR v2.1"), ["mimic_cxr"]),
            (("chexpert_5x200",), ["chexpert_5x200"]),
            (("nih_chestxray14", "phantom"), []),
            ((None,), []),
        ],
    )
    def test_data_sets_are_known_by_name(self, names, found):
        assert list(restricted_terms(*names) or {}) == found

    def test_a_push_asks_for_consent_before_anything_is_created(self, pushable, hub):
        config = json.loads((pushable / "config.json").read_text())
        config["data_terms"] = restricted_terms("mimic_cxr")
        (pushable / "config.json").write_text(json.dumps(config))
        with pytest.raises(PermissionError, match=r"mimic_cxr: PhysioNet(.|\n)*accept_data_terms"):
            push_folder(pushable, "name")
        assert "created" not in hub
        push_folder(pushable, "name", accept_data_terms=True)
        assert "uploaded" in hub

    def test_the_models_own_push_asks_too_and_the_terms_survive_saving(self, tmp_path, hub):
        model = AdaptorModel(synthetic_config(data_terms=restricted_terms("chexpert")))
        model.save_pretrained(tmp_path)
        model = AdaptorModel.from_pretrained(tmp_path)
        with pytest.raises(PermissionError, match="chexpert: Stanford"):
            model.push_to_hub("somebody/model")
        with pytest.raises(PermissionError, match="chexpert: Stanford"):
            model.save_pretrained(tmp_path / "out", push_to_hub=True)
        assert "created" not in hub

    def test_a_ready_cache_must_say_its_data_before_a_push(self, tmp_path):
        from train_pretrain import main

        words = ["--cache", str(tmp_path), "--use_cpu", "--push_to_hub", "--output_dir", str(tmp_path / "out")]
        with pytest.raises(ValueError, match="needs --dataset_name"):
            main(words)
        with pytest.raises(PermissionError, match="mimic_cxr"):
            main([*words, "--dataset_name", "MIMIC-CXR"])

    def test_a_saved_classifier_names_the_terms_of_both_data_sets(self, tmp_path):
        labelled = SimpleNamespace(name="chexpert", class_names=["edema"], exclusive=False)
        embedded = SimpleNamespace(data=labelled, vision_spec={"image_processor": AdaptorImageProcessor().to_dict()})
        model = AdaptorModel(synthetic_config(data_terms=restricted_terms("mimic_cxr")))
        recipe, width = get_protocol("rigorous"), model.config.hidden_size
        head = AdaptorForImageClassification.from_adaptor(
            model, id2label={0: "edema"}, classifier_hidden_size=recipe.hidden_size, classifier_dropout=recipe.dropout
        ).classifier
        probe = Probe(head, torch.zeros(width), torch.ones(width), 1e-3, 1, 0.5)
        save_classifier(probe, model, recipe, embedded, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert set(config["data_terms"]) == {"mimic_cxr", "chexpert"}

    def test_a_run_that_is_to_be_pushed_asks_before_it_trains(self, tmp_path):
        from train_pretrain import main

        words = ["--dataset", "mimic_cxr", "--data_root", str(tmp_path), "--vision_tower", "lite0", "--use_cpu"]
        words += ["--text_tower", "minilm", "--push_to_hub", "--output_dir", str(tmp_path / "out")]
        with pytest.raises(PermissionError, match="mimic_cxr"):
            main(words)
        with pytest.raises((OSError, ValueError), match=str(tmp_path)):
            main([*words, "--accept_data_terms"])


class TestLicence:
    @pytest.mark.parametrize(
        ("licenses", "expected"),
        [
            (["mit", "apache-2.0"], "apache-2.0"),
            (["Apache-2.0", "MIT"], "apache-2.0"),
            (["cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
            (["gpl-3.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
            (["mit", None], None),
            (["mit", "my-own"], None),
            ([], None),
        ],
    )
    def test_the_strictest_wins_and_an_unknown_one_silences(self, licenses, expected):
        assert strictest_license([{"license": name} for name in licenses]) == expected

    def test_non_commercial_ranks_above_all_others(self):
        first = min(LICENSES.index(name) for name in LICENSES if "-nc-" in name)
        assert all("-nc-" in name for name in LICENSES[first:])


def test_ready_embeddings_give_a_card_of_the_split_they_came_with(tmp_path):
    cache = synthetic_cache(tmp_path / "cache", num_rows=60, num_texts=45)
    views = contrastive_splits(cache)
    torch.manual_seed(0)
    arguments = AdaptorTrainingArguments(output_dir=str(tmp_path / "model"), use_cpu=True)
    card = report_run(AdaptorModel(synthetic_config(cache)).eval(), arguments, cache, views)
    text = card.read_text(encoding="utf-8")
    assert f"Split hash `{split_hash(cache.pairs)}`" in text
    rows = re.findall(r"^\| (\w+_recall@1) \| .* \| (\d+) \|$", text, flags=re.MULTILINE)
    assert dict(rows) == {
        "image_to_text_recall@1": str(len(views["test"])),
        "text_to_image_recall@1": str(views["test"].num_texts),
    }


def test_the_models_own_push_is_private_and_refuses_towers_of_this_machine(tmp_path, monkeypatch):
    from huggingface_hub import HfApi
    from synthetic import synthetic_model

    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *a, **k: calls.append(k) or (_ for _ in ()).throw(OSError))
    model = synthetic_model()
    with pytest.raises(OSError):  # noqa: PT011
        model.push_to_hub("somebody/model")
    assert calls[0]["private"] is True
    model.config.vision_tower = {"library": "transformers", "name_or_path": str(tmp_path)}
    with pytest.raises(ValueError, match="folder of this machine"):
        model.push_to_hub("somebody/model")
    with pytest.raises(ValueError, match="folder of this machine"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert len(calls) == 1
