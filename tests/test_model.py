"""Arithmetic, inputs and outputs of AdaptorModel, and the properties that make its evaluation mean something."""

import copy
import math

import pytest
import torch
from torch import nn

from adaptor_hf import (
    AdaptorConfig,
    AdaptorForImageClassification,
    AdaptorForSemanticSegmentation,
    AdaptorModel,
)
from adaptor_hf.objectives import contrastive_loss


def small_model(seed=0, **kwargs):
    torch.manual_seed(seed)
    defaults = {
        "vision_hidden_size": 20,
        "text_hidden_size": 28,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    return AdaptorModel(AdaptorConfig(**(defaults | kwargs)))


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(16, 20, generator=generator), torch.randn(16, 28, generator=generator)


@pytest.mark.parametrize(("vision", "count"), [(384, 11_912_705), (512, 12_011_009), (768, 12_207_617)])
def test_trainable_parameters_are_the_papers(vision, count):
    with torch.device("meta"):
        model = AdaptorModel(AdaptorConfig(vision_hidden_size=vision))
    assert model.num_parameters(only_trainable=True) == count


def test_zero_layers_are_two_normalised_projections(pairs):
    model = small_model(num_hidden_layers=0)
    output = model(image_embeds=pairs[0], text_embeds=pairs[1])
    expected = nn.functional.normalize(pairs[0] @ model.visual_projection.weight.T, dim=-1)
    torch.testing.assert_close(output.image_embeds, expected)
    assert model.num_parameters() == 48 * 20 + 48 * 28 + 1


def test_initialisation_is_xavier_over_the_packed_attention_matrix_and_torch_defaults_elsewhere():
    model = AdaptorModel(AdaptorConfig(num_hidden_layers=1))
    layer = model.shared_encoder.layers[0]
    uniform = math.sqrt(1 / 3)
    for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        bound = math.sqrt(6 / (768 + 3 * 768))
        assert projection.weight.std().item() == pytest.approx(bound * uniform, rel=0.01)
        assert projection.weight.abs().max() <= bound
        assert not projection.bias.any()
    assert not layer.self_attn.out_proj.bias.any()
    for linear in (layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2, model.visual_projection):
        assert linear.weight.std().item() == pytest.approx(uniform / math.sqrt(linear.in_features), rel=0.01)
    assert layer.mlp.fc1.bias.std().item() == pytest.approx(uniform / math.sqrt(768), rel=0.1)
    assert model.logit_scale.item() == pytest.approx(2.6592)


class TestOneTokenFastPath:
    """With one key, attention is `out_proj(v_proj(x))` with whole heads dropped. The general path must agree."""

    @staticmethod
    def run(model, pairs, path, seed):
        image, text = pairs
        torch.manual_seed(seed)
        if path == "fast":
            output = model(image_embeds=image, text_embeds=text, return_loss=True)
        elif path == "eager":
            output = model(image_embeds=image, text_embeds=text, return_loss=True, output_attentions=True)
        else:
            # The same concatenated rows through the general layers, by the attention kernel that config names.
            both = torch.cat(
                [
                    model._project(image[:, None], model.visual_projection, ""),
                    model._project(text[:, None], model.text_projection, ""),
                ]
            )
            mask = torch.zeros(len(both), 1, 1, 1, dtype=both.dtype)
            for layer in model.shared_encoder.layers:
                both, _ = layer(both, None, mask)
            return nn.functional.normalize(both[:, 0], dim=-1)
        return output

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_outputs_are_bit_identical_with_dropout_on(self, pairs, dtype):
        model = small_model().to(dtype).train()
        pairs = [value.to(dtype) for value in pairs]
        for seed in range(5):
            fast, general = (self.run(model, pairs, path, seed) for path in ("fast", "eager"))
            assert torch.equal(fast.image_embeds, general.image_embeds)
            assert torch.equal(fast.text_embeds, general.text_embeds)
            assert torch.equal(fast.loss, general.loss)
            sdpa = self.run(model, pairs, "sdpa", seed)
            assert torch.equal(torch.cat([fast.image_embeds, fast.text_embeds]), sdpa)
        assert not torch.equal(fast.loss, self.run(model, pairs, "fast", 99).loss)

    def test_gradients_agree_to_1e_5_in_float32(self, pairs):
        gradients = []
        for path in ("fast", "eager"):
            model = small_model().train()
            self.run(model, pairs, path, 3).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
        for name, fast in gradients[0].items():
            general = gradients[1][name]
            if "q_proj" in name or "k_proj" in name:
                assert not fast.any()
                assert general.abs().max() < 1e-6
            else:
                assert (fast - general).norm() <= 1e-5 * general.norm(), name

    def test_ten_adamw_steps_agree_to_1e_12_in_float64(self, pairs):
        states = []
        for path in ("fast", "eager"):
            model = small_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
            for step in range(10):
                optimizer.zero_grad()
                self.run(model, [value.double() for value in pairs], path, step).loss.backward()
                optimizer.step()
            states.append(model.state_dict())
        for name, fast in states[0].items():
            if "q_proj" in name or "k_proj" in name:
                continue
            assert (fast - states[1][name]).norm() <= 1e-12 * fast.norm(), name
        # AdamW still decays what gets no gradient, as in the reference.
        start = small_model().double().state_dict()["shared_encoder.layers.0.self_attn.q_proj.weight"]
        decayed = states[0]["shared_encoder.layers.0.self_attn.q_proj.weight"]
        torch.testing.assert_close(decayed, start * (1 - 1e-3 * 0.01) ** 10, rtol=1e-12, atol=0)

    def test_frozen_queries_get_no_gradient(self, pairs):
        model = small_model().train()
        for layer in model.shared_encoder.layers:
            layer.self_attn.q_proj.requires_grad_(False)
        self.run(model, pairs, "fast", 0).loss.backward()
        assert model.shared_encoder.layers[0].self_attn.q_proj.weight.grad is None
        assert model.shared_encoder.layers[0].self_attn.k_proj.weight.grad is not None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_cuda_agrees_and_keeps_heads_at_the_same_rate(self, pairs):
        model = small_model(hidden_dropout_prob=0.0).cuda()
        image, text = (value.cuda() for value in pairs)
        model.eval()
        fast = model(image_embeds=image, text_embeds=text)
        general = model(image_embeds=image, text_embeds=text, output_attentions=True)
        torch.testing.assert_close(fast.image_embeds, general.image_embeds, rtol=1e-5, atol=1e-5)
        attention = model.shared_encoder.layers[0].self_attn.train()
        attention.dropout = 0.3
        attention.out_proj.weight.data.copy_(torch.eye(48))
        attention.v_proj.weight.data.zero_()
        attention.v_proj.bias.data.fill_(1)
        rows = torch.zeros(20_000, 1, 48, device="cuda")
        kept = (attention(rows)[0].view(20_000, 4, 12)[..., 0] > 0).float().mean().item()
        assert kept == pytest.approx(0.7, abs=0.01)


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5])
    def test_drops_at_its_rate_keeps_the_mean_and_passes_the_same_gradient(self, p):
        from adaptor_hf.layers_adaptor import Dropout

        torch.manual_seed(0)
        ones = torch.ones(1000, 1001, requires_grad=True)
        dropped = Dropout(p).train()(ones)
        assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=2e-3)
        assert dropped.mean().item() == pytest.approx(1.0, abs=4e-3)
        dropped.sum().backward()
        assert torch.equal(ones.grad, dropped)
        # Neighbours come from one random integer: they must still be independent.
        kept = (dropped.detach().flatten()[:1_000_000] != 0).float().view(-1, 4)
        assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.01

    def test_is_the_identity_in_evaluation_and_repeats_with_the_seed(self):
        from adaptor_hf.layers_adaptor import Dropout

        layer, value = Dropout(0.3), torch.randn(7, 5)
        assert torch.equal(layer.eval()(value), value)
        layer.train()
        torch.manual_seed(1)
        first = layer(value)
        torch.manual_seed(1)
        assert torch.equal(layer(value), first)
        assert not torch.equal(layer(value), first)


