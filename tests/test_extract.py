"""What a tower gives for a cache: pooled vectors, tokens, regions, attention, earlier maps, spans of a text."""

import math

import datasets
import numpy as np
import pytest
import torch
from reference import GOLDEN
from safetensors.torch import load_file
from test_tower_features import TEXT, VISION, in_layers, inputs_of, random_tower
from torch import nn
from transformers import BertTokenizerFast

from adaptor_hf.embeddings.columns import Ragged, to_arrow
from adaptor_hf.embeddings.extract import columns_of, extract
from adaptor_hf.embeddings.stored import StoredImages, StoredTexts
from adaptor_hf.embeddings.text_batches import TextBatches, token_spans
from adaptor_hf.pyramids_adaptor import run_with_maps
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.towers.attention import class_attention

ALL_IMAGES = StoredImages(image_tokens=3, regions=(2, 3), shallow=(1, 3), image_attention=True)
ALL_TEXTS = StoredTexts(text_tokens=True, text_attention=True, words=True, sentences=True)
REPORTS = [
    "No pleural effusion. The heart is normal in size.",
    "1. Cardiomegaly, unchanged since 2019-05-03.\n\nImpression: a nodule of 1.5 cm (left), Dr. Smith agrees. 2. No "
    "pneumothorax! ___",
    "Normal.",
    "Lungs are clear",
    "___ 3.",
    "Épanchement pleural; \u00e0 gauche. T\u0308est of 'quotes.' Then more",
]


def grid_tower(**fields):
    """A ViT whose 28 x 28 images have 4 x 4 tokens."""
    return random_tower("vit", image_processor=processing(28), **fields)


def processing(side: int) -> dict:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def sized(tower):
    """With the sizes that loading finds."""
    tower._complete_spec()
    return tower


def batches(texts, tokenizer, stored=ALL_TEXTS, max_length=64) -> dict:
    data = datasets.Dataset.from_dict({"text": texts}).with_format("arrow")
    return TextBatches(data, tokenizer, max_length, stored).encode(np.arange(len(texts)))


