"""What is saved, what comes back, and with which towers: local, as remote code, in pipelines, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from preset_architectures import build_architecture
from synthetic import synthetic_config, synthetic_model
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
from without_package import WITHOUT_PACKAGE, code_of, saved_code

from adaptor_hf import AdaptorConfig, AdaptorImageProcessor, AdaptorModel, AdaptorProcessor
from adaptor_hf.phantom import generate_phantoms
from adaptor_hf.towers_adaptor import load_vision_tower

SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def towers(vision_tower, text_tower):
    return vision_tower, text_tower


@pytest.fixture
def model(towers):
    torch.manual_seed(0)
    return AdaptorModel.from_towers(*towers, **SMALL).eval()


@pytest.fixture
def saved(model, towers, tmp_path) -> Path:
    """A model folder with its processor, as a training run leaves it."""
    model.save_pretrained(tmp_path / "model")
    AdaptorProcessor(towers[0].processor, towers[1].processor).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def inputs(towers, radiographs):
    processor = AdaptorProcessor(towers[0].processor, towers[1].processor)
    images = [Image.open(path) for path in sorted(radiographs.glob("*.jpg"))[:3]]
    text = ["pleural effusion on the left", "no acute pneumonia"]
    return dict(processor(images=images, text=text, return_tensors="pt", padding=True))


def test_a_checkpoint_holds_the_adaptor_alone_and_names_its_towers(saved, towers):
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any(name.startswith(("vision_model", "text_model")) for name in names)
    config = AutoConfig.from_pretrained(saved)
    assert config.vision_tower == towers[0].spec
    assert config.vision_config is None


def test_a_full_size_checkpoint_is_under_50_mb(tmp_path):
    AdaptorModel(AdaptorConfig()).save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 50e6


def test_auto_classes_bring_back_model_processor_and_towers(saved, model, inputs):
    loaded = AutoModel.from_pretrained(saved)
    assert isinstance(loaded, AdaptorModel)
    assert not loaded.training
    with torch.no_grad():
        expected, actual = model(**inputs), loaded(**inputs)
    assert torch.equal(expected.logits_per_image, actual.logits_per_image)
    assert expected.logits_per_image.shape == (3, 2)
    processor = AutoProcessor.from_pretrained(saved)
    assert isinstance(processor, AdaptorProcessor)
    assert isinstance(processor.image_processor, AdaptorImageProcessor)
    assert not any(p.requires_grad for p in loaded.vision_model.parameters())


def test_cached_mode_loads_without_towers(saved, model):
    loaded = AdaptorModel.from_pretrained(saved, load_towers=False)
    assert loaded.vision_model is None
    embeds = torch.randn(4, 32)
    assert torch.equal(loaded(image_embeds=embeds).image_embeds, model(image_embeds=embeds).image_embeds)
    loaded.load_towers()
    assert loaded.vision_model is not None


def test_raw_inputs_equal_cached_embeddings(model, towers, inputs):
    with torch.no_grad():
        raw = model(**inputs)
        image = towers[0](inputs["pixel_values"]).pooler_output
        text = towers[1](inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]).pooler_output
        cached = model(image_embeds=image, text_embeds=text)
    assert torch.equal(raw.logits_per_image, cached.logits_per_image)


def test_loading_info_is_clean(saved):
    _, info = AdaptorModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_dtype_reaches_the_towers(saved, inputs):
    loaded = AdaptorModel.from_pretrained(saved, dtype=torch.bfloat16)
    assert next(loaded.vision_model.parameters()).dtype == torch.bfloat16
    assert loaded(**inputs).logits_per_image.isfinite().all()


def test_a_tower_in_float32_gives_a_bfloat16_adaptor_what_float32_gives(tmp_path):
    torch.manual_seed(0)
    model = AdaptorModel.from_towers("lite0", None, **SMALL).eval()
    model.save_pretrained(tmp_path)
    images = [record["image"] for record in generate_phantoms(4, seed=2)]
    pixels = model.vision_model.processor(images, return_tensors="pt")["pixel_values"]
    half = AdaptorModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixed = AdaptorModel.from_pretrained(tmp_path, dtype=torch.bfloat16, load_towers=False)
    mixed.attach_towers(load_vision_tower("lite0"), dtype=torch.float32)
    float16 = AdaptorModel.from_pretrained(tmp_path, dtype=torch.float16)

    def distance(other: AdaptorModel) -> float:
        with torch.no_grad():
            actual, expected = other(pixel_values=pixels).image_embeds, model(pixel_values=pixels).image_embeds
        return 1 - torch.cosine_similarity(actual.double(), expected.double()).min().item()

    # A deep convolutional network loses digits in bfloat16 that no normalisation brings back.
    assert distance(mixed) < 1e-4
    assert distance(float16) < 1e-3
    assert 1e-3 < distance(half) < 0.05


def test_a_self_contained_checkpoint_needs_no_tower_folder(towers, inputs, tmp_path):
    torch.manual_seed(0)
    model = AdaptorModel.from_towers(*towers, towers_in_checkpoint=True, **SMALL).eval()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["vision_tower"]["name_or_path"] = config["text_tower"]["name_or_path"] = "/nowhere"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    loaded, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image)
    loaded.train()
    assert not loaded.vision_model.training
    assert not any(p.requires_grad for p in loaded.vision_model.parameters())
    assert AdaptorModel.from_pretrained(tmp_path / "model", load_towers=False).vision_model is None


@pytest.mark.parametrize("moved", ["vision", "text"])
def test_a_missing_tower_is_named_with_its_revision_and_never_made_up(saved, tiny_dinov2, tiny_bert, moved):
    config = json.loads((saved / "config.json").read_text())
    config[f"{moved}_tower"] |= {"name_or_path": "nobody/no-such-tower", "revision": "abc123"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match=r"(?s)nobody/no-such-tower.*abc123"):
        AdaptorModel.from_pretrained(saved)
    assert AdaptorModel.from_pretrained(saved, load_towers=False).config.vision_hidden_size == 32


def test_a_tower_of_another_width_is_refused(towers):
    with pytest.raises(ValueError, match=r"gives 32-d embeddings.*takes 20-d"):
        AdaptorModel(synthetic_config()).attach_towers(vision_model=towers[0])


def test_an_xrv_tower_in_the_checkpoint_is_refused_with_a_reason(tmp_path, towers):
    tower = build_architecture("resnet-ae")
    model = AdaptorModel(AdaptorConfig(vision_hidden_size=tower.hidden_size, text_hidden_size=32, **SMALL))
    model.vision_model = tower
    model.config.towers_in_checkpoint = True
    with pytest.raises(ValueError, match="towers_in_checkpoint=False"):
        model.save_pretrained(tmp_path)


class TestFrozen:
    def test_a_training_step_leaves_towers_bit_equal_without_gradients(self, towers, inputs):
        model = AdaptorModel.from_towers(*towers, **SMALL)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        assert model.training
        assert not model.vision_model.training
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        inputs = inputs | {"pixel_values": inputs["pixel_values"][:2]}
        model(**inputs, return_loss=True).loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            frozen = name.startswith(("vision_model", "text_model"))
            if frozen:
                assert torch.equal(value, before[name]), name
        assert all(p.grad is None for p in model.vision_model.parameters())
        assert not torch.equal(model.visual_projection.weight, before["visual_projection.weight"])

    def test_lora_on_a_tower_gets_gradients_and_cannot_be_lost(self, tiny_dinov2, tiny_bert, inputs, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = AdaptorModel.from_towers(str(tiny_dinov2), str(tiny_bert), **SMALL)
        trained = ["visual_projection", "text_projection", "shared_encoder"]
        lora = LoraConfig(r=2, target_modules=r"vision_model\..*\.(q_proj|v_proj)", modules_to_save=trained)
        peft_model = get_peft_model(model, lora)
        peft_model.train()
        images = {"pixel_values": inputs["pixel_values"][:2]}
        peft_model(**(inputs | images), return_loss=True).loss.backward()
        grads = {name: p.grad for name, p in peft_model.named_parameters() if p.grad is not None}
        assert any("vision_model" in name and "lora_B" in name and grad.any() for name, grad in grads.items())
        assert any("visual_projection" in name for name in grads)
        assert not any("text_model" in name for name in grads)
        with pytest.raises(ValueError, match="would lose"):
            model.save_pretrained(tmp_path)

    def test_saliency_reaches_the_pixels(self, model, inputs):
        pixels = inputs["pixel_values"].clone().requires_grad_()
        model(pixel_values=pixels).image_embeds[:, 0].sum().backward()
        assert pixels.grad.abs().sum() > 0


class TestPipelines:
    def test_zero_shot_image_classification(self, saved, model, towers, radiographs):
        image = Image.open(radiographs / "image_0.jpg")
        labels = ["pleural effusion", "no finding", "pneumonia"]
        results = pipeline("zero-shot-image-classification", model=str(saved))(
            image, candidate_labels=labels, hypothesis_template="{}"
        )
        inputs = AdaptorProcessor(towers[0].processor, towers[1].processor)(
            images=image, text=labels, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            expected = model(**inputs).logits_per_image.softmax(-1)[0]
        scores = {result["label"]: result["score"] for result in results}
        for label, probability in zip(labels, expected.tolist(), strict=True):
            assert scores[label] == pytest.approx(probability, abs=1e-5)

    def test_image_feature_extraction(self, saved, model, towers, radiographs):
        image = Image.open(radiographs / "image_0.jpg")
        features = pipeline("image-feature-extraction", model=str(saved))(image)
        pixels = towers[0].processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels).image_embeds
        torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=0)
        pooled = pipeline("image-feature-extraction", model=str(saved), pool=True)(image)
        torch.testing.assert_close(torch.tensor(pooled), expected, atol=1e-5, rtol=0)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder, image, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), text=["effusion", "no effusion"], return_tensors="pt", padding=True)
with torch.no_grad():
    logits = model(**inputs).logits_per_image
scores = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)(
    Image.open(image), candidate_labels=["effusion", "no effusion"], hypothesis_template="{}")
assert "adaptor_hf" not in sys.modules
model.save_pretrained(out + "/again")
torch.save({"logits": logits, "scores": torch.tensor([s["score"] for s in scores])}, out + "/result.pt")
"""
)


