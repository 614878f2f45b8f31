"""Stages of convolutional towers as layers, and towers that are cut: what they give is what the whole network has."""

import json

import pytest
import torch
from safetensors.torch import save_file
from test_tower_features import SIZES, SPECIAL, TEXT, VISION, in_layers, inputs_of, random_tower, timm_tower
from test_towers import save_processor, save_timm
from torch.nn.functional import adaptive_avg_pool2d
from transformers import AutoConfig, AutoModel, AutoTokenizer

from adaptor_hf import AdaptorModel
from adaptor_hf.data.stored_arguments import StoredArguments, refuse_without_tower, text_pooling, vision_pooling
from adaptor_hf.embeddings.extract import extract
from adaptor_hf.embeddings.stored import StoredImages
from adaptor_hf.tower_folders_adaptor import save_tower
from adaptor_hf.tower_layers_adaptor import stages_of, truncate
from adaptor_hf.towers import load_text_tower, load_vision_tower, tower_digest

CLIP = {"clip_text_model": SIZES | SPECIAL | {"vocab_size": 50, "eos_token_id": 4}}


def cut(tower, count):
    truncate(tower.model, tower.spec | {"truncate_layers": count})
    return tower


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A folder of timm's ResNet-26 with narrow stages of 64, 128, 256 and 512 channels, and the network."""
    folder = tmp_path_factory.mktemp("resnet")
    arguments = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    return folder, save_timm(folder, "resnet26", (3, 64, 64), **arguments)


PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class TestStages:
    def test_tokens_are_those_of_the_stage_and_the_embedding_that_of_the_last(self, resnet):
        folder, network = resnet
        tower = load_vision_tower(f"timm:{folder}", layers=[3])
        with torch.no_grad():
            output, maps = tower(PIXELS), network.forward_intermediates(PIXELS, intermediates_only=True)
        # timm counts the stem too.
        assert torch.equal(output.last_hidden_state, maps[3].flatten(2).transpose(1, 2))
        torch.testing.assert_close(output.pooler_output, maps[4].mean(dim=(2, 3)))
        spec = {key: tower.spec[key] for key in ("pooling", "hidden_size", "token_size", "grid_shape", "layers_norm")}
        assert spec == {"pooling": "pooler", "hidden_size": 512, "token_size": 256, "grid_shape": [4, 4],
                        "layers_norm": False}  # fmt: skip
        again = load_vision_tower(json.loads(json.dumps(tower.spec)))
        assert again.spec == tower.spec
        assert torch.equal(again(PIXELS).last_hidden_state, output.last_hidden_state)

    def test_the_mean_of_its_tokens_can_be_asked_for(self, resnet):
        folder, _ = resnet
        tower = load_vision_tower(f"timm:{folder}", layers=[3], pooling="mean")
        output = tower(PIXELS)
        assert (tower.hidden_size, tower.token_size) == (256, 256)
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=1))

    def test_the_last_stage_is_the_network_itself(self, resnet):
        folder, _ = resnet
        plain, last = load_vision_tower(f"timm:{folder}"), load_vision_tower(f"timm:{folder}", layers=[4])
        assert torch.equal(last(PIXELS).last_hidden_state, plain(PIXELS).last_hidden_state)
        torch.testing.assert_close(last(PIXELS).pooler_output, plain(PIXELS).pooler_output)
        assert tower_digest(plain) == tower_digest(last)

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"layers": [3, 4]}, "layer 3 gives .*only layers with the same tokens can be joined"),
            ({"layers": [5]}, r"has 4 layers, got layers=\[5\]"),
            ({"layers": [3], "layers_norm": True}, "no norm after its last layer"),
            ({"truncate_layers": 5}, "has 4 layers, got truncate_layers=5. Take a number from 1 to 4"),
            ({"truncate_layers": 0}, "at least 1, got 0"),
            ({"truncate_layers": 2.0}, "whole number of at least 1, got 2.0"),
            ({"layers": [4], "truncate_layers": 3}, r"has 3 layers, got layers=\[4\]"),
        ],
    )
    def test_what_is_none_is_refused(self, resnet, choice, message):
        with pytest.raises(ValueError, match=message):
            load_vision_tower(f"timm:{resnet[0]}", **choice)

    def test_a_preset_keeps_its_embedding(self):
        whole, tower = load_vision_tower("lite0"), load_vision_tower("lite0", layers=[5])
        with torch.no_grad():
            found, expected = tower(tower.empty_image() + 0.5), whole(whole.empty_image() + 0.5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output)
        assert found.last_hidden_state.shape == (1, 14 * 14, 112)
        with pytest.raises(ValueError, match=r"'lite0' cannot be cut after a stage.*layers=\[5\]"):
            load_vision_tower("lite0", truncate_layers=5)

    def test_of_transformers_too(self, tmp_path):
        config = AutoConfig.for_model(
            "resnet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
        )
        torch.manual_seed(0)
        network = AutoModel.from_config(config).eval()
        network.save_pretrained(tmp_path)
        save_processor(tmp_path, 64)
        with torch.no_grad():
            states = network(PIXELS, output_hidden_states=True)
            found = load_vision_tower(str(tmp_path), layers=[3])(PIXELS)
            shorter = load_vision_tower(str(tmp_path), truncate_layers=3)
        assert torch.equal(found.last_hidden_state, states.hidden_states[3].flatten(2).transpose(1, 2))
        assert torch.equal(found.pooler_output, states.pooler_output.flatten(1))
        assert torch.equal(shorter(PIXELS).last_hidden_state, found.last_hidden_state)
        assert shorter.config.hidden_sizes == [8, 16, 24]

    def test_a_cache_keeps_the_tokens_of_the_stage(self, resnet):
        tower = load_vision_tower(f"timm:{resnet[0]}", layers=[3])
        found = extract(tower, {"pixel_values": PIXELS}, StoredImages(image_tokens=2, shallow=(1, 2)))
        assert found["embedding"].shape == (2, 512)
        maps = tower(PIXELS).last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
        means = adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(torch.from_numpy(found["image_tokens"]), means)
        assert found["shallow"].shape == (2, 64 + 64), "stem and first stage have one resolution each"

    def test_no_transformer_has_stages(self):
        assert stages_of(random_tower("vit").model) == []
        swin = AutoConfig.for_model("swin", image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
        assert stages_of(AutoModel.from_config(swin)) == []
        with pytest.raises(ValueError, match="'swin' has no layers to take truncate_layers from"):
            truncate(AutoModel.from_config(swin), {"name_or_path": "swin", "truncate_layers": 1, "pooling": None})


class TestCut:
    @pytest.mark.parametrize("model_type", [*VISION, *TEXT])
    def test_it_gives_what_the_whole_has_there(self, model_type, tmp_path):
        """Of a network with a norm after its last layer, as transformers has it of a shorter configuration."""
        tower = random_tower(model_type)
        inputs = inputs_of(tower)
        with torch.no_grad():
            norm = getattr(tower.model, "final_norm", None) or model_type in VISION
            whole = in_layers(tower, [2], norm=bool(norm))(**inputs).last_hidden_state
            state = tower.model(**inputs, output_hidden_states=True).hidden_states[2]
            found = cut(tower, 2)(**inputs).last_hidden_state
            assert torch.equal(found, whole)
            if not norm:
                assert torch.equal(found, state), "the embeddings and two layers"
            tower.model.save_pretrained(tmp_path)
            arguments = {"add_pooling_layer": False} if "pooler" in dict(tower.model.named_children()) else {}
            plain, told = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **arguments)
            assert not told["unexpected_keys"]
            again = type(tower)(plain.eval(), tower.spec)
            assert torch.equal(again(**inputs).last_hidden_state, whole)
            assert plain.config.num_hidden_layers == 2

    def test_a_pooler_of_the_last_layer_is_not_read(self, tiny_bert):
        tower = load_text_tower(str(tiny_bert), truncate_layers=1)
        assert (tower.spec["pooling"], tower.spec["truncate_layers"]) == ("cls", 1)
        assert tower.model.pooler is None
        with pytest.raises(ValueError, match=r"pooler of tower .* was trained on its last layer"):
            load_text_tower(str(tiny_bert), truncate_layers=1, pooling="pooler")
        whole = load_text_tower(str(tiny_bert), truncate_layers=2)
        assert whole.spec["pooling"] == "pooler", "with all its layers it is the network itself"
        assert load_text_tower(tower.spec).spec == tower.spec

    def test_mgca_takes_six_layers_of_a_bert(self, tmp_path, tiny_bert):
        config = AutoConfig.for_model("bert", **SIZES | {"vocab_size": 200, "num_hidden_layers": 12})
        torch.manual_seed(0)
        network = AutoModel.from_config(config).eval()
        network.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
        tower = load_text_tower(str(tmp_path), truncate_layers=6)
        ids = torch.tensor([[2, 7, 9, 3]])
        with torch.no_grad():
            states, found = network(ids, output_hidden_states=True).hidden_states, tower(ids)
        assert torch.equal(found.last_hidden_state, states[6])
        assert torch.equal(found.pooler_output, states[6][:, 0])
        # GLoRIA sums the last four of twelve.
        four = load_text_tower(str(tmp_path), layers=[9, 10, 11, 12], layers_merge="mean")(ids)
        torch.testing.assert_close(4 * four.last_hidden_state, sum(states[9:]))
        tower.set_trainable("full")
        save_tower(tower, tmp_path / "trained")
        plain = AutoModel.from_pretrained(tmp_path / "trained", add_pooling_layer=False)
        assert plain.config.num_hidden_layers == len(plain.encoder.layer) == 6
        assert torch.equal(load_text_tower(str(tmp_path / "trained"))(ids).last_hidden_state, states[6])

    def test_clips_text_model_keeps_its_end_token(self, tmp_path):
        model = AutoModel.from_config(AutoConfig.for_model("clip_text_model", **CLIP["clip_text_model"])).eval()
        ids = torch.tensor([[1, 9, 8, 4], [1, 7, 4, 0]])
        truncate(model, {"name_or_path": "clip", "truncate_layers": 2, "pooling": "pooler"})
        with torch.no_grad():
            output = model(ids)
        assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(2), [3, 2]])

    def test_of_timm_the_folder_is_the_shorter_network(self, tmp_path):
        import timm

        folder = timm_tower(tmp_path / "vit", depth=4)
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = load_vision_tower(f"timm:{folder}", layers=[2])(pixels)
            tower = load_vision_tower(f"timm:{folder}", truncate_layers=2)
            assert torch.equal(tower(pixels).last_hidden_state, expected.last_hidden_state)
            tower.set_trainable("full")
            save_tower(tower.eval(), tmp_path / "trained")
            found = load_vision_tower(str(tmp_path / "trained"))(pixels)
            assert torch.equal(found.pooler_output, tower(pixels).pooler_output)
        plain = AutoModel.from_pretrained(tmp_path / "trained")
        assert len(plain.timm_model.blocks) == 2
        arguments = json.loads((tmp_path / "trained" / "config.json").read_text())["model_args"]
        assert len(timm.create_model("vit_tiny_patch16_224", **arguments).blocks) == 2

    def test_a_resnet_without_its_last_stage(self, resnet, tmp_path):
        folder, network = resnet
        tower = load_vision_tower(f"timm:{folder}", truncate_layers=3)
        with torch.no_grad():
            maps = network.forward_intermediates(PIXELS, intermediates_only=True)
            output = tower(PIXELS)
        assert torch.equal(output.last_hidden_state, maps[3].flatten(2).transpose(1, 2))
        assert (tower.hidden_size, tower.spec["pooling"], tower.spec["grid_shape"]) == (256, "mean", [4, 4])
        assert not any("layer4" in name for name in tower.state_dict())
        assert torch.equal(load_vision_tower(tower.spec)(PIXELS).pooler_output, output.pooler_output)
        # timm has no word for it; this package reads its own folder.
        tower.set_trainable(1)
        save_tower(tower.eval(), tmp_path / "trained")
        again = load_vision_tower(str(tmp_path / "trained"))
        assert torch.equal(again(PIXELS).pooler_output, output.pooler_output)
        weights = {key: value for key, value in tower.model.state_dict().items() if "layer3" not in key}
        save_file(weights, tmp_path / "trained" / "model.safetensors")
        with pytest.raises(OSError, match="the weights do not fit resnet26"):
            load_vision_tower(str(tmp_path / "trained"))

    @pytest.mark.parametrize("in_checkpoint", [False, True])
    def test_a_checkpoint_gives_it_again(self, resnet, tiny_bert, tmp_path, in_checkpoint):
        vision = load_vision_tower(f"timm:{resnet[0]}", truncate_layers=3)
        text = load_text_tower(str(tiny_bert), truncate_layers=1)
        torch.manual_seed(0)
        model = AdaptorModel.from_towers(vision, text, aligner="linear", hidden_size=48, num_attention_heads=4).eval()
        model.config.towers_in_checkpoint = in_checkpoint
        model.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path).eval()
        inputs = {"pixel_values": PIXELS, "input_ids": torch.tensor([[2, 7, 3], [2, 8, 3]])}
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)
        assert again.text_model.model.config.num_hidden_layers == 1


