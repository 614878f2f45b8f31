"""Saved folders carry the code that their class and processor need, and checkpoints of a run carry none."""

import re
import shutil
import sys

import pytest
import torch
from synthetic import synthetic_cache, synthetic_config, synthetic_model
from test_heads import run_remote
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizerFast,
)
from transformers.dynamic_module_utils import get_imports
from without_package import PACKAGE, WITHOUT_PACKAGE, code_of, relative_imports, saved_code

from adaptor_hf import (
    AdaptorForImageClassification,
    AdaptorForSemanticSegmentation,
    AdaptorImageProcessor,
    AdaptorModel,
    AdaptorProcessor,
)
from adaptor_hf.hub.push import PUSHED_FILES, files_to_push
from adaptor_hf.hub.saved_code import CODE_FILES
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.checkpoints import check_checkpoint
from adaptor_hf.training.controls import save_controls
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.training.systems import System

MODEL = {
    *("configuration_adaptor.py", "modeling_adaptor.py", "pretrained_adaptor.py", "layers_adaptor.py"),
    *("loss_adaptor.py", "towers_adaptor.py", "frozen_towers_adaptor.py", "tower_specs_adaptor.py"),
    *("tower_sources_adaptor.py", "tower_bundles_adaptor.py", "image_processing_adaptor.py"),
    *("image_geometry_adaptor.py", "image_values_adaptor.py", "arguments_adaptor.py", "precision_adaptor.py"),
    *("tower_weights_adaptor.py", "regular_files_adaptor.py", "embedding_origin_adaptor.py", "tower_layers_adaptor.py"),
    *("projections_adaptor.py", "batch_norm_adaptor.py", "attention_pooling_adaptor.py", "token_sequences_adaptor.py"),
    *("dual_encoder_adaptor.py", "tower_training_adaptor.py", "tower_folders_adaptor.py"),
    *("xrv_towers_adaptor.py", "pickled_modules_adaptor.py", "random_towers_adaptor.py"),
    *("random_specs_adaptor.py", "carried_rows_adaptor.py"),
}
IMAGES = {
    *("image_processing_adaptor.py", "image_geometry_adaptor.py", "image_values_adaptor.py"),
    "regular_files_adaptor.py",
}
SEGMENTATION = {
    *("decoders_adaptor.py", "pyramids_adaptor.py", "segmentation_loss_adaptor.py"),
}
CODE = {
    AdaptorModel: MODEL,
    AdaptorForImageClassification: MODEL | {"head_base_adaptor.py", "classification_head_adaptor.py"},
    AdaptorForSemanticSegmentation: MODEL | SEGMENTATION | {"head_base_adaptor.py", "segmentation_head_adaptor.py"},
    AdaptorImageProcessor: IMAGES,
    AdaptorProcessor: IMAGES | {"processing_adaptor.py"},
}
EMBEDS = torch.linspace(-1, 1, 3 * 20).reshape(3, 20)
ALIGNERS = {
    "residual": {"aligner": "residual"},
    "gated": {"aligner": "gated"},
    "mlp": {"aligner": "mlp", "projection_output_norm": True, "token_projection": True},
}


@pytest.fixture(scope="module")
def processor(tiny_bert):
    return AdaptorProcessor(AdaptorImageProcessor(), BertTokenizerFast.from_pretrained(tiny_bert))