def rows_of(ragged: Ragged) -> list[np.ndarray]:
    return [ragged.values[start:stop] for start, stop in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


def columns_fit(tower, inputs, stored) -> dict:
    """What is extracted, once it was compared with the columns that were announced."""
    found = extract(tower, inputs, stored)
    for dtype in ("float16", "int8"):
        columns = columns_of(tower, stored, dtype)
        assert [column.name for column in columns] == list(found)
        for column in columns:
            values = found[column.name]
            assert isinstance(values, Ragged) == column.ragged
            assert column.shape[1:] == (values.values.shape[1:] if column.ragged else values.shape[2:])
            assert column.ragged or column.shape == values.shape[1:]
            for array in to_arrow(column, values).values():
                assert len(array) == len(found["embedding"])
    return found


class TestImages:
    @pytest.fixture(scope="class")
    def tower(self):
        return sized(grid_tower(pooling="cls"))

    def test_all_at_once(self, tower):
        found = columns_fit(tower, inputs_of(tower), ALL_IMAGES)
        shapes = {name: values.shape[1:] for name, values in found.items()}
        assert shapes == {
            "embedding": (32,), "image_tokens": (10, 32), "regions": (6, 32), "shallow": (64,), "image_attention": (9,),
        }  # fmt: skip
        columns = {column.name: column for column in columns_of(tower, ALL_IMAGES, "int8")}
        assert columns["image_tokens"].info == {"grid": [3, 3], "prefix": 1}
        assert columns["image_attention"].dtype == "float16"
        assert columns["regions"].dtype == columns["embedding"].dtype == "int8"

    def test_nothing_asked_is_the_towers_vector_bit_by_bit(self, tower):
        inputs = inputs_of(tower)
        found = extract(tower, inputs, StoredImages())
        assert list(found) == ["embedding"]
        assert np.array_equal(found["embedding"], tower(**inputs).pooler_output.numpy())
        assert found["embedding"].dtype == np.float32

    def test_a_row_does_not_depend_on_its_batch(self, tower):
        inputs = {"pixel_values": torch.randn(5, 3, 28, 28)}
        together = extract(tower, inputs, ALL_IMAGES)
        for row in range(5):
            alone = extract(tower, {"pixel_values": inputs["pixel_values"][row : row + 1]}, ALL_IMAGES)
            for name, values in alone.items():
                np.testing.assert_allclose(together[name][row], values[0], rtol=1e-5, atol=1e-5, err_msg=name)

    @pytest.mark.parametrize("cells", [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (1, 4)])
    def test_cells_are_means_of_the_tokens_that_they_touch(self, tower, cells):
        inputs = inputs_of(tower)
        tokens = tower(**inputs).last_hidden_state.numpy().reshape(2, 4, 4, 32)
        bounds = [[(4 * i // count, math.ceil(4 * (i + 1) / count)) for i in range(count)] for count in cells]
        expected = [
            tokens[:, top:bottom, left:right].mean(axis=(1, 2))
            for top, bottom in bounds[0]
            for left, right in bounds[1]
        ]
        found = extract(tower, inputs, StoredImages(regions=cells))["regions"]
        np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-5, atol=1e-6)
        if cells[0] == cells[1]:
            tokens = extract(tower, inputs, StoredImages(image_tokens=cells[0]))["image_tokens"]
            np.testing.assert_array_equal(tokens[:, 1:], found)

    def test_the_class_token_comes_first_and_no_register(self):
        tower = sized(random_tower("dinov2_with_registers", image_processor=processing(28), pooling="cls"))
        inputs = inputs_of(tower)
        found = extract(tower, inputs, StoredImages(image_tokens="all"))
        state = tower.model(**inputs).last_hidden_state.detach().numpy()
        assert state.shape[1] == 1 + 4 + 16
        np.testing.assert_array_equal(found["image_tokens"], np.concatenate([state[:, :1], state[:, 5:]], axis=1))
        np.testing.assert_array_equal(found["embedding"], found["image_tokens"][:, 0])

    def test_tokens_of_joined_layers_are_as_wide_as_these(self):
        tower = sized(in_layers(grid_tower(pooling="cls+mean"), [2, 4]))
        assert (tower.hidden_size, tower.token_size) == (128, 64)
        found = columns_fit(tower, inputs_of(tower), ALL_IMAGES)
        assert (found["image_tokens"].shape, found["embedding"].shape) == ((2, 10, 64), (2, 128))
        tokens = extract(tower, inputs_of(tower), StoredImages(image_tokens="all"))["image_tokens"]
        expected = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)
        np.testing.assert_allclose(found["embedding"], expected, rtol=1e-5, atol=1e-6)

    def test_shallow_of_a_transformer_are_means_of_its_blocks(self, tower):
        inputs = inputs_of(tower)
        with torch.no_grad():
            states = tower.model(**inputs, output_hidden_states=True).hidden_states
        expected = torch.cat([states[depth][:, 1:].mean(dim=1) for depth in (1, 3)], dim=1)
        np.testing.assert_allclose(extract(tower, inputs, ALL_IMAGES)["shallow"], expected, rtol=1e-5, atol=1e-6)

    def test_shallow_of_a_cnn_are_means_of_its_stages(self):
        import timm

        tower = load_vision_tower("lite0")
        pixels = torch.randn(2, 3, 64, 64)
        stages = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
        missing = stages.load_state_dict(tower.model.timm_model.state_dict(), strict=False).missing_keys
        assert not missing
        with torch.no_grad():
            means = [one.mean(dim=(2, 3)) for one in stages(pixels)]
        assert len(means) == 5
        found = extract(tower, {"pixel_values": pixels}, StoredImages(shallow=(1, 2, 4)))["shallow"]
        np.testing.assert_allclose(found, torch.cat([means[0], means[1], means[3]], dim=1), rtol=1e-4, atol=1e-5)
        columns_fit(tower, {"pixel_values": pixels.repeat(1, 1, 4, 4)[..., :224, :224]}, StoredImages(7, (2, 3), (5,)))

    def test_a_stage_is_the_last_map_of_its_resolution(self):
        network = nn.Sequential(*(nn.Conv2d(1, 2 + i, 3, 1 + i % 2, 1) for i in range(1)), nn.ReLU(), nn.AvgPool2d(2))
        spec = {"kind": "vision", "library": "torchxrayvision", "name_or_path": "x", "pooling": "mean"}
        tower = type(grid_tower())(network, spec | {"hidden_size": 2, "image_processor": None})
        pixels = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            _, maps = run_with_maps(network, "torchxrayvision", pixels)
        found = extract(tower, {"pixel_values": pixels}, StoredImages(shallow=(1, 2)))["shallow"]
        np.testing.assert_allclose(found, torch.cat([maps[1].mean((2, 3)), maps[2].mean((2, 3))], dim=1), rtol=1e-6)

    def test_views_are_passes_of_their_own(self, tower):
        stored = StoredImages(image_tokens=2, views=3)
        views = torch.randn(2, 3, 3, 28, 28)
        boxes = torch.rand(2, 3, 5)
        inputs = inputs_of(tower) | {"view_pixel_values": views, "view_boxes": boxes}
        found = columns_fit(tower, inputs, stored)
        assert found["view_tokens"].shape == (2, 3, 5, 32)
        alone = extract(tower, {"pixel_values": views[1, 2:3]}, StoredImages(image_tokens=2))
        np.testing.assert_allclose(found["view_embeds"][1, 2], alone["embedding"][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["view_tokens"][1, 2], alone["image_tokens"][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["view_boxes"], boxes)

    @pytest.mark.parametrize(
        ("model_type", "stored", "message"),
        [
            ("vit", {"image_tokens": 5}, r"image_tokens asks for a grid of 5 x 5, and tower 'vit' has one of 4 x 4"),
            ("vit", {"regions": (4, 5)}, "regions asks for a grid of 4 x 5, and tower 'vit' has one of 4 x 4"),
            ("vit", {"shallow": (1, 5)}, r"shallow asks for the depths \[1, 5\], and tower 'vit' has 4 blocks"),
            (
                "siglip_vision_model",
                {"image_attention": True},
                "'siglip_vision_model' has no class token.*Leave image_at",
            ),
        ],
    )
    def test_what_a_tower_has_not_is_refused_before_any_work(self, model_type, stored, message):
        tower = sized(random_tower(model_type, image_processor=processing(28)))
        with pytest.raises(ValueError, match=message):
            columns_of(tower, StoredImages(**stored), "float16")

    def test_a_cnn_has_no_class_token_and_is_called_by_its_preset(self):
        tower = load_vision_tower("lite0")
        with pytest.raises(ValueError, match="tower 'lite0' has no class token, whose attention"):
            columns_of(tower, StoredImages(image_attention=True), "float16")
        with pytest.raises(ValueError, match=r"regions asks for .* and tower 'lite0' has"):
            columns_of(tower, StoredImages(regions=(99, 1)), "float16")
        with pytest.raises(ValueError, match="tower 'lite0' has no layers to take x from"), class_attention(tower, "x"):
            pass


class TestAttention:
    @pytest.mark.parametrize("model_type", [*(name for name in VISION if "siglip" not in name), *TEXT])
    def test_it_is_what_transformers_gives_for_the_first_token(self, model_type):
        tower = random_tower(model_type)
        inputs, before = inputs_of(tower), tower.model.config._attn_implementation
        with torch.no_grad():
            with class_attention(tower, "x") as found:
                tower(**inputs)
            assert tower.model.config._attn_implementation == before
            own_hooks = [
                h for m in tower.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
            ]
            assert not own_hooks
            if before != "eager":
                tower.model.set_attn_implementation("eager")
            expected = tower.model(**inputs, output_attentions=True).attentions[-1]
        torch.testing.assert_close(found[0], expected[:, :, 0].mean(dim=1))
        torch.testing.assert_close(found[0].sum(dim=1), torch.ones(2))
        if "attention_mask" in inputs:
            assert (found[0][1, 5:] == 0).all(), "padding is looked at"

    def test_it_is_restored_after_an_error(self):
        tower = random_tower("vit")
        with pytest.raises((RuntimeError, ValueError), match="channel"), class_attention(tower, "x"):
            tower(torch.zeros(1, 5, 28, 28))
        assert tower.model.config._attn_implementation == "sdpa"
        assert not any(module._forward_hooks for module in tower.modules())

    @pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 2}])
    def test_of_timm_it_is_the_softmax(self, tmp_path, arguments):
        from test_tower_features import timm_tower

        tower = load_vision_tower(f"timm:{timm_tower(tmp_path / 'vit', **arguments)}")
        pixels, attention = torch.randn(2, 3, 32, 32), tower.model.timm_model.blocks[-1].attn
        seen = []
        handle = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        fused = attention.fused_attn
        found = extract(tower, {"pixel_values": pixels}, StoredImages(image_attention=True))["image_attention"]
        handle.remove()
        assert attention.fused_attn == fused
        assert not attention.attn_drop._forward_hooks
        with torch.no_grad():
            query, key, _ = attention.qkv(seen[0]).reshape(2, -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
            weights = (query[:, :, :1] @ key.transpose(-2, -1) / math.sqrt(8)).softmax(dim=-1).mean(dim=1)[:, 0]
        np.testing.assert_allclose(found, weights[:, -16:], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("grid", [1, 2, 3, 4])
    def test_its_sum_over_cells_is_the_whole(self, grid):
        tower = sized(grid_tower(pooling="cls"))
        inputs = inputs_of(tower)
        whole = extract(tower, inputs, StoredImages(image_attention=True))["image_attention"]
        found = extract(tower, inputs, StoredImages(image_attention=True, image_tokens=grid))["image_attention"]
        assert found.shape == (2, grid * grid)
        np.testing.assert_allclose(found.sum(axis=1), whole.sum(axis=1), rtol=1e-5)
        assert (whole.sum(axis=1) < 1).all()
        maps = whole.reshape(2, 4, 4)
        if 4 % grid == 0:
            size = 4 // grid
            expected = maps.reshape(2, grid, size, grid, size).sum(axis=(2, 4))
        else:
            # Sixteenths of a token's side: each belongs to one cell.
            fine = np.repeat(np.repeat(maps, 3, axis=1), 3, axis=2) / 9
            expected = fine.reshape(2, 3, 4, 3, 4).sum(axis=(2, 4))
        np.testing.assert_allclose(found, expected.reshape(2, -1), rtol=1e-5)

    def test_its_sum_stays_in_half_precision(self):
        tower = sized(grid_tower(pooling="cls"))
        with torch.autocast("cpu", torch.bfloat16):
            whole = extract(tower, inputs_of(tower), StoredImages(image_attention=True))["image_attention"]
            found = extract(tower, inputs_of(tower), StoredImages(image_attention=True, image_tokens=3))
        np.testing.assert_allclose(found["image_attention"].sum(axis=1), whole.sum(axis=1), rtol=1e-5)

    def test_the_vector_stays(self):
        tower = sized(grid_tower(pooling="cls"))
        inputs = inputs_of(tower)
        with_attention = extract(tower, inputs, StoredImages(image_attention=True))["embedding"]
        np.testing.assert_allclose(with_attention, extract(tower, inputs, StoredImages())["embedding"], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_what_a_gpu_gives_is_what_the_cpu_gives(kind):
    tower = sized(grid_tower(pooling="cls")) if kind == "images" else load_text_tower("minilm")
    inputs = inputs_of(tower) if kind == "images" else batches(REPORTS, tower.processor)
    stored = ALL_IMAGES if kind == "images" else ALL_TEXTS
    expected = extract(tower, inputs, stored)
    found = extract(tower.to("cuda"), inputs, stored)
    for name, values in expected.items():
        one, other = (x.values if isinstance(x, Ragged) else x for x in (values, found[name]))
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2, err_msg=name)


class TestTexts:
    @pytest.fixture(scope="class")
    def tower(self):
        return load_text_tower("minilm")

    def test_all_at_once(self, tower):
        inputs = batches(REPORTS, tower.processor)
        found = columns_fit(tower, inputs, ALL_TEXTS)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        assert np.diff(found["text_tokens"].offsets).tolist() == lengths
        assert len(set(lengths)) > 3
        for weights in rows_of(found["text_attention"]):
            assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert found["words"].values.dtype == found["sentences"].values.dtype == np.int16

    def test_nothing_asked_is_the_towers_vector_bit_by_bit(self, tower):
        inputs = batches(REPORTS, tower.processor, StoredTexts())
        assert not inputs.keys() & {"words", "sentences"}
        found = extract(tower, inputs, StoredTexts())
        assert np.array_equal(found["embedding"], tower(**inputs).pooler_output.numpy())
        assert list(found) == ["embedding"]

    def test_a_row_does_not_depend_on_its_batch(self, tower):
        together = extract(tower, batches(REPORTS, tower.processor), ALL_TEXTS)
        for row, text in enumerate(REPORTS):
            alone = extract(tower, batches([text], tower.processor), ALL_TEXTS)
            for name, values in alone.items():
                of_many = rows_of(together[name])[row] if isinstance(values, Ragged) else together[name][row]
                of_one = values.values if isinstance(values, Ragged) else values[0]
                np.testing.assert_allclose(of_many, of_one, rtol=1e-4, atol=2e-5, err_msg=name)

    def test_joined_layers(self):
        tower = load_text_tower("minilm", layers=[2, 6], pooling="cls+mean")
        found = columns_fit(tower, batches(REPORTS, tower.processor), StoredTexts(text_tokens=True))
        for tokens, vector in zip(rows_of(found["text_tokens"]), found["embedding"], strict=True):
            np.testing.assert_allclose(vector, np.concatenate([tokens[0], tokens.mean(axis=0)]), rtol=1e-4, atol=1e-5)

    def test_a_slow_tokenizer_is_refused_for_spans(self, tiny_bert):
        tower = load_text_tower(str(tiny_bert))
        tower._processor = type("Slow", (), {"is_fast": False, "cls_token": "[CLS]"})()
        for option in ("words", "sentences"):
            with pytest.raises(ValueError, match=f"slow tokenizer.*Leave {option} out"):
                columns_of(tower, StoredTexts(**{option: True}), "float16")
        assert len(columns_of(tower, StoredTexts(text_tokens=True), "float16")) == 2

    def test_attention_needs_a_class_token(self, tiny_bert):
        tower = load_text_tower(str(tiny_bert))
        tower.processor.cls_token = None
        with pytest.raises(ValueError, match="no class token, whose attention text_attention is"):
            columns_of(tower, StoredTexts(text_attention=True), "float16")


def test_words_are_those_of_mgca_and_their_attention_is_their_own(tmp_path):
    """MGCA sums the pieces of a word. It gives a word the attention of the tokens one further on; ours are its own."""
    golden = load_file(GOLDEN / "words.safetensors")
    pieces = ["[PAD]", "[CLS]", "[SEP]", "heart", "##meg", "##aly", "no", "effus", "##ion", "clear", "lung", "##s"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*pieces, "[UNK]", "[MASK]"]))
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    texts = ["heartmegaly no effusion", "clear lungs", "no effusion clear lungs heartmegaly"]
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    ids = golden["in.input_ids"]
    assert torch.equal(encoded["input_ids"][:2], ids[:2])
    assert encoded["input_ids"][2, :9].tolist() == ids[2, :9].tolist()
    spans = token_spans(encoded, texts, ALL_TEXTS)["words"]
    states, attention = golden["in.last_hidden_state"], golden["in.last_layer_attentions"].mean(dim=1)[:, 0]
    for row, words in enumerate(rows_of(spans)):
        # MGCA stops before the last of its positions: of the third text the last word is lost.
        kept = words[:4] if row == 2 else words
        for place, (start, stop) in enumerate(kept):
            torch.testing.assert_close(states[row, start:stop].sum(dim=0), golden["out.word_feat"][row, place])
            own = attention[row, start:stop].sum()
            theirs = golden["out.word_attn"][row, place]
            torch.testing.assert_close(attention[row, start + 1 : stop + 1].sum(), theirs)
            assert abs(own - theirs) > 1e-3
    assert len(rows_of(spans)[2]) == 5