class TestOptions:
    def test_each_side_has_its_own(self):
        given = StoredArguments(
            layers=[3], truncate_vision_layers=3, text_layers=[3, 4, 5, 6], text_layers_merge="mean",
            truncate_text_layers=6, text_layers_norm="no",
        )  # fmt: skip
        assert vision_pooling(given) == {
            "layers": [3], "layers_merge": "concat", "layers_norm": None, "truncate_layers": 3
        }  # fmt: skip
        assert text_pooling(given) == {
            "layers": [3, 4, 5, 6], "layers_merge": "mean", "layers_norm": False, "truncate_layers": 6
        }  # fmt: skip
        with pytest.raises(ValueError, match="--layers, --truncate_vision_layers would have no effect without"):
            refuse_without_tower(given, vision=False, text=True)
        with pytest.raises(ValueError, match=r"--text_layers, .*--truncate_text_layers would have no effect without"):
            refuse_without_tower(given, vision=True, text=False)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"truncate_text_layers": 0}, "--truncate_text_layers 0: expected 1 or more"),
            ({"truncate_vision_layers": -1}, "--truncate_vision_layers -1: expected 0 or more"),
            ({"text_layers_merge": "mean"}, "--text_layers_merge would have no effect without --text_layers"),
            ({"text_layers": [0]}, "--text_layers 0: counted from 1"),
        ],
    )
    def test_what_is_none_names_the_option(self, given, message):
        with pytest.raises(ValueError, match=message):
            StoredArguments(**given)
