"""Segmentation: parameters and arithmetic of the paper's decoders, other towers and sizes, masks, pipelines."""

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import synthetic_config
from test_heads import SMALL, run_remote, trainable
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    pipeline,
)
from without_package import WITHOUT_PACKAGE, code_of, saved_code

from adaptor_hf import (
    AdaptorConfig,
    AdaptorForSemanticSegmentation,
    AdaptorImageProcessor,
    AdaptorModel,
    decoders_adaptor,
)
from adaptor_hf.decoders_adaptor import TokenDecoder, UNetDecoder
from adaptor_hf.pyramids_adaptor import features_with_maps
from adaptor_hf.towers import load_vision_tower
from adaptor_hf.towers.presets import TOWER_PRESETS
from adaptor_hf.towers_adaptor import VisionTower


def tower_of(model: nn.Module, size: int, **spec) -> VisionTower:
    """A tower around a random network."""
    torch.manual_seed(0)
    processor = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    known = {"library": "transformers", "name_or_path": "random", "pooling": "mean", "image_processor": processor}
    tower = VisionTower(model, {**known, "hidden_size": None, "grid_shape": None, **spec})
    tower._complete_spec()
    return tower


def tiny_resnet() -> VisionTower:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic")
    return tower_of(ResNetModel(config), 64)


def tiny_swin() -> VisionTower:
    torch.manual_seed(0)
    config = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2)
    return tower_of(SwinModel(config, add_pooling_layer=False), 64)


def small(tower: VisionTower, **kwargs) -> AdaptorForSemanticSegmentation:
    torch.manual_seed(0)
    adaptor = AdaptorModel.from_towers(tower, None, text_hidden_size=16, **SMALL)
    return AdaptorForSemanticSegmentation.from_adaptor(adaptor, **kwargs)


class TestParameters:
    @pytest.mark.parametrize("width", [384, 768])
    def test_the_papers_token_decoder(self, width):
        spec = {**TOWER_PRESETS["dinov2-s"], "hidden_size": width}
        model = AdaptorForSemanticSegmentation(AdaptorConfig(vision_hidden_size=width, vision_tower=spec))
        assert model.config.segmentation_decoder == "tokens"
        assert trainable(model) == 10_401_409

    @pytest.mark.parametrize(("size", "expected"), [(224, 20_146_817), (448, 21_195_393), (896, 21_195_393)])
    def test_the_papers_unet(self, size, expected):
        config = AdaptorConfig(vision_hidden_size=512, vision_tower=TOWER_PRESETS["resnet-ae"], image_size=size)
        model = AdaptorForSemanticSegmentation(config)
        assert model.config.segmentation_decoder == "unet"
        assert trainable(model) == expected

    def test_convolutions_start_as_the_references(self):
        decoder = AdaptorForSemanticSegmentation(AdaptorConfig(vision_tower=TOWER_PRESETS["dinov2-b"])).decoder
        weight = decoder.first[0].weight.detach()
        assert weight.std().item() == pytest.approx((2 / (768 * 9)) ** 0.5, rel=0.02)
        norm = decoder.first[1]
        assert norm.weight.eq(1).all()
        assert norm.running_var.eq(1).all()


