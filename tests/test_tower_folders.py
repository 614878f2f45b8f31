"""Folders of trained towers: written, read back, read by other libraries, copied, moved, damaged."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import local_hub
from huggingface_hub import ModelCard
from PIL import Image
from test_heads import run_remote
from trained_tower import RESNET, SMALL, TEXT, VIT, inputs_of, moved, state_of, timm_folder, train_steps, vectors
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from without_package import WITHOUT_PACKAGE

from adaptor_hf import AdaptorConfig, AdaptorForImageClassification, AdaptorModel, tower_folders_adaptor
from adaptor_hf.audit.facts import _model_facts
from adaptor_hf.embeddings.keys import tower_identity
from adaptor_hf.hub.model_card import describe_tower
from adaptor_hf.hub.trained_card import complete_towers, write_tower_card
from adaptor_hf.tasks.provenance import tower_name
from adaptor_hf.tower_folders_adaptor import TOWER_FILE, load_tower_weights, save_tower
from adaptor_hf.tower_specs_adaptor import partial_spec
from adaptor_hf.tower_training_adaptor import merge_lora
from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower, tower_digest
from adaptor_hf.training import AdaptorTrainingArguments
from adaptor_hf.training.report import card_of_training
from adaptor_hf.training.trained_towers import TrainedTowers

PIXELS = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
HOWS = ["full", 1, "lora", "merged"]


@pytest.fixture(scope="module")
def names(tiny_dinov2, tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    return {
        "dinov2": str(tiny_dinov2),
        "bert": str(tiny_bert),
        "minilm": "minilm",
        "vit": timm_folder(folder / "vit", **VIT),
        "resnet": timm_folder(folder / "resnet", "resnet10t", **RESNET),
        "lite0": "lite0",
    }


def load(kind, name, **options):
    return (load_text_tower if kind in ("bert", "minilm") else load_vision_tower)(str(name), **options)


def trained(names, kind, how="full", **options):
    """A tower after two steps."""
    tower = load(kind, names[kind], **options)
    tower.set_trainable("lora" if how == "merged" else how)
    train_steps(tower)
    return tower


def train_model(names, vision="full", text="full", **config) -> AdaptorModel:
    """A model whose towers took two steps."""
    torch.manual_seed(0)
    trains = {"train_vision_tower": vision, "train_text_tower": text}
    model = AdaptorModel.from_towers(names["dinov2"], names["bert"], **trains, **SMALL, **config).train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(pixel_values=PIXELS, **TEXT, return_loss=True).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    found = model(pixel_values=PIXELS, **TEXT)
    return torch.cat([found.image_embeds, found.text_embeds])


def words_of(folder: Path) -> str:
    """All that is text in a folder."""
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md", ".txt"))


CASES = [(kind, how) for kind in ("dinov2", "bert", "vit") for how in HOWS] + [("resnet", "full"), ("resnet", 2)]
CASES += [pytest.param(kind, how, marks=pytest.mark.slow) for kind in ("minilm", "lite0") for how in ("full", 1)]
CASES += [pytest.param("minilm", "lora", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_a_saved_tower_gives_what_was_trained(names, kind, how, tmp_path):
    tower = trained(names, kind, how)
    folder = tmp_path / "run" / "tower"
    folder.parent.mkdir()
    if how == "merged":
        before = vectors(tower)
        save_tower(tower, folder, merge=True)
        assert torch.equal(vectors(tower), before)
        merge_lora(tower)
    else:
        save_tower(tower, folder)
    again = load(kind, folder)
    assert torch.equal(vectors(again), vectors(tower))
    assert tower_digest(again) == tower_digest(tower)
    assert tower_identity(again) == tower_identity(tower)
    assert not any(value.requires_grad for value in again.parameters())
    assert again.trainable == "frozen"
    expected = "lora" if how == "merged" else how
    assert (again.spec["trained"], again.spec["preset"]) == (expected, None)
    base = names[kind].rpartition("/")[2] if "/" in names[kind] else load(kind, names[kind]).spec["name_or_path"]
    assert again.spec["base_tower"]["name_or_path"].rpartition(":")[2] == base.rpartition(":")[2]
    for key in ("pooling", "hidden_size", "max_length", "image_processor", "license", "pretraining_data", "library"):
        assert again.spec[key] == tower.spec[key], key
    assert str(tmp_path.parent) not in words_of(folder)
    assert str(Path(names["dinov2"]).parent) not in words_of(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tower"]
    # Weights go into a tower of the same kind in place, and what trains goes on.
    other = load(kind, names[kind])
    other.set_trainable({"merged": "full"}.get(how, how))
    load_tower_weights(other, folder)
    assert torch.equal(vectors(other), vectors(tower))
    assert other.trainable == {"merged": "full"}.get(how, how)


class TestOtherLibraries:
    @pytest.mark.parametrize("how", HOWS)
    @pytest.mark.parametrize("kind", ["dinov2", "bert", "vit"])
    def test_transformers(self, names, kind, how, tmp_path):
        tower = trained(names, kind, how)
        save_tower(tower, tmp_path / "tower", merge=how == "merged")
        network = AutoModel.from_pretrained(tmp_path / "tower").eval()
        with torch.no_grad():
            theirs = network(**inputs_of(tower)).last_hidden_state
            ours = tower.model(**inputs_of(tower)).last_hidden_state
        assert (theirs - ours).abs().max() < 1e-5
        if kind == "bert":
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tower")
            assert tokenizer("small effusion")["input_ids"] == tower.processor("small effusion")["input_ids"]
            return
        image = Image.radial_gradient("L").resize((60, 44)).convert("RGB")
        theirs = AutoImageProcessor.from_pretrained(tmp_path / "tower")(image, return_tensors="pt")["pixel_values"]
        # Pillow and torchvision differ by about one grey level of 255.
        assert (theirs - tower.processor(image, return_tensors="pt")["pixel_values"]).abs().max() < 2.1 / 255 / 0.22

    @pytest.mark.parametrize("kind", ["vit", "resnet"])
    def test_timm(self, names, kind, tmp_path):
        import timm

        tower = trained(names, kind, 1)
        save_tower(tower, tmp_path / "tower")
        network = timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=True).eval()
        with torch.no_grad():
            theirs = network.forward_features(inputs_of(tower)["pixel_values"])
            assert torch.equal(theirs, tower.model(**inputs_of(tower)).last_hidden_state)
        data = timm.data.resolve_model_data_config(network)
        assert [list(data[name]) for name in ("mean", "std", "input_size")] == [[0.5] * 3, [0.25] * 3, [3, 32, 32]]
        assert (data["crop_pct"], data["interpolation"]) == (0.8, "bilinear")

    @pytest.mark.parametrize("kind", ["dinov2", "bert", "vit"])
    def test_peft(self, names, kind, tmp_path):
        import peft

        tower = trained(names, kind, "lora")
        save_tower(tower, tmp_path / "tower")
        base = load(kind, names[kind])
        before = vectors(base)
        adapted = peft.PeftModel.from_pretrained(base.model, tmp_path / "tower").eval()
        assert torch.equal(vectors(base), vectors(tower))
        with adapted.disable_adapter():
            assert torch.equal(vectors(base), before)


class TestCard:
    """The lines that a card prints are run as they stand."""

    def run(self, tower, folder):
        save_tower(tower, folder)
        text = write_tower_card(folder).read_text()
        found = []
        for lines in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            names: dict = {}
            exec(lines.replace("path/to/this/folder", str(folder)), names)
            found.append(names.get("network") or names["tower"])
        assert torch.equal(vectors(found[0]), vectors(tower))
        return found[1:], text

    @pytest.mark.parametrize(
        ("kind", "how", "options"),
        [("dinov2", "full", {}), ("dinov2", "lora", {}), ("bert", 1, {}), ("vit", "full", {}), ("vit", "lora", {}),
         ("resnet", "full", {}), ("vit", "full", {"truncate_layers": 2})],
    )  # fmt: skip
    def test_its_lines_give_what_was_trained(self, names, kind, how, options, tmp_path):
        tower = trained(names, kind, how, **options)
        (network,), _ = self.run(tower, tmp_path / "tower")
        is_timm = not hasattr(network, "config")
        inputs = inputs_of(tower)
        with torch.no_grad():
            network.eval()
            theirs = network.forward_features(**{"x": inputs["pixel_values"]}) if is_timm else network(**inputs)[0]
            assert (theirs - tower.model(**inputs)[0]).abs().max() < 1e-5

    @pytest.mark.parametrize("kind", ["bert", "vit"])
    @pytest.mark.parametrize("options", [{}, {"truncate_layers": 1, "pooling": "mean"}])
    def test_low_rank_weights_on_a_public_encoder(self, names, kind, options, tmp_path, monkeypatch):
        """In the cache of the Hub's client, as a download leaves it."""
        place = tmp_path / "hub" / "models--owner--name"
        shutil.copytree(names[kind].removeprefix("timm:"), place / "snapshots" / ("a" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("a" * 40)
        for module in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
            monkeypatch.setattr(module, str(tmp_path / "hub"), raising=False)
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        tower = load(kind, "owner/name", **options)
        tower.set_trainable("lora")
        train_steps(tower)
        found, text = self.run(tower, tmp_path / "tower")
        assert not (tmp_path / "tower" / "config.json").exists()
        if options:
            assert found == []
            assert "No other library reads it" in text
            return
        with torch.no_grad():
            theirs = found[0].eval()(**inputs_of(tower))[0]
            assert (theirs - tower.model(**inputs_of(tower))[0]).abs().max() < 1e-5

    def test_metadata_name_public_data_alone(self, names, tmp_path):
        tower = trained(names, "dinov2", truncate_layers=1)
        words = [
            "unknown",
            "MIMIC-CXR",
            "metadata",
            "1 billion sentence pairs of the web",
            "unnamed image-report pairs",
        ]
        tower.spec["pretraining_data"] = words
        save_tower(tower, tmp_path)
        card = ModelCard.load(write_tower_card(tmp_path))
        assert card.data.datasets == ["MIMIC-CXR"]
        assert all(name in card.text for name in words)
        assert "cut after 1 layer, trained in full" in card.text

    def test_of_two_towers_each_card_has_its_own_options_and_one_that_stayed_keeps_its_card(self, names, tmp_path):
        train_model(names, "lora", "full").save_pretrained(tmp_path)
        options = {"image_recipe": "slip", "sentence_recipe": "random", "lora_rank": "8", "merge_lora": "False"}
        towers = TrainedTowers({"vision": "lora", "text": "full"}, None, {}, options)
        arguments = AdaptorTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
        rows = {kind: card_of_training(towers, arguments, kind) for kind in towers.trainable}
        same = {"tower_learning_rate", "layer_decay"}
        assert set(rows["vision"]) == same | {"vision tower", "image_recipe", "lora_rank", "merge_lora"}
        assert set(rows["text"]) == same | {"text tower", "sentence_recipe"}
        assert set(card_of_training(towers, arguments, "vision", "text")) == set(rows["vision"]) | set(rows["text"])
        (tmp_path / "text_tower/README.md").write_text("of its training")
        complete_towers(tmp_path, {"vision": rows["vision"]})
        assert "| image_recipe | slip |" in (tmp_path / "vision_tower/README.md").read_text()
        assert (tmp_path / "text_tower/README.md").read_text() == "of its training"

    def test_a_cut_tower_says_so_everywhere_and_is_no_tested_preset(self, names):
        spec = load_vision_tower(names["dinov2"], truncate_layers=1, layers=[1]).spec
        said = "cut after 1 layer, layer 1 (norm)"
        assert tower_name(spec).endswith(said)
        assert f", {said} |" in describe_tower("vision", spec)
        facts = _model_facts({"vision_tower": spec, "aligner": "linear"}, {})
        assert f"{said}, revision" in facts["model"]
        assert partial_spec("vision", "dinov2-s", None, None)["tested"] is not None
        assert partial_spec("vision", "dinov2-s", None, None, truncate_layers=3)["tested"] is None

    def test_a_resnet_that_was_cut_is_refused_by_others(self, names, tmp_path):
        import timm

        tower = trained(names, "resnet", "full", truncate_layers=2)
        found, text = self.run(tower, tmp_path / "tower")
        assert found == []
        assert "cut after 2 layers" in text
        for pretrained in (True, False):
            with pytest.raises(TypeError, match="cut_by_adaptor_hf_after"):
                timm.create_model(f"local-dir:{tmp_path / 'tower'}", pretrained=pretrained)
        with pytest.raises(TypeError, match="cut_by_adaptor_hf_after"):
            AutoModel.from_pretrained(tmp_path / "tower")
        # One that trains on is saved as it was.
        again = load_vision_tower(str(tmp_path / "tower"))
        again.set_trainable(1)
        save_tower(again, tmp_path / "second")
        assert torch.equal(vectors(load_vision_tower(str(tmp_path / "second"))), vectors(tower))


class TestCheckpoint:
    @pytest.mark.parametrize("how", ["full", 1, "lora"])
    def test_names_its_towers_by_itself_and_gives_what_was_trained(self, names, how, tmp_path):
        model = train_model(names, how, how)
        run = tmp_path / "run"
        model.save_pretrained(run)
        saved = json.loads((run / "config.json").read_text())
        for side in ("vision_tower", "text_tower"):
            assert (saved[side]["name_or_path"], saved[side]["subfolder"]) == (".", side)
            assert json.loads((run / side / TOWER_FILE).read_text())["format"] == "adaptor_hf tower 1"
        assert str(tmp_path.parent) not in words_of(run)
        again = AdaptorModel.from_pretrained(run)
        assert torch.equal(outputs(again), outputs(model))
        for config in (
            again.config,
            AutoConfig.from_pretrained(run),
            AdaptorConfig.from_pretrained(run / "config.json"),
        ):
            assert config.vision_tower["name_or_path"] == str(run)
            assert config.vision_tower["subfolder"] == "vision_tower"
        assert torch.equal(vectors(load_vision_tower(again.config.vision_tower)), vectors(model.vision_model))
        assert torch.equal(vectors(load_text_tower(str(run / "text_tower"))), vectors(model.text_model))
        assert torch.equal(outputs(AutoModel.from_pretrained(str(run))), outputs(model))

    def test_one_tower_may_train_alone(self, names, tmp_path):
        model = train_model(names, "frozen", "lora")
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "vision_tower").exists()
        again = AdaptorModel.from_pretrained(tmp_path)
        assert torch.equal(outputs(again), outputs(model))
        assert "subfolder" not in again.config.vision_tower

    @pytest.mark.parametrize("how", ["full", "lora"])
    @pytest.mark.parametrize("copies", ["saved again", "without towers", "head", "head without tower", "moved", "half"])
    def test_copies_follow(self, names, how, copies, tmp_path):
        model = train_model(names, how, how)
        model.save_pretrained(tmp_path / "run")
        expected = outputs(model)
        target = tmp_path / "copy"
        if copies == "saved again":
            AdaptorModel.from_pretrained(tmp_path / "run").save_pretrained(target)
        elif copies == "without towers":
            AdaptorModel.from_pretrained(tmp_path / "run", load_towers=False).save_pretrained(target)
        elif copies == "head":
            AdaptorForImageClassification.from_adaptor(model, num_labels=2).save_pretrained(target)
        elif copies == "head without tower":
            head = AdaptorForImageClassification.from_pretrained(tmp_path / "run", load_towers=False)
            head.save_pretrained(target)
        elif copies == "moved":
            shutil.move(tmp_path / "run", target)
        else:
            AdaptorModel.from_pretrained(tmp_path / "run", dtype=torch.float16).save_pretrained(target)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert str(tmp_path.parent) not in words_of(target)
        again = AdaptorModel.from_pretrained(target, dtype=torch.float32)
        same = torch.equal(outputs(again), expected)
        assert same or (copies == "half" and (outputs(again) - expected).abs().max() < 0.02)
        if "head" in copies:
            head = AdaptorForImageClassification.from_pretrained(target)
            assert torch.equal(vectors(head.adaptor.vision_model), vectors(model.vision_model))

    def test_training_goes_on_from_a_saved_tower(self, names, tmp_path):
        train_model(names, "lora", "full").save_pretrained(tmp_path / "first")
        model = AdaptorModel.from_pretrained(tmp_path / "first")
        before = outputs(model)
        model.set_trainable_towers("lora", 1)
        train_steps(model.vision_model)
        train_steps(model.text_model)
        assert not torch.equal(outputs(model), before)
        model.save_pretrained(tmp_path / "second")
        again = AdaptorModel.from_pretrained(tmp_path / "second")
        assert torch.equal(outputs(again), outputs(model))
        assert (again.config.vision_tower["trained"], again.config.text_tower["trained"]) == ("lora", 1)
        assert again.config.text_tower["base_tower"]["name_or_path"] == Path(names["bert"]).name

    def test_towers_in_the_checkpoint_beside_one_that_trained(self, names, tmp_path):
        model = train_model(names, "lora", "frozen", towers_in_checkpoint=True)
        with torch.no_grad():
            next(model.text_model.parameters()).add_(0.1)
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "text_tower").exists()
        again = AdaptorModel.from_pretrained(tmp_path)
        assert torch.equal(outputs(again), outputs(model))

    def test_cards_and_rows_of_a_tower_go_along_but_not_into_a_push(self, names, tmp_path):
        from safetensors.torch import save_file

        train_model(names).save_pretrained(tmp_path / "run")
        tower = tmp_path / "run" / "vision_tower"
        (tower / "README.md").write_text("a card")
        rows = {"metadata": {"training_rows": json.dumps({"private_key": None})}}
        save_file({"x": torch.zeros(1)}, tower / "training_rows.safetensors", **rows)
        model = AdaptorModel.from_pretrained(tmp_path / "run")
        model.save_pretrained(tmp_path / "copy")
        copied = {path.name for path in (tmp_path / "copy" / "vision_tower").iterdir()}
        assert {"README.md", "training_rows.safetensors"} <= copied
        with local_hub() as hub:
            model.push_to_hub("owner/name")
        assert {"vision_tower/tower.json", "vision_tower/model.safetensors", "text_tower/tokenizer.json"} <= set(
            hub.files
        )
        assert not [name for name in hub.files if "training_rows" in name]
        assert str(tmp_path).encode() not in hub.received

    def test_a_trained_model_that_was_not_saved_yet_can_be_pushed(self, names):
        model = train_model(names, "lora", "full")
        with local_hub() as hub:
            model.push_to_hub("owner/name")
        assert {"vision_tower/adapter_model.safetensors", "text_tower/model.safetensors"} <= set(hub.files)
        assert Path(names["dinov2"]).parent.as_posix().encode() not in hub.received

    def test_an_adapter_of_peft_on_a_model_with_a_trained_tower(self, names, tmp_path):
        import peft

        train_model(names, "lora", "full").save_pretrained(tmp_path / "run")
        model = AdaptorModel.from_pretrained(tmp_path / "run")
        config = peft.LoraConfig(
            r=2, target_modules=r"text_model\..*\.query|shared_encoder\..*fc1", init_lora_weights=False
        )
        adapted = peft.get_peft_model(model, config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
        again = AdaptorModel.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(outputs(again), outputs(adapted))

    def test_an_adaptor_on_embeddings_takes_the_tower_along_or_names_its_place(self, names, tmp_path):
        save_tower(trained(names, "dinov2"), tmp_path / "tower")
        spec = load_vision_tower(str(tmp_path / "tower")).spec
        model = AdaptorModel(AdaptorConfig(vision_hidden_size=32, vision_tower=spec, **SMALL))
        model.save_pretrained(tmp_path / "with")
        assert (tmp_path / "with" / "vision_tower" / TOWER_FILE).is_file()
        tower = AdaptorModel.from_pretrained(tmp_path / "with").vision_model
        assert torch.equal(vectors(tower), vectors(load_vision_tower(str(tmp_path / "tower"))))
        shutil.move(tmp_path / "tower", tmp_path / "gone")
        model.save_pretrained(tmp_path / "without")
        saved = json.loads((tmp_path / "without" / "config.json").read_text())
        assert saved["vision_tower"]["name_or_path"] == str(tmp_path / "tower")
        assert not [key for key in saved if key.startswith("_")]
        with pytest.raises(ValueError, match="folder of this machine"):
            model.push_to_hub("owner/name")
        again = AdaptorModel.from_pretrained(tmp_path / "without", load_towers=False)
        with pytest.raises(FileNotFoundError, match="no folder of a trained tower"):
            again.load_towers()
        shutil.move(tmp_path / "gone", tmp_path / "tower")
        again.save_pretrained(tmp_path / "back")
        assert json.loads((tmp_path / "back" / "config.json").read_text())["vision_tower"]["name_or_path"] == "."


class TestHub:
    @pytest.fixture
    def repository(self, names, tmp_path, monkeypatch):
        """A checkpoint in the cache of the Hub's client, as a download leaves it."""
        model = train_model(names, "lora", "full")
        place = tmp_path / "hub" / "models--owner--name"
        model.save_pretrained(place / "snapshots" / ("a" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("a" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        return model, place

    def load(self, place, **options):
        return AdaptorModel.from_pretrained("owner/name", cache_dir=place.parent, **options)

    def test_towers_are_found_by_the_id_and_its_commit(self, repository, tmp_path):
        model, place = repository
        again = self.load(place)
        assert torch.equal(outputs(again), outputs(model))
        spec = again.config.text_tower
        assert (spec["name_or_path"], spec["revision"], spec["subfolder"]) == ("owner/name", "a" * 40, "text_tower")
        assert torch.equal(vectors(load_text_tower(spec, cache_dir=place.parent)), vectors(model.text_model))
        assert load_text_tower(spec, cache_dir=place.parent).processor("effusion")["input_ids"]
        again.save_pretrained(tmp_path / "copy")
        assert json.loads((tmp_path / "copy" / "config.json").read_text())["text_tower"]["name_or_path"] == "."
        assert torch.equal(outputs(AdaptorModel.from_pretrained(tmp_path / "copy")), outputs(model))

    def test_what_was_not_downloaded_is_said(self, repository):
        place = repository[1]
        shutil.rmtree(place / "snapshots" / ("a" * 40) / "text_tower")
        with pytest.raises(OSError, match=r"text_tower.*is not there"):
            self.load(place)
        assert self.load(place, load_towers=False).text_model is None

    def test_a_checkpoint_in_a_subfolder(self, names, tmp_path):
        model = train_model(names, 1, "frozen")
        model.save_pretrained(tmp_path / "repository" / "best")
        for kind in (AdaptorModel, AutoModel):
            again = kind.from_pretrained(tmp_path / "repository", subfolder="best")
            assert torch.equal(outputs(again), outputs(model))


class TestDamage:
    @pytest.fixture
    def run(self, names, tmp_path):
        train_model(names, "lora", "full").save_pretrained(tmp_path / "run")
        return tmp_path / "run"

    def test_a_missing_folder(self, run):
        shutil.rmtree(run / "vision_tower")
        with pytest.raises(FileNotFoundError, match=r"'vision_tower', which is not there.*load_towers=False"):
            AdaptorModel.from_pretrained(run)
        model = AdaptorModel.from_pretrained(run, load_towers=False)
        with pytest.raises(FileNotFoundError, match="which is not there"):
            model.save_pretrained(run.parent / "copy")
        assert not (run.parent / "copy" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", '{"format": "adaptor_hf tower 9", "spec": {}}', '{"format": "adaptor_hf tower 1"}',
         '{"format": "adaptor_hf tower 1", "spec": {"kind": "vision"}}', "[" * 100_000],
    )  # fmt: skip
    def test_a_damaged_tower_file(self, run, content):
        (run / "vision_tower" / TOWER_FILE).write_text(content)
        for read in (lambda: AdaptorModel.from_pretrained(run), lambda: load_vision_tower(str(run / "vision_tower"))):
            with pytest.raises(ValueError, match=r"tower\.json is damaged or of another version"):
                read()

    @pytest.mark.parametrize("side", ["vision_tower", "text_tower"])
    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_damaged_weights(self, run, side, damage):
        for file in (run / side).glob("*.safetensors"):
            content = file.read_bytes()
            file.unlink() if damage == "gone" else file.write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=r"safetensors|truncated|lacks"):
            AdaptorModel.from_pretrained(run)

    def test_low_rank_weights_of_another_tower(self, run, names):
        tower = load("dinov2", names["dinov2"])
        tower.set_trainable("lora")
        file = run / "vision_tower" / "adapter_model.safetensors"
        from safetensors.torch import load_file, save_file

        save_file({name.replace("layer.1", "layer.7"): value for name, value in load_file(file).items()}, file)
        with pytest.raises(ValueError, match="It is of another tower"):
            load_tower_weights(tower, run / "vision_tower")

    def test_weights_of_another_network(self, run, names):
        with pytest.raises(ValueError, match="are not of this tower"):
            load_tower_weights(load("dinov2", names["dinov2"]), run / "text_tower")

    def test_a_raw_config_is_refused(self, run):
        saved = json.loads((run / "config.json").read_text())
        with pytest.raises(ValueError, match=r"folder of its checkpoint.*AdaptorConfig\.from_pretrained"):
            load_vision_tower(saved["vision_tower"])
        with pytest.raises(ValueError, match="folder of its checkpoint"):
            AdaptorModel(AdaptorConfig(**saved)).load_towers()

    @pytest.mark.parametrize("place", ["../run/vision_tower", "/etc", "..\\x"])
    def test_a_place_outside_of_the_checkpoint_is_refused(self, run, place):
        spec = AdaptorConfig.from_pretrained(run).vision_tower
        with pytest.raises(ValueError, match="must lie in its checkpoint"):
            load_vision_tower(spec | {"subfolder": place})

    def test_a_save_that_fails_leaves_the_folder_before(self, names, tmp_path, monkeypatch):
        tower = trained(names, "dinov2")
        save_tower(tower, tmp_path / "tower")
        before = {path.name: path.read_bytes() for path in (tmp_path / "tower").iterdir()}
        train_steps(tower)
        monkeypatch.setattr(
            type(tower.model), "save_pretrained", lambda *given, **named: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            save_tower(tower, tmp_path / "tower")
        assert {path.name: path.read_bytes() for path in (tmp_path / "tower").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["tower"]

    def test_what_an_earlier_tower_left_is_gone(self, names, tmp_path):
        tower = trained(names, "dinov2", "lora")
        save_tower(tower, tmp_path / "tower")
        save_tower(tower, tmp_path / "tower", merge=True)
        assert not (tmp_path / "tower" / "adapter_config.json").exists()
        merge_lora(tower)
        assert torch.equal(vectors(load_vision_tower(str(tmp_path / "tower"))), vectors(tower))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_that_cannot_be_written(self, names, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            save_tower(trained(names, "dinov2"), tmp_path / "tower")

    def test_a_file_in_place_of_the_folder(self, names, tmp_path):
        (tmp_path / "tower").write_text("mine")
        with pytest.raises(OSError, match="tower"):
            save_tower(trained(names, "dinov2"), tmp_path / "tower")
        assert (tmp_path / "tower").read_text() == "mine"

    def test_a_tower_that_has_not_been_trained(self, names, tmp_path):
        with pytest.raises(ValueError, match="has not been trained here"):
            save_tower(load("dinov2", names["dinov2"]), tmp_path / "tower")

    def test_peft_that_is_not_there(self, run, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match="pip install peft"):
            load_vision_tower(str(run / "vision_tower"))


class TestKinds:
    @pytest.mark.parametrize(("kind", "count"), [("resnet", 2), ("vit", 2), ("dinov2", 1), ("bert", 1)])
    def test_a_network_that_was_cut(self, names, kind, count, tmp_path):
        pooling = {"bert": {"pooling": "mean"}}.get(kind, {})
        tower = trained(names, kind, 1, truncate_layers=count, **pooling)
        save_tower(tower, tmp_path / "tower")
        again = load(kind, tmp_path / "tower")
        assert torch.equal(vectors(again), vectors(tower))
        assert again.spec["truncate_layers"] == count

    @pytest.mark.parametrize("how", ["full", "lora"])
    def test_a_network_from_random_weights(self, names, how, tmp_path):
        place = Path(names["dinov2"]) / "config.json"
        tower = load_vision_tower(f"random:{place}", init_seed=3)
        tower.set_trainable(how)
        train_steps(tower)
        save_tower(tower, tmp_path / "tower")
        again = load_vision_tower(str(tmp_path / "tower"))
        assert torch.equal(vectors(again), vectors(tower))
        assert "init_seed" not in again.spec
        assert str(place.parent) not in words_of(tmp_path / "tower")

    @pytest.mark.parametrize("layers", [[1, 2]])
    def test_joined_layers(self, names, layers, tmp_path):
        tower = trained(names, "dinov2", "full", layers=layers)
        save_tower(tower, tmp_path / "tower")
        assert torch.equal(vectors(load_vision_tower(str(tmp_path / "tower"))), vectors(tower))

    @pytest.mark.slow
    def test_a_compiled_tower(self, names, tmp_path):
        tower = trained(names, "dinov2", "lora")
        expected = vectors(tower)
        tower.model = torch.compile(tower.model)
        save_tower(tower, tmp_path / "tower")
        assert torch.equal(vectors(load_vision_tower(str(tmp_path / "tower"))), expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["full", 1])
    def test_torchxrayvision(self, how, tmp_path):
        from collections import OrderedDict

        from torchxrayvision import autoencoders

        url = autoencoders.model_urls["101-elastic"]["weights_url"]
        torch.manual_seed(0)
        weights = autoencoders.ResNetAE(weights=None).state_dict()
        torch.save(OrderedDict(weights), tmp_path / url.rpartition("/")[2])
        tower = load_vision_tower("xrv:101-elastic", cache_dir=tmp_path)
        before = state_of(tower)
        tower.set_trainable(how)
        train_steps(tower, 1)
        after = moved(before, state_of(tower))
        assert how == "full" or all(name.startswith("model.layer4.") for name in after)
        save_tower(tower, tmp_path / "tower")
        again = load_vision_tower(str(tmp_path / "tower"))
        assert torch.equal(vectors(again), vectors(tower))
        assert tower_identity(again) == tower_identity(tower)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import torch
from transformers import AutoModel
run, out = sys.argv[1:]
model = AutoModel.from_pretrained(run, trust_remote_code=True).eval()
pixels = torch.load(out + "/inputs.pt")
with torch.no_grad():
    result = {"image": model(pixel_values=pixels["pixels"]).image_embeds, "text": model(**pixels["text"]).text_embeds}
assert "adaptor_hf" not in sys.modules
torch.save(result, out + "/result.pt")
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_checkpoint_loads_without_the_package(names, how, tmp_path):
    model = train_model(names, how, how)
    model.save_pretrained(tmp_path / "run")
    torch.save({"pixels": PIXELS, "text": TEXT}, tmp_path / "inputs.pt")
    result = run_remote(REMOTE, tmp_path, tmp_path / "run")
    assert torch.equal(torch.cat([result["image"], result["text"]]), outputs(copy.deepcopy(model)))


def test_a_rename_that_fails_leaves_the_tower_that_was_there(names, tmp_path, monkeypatch):
    tower = trained(names, "dinov2")
    save_tower(tower, tmp_path / "tower")
    before, rename = load_vision_tower(str(tmp_path / "tower")), os.rename

    def fail(source, target):
        if str(source).endswith(".partial"):
            raise OSError("no room")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no room"):
        save_tower(tower, tmp_path / "tower")
    assert torch.equal(vectors(load_vision_tower(str(tmp_path / "tower"))), vectors(before))
    monkeypatch.undo()
    # As a kill between the two renames leaves it: the older one is kept until the new one is whole.
    os.rename(tmp_path / "tower", tmp_path / "tower.older")
    monkeypatch.setattr(tower_folders_adaptor, "_save_network", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_tower(tower, tmp_path / "tower")
    assert torch.equal(vectors(load_vision_tower(str(tmp_path / "tower"))), vectors(before))
