"""Recipes keep what was written where a word is expected, and give numbers and bools where an option is one."""

import json
import math

import pytest
import yaml

from adaptor_hf.configs import find_recipe, list_recipes, read_recipe
from adaptor_hf.tasks.arguments import parse_arguments as parse_downstream
from adaptor_hf.tasks.sweep import run_sweep
from adaptor_hf.training.script_arguments import parse_arguments

# What YAML 1.1 makes of these: 7, 8, 750, False, 0.0001, None, None, a date, True, 15, 31, 1000, inf, True, 1.1.
SPELLINGS = ("007", "010", "12:30", "no", "1e-4", "null", "~", "2024-01-02", "yes", "0o17", "0x1F", "1_000", ".inf",
             "on", "1.10", "+1", "NO", "1e5", "=")  # fmt: skip


def pretrain(tmp_path, text: str, name: str = "mine.yaml"):
    recipe = tmp_path / name
    recipe.write_text(text, encoding="utf-8")
    data, model, run, training = parse_arguments(
        [str(recipe), "--train_file", "x", "--output_dir", str(tmp_path / "run"), "--use_cpu", "True"]
    )
    return {name: value for group in (data, model, run, training) for name, value in vars(group).items()}


def downstream(tmp_path, text: str):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text, encoding="utf-8")
    return parse_downstream([str(recipe), "--task", "classification", "--model", "m", "--table", "t.csv"])


@pytest.mark.parametrize("word", SPELLINGS)
def test_a_list_of_words_keeps_every_spelling(tmp_path, word):
    assert downstream(tmp_path, f"classes: [{word}, other]\n").classes == [word, "other"]
    assert downstream(tmp_path, f"missing_word:\n  - {word}\n").missing_word == [word]


@pytest.mark.parametrize("word", [word for word in SPELLINGS if word not in ("null", "~")])
def test_an_option_of_text_keeps_every_spelling(tmp_path, word):
    assert downstream(tmp_path, f"positive_label: {word}\n").positive_label == word
    assert pretrain(tmp_path, f"dataset_name: {word}\n")["dataset_name"] == word


@pytest.mark.parametrize("quoted", ["'null'", '"~"', "!!str null"])
def test_a_quoted_null_is_a_word_and_a_plain_one_says_that_it_is_none(tmp_path, quoted, caplog):
    assert downstream(tmp_path, f"positive_label: {quoted}\n").positive_label == quoted.strip("'\"").split()[-1]
    assert not caplog.messages
    for plain in ("null", "~"):
        assert downstream(tmp_path, f"positive_label: {plain}\n").positive_label is None
        assert f"positive_label: {plain} in the recipe is no value" in caplog.text
    caplog.clear()
    assert downstream(tmp_path, "positive_label:\n").positive_label is None
    assert downstream(tmp_path, "image_size: null\n").image_size is None
    assert not caplog.messages


@pytest.mark.parametrize(
    ("word", "whole", "decimal", "truth"),
    [
        ("007", 7, 7.0, None),
        ("010", 10, 10.0, None),
        ("1e-4", None, 1e-4, None),
        ("1E-4", None, 1e-4, None),
        ("5", 5, 5.0, None),
        ("0x1F", 31, 31.0, None),
        ("0o17", 15, 15.0, None),
        ("1_000", 1000, 1000.0, None),
        (".5", None, 0.5, None),
        ("12:30", None, None, None),
        ("2024-01-02", None, None, None),
        ("no", None, None, False),
        ("NO", None, None, False),
        ("off", None, None, False),
        ("on", None, None, True),
        ("true", None, None, True),
        ("1", 1, 1.0, True),
        ("maybe", None, None, None),
    ],
)
def test_numbers_and_bools_are_what_the_option_is(tmp_path, word, whole, decimal, truth, capsys):
    for option, expected in (("seed", whole), ("learning_rate", decimal), ("controls", truth)):
        if expected is None:
            with pytest.raises(SystemExit):
                pretrain(tmp_path, f"{option}: {word}\n")
            assert word in capsys.readouterr().err
        else:
            found = pretrain(tmp_path, f"{option}: {word}\n")[option]
            assert (found, type(found)) == (expected, type(expected))


def test_no_is_a_strategy_of_transformers_and_a_list_of_numbers_is_one(tmp_path):
    found = pretrain(tmp_path, "eval_strategy: no\nsave_strategy: no\nload_best_model_at_end: no\n")
    assert (found["eval_strategy"], found["save_strategy"], found["load_best_model_at_end"]) == ("no", "no", False)
    assert downstream(tmp_path, "seeds: [010, 3]\nfraction: [1e-2, 1]\n").seeds == [10, 3]