def reference_vit_decoder(decoder: TokenDecoder, tokens: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """The reference's layers, written out for its two sizes, with the weights of `decoder`."""
    first, norm = decoder.first[0], decoder.first[1]
    hidden = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    hidden = nn.functional.conv2d(hidden, first.weight, first.bias, padding=0 if size == 224 else 1)
    hidden = norm(hidden).relu()
    if size == 896:
        hidden = nn.Upsample(scale_factor=14 / 16)(hidden)
    for step in decoder.steps:
        hidden = nn.Upsample(scale_factor=2)(step[1](step[0](hidden)).relu())
    return decoder.output(hidden)


class TestTokenDecoder:
    @pytest.mark.parametrize(("side", "size", "training"), [(16, 224, False), (16, 224, True), (64, 896, False)])
    def test_it_computes_what_the_reference_computes(self, side, size, training, monkeypatch):
        # The paper's widths take half a minute at 896 pixels.
        monkeypatch.setattr(decoders_adaptor, "WIDTHS", (8, 6, 4, 4))
        torch.manual_seed(0)
        decoder = TokenDecoder(4, 1).double().train(training)
        decoder.first[1].running_mean.normal_()
        tokens = torch.randn(1, side * side, 4, dtype=torch.float64)
        with torch.no_grad():
            expected = reference_vit_decoder(decoder, tokens, side, size)
            actual = decoder(tokens, (side, side), (size, size))
        assert actual.shape == (1, 1, size, size)
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)

    @pytest.mark.parametrize(("grid", "size"), [((37, 37), (518, 518)), ((2, 3), (28, 42)), ((7, 7), (224, 224))])
    def test_any_grid_and_size(self, grid, size):
        decoder = TokenDecoder(4, 3).eval()
        assert decoder(torch.randn(1, grid[0] * grid[1], 4), grid, size).shape == (1, 3, *size)

    def test_tokens_keep_their_place(self):
        torch.manual_seed(0)
        decoder = TokenDecoder(4, 1).eval()
        tokens = torch.zeros(1, 6 * 10, 4)
        changed = tokens.clone()
        changed[0, 1 * 10 + 8] = 5
        with torch.no_grad():
            difference = (decoder(changed, (6, 10), (96, 160)) - decoder(tokens, (6, 10), (96, 160))).abs()[0, 0]
        row, column = divmod(difference.flatten().argmax().item(), 160)
        assert row < 64
        assert 96 <= column < 160


