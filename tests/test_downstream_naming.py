"""What results call a checkpoint: its folder's own name, and in private mode nothing but the digest."""

import numpy as np

from adaptor_hf.configuration_adaptor import AdaptorConfig
from adaptor_hf.evaluation.naming import checkpoint_label, row_label
from adaptor_hf.modeling_adaptor import AdaptorModel
from adaptor_hf.privacy.mode import private_mode
from adaptor_hf.tasks.controls import checkpoint_name, load_systems
from adaptor_hf.tasks.runs import RunList
from adaptor_hf.tasks.summary import headline_table, summarize


def test_a_folder_gives_its_own_name_and_what_lies_in_it_the_runs(tmp_path):
    for inner in ("run-a", "run-a/checkpoint-50", "run-a/controls/projections"):
        (tmp_path / inner).mkdir(parents=True)
    assert checkpoint_name(tmp_path / "run-a") == "run-a"
    assert checkpoint_name(f"{tmp_path}/run-a/") == "run-a"
    assert checkpoint_name(tmp_path / "run-a/checkpoint-50") == "run-a/checkpoint-50"
    assert checkpoint_name(tmp_path / "run-a/controls/projections") == "run-a"
    assert checkpoint_name("someone/model") == "someone/model"
    assert checkpoint_name("") is None


def models(folder):
    config = AdaptorConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vision_hidden_size=12, text_hidden_size=12,
    )  # fmt: skip
    for name in ("first", "second"):
        AdaptorModel(config).save_pretrained(folder / name)
        yield AdaptorModel.from_pretrained(folder / name)


def test_loaded_checkpoints_carry_their_names_and_new_weights_none(tmp_path):
    fields = [[module.fields() for module in load_systems(model, ("untrained", "mlp"))] for model in models(tmp_path)]
    assert [one[0]["checkpoint_name"] for one in fields] == ["first", "second"]
    assert fields[0][0]["checkpoint"] != fields[1][0]["checkpoint"]
    assert all(entry["checkpoint_name"] is None for one in fields for entry in one[1:])
    # Its point is its size: another size is another control.
    assert fields[0][2]["system"].startswith("parameter-matched MLP, ")


def test_private_mode_keeps_folders_names_out_of_results_and_labels(tmp_path):
    with private_mode(b"0" * 32):
        fields = [load_systems(model, ())[0].fields() for model in models(tmp_path)]
    assert [one["checkpoint_name"] for one in fields] == [None, None]
    labels = [checkpoint_label(one) for one in fields]
    assert labels == [one["checkpoint"][:8] for one in fields]
    assert labels[0] != labels[1]
    assert "first" not in row_label(fields[0] | {"protocol": "linear"})


def test_the_terminals_table_tells_two_checkpoints_apart_and_says_what_plus_minus_is():
    base = {"task": "zero_shot", "dataset": "d", "test_set": None, "fraction": None, "recipe": None,
            "system": "Adaptor", "protocol": "zeroshot",
            "metric": "auroc", "ci_lo": 0.4, "ci_hi": 0.9, "trivial_baseline": 0.5}  # fmt: skip
    lines = [
        base | {"checkpoint": digest * 12, "checkpoint_name": name, "seed": seed, "value": value}
        for digest, name, values in (("a", "one", (0.6, 0.8)), ("b", "two", (0.7, 0.7)))
        for seed, value in enumerate(values)
    ]
    table = headline_table(lines)
    assert f"| one aaaaaaaa | 2 | 0.700 ± {np.std([0.6, 0.8], ddof=1):.3f} [0.400, 0.900] † |" in table
    assert "| two bbbbbbbb | 2 | 0.700 ± 0.000" in table
    marked = headline_table([line | {"selected_on": "test"} for line in lines])
    assert marked.count("CHOSEN ON THE TEST SPLIT") == 2
    said = summarize(RunList([line | {"selected_on": "test"} for line in lines]))
    assert "standard deviation over seeds" in said
    assert "proves nothing" in said


def test_the_terminals_table_calls_things_by_their_names_and_groups_by_controls_key():
    base = {"task": "zero_shot", "dataset": "d", "test_set": None, "fraction": None, "recipe": "rigorous",
            "system": "Adaptor", "protocol": "linear", "checkpoint": None, "seed": 0, "value": 0.5,
            "metric": "auroc", "ci_lo": 0.4, "ci_hi": 0.9, "trivial_baseline": 0.5}  # fmt: skip
    # Lines of before there were keys have none.
    rows = headline_table([base, base | {"module": "adaptor"}, base | {"module": "other"}]).splitlines()
    assert rows[0].startswith("| test set | fraction | protocol | system | readout | checkpoint |")
    assert [row for row in rows if "| rigorous | Adaptor | linear |" in row] == [
        "| d |  | rigorous | Adaptor | linear |  | 1 | 0.500 [0.400, 0.900] † |"
    ] * 3
