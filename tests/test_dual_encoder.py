"""VisionTextDualEncoder's users: its arguments, its configs, and its trained folders, which give the same numbers."""

import json
import shutil

import pytest
import torch
from PIL import Image
from test_heads import run_remote
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    RobertaConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)
from without_package import WITHOUT_PACKAGE

from adaptor_hf import AdaptorConfig, AdaptorModel, AdaptorProcessor
from adaptor_hf.towers import tower_digest

TEXTS = ["pleural effusion on the left", "no acute pneumonia", "clear lungs, normal heart size"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PIXELS = {"image_size": 28, "patch_size": 14}
SQUARE = {"height": 28, "width": 28}
VISION = {
    "vit": (lambda: ViTConfig(**SIZES, **PIXELS), lambda: ViTImageProcessorPil(size=SQUARE)),
    "clip": (
        lambda: CLIPVisionConfig(**SIZES, **PIXELS),
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE),
    ),
    "dinov2": (
        lambda: Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **PIXELS),
        lambda: BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    ),
    "siglip": (lambda: SiglipVisionConfig(**SIZES, **PIXELS), lambda: ViTImageProcessorPil(size=SQUARE)),
}
TEXT = {
    "bert": lambda vocab: BertConfig(**SIZES, vocab_size=vocab, max_position_embeddings=64),
    # Its positions begin after the padding index.
    "roberta": lambda vocab: RobertaConfig(**SIZES, vocab_size=vocab, max_position_embeddings=64, pad_token_id=0),
}
ENCODERS = [("vit", "bert"), ("clip", "roberta"), ("dinov2", "bert"), ("siglip", "roberta")]


def randomise(model):
    """Initial weights are so small that all inputs look alike, and poolers' biases are zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.logit_scale.fill_(1.5)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return BertTokenizerFast.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory, tokenizer):
    """A function: folder of a saved dual encoder of two architectures, the model, and its processor."""
    made = {}

    def make(vision, text):
        if (vision, text) not in made:
            folder = tmp_path_factory.mktemp(f"{vision}-{text}")
            configs = VISION[vision][0](), TEXT[text](len(tokenizer))
            config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=20)
            model = randomise(VisionTextDualEncoderModel(config))
            processor = VisionTextDualEncoderProcessor(VISION[vision][1](), tokenizer)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            made[vision, text] = folder, model, processor
        return made[vision, text]

    return make


@pytest.fixture(scope="module")
def clip(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("clip")
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": tokenizer.sep_token_id}
    config = CLIPConfig(vision_config={**SIZES, **PIXELS}, text_config={**SIZES, **words}, projection_dim=24)
    model = randomise(CLIPModel(config))
    processor = CLIPProcessor(VISION["clip"][1](), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def images(radiographs):
    return [Image.open(path).convert("RGB") for path in sorted(radiographs.glob("*.jpg"))[:3]]


def processor_of(model):
    return AdaptorProcessor(model.vision_model.processor, model.text_model.processor)


def assert_same(ours, theirs):
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6, rtol=1e-6), name
    assert theirs.logits_per_image.std() > 0.01, "all pairs look alike: nothing was compared"


@pytest.mark.parametrize("kinds", [*ENCODERS, "clip"])
def test_a_dual_encoder_gives_the_same_numbers(kinds, encoders, clip, images, tmp_path):
    folder, theirs, their_processor = clip if kinds == "clip" else encoders(*kinds)
    ours = AdaptorModel.from_dual_encoder(folder)
    assert not ours.training
    inputs = their_processor(images=images, text=TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs, return_loss=True)
        assert_same(ours(**inputs, return_loss=True), expected)
        own = processor_of(ours)(images=images, text=TEXTS, padding=True, return_tensors="pt")
        assert torch.equal(own["input_ids"], inputs["input_ids"])
        assert torch.allclose(own["pixel_values"], inputs["pixel_values"], atol=1e-6)
        assert_same(ours(**own, return_loss=True), expected)
    trainable = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trainable == {"visual_projection.weight", "text_projection.weight", "logit_scale"}

    ours.save_pretrained(tmp_path)
    processor_of(ours).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_same(again(**inputs, return_loss=True), expected)
    for name in ("vision_model", "text_model"):
        assert tower_digest(getattr(again, name)) == tower_digest(getattr(ours, name))
        assert not any(parameter.requires_grad for parameter in getattr(again, name).parameters())


def test_the_zero_shot_pipeline_gives_softmax_of_its_scores(encoders, images, tmp_path):
    folder, theirs, processor = encoders("vit", "bert")
    ours = AdaptorModel.from_dual_encoder(folder)
    ours.save_pretrained(tmp_path)
    processor_of(ours).save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = {row["label"]: row["score"] for row in classify(images[0], TEXTS, hypothesis_template="{}")}
    with torch.no_grad():
        logits = theirs(**processor(images=images[:1], text=TEXTS, padding=True, return_tensors="pt")).logits_per_image
    for text, expected in zip(TEXTS, logits.softmax(dim=1)[0], strict=True):
        assert found[text] == pytest.approx(expected.item(), abs=1e-6)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import torch
from transformers import AutoModel, AutoProcessor
folder, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = torch.arange(3 * 40 * 50, dtype=torch.uint8).reshape(3, 40, 50)
with torch.no_grad():
    inputs = processor(images=pixels, text=["no pneumonia"], return_tensors="pt")
    logits = model(**inputs).logits_per_image
assert "adaptor_hf" not in sys.modules
torch.save(logits, out + "/result.pt")
"""
)