@pytest.mark.parametrize("self_contained", [False, True])
def test_remote_code_without_the_package_gives_bit_equal_outputs(towers, radiographs, tmp_path, self_contained):
    torch.manual_seed(0)
    model = AdaptorModel.from_towers(*towers, towers_in_checkpoint=self_contained, **SMALL).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor = AdaptorProcessor(towers[0].processor, towers[1].processor)
    processor.save_pretrained(folder)
    assert saved_code(folder) == code_of(AdaptorModel, AdaptorProcessor, AdaptorImageProcessor)
    image = radiographs / "image_1.jpg"
    script = tmp_path / "remote.py"
    script.write_text(REMOTE)
    command = [sys.executable, str(script), str(folder), str(image), str(tmp_path)]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    inputs = processor(images=Image.open(image), text=["effusion", "no effusion"], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert torch.equal(result["logits"], logits)
    torch.testing.assert_close(result["scores"].sort().values, logits.softmax(-1)[0].sort().values)
    assert saved_code(tmp_path / "again") == code_of(AdaptorModel)
    again = AutoModel.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits_per_image, logits)


def test_a_truncated_checkpoint_is_refused(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete|header"):
        AutoModel.from_pretrained(saved)


def test_saving_twice_and_elsewhere_changes_nothing(saved, tmp_path):
    model = AdaptorModel.from_pretrained(saved)
    model.save_pretrained(tmp_path / "second")
    shutil.rmtree(saved)
    again = AdaptorModel.from_pretrained(tmp_path / "second")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_model_without_towers_says_how_to_get_them():
    with pytest.raises(ValueError, match="load_towers"):
        synthetic_model()(pixel_values=torch.zeros(1, 3, 28, 28))
