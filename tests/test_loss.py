"""Contrastive losses against golden values, a plain loop and finite differences."""

import math

import pytest
import torch
from reference import assert_relative, golden
from torch import nn

from adaptor_hf.objectives import contrastive_loss, sigmoid_contrastive_loss


def loop_loss(image, text, logit_scale, weight, same):
    """The definition, written out: a softmax whose denominator leaves out other positives."""
    image = image / image.norm(dim=1, keepdim=True)
    text = text / text.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(image)):
        others = [j for j in range(len(text)) if j == i or not same[i][j]]
        to_texts = torch.stack([(image[i] * text[j]).sum() * logit_scale.exp() for j in others])
        total = total - weight * to_texts.log_softmax(0)[others.index(i)]
        others = [j for j in range(len(image)) if j == i or not same[j][i]]
        to_images = torch.stack([(text[i] * image[j]).sum() * logit_scale.exp() for j in others])
        total = total - (1 - weight) * to_images.log_softmax(0)[others.index(i)]
    return total / len(image)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    text = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return image, text, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("case", ["adaptor_contrastive_alpha050", "adaptor_contrastive_alpha075"])
def test_equals_the_reference_with_its_two_weights_swapped_back(case):
    values = golden(case)
    inputs = [values[f"in.{name}"].requires_grad_() for name in ("image_embeds", "text_embeds", "logit_scale")]
    loss = contrastive_loss(*inputs, image_to_text_weight=1 - values["hp.image_weight"].item(), normalize=False)
    assert_relative(loss, values["out.loss"])
    loss.backward()
    for name, value in zip(("image_embeds", "text_embeds", "logit_scale"), inputs, strict=True):
        assert_relative(value.grad, values[f"grad.{name}"])


def test_the_weight_belongs_to_the_softmax_over_texts_as_in_the_papers_equation_4():
    values = golden("adaptor_contrastive_alpha075")
    args = [values[f"in.{name}"] for name in ("image_embeds", "text_embeds", "logit_scale")]
    only = contrastive_loss(*args, image_to_text_weight=1.0, normalize=False)
    assert_relative(only, values["out.loss_softmax_over_texts_per_image(I2T)"])


def test_equals_clip_infonce():
    values = golden("clip_infonce")
    image, text = (values[f"in.{name}"].requires_grad_() for name in ("image_embed", "text_embed"))
    log_scale = values["in.logit_scale"].log().requires_grad_()
    loss = contrastive_loss(image, text, log_scale, image_to_text_weight=0.5)
    assert_relative(loss, values["out.loss"])
    loss.backward()
    assert_relative(image.grad, values["grad.image_embed"])
    assert_relative(text.grad, values["grad.text_embed"])
    assert_relative(log_scale.grad / values["in.logit_scale"], values["grad.logit_scale"])


def test_convirt_of_mgca_is_twice_the_symmetric_loss():
    values = golden("convirt_mgca")
    image, text = (values[f"in.{name}"].requires_grad_() for name in ("img", "sent"))
    loss = 2 * contrastive_loss(image, text, math.log(1 / 0.07), image_to_text_weight=0.5)
    assert_relative(loss, values["out.loss"])
    loss.backward()
    assert_relative(image.grad, values["grad.img"])
    assert_relative(text.grad, values["grad.sent"])


@pytest.mark.parametrize("form", ["ids", "mask"])
def test_positives_equal_a_plain_loop_in_value_and_gradient(batch, form):
    ids = torch.tensor([3, 1, 3, 2, 1, 3, 9])
    same = ids[:, None] == ids[None, :]
    expected = loop_loss(*batch, 0.75, same)
    expected_gradients = torch.autograd.grad(expected, batch)
    actual = contrastive_loss(*batch, positives=ids if form == "ids" else same)
    assert_relative(actual, expected)
    for gradient, expectation in zip(torch.autograd.grad(actual, batch), expected_gradients, strict=True):
        assert_relative(gradient, expectation)


def test_an_asymmetric_mask_is_read_as_images_by_texts(batch):
    same = torch.zeros(7, 7, dtype=torch.bool)
    same[0, 1:] = True
    assert_relative(contrastive_loss(*batch, positives=same), loop_loss(*batch, 0.75, same))
    assert not torch.allclose(contrastive_loss(*batch, positives=same), contrastive_loss(*batch, positives=same.T))


def test_all_rows_sharing_a_text_leave_no_negative_and_no_loss(batch):
    assert contrastive_loss(*batch, positives=torch.zeros(7, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("positives", [None, torch.tensor([0, 1, 0, 2, 2, 0, 5])])
@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_contrastive_loss])
def test_gradients_equal_finite_differences(batch, loss, positives):
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, positives=positives), batch)


def test_sigmoid_loss_equals_a_plain_loop(batch):
    image, text, log_scale = batch
    ids = torch.tensor([3, 1, 3, 2, 1, 3, 9])
    image_n, text_n = nn.functional.normalize(image, dim=1), nn.functional.normalize(text, dim=1)
    expected = 0.0
    for i in range(7):
        for j in range(7):
            if i != j and ids[i] == ids[j]:
                continue
            sign = 1 if i == j else -1
            expected = expected + (1 + (-sign * (log_scale.exp() * image_n[i] @ text_n[j] - 2.0)).exp()).log()
    assert_relative(sigmoid_contrastive_loss(*batch, logit_bias=-2.0, positives=ids), expected / 7)


def test_half_precision_inputs_are_widened(batch):
    image, text, scale = (value.detach() for value in batch)
    half = contrastive_loss(image.half(), text.half(), scale)
    assert half.dtype == torch.float32
    assert abs(half - contrastive_loss(image, text, scale)) < 2e-3


@pytest.mark.parametrize(
    ("image_rows", "positives", "message"),
    [
        (3, None, "one text per image"),
        (4, torch.zeros(3, dtype=torch.long), "positives must be"),
        (4, torch.zeros(4, 3, dtype=torch.bool), "positives must be"),
        (4, torch.zeros(4, dtype=torch.bool), "positives must be"),
    ],
)
def test_wrong_shapes_raise(image_rows, positives, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.randn(image_rows, 2), torch.randn(4, 2), 1.0, positives=positives)
