"""The sigmoid loss: against transformers' SiglipModel, a plain double loop and finite differences; in blocks; a model
whose similarities have a bias."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from reference import assert_relative
from synthetic import synthetic_model
from torch import nn
from transformers import SiglipConfig, SiglipModel, pipeline

from adaptor_hf import AdaptorConfig, AdaptorForImageClassification, AdaptorModel
from adaptor_hf.objectives import (
    AdaptorObjective,
    Encoded,
    Gather,
    Side,
    SigLIPObjective,
    chunked_sigmoid,
    chunked_sigmoid_loss,
    gathered_sigmoid_loss,
    sigmoid_contrastive_loss,
)
from adaptor_hf.pipelines import AdaptorZeroShotImageClassificationPipeline
from adaptor_hf.tasks import zero_shot_scores
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import train_controls
from adaptor_hf.training.pair_evaluation import Retrieval

IDS = torch.tensor([3, 1, 3, 2, 1, 3, 9, 4, 4, 0, 3])


@pytest.fixture
def batch():
    """Eleven images and texts, scale and bias, float64."""
    generator = torch.Generator().manual_seed(5)
    sides = [torch.randn(11, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    sides = [nn.functional.normalize(side, dim=1).requires_grad_() for side in sides]
    return *sides, *(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.3, -2.0))


def double_loop(image, text, log_scale, bias, same):
    """The definition, written out; pairs of `same` but an image's own text are left out."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            if i == j or not same[i][j]:
                sign = 1 if i == j else -1
                total = total + (1 + (-sign * (log_scale.exp() * (image[i] @ text[j]) + bias)).exp()).log()
    return total / len(image)


def assert_same(actual, expected, inputs, tolerance=1e-12):
    assert_relative(actual, expected, tolerance)
    gradients = (torch.autograd.grad(value, inputs) for value in (actual, expected))
    for one, other in zip(*gradients, strict=True):
        assert_relative(one, other, tolerance)


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("form", [sigmoid_contrastive_loss, gathered_sigmoid_loss])
def test_it_equals_a_double_loop(batch, form, ids):
    same = torch.eye(11, dtype=torch.bool) if ids is None else ids[:, None] == ids
    assert_same(form(*batch, normalize=False, positives=ids), double_loop(*batch, same), batch)


class Embeds(nn.Module):
    """A tower that gives what it was given."""

    def __init__(self, embeds):
        super().__init__()
        self.embeds = embeds

    def forward(self, *args, **kwargs):
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=self.embeds)


@pytest.mark.parametrize("form", [sigmoid_contrastive_loss, gathered_sigmoid_loss])
def test_it_equals_transformers_siglip(batch, form):
    sizes = {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = SiglipConfig(text_config=sizes | {"vocab_size": 5}, vision_config=sizes | {"image_size": 16})
    siglip = SiglipModel(config).double()
    image, text, log_scale, bias = batch
    siglip.vision_model, siglip.text_model = Embeds(3 * image), Embeds(0.2 * text)
    siglip.logit_scale.data.fill_(1.3), siglip.logit_bias.data.fill_(-2.0)
    expected = siglip(return_loss=True).loss
    own = torch.autograd.grad(expected, [image, text, siglip.logit_scale, siglip.logit_bias])
    actual = form(3 * image, 0.2 * text, log_scale, bias)
    assert_relative(actual, expected, 1e-12)
    for one, other in zip(torch.autograd.grad(actual, batch), own, strict=True):
        assert_relative(one, other.reshape(one.shape), 1e-12)


@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 100])
@pytest.mark.parametrize("ids", [None, IDS])
def test_blocks_equal_the_whole_matrix(batch, chunk_rows, ids):
    image, text, log_scale, bias = batch
    expected = sigmoid_contrastive_loss(*batch, normalize=False, positives=ids)
    actual = chunked_sigmoid_loss(
        image, text, log_scale.exp(), bias, image_ids=ids, text_ids=ids, chunk_rows=chunk_rows
    )
    assert_same(actual / 11, expected, batch)