class TestScience:
    def test_an_image_embedding_does_not_change_when_its_paired_text_is_replaced(self, pairs):
        model = small_model().eval()
        image, text = pairs
        tokens = image[:, None].repeat(1, 3, 1) * torch.tensor([1.0, 0.5, -1.0])[None, :, None]
        for images in (image, tokens):
            first = model(image_embeds=images, text_embeds=text).image_embeds
            second = model(image_embeds=images, text_embeds=text.flip(0)).image_embeds
            assert torch.equal(first, second)

    @pytest.mark.parametrize("tokens", [1, 4])
    def test_batch_composition_does_not_change_an_embedding(self, pairs, tokens):
        model = small_model().eval()
        image = pairs[0][:, None].repeat(1, tokens, 1) if tokens > 1 else pairs[0]
        image = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        whole = model(image_embeds=image).image_embeds
        for size in (1, 8):
            part = model(image_embeds=image[:size]).image_embeds
            torch.testing.assert_close(part, whole[:size], rtol=0, atol=1e-5)
        # Texts in the batch do not matter either.
        mixed = model(image_embeds=image[:8], text_embeds=pairs[1]).image_embeds
        torch.testing.assert_close(mixed, whole[:8], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("tokens", "fuse_pairs"), [((1, 1), False), ((8, 1), False), ((8, 1), True)])
    def test_only_pair_fusion_learns_something_from_independent_noise(self, tokens, fuse_pairs):
        """Held-out accuracy on pure noise is chance, unless pairs are fused before the loss: that leaks the pairing."""
        model = small_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        generator = torch.Generator().manual_seed(0)

        def forward_noise():
            image, text = (
                torch.randn(32, 1, width, generator=generator)
                + 0.7 * torch.randn(32, length, width, generator=generator)
                for length, width in zip(tokens, (20, 28), strict=True)
            )
            return model(image_embeds=image, text_embeds=text, fuse_pairs=fuse_pairs)

        for _ in range(500):
            optimizer.zero_grad()
            output = forward_noise()
            contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = [forward_noise().logits_per_image.argmax(1) == torch.arange(32) for _ in range(64)]
        accuracy = torch.cat(right).float().mean().item()
        if fuse_pairs:
            assert accuracy > 0.5
        else:
            # 2,048 trials at 1/32: five standard errors are 1.9 %.
            assert abs(accuracy - 1 / 32) < 0.02

    def test_pair_fusion_before_the_loss_raises_and_explains_the_leak(self, pairs):
        with pytest.raises(ValueError, match="see its own text"):
            small_model()(image_embeds=pairs[0], text_embeds=pairs[1], fuse_pairs=True, return_loss=True)

    def test_pair_fusion_makes_an_image_depend_on_its_text_with_sequences_but_not_with_one_token(self, pairs):
        model = small_model().eval()
        image, text = pairs

        def change(images):
            one = model(image_embeds=images, text_embeds=text[:, None], fuse_pairs=True).image_embeds
            other = model(image_embeds=images, text_embeds=text.flip(0)[:, None], fuse_pairs=True).image_embeds
            return (one - other).abs().max().item()

        assert change(image[:, None]) == 0.0
        assert change(torch.stack([image, -image, image.flip(1)], dim=1)) > 1e-3


