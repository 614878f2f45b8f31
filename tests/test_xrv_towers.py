"""torchxrayvision's classifiers as towers: pickles are read without running them, features are torchxrayvision's."""

import collections
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from adaptor_hf import pickled_modules_adaptor, xrv_towers_adaptor
from adaptor_hf.pickled_modules_adaptor import read_pickled_weights
from adaptor_hf.tasks.provenance import tower_saw
from adaptor_hf.towers import TOWER_PRESETS, list_towers, load_vision_tower
from adaptor_hf.towers.bundle import bundle_towers
from adaptor_hf.towers.check import check_tower, is_on_this_machine
from adaptor_hf.towers.xrv_presets import TRAINED_ON
from adaptor_hf.xrv_towers_adaptor import RELEASE, XRV_CLASSIFIERS

DENSE, RES = "densenet121-res224-all", "resnet50-res512-all"


def with_statistics(network: nn.Module) -> nn.Module:
    """Batch statistics and norms as training leaves them: no layer is near the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def densenet():
    from torchxrayvision.models import DenseNet

    torch.manual_seed(0)
    return with_statistics(DenseNet())


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """torchxrayvision's ResNet, of a file with random weights, and the folder of that file."""
    import torchvision
    from torchxrayvision.models import ResNet

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("resnet")
    network = torchvision.models.resnet50(num_classes=18)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(with_statistics(network).state_dict(), folder / XRV_CLASSIFIERS[RES].file)
    return ResNet(weights=RES, cache_dir=str(folder)), folder


def put(content, folder: Path, name: str = DENSE, **options) -> Path:
    """Saves what stands for the published file of a classifier; its place."""
    file = folder / XRV_CLASSIFIERS[name].file
    torch.save(content, file, **options)
    return file


def images(side: int, count: int = 1) -> torch.Tensor:
    return (torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1) * 1024


LAYOUTS = {"archive": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["whole", "state", "checkpoint"])
def test_every_layout_of_torch_gives_the_weights(densenet, tmp_path, layout, what):
    content = {"whole": densenet, "state": densenet.state_dict(), "checkpoint": {"state_dict": densenet.state_dict()}}
    file = put(content[what], tmp_path, **LAYOUTS[layout])
    read = read_pickled_weights(file)
    expected = densenet.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in expected.items())


def test_a_densenet_gives_torchxrayvisions_features(densenet, tmp_path):
    put(densenet, tmp_path, **LAYOUTS["legacy"])
    tower = load_vision_tower(f"xrv:{DENSE}", cache_dir=tmp_path)
    pixels = images(224, 2)
    output = tower(pixels)
    with torch.no_grad():
        expected, tokens = densenet.features2(pixels), densenet.features(pixels).relu()
    assert output.last_hidden_state.shape == (2, 49, 1024)
    assert torch.allclose(output.pooler_output, expected, rtol=1e-5, atol=1e-3)
    assert torch.allclose(output.last_hidden_state, tokens.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-3)
    assert expected.std() > 1
    spec = tower.spec
    assert (spec["name_or_path"], spec["library"], spec["preset"]) == (f"xrv:{DENSE}", "timm", None)
    assert (spec["hidden_size"], spec["grid_shape"], spec["pooling"]) == (1024, [7, 7], "mean")
    assert spec["pretraining_data"] == TRAINED_ON[DENSE]
    assert spec["license"] == "apache-2.0"
    assert not any(key.startswith("model.timm_model.classifier") for key in tower.state_dict())


