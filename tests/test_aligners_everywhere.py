"""Whatever stands between the towers, the same classes, pipelines, wrappers, tasks and runs take it."""

import json
import re

import peft
import pytest
import torch
from PIL import Image
from synthetic import TEXT_WIDTH, synthetic_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
    pipeline,
)

import train_downstream
import train_pretrain
from adaptor_hf import (
    AdaptorForImageClassification,
    AdaptorForSemanticSegmentation,
    AdaptorModel,
    AdaptorProcessor,
)
from adaptor_hf.embeddings import open_cache
from adaptor_hf.evaluation import read_results
from adaptor_hf.evaluation.naming import weights_digest
from adaptor_hf.objectives import AdaptorObjective
from adaptor_hf.towers_adaptor import load_vision_tower
from adaptor_hf.training.controls import evaluate_retrieval
from adaptor_hf.training.needs import check_needs
from adaptor_hf.training.pair_embeddings import embed_pairs
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.zero_shot import ZeroShot

SHAPES = {
    "linear": {},
    "residual": {"num_hidden_layers": 1},
    "gated": {"intermediate_size": 64},
    "mlp": {"projection_output_norm": True, "token_projection": True},
}
LABELS = ["pleural effusion", "no finding"]
TOKENS = ["--image_tokens", "all", "--text_tokens", "True"]


# `linear` and `mlp` are the least and the most unlike the paper's; the other two go the same ways.
ALIGNERS = [pytest.param(name, marks=() if name in ("linear", "mlp") else pytest.mark.slow) for name in SHAPES]


@pytest.fixture(scope="module", params=ALIGNERS)
def aligner(request):
    return request.param


