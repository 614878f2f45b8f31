"""The scripts' options: one definition for both, a help that can be read, choices with fields, old names that warn."""

import json
import re
import warnings
from dataclasses import asdict, dataclass, fields
from typing import get_type_hints

import pytest
from transformers import HfArgumentParser, TrainingArguments

from adaptor_hf.options.choices import Choice
from adaptor_hf.options.fields import (
    HIDDEN,
    NAME_OR_PATH,
    NAMED_PATH,
    PATH,
    option,
    own_options,
    path_values,
)
from adaptor_hf.privacy.mode import _HIDDEN_OF_TRANSFORMERS, private_mode, private_options
from adaptor_hf.tasks import arguments as downstream
from adaptor_hf.tasks.arguments import DownstreamArguments
from adaptor_hf.tasks.sweep import run_sweep
from adaptor_hf.training import AdaptorTrainingArguments
from adaptor_hf.training import script_arguments as pretraining
from adaptor_hf.training.objective_fields import ALIGNERS, OBJECTIVES
from adaptor_hf.training.script_arguments import DataArguments, ModelArguments, RunArguments

PRETRAINING = (DataArguments, ModelArguments, RunArguments)
SCRIPTS = {
    "train_pretrain": (pretraining, PRETRAINING, 60),
    "train_downstream": (downstream, (DownstreamArguments,), 40),
}
script_parameter = pytest.mark.parametrize("script", SCRIPTS)
OLD_FLAGS = [(choice, name) for choice in (ALIGNERS, OBJECTIVES) for name in choice.old_flags]
OTHER_VALUES = {
    "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.0, "positives": "study",
    "image_to_text_weight": 0.25, "logit_scale_init_value": 2.0, "max_logit_scale": 100.0,
}  # fmt: skip
# Text that is neither a place nor of the user's data.
OPEN_OF_TRANSFORMERS = {
    "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules",
    "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode",
    "liger_kernel_config", "logging_strategy", "include_num_input_tokens_seen", "log_level", "log_level_replica",
    "report_to", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
    "include_for_metrics", "save_strategy", "hub_token", "hub_model_id", "hub_strategy", "hub_revision",
    "metric_for_best_model", "accelerator_config", "dataloader_multiprocessing_context", "label_names",
    "train_sampling_strategy", "length_column_name", "ddp_backend", "fsdp", "fsdp_config", "deepspeed", "debug",
    "positives", "source_batches",
}  # fmt: skip


def shown(script: str, option: str, capsys) -> list[str]:
    """Options that a script's help shows, each as often as it does, and at the end the last line."""
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[script][0].parse_arguments([option])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    return [*re.findall(r"^  (?:-h, )?(--\w+)", text, re.MULTILINE), text.strip().splitlines()[-1]]


def parsed(*words: str):
    """Model and training arguments of a command line."""
    _, model, _, training = pretraining.parse_arguments(["--train_file", "x.csv", "--output_dir", "o", *words])
    return model, training