class TestInputs:
    def test_either_modality_alone_equals_both_together(self, pairs):
        model = small_model().eval()
        both = model(image_embeds=pairs[0], text_embeds=pairs[1])
        image, text = model(image_embeds=pairs[0]), model(text_embeds=pairs[1])
        torch.testing.assert_close(image.image_embeds, both.image_embeds)
        torch.testing.assert_close(text.text_embeds, both.text_embeds)
        assert image.text_embeds is None
        assert image.logits_per_image is None
        features = model.get_image_features(image_embeds=pairs[0])
        assert torch.equal(features.pooler_output, image.image_embeds)
        assert torch.equal(model.get_text_features(text_embeds=pairs[1]).pooler_output, text.text_embeds)

    def test_texts_and_images_may_differ_in_number(self, pairs):
        output = small_model().eval()(image_embeds=pairs[0][:3], text_embeds=pairs[1])
        assert output.logits_per_image.shape == (3, 16)
        assert torch.equal(output.logits_per_text, output.logits_per_image.T)
        cosine = output.image_embeds @ output.text_embeds.T
        torch.testing.assert_close(output.logits_per_image, cosine * math.exp(2.6592))

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_padding_behind_a_mask_changes_nothing(self, pairs, attention):
        model = small_model().eval()
        model.set_attn_implementation(attention)
        sequence = torch.randn(16, 5, 28, generator=torch.Generator().manual_seed(1))
        padded = torch.cat([sequence, 100 * torch.ones(16, 3, 28)], dim=1)
        mask = torch.tensor([1] * 5 + [0] * 3).expand(16, 8)
        expected = model(text_embeds=sequence)
        actual = model(text_embeds=padded, text_attention_mask=mask)
        torch.testing.assert_close(actual.text_embeds, expected.text_embeds)
        torch.testing.assert_close(actual.text_last_hidden_state[:, :5], expected.text_last_hidden_state)
        assert not torch.allclose(model(text_embeds=padded).text_embeds, expected.text_embeds)
        # A masked text beside an unmasked image.
        mixed = model(image_embeds=pairs[0], text_embeds=padded, text_attention_mask=mask)
        torch.testing.assert_close(mixed.text_embeds, expected.text_embeds)

    def test_sdpa_and_eager_agree_on_sequences(self, pairs):
        model = small_model().eval()
        sequence = torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(1))
        model.set_attn_implementation("sdpa")
        sdpa = model(image_embeds=sequence).image_last_hidden_state
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(image_embeds=sequence).image_last_hidden_state, sdpa)

    def test_attentions_are_distributions_over_each_modalitys_own_tokens(self):
        model = small_model().eval()
        image, text = torch.randn(3, 6, 20), torch.randn(3, 4, 28)
        attentions = model(image_embeds=image, text_embeds=text, output_attentions=True).attentions
        assert len(attentions) == 2
        assert attentions[0][0].shape == (3, 4, 6, 6)
        assert attentions[0][1].shape == (3, 4, 4, 4)
        torch.testing.assert_close(attentions[1][0].sum(-1), torch.ones(3, 4, 6))
        assert model(image_embeds=image, text_embeds=text).attentions is None
        image_only = model(image_embeds=image, output_attentions=True).attentions
        assert image_only[0][1] is None

    @pytest.mark.parametrize("tokens", [1, 3])
    def test_gradient_checkpointing_gives_the_same_gradients(self, tokens):
        image, text = torch.randn(5, tokens, 20), torch.randn(5, tokens, 28)
        gradients = []
        for checkpointing in (False, True):
            model = small_model().train()
            if checkpointing:
                model.gradient_checkpointing_enable()
                assert model.is_gradient_checkpointing
            torch.manual_seed(7)
            model(image_embeds=image, text_embeds=text, return_loss=True).loss.backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(checkpointed, plain)

    def test_half_precision_cache_rows_are_widened(self, pairs):
        model = small_model().eval()
        output = model(image_embeds=pairs[0].half())
        assert output.image_embeds.dtype == torch.float32
        torch.testing.assert_close(output.image_embeds, model(image_embeds=pairs[0]).image_embeds, atol=1e-3, rtol=0)

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-6), (torch.bfloat16, 1e-4)])
    def test_half_precision_normalises_and_scores_in_float32(self, pairs, dtype, bound):
        model = small_model().eval()
        expected = model(image_embeds=pairs[0], text_embeds=pairs[1])
        half = copy.deepcopy(model).to(dtype)(image_embeds=pairs[0], text_embeds=pairs[1])
        for name in ("image_embeds", "text_embeds", "image_last_hidden_state", "logits_per_image"):
            assert half[name].dtype == torch.float32
        for name in ("image_embeds", "text_embeds"):
            torch.testing.assert_close(half[name].norm(dim=-1), torch.ones(16), atol=1e-6, rtol=0)
            assert 1 - torch.cosine_similarity(half[name].double(), expected[name].double()).min() < bound
        scores = half.text_embeds.double() @ half.image_embeds.double().T
        cosines = half.logits_per_text.double() / half.logits_per_text.double().norm()
        torch.testing.assert_close(cosines, scores / scores.norm(), atol=1e-6, rtol=0)

    def test_one_modality_has_a_pooled_output_and_two_have_none(self, pairs):
        model = small_model().eval()
        image, text = model(image_embeds=pairs[0]), model(text_embeds=pairs[1])
        assert image.pooler_output is image.image_embeds
        assert text.pooler_output is text.text_embeds
        assert "pooler_output" not in model(image_embeds=pairs[0], text_embeds=pairs[1])

    def test_the_scale_is_bounded_only_where_asked(self, pairs):
        model = small_model(max_logit_scale=100)
        model.logit_scale.data.fill_(10.0)
        assert model.get_logit_scale().exp().item() == pytest.approx(100)
        free = small_model()
        free.logit_scale.data.fill_(10.0)
        assert free.get_logit_scale().item() == 10.0

    def test_positional_output_starts_with_the_embeddings(self, pairs):
        output = small_model()(image_embeds=pairs[0])
        assert torch.equal(output[0], output.image_embeds)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "Give pixel_values or image_embeds"),
            ({"image_embeds": torch.zeros(2, 21)}, r"image_embeds must be of shape \(batch, 20\)"),
            ({"pixel_values": torch.zeros(2, 3, 8, 8)}, "needs the vision tower, which is not attached"),
            ({"input_ids": torch.zeros(2, 8, dtype=torch.long)}, "needs the text tower, which is not attached"),
            ({"image_embeds": torch.zeros(2, 20), "return_loss": True}, "needs images and texts"),
            (
                {"image_embeds": torch.zeros(2, 20), "text_embeds": torch.zeros(3, 28), "return_loss": True},
                "one text per image",
            ),
            (
                {"image_embeds": torch.zeros(2, 4, 20), "image_attention_mask": torch.ones(2, 3)},
                "mask must be of shape",
            ),
            (
                {"image_embeds": torch.zeros(2, 5, 20), "text_embeds": torch.zeros(2, 3, 28), "fuse_pairs": True},
                "equal lengths or one token",
            ),
        ],
    )
    def test_wrong_inputs_raise_and_say_what_was_expected(self, inputs, message):
        with pytest.raises(ValueError, match=message):
            small_model()(**inputs)


