"""Checkpoints of other people become towers that compute what the source architecture computes."""

import argparse
import os

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.towers.__main__ import main as towers_command
from adaptor_hf.towers.convert import convert_tower


def save(folder, state, **more):
    path = folder / "checkpoint.pt"
    torch.save({"state_dict": state, "epoch": 3, **more}, path)
    return path


def under(prefix, model):
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def small_vit(**changes):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 384, "num_heads": 12, "num_classes": 0} | changes
    return timm.create_model("vit_base_patch16_224", **sizes).eval()


def resnet18(**changes):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, **changes).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return network


def features(network, images):
    with torch.no_grad():
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            images = getattr(network, part)(images)
    return images.mean((2, 3))


@pytest.mark.parametrize(
    ("format", "prefix", "head"),
    [
        ("mgca", "img_encoder_q.model.", False),
        ("lovt", "model_b.encoder.feature_extractor.backbone_layers.", False),
        ("lovt", "", True),
        ("torchvision", "", True),
        ("torchvision", "module.", True),
        ("moco", "module.encoder_q.", True),
        ("medclip", "vision_model.model.", True),
    ],
)
def test_a_resnet_gives_what_torchvision_gives(format, prefix, head, tmp_path):
    network = resnet18()
    if not head:
        network.fc = torch.nn.Identity()
    state = under(prefix, network)
    if prefix:
        state |= {"logit_scale": torch.ones(())}
    found = convert_tower(save(tmp_path, state), format, tmp_path / "tower")
    assert found["heads"] == (["fc.bias", "fc.weight"] if head else [])
    assert found["outside"] == (["logit_scale"] if prefix else [])
    images = torch.randn(2, 3, 64, 64)
    tower = load_vision_tower(str(tmp_path / "tower"))
    assert torch.allclose(tower(images).pooler_output, features(network, images), atol=1e-5)


@pytest.mark.parametrize(
    ("format", "prefix"),
    [
        ("mgca", "img_encoder_q.model."),
        ("slip", "module.visual."),
        ("moco", "module.base_encoder."),
        ("open_clip", "visual.trunk."),
    ],
)
def test_a_vit_gives_what_timm_gives(format, prefix, tmp_path):
    network = small_vit()
    state = under(prefix, network) | {"module.image_projection": torch.zeros(2)}
    if format == "moco":
        state |= {f"{prefix}head.0.weight": torch.zeros(4, 384), "module.momentum_encoder.cls_token": torch.ones(1)}
    file = save(tmp_path, state, args=argparse.Namespace(lr=0.1))
    found = convert_tower(file, format, tmp_path / "tower")
    assert found["heads"] == (["head.0.weight"] if format == "moco" else [])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.forward_features(images)
    output = load_vision_tower(str(tmp_path / "tower"))(images)
    assert torch.allclose(output.pooler_output, expected[:, 0], atol=1e-5)
    assert torch.allclose(output.last_hidden_state, expected[:, 1:], atol=1e-5)