class TestHelp:
    @script_parameter
    def test_it_keeps_its_budget_and_says_how_much_more_there_is(self, script, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        *some, last = shown(script, "--help", capsys)
        *everything, _ = shown(script, "--help_all", capsys)
        assert 20 < len(some) <= SCRIPTS[script][2]
        assert len(some) == len(set(some))
        assert set(some) < set(everything)
        more = {name for name in set(everything) - set(some) if not name.startswith("--no_")}
        own = ", and transformers' own" if script == "train_pretrain" else ""
        assert last == f"--help_all shows {len(more)} more: rarely needed ones{own}."

    @script_parameter
    def test_all_of_it_has_every_option_once_and_no_old_one(self, script, capsys):
        *everything, _ = shown(script, "--help_all", capsys)
        names = {item.name for group in SCRIPTS[script][1] for item in fields(group)}
        if script == "train_pretrain":
            names |= {item.name for item in fields(AdaptorTrainingArguments) if item.init} - {"positives"}
        for name in names:
            assert everything.count(f"--{name}") == 1, name
        assert not {f"--{name}" for _, name in OLD_FLAGS} & set(everything)

    def test_fields_of_choices_are_told_with_their_defaults(self, capsys):
        with pytest.raises(SystemExit):
            pretraining.parse_arguments(["--help_all"])
        text = " ".join(capsys.readouterr().out.split())
        for choice in (ALIGNERS, OBJECTIVES):
            assert f"fields of --{choice.option} adaptor:" in text
            for item in fields(choice.known["adaptor"]):
                assert f"{item.name} ({item.default}) {item.metadata['help']}" in text

    @pytest.mark.parametrize(
        ("script", "default"), [("train_pretrain", "0.1"), ("train_downstream", "as in pre-training")]
    )
    def test_what_an_option_is_where_it_is_not_given_is_the_scripts(self, script, default):
        text = " ".join(SCRIPTS[script][0].option_parser().format_help().split())
        assert f"--validation_fraction X Share of patients, where no split is given. (default: {default})" in text

    def test_a_recipe_is_named_in_full(self):
        with pytest.raises(ValueError, match="--recipe is not abbreviated"):
            parsed("--recip", "small")

    def test_transformers_parser_takes_the_training_arguments_too(self):
        (training,) = HfArgumentParser(AdaptorTrainingArguments).parse_args_into_dataclasses(["--output_dir", "o"])
        assert training.positives == "text"


class TestDefinitions:
    def test_an_option_of_both_scripts_is_one_definition(self):
        theirs = {item.name: item for item in fields(DownstreamArguments)}
        both = [(item, theirs[item.name]) for group in PRETRAINING for item in fields(group) if item.name in theirs]
        assert len(both) >= 30
        # Pre-training takes several data sets, downstream one. And two things of one name: whether controls are
        # trained, and which ones are evaluated.
        assert [one.name for one, other in both if one is not other] == ["dataset", "data_root", "controls"]

    def test_what_is_not_given_is_the_split_rule_of_both_scripts(self):
        data = DataArguments(train_file="x.csv")
        own = DownstreamArguments(task="few_shot", model="m", table="x.csv")
        assert (data.split_scheme, data.text_column, data.voi_lut) == ("official", "text", False)
        assert (data.validation_fraction, data.test_fraction, data.split_seed) == (0.1, 0.1, 42)
        for name in ("split_scheme", "text_column", "voi_lut", "validation_fraction", "test_fraction", "split_seed"):
            assert getattr(own, name) is None

    def test_a_value_that_is_the_default_is_not_refused_as_without_effect(self):
        DataArguments(cache="c", split_seed=42, validation_fraction=0.1)
        with pytest.raises(ValueError, match="split_seed would have no effect"):
            DataArguments(cache="c", split_seed=41)

    def test_defaults_of_the_choices_are_those_of_config_and_training(self):
        from adaptor_hf import AdaptorConfig

        config, training = AdaptorConfig(), {item.name: item.default for item in fields(AdaptorTrainingArguments)}
        for choice in (ALIGNERS, OBJECTIVES):
            for item in fields(choice.known["adaptor"]):
                expected = getattr(config, item.name) if hasattr(config, item.name) else training[item.name]
                assert item.default == expected, item.name

    def test_a_wrong_privacy_is_refused(self):
        with pytest.raises(ValueError, match="privacy is one of path, named_path"):
            option(None, "x", group="y", privacy="secret")


class TestPrivacy:
    def test_every_option_of_free_text_says_what_it_can_hold(self):
        for group in (*PRETRAINING, DownstreamArguments):
            hints = get_type_hints(group)
            for item in fields(group):
                assert "group" in item.metadata, item.name
                if "str" in str(hints[item.name]) and "choices" not in item.metadata:
                    assert item.metadata["privacy"] is not None, item.name
        hints = get_type_hints(AdaptorTrainingArguments)
        texts = {item.name for item in fields(AdaptorTrainingArguments) if item.init and "str" in str(hints[item.name])}
        # Another version of transformers may have more or fewer; a new one is looked at before it is listed.
        assert texts <= OPEN_OF_TRANSFORMERS | set(_HIDDEN_OF_TRANSFORMERS)
        assert {item.name for item in fields(TrainingArguments)} > {"output_dir", "run_name", "resume_from_checkpoint"}

    @pytest.mark.parametrize("group", [*PRETRAINING, DownstreamArguments], ids=lambda group: group.__name__)
    def test_what_may_be_private_is_not_recorded(self, group):
        given = {
            DataArguments: {"train_file": "t"},
            DownstreamArguments: {"task": "few_shot", "model": "m", "table": "t"},
        }
        arguments = group(**given.get(group, {}))
        hidden = [item for item in own_options(group) if item.metadata["privacy"] in (PATH, NAMED_PATH, HIDDEN)]
        for item in hidden:
            setattr(arguments, item.name, ["canary"] if "list" in str(item.type) else "canary")
        for item in own_options(group):
            if item.metadata["privacy"] == NAME_OR_PATH:
                setattr(arguments, item.name, "folder/canary")
        assert len(hidden) > 0
        assert "canary" in json.dumps(private_options(arguments), default=str)
        with private_mode(b"k" * 32):
            assert "canary" not in json.dumps(private_options(arguments), default=str)

    def test_every_path_is_cut_out_of_messages(self, tmp_path):
        model = ModelArguments(vision_tower=str(tmp_path), text_tower="biobert", towers_dir="towers")
        assert path_values(model) == [str(tmp_path), "towers"]
        words = ["--external", "a=one", "b=two", "--control_model", "shuffled=three", "--do_predict", "four"]
        words += ["--task", "classification", "--model", "m", "--table", "t", "--output_dir", "o", "--more_models", "n"]
        with pytest.raises(ValueError, match="overwritten by --more_models"):
            downstream.parse_arguments(words)
        found = downstream.path_arguments(downstream.parse_arguments(words[:-2]))
        assert sorted(found) == sorted(["one", "two", "three", "four", "m", "t", "o"])

    def test_paths_of_a_training_run_are_all_its_places(self):
        words = ["--train_file", "a", "--image_root", "b", "--cache_dir", "c", "--output_dir", "d", "--key_file", "e"]
        groups = pretraining.parse_arguments([*words, "--resume_from_checkpoint", "f", "--towers_dir", "g"])
        assert sorted(pretraining.path_arguments(*groups)) == list("abcdefg")
        groups = pretraining.parse_arguments([*words, "--resume_from_checkpoint", "true"])
        assert sorted(pretraining.path_arguments(*groups)) == list("abcde")


class TestChoices:
    @pytest.mark.parametrize(("choice", "name"), OLD_FLAGS, ids=[name for _, name in OLD_FLAGS])
    @pytest.mark.parametrize("spelling", ["{}", "recipe"])
    def test_an_old_flag_is_the_field_with_a_warning(self, choice, name, spelling, tmp_path):
        value = OTHER_VALUES[name]
        if spelling == "recipe":
            (tmp_path / "old.yaml").write_text(f"{name}: {value}\n", encoding="utf-8")
            old = ["--recipe", str(tmp_path / "old.yaml")]
        else:
            old = [f"--{name}", str(value)]
        with pytest.warns(
            FutureWarning, match=rf"--{name} is now a field of --{choice.option}: --{choice.option} '\{{"
        ):
            model, training = parsed(*old)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            new_model, new_training = parsed(f"--{choice.option}", json.dumps({name: value}))
            default, _ = parsed()
        assert getattr(getattr(model, choice.option), name) == value
        assert model == new_model != default
        assert model.to_dict() == new_model.to_dict()
        assert model.config().to_dict() == new_model.config().to_dict()
        assert training.positives == new_training.positives == (value if name == "positives" else "text")

    def test_the_record_has_the_fields_where_they_were(self):
        model, _ = parsed("--aligner", '{"hidden_size": 48, "num_attention_heads": 4}', "--vision_tower", "lite0")
        shape = {**asdict(model.aligner), **asdict(model.objective)}
        del shape["positives"]  # recorded with the training arguments
        towers = {"vision_tower": "lite0", "text_tower": None, "towers_dir": None}
        towers |= {"train_vision_tower": "frozen", "train_text_tower": "frozen", "lora_rank": 8, "merge_lora": False}
        towers |= {"image_recipe": None, "sentence_recipe": None, "init_seed": None, "text_tokenizer": None}
        assert model.to_dict() == towers | {"aligner": "adaptor", **shape}
        assert shape["hidden_size"] == 48

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], (64, 4, 1)),
            (["--aligner", '{"hidden_size": 32}'], (32, 4, 1)),
            (["--aligner", "adaptor"], (64, 4, 1)),
            (["--hidden_size", "32"], (32, 4, 1)),
            (["--hidden-size", "32", "--aligner", '{"hidden_size": 32, "num_hidden_layers": 0}'], (32, 4, 0)),
        ],
    )
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_the_command_line_changes_a_recipe_field_by_field(self, words, expected, tmp_path):
        text = "aligner: {name: adaptor, hidden_size: 64, num_attention_heads: 4}\nnum_hidden_layers: 1\n"
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        for recipe in ([str(tmp_path / "recipe.yaml")], ["--recipe", str(tmp_path / "recipe.yaml")]):
            aligner = pretraining.parse_arguments([*recipe, "--train_file", "x.csv", "--output_dir", "o", *words])[
                1
            ].aligner
            assert (aligner.hidden_size, aligner.num_attention_heads, aligner.num_hidden_layers) == expected

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("where", ["words", "recipe"])
    def test_two_values_for_one_field_are_refused(self, where, tmp_path):
        (tmp_path / "two.yaml").write_text("aligner: {hidden_size: 64}\nhidden_size: 48\n", encoding="utf-8")
        words = ["--aligner", '{"hidden_size": 64}', "--hidden_size", "48"]
        with pytest.raises(ValueError, match="hidden_size is given twice: 48 by --hidden_size, 64 in aligner"):
            parsed(*words) if where == "words" else parsed("--recipe", str(tmp_path / "two.yaml"))

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            (
                "aligner",
                "line",
                r"Unknown aligner 'line'\. Did you mean linear\? Known: adaptor, linear, residual, gated, mlp\.",
            ),
            (
                "aligner",
                '{"name": "linear", "num_hidden_layers": 2}',
                "aligner linear has no field 'num_hidden_layers'",
            ),
            (
                "aligner",
                '{"name": "mlp", "projection_norm": "group"}',
                "must be one of batch, layer, none, got 'group'",
            ),
            ("objective", '{"name": "lovt"}', "Unknown objective 'lovt'. Known: adaptor, .*file.py:Class"),
            ("objective", '{"name": 1}', "Unknown objective 1. Known: adaptor, "),
            ("aligner", '{"hiden_size": 1}', "aligner adaptor has no field 'hiden_size'. Did you mean hidden_size[?]"),
            ("aligner", '{"positives": "text"}', "no field 'positives'. .*Its fields: hidden_size, num_hidden_layers"),
            ("aligner", '{"hidden_size": 1.5}', r"aligner: hidden_size must be int, got 1.5 \(float\)"),
            ("aligner", '{"hidden_size": "48"}', "hidden_size must be int, got '48' .*Write it without quotes"),
            ("aligner", '{"hidden_size": true}', "hidden_size must be int, got True"),
            ("aligner", '{"hidden_size": null}', "hidden_size must be int, got None"),
            ("objective", '{"positives": "image"}', "positives must be one of text, study, pair, got 'image'"),
            ("objective", '{"max_logit_scale": "no"}', "max_logit_scale must be float or null, got 'no'"),
            ("objective", '{"positives": text}', "a mapping such as .*as JSON it cannot be read"),
            ("objective", "[1]", r"Unknown objective '\[1\]'"),
        ],
    )
    def test_wrong_names_fields_and_values_are_refused(self, option, value, message):
        with pytest.raises(ValueError, match=message):
            parsed(f"--{option}", value)

    def test_a_recipe_that_holds_neither_name_nor_mapping_is_refused(self, tmp_path):
        (tmp_path / "list.yaml").write_text("objective: [adaptor]\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"objective is a name \(adaptor, .*\) or a mapping .*, got list"):
            parsed("--recipe", str(tmp_path / "list.yaml"))
        (tmp_path / "empty.yaml").write_text("objective:\naligner: adaptor\n", encoding="utf-8")
        assert parsed("--recipe", str(tmp_path / "empty.yaml"))[0] == parsed()[0]

    def test_another_name_starts_anew(self):
        @dataclass
        class One:
            size: int = 1

        @dataclass
        class Two:
            size: int = 2
            names: int = 0

        choice = Choice("thing", {"one": One, "two": Two})
        recipe = choice.read({"name": "two", "size": 5, "names": 3})
        assert choice.build(choice.merge(recipe, choice.read('{"size": 7}'))) == Two(7, 3)
        assert choice.build(choice.merge(recipe, choice.read("two"))) == Two(5, 3)
        assert choice.build(choice.merge(recipe, choice.read("one"))) == One()
        assert choice.build(choice.merge({"size": 5}, choice.read("two"))) == Two()
        with pytest.raises(ValueError, match="--size is a field of thing one, and 'two' is chosen"), pytest.warns():
            choice.with_old_flags({"name": "two"}, {"size": 3})


class TestProtocol:
    WORDS = ("--task", "classification", "--model", "m", "--table", "t.csv")

    @pytest.mark.parametrize("words", [["--recipe", "mgca"], ["--recipe=mgca"]])
    def test_the_old_option_is_the_protocol_with_a_warning(self, words):
        with pytest.warns(FutureWarning, match="--recipe mgca is now --protocol mgca; the old name goes"):
            assert downstream.parse_arguments([*self.WORDS, *words]).protocol == "mgca"
        assert downstream.parse_arguments([*self.WORDS, "--protocol", "mgca"]).protocol == "mgca"
        assert downstream.parse_arguments([*self.WORDS]).protocol == "rigorous"

    def test_recipe_and_old_option_beside_each_other(self):
        words = ["--recipe", "rsna_adaptor", "--model", "m", "--data_root", "d"]
        assert downstream.parse_arguments(words).protocol == "adaptor"
        with pytest.warns(FutureWarning):
            options = downstream.parse_arguments([*words, "--recipe", "slip"])
        assert (options.protocol, options.split_scheme) == ("slip", "mgca")

    def test_the_old_key_of_a_recipe_and_of_a_sweep(self, tmp_path):
        (tmp_path / "old.yaml").write_text("recipe: gloria\n", encoding="utf-8")
        with pytest.warns(FutureWarning, match="the key recipe is now protocol"):
            assert downstream.parse_arguments([str(tmp_path / "old.yaml"), *self.WORDS]).protocol == "gloria"
        plan = {
            "common": {"model": "m", "table": "t.csv", "task": "classification"},
            "over": {"recipe": ["mgca", "slip"]},
        }
        made = []
        with pytest.warns(FutureWarning, match="--recipe slip is now --protocol slip"):
            run_sweep(plan, tmp_path, lambda job: made.append(job.protocol) or "")
        assert made == ["mgca", "slip"]


def test_an_option_that_may_be_repeated_adds_up_and_the_command_line_replaces_a_recipes(tmp_path):
    """Of several filters the last one alone once counted, without a word."""
    command = ["--task", "classification", "--model", "x", "--table", "t.csv"]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("filter: [a=1, c=3]\nseeds: [7]\n", encoding="utf-8")
    typed = ["--filter", "view=AP", "--filter", "sex=F", "age=60"]
    assert downstream.parse_arguments([*command, *typed]).filter == ["view=AP", "sex=F", "age=60"]
    of_recipe = downstream.parse_arguments(["--recipe", str(recipe), *command])
    assert (of_recipe.filter, of_recipe.seeds) == (["a=1", "c=3"], [7])
    both = downstream.parse_arguments(["--recipe", str(recipe), *command, *typed])
    assert (both.filter, both.seeds) == (["view=AP", "sex=F", "age=60"], [7])
    assert downstream.parse_arguments([*command, "--seeds", "1", "--seeds", "2"]).seeds == [2]
    assert downstream.parse_arguments(command).seeds == [0, 1, 2, 3, 4]
