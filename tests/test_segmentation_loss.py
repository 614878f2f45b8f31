"""The segmentation losses against golden values of MGCA's code, and against shapes and values that would mislead."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptor_hf.segmentation_loss_adaptor import focal_loss, mixed_loss, soft_dice

GOLDEN = load_file(Path(__file__).parent / "golden" / "segmentation.safetensors")


def golden(case: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{case}/"): value for name, value in GOLDEN.items() if name.startswith(f"{case}/")}


def test_focal_loss_and_its_gradient_equal_the_reference():
    values = golden("seg_focal_loss")
    logits = values["in.logits"].requires_grad_()
    loss = focal_loss(logits, values["in.mask"])
    torch.testing.assert_close(loss, values["out.loss"], rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, values["grad.logits"], rtol=1e-9, atol=1e-15)


def test_mixed_loss_its_terms_and_its_gradient_equal_the_reference():
    values = golden("seg_mixed_loss")
    logits = values["in.logits"].clone().requires_grad_()
    loss = mixed_loss(logits, values["in.mask"])
    torch.testing.assert_close(loss, values["out.loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(focal_loss(logits, values["in.mask"]), values["out.focal"], rtol=1e-12, atol=0)
    dice = soft_dice(logits, values["in.mask"])
    torch.testing.assert_close(dice, values["out.dice_coefficient"], rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, values["grad.logits"], rtol=1e-9, atol=1e-15)


def test_it_is_not_the_references_default_that_takes_dice_of_raw_logits():
    values = golden("seg_mixed_loss_adaptor_modified")
    assert abs(mixed_loss(values["in.logits"], values["in.mask"]) - values["out.loss"]) > 0.1


def test_dice_is_that_of_the_whole_batch_and_not_a_mean_over_images():
    logits = torch.full((2, 1, 8, 8), -40.0)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0] = 1
    # One image missed, one right by being empty: a mean over images would be about one half.
    assert soft_dice(logits, masks) < 0.02


def test_a_perfect_prediction_costs_nothing_and_an_empty_one_of_an_empty_mask_too():
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, :4] = 1
    assert mixed_loss(80 * masks - 40, masks).abs() < 1e-6
    assert mixed_loss(torch.full_like(masks, -40.0), torch.zeros_like(masks)).abs() < 1e-6


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    logits, masks = torch.randn(1, 1, 512, 512), torch.rand(1, 1, 512, 512) > 0.5
    # 131,072 foreground pixels are beyond the largest float16.
    assert mixed_loss(logits.half(), masks) == pytest.approx(mixed_loss(logits, masks).item(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_may_be_of_any_type(dtype):
    logits, masks = torch.zeros(1, 1, 4, 4), torch.eye(4)[None, None]
    assert mixed_loss(logits, masks.to(dtype)) == mixed_loss(logits, masks)


@pytest.mark.parametrize("value", [255, -1, float("nan")])
def test_values_that_are_no_mask_are_refused(value):
    masks = torch.zeros(1, 1, 4, 4)
    masks[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="Masks must be 0 and 1"):
        mixed_loss(torch.zeros(1, 1, 4, 4), masks)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="give equal shapes"):
        mixed_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