def test_a_converted_encoder_loads_without_the_package(encoders, tmp_path):
    folder, theirs, _ = encoders("vit", "bert")
    ours = AdaptorModel.from_dual_encoder(folder)
    ours.save_pretrained(tmp_path / "model")
    processor_of(ours).save_pretrained(tmp_path / "model")
    logits = run_remote(REMOTE, tmp_path, tmp_path / "model")
    pixels = torch.arange(3 * 40 * 50, dtype=torch.uint8).reshape(3, 40, 50)
    inputs = processor_of(ours)(images=pixels, text=["no pneumonia"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(logits, theirs(**inputs).logits_per_image, atol=1e-6)


class TestRefused:
    @pytest.fixture
    def folder(self, encoders, tmp_path):
        return shutil.copytree(encoders("vit", "bert")[0], tmp_path / "copy")

    def test_what_is_no_folder(self):
        with pytest.raises(FileNotFoundError, match=r"downloads nothing.*hf download"):
            AdaptorModel.from_dual_encoder("owner/name")

    def test_another_type_of_model(self, tiny_bert, checkpoint, folder):
        with pytest.raises(ValueError, match=r"type 'bert'.*vision-text-dual-encoder and clip"):
            AdaptorModel.from_dual_encoder(tiny_bert)
        with pytest.raises(ValueError, match=r"type 'adaptor'.*AdaptorModel.from_pretrained"):
            AdaptorModel.from_dual_encoder(checkpoint)
        for text in ("[]", "{}", "[" * 100_000, "{"):
            (folder / "config.json").write_text(text)
            with pytest.raises(ValueError, match=r"config\.json is no configuration"):
                AdaptorModel.from_dual_encoder(folder)
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            AdaptorModel.from_dual_encoder(folder)

    def test_missing_weights(self, folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["vision_model.pooler.dense.bias"], weights["logit_scale"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(OSError, match="lacks 2 weights of its VisionTextDualEncoderModel, logit_scale is one"):
            AdaptorModel.from_dual_encoder(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"no weights: expected model\.safetensors"):
            AdaptorModel.from_dual_encoder(folder)

    def test_pickled_weights_unless_there_are_others(self, folder, encoders):
        torch.save(encoders("vit", "bert")[1].state_dict(), folder / "pytorch_model.bin")
        AdaptorModel.from_dual_encoder(folder)
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin, which is not read.*save_pretrained"):
            AdaptorModel.from_dual_encoder(folder)

    def test_a_folder_without_its_processor(self, folder):
        (folder / "processor_config.json").unlink()
        with pytest.raises(OSError, match="no image processor"):
            AdaptorModel.from_dual_encoder(folder)

    def test_sizes_that_no_model_has(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = 10**9
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="num_hidden_layers of text_config must be at most"):
            AdaptorModel.from_dual_encoder(folder)

    def test_a_text_model_without_pooler(self, tmp_path, tokenizer):
        text = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(VISION["vit"][0](), text)
        VisionTextDualEncoderModel(config).save_pretrained(tmp_path)
        VisionTextDualEncoderProcessor(VISION["vit"][1](), tokenizer).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="its text model has no pooler"):
            AdaptorModel.from_dual_encoder(tmp_path)


class TestFromVisionTextPretrained:
    def test_by_position_it_is_from_towers(self, tiny_dinov2, tiny_bert):
        torch.manual_seed(4)
        model = AdaptorModel.from_vision_text_pretrained(str(tiny_dinov2), str(tiny_bert))
        torch.manual_seed(4)
        expected = AdaptorModel.from_towers(str(tiny_dinov2), str(tiny_bert))
        assert model.config.to_dict() == expected.config.to_dict()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        frozen = [*model.vision_model.parameters(), *model.text_model.parameters()]
        assert frozen
        assert not any(parameter.requires_grad for parameter in frozen)

    def test_its_arguments(self, tiny_dinov2, tiny_bert):
        model = AdaptorModel.from_vision_text_pretrained(
            vision_model_name_or_path=str(tiny_dinov2),
            text_model_name_or_path=str(tiny_bert),
            vision_pooling="mean",
            text_local_files_only=True,
            text_pooling="cls",
            projection_dim=64,
            logit_scale_init_value=1.25,
            num_hidden_layers=1,
        )
        assert (model.config.vision_tower["pooling"], model.config.text_tower["pooling"]) == ("mean", "cls")
        assert (model.config.hidden_size, model.config.num_attention_heads) == (64, 8)
        assert model.logit_scale.item() == 1.25
        assert len(model.shared_encoder.layers) == 1

    def test_loaded_towers(self, tiny_dinov2, text_tower):
        model = AdaptorModel.from_vision_text_pretrained(str(tiny_dinov2), text_model=text_tower)
        assert model.text_model is text_tower
        assert not model.config.towers_in_checkpoint

    def test_loaded_models_of_transformers_go_into_the_checkpoint(self, encoders, tiny_bert, images, tmp_path):
        torch.manual_seed(5)
        vision, text = ViTModel(VISION["vit"][0]()).eval(), BertModel.from_pretrained(tiny_bert)
        model = AdaptorModel.from_vision_text_pretrained(
            vision_model=vision, text_model=text, vision_processor=VISION["vit"][1]()
        ).eval()
        inputs = processor_of(model)(images=images, text=TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = vision(inputs["pixel_values"]).pooler_output
            assert torch.equal(model.vision_model(inputs["pixel_values"]).pooler_output, pooled)
            words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            assert torch.equal(model.text_model(**words).pooler_output, text(**words).pooler_output)
            expected = model(**inputs).logits_per_image
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).logits_per_image, expected)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"projection_dims": 64}, TypeError, "'projection_dims'. Did you mean 'projection_dim'"),
            ({"projection_dim": 64, "hidden_size": 64}, TypeError, "same width"),
            ({"vision_hidden_dropout_prob": 0.1}, TypeError, "vision_hidden_dropout_prob.*as its checkpoint has it"),
            ({"text_config": {}}, TypeError, r"text_config.*text_ goes before model, processor, revision, pooling"),
            ({"output_attention": True}, TypeError, "unexpected argument 'output_attention'"),
            ({"vision_processor": 1}, ValueError, "vision_processor goes with vision_model"),
            ({"vision_model": 1}, ValueError, "vision_model_name_or_path.*got both"),
        ],
    )
    def test_unknown_arguments_are_refused(self, arguments, error, message, tiny_dinov2, tiny_bert):
        with pytest.raises(error, match=message):
            AdaptorModel.from_vision_text_pretrained(str(tiny_dinov2), str(tiny_bert), **arguments)

    def test_other_mistakes(self, tiny_dinov2, tiny_bert, vision_tower):
        make, text = AdaptorModel.from_vision_text_pretrained, str(tiny_bert)
        with pytest.raises(TypeError, match="two names by position, got 3"):
            make(str(tiny_dinov2), text, 1)
        with pytest.raises(ValueError, match=r"text_model_name_or_path .*got neither"):
            make(str(tiny_dinov2))
        with pytest.raises(TypeError, match=r"must be a model of transformers or a tower.*got int"):
            make(None, text, vision_model=1)
        with pytest.raises(ValueError, match="pass an image processor as vision_processor"):
            make(None, text, vision_model=ViTModel(VISION["vit"][0]()))
        with pytest.raises(ValueError, match="leave out vision_pooling"):
            make(None, text, vision_model=vision_tower, vision_pooling="mean")
        with pytest.raises(ValueError, match="vision_dtype is an option of loading"):
            make(None, text, vision_model=ViTModel(VISION["vit"][0]()), vision_dtype=torch.float32)
        with pytest.raises(ValueError, match="takes input_ids, so it is not a vision tower"):
            make(None, text, vision_model=BertModel.from_pretrained(tiny_bert))


