"""Shared fixtures. Tiny random towers are saved to folders: the code path of a hub id, without network."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# `load_public_dataset` keeps its results in the cache of `datasets`: in tests that is not the user's.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="adaptor-hf-tests-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import signal
import string
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import network_guard
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
# A shell starts background jobs with SIGINT ignored, and children inherit that; tests send it to them.
signal.signal(signal.SIGINT, signal.default_int_handler)

VOCABULARY = """
[PAD] [UNK] [CLS] [SEP] [MASK] the a an is are was of in on at to and or with without for from by no not there
left right both upper lower mid lung lungs zone heart cardiac size normal clear enlarged mild moderate severe small
large pleural effusion effusions pneumothorax consolidation opacity opacities cardiomegaly pneumonia edema
atelectasis acute chest radiograph xray image view ap pa lateral findings impression evidence seen possible patient
##s ##es ##ed ##ing 0 1 2 3 4 5 6 7 8 9 . , : ; - ( ) /
"""


@pytest.fixture(autouse=True)
def log_levels_restored():
    """The scripts set levels for their whole process; a test that calls one must not silence the next."""
    names = [None, *(name for name in logging.root.manager.loggerDict if name.startswith(("adaptor_hf", "train_")))]
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for name in logging.root.manager.loggerDict:
        if name.startswith(("adaptor_hf", "train_")) and name not in levels:
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def messages_restored():
    """Private mode filters what its whole process says, and lets its owner alone read what it writes."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)
    gate = sys.modules.get("adaptor_hf.privacy.gate")
    if gate is not None:
        gate.stop_filter()


@pytest.fixture(autouse=True)
def no_connection_attempts():
    """Fails the test in which this process or one of its children tried to reach another machine."""
    yield
    if attempts := network_guard.attempts():
        pytest.fail("\n".join(["connection attempts:", *attempts]))


@pytest.fixture(scope="session")
def realbench() -> Path:
    """Folder of real radiographs with metadata.csv, named by ADAPTOR_REALBENCH; skips without it."""
    folder = os.environ.get("ADAPTOR_REALBENCH")
    if not folder:
        pytest.skip("set ADAPTOR_REALBENCH to the folder of real radiographs")
    return Path(folder)


@pytest.fixture(scope="session")
def realpairs() -> Path:
    """Folder with flickr8k (photographs with captions, metadata.csv), named by ADAPTOR_REALPAIRS; skips without it."""
    folder = os.environ.get("ADAPTOR_REALPAIRS")
    if not folder:
        pytest.skip("set ADAPTOR_REALPAIRS to the folder that holds flickr8k, photographs with captions")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory) -> Path:
    """Folder of a saved Dinov2Model (hidden 32, 2 layers, patch 14, image 28) with its BitImageProcessor."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("tiny-dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Folder of a saved BertModel with pooler (hidden 32, 2 layers, 128 positions) and a WordPiece tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokens = VOCABULARY.split()
    letters = [prefix + letter for prefix in ("", "##") for letter in string.ascii_lowercase]
    tokens += [letter for letter in letters if letter not in tokens]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=128)
    assert len(tokenizer) == len(tokens)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory) -> Path:
    """Folder of six generated grey JPEG files, image_0.jpg to image_5.jpg, of different sizes and content."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("radiographs")
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate([(96, 80), (80, 96), (64, 64), (120, 90), (64, 100), (90, 90)]):
        rows, columns = np.mgrid[0:height, 0:width]
        centre_row, centre_column = generator.uniform(0.3, 0.7, size=2) * (height, width)
        distance = np.hypot((rows - centre_row) / height, (columns - centre_column) / width)
        pixels = 220 * np.exp(-4 * distance) + generator.normal(0, 8, (height, width)) + 5 * index
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"image_{index}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def vision_tower(tiny_dinov2):
    """`tiny_dinov2`, loaded. It is frozen: what trains it takes a copy."""
    from adaptor_hf.towers import load_vision_tower

    return load_vision_tower(str(tiny_dinov2))


@pytest.fixture(scope="session")
def text_tower(tiny_bert):
    """`tiny_bert`, loaded. It is frozen: what trains it takes a copy."""
    from adaptor_hf.towers import load_text_tower

    return load_text_tower(str(tiny_bert))


@pytest.fixture(scope="session")
def labelled_table(tmp_path_factory) -> Callable[[int], Path]:
    """A function that gives the table of so many labelled images, written once. Who changes it takes a copy."""
    from labelled_images import write_labelled_images

    return cache(lambda count: write_labelled_images(tmp_path_factory.mktemp("labelled") / "set", count))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, vision_tower, text_tower) -> Path:
    """Folder of an untrained Adaptor (hidden 48) on the two tiny towers. Who changes it takes a copy."""
    from synthetic import synthetic_config

    from adaptor_hf import AdaptorModel

    torch.manual_seed(3)
    towers = {"vision_tower": vision_tower.spec, "text_tower": text_tower.spec}
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    AdaptorModel(synthetic_config(vision_hidden_size=32, text_hidden_size=32, **towers)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory) -> Path:
    """Folder of `synthetic_cache`. Who changes it takes a copy."""
    from synthetic import synthetic_cache

    folder = tmp_path_factory.mktemp("synthetic-cache")
    synthetic_cache(folder)
    return folder


@pytest.fixture(scope="session")
def views(cache_folder):
    """The splits of `cache_folder` that training takes."""
    from adaptor_hf.embeddings import open_cache
    from adaptor_hf.training.pairs import contrastive_splits

    return contrastive_splits(open_cache(cache_folder))


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory) -> Path:
    """Folder of a finished pre-training of two epochs with its cache inside. Who changes it takes a copy."""
    from script_runs import OPTIONS
    from synthetic import synthetic_cache

    import train_pretrain

    folder = tmp_path_factory.mktemp("pretrained") / "run"
    synthetic_cache(folder / "embeddings")
    options = OPTIONS | {"num_train_epochs": 2, "cache": folder / "embeddings", "output_dir": folder, "use_cpu": True}
    train_pretrain.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return folder


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Numbers of the pieces that were computed, in order."""
    from adaptor_hf.embeddings.pieces import Build

    numbers, write = [], Build.write_piece

    def noted(self, index, *arguments):
        write(self, index, *arguments)
        numbers.append(index)

    monkeypatch.setattr(Build, "write_piece", noted)
    return numbers