def open_clip_forward(state, images, heads, activation):
    """The visual transformer of open_clip, from its description, with torch's own attention."""
    width = state["conv1.weight"].shape[0]
    functional = torch.nn.functional
    x = functional.conv2d(images, state["conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([state["class_embedding"].expand(len(x), 1, width), x], dim=1) + state["positional_embedding"]
    norm = lambda x, name: functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    x = norm(x, "ln_pre")
    for layer in range(2):
        name = f"transformer.resblocks.{layer}."
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
        attention.load_state_dict(
            {k.removeprefix(name + "attn."): v for k, v in state.items() if k.startswith(name + "attn.")}
        )
        normal = norm(x, name + "ln_1")
        x = x + attention(normal, normal, normal, need_weights=False)[0]
        hidden = functional.linear(
            norm(x, name + "ln_2"), state[name + "mlp.c_fc.weight"], state[name + "mlp.c_fc.bias"]
        )
        x = x + functional.linear(
            activation(hidden), state[name + "mlp.c_proj.weight"], state[name + "mlp.c_proj.bias"]
        )
    return norm(x[:, 0], "ln_post"), x[:, 1:]


@pytest.mark.parametrize("quick", [False, True])
def test_open_clips_own_transformer(quick, tmp_path):
    torch.manual_seed(0)
    width, hidden = 128, 256
    shapes = {"class_embedding": (width,), "positional_embedding": (5, width), "conv1.weight": (width, 3, 14, 14)}
    shapes |= {"proj": (width, 16)} | {f"{n}.{p}": (width,) for n in ("ln_pre", "ln_post") for p in ("weight", "bias")}
    for layer in range(2):
        parts = {"ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,)}
        parts |= {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        parts |= {"attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,)}
        parts |= {"mlp.c_fc.weight": (hidden, width), "mlp.c_fc.bias": (hidden,)}
        parts |= {"mlp.c_proj.weight": (width, hidden), "mlp.c_proj.bias": (width,)}
        shapes |= {f"transformer.resblocks.{layer}.{name}": shape for name, shape in parts.items()}
    state = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    file = save(tmp_path, {f"visual.{name}": value for name, value in state.items()} | {"text.proj": torch.ones(1)})
    found = convert_tower(file, "open_clip", tmp_path / "tower", quick_gelu=quick)
    assert (found["heads"], found["outside"]) == (["proj"], ["text.proj"])
    images = torch.randn(2, 3, 28, 28)
    activation = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else torch.nn.functional.gelu
    with torch.no_grad():
        pooled, tokens = open_clip_forward(state, images, 2, activation)
    output = load_vision_tower(str(tmp_path / "tower"))(images)
    assert torch.allclose(output.pooler_output, pooled, atol=1e-5)
    assert torch.allclose(output.last_hidden_state, tokens, atol=1e-5)


def test_medclips_swin_and_berts(tmp_path, tiny_bert):
    from transformers import BertModel, SwinConfig, SwinModel

    torch.manual_seed(0)
    swin = SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=7, image_size=224)).eval()
    bert = BertModel.from_pretrained(tiny_bert)
    # Saved, transformers gives the keys that were published.
    swin.save_pretrained(tmp_path / "swin")
    published = load_file(tmp_path / "swin" / "model.safetensors")
    assert "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table" in published
    state = {f"vision_model.model.{name}": value for name, value in published.items()} | under(
        "text_model.model.", bert
    )
    state |= {"vision_model.projection_head.weight": torch.zeros(2, 2)}
    file = save(tmp_path, state)
    convert_tower(file, "medclip", tmp_path / "vision")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = swin(images)
    output = load_vision_tower(str(tmp_path / "vision"))(images)
    assert torch.allclose(output.pooler_output, expected.pooler_output, atol=1e-5)
    state.pop("vision_model.model.layernorm.bias")
    with pytest.raises(ValueError, match=r"missing keys layernorm\.bias"):
        convert_tower(save(tmp_path, state), "medclip", tmp_path / "other")
    options = {"kind": "text", "tokenizer": tiny_bert, "num_attention_heads": 2}
    convert_tower(file, "medclip", tmp_path / "text", **options)
    with pytest.warns(FutureWarning, match="side.* is now kind"):
        convert_tower(file, "medclip", tmp_path / "old", **(options | {"kind": "vision", "side": "text"}))
    assert load_text_tower(str(tmp_path / "old")).spec["kind"] == "text"
    original, tower = load_text_tower(str(tiny_bert)), load_text_tower(str(tmp_path / "text"))
    batch = tower.processor(["no pleural effusion"], return_tensors="pt")
    assert torch.equal(tower(**batch).pooler_output, original(**batch).pooler_output)
    # MGCA's has no pooler, and layers of a fusion.
    state = {f"text_encoder_q.model.{k}": v for k, v in bert.state_dict().items() if not k.startswith("pooler")}
    state["text_encoder_q.model.encoder.layer.0.crossattention.self.query.weight"] = torch.zeros(1)
    found = convert_tower(save(tmp_path, state), "mgca", tmp_path / "mgca", **options)
    assert len(found["heads"]) == 1
    again = load_text_tower(str(tmp_path / "mgca"))
    assert torch.equal(again(**batch).pooler_output, load_text_tower(tiny_bert, pooling="cls")(**batch).pooler_output)


@pytest.mark.parametrize(
    ("change", "format", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "torchvision", "is no network that torchvision"),
        (lambda s: s.pop("layer2.0.bn1.bias"), "torchvision", r"1 missing: layer2\.0\.bn1\.bias"),
        (lambda s: s.update({"surprise": torch.zeros(1)}), "torchvision", "1 unexpected: surprise"),
        (lambda s: s.update({"bn1.bias": torch.zeros(3)}), "torchvision", "1 of another shape: bn1.bias"),
        (lambda s: None, "slip", r"no tensor begins with module\.visual\."),
    ],
)
def test_what_does_not_fit_is_refused_and_listed(change, format, message, tmp_path):
    state = resnet18().state_dict()
    change(state)
    file = save(tmp_path, state)
    with pytest.raises(ValueError, match=message):
        convert_tower(file, format, tmp_path / "tower")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt"}


def test_another_stem_and_unknown_heads_are_refused(tmp_path):
    state = under("module.base_encoder.", small_vit())
    state["module.base_encoder.patch_embed.proj.0.weight"] = state.pop("module.base_encoder.patch_embed.proj.weight")
    with pytest.raises(ValueError, match="another stem"):
        convert_tower(save(tmp_path, state), "moco", tmp_path / "tower")
    state = under("visual.", small_vit(embed_dim=96, num_heads=3))
    with pytest.raises(ValueError, match="--num_attention_heads"):
        convert_tower(save(tmp_path, state), "slip", tmp_path / "tower")
    convert_tower(save(tmp_path, state), "slip", tmp_path / "tower", num_attention_heads=3)


def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    file = save(tmp_path, resnet18().state_dict(), extra=Payload())
    with pytest.raises(ValueError, match="mkdir"):
        convert_tower(file, "torchvision", tmp_path / "tower")
    assert not marker.exists()


def test_the_command_lists_what_it_left_out_and_keeps_what_is_known(tmp_path, capsys):
    file = save(tmp_path, under("img_encoder_q.model.", resnet18()) | {"prototype_layer.weight": torch.zeros(1)})
    words = ["convert", str(file), "--format", "mgca", "--to", str(tmp_path / "tower"), "--license", "apache-2.0"]
    assert towers_command([*words, "--pretraining_data", "MIMIC-CXR"]) == 0
    printed = capsys.readouterr().out
    assert "prototype_layer.weight" in printed
    assert "fc.weight" in printed
    tower = load_vision_tower(str(tmp_path / "tower"))
    assert (tower.spec["license"], tower.spec["pretraining_data"]) == ("apache-2.0", ["MIMIC-CXR"])
    assert list(tower.processor.image_mean) == [0.5] * 3
    assert tower.processor.crop_size["height"] == 299
    assert sorted(load_file(tmp_path / "tower" / "model.safetensors"))[0] == "bn1.bias"
    with pytest.raises(SystemExit, match="is not empty"):
        towers_command(words)