@pytest.fixture(scope="module")
def run(processor, tmp_path_factory):
    """Folder of a trained run with a checkpoint and a control model."""
    folder = tmp_path_factory.mktemp("code") / "run"
    views = contrastive_splits(synthetic_cache(folder.with_name("cache"), num_rows=64, num_texts=48))
    arguments = AdaptorTrainingArguments(
        output_dir=str(folder), global_batch_size=16, num_train_epochs=1, use_cpu=True, disable_tqdm=True
    )
    trainer = AdaptorTrainer(
        model=synthetic_model(),
        args=arguments,
        train_dataset=views["train"],
        eval_dataset=views["validation"],
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    save_controls([System("projections", synthetic_model(aligner="linear"))], folder / "controls")
    for name, shape in ALIGNERS.items():
        model = synthetic_model(**shape)
        model.train()(image_embeds=torch.cat([EMBEDS, -EMBEDS]))  # batch statistics and dropout
        model.eval().save_pretrained(folder / "aligners" / name)
    return folder


@pytest.fixture(scope="module")
def checkpoint(run):
    (folder,) = run.glob("checkpoint-*")
    return folder


@pytest.mark.parametrize("file", CODE_FILES)
def test_flat_files_need_only_what_a_transformers_user_has_and_one_another(file):
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"}
    assert set(get_imports(PACKAGE / file)) <= allowed | set(sys.stdlib_module_names)
    assert relative_imports(PACKAGE / file) <= set(CODE_FILES)


@pytest.mark.parametrize("kind", [AdaptorModel, AdaptorForImageClassification, AdaptorForSemanticSegmentation])
def test_a_model_is_saved_with_its_own_code(kind, tmp_path):
    kind(synthetic_config()).save_pretrained(tmp_path)
    assert saved_code(tmp_path) == code_of(kind) == CODE[kind]
    assert {name for name in files_to_push(tmp_path) if name.endswith(".py")} == CODE[kind]


def test_a_processor_is_saved_with_its_own_code(processor, tmp_path):
    processor.save_pretrained(tmp_path / "both")
    assert saved_code(tmp_path / "both") == code_of(AdaptorProcessor, AdaptorImageProcessor) == CODE[AdaptorProcessor]
    processor.image_processor.save_pretrained(tmp_path / "images")
    assert saved_code(tmp_path / "images") == code_of(AdaptorImageProcessor) == CODE[AdaptorImageProcessor]


def test_every_flat_file_is_needed_somewhere():
    assert set(CODE_FILES) - set.union(*CODE.values()) == {"heads_adaptor.py"}
    assert {name for name in PUSHED_FILES if name.endswith(".py")} == set(CODE_FILES)


def test_the_page_on_architecture_lists_what_a_folder_carries():
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([a-z0-9_, ]+) \((\d+)\) \|$", page, re.MULTILINE)
    listed = []
    for names, count in rows:
        own = {f"{name}_adaptor.py" for name in re.findall(r"[a-z_]+", names)} - {"the_adaptor.py", "and_adaptor.py"}
        listed.append(own if own >= IMAGES else own | listed[0])
        assert len(listed[-1]) == int(count)
    assert listed == [
        MODEL,
        MODEL | CODE[AdaptorProcessor],
        CODE[AdaptorForImageClassification],
        CODE[AdaptorForSemanticSegmentation],
        IMAGES,
    ]


def test_a_folder_names_no_class_whose_code_it_lacks(tmp_path):
    classifier = AdaptorForImageClassification(synthetic_config())
    classifier.save_pretrained(tmp_path / "classifier")
    AdaptorModel.from_pretrained(tmp_path / "classifier").save_pretrained(tmp_path / "model")
    auto_map = AutoConfig.from_pretrained(tmp_path / "model").auto_map
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"}
    assert {f"{place.partition('.')[0]}.py" for place in auto_map.values()} <= saved_code(tmp_path / "model")


def test_a_run_carries_its_code_once_and_its_checkpoints_none(run, checkpoint):
    own = {path.name for path in run.glob("*.py")}
    assert own == code_of(AdaptorModel, AdaptorProcessor, AdaptorImageProcessor)
    assert {path.name for path in (run / "controls" / "projections").glob("*.py")} == code_of(AdaptorModel)
    assert saved_code(checkpoint) == set()
    check_checkpoint(checkpoint)


@pytest.mark.parametrize("trust", [None, False, True])
def test_a_checkpoint_loads_where_the_package_is(checkpoint, run, trust):
    options = {} if trust is None else {"trust_remote_code": trust}
    model = AutoModel.from_pretrained(checkpoint, **options)
    assert type(model) is AdaptorModel
    expected = AdaptorModel.from_pretrained(run)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert type(AutoProcessor.from_pretrained(checkpoint, **options)) is AdaptorProcessor
    assert type(AutoImageProcessor.from_pretrained(checkpoint, **options)) is AdaptorImageProcessor
    assert AutoTokenizer.from_pretrained(checkpoint, **options)("effusion")["input_ids"]
    head = AutoModelForImageClassification.from_pretrained(checkpoint, **options)
    assert type(head) is AdaptorForImageClassification


def test_a_model_that_is_loaded_from_a_checkpoint_is_saved_with_code(checkpoint, tmp_path):
    AdaptorModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    assert saved_code(tmp_path) == code_of(AdaptorModel)


class TestPush:
    def test_a_checkpoint_without_code_is_refused(self, checkpoint, run):
        with pytest.raises(FileNotFoundError, match=r"configuration_adaptor.py.*save_pretrained"):
            files_to_push(checkpoint)
        assert set(files_to_push(run)) >= saved_code(run)

    @pytest.mark.parametrize("name", ["modeling_adaptor.py", "tower_sources_adaptor.py", "processing_adaptor.py"])
    def test_a_folder_that_lost_code_is_refused(self, run, tmp_path, name):
        for path in run.iterdir():
            if path.is_file() and path.name != name:
                shutil.copy(path, tmp_path)
        with pytest.raises(FileNotFoundError, match=name):
            files_to_push(tmp_path)

    def test_code_of_other_names_stays_here(self, run, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        (tmp_path / "private_adaptor.py").write_text("")
        assert "private_adaptor.py" not in files_to_push(tmp_path)
        # Nor is a model sent of which a part would be missing.
        with open(tmp_path / "modeling_adaptor.py", "a") as file:
            file.write("\nfrom .private_adaptor import *\n")
        with pytest.raises(FileNotFoundError, match="private_adaptor"):
            files_to_push(tmp_path)


REMOTE = (
    WITHOUT_PACKAGE
    + """
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor
run, both, images, out = sys.argv[1:]
embeds = torch.linspace(-1, 1, 3 * 20).reshape(3, 20)
result = {}
for name in ("", "/controls/projections", "/aligners/residual", "/aligners/gated", "/aligners/mlp"):
    model = AutoModel.from_pretrained(run + name, trust_remote_code=True)
    with torch.no_grad():
        result[name] = model.get_image_features(image_embeds=embeds).pooler_output
pixels = torch.arange(3 * 40 * 50, dtype=torch.uint8).reshape(3, 40, 50)
for kind, folder in ((AutoProcessor, run), (AutoProcessor, both), (AutoImageProcessor, images)):
    processor = kind.from_pretrained(folder, trust_remote_code=True)
    result[folder] = processor(images=pixels, return_tensors="pt")["pixel_values"]
assert "adaptor_hf" not in sys.modules
torch.save(result, out + "/result.pt")
"""
)


def test_runs_controls_and_processors_load_without_the_package(run, processor, tmp_path):
    both, images = tmp_path / "both", tmp_path / "images"
    processor.save_pretrained(both)
    processor.image_processor.save_pretrained(images)
    result = run_remote(REMOTE, tmp_path, run, both, images)
    for name in ("", "/controls/projections", *(f"/aligners/{name}" for name in ALIGNERS)):
        with torch.no_grad():
            expected = AdaptorModel.from_pretrained(f"{run}{name}").get_image_features(image_embeds=EMBEDS)
        assert torch.equal(result[name], expected.pooler_output)
    pixels = torch.arange(3 * 40 * 50, dtype=torch.uint8).reshape(3, 40, 50)
    expected = processor.image_processor(pixels, return_tensors="pt")["pixel_values"]
    for folder in (run, both, images):
        assert torch.equal(result[str(folder)], expected)