def test_a_resnet_gives_torchxrayvisions_features(resnet):
    network, folder = resnet
    tower = load_vision_tower(RES, cache_dir=folder)
    pixels = images(512)
    output = tower(pixels)
    with torch.no_grad():
        expected = network.features(pixels)
    assert output.last_hidden_state.shape == (1, 256, 2048)
    assert torch.allclose(output.pooler_output, expected, rtol=1e-4, atol=1e-4)
    assert tower.spec["preset"] == RES
    assert tower.spec["grid_shape"] == [16, 16]
    assert tower.processor.crop_size.height == 512
    third = load_vision_tower(RES, cache_dir=folder, layers=[3])(images(64))
    with torch.no_grad():
        stem = network.model.maxpool(network.model.bn1(network.model.conv1(images(64))).relu())
        expected = network.model.layer3(network.model.layer2(network.model.layer1(stem)))
    assert torch.allclose(third.last_hidden_state, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_torchxrayvisions_own_resnet_object_is_read_too(resnet, tmp_path):
    """Its weights stand under `model.`, beside its thresholds."""
    network, folder = resnet
    put(network, tmp_path, RES)
    theirs = xrv_towers_adaptor.classifier_weights(f"xrv:{RES}", {"cache_dir": tmp_path})
    ours = xrv_towers_adaptor.classifier_weights(f"xrv:{RES}", {"cache_dir": folder})
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize("name", [DENSE, RES])
def test_the_processor_gives_the_range_of_torchxrayvision(name, densenet, resnet, tmp_path):
    import torchxrayvision as xrv

    folder = resnet[1] if name == RES else put(densenet, tmp_path).parent
    side = XRV_CLASSIFIERS[name].size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 40), dtype=np.uint8)
    pixels[0, 20], pixels[0, 21] = 0, 255
    ours = load_vision_tower(f"xrv:{name}", cache_dir=folder).processor(Image.fromarray(pixels), return_tensors="pt")
    theirs = xrv.datasets.XRayCenterCrop()(xrv.utils.normalize(pixels, 255)[None])
    assert ours.pixel_values.shape == (1, 1, side, side)
    assert np.abs(ours.pixel_values[0].numpy() - theirs).max() < 1e-3
    assert (ours.pixel_values.min(), ours.pixel_values.max()) == (-1024, 1024)


