"""What stands between towers and shared space: golden values of its sources, formulas, and every kind of use."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.configuration_adaptor import ALIGNERS
from adaptor_hf.precision_adaptor import unit_vectors
from adaptor_hf.projections_adaptor import GatedProjection, MlpProjection
from adaptor_hf.training.script_arguments import ModelArguments
from adaptor_hf.training.summary import parameter_counts

GOLDEN = load_file(Path(__file__).parent / "golden" / "aligners.safetensors")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
SHAPES = {
    **{name: {"aligner": name} for name in ALIGNERS},
    "mlp, no norm": {"aligner": "mlp", "projection_norm": "none"},
    "mlp, tokens": {"aligner": "mlp", "num_hidden_layers": 2, "projection_norm": "layer", "token_projection": True},
    "mlp, pooling": {"aligner": "mlp", "projection_output_norm": True, "token_projection": True,
                     "attention_pooling_heads": 4},
}  # fmt: skip


def small(seed: int = 0, **kwargs) -> AdaptorModel:
    torch.manual_seed(seed)
    shape = {"vision_hidden_size": 20, "text_hidden_size": 28, "hidden_size": 16, "num_attention_heads": 4}
    return AdaptorModel(AdaptorConfig(**(shape | {"intermediate_size": 24} | kwargs)))


def embeds(count: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Sequences with masks."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(count, 5, 20, generator=generator, dtype=torch.float64).to(dtype)
    text = torch.randn(count, 4, 28, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.arange(4) < torch.randint(2, 5, (count, 1), generator=generator)
    return {"image_embeds": image, "text_embeds": text, "text_attention_mask": mask.long()}


def golden_head(case: str, side: str) -> tuple[MlpProjection, dict[str, torch.Tensor]]:
    """The reference's head in our module; both have linear layers where its tokens have 1 x 1 convolutions."""
    values = {name.removeprefix(f"{case}/"): value for name, value in GOLDEN.items() if name.startswith(f"{case}/")}
    is_mgca = case == "mgca_heads"
    names = {"head.0": "layers.0.linear", "head.1": "layers.0.norm", "head.3": "output", "head.4": "output_norm"}
    if not is_mgca:
        names = {"projection_before": "layers.0.linear", "norm": "layers.0.norm", "projection_after": "output"}
    state = {}
    for theirs, ours in names.items():
        prefix = f"param.{side}.{theirs}."
        for name, value in values.items():
            if name.startswith(prefix):
                state[f"{ours}.{name.removeprefix(prefix)}"] = value.squeeze(-1) if value.ndim == 3 else value
    width = len(state["layers.0.linear.bias"])
    config = AdaptorConfig(aligner="mlp", hidden_size=5, intermediate_size=width, projection_output_norm=is_mgca)
    head = MlpProjection(6, config).double()
    head.load_state_dict(state)
    return head, values


@pytest.mark.parametrize("side", ["global", "local"])
def test_mgcas_heads_have_their_golden_values_in_training_and_in_evaluation(side):
    head, values = golden_head("mgca_heads", side)
    rows = values[f"in.{side}"].clone().requires_grad_()
    output = head(rows)
    torch.testing.assert_close(output, values[f"out.{side}_train"], **CLOSE)
    (output * values[f"in.probe_{side}"]).sum().backward()
    torch.testing.assert_close(rows.grad, values[f"grad.{side}"], **CLOSE)
    torch.testing.assert_close(head.eval()(rows), values[f"out.{side}_eval_after_one_update"], **CLOSE)


@pytest.mark.parametrize("side", ["global", "local"])
def test_lovts_heads_have_their_golden_values(side):
    head, values = golden_head("lovt_heads", side)
    rows = values[f"in.{side}"].clone().requires_grad_()
    output = head(rows)
    torch.testing.assert_close(output, values[f"out.{side}"], **CLOSE)
    (output * values[f"in.probe_{side}"]).sum().backward()
    torch.testing.assert_close(rows.grad, values[f"grad.{side}"], **CLOSE)


@pytest.mark.parametrize("case", ["mgca_heads", "lovt_heads"])
def test_the_loss_of_both_heads_is_the_golden_one(case):
    loss = 0
    for side in ("global", "local"):
        head, values = golden_head(case, side)
        loss = loss + (head(values[f"in.{side}"]) * values[f"in.probe_{side}"]).sum()
    torch.testing.assert_close(loss, values["out.loss"], **CLOSE)