class TestConfigs:
    def test_from_vision_text_configs(self):
        vision, text = VISION["vit"][0](), BertConfig(hidden_size=48)
        config = AdaptorConfig.from_vision_text_configs(vision, text, projection_dim=512, logit_scale_init_value=2.0)
        sizes = (config.vision_hidden_size, config.text_hidden_size, config.hidden_size, config.num_attention_heads)
        assert sizes == (32, 48, 512, 8)
        assert config.vision_config.hidden_size == 32
        model = AdaptorModel(config)
        assert model.vision_model is model.text_model is None
        assert model(image_embeds=torch.randn(2, 32)).image_embeds.shape == (2, 512)
        with pytest.raises(TypeError, match="projektion_dim"):
            AdaptorConfig.from_vision_text_configs(vision, text, projektion_dim=512)
        with pytest.raises(ValueError, match="towers with weights"):
            AdaptorConfig.from_vision_text_configs(vision, text, towers_in_checkpoint=True)

    def test_a_tower_of_timm_has_no_width_of_its_own(self):
        timm, text = TimmWrapperConfig(architecture="resnet18"), BertConfig()
        with pytest.raises(ValueError, match=r"vision_config \(TimmWrapperConfig\).*pass vision_hidden_size"):
            AdaptorConfig.from_vision_text_configs(timm, text)
        config = AdaptorConfig.from_vision_text_configs(timm, text, vision_hidden_size=512)
        assert config.vision_hidden_size == 512

    def test_attached_towers_show_their_configs_and_files_do_not(self, checkpoint, vision_tower, text_tower, tmp_path):
        model = AdaptorModel.from_pretrained(checkpoint, vision_model=vision_tower, text_model=text_tower)
        assert model.config.vision_config is vision_tower.config
        assert model.config.text_config is text_tower.config
        assert model.config.get_text_config().vocab_size == text_tower.config.vocab_size
        model.save_pretrained(tmp_path)
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes()
        assert AdaptorModel.from_pretrained(tmp_path, load_towers=False).config.vision_config is None
        model.config.towers_in_checkpoint = True
        assert model.config.to_dict()["vision_config"]["hidden_size"] == 32
