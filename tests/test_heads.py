"""Heads: parameters, losses, what is frozen, what is saved and comes back, as remote code and in pipelines."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from synthetic import synthetic_config, synthetic_model
from transformers import AutoModel, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline
from without_package import WITHOUT_PACKAGE, code_of, saved_code

from adaptor_hf import AdaptorConfig, AdaptorForImageClassification, AdaptorImageProcessor, AdaptorModel
from adaptor_hf.heads_adaptor import ClassificationHead, classification_loss

SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
NAN = float("nan")


@pytest.fixture(scope="module")
def towers(vision_tower, text_tower):
    return vision_tower, text_tower


@pytest.fixture
def pretrained(towers, tmp_path):
    """Folder of a model as pre-training leaves it."""
    torch.manual_seed(0)
    model = AdaptorModel.from_towers(*towers, **SMALL)
    model.save_pretrained(tmp_path / "pretrained")
    towers[0].processor.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def pixels(towers, radiographs):
    images = [Image.open(path) for path in sorted(radiographs.glob("*.jpg"))[:4]]
    return towers[0].processor(images, return_tensors="pt")["pixel_values"]


def small_head(**kwargs) -> AdaptorForImageClassification:
    torch.manual_seed(0)
    return AdaptorForImageClassification(synthetic_config(**kwargs))


def trainable(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class TestParameters:
    @pytest.mark.parametrize(("num_logits", "expected"), [(1, 394_753), (3, 395_779)])
    def test_the_papers_head(self, num_logits, expected):
        head = ClassificationHead(768, num_logits, hidden_size=512)
        assert sum(parameter.numel() for parameter in head.parameters()) == expected
        names = [type(layer).__name__ for layer in head]
        assert names == ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
        assert head[1].bias is None

    @pytest.mark.parametrize(("num_labels", "expected"), [(1, 394_753), (2, 394_753), (3, 395_779)])
    def test_only_the_head_trains(self, num_labels, expected):
        model = AdaptorForImageClassification(AdaptorConfig(num_labels=num_labels, classifier_hidden_size=512))
        assert trainable(model) == expected

    def test_a_linear_head_on_the_tower_is_that_of_mgca(self):
        config = AdaptorConfig(vision_hidden_size=2048, feature_source="tower", num_labels=1)
        assert trainable(AdaptorForImageClassification(config)) == 2049

    def test_weights_start_as_torch_starts_them(self):
        model = AdaptorForImageClassification(AdaptorConfig(classifier_hidden_size=512, num_labels=3))
        weight = model.classifier[1].weight.detach()
        assert weight.abs().max() <= 768**-0.5
        assert weight.std().item() == pytest.approx((3 * 768) ** -0.5, rel=0.05)
        assert torch.equal(model.classifier[2].weight, torch.ones(512))


class TestLoss:
    def test_one_logit_is_binary_cross_entropy(self):
        logits = torch.tensor([[0.3], [-1.2], [2.0]])
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([1.0, 0.0, 1.0]))
        for labels in (torch.tensor([1, 0, 1]), torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([True, False, True])):
            torch.testing.assert_close(classification_loss(logits, labels), expected)

    def test_classes_that_exclude_each_other_are_cross_entropy(self):
        logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, -100, 2])
        expected = torch.nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(classification_loss(logits, labels), expected)

    def test_unknown_labels_neither_count_nor_have_a_gradient(self):
        logits = torch.randn(3, 2, requires_grad=True)
        labels = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]])
        loss = classification_loss(logits, labels)
        known = ~labels.isnan()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert torch.equal(logits.grad != 0, known)

    @pytest.mark.parametrize("labels", [torch.full((2, 3), NAN), torch.tensor([-100, -100])])
    def test_a_batch_without_labels_costs_nothing(self, labels):
        logits = torch.randn(2, 3, requires_grad=True)
        loss = classification_loss(logits, labels)
        loss.backward()
        assert loss == 0
        assert not logits.grad.any()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.tensor([0, 3]), "A label is 3, expected 0 to 2"),
            (torch.tensor([[0.0, -1.0, 1.0]] * 2), "A label is -1, expected 0 to 1.*need a policy"),
            (torch.tensor([0.0, 1.0]), "must be integers"),
            (torch.tensor([[0], [1]]), r"must be of shape \(2, 3\), got \(2, 1\)"),
            (torch.tensor([0, 1, 2]), r"must be of shape \(2,\), got \(3,\)"),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, labels, message):
        with pytest.raises(ValueError, match=message):
            classification_loss(torch.zeros(2, 3), labels)


class TestForward:
    def test_two_classes_are_one_logit_whose_softmax_is_its_sigmoid(self):
        model = small_head().eval()
        embeds = torch.randn(4, 20)
        labels = torch.tensor([0, 1, 1, 0])
        output = model(image_embeds=embeds, labels=labels)
        logit = model.classifier(model.adaptor(image_embeds=embeds).image_embeds)
        torch.testing.assert_close(output.logits.softmax(-1)[:, 1:], logit.sigmoid())
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))

    def test_features_come_from_the_adaptor_or_from_the_tower(self, towers, pixels):
        adaptor = AdaptorModel.from_towers(*towers, **SMALL)
        pooled = towers[0](pixels).pooler_output
        model = AdaptorForImageClassification.from_adaptor(adaptor).eval()
        assert torch.equal(model.get_head_features(pixels), adaptor.eval()(pixel_values=pixels).image_embeds)
        assert torch.equal(model.get_head_features(pixels), model.get_head_features(image_embeds=pooled))
        raw = AdaptorForImageClassification.from_adaptor(adaptor, feature_source="tower").eval()
        assert raw.feature_size == 32
        assert torch.equal(raw.get_head_features(pixels), pooled)
        assert torch.equal(raw.get_head_features(image_embeds=torch.stack([pooled, -pooled], dim=1)), pooled)

    def test_several_labels_an_image(self):
        model = small_head(num_labels=2, problem_type="multi_label_classification")
        output = model(image_embeds=torch.randn(3, 20), labels=torch.tensor([[0.0, 1.0], [NAN, 1.0], [1.0, 1.0]]))
        assert output.logits.shape == (3, 2)
        assert output.loss.isfinite()
        assert output.logits[:, 0].any()

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "either pixel_values or image_embeds"),
            ({"pixel_values": torch.zeros(1, 3, 28, 28)}, "needs the vision tower"),
            ({"image_embeds": torch.zeros(2, 21)}, r"\(batch, 20\)"),
            ({"image_embeds": torch.zeros(2, 20), "labels": torch.zeros(2, 2)}, "multi_label_classification"),
        ],
    )
    def test_inputs_that_do_not_fit_are_refused(self, inputs, message):
        with pytest.raises(ValueError, match=message):
            small_head()(**inputs)

    def test_single_numbers_for_a_multi_label_model_are_refused(self):
        with pytest.raises(ValueError, match=r"must be of shape \(batch, 3\)"):
            small_head(num_labels=3, problem_type="multi_label_classification")(
                image_embeds=torch.zeros(2, 20), labels=torch.tensor([0, 1])
            )

    def test_regression_is_refused(self):
        with pytest.raises(ValueError, match="no regression"):
            small_head(problem_type="regression", num_labels=1)


class TestFrozen:
    def test_training_moves_the_head_only_and_no_buffer(self, towers, pixels):
        adaptor = AdaptorModel.from_towers(*towers, **SMALL)
        model = AdaptorForImageClassification.from_adaptor(adaptor, classifier_hidden_size=8)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        assert model.classifier.training
        assert not any(module.training for module in model.adaptor.modules())
        assert torch.equal(model.get_head_features(pixels), model.get_head_features(pixels))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(pixels, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith("classifier.") for name in changed)

    def test_a_batch_norm_tower_keeps_its_statistics(self):
        model = AdaptorModel.from_towers("lite0", None, text_hidden_size=32, **SMALL)
        head = AdaptorForImageClassification.from_adaptor(model).train()
        before = {name: value.clone() for name, value in head.named_buffers()}
        head(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
        assert any("running_mean" in name for name in before)
        assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())

    def test_asked_for_gradients_the_adaptor_trains_with_its_dropout(self):
        model = small_head()
        model.adaptor.requires_grad_(True)
        assert model.train().adaptor.training
        model(image_embeds=torch.randn(4, 20), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        assert model.adaptor.visual_projection.weight.grad.any()
        model.freeze_adaptor()
        assert not model.adaptor.training

    def test_lora_on_the_tower_gets_gradients_and_leaves_the_adaptor_still(self, tiny_dinov2, pixels):
        from peft import LoraConfig, get_peft_model

        adaptor = AdaptorModel.from_towers(str(tiny_dinov2), None, **SMALL)
        head = AdaptorForImageClassification.from_adaptor(adaptor)
        lora = LoraConfig(r=2, target_modules=r".*vision_model\..*\.(q_proj|v_proj)", modules_to_save=["classifier"])
        model = get_peft_model(head, lora)
        model.train()
        assert not head.adaptor.training
        model(pixel_values=pixels, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert any("lora_B" in name for name in trained)
        assert all("lora_" in name or "classifier" in name for name in trained)


class TestCheckpoint:
    def test_a_pretraining_checkpoint_lacks_the_head_alone(self, pretrained):
        model, report = AdaptorForImageClassification.from_pretrained(
            pretrained, num_labels=3, classifier_hidden_size=8, output_loading_info=True
        )
        assert report["missing_keys"]
        assert all(name.startswith("classifier.") for name in report["missing_keys"])
        assert not report["unexpected_keys"]
        assert model.adaptor.vision_model is not None
        assert model.adaptor.text_model is None
        assert trainable(model) == sum(p.numel() for p in model.classifier.parameters())
        base = AdaptorModel.from_pretrained(pretrained)
        assert torch.equal(base.visual_projection.weight, model.adaptor.visual_projection.weight)

    @pytest.mark.parametrize("in_checkpoint", [False, True])
    def test_a_head_comes_back_with_equal_logits(self, towers, pixels, tmp_path, in_checkpoint):
        adaptor = AdaptorModel.from_towers(*towers, **SMALL, towers_in_checkpoint=in_checkpoint)
        model = AdaptorForImageClassification.from_adaptor(
            adaptor, id2label={0: "normal", 1: "effusion", 2: "other"}, classifier_hidden_size=8
        )
        model.train()(pixels, labels=torch.tensor([0, 1, 2, 0]))
        model.eval().save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert isinstance(again, AdaptorForImageClassification)
        assert torch.equal(again(pixels).logits, model(pixels).logits)
        assert again.config.id2label[1] == "effusion"
        assert torch.equal(
            AutoModel.from_pretrained(tmp_path)(pixel_values=pixels).image_embeds,
            adaptor(pixel_values=pixels).image_embeds,
        )

    def test_the_labels_of_the_head_are_its_own(self):
        first = AdaptorForImageClassification.from_adaptor(synthetic_model(), id2label={0: "a", 1: "b", 2: "c"})
        assert AdaptorForImageClassification.from_adaptor(first.adaptor, num_labels=5).config.num_labels == 5
        assert first.config.id2label == {0: "a", 1: "b", 2: "c"}

    def test_trainer_trains_it(self, tmp_path):
        model = small_head(classifier_hidden_size=16, classifier_dropout=0.0)
        embeds = torch.randn(64, 20)
        rows = [{"image_embeds": row, "labels": int(row[0] > 0)} for row in embeds]
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=60,
            per_device_train_batch_size=32,
            learning_rate=0.01,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        prediction = trainer.predict(rows).predictions.argmax(-1)
        assert (prediction == [row["labels"] for row in rows]).mean() > 0.95


class TestPipeline:
    def classify(self, towers, radiographs, tmp_path, **kwargs):
        model = AdaptorForImageClassification.from_adaptor(AdaptorModel.from_towers(*towers, **SMALL), **kwargs).eval()
        model.save_pretrained(tmp_path)
        towers[0].processor.save_pretrained(tmp_path)
        image = Image.open(radiographs / "image_0.jpg")
        results = pipeline("image-classification", model=str(tmp_path))(image)
        pixels = towers[0].processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return {result["label"]: result["score"] for result in results}, model(pixels).logits[0]

    def test_one_logit_gives_both_names(self, towers, radiographs, tmp_path):
        scores, logits = self.classify(towers, radiographs, tmp_path, id2label={0: "normal", 1: "effusion"})
        probability = logits[1].sigmoid().item()
        assert scores == pytest.approx({"effusion": probability, "normal": 1 - probability}, abs=1e-6)
        assert 0 < probability < 1

    def test_several_classes_and_several_labels(self, towers, radiographs, tmp_path):
        names = {"id2label": {0: "a", 1: "b", 2: "c"}}
        scores, logits = self.classify(towers, radiographs, tmp_path / "1", **names)
        assert [scores[name] for name in "abc"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)
        several = {"problem_type": "multi_label_classification", **names}
        scores, logits = self.classify(towers, radiographs, tmp_path / "2", **several)
        assert [scores[name] for name in "abc"] == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, image, out = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(images=Image.open(image), return_tensors="pt")).logits
scores = pipeline("image-classification", model=folder, trust_remote_code=True)(Image.open(image))
assert "adaptor_hf" not in sys.modules
model.save_pretrained(out + "/again")
torch.save({"logits": logits, "scores": torch.tensor([s["score"] for s in scores])}, out + "/result.pt")
"""
)