def test_a_gated_unit_is_sails_formula():
    torch.manual_seed(0)
    unit = GatedProjection(10, 6).double()
    nn.init.normal_(unit.norm.weight)
    for layer in (unit.gate_proj, unit.up_proj, unit.down_proj):
        nn.init.normal_(layer.weight, std=3)
    rows = torch.randn(4, 3, 10, dtype=torch.float64) * 50
    normed = nn.functional.layer_norm(rows, (10,), unit.norm.weight, unit.norm.bias, 1e-5)
    gate = (normed @ unit.gate_proj.weight.T + unit.gate_proj.bias).clamp(0, 6)
    up = normed @ unit.up_proj.weight.T + unit.up_proj.bias
    assert unit.up_proj.out_features == 80
    assert ((gate == 6).any(), (gate == 0).any()) == (True, True)
    expected = (gate * up) @ unit.down_proj.weight.T + unit.down_proj.bias
    torch.testing.assert_close(unit(rows), expected, rtol=1e-12, atol=1e-12)


def test_a_residual_starts_as_its_linear_projections_and_leaves_them():
    residual, linear = small(aligner="residual").eval(), small(aligner="linear").eval()
    linear.load_state_dict(
        {name: value for name, value in residual.state_dict().items() if name in linear.state_dict()}
    )
    inputs = embeds()
    assert torch.equal(residual(**inputs).image_last_hidden_state, linear(**inputs).image_last_hidden_state)
    residual(**inputs, return_loss=True).loss.backward()
    assert residual.residual_scale.weight.grad.abs().min() > 0
    assert residual.shared_encoder.layers[0].mlp.fc1.weight.grad.abs().max() == 0
    with torch.no_grad():
        residual.residual_scale.weight.normal_()
    # x + scale * layers(x) of x = unit(W e), then unit.
    adaptor = small(aligner="adaptor").eval()
    adaptor.load_state_dict({n: v for n, v in residual.state_dict().items() if n in adaptor.state_dict()})
    image = inputs["image_embeds"]
    start = unit_vectors(image @ residual.visual_projection.weight.T)
    branch, _, _ = adaptor.shared_encoder(start, None)
    expected = unit_vectors(start + residual.residual_scale.weight * branch)
    torch.testing.assert_close(residual(image_embeds=image).image_last_hidden_state, expected, rtol=1e-5, atol=1e-6)
    residual.zero_grad()
    residual(**inputs, return_loss=True).loss.backward()
    assert residual.shared_encoder.layers[0].mlp.fc1.weight.grad.abs().max() > 0


def test_adaptor_without_layers_is_linear_and_has_its_weights():
    old, new = small(num_hidden_layers=0), small(aligner="linear")
    assert (old.config.aligner, old.config.num_hidden_layers) == ("linear", 0)
    assert old.config.to_dict() == new.config.to_dict()
    for name, value in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], value), name


@pytest.mark.parametrize("layers", [0, 2])
def test_a_config_of_before_there_were_aligners_loads_with_the_same_outputs(layers, tmp_path):
    model = small(num_hidden_layers=layers).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    old = json.loads(file.read_text(encoding="utf-8"))
    names = ("aligner", "projection_norm", "projection_output_norm", "token_projection", "attention_pooling_heads")
    file.write_text(json.dumps({name: value for name, value in old.items() if name not in names}), encoding="utf-8")
    loaded = AdaptorModel.from_pretrained(tmp_path)
    assert (loaded.config.aligner, loaded.config.num_hidden_layers) == ("adaptor" if layers else "linear", layers)
    for name, value in model(**embeds()).items():
        assert torch.equal(loaded(**embeds())[name], value), name