class TestUNetDecoder:
    def test_the_neck_is_the_references_and_one_layer_doubles(self):
        decoder = UNetDecoder(6, [4, 4, 4, 4], 1, doublings=2)
        assert decoder.neck(torch.zeros(1, 6, 1, 1)).shape == (1, 512, 7, 7)
        assert sum(p.numel() for p in decoder.doubling.parameters()) == 1_048_576

    def test_at_the_papers_size_nothing_is_interpolated(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("interpolated")

        monkeypatch.setattr(nn.functional, "interpolate", refuse)
        maps = [torch.randn(1, 2, 224 // stride, 224 // stride) for stride in (2, 4, 8, 16)]
        decoder = UNetDecoder(6, [2, 2, 2, 2], 1).eval()
        with torch.no_grad():
            assert decoder(torch.randn(1, 6), maps, (224, 224)).shape == (1, 1, 224, 224)

    @pytest.mark.parametrize("missing", [(), (0,), (0, 1, 2)])
    def test_absent_skips_and_odd_sizes(self, missing):
        channels = [0 if level in missing else 2 for level in range(4)]
        maps = [
            torch.randn(1, c, -(-70 // s), -(-101 // s)) if c else None
            for c, s in zip(channels, (2, 4, 8, 16), strict=True)
        ]
        decoder = UNetDecoder(6, channels, 2).eval()
        with torch.no_grad():
            assert decoder(torch.randn(1, 6), maps, (70, 101)).shape == (1, 2, 70, 101)


class TestTowers:
    def test_resnet_ae_at_the_papers_sizes(self):
        from adaptor_hf.xrv_towers_adaptor import xrv_encoder

        spec = {**TOWER_PRESETS["resnet-ae"]}
        model = small(VisionTower(xrv_encoder(), spec)).eval()
        assert model.config.skip_channels == [64, 256, 512, 1024]
        with torch.no_grad():
            assert model(torch.randn(1, 1, 224, 224)).logits.shape == (1, 1, 224, 224)

    @pytest.mark.parametrize(("make", "skips"), [(tiny_resnet, [0, 8, 16, 24]), (tiny_swin, [0, 8, 16, 32])])
    def test_feature_pyramids_are_found(self, make, skips):
        model = small(make())
        assert model.config.segmentation_decoder == "unet"
        assert model.config.skip_channels == skips
        pixels = torch.randn(2, 3, 64, 64)
        output = model(pixels, labels=torch.ones(2, 64, 64))
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.decoder.parameters())

    def test_lite0_with_real_weights_at_several_sizes(self):
        model = small(load_vision_tower("lite0")).eval()
        assert model.config.skip_channels == [16, 24, 40, 112]
        for size in ((224, 224), (160, 192)):
            with torch.no_grad():
                assert model(torch.randn(1, 3, *size)).logits.shape == (1, 1, *size)

    def test_maps_come_from_the_pass_that_gives_the_tokens(self):
        tower = tiny_resnet()
        pixels = torch.randn(2, 3, 64, 64)
        with_maps = features_with_maps(tower, pixels)
        assert torch.equal(with_maps.tokens, tower(pixels).last_hidden_state)
        assert torch.equal(with_maps.pooled, tower(pixels).pooler_output)
        assert torch.equal(with_maps.maps[2], tower.model(pixels, output_hidden_states=True).hidden_states[2])

    def test_a_convolutional_tower_may_have_the_token_decoder_and_a_vit_no_unet(self, vision_tower):
        model = small(tiny_resnet(), segmentation_decoder="tokens")
        assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 1, 64, 64)
        with pytest.raises(ValueError, match="needs feature maps"):
            small(vision_tower, segmentation_decoder="unet")

    def test_cached_tokens_equal_pixels(self, vision_tower):
        model = small(vision_tower).eval()
        pixels = torch.randn(2, 3, 28, 28)
        features = vision_tower.features(pixels)
        cached = torch.cat([features.pooled[:, None], features.tokens], dim=1)
        assert model.config.image_size == 28
        assert torch.equal(model(pixels).logits, model(image_embeds=cached).logits)

    def test_the_pooled_token_is_no_pixel_and_the_tokens_went_through_the_adaptor(self, vision_tower):
        model = small(vision_tower).eval()
        sequence = torch.randn(1, 5, 32)
        tokens = model.adaptor(image_embeds=sequence).image_last_hidden_state[:, 1:]
        assert torch.equal(model(image_embeds=sequence).logits, model.decoder(tokens, (2, 2), (28, 28)))
        raw = small(vision_tower, feature_source="tower").eval()
        assert torch.equal(raw(image_embeds=sequence).logits, raw.decoder(sequence[:, 1:], (2, 2), (28, 28)))

    def test_any_size_the_tower_takes(self, vision_tower):
        assert small(vision_tower)(torch.randn(2, 3, 42, 70)).logits.shape == (2, 1, 42, 70)

    @pytest.mark.parametrize("make", [tiny_resnet, tiny_swin])
    def test_frozen_parts_stay_bit_equal_buffers_included(self, make):
        model = small(make())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 2, (2, 64, 64))).loss.backward()
            optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any("running_mean" in name for name in changed)
        assert all(name.startswith("decoder.") for name in changed)


class TestInputs:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.zeros(2, 32, 32), "the size of the images"),
            (torch.full((2, 28, 28), 255), "Masks must be 0 and 1"),
            (torch.zeros(2, 2, 28, 28), "Labels must be of shape"),
        ],
    )
    def test_masks_that_do_not_fit_are_refused(self, vision_tower, labels, message):
        with pytest.raises(ValueError, match=message):
            small(vision_tower)(torch.randn(2, 3, 28, 28), labels=labels)

    def test_several_classes_and_pixels_that_do_not_count(self, vision_tower):
        model = small(vision_tower, num_labels=3)
        labels = torch.randint(0, 3, (2, 28, 28))
        labels[:, :14] = 255
        output = model(torch.randn(2, 3, 28, 28), labels=labels)
        assert output.logits.shape == (2, 3, 28, 28)
        expected = nn.functional.cross_entropy(output.logits[:, :, 14:], labels[:, 14:])
        torch.testing.assert_close(output.loss, expected)
        with pytest.raises(ValueError, match="integers from 0 to 2"):
            model(torch.randn(2, 3, 28, 28), labels=torch.full((2, 28, 28), 3))

    def test_embeddings_without_grid_or_for_a_unet_are_refused(self, vision_tower):
        with pytest.raises(ValueError, match="build --image_tokens all"):
            small(vision_tower)(image_embeds=torch.randn(2, 32))
        with pytest.raises(ValueError, match="build --image_tokens all"):
            small(vision_tower)(image_embeds=torch.randn(2, 4, 32))
        with pytest.raises(ValueError, match="give pixel_values"):
            small(tiny_resnet())(image_embeds=torch.randn(2, 5, 32))

    def test_images_too_small_for_the_skips_are_refused(self):
        with pytest.raises(ValueError, match="Use larger images"):
            small(tiny_resnet())(torch.randn(1, 3, 16, 16))

    def test_a_unet_without_maps_is_refused(self):
        with pytest.raises(ValueError, match="needs feature maps"):
            AdaptorForSemanticSegmentation(synthetic_config(segmentation_decoder="unet"))


