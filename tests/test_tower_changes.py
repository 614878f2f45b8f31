"""A save without towers refuses to lose a changed tower, and is not alarmed by casts, moves and quantisation."""

import copy

import pytest
import torch
from test_checkpoint import SMALL
from torch import nn

from adaptor_hf import AdaptorForImageClassification, AdaptorModel
from adaptor_hf.tower_weights_adaptor import changed_weights, mark_weights
from adaptor_hf.towers_adaptor import load_vision_tower

LOST = "are not those that were loaded"


@pytest.fixture
def model(vision_tower, text_tower):
    return copy.deepcopy(AdaptorModel.from_towers(vision_tower, text_tower, **SMALL)).eval()


def first(tower) -> nn.Parameter:
    return next(parameter for parameter in tower.parameters() if parameter.ndim == 2)


def other_weights(tower) -> dict:
    return {name: value + 0.01 if value.is_floating_point() else value for name, value in tower.state_dict().items()}


CHANGES = {
    "data": lambda model: first(model.vision_model).data.add_(1e-3),
    "one value": lambda model: first(model.text_model).data[1, 2].mul_(1.5),
    "in place": lambda model: first(model.text_model).detach().mul_(1.001),
    "other data": lambda model: setattr(first(model.text_model), "data", first(model.text_model).data * 1.001),
    "load_state_dict": lambda model: model.text_model.load_state_dict(other_weights(model.text_model)),
    "swapped rows": lambda model: first(model.text_model).data.copy_(first(model.text_model).data.flip(0)),
    "a layer less": lambda model: model.text_model.model.encoder.layer.__delitem__(-1),
    "a layer more": lambda model: model.text_model.model.add_module("more", nn.Linear(2, 2).requires_grad_(False)),
    "after a cast": lambda model: first(model.half().text_model).data.add_(1e-2),
    "before a cast": lambda model: (first(model.text_model).data.add_(1e-2), model.half().float()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_refused_and_nothing_is_written(model, tmp_path, change):
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        change(model)
    with pytest.raises(ValueError, match=LOST):
        model.save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=LOST):
        AdaptorForImageClassification.from_adaptor(model).save_pretrained(tmp_path / "head")


def test_batch_statistics_of_a_tower_in_training_mode_are_a_change(tmp_path):
    model = AdaptorModel.from_towers("lite0", None, hidden_size=48, num_attention_heads=4, intermediate_size=64)
    model.save_pretrained(tmp_path)
    model.vision_model.model.train()
    model.vision_model.model(torch.randn(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"vision_model .*(running_mean|num_batches_tracked|bn).*towers_in_checkpoint"):
        model.save_pretrained(tmp_path)


def test_a_merged_adapter_is_a_change_and_one_that_is_not_merged_too(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=r"vision_model\..*\.(q_proj|v_proj)", init_lora_weights=False)
    peft_model = get_peft_model(model, lora)
    peft_model.requires_grad_(False)
    with pytest.raises(ValueError, match=LOST):
        model.save_pretrained(tmp_path)
    merged = peft_model.merge_and_unload()
    with pytest.raises(ValueError, match=LOST):
        merged.save_pretrained(tmp_path)
    # The way that the message names.
    merged.config.towers_in_checkpoint = True
    merged.save_pretrained(tmp_path)
    again = AdaptorModel.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).image_embeds, merged(pixel_values=pixels).image_embeds)


def test_a_changed_tower_in_its_own_folder_is_named_by_the_next_checkpoint(model, tmp_path):
    with torch.no_grad():
        first(model.vision_model).add_(0.1)
    model.vision_model.model.save_pretrained(tmp_path / "tower")
    model.vision_model.processor.save_pretrained(tmp_path / "tower")
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(pixel_values=pixels).image_embeds
    model.attach_towers(vision_model=load_vision_tower(str(tmp_path / "tower")))
    model.save_pretrained(tmp_path / "model")
    again = AdaptorModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).image_embeds, expected)


CASTS = {
    "nothing": lambda model: model,
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "half and back": lambda model: model.half().float(),
    "several": lambda model: model.bfloat16().half().double().float(),
    "half, then bfloat16": lambda model: model.half().bfloat16(),
    "past the modules": lambda model: [setattr(p, "data", p.data.to(torch.bfloat16)) for p in model.parameters()],
    "a copy": copy.deepcopy,
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "compiled": lambda model: setattr(model.text_model, "model", torch.compile(model.text_model.model)),
    "training": lambda model: model.train()(image_embeds=torch.randn(2, 32)),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_no_false_alarm(model, tmp_path, cast):
    changed = cast(model)
    model = changed if isinstance(changed, AdaptorModel) else model
    model.save_pretrained(tmp_path)
    assert AdaptorModel.from_pretrained(tmp_path, load_towers=False).vision_model is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_move_to_the_gpu_is_no_change(model, tmp_path):
    model.cuda().save_pretrained(tmp_path)
    model.half().save_pretrained(tmp_path)
    with torch.no_grad():
        first(model.text_model).data.add_(1e-2)
    with pytest.raises(ValueError, match=LOST):
        model.save_pretrained(tmp_path)


def test_a_tower_out_of_a_checkpoint_is_warned_about(model, tmp_path, caplog):
    from transformers.utils import logging

    model.config.towers_in_checkpoint = True
    model.save_pretrained(tmp_path / "with")
    again = AdaptorModel.from_pretrained(tmp_path / "with")
    again.config.towers_in_checkpoint = False
    logging.enable_propagation()
    logging.warning_once.cache_clear()
    again.save_pretrained(tmp_path / "without")
    logging.disable_propagation()
    assert "came in a checkpoint" in caplog.text


def test_marks_of_what_is_not_there_yet_and_of_what_cannot_be_compared():
    layer = nn.Linear(8, 4)
    marks = mark_weights(layer.state_dict())
    assert mark_weights(nn.Linear(8, 4, device="meta").state_dict()) is None
    assert changed_weights(marks, layer.state_dict()) == []
    assert changed_weights(marks, nn.Linear(8, 4, device="meta").state_dict()) == []
    assert changed_weights(marks, {"weight": torch.zeros(0), "bias": layer.bias}) == []
    assert changed_weights(marks, {"weight": layer.weight[:2], "bias": layer.bias}) == ["weight"]
    assert changed_weights(marks, {"weight": layer.weight.to(torch.int8), "bias": layer.bias}) == []
    assert changed_weights(marks, nn.Linear(8, 4).state_dict()) == ["bias", "weight"]