@pytest.mark.parametrize("shape", SHAPES)
def test_saving_and_loading_changes_no_bit(shape, tmp_path):
    model = small(**SHAPES[shape])
    model.train()(**embeds())  # running statistics move
    model.eval().save_pretrained(tmp_path)
    loaded = AdaptorModel.from_pretrained(tmp_path)
    assert loaded.config.aligner == model.config.aligner
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model(**embeds()).items():
        assert torch.equal(loaded(**embeds())[name], value), name


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_that_a_checkpoint_lacks_start_as_new_ones_do(shape, tmp_path):
    """Loading builds on the meta device: what is not initialised would be whatever lay in memory."""
    model = small(**SHAPES[shape])
    model.save_pretrained(tmp_path)
    save_file({"logit_scale": model.logit_scale.detach()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    loaded = AdaptorModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name].float()
        wanted = value.float()
        assert found.isfinite().all(), name
        if wanted.numel() < 2 or wanted.std() == 0:
            assert torch.equal(found, wanted), name
        else:
            # Uniform within the same bound.
            assert 0.5 < found.abs().max() / wanted.abs().max() < 2, name
            assert found.std() / wanted.std() == pytest.approx(1, abs=0.5), name


def test_the_page_has_the_parameters_of_each():
    page = (Path(__file__).parents[1] / "docs" / "aligners.md").read_text(encoding="utf-8")
    for name in ALIGNERS:
        with torch.device("meta"):
            count = AdaptorModel(AdaptorConfig(aligner=name)).num_parameters()
        assert re.search(rf"^\| `{name}`.* {count:,} \|", page, re.M), name


def test_a_gated_unit_starts_as_xaviers():
    model = small(aligner="gated")
    layer = model.visual_projection.up_proj
    bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert not layer.bias.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape):
    model = small(**SHAPES[shape]).double()
    inputs = embeds(dtype=torch.float64)
    mask = inputs["text_attention_mask"].bool()
    other = inputs | {"text_embeds": torch.where(mask[..., None], inputs["text_embeds"], 9.0)}
    for mode in (True, False):
        model.train(mode)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        found, changed = model(**inputs), model(**other)
        torch.testing.assert_close(changed.text_embeds, found.text_embeds, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            changed.text_last_hidden_state[mask], found.text_last_hidden_state[mask], rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("shape", [name for name in SHAPES if "attention_pooling_heads" not in SHAPES[name]])
def test_every_parameter_gets_a_gradient_of_pooled_embeddings_as_ddp_asks(shape):
    model = small(**SHAPES[shape])
    inputs = {name: value[:, 0] for name, value in embeds().items() if name.endswith("_embeds")}
    model(**inputs, return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    without = {name for name, value in model.named_parameters() if not value.grad.any()}
    counts = parameter_counts(model)
    none = sum(value.numel() for name, value in model.named_parameters() if name in without)
    if SHAPES[shape]["aligner"] == "residual":
        # The branch waits for its scale; the next step reaches it.
        with torch.no_grad():
            model.residual_scale.weight.fill_(0.1)
        model.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        none = sum(value.numel() for value in model.parameters() if not value.grad.any())
    biases = sum(  # of no effect before a batch norm
        value.numel() for name, value in model.named_parameters()
        if name in without and name.endswith("linear.bias") and "token" not in name
    )  # fmt: skip
    assert counts["trainable"] == sum(value.numel() for value in model.parameters())
    assert counts["receiving_gradient"] == counts["trainable"] - none + biases


def test_a_token_head_is_that_of_the_tokens_and_no_other():
    model = small(**SHAPES["mlp, tokens"]).eval()
    image = embeds()["image_embeds"]
    output = model(image_embeds=image)
    expected = unit_vectors(model.visual_token_projection(image[:, 1:]))
    torch.testing.assert_close(output.image_last_hidden_state[:, 1:], expected)
    torch.testing.assert_close(output.image_embeds, unit_vectors(model.visual_projection(image[:, 0])))
    assert torch.equal(model(image_embeds=image[:, 0]).image_embeds, output.image_embeds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_stays_near_and_trains(shape, dtype):
    model = small(**SHAPES[shape]).eval()
    expected = model(**embeds()).text_embeds
    half = small(**SHAPES[shape]).to(dtype).eval()
    output = half(**embeds())
    assert output.text_embeds.dtype == torch.float32
    assert (output.text_embeds - expected).abs().max() < 0.05
    half.train()(**embeds(), return_loss=True).loss.backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in half.parameters())
    with torch.autocast("cpu", dtype=dtype):
        mixed = small(**SHAPES[shape])(**embeds(), return_loss=True)
    mixed.loss.backward()
    assert mixed.loss.isfinite()


@pytest.mark.parametrize("shape", SHAPES)
def test_attentions_are_those_of_the_shared_layers_and_pairs_fuse_only_there(shape):
    model = small(**SHAPES[shape]).eval()
    inputs = embeds()
    output = model(**inputs, output_attentions=True)
    assert len(output.attentions) == model.config.num_shared_layers == (2 if shape in ("adaptor", "residual") else 0)
    inputs["image_embeds"] = inputs["image_embeds"][:, :4]
    if model.config.num_shared_layers:
        assert model(**inputs, fuse_pairs=True).image_embeds.isfinite().all()
    else:
        with pytest.raises(ValueError, match=f"the aligner '{model.config.aligner}' has none. Use"):
            model(**inputs, fuse_pairs=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"aligner": "gate"}, "one of adaptor, linear, residual, gated, mlp, got 'gate'. Did you mean 'gated'[?]"),
        ({"aligner": "linear", "num_hidden_layers": 2}, "'linear' has no layers to count: leave num_hidden_layers out"),
        ({"aligner": "gated", "num_hidden_layers": 1}, "'gated' has no layers"),
        ({"aligner": "mlp", "num_hidden_layers": 0}, "'mlp' needs num_hidden_layers of at least 1"),
        ({"aligner": "residual", "num_hidden_layers": 0}, 'Two projections without any are aligner "linear"'),
        ({"aligner": "mlp", "projection_norm": "group"}, "one of batch, layer, none, got 'group'"),
        ({"token_projection": True}, 'token_projection=True goes with aligner "mlp" only'),
        ({"aligner": "gated", "projection_output_norm": True}, "projection_output_norm=True goes with"),
        ({"attention_pooling_heads": 0}, "attention_pooling_heads"),
        ({"aligner": "residual", "hidden_size": 50}, "multiple of num_attention_heads"),
        ({"aligner": "gated", "vision_hidden_size": 1 << 17}, "parameters, over"),
        ({"aligner": "mlp", "intermediate_size": 1 << 20}, "parameters, over"),
        ({"aligner": "mlp", "num_hidden_layers": 10**6}, "at most 1000"),
        ({"aligner": "mlp", "intermediate_size": 0}, "intermediate_size must be at least 1"),
        ({"attention_pooling_heads": 1, "vision_hidden_size": 1 << 16}, "parameters, over"),
    ],
)  # fmt: skip
def test_wrong_combinations_and_sizes_are_refused(kwargs, message):
    with pytest.raises(Exception, match=message):
        AdaptorConfig(**kwargs)