class TestCheckpoint:
    def test_a_pretraining_checkpoint_gets_the_decoder_its_tower_allows(self, tmp_path, vision_tower):
        for tower, decoder in ((load_vision_tower("lite0"), "unet"), (vision_tower, "tokens")):
            folder = tmp_path / decoder
            AdaptorModel.from_towers(tower, None, text_hidden_size=16, **SMALL).save_pretrained(folder)
            model, report = AdaptorForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
            assert model.config.segmentation_decoder == decoder
            assert all(name.startswith("decoder.") for name in report["missing_keys"])
            assert not report["unexpected_keys"]
            assert trainable(model) == sum(p.numel() for p in model.decoder.parameters())
            by_auto = AutoModelForSemanticSegmentation.from_pretrained(folder)
            assert by_auto.config.skip_channels == model.config.skip_channels

    def test_a_saved_decoder_comes_back_with_equal_logits(self, tmp_path):
        model = small(load_vision_tower("lite0"), id2label={0: "background", 1: "lung"})
        pixels = torch.randn(2, 3, 64, 64)
        model.train()(pixels)
        model.eval().save_pretrained(tmp_path)
        again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(again(pixels).logits, model(pixels).logits)
        assert not (tmp_path / "model.safetensors").stat().st_size > 90e6

    def test_one_name_becomes_two(self, vision_tower):
        assert small(vision_tower, id2label={0: "lung"}).config.id2label == {0: "background", 1: "lung"}

    def test_it_learns_a_mask(self, vision_tower):
        """Left halves bright, mask where it is bright: the decoder finds the side."""
        model = small(vision_tower).train()
        generator = torch.Generator().manual_seed(0)
        pixels = 0.1 * torch.randn(16, 3, 28, 28, generator=generator)
        masks = torch.zeros(16, 28, 28)
        for row in range(16):
            columns = slice(0, 14) if row % 2 else slice(14, 28)
            pixels[row, :, :, columns] += 2
            masks[row, :, columns] = 1
        optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-4)
        for _ in range(25):
            optimizer.zero_grad()
            model(pixels, labels=masks).loss.backward()
            optimizer.step()
        predicted = model(pixels).logits[:, 0] > 0
        assert (predicted == masks.bool()).float().mean() > 0.9