def run_remote(script: str, tmp_path, *arguments) -> dict:
    (tmp_path / "remote.py").write_text(script)
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "remote.py"), *map(str, arguments), str(tmp_path)]
    finished = subprocess.run(
        command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(tmp_path / "result.pt", weights_only=True)


def test_remote_code_without_the_package_gives_bit_equal_logits(towers, radiographs, tmp_path):
    torch.manual_seed(0)
    adaptor = AdaptorModel.from_towers(*towers, **SMALL)
    model = AdaptorForImageClassification.from_adaptor(adaptor, classifier_hidden_size=8).eval()
    folder, image = tmp_path / "model", radiographs / "image_1.jpg"
    model.save_pretrained(folder)
    towers[0].processor.save_pretrained(folder)
    result = run_remote(REMOTE, tmp_path, folder, image)
    with torch.no_grad():
        logits = model(**towers[0].processor(Image.open(image), return_tensors="pt")).logits
        assert torch.equal(result["logits"], logits)
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
        pixels = towers[0].processor(Image.open(image), return_tensors="pt")["pixel_values"]
        assert torch.equal(again(pixels).logits, logits)
    torch.testing.assert_close(result["scores"].sort().values, logits.softmax(-1)[0].sort().values)
    assert saved_code(folder) == code_of(AdaptorForImageClassification, AdaptorImageProcessor)
