"""`LivePairs`: the numbers of the cache, augmentation that depends on seed, epoch and row alone, and what fails."""

import hashlib
import json
import pickle
import random
import subprocess
import sys
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from fixtures.dicom import write_dicom
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerCallback

from adaptor_hf import AdaptorModel
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.images import read_image
from adaptor_hf.data.live_pairs import LivePairs, draw_seed
from adaptor_hf.data.sentence_recipes import SENTENCE_RECIPES, augmented_text
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.data.views import RECIPES, make_view, view_size
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.phantom import write_phantoms
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.pair_batches import PairCollator

TEXTS = [
    "heart size normal. no pleural effusion. lungs are clear.",
    "large left pleural effusion is seen. no pneumothorax.",
    "mild cardiomegaly",
    "there is a small opacity in the right upper lung zone. heart is enlarged. acute edema is possible.",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Files of every kind: 8-bit grey and colour PNG, 16-bit PNG, DICOM, a large JPEG, and a member of a zip."""
    folder, generator = tmp_path_factory.mktemp("secret-place"), np.random.default_rng(3)

    def smooth(width: int, height: int, channels: int | None = None) -> Image.Image:
        shape = (6, 5) if channels is None else (6, 5, channels)
        small = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    smooth(60, 44).save(folder / "grey.png")
    smooth(44, 60, 3).save(folder / "colour.png")
    deep = np.asarray(smooth(50, 50)).astype(np.uint16) * 16 + 7
    Image.fromarray(deep).save(folder / "deep.png")
    write_dicom(folder / "image.dcm", 4000 - 9 * np.asarray(smooth(52, 40)).astype(np.uint16))
    smooth(700, 800).save(folder / "large.jpg")
    smooth(40, 48).save(folder / "in.png")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(folder / "in.png", "a/in.png")
        info = archive.getinfo("a/in.png")
    member = f"{folder / 'images.zip'}::a/in.png@{info.header_offset}+{info.file_size}"
    return [*(str(folder / name) for name in ("grey.png", "colour.png", "deep.png", "image.dcm", "large.jpg")), member]


def table(files: list[str], mode: str = "L", **columns) -> datasets.Dataset:
    texts = [f"{TEXTS[row % len(TEXTS)]} {row} cm." for row in range(len(files))]
    values = {"image": [{"path": path, "bytes": None} for path in files], "text": texts} | columns
    return datasets.Dataset.from_dict(values).cast_column("image", RadiographImage(mode))


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other[name]), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_without_recipe_the_towers_get_what_they_get_for_the_cache(files, vision_tower, text_tower, tmp_path, mode):
    pairs = table(files, mode, image_id=[str(row) for row in range(len(files))])
    # A batch of one, so that both sum in one order.
    options = {"batch_size": 1, "num_workers": 0, "dtype": "float32", "max_text_length": 9}
    build_cache(pairs, vision_tower, text_tower, tmp_path, words=True, sentences=True, **options)
    cache = open_cache(tmp_path, columns=("words", "sentences"))
    live = LivePairs(
        pairs, vision_tower.processor, text_tower.processor, max_length=9, spans=("words", "sentences"), seed=9
    )
    assert len(live) == len(cache) == len(files)
    with torch.inference_mode():
        for row, example in enumerate(live):
            stored = cache[[row]]
            image = vision_tower(example["pixel_values"][None]).pooler_output
            texts = {name: example[name][None] for name in ("input_ids", "attention_mask", "token_type_ids")}
            assert torch.equal(image, stored["image_embeds"])
            assert torch.equal(text_tower(**texts).pooler_output, stored["text_embeds"])
            assert torch.equal(example["words"], stored["words"][0])
            assert torch.equal(example["sentences"], stored["sentences"][0])


def test_files_are_read_as_their_column_says(files, vision_tower):
    processor = vision_tower.processor
    for mode in ("L", "RGB"):
        live = LivePairs(table(files, mode), processor)
        for row, path in enumerate(files):
            image = read_image(path, mode=mode, min_size=3 * 32)
            expected = processor(images=[image], return_tensors="pt")["pixel_values"][0]
            assert torch.equal(live[row]["pixel_values"], expected)
    colour = [LivePairs(table(files, mode), processor)[1]["pixel_values"] for mode in ("L", "RGB")]
    assert (colour[1] - colour[0]).abs().max() > 0.5
    # What a checkpoint's processor says of its own images does not count here.
    processor.image_mode = "L"
    assert torch.equal(LivePairs(table(files, "RGB"), processor)[1]["pixel_values"], colour[1])
    assert processor.image_mode == "L"


def test_views_and_image_are_those_of_their_seeds(files, vision_tower):
    processor, pairs = vision_tower.processor, table(files)
    options = {"recipe": "mgca", "view_recipe": "lovt", "views": 2, "seed": 5}
    live = LivePairs(pairs, processor, **options)
    live.set_epoch(3)
    as_they_are = {"do_pad_to_square": False, "do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    example, image = live[2], read_image(files[2])

    def pixels(recipe, what):
        view, geometry = make_view(image, recipe, draw_seed(5, 3, 2, what), view_size(processor))
        return processor(images=[view], **as_they_are)["pixel_values"][0], geometry

    assert torch.equal(example["pixel_values"], pixels("mgca", "image")[0])
    for number in range(2):
        view, geometry = pixels("lovt", f"view {number}")
        assert torch.equal(example["view_pixel_values"][number], view)
        np.testing.assert_array_equal(example["view_boxes"][number], geometry.box)
        np.testing.assert_allclose(example["view_maps"][number], geometry.matrix, rtol=1e-6)
    assert "view_maps" not in LivePairs(pairs, processor, views=1, view_recipe="pixelpro")[0]
    assert LivePairs(pairs, processor, views=1)[0]["view_pixel_values"].shape == (1, 3, 28, 28)


def test_seeds_differ_in_each_of_their_parts():
    whats = ["image", "text", *(f"view {number}" for number in range(12))]
    seeds = {draw_seed(*key, what) for what in whats for key in np.ndindex(4, 13, 13)}
    assert len(seeds) == len(whats) * 4 * 13 * 13
    assert min(seeds) >= 0
    assert max(seeds) < 1 << 63


def augmented(files, vision_tower, text_tower, **options) -> LivePairs:
    options = {"recipe": "slip", "views": 2, "view_recipe": "medclip", "sentence_recipe": "lovt", "seed": 1} | options
    return LivePairs(table(files), vision_tower.processor, text_tower.processor, **options)


def epoch_of(live: LivePairs, loader: DataLoader, epoch: int) -> list[dict[str, torch.Tensor]]:
    live.set_epoch(epoch)
    return [{name: values.clone() for name, values in batch.items()} for batch in loader]


@pytest.mark.parametrize(
    ("workers", "context", "persistent"),
    [
        (1, "fork", False),
        (4, "fork", True),
        pytest.param(2, "spawn", True, marks=pytest.mark.slow),
        pytest.param(1, "forkserver", False, marks=pytest.mark.slow),
    ],
)
def test_batches_are_the_same_with_any_workers(files, vision_tower, text_tower, workers, context, persistent):
    pad = PairCollator(text_tower.processor.pad)
    live = augmented(files, vision_tower, text_tower)
    alone = [epoch_of(live, DataLoader(live, 2, collate_fn=pad), epoch) for epoch in (0, 1)]
    other = augmented(files, vision_tower, text_tower)
    loader = DataLoader(
        other, 2, collate_fn=pad, num_workers=workers, multiprocessing_context=context, persistent_workers=persistent
    )
    random.seed(4)
    torch.manual_seed(4)
    for epoch in (0, 1):
        for one, two in zip(alone[epoch], epoch_of(other, loader, epoch), strict=True):
            assert_same(one, two)
    for name in ("pixel_values", "view_pixel_values"):
        assert not torch.equal(alone[0][0][name], alone[1][0][name])
        assert torch.equal(epoch_of(live, DataLoader(live, 2, collate_fn=pad), 0)[0][name], alone[0][0][name])


def test_reading_moves_no_random_numbers_of_the_caller(files, vision_tower, text_tower):
    live = augmented(files, vision_tower, text_tower)
    state, python = torch.get_rng_state(), random.getstate()
    first = live[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    torch.manual_seed(99)
    random.seed(99)
    assert_same(live[1], first)
    copy = pickle.loads(pickle.dumps(live))
    assert_same(copy[1], first)


def test_a_row_is_the_same_on_whichever_rank_reads_it(files, vision_tower, text_tower):
    live = augmented(files, vision_tower, text_tower)
    live.set_epoch(2)
    rows = BatchSampler([3, 0, 5, 1, 4, 2], 1, drop_last=False)
    whole = [live[row] for row in range(len(live))]
    seen = []
    for rank in range(2):
        for batch in DataLoader(live, batch_sampler=BatchSamplerShard(rows, 2, rank), collate_fn=list):
            (example,) = batch
            assert_same(example, whole[example["row"]])
            seen.append(example["row"])
    assert sorted(seen) == list(range(len(files)))


class Seen:
    """A collator that notes each batch's rows and pixels."""

    def __init__(self, pad):
        self.collator, self.batches = PairCollator(pad), []

    def __call__(self, examples):
        batch = self.collator(examples)
        digest = hashlib.sha256(batch["pixel_values"].numpy().tobytes() + batch["input_ids"].numpy().tobytes())
        self.batches.append((tuple(batch["row"].tolist()), digest.hexdigest()))
        return batch


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_a_run_that_goes_on_inside_an_epoch_reads_what_it_would_have_read(files, vision_tower, text_tower, tmp_path):
    def run(name, resume=None, callbacks=()):
        torch.manual_seed(0)
        small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        collator = Seen(text_tower.processor.pad)
        options = {"num_train_epochs": 3, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
        trainer = AdaptorTrainer(
            AdaptorModel.from_towers(vision_tower, text_tower, **small),
            AdaptorTrainingArguments(
                str(tmp_path / name), use_cpu=True, global_batch_size=2, load_best_model_at_end=False, **options
            ),
            train_dataset=augmented(files, vision_tower, text_tower, views=0),
            data_collator=collator,
            callbacks=list(callbacks),
        )
        trainer.train(resume_from_checkpoint=resume)
        return collator.batches, {name: value.clone() for name, value in trainer.model.state_dict().items()}

    whole, weights = run("whole")
    assert len(whole) == len(set(whole)) == 9
    rows_of_epochs = [sorted(row for rows, _ in whole[start : start + 3] for row in rows) for start in (0, 3, 6)]
    assert rows_of_epochs == [list(range(6))] * 3
    # A batch is read ahead, so one more than the steps taken.
    first, _ = run("part", callbacks=[StopAt(4)])
    assert first[:4] == whole[:4]
    rest, resumed = run("part", resume=True)
    assert rest == whole[4:]
    assert_same(weights, resumed)


def test_a_damaged_file_is_named_by_its_row_and_never_by_its_path(files, vision_tower, tmp_path):
    broken = tmp_path / "secret-name.png"
    broken.write_bytes(Path(files[0]).read_bytes()[:90])
    empty = tmp_path / "secret-empty.dcm"
    empty.write_bytes(b"")
    where = files[-1].replace("in.png@", "secret-member.png@")
    cases = {
        str(broken): (ValueError, "cannot be decoded"),
        str(empty): (ValueError, "the file is empty"),
        str(tmp_path / "secret-missing.png"): (OSError, "No such file or directory"),
        where.replace("images.zip", "secret.zip"): (OSError, "No such file or directory"),
        f"{files[-1].rpartition('@')[0]}@3+40": (ValueError, "the file"),
    }
    pairs = table([files[0], *cases], source_row=[10 * row for row in range(1 + len(cases))])
    live = LivePairs(pairs, vision_tower.processor, recipe="crop")
    for row, (kind, message) in enumerate(cases.values(), 1):
        with pytest.raises(kind, match=rf"row {row} of the live pairs \(row {10 * row} of their source\)") as failed:
            live[row]
        # A worker sends it with its traceback and the errors that it came from.
        said = "".join(traceback.format_exception(failed.value))
        assert message in said
        assert "secret" not in said
        assert ".zip" not in said


def test_rows_without_image_or_text_are_named(files, vision_tower, text_tower):
    pairs = datasets.Dataset.from_dict(
        {"image": [{"path": files[0], "bytes": None}, {"path": None, "bytes": None}, None], "text": [None, "a", "b"]}
    ).cast_column("image", RadiographImage())
    live = LivePairs(pairs, vision_tower.processor, text_tower.processor)
    with pytest.raises(ValueError, match="Row 0 of the live pairs has no text"):
        live[0]
    for row in (1, 2, -1):
        with pytest.raises(ValueError, match=f"Row {row % 3} of the live pairs has no image"):
            live[row]
    with pytest.raises(IndexError):
        live[3]


def test_texts_are_cut_and_keep_their_special_tokens(files, text_tower):
    tokenizer = text_tower.processor
    for length in (3, 6, 9, 500):
        live = LivePairs(table(files), tokenizer=tokenizer, max_length=length)
        assert live.max_length == min(length, tokenizer.model_max_length)
        for row in range(len(files)):
            ids = live[row]["input_ids"]
            whole = tokenizer(table(files)["text"][row])["input_ids"]
            assert ids[0] == tokenizer.cls_token_id
            assert ids[-1] == tokenizer.sep_token_id
            assert len(ids) == min(length, len(whole))
            assert ids[:-1].tolist() == whole[: len(ids) - 1]
            assert live[row]["attention_mask"].tolist() == [1] * len(ids)
    assert LivePairs(table(files), tokenizer=tokenizer).max_length == 128


def test_columns_stand_beside(files, text_tower):
    embeds = np.arange(12, dtype=np.float16).reshape(6, 2)
    live = LivePairs(
        table(files), tokenizer=text_tower.processor, columns={"image_embeds": embeds, "study": torch.arange(6) * 3}
    )
    batch = PairCollator(text_tower.processor.pad)([live[row] for row in (4, 1)])
    assert batch["row"].tolist() == [4, 1]
    assert batch["study"].tolist() == [12, 3]
    assert torch.equal(batch["image_embeds"], torch.tensor([[8.0, 9], [2, 3]], dtype=torch.float16))
    assert LivePairs(table(files), tokenizer=text_tower.processor, columns={"row": [7] * 6})[2]["row"] == 7


def test_spans_of_a_batch_are_filled_up(files, text_tower):
    live = LivePairs(table(files), tokenizer=text_tower.processor, spans=("words", "sentences"))
    examples = [live[row] | {"image_embeds": np.zeros(2, np.float32)} for row in range(4)]
    batch = PairCollator(text_tower.processor.pad)(examples)
    for name in ("words", "sentences"):
        counts = [len(example[name]) for example in examples]
        assert len(set(counts)) > 1
        assert batch[name].shape == (4, max(counts), 2)
        assert batch[name].dtype == torch.int64
        assert ((batch[name] >= 0).all(dim=2).sum(dim=1) == torch.tensor(counts)).all()
        assert (batch[name][torch.arange(max(counts)) >= torch.tensor(counts)[:, None]] == -1).all()


def test_what_does_not_go_together_is_refused(files, vision_tower, text_tower):
    pairs, processor, tokenizer = table(files), vision_tower.processor, text_tower.processor
    for options, message in [
        ({}, "without image_processor and tokenizer reads nothing"),
        ({"tokenizer": tokenizer, "views": 2}, "views=2 .* need an image_processor"),
        ({"tokenizer": tokenizer, "recipe": "crop"}, "recipe='crop' need an image_processor"),
        ({"image_processor": processor, "views": -1}, "0 views or more"),
        ({"image_processor": processor, "recipe": "crops"}, "recipe must be one of crop, mgca"),
        ({"tokenizer": tokenizer, "sentence_recipe": "slip"}, "sentence_recipe must be one of convirt, gloria"),
        ({"image_processor": processor, "sentence_recipe": "lovt"}, "need a tokenizer"),
        ({"image_processor": processor, "spans": ["words"]}, "need a tokenizer"),
        ({"tokenizer": tokenizer, "spans": "words"}, "spans are some of words, sentences"),
        ({"tokenizer": tokenizer, "columns": {"input_ids": [0] * 6}}, "makes input_ids itself"),
        ({"tokenizer": tokenizer, "columns": {"study": [0] * 5}}, "study has 5 rows, and the pairs have 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            LivePairs(pairs, **options)


def drawn(sentences, recipe, count=400):
    return [augmented_text(sentences, recipe, torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize("recipe", ["convirt", "gloria"])
def test_one_sentence_is_as_likely_as_another(recipe):
    sentences = ["one.", "two.", "three.", "four."]
    counts = Counter(drawn(sentences, recipe))
    assert set(counts) == set(sentences)
    assert min(counts.values()) > 70
    assert drawn(["alone."], recipe, 3) == ["alone."] * 3


def test_medclip_takes_one_sentence_of_more_than_four_words():
    sentences = [
        "no pleural effusion.",
        "the heart is enlarged.",
        "small effusion on the left side",
        "four words of it",
    ]
    # The second one has four words and a full stop.
    assert set(drawn(sentences, "medclip", 60)) == {sentences[1], sentences[2]}
    assert set(drawn(["short one.", "another."], "medclip", 60)) == {"short one.", "another."}


def test_lovt_swaps_sentences_a_geometric_number_of_times():
    sentences = [f"s{number}." for number in range(50)]
    moved = [sum(a != b for a, b in zip(text.split(), sentences, strict=True)) for text in drawn(sentences, "lovt")]
    assert all(sorted(text.split()) == sorted(sentences) for text in drawn(sentences, "lovt", 20))
    # With 50 sentences hardly two swaps meet: a swap moves two of them, in 49 of 50 cases.
    swaps = np.array(moved) / 2
    expected = torch.distributions.Geometric(probs=0.4)
    assert swaps.mean() == pytest.approx(expected.mean.item() * 49 / 50, abs=0.25)
    assert (swaps == 0).mean() == pytest.approx(0.4 + 0.6 * 0.4 / 50, abs=0.07)
    assert (swaps >= 4).mean() == pytest.approx(0.6**4, abs=0.06)
    assert (swaps >= 4).any()


@pytest.mark.parametrize("recipe", SENTENCE_RECIPES)
def test_texts_are_drawn_of_their_sentences(files, text_tower, recipe):
    tokenizer, texts = text_tower.processor, table(files)["text"]
    live = LivePairs(table(files), tokenizer=tokenizer, sentence_recipe=recipe, seed=2)
    seen = [set(), set()]
    for epoch in range(12):
        live.set_epoch(epoch)
        for number, row in enumerate((0, 3)):
            ids = live[row]["input_ids"]
            assert torch.equal(ids, live[row]["input_ids"])
            seen[number].add(tokenizer.decode(ids, skip_special_tokens=True))
    for row, found in zip((0, 3), seen, strict=True):
        known = tokenizer.decode(tokenizer(texts[row])["input_ids"], skip_special_tokens=True)
        assert len(found) > 1 or recipe == "medclip"
        if recipe == "lovt":
            assert all(sorted(text.split()) == sorted(known.split()) for text in found)
        else:
            assert all(text in known and len(text) < len(known) for text in found)
    # Sentences of the table come first.
    own = [["large effusion in the left lung"]] + [None] * 5
    live = LivePairs(table(files, sentences=own), tokenizer=tokenizer, sentence_recipe=recipe)
    assert tokenizer.decode(live[0]["input_ids"], skip_special_tokens=True) == own[0][0]
    assert live[2]["input_ids"].shape == live[2]["attention_mask"].shape


def test_every_recipe_gives_images_and_views(files, vision_tower):
    for name in RECIPES:
        example = LivePairs(table(files), vision_tower.processor, recipe=name, view_recipe=name, views=2)[4]
        assert example["pixel_values"].shape == (3, 28, 28)
        assert torch.isfinite(example["view_pixel_values"]).all()
        assert not torch.equal(*example["view_pixel_values"])


@pytest.mark.slow
@pytest.mark.parametrize(("trainable", "rate"), [("full", 2e-3), ("lora", 3e-3)])
def test_64_phantom_pairs_are_learned_by_heart(tiny_dinov2, tiny_bert, tmp_path, trainable, rate):
    pairs = load_pairs(write_phantoms(tmp_path / "phantoms", 64, image_size=64))
    vision, text = load_vision_tower(str(tiny_dinov2)), load_text_tower(str(tiny_bert))
    with torch.no_grad():
        for parameter in (*vision.parameters(), *text.parameters()):
            if parameter.ndim > 1:
                # With their first weights all images are nearly one vector, and so are all texts.
                parameter.mul_(10)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AdaptorModel.from_towers(vision, text, **small, **dropout)
    model.set_trainable_towers(vision_model=trainable, text_model=trainable)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    live = LivePairs(pairs, vision.processor, text.processor, max_length=64)
    trainer = AdaptorTrainer(
        model,
        AdaptorTrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            disable_tqdm=True,
            global_batch_size=64,
            num_train_epochs=70,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            save_strategy="no",
            eval_strategy="no",
            load_best_model_at_end=False,
        ),
        train_dataset=live,
        eval_dataset=live,
        processing_class=text.processor,
    )
    before, after = trainer.evaluate(), trainer.train() and trainer.evaluate()
    for name in ("eval_image_to_text_recall@1", "eval_text_to_image_recall@1"):
        # Chance is 1 of 64.
        assert before[name] < 0.1
        assert after[name] > 0.9


@pytest.mark.slow
def test_two_processes_read_the_rows_of_one(files, tiny_dinov2, tiny_bert, tmp_path):
    worker = [str(Path(__file__).parent / "live_rows_worker.py"), str(tiny_dinov2), str(tiny_bert), str(tmp_path)]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start in ([], two):
        subprocess.run([sys.executable, *start, *worker, *files, files[0], files[1]], check=True, timeout=250)
    (alone,) = [json.loads(path.read_text()) for path in tmp_path.glob("*-of-1.json")]
    ranks = [json.loads(path.read_text()) for path in tmp_path.glob("*-of-2.json")]
    assert len(ranks) == 2
    assert sorted(alone) == sorted(ranks[0] + ranks[1])
    # Two epochs of 8 rows, each drawn anew.
    assert len({digest for _, _, digest in alone}) == len(alone) == 16