class TestUnknownArguments:
    @pytest.mark.parametrize(
        ("method", "given", "message"),
        [
            ("forward", {"imge_embeds": torch.zeros(1)}, r"AdaptorModel.forward\(\).*'imge_embeds'.*'image_embeds'"),
            ("forward", {"pixel_value": torch.zeros(1)}, "Did you mean 'pixel_values'"),
            ("forward", {"return_lost": True}, "Did you mean 'return_loss'"),
            ("forward", {"xyz": 0}, r"'xyz'. It takes input_ids, pixel_values"),
            ("get_image_features", {"image_embed": torch.zeros(1)}, r"get_image_features\(\).*'image_embeds'"),
            ("get_text_features", {"attention_masks": torch.zeros(1)}, r"get_text_features\(\).*'attention_mask'"),
        ],
    )
    def test_are_refused_with_the_closest_name(self, pairs, method, given, message):
        model = small_model()
        known = {"text_embeds": pairs[1]} if method == "get_text_features" else {"image_embeds": pairs[0]}
        with pytest.raises(TypeError, match=message):
            (model if method == "forward" else getattr(model, method))(**known, **given)

    def test_heads_and_towers_refuse_them_too(self, text_tower):
        head = AdaptorForImageClassification.from_adaptor(small_model(), num_labels=2)
        with pytest.raises(TypeError, match="Did you mean 'labels'"):
            head(image_embeds=torch.zeros(2, 20), label=torch.zeros(2))
        segmenter = AdaptorForSemanticSegmentation.from_adaptor(small_model(), num_labels=2)
        with pytest.raises(TypeError, match="Did you mean 'image_embeds'"):
            segmenter(image_embed=torch.zeros(2, 5, 20))
        with pytest.raises(TypeError, match="Did you mean 'attention_mask'"):
            text_tower(torch.ones(1, 4, dtype=torch.long), attn_mask=None, attention_maks=torch.ones(1, 4))

    def test_what_transformers_and_peft_hand_to_every_model_goes_on(self, pairs):
        from peft import LoraConfig, get_peft_model

        model = small_model().eval()
        expected = model(image_embeds=pairs[0], text_embeds=pairs[1])
        passed = {"return_dict": True, "output_hidden_states": False, "labels": torch.ones(16), "num_items_in_batch": 3}
        assert torch.equal(
            model(image_embeds=pairs[0], text_embeds=pairs[1], inputs_embeds=None, **passed).logits_per_image,
            expected.logits_per_image,
        )
        as_tuple = model(image_embeds=pairs[0], text_embeds=pairs[1], return_dict=False)
        assert torch.equal(as_tuple[0], expected.logits_per_image)
        config = LoraConfig(r=2, target_modules=r".*fc1", task_type="FEATURE_EXTRACTION")
        wrapped = get_peft_model(model, config)(image_embeds=pairs[0], text_embeds=pairs[1])
        torch.testing.assert_close(wrapped.logits_per_image, expected.logits_per_image)


