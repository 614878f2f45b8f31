"""Reference checkpoints become AdaptorModel folders; unsafe files are refused."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from reference import golden, reference_parameters

from adaptor_hf import AdaptorConfig, AdaptorModel
from adaptor_hf.conversion import convert_reference_state_dict, load_checkpoint, main


def test_config_is_read_off_the_shapes():
    config, converted = convert_reference_state_dict(reference_parameters())
    assert (config.vision_hidden_size, config.text_hidden_size, config.hidden_size) == (32, 48, 24)
    assert (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (2, 12, 2048)
    assert sum(value.numel() for value in converted.values()) == sum(v.numel() for v in reference_parameters().values())


def test_a_prefix_is_removed_and_what_lies_outside_is_left():
    prefixed = {f"adaptor.{name}": value for name, value in reference_parameters().items()}
    _, converted = convert_reference_state_dict({**prefixed, "classifier.weight": torch.zeros(2)})
    _, expected = convert_reference_state_dict(reference_parameters())
    assert converted.keys() == expected.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("projection.visual_projection.weight"), "no state dict of the reference"),
        (lambda s: s.pop("adaptor_module.encoder.1.linear1.bias"), "lacks 1 tensors"),
        (lambda s: s.update({"surprise": torch.zeros(1)}), "Unknown tensor 'surprise'"),
        (lambda s: s.update({"projection.text_projection.weight": torch.zeros(20, 48)}), "has shape"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, message):
    state_dict = reference_parameters()
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        convert_reference_state_dict(state_dict)


def test_a_config_that_contradicts_the_tensors_is_refused():
    with pytest.raises(ValueError, match="too many for this config"):
        convert_reference_state_dict(
            reference_parameters(),
            AdaptorConfig(hidden_size=24, vision_hidden_size=32, text_hidden_size=48, num_hidden_layers=1),
        )


@pytest.mark.parametrize("lightning", [True, False])
def test_the_command_writes_a_folder_that_gives_the_references_outputs(tmp_path, lightning):
    state_dict = reference_parameters()
    torch.save({"state_dict": state_dict, "epoch": 3} if lightning else state_dict, tmp_path / "last.ckpt")
    main([str(tmp_path / "last.ckpt"), str(tmp_path / "out")])
    model = AdaptorModel.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    values = golden("adaptor_full")
    embeds = model(image_embeds=values["in.image_embeds_raw"]).image_embeds
    torch.testing.assert_close(embeds, values["out.image_embeds"], rtol=1e-6, atol=1e-6)


def test_a_file_that_needs_other_classes_is_refused_by_name_and_not_run(tmp_path):
    torch.save({"state_dict": reference_parameters(), "where": pathlib.PurePosixPath("a")}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"pathlib.*PurePosixPath(.|\n)*trust the file"):
        load_checkpoint(tmp_path / "last.ckpt")
    command = [sys.executable, "-m", "adaptor_hf.conversion", str(tmp_path / "last.ckpt"), str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "PurePosixPath" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()


def test_numbers_and_arrays_of_numpy_beside_the_weights_do_no_harm(tmp_path):
    beside = {"best": np.float64(1.5), "step": np.int64(3), "row": np.arange(3), "hyper_parameters": {"lr": 1e-4}}
    torch.save({"state_dict": reference_parameters(), **beside}, tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt").keys() == reference_parameters().keys()


def test_code_in_a_file_of_the_older_format_is_named_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    content = {"state_dict": reference_parameters(), "more": Payload()}
    for new_format in (True, False):
        torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ValueError, match=r"mkdir(.|\n)*It was not opened"):
            load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "executed").exists()


def test_a_broken_file_says_so(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match="no readable PyTorch checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")