@pytest.fixture(scope="module")
def folder(aligner, vision_tower, text_tower, tmp_path_factory):
    """A saved model whose batch statistics are not those of the start, with no part that is zero."""
    torch.manual_seed(0)
    towers = {"vision_tower": vision_tower.spec, "text_tower": text_tower.spec}
    widths = {"vision_hidden_size": 32, "text_hidden_size": 32}
    model = AdaptorModel(synthetic_config(**{"aligner": aligner} | SHAPES[aligner] | towers | widths))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(image_embeds=torch.randn(16, 3, 32), text_embeds=torch.randn(16, 3, 32))
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.eval().save_pretrained(folder)
    AdaptorProcessor(vision_tower.processor, text_tower.processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return AdaptorModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def image(radiographs):
    return Image.open(radiographs / "image_0.jpg")


@pytest.fixture(scope="module")
def inputs(image, vision_tower, text_tower):
    processor = AdaptorProcessor(vision_tower.processor, text_tower.processor)
    return processor(images=[image], text=LABELS, return_tensors="pt", padding=True)


def heads_of(model):
    """Heads for images and for pixels on the model, in evaluation mode."""
    torch.manual_seed(2)
    return (
        AdaptorForImageClassification.from_adaptor(model, id2label={0: "a", 1: "b", 2: "c"}).eval(),
        AdaptorForSemanticSegmentation.from_adaptor(model, num_labels=2).eval(),
    )


@torch.no_grad()
def test_auto_classes_load_what_was_saved(aligner, model, folder, inputs, tmp_path):
    assert AutoConfig.from_pretrained(folder).to_dict() == model.config.to_dict()
    expected = model(**inputs)
    for kind in (AutoModel, AutoModelForZeroShotImageClassification):
        loaded = kind.from_pretrained(folder)
        assert (type(loaded), loaded.config.aligner) == (AdaptorModel, aligner)
        assert torch.equal(loaded(**inputs).logits_per_image, expected.logits_per_image)
    classes = (AutoModelForImageClassification, AutoModelForSemanticSegmentation)
    for number, (head, kind) in enumerate(zip(heads_of(model), classes, strict=True)):
        head.save_pretrained(tmp_path / str(number))
        again = kind.from_pretrained(tmp_path / str(number))
        assert type(again) is type(head)
        pixels = inputs["pixel_values"]
        assert torch.equal(again(pixel_values=pixels).logits, head(pixel_values=pixels).logits)


@torch.no_grad()
def test_pipelines_give_what_the_model_gives(model, folder, image, inputs, vision_tower, tmp_path):
    features = pipeline("image-feature-extraction", model=str(folder))(image)
    torch.testing.assert_close(torch.tensor(features), model(**inputs).image_embeds, atol=1e-5, rtol=0)
    found = pipeline("zero-shot-image-classification", model=str(folder))(
        image, candidate_labels=LABELS, hypothesis_template="{}"
    )
    scores = {one["label"]: one["score"] for one in found}
    expected = model(**inputs).logits_per_image.softmax(-1)[0]
    assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
    classifier, _ = heads_of(model)
    classifier.save_pretrained(tmp_path)
    vision_tower.processor.save_pretrained(tmp_path)
    scores = {one["label"]: one["score"] for one in pipeline("image-classification", model=str(tmp_path))(image)}
    expected = classifier(pixel_values=inputs["pixel_values"]).logits.softmax(-1)[0]
    assert [scores[label] for label in "abc"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_heads_train_on_it_and_leave_it_still(folder, inputs):
    model = AdaptorModel.from_pretrained(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = inputs["pixel_values"].repeat(4, 1, 1, 1)
    targets = torch.arange(4) % 3, torch.ones(4, *pixels.shape[-2:], dtype=torch.long)
    for head, labels in zip(heads_of(model), targets, strict=True):
        head.freeze_adaptor()
        head.train()
        assert head(pixel_values=pixels, labels=labels).loss.requires_grad
        head(pixel_values=pixels, labels=labels).loss.backward()
        trained = {name for name, value in head.named_parameters() if value.grad is not None}
        assert trained
        assert not any(name.startswith("adaptor.") for name in trained)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_dynamic_quantisation(model, inputs):
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    output, expected = quantised(**inputs), model(**inputs)
    for name in ("image_embeds", "text_embeds"):
        assert torch.cosine_similarity(output[name], expected[name]).min() > 0.99
        assert not torch.equal(output[name], expected[name])


def test_lora_on_the_projections(folder, inputs, tmp_path):
    plain = AdaptorModel.from_pretrained(folder)
    layers = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    chosen = [name for name in layers if re.match(r"(visual|text)_projection\b", name)]
    config = peft.LoraConfig(r=2, target_modules=chosen)
    adapted = peft.get_peft_model(AdaptorModel.from_pretrained(folder), config).eval()
    torch.testing.assert_close(adapted(**inputs).logits_per_image, plain(**inputs).logits_per_image)
    adapted(**inputs).logits_per_image[0, 0].backward()
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            assert value.requires_grad == ("lora_" in name)
            if value.requires_grad:
                assert value.grad is not None, name
                value.add_(0.1)
    assert {name.partition("_")[0] for name in chosen} == {"visual", "text"}
    expected = adapted(**inputs).logits_per_image
    assert (expected - plain(**inputs).logits_per_image).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).logits_per_image, expected)


PROMPTS = {"effusion": {"positive": ["pleural effusion"], "negative": ["no pleural effusion"]},
           "edema": {"positive": ["edema seen"], "negative": ["lungs clear"]}}  # fmt: skip
TASKS = {
    "classification": ["--label_column", "effusion", "edema", "--epochs", "1", "--seeds", "0"],
    "segmentation": ["--mask_column", "mask", "--epochs", "1", "--seeds", "0"],
    "zero_shot": ["--label_column", "effusion", "edema"],
    "retrieval": ["--text_column", "text"],
    "few_shot": ["--label_column", "effusion", "--shots", "2", "--episodes", "1"],
    "text_understanding": ["--text_column", "text"],
}


@pytest.mark.parametrize("task", TASKS)
def test_downstream_tasks(task, model, folder, labelled_table, tmp_path, tmp_path_factory):
    words = [*TASKS[task], "--model", str(folder), "--table", str(labelled_table(20)), "--task", task]
    words += ["--dataset_name", "phantom-boxes", "--output_dir", str(tmp_path), "--device", "cpu"]
    words += ["--num_resamples", "20", "--cache_dir", str(tmp_path_factory.getbasetemp() / "aligners-embeddings")]
    controls = {"classification": ["mlp"], "retrieval": ["untrained"]}.get(task, [])
    words += ["--controls", *(controls or ["none"])]
    if task == "zero_shot":
        (tmp_path / "prompts.json").write_text(json.dumps({"classes": PROMPTS}))
        words += ["--prompts", str(tmp_path / "prompts.json")]
    train_downstream.main(words)
    if task == "text_understanding":
        found = json.loads((tmp_path / "text_understanding.json").read_text())["results"]
        assert {one["system"] for one in found} == {model.config.aligner, "text tower alone"}
        return
    lines = read_results(tmp_path / "runs").lines
    assert {line["module"] for line in lines} == {"adaptor", *controls}
    assert {line["checkpoint"] for line in lines if line["module"] == "adaptor"} == {weights_digest(model)}


def pretrain(output, aligner, *words, **options):
    """A run of train_pretrain.py in this process; its run.json."""
    options = {"aligner": json.dumps(aligner), "output_dir": output, "global_batch_size": 16, "learning_rate": 1e-3,
               "num_train_epochs": 1, "recipe": "paper", "use_cpu": True, **options}  # fmt: skip
    train_pretrain.main([*(word for name, value in options.items() for word in (f"--{name}", str(value))), *words])
    return json.loads((output / "run.json").read_text())


def systems_said(text: str) -> list[str]:
    return re.findall(r"^\| ([A-Za-z,: ]+) \| \d\.\d{3} ", text, flags=re.MULTILINE)


def test_a_run_with_controls(aligner, views, tmp_path, capsys):
    controls = ["--controls"] if aligner in ("linear", "gated") else []
    record = pretrain(tmp_path, {"name": aligner, "hidden_size": 24}, *controls, cache=views["train"].path)
    assert record["options"]["aligner"] == AutoConfig.from_pretrained(tmp_path).aligner == aligner
    assert (tmp_path / "controls").exists() == bool(controls)
    if not controls:
        return
    said, card = capsys.readouterr().out, (tmp_path / "README.md").read_text(encoding="utf-8")
    shapes = {path.name: AutoConfig.from_pretrained(path) for path in (tmp_path / "controls").iterdir()}
    left_out = "There is no control two linear projections: this run's aligner is that already."
    same = aligner == "linear"
    for text in (said, card):
        projections = [] if same else ["two linear projections"]
        names = [f"{aligner}, this run", aligner, *projections, f"{aligner}, shuffled pairs", f"{aligner}, untrained"]
        assert systems_said(text) == [*names, "trivial: chance"]
        assert (left_out in text) == same
    expected = {"shuffled": aligner} if same else {"shuffled": aligner, "projections": "linear"}
    assert {name: shape.aligner for name, shape in shapes.items()} == expected
    assert {shape.hidden_size for shape in shapes.values()} == {24}


def test_no_layers_are_linear_in_every_record(views, tmp_path):
    record = pretrain(tmp_path, {"num_hidden_layers": 0, "hidden_size": 24}, cache=views["train"].path)
    assert record["options"]["aligner"] == AutoConfig.from_pretrained(tmp_path).aligner == "linear"


class TestPoolingOfTokens:
    ALIGNER = {"name": "mlp", "hidden_size": 24, "intermediate_size": 32, "attention_pooling_heads": 8}

    @pytest.fixture(scope="class")
    def table(self, labelled_table, tiny_dinov2, tiny_bert, tmp_path_factory):
        return {"train_file": labelled_table(60), "image_column": "image", "text_column": "text",
                "patient_column": "patient_id", "vision_tower": tiny_dinov2, "text_tower": tiny_bert,
                "cache_dir": tmp_path_factory.mktemp("tokens"), "global_batch_size": 8}  # fmt: skip

    @pytest.fixture(scope="class")
    def finished(self, table, tmp_path_factory):
        output = tmp_path_factory.mktemp("pooled") / "run"
        return output, pretrain(output, self.ALIGNER, *TOKENS, "--controls", **table)

    def test_a_whole_run_reads_sequences_and_so_do_its_controls(self, finished, table):
        output, record = finished
        (pairs,) = table["cache_dir"].glob("pairs-*")
        assert record["metrics"]["eval_num_pairs"] == 12
        model, parts = AdaptorModel.from_pretrained(output, load_towers=False), contrastive_splits(open_cache(pairs))
        result = evaluate_retrieval(model, parts["test"], "again")
        written = json.loads((output / "retrieval.json").read_text())
        assert written["metrics"] == pytest.approx(result.metrics)
        shapes = {path.name: AutoConfig.from_pretrained(path) for path in (output / "controls").iterdir()}
        found = {name: (shape.aligner, shape.attention_pooling_heads) for name, shape in shapes.items()}
        assert found == {"shuffled": ("mlp", 8), "projections": ("linear", 8)}
        # What is embedded is what the model makes of the cache's sequences, padding included.
        view = parts["test"].with_columns("image_tokens", "text_tokens", sequences=True)
        batch = view[:]
        assert not batch["text_attention_mask"].all()
        with torch.no_grad():
            one = model(**{name: batch[name] for name in ("image_embeds", "text_embeds", "text_attention_mask")})
        embeds = embed_pairs(model, parts["test"])
        torch.testing.assert_close(embeds["text_embeds"], one.text_embeds)
        torch.testing.assert_close(embeds["image_embeds"], one.image_embeds)

    def test_gradient_reaches_the_pooling(self, finished):
        output, _ = finished
        trained = AdaptorModel.from_pretrained(output, load_towers=False)
        for name in ("visual_pooling", "text_pooling"):
            # Biases are zero at the start.
            assert getattr(trained, name).out_proj.bias.any()

    def test_live_towers_give_the_tokens_themselves(self, finished, vision_tower, text_tower):
        model = AdaptorModel.from_pretrained(finished[0], load_towers=False)
        model.attach_towers(vision_tower, text_tower)
        examples = [{"pixel_values": torch.randn(3, 28, 28), "input_ids": torch.arange(5, 9) + n} for n in range(3)]
        check_needs(AdaptorObjective(), examples, None, model.config)
        whole = {name: torch.stack([one[name] for one in examples]) for name in examples[0]}
        with torch.no_grad():
            expected = model(**whole)
        for name, value in embed_pairs(model, examples).items():
            if name.endswith("_embeds"):
                torch.testing.assert_close(value, expected[name])
        with pytest.raises(ValueError, match="attention_pooling_heads needs tokens of images"):
            check_needs(AdaptorObjective(), [{"image_embeds": torch.zeros(32), "input_ids": torch.arange(4)}], None,
                        model.config)  # fmt: skip

    def test_missing_tokens_are_said_with_their_options(self, finished, table, views, tmp_path):
        who = "The aligner with attention_pooling_heads needs tokens of images"
        with pytest.raises(ValueError, match=rf"{who} and tokens of texts\. Add --image_tokens all --text_tokens\."):
            pretrain(tmp_path / "a", self.ALIGNER, **table | {"cache_dir": tmp_path / "none"})
        assert not (tmp_path / "none").exists()
        with pytest.raises(ValueError, match=rf"{who}: the embedding cache has no image_tokens: .*--image_tokens"):
            pretrain(tmp_path / "b", self.ALIGNER | {"attention_pooling_heads": 4}, cache=views["train"].path)
        model = AdaptorModel(synthetic_config(attention_pooling_heads=4))
        with pytest.raises(ValueError, match=f"{who}: .*has no image_tokens"):
            evaluate_retrieval(model, views["test"], "none")

    def test_heads_must_divide_the_towers_and_not_the_default_width(self, table, views, tmp_path):
        with pytest.raises(ValueError, match="must divide text_hidden_size"):
            # Of the images' 20, and of no 768.
            pretrain(tmp_path / "b", self.ALIGNER | {"attention_pooling_heads": 5}, cache=views["train"].path)
        with pytest.raises(ValueError, match=r"attention_pooling_heads \(12\) must divide vision_hidden_size \(32\)"):
            pretrain(tmp_path / "a", self.ALIGNER | {"attention_pooling_heads": 12}, *TOKENS, **table)

    def test_a_dry_run_measures_sequences(self, table, tmp_path, capsys):
        words = {"aligner": json.dumps(self.ALIGNER), "output_dir": tmp_path, "use_cpu": True, **table}
        words = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        train_pretrain.main([*words, *TOKENS, "--dry_run"])
        assert "training: " in capsys.readouterr().out

    def test_downstream_says_which_task_takes_it(self, finished, labelled_table, tmp_path):
        words = ["--model", str(finished[0]), "--table", str(labelled_table(20)), "--output_dir", str(tmp_path)]
        words += ["--task", "classification", *TASKS["classification"], "--device", "cpu"]
        with pytest.raises(ValueError, match=r"--task classification reads one embedding .* attention_pooling_heads"):
            train_downstream.main(words)

    @pytest.mark.parametrize("decoder", ["tokens", "unet"])
    @torch.no_grad()
    def test_decoders_of_both_kinds_read_it(self, decoder):
        torch.manual_seed(0)
        tower = load_vision_tower("lite0")
        model = AdaptorModel.from_towers(tower, None, aligner="linear", hidden_size=16, attention_pooling_heads=8)
        head = AdaptorForSemanticSegmentation.from_adaptor(model, num_labels=2, segmentation_decoder=decoder).eval()
        pixels = torch.rand(1, 3, 64, 64)
        before = head(pixel_values=pixels).logits
        assert before.shape == (1, 1, 64, 64)
        model.visual_pooling.out_proj.bias.add_(1.0)
        # The tokens go through the projection alone, the U-Net reads what is pooled of them.
        assert torch.equal(head(pixel_values=pixels).logits, before) == (decoder == "tokens")


def test_zero_shot_while_training_is_refused_before_the_first_step(views):
    prompts = {"effusion": (torch.zeros(1, TEXT_WIDTH), None)}
    model = AdaptorModel(synthetic_config(attention_pooling_heads=4))
    with pytest.raises(ValueError, match="prompts are one embedding each"):
        ZeroShot(prompts).check(model, views["validation"])