def test_the_pickle_is_read_once(densenet, tmp_path, monkeypatch):
    file = put(densenet, tmp_path)
    first = load_vision_tower(DENSE, cache_dir=tmp_path)
    converted = file.with_suffix(".safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, converted.name])
    with safe_open(converted, framework="pt") as content:
        assert "classifier.weight" in content.keys()  # noqa: SIM118
    monkeypatch.setattr(xrv_towers_adaptor, "read_pickled_weights", None)
    again = load_vision_tower(DENSE, cache_dir=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    file.unlink()
    load_vision_tower(DENSE, cache_dir=tmp_path, local_files_only=True)


def test_another_file_in_its_place_is_read_anew(densenet, tmp_path):
    file = put(densenet.state_dict(), tmp_path)
    first = load_vision_tower(DENSE, cache_dir=tmp_path).state_dict()
    changed = {key: value + 1 if value.is_floating_point() else value for key, value in densenet.state_dict().items()}
    put(changed, tmp_path)
    os.utime(file, ns=(1, 1))
    assert not torch.equal(
        next(iter(load_vision_tower(DENSE, cache_dir=tmp_path).state_dict().values())), next(iter(first.values()))
    )
    file.with_suffix(".safetensors").write_bytes(b"damaged")
    load_vision_tower(DENSE, cache_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_no_fault(densenet, tmp_path, monkeypatch, caplog):
    put(densenet, tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(xrv_towers_adaptor.tempfile, "TemporaryDirectory", refuse)
    load_vision_tower(DENSE, cache_dir=tmp_path)
    assert "read again next time" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


# Hostile files


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    """A folder that hostile files try to make."""
    return tmp_path / "executed"


def poisoned(densenet, where: str, call: Call):
    """A network or state dict with a call in one of its places."""
    network = nn.Sequential(nn.Linear(2, 2))
    if where == "top":
        return call
    if where == "attribute":
        network.note = call
    elif where == "parameter":
        network[0]._parameters["weight"] = call
    elif where == "hook":
        network._forward_hooks = collections.OrderedDict({0: call})
    elif where == "metadata":
        state = network.state_dict()
        state._metadata = call
        return state
    elif where == "value":
        return {"weight": call}
    return network


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["top", "attribute", "parameter", "hook", "metadata", "value"])
@pytest.mark.parametrize("function", [os.mkdir, eval])
def test_nothing_in_a_hostile_file_is_run(marker, tmp_path, layout, where, function, densenet):
    argument = f"__import__('os').mkdir({str(marker)!r})" if function is eval else str(marker)
    file = put(poisoned(densenet, where, Call(function, argument)), tmp_path, **LAYOUTS[layout])
    named = "builtins.eval" if function is eval else r"(posix|nt)\.mkdir"
    with pytest.raises(ValueError, match=rf"{re.escape(file.name)} was not read: it names (__builtin__\.eval|{named})"):
        load_vision_tower(f"xrv:{DENSE}", cache_dir=tmp_path)
    assert not marker.exists()
    assert list(tmp_path.iterdir()) == [file]
    # The file is as hostile as it says.
    torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(Vtouch %s\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch /none\x85R.",
        b"ctorchxrayvision.models\nDenseNet.__init__.__globals__\n.",
        b"ctorch.nn.modules.module\n_x.y\n.",
        b"ctorch.hub\nload\n.",
        b"ctorch.serialization\nload\n.",
        b"cbuiltins\ngetattr\n.",
        b"ctorch.storage\n_load_from_bytes\n.",
        b"ctorchvision.models\nget_model\n.",
    ],
)
@pytest.mark.parametrize("as_archive", [False, True])
def test_other_ways_to_name_code_are_refused(tmp_path, code, as_archive):
    file = tmp_path / "x.pt"
    if as_archive:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", code)
    else:
        begin = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        file.write_bytes(b"".join([*begin, code]))
    with pytest.raises(ValueError, match=r"x\.pt was not read: it names \S+, which is no tensor"):
        read_pickled_weights(file)


def archive_with(file: Path, pickled: bytes, data: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, values in data.items():
            archive.writestr(f"x/data/{key}", values)
    return file


def pickled_tensor(count: int, size, stride, offset: int = 0) -> bytes:
    """The pickle of a state dict with one tensor, its shape as one likes."""

    class Rebuilt:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Stored(), offset, size, stride, False, collections.OrderedDict())

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, one):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(one, Stored) else None

    content = io.BytesIO()
    Pickler(content, 2).dump({"weight": Rebuilt()})
    return content.getvalue()


def test_a_tensor_lies_within_the_numbers_of_the_file(tmp_path):
    values = np.arange(6, dtype=np.float32).tobytes()
    file = archive_with(tmp_path / "x.pt", pickled_tensor(6, (2, 2), (1, 2), 1), {"0": values})
    assert read_pickled_weights(file)["weight"].tolist() == [[1, 3], [2, 4]]
    for shape in [
        ((3, 3), (3, 1)),
        ((2, 3), (3, 1), 1),
        ((1 << 40,), (0,)),
        ((2,), (-1,)),
        ((2,), (1,), -1),
        ((2, 2), (9,)),
    ]:
        file = archive_with(tmp_path / "x.pt", pickled_tensor(6, *shape), {"0": values})
        with pytest.raises(ValueError, match="a tensor"):
            read_pickled_weights(file)


def test_damaged_and_packed_files_say_so(densenet, tmp_path):
    whole = put(densenet.state_dict(), tmp_path, **LAYOUTS["legacy"]).read_bytes()
    for name, content in {
        "short": whole[:-100],
        "shorter": whole[:2000],
        "empty": b"",
        "text": b"<html>404</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{name} (was not read|is no whole file).*Download"):
            read_pickled_weights(tmp_path / name)
    pickled, values = pickled_tensor(6, (6,), (1,)), np.zeros(6, np.float32).tobytes()
    file = archive_with(tmp_path / "x.pt", pickled, {"0": values}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="packed"):
        read_pickled_weights(file)


def test_a_network_that_contains_itself_is_refused(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2))
    network._modules["again"] = network
    torch.save(network, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"the part 'again' of its network"):
        read_pickled_weights(tmp_path / "x.pt")