GEOMETRIES = [
    {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    {"size": {"shortest_edge": 56}, "crop_size": {"height": 64, "width": 64}},
    {"size": {"height": 64, "width": 64}, "do_center_crop": False, "do_pad_to_square": True},
]


def ellipse(width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    inside = ((rows - 0.45 * height) / (0.22 * height)) ** 2 + ((columns - 0.55 * width) / (0.2 * width)) ** 2 < 1
    return (inside * 255).astype(np.uint8)


class TestMasks:
    @pytest.mark.parametrize("size", [(150, 211), (211, 150), (93, 93)])
    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_a_mask_goes_through_the_steps_of_its_image_and_back(self, geometry, size):
        processor = AdaptorImageProcessor(**geometry, image_mean=[0.0], image_std=[1.0])
        mask = ellipse(*size)
        batch = processor(Image.fromarray(mask), segmentation_maps=Image.fromarray(mask), return_tensors="pt")
        assert batch["labels"].shape == batch["pixel_values"][:, 0].shape
        # The mask as an image shows where the mask as a label has to be.
        assert ((batch["pixel_values"][:, 0] > 0.5) == batch["labels"].bool()).float().mean() > 0.985
        outputs = type("Outputs", (), {"logits": 20.0 * batch["labels"][:, None] - 10})
        (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size[::-1]])
        assert found.shape == size[::-1]
        target = torch.from_numpy(mask > 0)
        assert 2 * (found.bool() & target).sum() / (found.sum() + target.sum()) > 0.96

    def test_what_the_crop_cut_away_is_background(self):
        processor = AdaptorImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
        outputs = type("Outputs", (), {"logits": torch.full((1, 1, 64, 64), 9.0)})
        (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(100, 200)])
        assert found[:, 50:150].all()
        assert not found[:, :49].any()
        assert not found[:, 151:].any()

    def test_one_logit_has_a_threshold_and_several_the_largest(self):
        processor = AdaptorImageProcessor()
        logits = torch.tensor([[[[-1.0, 1.0, 3.0]]]])
        one = type("Outputs", (), {"logits": logits})
        assert processor.post_process_semantic_segmentation(one)[0].tolist() == [[0, 1, 1]]
        assert processor.post_process_semantic_segmentation(one, threshold=0.9)[0].tolist() == [[0, 0, 1]]
        several = type("Outputs", (), {"logits": torch.cat([logits, -logits, torch.full_like(logits, 2.0)], dim=1)})
        assert processor.post_process_semantic_segmentation(several)[0].tolist() == [[2, 2, 0]]
        with pytest.raises(ValueError, match="2 target sizes for 1 images"):
            processor.post_process_semantic_segmentation(one, target_sizes=[(4, 4), (4, 4)])

    def test_class_numbers_stay_as_they_are_and_masks_become_0_and_1(self):
        processor = AdaptorImageProcessor(do_resize=False, do_center_crop=False)
        image = Image.new("L", (3, 2))
        numbers = np.array([[0, 1, 2], [255, 7, 300]])
        batch = processor(image, segmentation_maps=numbers, return_tensors="np")
        assert batch["labels"].tolist() == [numbers.tolist()]
        masks = [Image.fromarray(np.uint8([[0, 255, 0], [255, 0, 0]])), np.array([[False, True, False]] * 2)]
        batch = processor([image, image], segmentation_maps=masks, return_tensors="pt")
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"].tolist() == [[[0, 1, 0], [1, 0, 0]], [[0, 1, 0]] * 2]

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.zeros((4, 4), np.uint8), "is 4x4 pixels, its image 3x2"),
            (np.zeros((2, 3, 3), np.uint8), r"of shape \(2, 3, 3\)"),
            (np.zeros((2, 3)), "type float64"),
            (Image.fromarray(np.uint8([[0, 128, 255]] * 2)), "a mask has 0 and 255"),
            ([np.zeros((2, 3), int)] * 2, "got 2 segmentation maps for 1 images"),
        ],
    )
    def test_masks_that_mislead_are_refused(self, mask, message):
        with pytest.raises(ValueError, match=message):
            AdaptorImageProcessor()(Image.new("L", (3, 2)), segmentation_maps=mask)


def test_the_pipeline_gives_masks_of_the_size_of_the_image(vision_tower, radiographs, tmp_path):
    model = small(vision_tower, id2label={0: "background", 1: "lung"}).eval()
    model.save_pretrained(tmp_path)
    vision_tower.processor.save_pretrained(tmp_path)
    image = Image.open(radiographs / "image_1.jpg")
    results = {result["label"]: result["mask"] for result in pipeline("image-segmentation", model=str(tmp_path))(image)}
    with torch.no_grad():
        outputs = model(vision_tower.processor(image, return_tensors="pt")["pixel_values"])
    (expected,) = vision_tower.processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
    assert expected.any()
    assert not expected.all()
    assert results["lung"].size == image.size
    assert np.array_equal(np.asarray(results["lung"]), expected.numpy() * 255)
    assert np.array_equal(np.asarray(results["background"]), 255 - expected.numpy() * 255)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, image, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(images=Image.open(image), return_tensors="pt")).logits
found = pipeline("image-segmentation", model=folder, trust_remote_code=True)(Image.open(image))
assert "adaptor_hf" not in sys.modules
masks = {item["label"]: torch.from_numpy(numpy.array(item["mask"])) for item in found}
torch.save({"logits": logits, "masks": masks}, out + "/result.pt")
"""
)


@pytest.mark.parametrize("decoder", ["tokens", pytest.param("unet", marks=pytest.mark.slow)])
def test_remote_code_without_the_package_gives_bit_equal_logits(decoder, vision_tower, radiographs, tmp_path):
    tower = vision_tower if decoder == "tokens" else load_vision_tower("lite0")
    model = small(tower).eval()
    folder, image = tmp_path / "model", radiographs / "image_1.jpg"
    model.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    result = run_remote(REMOTE, tmp_path, folder, image)
    with torch.no_grad():
        logits = model(**tower.processor(Image.open(image), return_tensors="pt")).logits
    assert torch.equal(result["logits"], logits)
    assert sum(mask.bool().int() for mask in result["masks"].values()).eq(1).all()
    assert saved_code(folder) == code_of(AdaptorForSemanticSegmentation, AdaptorImageProcessor)
