"""The module computes what the reference code computes, to 1e-9 in float64."""

import pytest
import torch
from reference import assert_relative, golden, reference_model, reference_parameters

from adaptor_hf.conversion import LAYER_NAMES, TOP_NAMES
from adaptor_hf.objectives import contrastive_loss


def reference_gradients(model) -> dict[str, torch.Tensor]:
    """Our gradients under the reference's names."""
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = {name: ours[mapped] for name, mapped in TOP_NAMES.items()}
    for index in range(len(model.shared_encoder.layers)):
        for name, mapped in LAYER_NAMES.items():
            theirs[f"adaptor_module.encoder.{index}.{name}"] = ours[f"shared_encoder.layers.{index}.{mapped}"]
        for kind in ("weight", "bias"):
            parts = [ours[f"shared_encoder.layers.{index}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            theirs[f"adaptor_module.encoder.{index}.attn.in_proj_{kind}"] = torch.cat(parts)
    return theirs


def test_full_forward_loss_and_every_gradient_equal_the_reference():
    values, model = golden("adaptor_full"), reference_model(image_to_text_weight=0.25)
    image = values["in.image_embeds_raw"].requires_grad_()
    text = values["in.text_embeds_raw"].requires_grad_()
    output = model(image_embeds=image, text_embeds=text, return_loss=True)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss"):
        assert_relative(output[name], values[f"out.{name}"])

    output.loss.backward()
    assert_relative(image.grad, values["grad.image_embeds_raw"])
    assert_relative(text.grad, values["grad.text_embeds_raw"])
    gradients = reference_gradients(model)
    assert gradients.keys() == reference_parameters().keys()
    for name, gradient in gradients.items():
        key = f"grad.param.{name}"
        if key in values:
            assert_relative(gradient, values[key])
        else:
            generator = torch.Generator().manual_seed(0)
            right = torch.randn(gradient.shape[1], 8, generator=generator, dtype=torch.float64)
            left = torch.randn(8, gradient.shape[0], generator=generator, dtype=torch.float64)
            assert_relative(gradient @ right, values[f"{key}@right"])
            assert_relative(left @ gradient, values[f"{key}@left"])


def test_queries_and_keys_get_exactly_zero_gradients_as_in_the_reference():
    values, model = golden("adaptor_full"), reference_model()
    model(
        image_embeds=values["in.image_embeds_raw"], text_embeds=values["in.text_embeds_raw"], return_loss=True
    ).loss.backward()
    zero = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert zero == [
        f"shared_encoder.layers.{i}.self_attn.{p}_proj.{kind}"
        for i in range(2)
        for p in "qk"
        for kind in ("weight", "bias")
    ]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_dimensional_input_is_one_token_a_sample_and_not_the_references_batch_mixing():
    values, model = golden("adaptor_image_only_2d"), reference_model()
    embeds = model(image_embeds=values["in.image_embeds_raw"]).image_embeds
    assert_relative(embeds, values["out.image_embeds_per_sample"])
    assert (embeds - values["out.image_embeds_2d_call"]).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_patch_sequences_equal_the_reference_in_value_and_gradient(attention):
    values, model = golden("adaptor_image_only_patches"), reference_model()
    model.set_attn_implementation(attention)
    image = values["in.image_embeds_raw"].requires_grad_()
    tokens = model(image_embeds=image).image_last_hidden_state
    assert_relative(tokens, values["out.image_embeds_full"])
    loss = (tokens * values["in.probe_w"]).sum()
    assert_relative(loss, values["out.loss"])
    loss.backward()
    assert_relative(image.grad, values["grad.image_embeds_raw"])


@pytest.mark.parametrize("case", ["adaptor_seq_N1", "adaptor_seq_NN"])
def test_pair_fusion_equals_the_reference_on_sequences(case):
    values, model = golden(case), reference_model()
    image = values["in.image_embeds_raw"].requires_grad_()
    text = values["in.text_embeds_raw"].requires_grad_()
    output = model(image_embeds=image, text_embeds=text, fuse_pairs=True)
    assert_relative(output.image_last_hidden_state, values["out.image_last_hidden"])
    assert_relative(output.text_last_hidden_state, values["out.text_last_hidden"])
    assert_relative(output.image_embeds, values["out.image_embeds"])
    assert_relative(output.text_embeds, values["out.text_embeds"])
    loss = contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale, image_to_text_weight=0.25)
    assert_relative(loss, values["out.loss"])
    loss.backward()
    assert_relative(image.grad, values["grad.image_embeds_raw"])
    assert_relative(text.grad, values["grad.text_embeds_raw"])