class TestConfig:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"hidden_size": 512}, "multiple of num_attention_heads"),
            ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
            ({"image_to_text_weight": 1.5}, "image_to_text_weight"),
            ({"feature_source": "cls"}, "feature_source"),
            ({"max_logit_scale": 0}, "max_logit_scale"),
            ({"num_hidden_layers": -1}, "num_hidden_layers"),
            ({"vision_hidden_size": "768"}, "vision_hidden_size"),
        ],
    )
    def test_impossible_values_raise(self, kwargs, message):
        with pytest.raises(Exception, match=message):
            AdaptorConfig(**kwargs)

    def test_a_misspelt_field_raises_and_suggests_the_right_one(self):
        with pytest.raises(TypeError, match="Did you mean 'num_hidden_layers'"):
            AdaptorConfig(num_hiden_layers=3)
        with pytest.raises(TypeError, match="Did you mean 'hidden_size'"):
            AdaptorConfig(projection_dim=512)

    def test_survives_saving(self, tmp_path):
        config = AdaptorConfig(vision_hidden_size=384, max_logit_scale=100.0, vision_tower={"name_or_path": "x"})
        config.save_pretrained(tmp_path)
        assert AdaptorConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_copy_is_independent():
    model = small_model()
    clone = copy.deepcopy(model)
    clone.logit_scale.data.add_(1)
    assert model.logit_scale.item() != clone.logit_scale.item()