def test_fields_of_a_choice_are_of_their_declared_types(tmp_path):
    text = "objective: {max_logit_scale: 1e2, image_to_text_weight: 1, positives: text}\naligner: {hidden_size: 0x30,"
    found = pretrain(tmp_path, text + " num_attention_heads: 04}\n")
    assert (found["objective"].max_logit_scale, found["objective"].image_to_text_weight) == (100.0, 1.0)
    assert (found["aligner"].hidden_size, found["aligner"].num_attention_heads) == (48, 4)
    with pytest.raises(ValueError, match="positives must be one of text, study, pair, got 'no'"):
        pretrain(tmp_path, "objective: {positives: no}\n")
    with pytest.raises(ValueError, match=r"hidden_size must be int, got '12:30' \(str\)"):
        pretrain(tmp_path, "aligner: {hidden_size: 12:30}\n")
    with pytest.raises(ValueError, match=r"hidden_size must be int, got '48' \(str\). Write it without quotes"):
        pretrain(tmp_path, "aligner: {hidden_size: '48'}\n")


def test_json_numbers_keep_their_spelling_where_a_word_is_expected(tmp_path):
    text = '{"dataset_name": 1e5, "learning_rate": 1e-4, "seed": 3, "controls": true, "aligner": {"hidden_size": 48}}'
    found = pretrain(tmp_path, text, "mine.json")
    assert (found["dataset_name"], found["learning_rate"], found["seed"], found["controls"]) == ("1e5", 1e-4, 3, True)
    assert found["aligner"].hidden_size == 48


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "seed: 1\nlearning_rate: 1\nseed: 2\n", "a.yaml is not valid YAML: the key seed is there twice, in "
         "lines 1 and 3"),
        ("a.yaml", "aligner:\n  hidden_size: 1\n  hidden_size: 2\n", "the key hidden_size is there twice, in lines 2"),
        ("a.json", '{"seed": 1, "seed": 2}', "a.json is not valid JSON: the key seed is there twice"),
        ("a.yaml", "a: " + "[" * 5000, "a.yaml is nested deeper than 20 levels"),
        ("a.json", '{"a": ' + "[" * 200_000, "a.json is nested too deeply"),
        ("a.yaml", "caf\udce9: 1", "a.yaml is not UTF-8 at byte 3: save it as UTF-8"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []", "a.yaml is not valid YAML: could not determine"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / name), "--train_file", "x", "--output_dir", str(tmp_path)])


def test_a_repeated_key_is_refused_on_the_command_line_too():
    with pytest.raises(ValueError, match="hidden_size is there twice"):
        parse_arguments(
            ["--train_file", "x", "--output_dir", "o", "--aligner", '{"hidden_size": 48, "hidden_size": 64}']
        )


def test_merged_keys_may_be_overridden_and_marks_of_order_are_left_out(tmp_path):
    text = "\ufeffaligner: &shape {hidden_size: 48, num_attention_heads: 4}\nobjective: {positives: pair}\n"
    assert pretrain(tmp_path, text)["aligner"].hidden_size == 48
    (tmp_path / "b.yaml").write_text("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\n", encoding="utf-8")
    assert read_recipe(tmp_path / "b.yaml")["b"] == {"k": 3, "l": 2}


@pytest.mark.parametrize("kind", ["pretrain", "downstream", "sweep"])
def test_packaged_recipes_mean_what_pyyaml_reads_in_them(kind):
    for name in list_recipes(kind):
        path = find_recipe(name, kind)
        assert read_recipe(path) == yaml.safe_load(path.read_text(encoding="utf-8")), name


def test_infinity_and_nan_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("a: .inf\nb: -.inf\nc: .nan\n", encoding="utf-8")
    found = read_recipe(tmp_path / "a.yaml")
    assert (found["a"], found["b"]) == (math.inf, -math.inf)
    assert math.isnan(found["c"])


def test_jobs_of_a_sweep_keep_words_and_have_the_names_they_had(tmp_path, capsys):
    from adaptor_hf.configs import read_words

    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "common: {task: classification, model: m, table: t.csv, classes: [no, 007], fraction: [0.5], compare: off}\n"
        "over:\n  positive_label: [no, 12:30]\n",
        encoding="utf-8",
    )
    started = []
    run_sweep(read_words(plan), tmp_path / "out", started.append, dry_run=True)
    said = capsys.readouterr().out
    jobs = [json.loads(line) for line in said.splitlines() if line.startswith("  {")]
    same = {"task": "classification", "model": "m", "table": "t.csv", "classes": ["no", "007"], "fraction": [0.5]}
    assert jobs == [same | {"compare": False, "positive_label": word} for word in ("no", "12:30")]
