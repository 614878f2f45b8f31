"""Models with quantised weights run, and give what the float32 model gives, to a stated bound."""

import copy

import pytest
import torch
from test_checkpoint import SMALL
from torch import nn

from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.precision_adaptor import input_dtype
from adaptor_hf.towers_adaptor import load_vision_tower

# Eight bits a weight cost less than 1e-3 of the cosine; activations in eight bits too, and through towers, some more.
BOUND = 0.995


class Int8Linear(nn.Module):
    """Integers in place of a floating weight, as bitsandbytes keeps them, in plain torch."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, hidden_states):
        weight = self.weight.to(hidden_states.dtype) * self.scale.to(hidden_states.dtype)
        return nn.functional.linear(hidden_states, weight, self.bias)


class PackedLinear(nn.Module):
    """No parameter at all, and a `weight` that is a method, as torch's dynamic quantisation has it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.inside = linear.in_features, linear.out_features, [Int8Linear(linear)]

    def weight(self):
        return self.inside[0].weight

    def forward(self, hidden_states):
        assert hidden_states.dtype == torch.float32
        return self.inside[0](hidden_states).detach()


def replace_linear(model, make):
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))
    return model


def int8(model):
    return replace_linear(model, Int8Linear)


def packed(model):
    return replace_linear(model, PackedLinear)


def torch_dynamic(model):
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        pytest.skip("this torch has no dynamic quantisation")
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def bitsandbytes(model):
    layers = pytest.importorskip("bitsandbytes").nn

    def make(linear):
        quantised = layers.Linear8bitLt(
            linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False
        )
        quantised.load_state_dict(linear.state_dict())
        return quantised.requires_grad_(False).to("cpu")

    return replace_linear(model, make)


KINDS = [int8, packed, torch_dynamic, torchao, bitsandbytes]


@pytest.fixture(scope="module")
def towers(vision_tower, text_tower):
    return vision_tower, text_tower


@pytest.fixture(scope="module")
def model(towers):
    torch.manual_seed(0)
    return AdaptorModel.from_towers(*towers, **SMALL).eval()


@pytest.fixture(scope="module")
def inputs(towers):
    generator = torch.Generator().manual_seed(2)
    empty = towers[0].empty_image()
    tokens = torch.randint(5, 30, (4, 12), generator=generator)
    return {
        "pixel_values": torch.randn(4, *empty.shape[1:], generator=generator),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


@pytest.fixture(scope="module")
def cached():
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(16, 32, generator=generator) for name in ("image_embeds", "text_embeds")}


def closeness(actual, expected) -> float:
    names = ("image_embeds", "text_embeds")
    return min(torch.cosine_similarity(actual[name], expected[name]).min().item() for name in names)


@pytest.mark.parametrize("quantise", KINDS)
def test_cached_and_raw_inputs(quantise, model, inputs, cached):
    quantised = quantise(model)
    sequences = {name: value[:, None].repeat(1, 3, 1) for name, value in cached.items()}
    for given in (cached, sequences, inputs):
        with torch.no_grad():
            output, expected = quantised(**given), model(**given)
        assert closeness(output, expected) > BOUND
        assert output.logits_per_image.dtype == torch.float32
        assert not torch.equal(output.image_embeds, expected.image_embeds)
    # Gradients on, as without no_grad around an inference.
    assert closeness(quantised(**cached), model(**cached)) > BOUND


@pytest.mark.parametrize("quantise", KINDS)
def test_heads(quantise, model, inputs, cached):
    head = AdaptorForImageClassification.from_adaptor(copy.deepcopy(model), num_labels=3).eval()
    segmenter = AdaptorForSemanticSegmentation.from_adaptor(copy.deepcopy(model), num_labels=2).eval()
    for whole, given in (
        (head, {"image_embeds": cached["image_embeds"]}),
        (head, {"pixel_values": inputs["pixel_values"]}),
        (segmenter, {"pixel_values": inputs["pixel_values"]}),
    ):
        with torch.no_grad():
            expected, logits = whole(**given).logits, quantise(whole)(**given).logits
        assert (logits - expected).norm() < 0.1 * expected.norm()
        assert not torch.equal(logits, expected)


@pytest.mark.parametrize("quantise", KINDS)
def test_a_quantised_tower_keeps_its_dtype_for_pixels(quantise, model, inputs):
    tower = quantise(model.vision_model)
    with torch.no_grad():
        assert tower(inputs["pixel_values"].half()).pooler_output.dtype == torch.float32
    assert tower.empty_image().dtype == torch.float32


@torch.no_grad()
def test_a_tower_whose_first_weight_is_integers():
    tower = load_vision_tower("lite0")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = tower(pixels).pooler_output
    stem = tower.model.timm_model.conv_stem
    scale, dequantised = stem.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127, copy.deepcopy(stem)
    stem.weight = nn.Parameter((stem.weight / scale).round().to(torch.int8), requires_grad=False)
    dequantised.weight.copy_(stem.weight * scale)
    stem.forward = dequantised.forward
    assert torch.cosine_similarity(tower(pixels).pooler_output, expected) > BOUND
    assert tower.empty_image().dtype == torch.float32


@pytest.mark.parametrize("quantise", KINDS)
def test_a_save_raises_no_false_alarm(quantise, model, tmp_path):
    if quantise not in (int8, packed):
        quantised = quantise(model)
        quantised._refuse_to_lose_changed_towers(quantised.state_dict())
    quantised = copy.deepcopy(model)
    if quantise is not packed:
        quantised.vision_model, quantised.text_model = quantise(model.vision_model), quantise(model.text_model)
    quantised.save_pretrained(tmp_path)
    with torch.no_grad():
        assert AdaptorModel.from_pretrained(tmp_path, load_towers=False).num_parameters() > 0


@pytest.mark.parametrize("name", ["bitsandbytes", "torchao"])
def test_from_pretrained_with_a_quantisation_config(name, model, inputs, tmp_path):
    pytest.importorskip(name)
    import transformers
    from safetensors import safe_open

    if name == "bitsandbytes":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    model.save_pretrained(tmp_path / "plain")
    quantised = transformers.AutoModel.from_pretrained(tmp_path / "plain", quantization_config=config)
    with torch.no_grad():
        expected = model(**inputs)
        assert closeness(quantised(**inputs), expected) > BOUND
    quantised.save_pretrained(tmp_path / "quantised")
    with safe_open(tmp_path / "quantised" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert not any("vision_model" in key or "text_model" in key for key in names)
    if name == "torchao":
        # It does not read back a name without a dot, which logit_scale is.
        return
    with torch.no_grad():
        assert closeness(transformers.AutoModel.from_pretrained(tmp_path / "quantised")(**inputs), expected) > BOUND


def test_the_input_dtype_is_none_that_only_stores():
    def module(*dtypes):
        tensors = [nn.Parameter(torch.zeros(1).to(dtype), requires_grad=False) for dtype in dtypes]
        return nn.ParameterList(tensors)

    assert input_dtype(module(torch.int8, torch.bfloat16)) == torch.bfloat16
    assert input_dtype(module(torch.float8_e4m3fn, torch.float16), torch.float64) == torch.float16
    assert input_dtype(module(torch.uint8), torch.bfloat16) == torch.bfloat16
    assert input_dtype(nn.Module()) == torch.float32
    buffer = nn.Module()
    buffer.register_buffer("scale", torch.zeros(1, dtype=torch.float64))
    assert input_dtype(buffer) == torch.float64
