"""Folders that peft wrote load by the transformers classes, with adapters on the Adaptor and on towers."""

import copy
import json

import pytest
import torch
from test_checkpoint import SMALL
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel

peft = pytest.importorskip("peft")
ON_BOTH = r".*(vision_model\..*\.(q_proj|v_proj)|text_model\..*\.(query|value)|shared_encoder\..*fc1)"
PIXELS = torch.linspace(-1, 1, 2 * 3 * 28 * 28).reshape(2, 3, 28, 28)
INPUTS = {"pixel_values": PIXELS, "input_ids": torch.arange(5, 21).reshape(2, 8)}


def adapt(model, folder, **kwargs):
    """Adapters with weights that change what the model gives, saved by peft."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=ON_BOTH, init_lora_weights=False, **kwargs)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def base(vision_tower, text_tower, tmp_path):
    torch.manual_seed(0)
    model = AdaptorModel.from_towers(vision_tower, text_tower, **SMALL).eval()
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, AdaptorModel.from_pretrained])
@pytest.mark.parametrize("trained", [None, ["visual_projection", "text_projection"]])
def test_an_adapter_on_adaptor_and_towers_is_loaded_with_its_base(base, tmp_path, load, trained):
    adapted = adapt(AdaptorModel.from_pretrained(base), tmp_path / "lora", modules_to_save=trained)
    again = load(tmp_path / "lora")
    assert isinstance(again, AdaptorModel)
    assert not again.training
    with torch.no_grad():
        expected, plain = adapted(**INPUTS), AdaptorModel.from_pretrained(base)(**INPUTS)
        output = again(**INPUTS)
    assert torch.equal(output.logits_per_image, expected.logits_per_image)
    for name in ("image_embeds", "text_embeds"):
        assert (plain[name] - expected[name]).abs().max() > 1e-3


def test_an_adapter_beside_its_base_is_loaded(base):
    adapted = adapt(AdaptorModel.from_pretrained(base), base)
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(base)(**INPUTS).image_embeds, adapted(**INPUTS).image_embeds)


@pytest.mark.parametrize(
    ("head", "auto"),
    [
        (AdaptorForImageClassification, AutoModelForImageClassification),
        (AdaptorForSemanticSegmentation, AutoModelForSemanticSegmentation),
    ],
)
def test_an_adapter_on_a_head(base, tmp_path, head, auto):
    head.from_adaptor(AdaptorModel.from_pretrained(base), num_labels=3).save_pretrained(tmp_path / "head")
    name = "classifier" if head is AdaptorForImageClassification else "decoder"
    adapted = adapt(head.from_pretrained(tmp_path / "head").eval(), tmp_path / "lora", modules_to_save=[name])
    with torch.no_grad():
        expected = adapted(pixel_values=PIXELS).logits
        for load in (auto.from_pretrained, head.from_pretrained):
            assert torch.equal(load(tmp_path / "lora").eval()(pixel_values=PIXELS).logits, expected)


def test_a_loaded_adapter_on_a_tower_is_saved_and_trained_base_weights_are_not_lost(base, tmp_path, monkeypatch):
    # transformers asks for the next minor version of peft, and not for anything in it that is used here.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")
    adapted = adapt(AdaptorModel.from_pretrained(base), tmp_path / "lora")
    loaded = AdaptorModel.from_pretrained(tmp_path / "lora")
    loaded.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path / "again")(**INPUTS)
        assert torch.equal(again.logits_per_image, adapted(**INPUTS).logits_per_image)
        next(p for n, p in loaded.text_model.named_parameters() if n.endswith("base_layer.weight")).add_(0.1)
    with pytest.raises(ValueError, match="are not those that were loaded"):
        loaded.save_pretrained(tmp_path / "lost")


def test_without_towers_an_adapter_on_the_adaptor_serves_cached_embeddings(base, tmp_path):
    model = AdaptorModel.from_pretrained(base, load_towers=False)
    config = peft.LoraConfig(r=2, target_modules=r"shared_encoder\..*fc1", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "lora")
    again = AdaptorModel.from_pretrained(tmp_path / "lora", load_towers=False)
    assert again.vision_model is None
    embeds = torch.randn(4, 32)
    with torch.no_grad():
        assert torch.equal(again(image_embeds=embeds).image_embeds, adapted(image_embeds=embeds).image_embeds)


def test_an_adapter_without_a_base_says_how_to_load_it(vision_tower, text_tower, tmp_path):
    model = copy.deepcopy(AdaptorModel.from_towers(vision_tower, text_tower, **SMALL))
    adapted = adapt(copy.deepcopy(model), tmp_path)
    assert not json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    for kind in (AdaptorModel, AdaptorForSemanticSegmentation):
        with pytest.raises(OSError, match=r"names no base model.*peft\.PeftModel\.from_pretrained\(model, folder\)"):
            kind.from_pretrained(tmp_path)
    with torch.no_grad():
        again = peft.PeftModel.from_pretrained(model, tmp_path).eval()(**INPUTS)
        assert torch.equal(again.image_embeds, adapted(**INPUTS).image_embeds)
    for damaged in ("[]", '{"base_model_name_or_path": 3}'):
        (tmp_path / "adapter_config.json").write_text(damaged)
        with pytest.raises(OSError, match="names no base model"):
            AdaptorModel.from_pretrained(tmp_path)