def test_what_a_network_does_not_keep_is_left_out(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer("scratch", torch.zeros(3), persistent=False)
    network.register_parameter("none", None)
    network.labels, network.dtype = np.array(["a", "b"]), torch.float16
    network.shape, network.seen = torch.Size([2]), np.float64(2)
    for layout in LAYOUTS.values():
        torch.save(network, tmp_path / "x.pt", **layout)
        read = read_pickled_weights(tmp_path / "x.pt")
        assert read.keys() == network.state_dict().keys()
        assert all(torch.equal(read[key], value) for key, value in network.state_dict().items())


def test_other_weights_are_named(densenet, tmp_path):
    state = densenet.state_dict()
    state["extra"] = state.pop("features.conv0.weight")
    state["classifier.weight"] = torch.zeros(5, 1024)
    file = put(state, tmp_path)
    with pytest.raises(ValueError, match=r"1 missing: features\.conv0.*1 unexpected: extra.*1 of another shape: class"):
        load_vision_tower(DENSE, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [file]


# Names, files, bundles


def test_the_names_and_files_are_those_of_torchxrayvision():
    from torchxrayvision.models import model_urls

    theirs = {name: facts for name, facts in model_urls.items() if name.startswith(("densenet", "resnet"))}
    assert theirs.keys() == XRV_CLASSIFIERS.keys() == TRAINED_ON.keys()
    for name, facts in theirs.items():
        known = XRV_CLASSIFIERS[name]
        assert facts["weights_url"] == RELEASE + known.file
        assert facts["input_resolution"] == known.size
        assert len(facts["labels"]) == xrv_towers_adaptor.NUM_CLASSES


def test_presets_state_what_they_were_trained_on():
    rows = {row["name"]: row for row in list_towers("vision")}
    for name, data in TRAINED_ON.items():
        assert rows[name]["pretraining_data"] == data
        assert rows[name]["commercial"] == "unclear"
        assert all(known.split()[0] in rows[name]["data_terms"] for known in data)


def test_an_absent_file_is_named_with_the_way_to_get_it(tmp_path):
    for name, known in XRV_CLASSIFIERS.items():
        with pytest.raises(OSError, match=r"towers bundle xrv:\S+ --to towers") as raised:
            load_vision_tower(f"xrv:{name}", cache_dir=tmp_path, local_files_only=True)
        assert f"download {RELEASE}{known.file} there and copy it to {tmp_path / known.file}" in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_a_name_is_checked_before_anything_long(tmp_path, monkeypatch, densenet):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"Did you mean xrv:densenet121-res224-all"):
        check_tower("vision", "xrv:densenet121-res224-al")
    with pytest.raises(ValueError, match=r"Did you mean xrv:densenet121-res224-all"):
        load_vision_tower("xrv:densenet121-res224-al")
    with pytest.raises(OSError, match="is not on this machine"):
        check_tower("vision", DENSE)
    assert not is_on_this_machine("vision", f"xrv:{DENSE}")
    folder = tmp_path / ".torchxrayvision" / "models_data"
    folder.mkdir(parents=True)
    put(densenet.state_dict(), folder)
    check_tower("vision", DENSE)
    assert is_on_this_machine("vision", f"xrv:{DENSE}")
    assert load_vision_tower(DENSE).hidden_size == 1024


@pytest.mark.slow
def test_a_bundle_has_the_classifier_and_its_last_layer(densenet, tmp_path, monkeypatch):
    import timm

    file = put(densenet, tmp_path)
    monkeypatch.setattr(xrv_towers_adaptor, "xrv_file", lambda *_: file)
    monkeypatch.setattr(xrv_towers_adaptor, "_cache_folder", lambda _: tmp_path)
    bundle_towers([f"xrv:{DENSE}"], tmp_path / "bundle")
    monkeypatch.undo()
    pixels = images(64, 2)
    with torch.no_grad():
        expected = densenet.features2(pixels)
    folder = tmp_path / "bundle" / DENSE
    for name, options in ((DENSE, {"towers_dir": tmp_path / "bundle"}), (str(folder), {})):
        tower = load_vision_tower(name, local_files_only=True, **options)
        assert torch.allclose(tower(pixels).pooler_output, expected, rtol=1e-5, atol=1e-3)
        assert tower.spec["pretraining_data"] == TRAINED_ON[DENSE]
        assert tower.spec["image_processor"] == load_vision_tower(DENSE, cache_dir=tmp_path).spec["image_processor"]
    # timm alone opens it, with the scores of torchxrayvision.
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(network(pixels), densenet(pixels), rtol=1e-4, atol=1e-2)
    from adaptor_hf.tasks.supervised import load_supervised

    with torch.no_grad():
        scores = load_supervised(DENSE, tmp_path / "bundle").scores(densenet.features2(pixels))
        probabilities = torch.sigmoid(densenet(pixels)).numpy()
    assert ((scores > 0.5) == (probabilities > load_supervised(DENSE, tmp_path / "bundle").thresholds.numpy())).all()
    entry = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["towers"][DENSE]
    assert entry["data_terms"].startswith("NIH ChestX-ray14")


# Training


def trained_step(tower) -> None:
    """One step of gradient descent, far enough to show in every weight that trains."""
    tower.train()
    optimizer = torch.optim.SGD([value for value in tower.parameters() if value.requires_grad], lr=1e-2)
    output = tower(images(64, 2))
    (output.pooler_output / output.pooler_output.detach().std()).square().mean().backward()
    optimizer.step()
    tower.eval()


def test_a_classifier_trains_and_is_saved_as_every_tower(densenet, tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    from adaptor_hf.tower_folders_adaptor import save_tower

    put(densenet, tmp_path)
    tower = load_vision_tower(DENSE, cache_dir=tmp_path)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower.set_trainable("full")
    trained_step(tower)
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.endswith("running_mean") for name in moved), "batch statistics train with full"
    assert {"model.timm_model.features.conv0.weight", "model.timm_model.features.norm5.weight"} <= moved
    save_tower(tower, tmp_path / "saved")
    again = load_vision_tower(str(tmp_path / "saved"))
    pixels = images(64, 2)
    assert torch.equal(again(pixels).pooler_output, tower(pixels).pooler_output)
    assert again.spec["pretraining_data"][: len(TRAINED_ON[DENSE])] == TRAINED_ON[DENSE]
    assert again.spec["image_processor"] == tower.spec["image_processor"]
    plain = AutoModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.allclose(plain(pixels).last_hidden_state.mean((2, 3)), tower(pixels).pooler_output, atol=1e-3)
    assert AutoImageProcessor.from_pretrained(tmp_path / "saved") is not None


@pytest.mark.slow
def test_the_last_block_trains_alone(densenet, tmp_path):
    put(densenet, tmp_path)
    tower = load_vision_tower(DENSE, cache_dir=tmp_path)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower.set_trainable(1)
    trained_step(tower)
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(re.search(r"features\.(denseblock4|norm5)\.", name) for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)
    with pytest.raises(ValueError, match="full"):
        load_vision_tower(DENSE, cache_dir=tmp_path).set_trainable("lora")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_whose_signs_are_turned_by_a_bit_is_refused(zipped, tmp_path):
    torch.save({"w": torch.ones(3)._neg_view()}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="metadata"):
        read_pickled_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("tower", "dataset", "saw"),
    [("rsna", "nih_chestxray14", "yes"), ("nih", "rsna", "yes"), ("rsna", "siim", "unknown"), ("chex", "rsna", "no")],
)
def test_a_tower_has_seen_images_that_another_set_shares(tower, dataset, saw):
    assert tower_saw(TOWER_PRESETS[f"densenet121-res224-{tower}"], dataset) == saw


def test_a_pickle_cannot_write_on_what_reads_it(tmp_path):
    writes = {
        "function": b"ctorch._utils\n_rebuild_parameter\n(N}(S'__doc__'\nS'evil'\nutb.",
        "class": b"cbuiltins\nobject\n(N}(S'evil'\nI1\nutb.",
        "state": b"ctorch._utils\n_rebuild_parameter\n}(S'__doc__'\nS'evil'\nub.",
        "depth": b"})" + b"\x85" * 100_000 + b"I1\ns.",
        "number": b"N" + pickle.LONG_BINPUT + (2**31 - 1).to_bytes(4, "little") + b".",
    }
    for name, content in writes.items():
        with zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + content)
        with pytest.raises(ValueError, match=r"writes on what reads it|numbers an object|nests over|no whole file"):
            read_pickled_weights(tmp_path / f"{name}.pt")
    assert not hasattr(pickled_modules_adaptor._Inert, "evil")
