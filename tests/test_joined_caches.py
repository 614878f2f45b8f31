"""Several caches of one key as one: the same batches as one build of all rows gives, and no copied vector."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.two_tables import write_table
from synthetic import synthetic_cache
from torch.utils.data import DataLoader

from adaptor_hf.data.duplicates import without_copies
from adaptor_hf.data.pair_arguments import DataArguments
from adaptor_hf.embeddings import build_cache, join_caches, open_cache
from adaptor_hf.embeddings.joined import JoinedCache
from adaptor_hf.privacy.mode import private_mode
from adaptor_hf.training.base_trainer import keep_batch
from adaptor_hf.training.pairs import load_training_pairs

NAMES = ["pairs", "pairs_2"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return [str(write_table(folder / name, rows, seed)) for name, rows, seed in (("a", 40, 1), ("b", 24, 2))]


@pytest.fixture(scope="module")
def caches(tables, vision_tower, text_tower, tmp_path_factory):
    """One cache a table, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("caches")
    return [
        build_cache(
            load_training_pairs(DataArguments(train_file=table)).dataset, vision_tower, text_tower,
            folder / name, max_text_length=16,
        )
        for name, table in zip(("first", "second"), tables, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tables, vision_tower, text_tower, tmp_path_factory):
    """Both tables in one build."""
    pairs = load_training_pairs(DataArguments(train_file=tables)).dataset
    return build_cache(pairs, vision_tower, text_tower, tmp_path_factory.mktemp("whole"), max_text_length=16)


def partition(values) -> list[int]:
    """First place of each value: equal for codes that call the same rows equal."""
    return np.unique(np.asarray(values), return_index=True, return_inverse=True)[1][
        np.unique(np.asarray(values), return_inverse=True)[1]
    ].tolist()


def test_batches_are_those_of_one_build(caches, whole):
    joined = join_caches(caches, NAMES)
    assert (len(joined), joined.sources, joined.splits) == (len(whole), whole.sources, whole.splits)
    assert joined.column_names == whole.column_names
    order = np.random.default_rng(0).permutation(len(whole))
    for rows in (order[:17], order, np.arange(40), np.arange(40, 64), []):
        mine, theirs = joined[rows], whole[rows]
        assert mine.keys() == theirs.keys()
        for name in ("image_embeds", "text_embeds"):
            assert mine[name].dtype == theirs[name].dtype
            # Batches of a tower differ in what they are padded to.
            cosine = torch.nn.functional.cosine_similarity(mine[name].float(), theirs[name].float())
            assert (cosine > 1 - 1e-5).all()
        assert mine["source"].tolist() == theirs["source"].tolist()
        assert mine["row"].tolist() == theirs["row"].tolist()
        for name in ("text_row", "study"):
            assert partition(mine[name]) == partition(theirs[name])
    for column in ("image_id", "patient_id", "study_id", "split", "source", "source_row"):
        assert joined.pairs[column][:] == whole.pairs[column][:]
    assert (joined.image_digests() == whole.image_digests()).all()
    assert (joined.text_digests() == whole.text_digests()).all()
    assert joined.num_texts == whole.num_texts
    assert joined.num_bytes == whole.num_bytes


def test_the_vectors_are_those_of_the_caches_bit_for_bit(caches):
    joined = join_caches(caches)
    assert list(joined.sources) == ["first", "second"]
    for cache, name in zip(caches, joined.sources, strict=True):
        part = joined.source(name)
        assert torch.equal(part.image_embeddings(), cache.image_embeddings())
        # Equal texts are one row: that of the first cache, whose batch may have been padded otherwise.
        assert torch.allclose(part.text_embeddings().float(), cache.text_embeddings().float(), atol=2e-3)
    assert torch.equal(joined.source("first").text_embeddings(), caches[0].text_embeddings())


def test_nothing_is_written(caches, tmp_path):
    before = sorted(path for cache in caches for path in cache.path.parent.rglob("*"))
    joined = join_caches(caches)
    joined[np.arange(len(joined))]
    assert sorted(path for cache in caches for path in cache.path.parent.rglob("*")) == before


def test_views_pickles_workers_and_devices(caches):
    joined = join_caches(caches)
    train = joined.split("train").paired()
    assert isinstance(train, JoinedCache)
    assert train.source_codes.tolist() == train[:]["source"].tolist()
    again = pickle.loads(pickle.dumps(train))
    assert again[:]["row"].tolist() == train[:]["row"].tolist()
    assert again.sources == train.sources
    loader = DataLoader(train, batch_size=8, num_workers=1, collate_fn=keep_batch)
    loaded = torch.cat([batch["image_embeds"] for batch in loader])
    assert torch.equal(loaded, train[:]["image_embeds"])
    resident = train.to_device("cpu")
    assert torch.equal(resident[list(range(len(train)))]["text_embeds"], train[:]["text_embeds"])
    assert resident.source_names == train.source_names


def test_one_namespace_makes_equal_ids_one_patient(caches):
    assert len(set(join_caches(caches).pairs["patient_id"][:])) == 20 + 12
    joined = join_caches(caches, one_namespace=True)
    assert len(set(joined.pairs["patient_id"][:])) == 20
    assert len(np.unique(joined[:]["study"].numpy())) == 20


def test_a_cache_of_several_sources_keeps_them(whole, caches):
    joined = join_caches([whole, caches[0]])
    assert list(joined.sources) == ["pairs", "pairs_2", "first"]
    assert set(joined.pairs["patient_id"][:40]) == set(whole.pairs["patient_id"][:40])
    # The images of the last one stand in the first one, in the same splits.
    assert (joined.image_rows[:40] == joined.image_rows[64:]).all()
    assert without_copies(joined) is joined
    with pytest.raises(ValueError, match="cache 1 holds several sources"):
        join_caches([whole, caches[0]], one_namespace=True)


def test_sources_of_one_name_in_two_caches_stay_apart(tables, whole, vision_tower, text_tower, tmp_path):
    table = write_table(tmp_path / "c", 24, 3)
    pairs = load_training_pairs(DataArguments(train_file=[str(table), tables[1]])).dataset
    other = build_cache(pairs, vision_tower, text_tower, tmp_path / "cache", max_text_length=16)
    joined = join_caches([whole, other])
    assert joined.sources == {"pairs": 40, "pairs_2": 24, "pairs_3": 24, "pairs_2_2": 24}
    assert len(set(joined.pairs["patient_id"][:])) == 20 + 12 + 12 + 12
    assert joined.source("pairs_3").pairs["patient_id"][0] == "pairs_3/0"
    with private_mode(b"k" * 32):
        assert len(set(join_caches([whole, other]).pairs["patient_id"][:])) == 20 + 12 + 12 + 12


def test_a_copy_in_another_split_of_another_cache_is_found(tables, caches, vision_tower, text_tower, tmp_path):
    held = [row for row, split in enumerate(caches[0].pairs["split"][:]) if split == "test"][:2]
    copies = {row: Path(tables[0]).parent / f"{held[row % 2]}.png" for row in range(24)}
    pairs = load_training_pairs(DataArguments(train_file=str(write_table(tmp_path / "c", 24, 3, copies=copies))))
    other = build_cache(pairs.dataset, vision_tower, text_tower, tmp_path / "cache", max_text_length=16)
    with pytest.raises(ValueError, match=r"2 of them in more than one source"):
        without_copies(join_caches([caches[0], other]))


def test_other_embeddings_are_refused_naming_what_differs(caches, tables, vision_tower, text_tower, tmp_path):
    pairs = load_training_pairs(DataArguments(train_file=tables[1])).dataset
    shorter = build_cache(pairs, vision_tower, text_tower, tmp_path / "short", max_text_length=8)
    with pytest.raises(ValueError, match=r"1 and 2 hold other embeddings of texts: max_text_length \(16 and 8\)"):
        join_caches([caches[0], shorter])
    exact = build_cache(pairs, vision_tower, text_tower, tmp_path / "exact", max_text_length=16, dtype="float32")
    with pytest.raises(ValueError, match=r"of images: dtype \(float16 and float32\)"):
        join_caches([caches[0], exact])
    with pytest.raises(ValueError, match=r"of images: .*weights"):
        join_caches([caches[0], synthetic_cache(tmp_path / "other")])
    with pytest.raises(ValueError, match="names one cache twice"):
        join_caches([caches[0], open_cache(caches[0].path)])
    assert join_caches(caches[:1]) is caches[0]


def test_columns_beside_the_vectors_are_those_of_the_caches(tables, vision_tower, text_tower, tmp_path):
    caches = [
        build_cache(
            load_training_pairs(DataArguments(train_file=table)).dataset, vision_tower, text_tower,
            tmp_path / str(number), max_text_length=16, image_tokens=2, text_tokens=True,
        )
        for number, table in enumerate(tables)
    ]  # fmt: skip
    joined = join_caches(caches, NAMES).with_columns("image_tokens", "text_tokens")
    assert joined.stored_columns == caches[0].stored_columns
    for name, cache in zip(NAMES, caches, strict=True):
        mine, theirs = joined.source(name)[:], cache.with_columns("image_tokens", "text_tokens")[:]
        assert torch.equal(mine["image_tokens"], theirs["image_tokens"])
        kept = theirs["text_attention_mask"] == 1
        assert torch.equal(mine["text_attention_mask"][:, : kept.shape[1]], theirs["text_attention_mask"])
        # Of equal texts the first cache's, whose batch may have been padded otherwise.
        tokens = mine["text_tokens"][:, : kept.shape[1]]
        assert torch.allclose(tokens[kept].float(), theirs["text_tokens"][kept].float(), atol=1e-2)
    both = joined[[0, 50, 3]]
    assert both["source"].tolist() == [0, 1, 0]
    assert torch.equal(both["image_tokens"][1], joined.source(NAMES[1])[10]["image_tokens"])
    again = pickle.loads(pickle.dumps(joined))
    assert torch.equal(again[[50]]["image_tokens"], both["image_tokens"][1:2])


def test_columns_that_not_all_caches_have_are_left_out_and_said(tables, caches, vision_tower, text_tower, tmp_path):
    pairs = load_training_pairs(DataArguments(train_file=tables[1])).dataset
    asked = {"image_tokens": 2, "regions": (1, 2), "views": 1, "sentences": True}
    kept, other = (
        build_cache(pairs, vision_tower, text_tower, tmp_path / name, max_text_length=16, **asked | changed)
        for name, changed in (("kept", {}), ("other", {"image_tokens": 1, "view_recipe": "slip"}))
    )
    assert join_caches([caches[0], kept]).stored_columns == {}
    joined = join_caches([kept, other])
    assert list(joined.stored_columns) == ["regions", "sentences"]
    batch = joined.with_columns("regions")[:]
    assert torch.equal(batch["regions"][:24], kept.with_columns("regions")[:]["regions"])
    assert torch.equal(joined.image_embeddings()[:24], kept.image_embeddings())
    with pytest.raises(ValueError, match=r"caches 1 and 2 do not keep the same image_tokens: .*tokens \(2 and 1\)"):
        joined.with_columns("image_tokens")
    with pytest.raises(ValueError, match=r"same view_embeds: .*view_recipe\. Build both"):
        joined.with_columns("view_embeds")
    with pytest.raises(ValueError, match=r"caches 2 and 1 do not keep the same sentences: sentences \(True and none\)"):
        join_caches([caches[0], kept]).with_columns("sentences")
    with pytest.raises(ValueError, match=r"has no words: it keeps regions, sentences. Build it again with --words"):
        joined.with_columns("words")
