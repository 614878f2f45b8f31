"""What of a tower trains: gradients, modes, depths, low-rank weights, gradient checkpointing."""

import copy
import re

import pytest
import torch
from torch import nn
from trained_tower import RESNET, SMALL, TEXT, VIT, inputs_of, moved, state_of, timm_folder, train_steps, vectors
from transformers.utils import logging

from adaptor_hf import AdaptorForImageClassification, AdaptorModel
from adaptor_hf.frozen_towers_adaptor import VisionTower
from adaptor_hf.tower_training_adaptor import merge_lora, number_of_blocks, parameter_depths, parse_trainable
from adaptor_hf.towers_adaptor import load_text_tower, load_vision_tower

KINDS = ("dinov2", "bert", "vit", "resnet", "lite0")
ATTENDS = ("dinov2", "bert", "vit")


@pytest.fixture(scope="module")
def loaded(tiny_dinov2, tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    return {
        "dinov2": load_vision_tower(str(tiny_dinov2)),
        "bert": load_text_tower(str(tiny_bert)),
        "vit": load_vision_tower(timm_folder(folder / "vit", **VIT)),
        "resnet": load_vision_tower(timm_folder(folder / "resnet", "resnet10t", **RESNET)),
        "lite0": load_vision_tower("lite0"),
    }


@pytest.fixture
def tower(loaded, request):
    return copy.deepcopy(loaded[request.param])


def each(*kinds):
    return pytest.mark.parametrize("tower", kinds or KINDS, indirect=True)


@pytest.mark.parametrize(
    ("text", "value"), [("frozen", "frozen"), ("lora", "lora"), ("full", "full"), ("2", 2), (3, 3)]
)
def test_words_of_what_trains(text, value):
    assert parse_trainable(text) == value


@pytest.mark.parametrize("text", ["0", "-1", 0, "all", "", "1.5", True, None, "２"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="frozen, lora, full or a number"):
        parse_trainable(text)


class TestDepths:
    @pytest.mark.parametrize(
        ("kind", "count", "expected"),
        [
            ("dinov2", 2, {"embeddings.": 0, "encoder.layer.0.": 1, "encoder.layer.1.": 2, "layernorm.": 3}),
            ("bert", 2, {"embeddings.": 0, "encoder.layer.0.": 1, "encoder.layer.1.": 2, "pooler.": 3}),
            ("vit", 3, {"cls_token": 0, "pos_embed": 0, "patch_embed.": 0, "blocks.0.": 1, "blocks.2.": 3, "norm.": 4}),
            ("resnet", 4, {"conv1.": 0, "bn1.": 0, "layer1.": 1, "layer2.": 2, "layer3.": 3, "layer4.": 4}),
            ("lite0", 7, {"conv_stem.": 0, "bn1.": 0, "blocks.0.": 1, "blocks.6.": 7, "conv_head.": 8, "bn2.": 8}),
        ],
    )
    def test_of_known_networks(self, loaded, kind, count, expected):
        tower = loaded[kind]
        depths = parameter_depths(tower)
        assert number_of_blocks(tower) == count
        assert list(depths) == [name for name, _ in tower.named_parameters()]
        for part, depth in expected.items():
            found = {depths[name] for name in depths if re.match(rf"model\.(timm_model\.)?{re.escape(part)}", name)}
            assert found == {depth}, part

    @pytest.mark.parametrize("kind", ["vit", "resnet", "lite0"])
    def test_are_those_of_timm_but_for_what_follows_the_last_block(self, loaded, kind):
        from timm.models import group_parameters

        network, count = loaded[kind].model.timm_model, number_of_blocks(loaded[kind])
        theirs = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
        ours = {name.removeprefix("model.timm_model."): depth for name, depth in parameter_depths(loaded[kind]).items()}
        assert theirs == {name: min(depth, count) for name, depth in ours.items()}

    @pytest.mark.parametrize(
        ("kind", "first", "last", "before", "after"),
        [
            ("resnet", r"encoder\.stages\.0\.", r"encoder\.stages\.1\.", r"embedder\.", None),
            ("convnext", r"encoder\.stages\.0\.", r"encoder\.stages\.1\.", r"embeddings\.", r"layernorm\."),
            ("swin", r"encoder\.layers\.0\.", r"encoder\.layers\.1\.", r"embeddings\.", r"layernorm\."),
            (
                "mpnet",
                r"encoder\.layer\.0\.",
                r"encoder\.layer\.1\.",
                r".*(embeddings|relative_att)",
                r"pooler\.",
            ),
            ("clip_vision_model", r".*layers\.0\.", r".*layers\.1\.", r".*(embeddings|pre_lay)", r".*post_layernorm"),
            ("deberta-v2", r"encoder\.layer\.0\.", r"encoder\.layer\.1\.", r".*embeddings|encoder\.LayerNorm", None),
        ],
    )
    def test_of_other_networks_of_transformers(self, kind, first, last, before, after):
        from transformers import AutoConfig, AutoModel

        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        small |= {"image_size": 32, "patch_size": 16, "relative_attention": True, "norm_rel_ebd": "layer_norm"}
        sizes = {
            "resnet": {"hidden_sizes": [8, 16], "depths": [1, 2], "embedding_size": 8, "layer_type": "basic"},
            "convnext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
            "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 4},
        }
        network = AutoModel.from_config(AutoConfig.for_model(kind, **sizes.get(kind, small)))
        tower = VisionTower(network, {"kind": "vision", "name_or_path": "x", "library": "transformers"})
        assert number_of_blocks(tower) == 2
        patterns = {0: before, 1: first, 2: last, 3: after}
        for name, depth in parameter_depths(tower).items():
            matching = [k for k, one in patterns.items() if one and re.match(one, name.removeprefix("model."))]
            assert matching == [depth], name

    def test_without_blocks_that_are_known(self):
        network = nn.Sequential(nn.Conv2d(3, 8, 4), nn.ReLU())
        tower = VisionTower(network, {"kind": "vision", "name_or_path": "mine", "library": "timm"})
        with pytest.raises(ValueError, match="'mine' has no blocks"):
            tower.set_trainable(1)
        tower.set_trainable("full")
        assert all(value.requires_grad for value in tower.parameters())


CASES = [(kind, what) for kind in KINDS[:-1] for what in ("full", 1, 2)] + [(kind, "lora") for kind in ATTENDS]
CASES += [pytest.param("lite0", what, marks=pytest.mark.slow) for what in ("full", 1)]


@pytest.mark.parametrize(("tower", "trains"), CASES, indirect=["tower"])
def test_what_is_frozen_stays_equal_to_the_bit_and_the_rest_moves(tower, trains):
    tower.set_trainable(trains)
    before, depths = state_of(tower), parameter_depths(tower)
    count = number_of_blocks(tower)
    train_steps(tower)
    after = moved(before, state_of(tower))
    if trains == "lora":
        assert after == {name for name in before if ".lora_" in name}
        return
    expected = {name for name, depth in depths.items() if trains == "full" or depth > count - trains}
    # DINOv2's mask token is read by no forward pass.
    assert expected - after <= {"model.embeddings.mask_token"}
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert after - expected == (statistics if trains == "full" else set())


@pytest.mark.parametrize(("tower", "trains"), CASES, indirect=["tower"])
def test_modes(tower, trains):
    tower.set_trainable(trains)
    assert not any(module.training for module in tower.modules())
    tower.train()
    depths, count = parameter_depths(tower), number_of_blocks(tower)
    for name, module in tower.named_modules():
        inside = [depth for one, depth in depths.items() if one.startswith(f"{name}.")]
        if trains == "full":
            assert module.training, name
        elif getattr(module, "running_mean", None) is not None:
            assert not module.training, name
        elif trains == "lora":
            assert module.training == (name == "" or ".lora_" in name), name
        elif inside and name:
            assert module.training == (min(inside) > count - trains), name
    tower.eval()
    assert not any(module.training for module in tower.modules())


@each("dinov2", "vit", "bert")
def test_frozen_blocks_before_those_that_train_keep_no_graph(tower):
    tower.set_trainable(1)
    network = getattr(tower.model, "timm_model", tower.model)
    blocks = getattr(network, "blocks", None) or network.encoder.layer
    seen = []
    for block in blocks:
        block.register_forward_hook(
            lambda module, inputs, output: seen.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    tower.train()
    output = tower(**inputs_of(tower)).pooler_output
    assert seen == [False] * (len(blocks) - 1) + [True]
    assert output.requires_grad


@each("bert")
def test_dropout_is_on_in_blocks_that_train_alone(tower):
    for module in tower.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    inputs, plain = inputs_of(tower), vectors(tower)
    tower.set_trainable(1)
    tower.train()
    first = []
    tower.model.encoder.layer[0].register_forward_hook(
        lambda module, given, output: first.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        outputs = [tower(**inputs).pooler_output for _ in range(2)]
    assert torch.equal(*first)
    assert not torch.equal(*outputs)
    tower.eval()
    assert torch.equal(vectors(tower), plain)


@each("resnet")
def test_batch_statistics_count_in_full_training_alone(tower):
    inputs = {"pixel_values": inputs_of(tower)["pixel_values"] + 3}
    for trains in (1, 4, "full"):
        one = copy.deepcopy(tower)
        one.set_trainable(trains)
        one.train()
        with torch.no_grad():
            same = torch.equal(one(**inputs).pooler_output, tower(**inputs).pooler_output)
        buffers = moved(dict(tower.named_buffers()), dict(one.named_buffers()))
        assert same == (not buffers) == (trains != "full")


class TestLora:
    @each(*ATTENDS)
    def test_starts_as_the_tower_and_merges_to_what_was_trained(self, tower):
        plain, base = vectors(tower), state_of(tower)
        tower.set_trainable("lora", lora_rank=4)
        assert torch.equal(vectors(tower), plain)
        added = {name: value for name, value in tower.named_parameters() if value.requires_grad}
        # A and B of two projections of 32 x 32 in each of the layers; timm's qkv is one of 32 x 96.
        each_layer = 4 * (32 + 96) if tower.spec["library"] == "timm" else 2 * 4 * (32 + 32)
        assert sum(value.numel() for value in added.values()) == each_layer * number_of_blocks(tower)
        train_steps(tower)
        trained = vectors(tower)
        assert (trained - plain).abs().max() > 1e-3
        merge_lora(tower)
        assert (vectors(tower) - trained).abs().max() < 1e-5
        assert set(tower.state_dict()) == set(base)
        assert tower.trainable == "frozen"
        assert not any(value.requires_grad for value in tower.parameters())
        changed = moved(base, tower.state_dict())
        assert changed
        assert all(
            "weight" in name and any(part in name for part in ("query", "value", "q_proj", "v_proj", "qkv"))
            for name in changed
        )

    @each("resnet", "lite0")
    def test_needs_attention(self, tower):
        before = state_of(tower)
        with pytest.raises(ValueError, match=r"attention layers.*full.*last N blocks"):
            tower.set_trainable("lora")
        assert not moved(before, state_of(tower))
        assert tower.trainable == "frozen"
        assert tower.spec.get("trained") is None

    @each("dinov2")
    def test_is_merged_before_all_of_the_tower_trains(self, tower):
        tower.set_trainable("lora")
        for trains in ("full", 1):
            with pytest.raises(ValueError, match="merge_lora"):
                tower.set_trainable(trains)
        tower.set_trainable("frozen")
        assert not any(value.requires_grad for value in tower.parameters())
        tower.set_trainable("lora")
        assert sum(value.requires_grad for value in tower.parameters()) == 2 * 2 * 2
        merge_lora(tower)
        tower.set_trainable("full")


@each()
def test_more_blocks_than_there_are(tower):
    with pytest.raises(ValueError, match=f"has {number_of_blocks(tower)} blocks, and 9 were asked"):
        tower.set_trainable(9)
    assert tower.spec.get("trained") is None


def test_quantised_weights_do_not_train_in_full(vision_tower):
    tower = copy.deepcopy(vision_tower)
    layer = next(module for module in tower.modules() if isinstance(module, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.mul(100).to(torch.int8), requires_grad=False)
    for trains in ("full", 1):
        with pytest.raises(ValueError, match="quantised"):
            tower.set_trainable(trains)


class TestModel:
    def test_towers_of_a_new_model(self, tiny_dinov2, tiny_bert):
        model = AdaptorModel.from_towers(
            str(tiny_dinov2), str(tiny_bert), train_vision_tower=1, train_text_tower="lora", **SMALL
        )
        assert (model.vision_model.trainable, model.text_model.trainable) == (1, "lora")
        assert (model.config.vision_tower["trained"], model.config.text_tower["trained"]) == (1, "lora")
        model.train()
        assert model.vision_model.model.encoder.layer[1].training
        assert not model.vision_model.model.encoder.layer[0].training
        model.eval()
        assert not any(module.training for module in model.modules())

    def test_frozen_is_the_default_and_says_nothing(self, tiny_dinov2):
        model = AdaptorModel.from_towers(str(tiny_dinov2), None, **SMALL)
        assert "trained" not in model.config.vision_tower
        model.set_trainable_towers(vision_model="frozen")
        assert "trained" not in model.config.vision_tower
        model.train()
        assert not any(module.training for module in model.vision_model.modules())

    def test_a_tower_that_is_not_there(self, tiny_dinov2):
        model = AdaptorModel.from_towers(str(tiny_dinov2), None, **SMALL)
        with pytest.raises(ValueError, match="text_model is not attached"):
            model.set_trainable_towers(text_model="full")

    def test_a_head_freezes_the_tower(self, tiny_dinov2):
        model = AdaptorModel.from_towers(str(tiny_dinov2), None, train_vision_tower="full", **SMALL)
        head = AdaptorForImageClassification.from_adaptor(model, num_labels=2).train()
        assert not any(module.training for module in head.adaptor.vision_model.modules())
        assert {name.split(".")[0] for name, value in head.named_parameters() if value.requires_grad} == {"classifier"}
        head.adaptor.set_trainable_towers(vision_model=1)
        head.train()
        assert head.adaptor.vision_model.model.encoder.layer[1].training
        assert not head.adaptor.shared_encoder.training


class TestGradientCheckpointing:
    def gradients(self, tower, trains, checkpointing):
        torch.manual_seed(0)
        vision = tower.spec["kind"] == "vision"
        model = AdaptorModel.from_towers(*((tower, None) if vision else (None, tower)), **SMALL)
        tower.set_trainable(trains)
        if checkpointing:
            model.gradient_checkpointing_enable()
        network = getattr(tower.model, "timm_model", tower.model)
        last = list(getattr(network, "blocks", None) or network.encoder.layer)[-1]
        calls = []
        part = next(module for module in last.modules() if isinstance(module, nn.LayerNorm))
        part.register_forward_hook(lambda *given: calls.append(1))
        model.train()
        torch.manual_seed(1)
        output = model(**({"pixel_values": inputs_of(tower)["pixel_values"]} if vision else TEXT))
        (output.image_embeds if vision else output.text_embeds)[:, :5].sum().backward()
        return {name: value.grad for name, value in tower.named_parameters() if value.requires_grad}, len(calls)

    @pytest.mark.parametrize("trains", ["full", 1, "lora"])
    @each("dinov2", "bert", "vit")
    def test_gives_the_same_gradients_and_computes_layers_again(self, tower, trains):
        other = copy.deepcopy(tower)
        plain, once = self.gradients(tower, trains, False)
        if trains == "lora":
            other.set_trainable("lora")
            other.load_state_dict(tower.state_dict())
        found, twice = self.gradients(other, trains, True)
        assert (once, twice) == (1, 2)
        for name, value in plain.items():
            assert (value is None) == (found[name] is None), name
            assert value is None or torch.allclose(value, found[name], atol=1e-7), name

    @each("resnet")
    def test_batch_statistics_are_counted_once(self, tower):
        logging.warning_once.cache_clear()
        model = AdaptorModel.from_towers(tower, None, train_vision_tower="full", **SMALL)
        model.gradient_checkpointing_enable()
        model.train()
        model(**inputs_of(tower)).image_embeds.sum().backward()
        counts = {int(value) for name, value in tower.named_buffers() if "num_batches" in name}
        assert counts == {1}
        tower.set_trainable(2)
        model.gradient_checkpointing_enable()
        assert tower.model.timm_model.grad_checkpointing

    @each("vit")
    def test_a_frozen_tower_is_left_alone(self, tower):
        model = AdaptorModel.from_towers(tower, None, **SMALL)
        model.gradient_checkpointing_enable()
        assert not tower.model.timm_model.grad_checkpointing


def test_another_rank_than_that_of_low_rank_weights_that_are_there_is_refused(tiny_bert):
    tower = load_text_tower(str(tiny_bert))
    tower.set_trainable("lora", lora_rank=4)
    tower.set_trainable("lora", lora_rank=4)
    with pytest.raises(ValueError, match="of rank 4 already, and 8 was asked for"):
        tower.set_trainable("lora", lora_rank=8)