def test_without_shared_layers_a_width_needs_no_heads():
    assert AdaptorConfig(aligner="mlp", hidden_size=128).num_attention_heads == 12
    assert AdaptorConfig(aligner="linear", hidden_size=50).hidden_size == 50


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ("adaptor", 2, 2048, 768)),
        ("linear", ("linear", 0, 2048, 768)),
        ('{"num_hidden_layers": 0}', ("linear", 0, 2048, 768)),
        ("residual", ("residual", 2, 2048, 768)),
        ("gated", ("gated", 0, None, 768)),
        ({"name": "mlp", "hidden_size": 128}, ("mlp", 1, 2048, 128)),
        ({"name": "mlp", "num_hidden_layers": 3, "intermediate_size": 4096}, ("mlp", 3, 4096, 768)),
    ],
)
def test_an_aligner_is_chosen_by_name_with_fields_of_its_own(given, expected, caplog):
    caplog.set_level("INFO")
    arguments = ModelArguments() if given is None else ModelArguments(aligner=given)
    config = arguments.config()
    found = config.aligner, config.num_hidden_layers, config.intermediate_size, config.hidden_size
    assert found == expected
    zero = given == '{"num_hidden_layers": 0}'
    assert ("An Adaptor of 0 layers is two linear projections" in caplog.text) == zero
    assert arguments.to_dict()["aligner"] == config.aligner


@pytest.mark.parametrize("name", ALIGNERS)
def test_the_defaults_of_an_option_are_those_of_the_config(name):
    assert ModelArguments(aligner=name).config().to_dict() == AdaptorConfig(aligner=name).to_dict()


def test_the_linear_control_has_the_width_of_what_it_controls():
    for shape in SHAPES.values():
        config = small(**shape).config
        linear = config.with_aligner("linear")
        assert (linear.aligner, linear.hidden_size, linear.num_hidden_layers) == ("linear", 16, 0)
        assert linear.attention_pooling_heads == config.attention_pooling_heads
        assert linear.with_aligner(config.aligner).aligner == config.aligner