def test_some_images_among_all_texts(batch):
    image, text, log_scale, bias = batch
    parts = [
        chunked_sigmoid_loss(
            image[a:b], text, log_scale.exp(), bias, start=a, image_ids=IDS[a:b], text_ids=IDS, chunk_rows=3
        )
        for a, b in ((0, 4), (4, 5), (5, 11))
    ]
    assert_same(sum(parts) / 11, sigmoid_contrastive_loss(*batch, normalize=False, positives=IDS), batch)


@pytest.mark.parametrize("ids", [None, IDS])
def test_gradients_equal_finite_differences(batch, ids):
    def loss(image, text, scale, bias):
        return chunked_sigmoid_loss(image, text, scale, bias, image_ids=ids, text_ids=ids, chunk_rows=4)

    assert torch.autograd.gradcheck(loss, batch)


def test_digits_past_where_softplus_is_cut_off(batch):
    image, text = batch[:2]
    inputs = image, text, torch.tensor(-1.0, dtype=torch.float64), torch.tensor(20.5, dtype=torch.float64)
    assert_relative(gathered_sigmoid_loss(*inputs), sigmoid_contrastive_loss(*inputs), 1e-15)


@pytest.mark.parametrize("bias", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("log_scale", [0.0, math.log(10), math.log(1000)])
def test_far_similarities_keep_their_digits(batch, bias, log_scale):
    """Where exp overflows or vanishes in float32, against float64."""
    image, text = (value.detach() for value in batch[:2])
    wide = [value.clone().requires_grad_() for value in (image, text, torch.tensor(log_scale), torch.tensor(bias))]
    narrow = [value.detach().float().requires_grad_() for value in wide]
    expected, actual = gathered_sigmoid_loss(*wide), gathered_sigmoid_loss(*narrow)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = (torch.autograd.grad(value, given) for value, given in ((actual, narrow), (expected, wide)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-5 * max(1, math.exp(log_scale)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [sigmoid_contrastive_loss, gathered_sigmoid_loss])
def test_half_precision_inputs_are_widened_under_autocast_too(batch, form, dtype):
    image, text, log_scale, bias = (value.detach() for value in batch)
    expected = form(image.to(dtype).double(), text.to(dtype).double(), log_scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = form(image.to(dtype), text.to(dtype), log_scale.float(), bias.float())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_more_than_a_block_is_in_memory(monkeypatch):
    """The largest tensor that is made while loss and gradients are taken."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes = [value.numel() for value in (made if isinstance(made, tuple | list) else [made])
                     if isinstance(value, torch.Tensor)]  # fmt: skip
            self.found = max([self.found, *sizes])
            return made

    monkeypatch.setattr(chunked_sigmoid, "CHUNK_ROWS", 8)
    image, text = (torch.randn(256, 2, requires_grad=True) for _ in range(2))
    with Largest() as largest:
        gathered_sigmoid_loss(image, text, 1.0, -2.0).backward()
    assert largest.found == 8 * 256
    with Largest() as largest:
        sigmoid_contrastive_loss(image, text, 1.0, -2.0).backward()
    assert largest.found == 256 * 256


@pytest.mark.parametrize("form", [sigmoid_contrastive_loss, gathered_sigmoid_loss])
@pytest.mark.parametrize(
    ("image_rows", "positives", "message"),
    [(3, None, "one text per image"), (4, torch.zeros(3, dtype=torch.long), "positives must be"),
     (4, torch.zeros(4, dtype=torch.bool), "positives must be")],
)  # fmt: skip
def test_wrong_shapes_raise(form, image_rows, positives, message):
    with pytest.raises(ValueError, match=message):
        form(torch.randn(image_rows, 2), torch.randn(4, 2), 1.0, positives=positives)


class TestModel:
    INPUTS = {"image_embeds": torch.linspace(-1, 1, 100).reshape(5, 20) ** 3,
              "text_embeds": torch.linspace(-2, 1, 140).reshape(5, 28) ** 2}  # fmt: skip

    @pytest.fixture
    def model(self):
        return synthetic_model(logit_bias_init_value=-10, logit_scale_init_value=math.log(10)).eval()

    def test_without_a_bias_it_is_todays_model(self):
        assert "logit_bias" not in synthetic_model().state_dict()
        assert AdaptorConfig().logit_bias_init_value is None
        assert AdaptorModel(AdaptorConfig(vision_hidden_size=384)).num_parameters() == 11_912_705

    def test_similarities_have_the_bias_and_the_order_that_they_have_without(self, model):
        plain = synthetic_model(logit_scale_init_value=math.log(10)).eval()
        with torch.no_grad():
            output, expected = model(**self.INPUTS), plain(**self.INPUTS)
        torch.testing.assert_close(output.logits_per_image, expected.logits_per_image - 10)
        torch.testing.assert_close(output.logits_per_text, output.logits_per_image.T)
        assert torch.equal(output.image_embeds, expected.image_embeds)

    def test_its_loss_is_the_sigmoid_loss(self, model):
        output = model(**self.INPUTS, return_loss=True)
        sign = 2 * torch.eye(5) - 1
        expected = -nn.functional.logsigmoid(sign * output.logits_per_text).sum(-1).mean()
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        # The loss falls with the bias by as much as own pairs are doubted, and rises by what others are believed.
        believed = output.logits_per_image.sigmoid()
        assert model.logit_bias.grad.item() == pytest.approx((believed - torch.eye(5)).sum().item() / 5, rel=1e-5)
        assert model.logit_scale.grad.abs() > 1e-3

    def test_a_trained_bias_is_saved_and_loaded(self, model, tmp_path):
        model.logit_bias.data.fill_(-7.25)
        model.save_pretrained(tmp_path)
        loaded = AdaptorModel.from_pretrained(tmp_path)
        assert loaded.logit_bias.item() == -7.25
        assert loaded.config.logit_bias_init_value == -10
        head = AdaptorForImageClassification.from_adaptor(loaded, num_labels=2)
        head.save_pretrained(tmp_path / "head")
        assert AdaptorForImageClassification.from_pretrained(tmp_path / "head").adaptor.logit_bias.item() == -7.25

    def test_a_checkpoint_without_one_starts_at_the_initial_value(self, tmp_path):
        plain = synthetic_model()
        plain.logit_scale.data.fill_(1.5)
        plain.save_pretrained(tmp_path)
        loaded, found = AdaptorModel.from_pretrained(tmp_path, logit_bias_init_value=-3, output_loading_info=True)
        assert set(found["missing_keys"]) == {"logit_bias"}
        assert (loaded.logit_bias.item(), loaded.logit_scale.item()) == (-3, 1.5)

    @pytest.mark.parametrize("value", [101, -1e9, math.nan])
    def test_a_value_that_no_model_has_is_refused(self, value):
        with pytest.raises(StrictDataclassError, match="logit_bias_init_value"):
            AdaptorConfig(logit_bias_init_value=value)

    def test_pipelines_rank_alike_and_ours_gives_each_pair_its_own_probability(
        self, vision_tower, text_tower, radiographs
    ):
        torch.manual_seed(0)
        model = AdaptorModel.from_towers(
            vision_tower, text_tower, hidden_size=32, num_attention_heads=4, logit_bias_init_value=-1
        ).eval()
        labels = ["effusion", "no finding", "pneumonia"]
        parts = {"image_processor": vision_tower.processor, "tokenizer": text_tower.processor}
        ours, theirs = (
            {
                found["label"]: found["score"]
                for found in pipeline("zero-shot-image-classification", model, **parts, **kind)(
                    str(radiographs / "image_0.jpg"), candidate_labels=labels, hypothesis_template="{}"
                )
            }
            for kind in ({"pipeline_class": AdaptorZeroShotImageClassificationPipeline}, {})
        )
        assert list(ours) == list(theirs)
        assert list(ours.values()) == sorted(ours.values(), reverse=True)
        pixels = vision_tower.processor(Image.open(radiographs / "image_0.jpg"), return_tensors="pt")
        with torch.no_grad():
            logits = model(**pixels, **text_tower.processor(labels, return_tensors="pt", padding=True)).logits_per_image
        assert [ours[label] for label in labels] == pytest.approx(logits[0].sigmoid().tolist(), abs=1e-5)
        assert [theirs[label] for label in labels] == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-5)

    def test_zero_shot_scores_are_cosines_and_know_no_bias(self, vision_tower, text_tower):
        sizes = {"hidden_size": 32, "num_attention_heads": 4}
        found = []
        for bias in (None, -10):
            torch.manual_seed(0)
            model = AdaptorModel.from_towers(vision_tower, text_tower, **sizes, logit_bias_init_value=bias).eval()
            images = torch.linspace(-1, 1, 96).reshape(3, 32) ** 3
            found.append(zero_shot_scores(model, text_tower, images, ["effusion"], ["no effusion"]))
        assert torch.equal(*found)


class TestObjective:
    ROWS = {"text_row": IDS}

    @pytest.fixture
    def arguments(self, tmp_path):
        return AdaptorTrainingArguments(output_dir=str(tmp_path), use_cpu=True)

    def encoded(self, batch):
        image, text, log_scale, bias = batch
        return Encoded(Side(image), Side(text), logit_scale=log_scale, logit_bias=bias)

    @pytest.mark.parametrize("positives", ["text", "pair"])
    def test_it_is_the_loss_of_its_positives(self, batch, arguments, positives):
        objective = SigLIPObjective(positives=positives)
        objective.setup(synthetic_model(**SigLIPObjective.config_fields), arguments)
        terms = objective(self.encoded(batch), self.ROWS, Gather())
        assert terms.keys() == {"loss"}
        ids = IDS if positives == "text" else None
        assert_same(terms["loss"], sigmoid_contrastive_loss(*batch, normalize=False, positives=ids), batch)

    def test_positives_are_those_of_the_arguments_by_default(self, arguments):
        objective = SigLIPObjective()
        objective.setup(synthetic_model(logit_bias_init_value=-10), arguments)
        assert objective.positives == arguments.positives == "text"

    def test_each_objective_refuses_the_model_of_the_other(self, arguments):
        with pytest.raises(ValueError, match=r"logit_bias_init_value=-10\.0"):
            SigLIPObjective().setup(synthetic_model(), arguments)
        with pytest.raises(ValueError, match="Take the objective 'siglip'"):
            AdaptorObjective().setup(synthetic_model(logit_bias_init_value=-10), arguments)

    def test_a_models_loss_on_a_split_is_its_own(self, arguments, views):
        model = synthetic_model(**SigLIPObjective.config_fields).eval()
        with torch.no_grad():
            batch = views["validation"].__getitems__(range(len(views["validation"])))
            embeds = {name: batch[name] for name in ("image_embeds", "text_embeds")}
            expected = model(**embeds, return_loss=True).loss.item()
        assert Retrieval(positives="pair")(model, views["validation"])["loss"] == pytest.approx(expected, rel=1e-5)
        trainer = AdaptorTrainer(
            model=model, args=arguments, objective=SigLIPObjective("pair"), eval_dataset=views["validation"]
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_controls_minimise_what_the_run_does(self, tmp_path, views):
        arguments = AdaptorTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, global_batch_size=32, num_train_epochs=1
        )
        config = synthetic_model(**SigLIPObjective.config_fields).config
        found = train_controls(config, views["train"], views["validation"], arguments, [1e-2], SigLIPObjective)
        moved = {system.key: system.model.logit_bias.item() != -10 for system in found}
        assert moved == {key: key != "untrained" for key in moved}
        assert len(moved) == 4

    def test_decay_spares_the_bias_alone(self, arguments, views):
        model = synthetic_model(**SigLIPObjective.config_fields)
        trainer = AdaptorTrainer(model=model, args=arguments, objective="siglip", eval_dataset=views["validation"])
        names = {name for name, _ in trainer.together.named_parameters()}
        assert names - set(trainer.get_decay_parameter_names(trainer.together)) == {"model.logit_bias"}

    @pytest.mark.parametrize("kind", [AdaptorObjective, SigLIPObjective])
    def test_pairs_by_index_columns_are_not_taken_for_pairs_by_place(self, batch, kind):
        objective = kind("pair")
        objective.image_to_text_weight = 0.75
        encoded = self.encoded(batch)
        encoded.text.index = torch.arange(11).flip(0)
        with pytest.raises(ValueError, match="text_index, which this objective does not read"):
            objective(encoded, {}, Gather())
        encoded.text = None
        with pytest.raises(ValueError, match="no text side"):
            objective(encoded, {}, Gather())
