"""Towers with random weights: drawn from a seed alone, the same wherever they are loaded, and named as such."""

import hashlib
import json

import datasets
import pytest
import torch
from preset_architectures import build_architecture
from test_heads import run_remote
from test_tower_features import REMOTE, SMALL
from transformers import AutoModel, PreTrainedTokenizerFast

from adaptor_hf import AdaptorModel
from adaptor_hf.audit.facts import _model_facts
from adaptor_hf.data.images import read_image
from adaptor_hf.embeddings import build_cache
from adaptor_hf.hub.model_card import describe_tower, is_hub_id, strictest_license
from adaptor_hf.hub.trained_card import write_tower_card
from adaptor_hf.options.fields import path_values
from adaptor_hf.tasks.arguments import named_tower
from adaptor_hf.tasks.arguments import parse_arguments as parse_downstream
from adaptor_hf.tasks.loading import load_adaptor, load_checkpoint_text_tower
from adaptor_hf.tasks.provenance import tower_name, tower_saw
from adaptor_hf.tower_folders_adaptor import save_tower
from adaptor_hf.tower_specs_adaptor import partial_spec
from adaptor_hf.towers import load_text_tower, load_vision_tower, tower_digest
from adaptor_hf.towers.__main__ import main as towers_command
from adaptor_hf.towers.bundle import known_facts
from adaptor_hf.towers.check import check_tower, is_on_this_machine
from adaptor_hf.towers.convert import convert_tower
from adaptor_hf.towers.terms import terms_of
from adaptor_hf.training.plan import _towers
from adaptor_hf.training.script_arguments import parse_arguments

VIT = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "image_size": 28, "patch_size": 7}  # fmt: skip
CLIP = {"model_type": "clip_text_model", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 12}  # fmt: skip
START, END = "<|startoftext|>", "<|endoftext|>"


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def words(*special_first, last=(END,), template=f"{START} $A {END}", end=END):
    """A tokenizer of single letters; special tokens stand before or after them in the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokens = [*special_first, "<pad>", *"abcdefghijklmnopqrstuvwxyz", *last]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        named = [(token, tokens.index(token)) for token in (START, END) if token in tokens]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token=START, eos_token=end)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("random") / "small-vit", VIT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a configuration and a tokenizer in which, as in CLIP's, the end token has the largest number."""
    folder = write_config(tmp_path_factory.mktemp("random") / "small-clip", CLIP)
    words(START).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def slip():
    return load_vision_tower("random:slip-vit-s", truncate_layers=2)


class TestWeights:
    def test_they_are_of_the_seed_alone(self, vit):
        first = load_vision_tower(f"random:{vit}")
        torch.manual_seed(11)
        state = torch.get_rng_state()
        torch.set_default_dtype(torch.float64)
        try:
            again = load_vision_tower(f"random:{vit}", init_seed=0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(torch.get_rng_state(), state), "the global generator stays as it was"
        other = load_vision_tower(f"random:{vit}", init_seed=1)
        assert tower_digest(again) == tower_digest(first) != tower_digest(other)
        assert next(again.parameters()).dtype == torch.float32
        assert (first.spec["init_seed"], other.spec["init_seed"]) == (0, 1)

    @pytest.mark.parametrize(
        "name", ["timm:test_vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("minilm", "resnet-ae"))]
    )
    def test_a_spec_alone_gives_them_again(self, name, monkeypatch):
        load = load_text_tower if name == "minilm" else load_vision_tower
        tower = load(f"random:{name}", init_seed=5)
        spec = json.loads(json.dumps(tower.spec))
        # As in a process that has read no presets.
        monkeypatch.setattr("adaptor_hf.tower_specs_adaptor.TOWER_PRESETS", {})
        again = load(spec)
        assert tower_digest(again) == tower_digest(tower)
        assert again.spec == tower.spec

    def test_another_draw_of_another_version_is_noticed(self, vit):
        spec = load_vision_tower(f"random:{vit}").spec
        changed = spec | {"init_check": [value + 0.01 for value in spec["init_check"]]}
        with pytest.raises(ValueError, match=r"draws other weights from init_seed=0.*towers_in_checkpoint=True"):
            load_vision_tower(changed)
        assert load_vision_tower(changed, init_seed=2).spec["init_check"] != spec["init_check"]

    def test_of_a_folder_its_place_stays_here(self, vit):
        tower = load_vision_tower(f"random:{vit}")
        assert tower.spec["name_or_path"] == "random:small-vit"
        assert str(vit.parent) not in json.dumps(tower.spec)
        same = load_vision_tower(f"random:{vit / 'config.json'}")
        assert same.spec == tower.spec
        assert tower.config.hidden_size == 32
        assert tower.spec["image_processor"]["crop_size"] == {"height": 28, "width": 28}
        assert tower(torch.zeros(1, 3, 28, 28)).pooler_output.shape == (1, 32)

    def test_a_pooler_is_not_drawn(self, tiny_bert):
        tower = load_text_tower(f"random:{tiny_bert}")
        assert tower.spec["pooling"] == "cls"
        assert tower.model.pooler is None
        with pytest.raises(ValueError, match="has no pooler"):
            load_text_tower(f"random:{tiny_bert}", pooling="pooler")

    def test_a_convolutional_network_starts_as_torchvisions(self):
        from torchvision.models import resnet50

        drawn = load_vision_tower("random:resnet50").model.timm_model.state_dict()
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in resnet50(weights=None).state_dict().items()}
        assert {name: value.shape for name, value in drawn.items()} == {n: shapes[n] for n in shapes if n[:3] != "fc."}
        for name, value in drawn.items():
            if value.ndim == 4:
                # He's rule over the outputs.
                fan_out = value.shape[0] * value.shape[2] * value.shape[3]
                assert float(value.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
            elif name.endswith("weight"):
                # timm's own rule has zeros in the last norm of each block.
                assert (value == 1).all(), name

    def test_clips_text_model_starts_as_openais(self, clip):
        model = load_text_tower(f"random:{clip}").model
        deviations = {"token_embedding": 0.02, "position_embedding": 0.01, "fc1": 64**-0.5,
                      "q_proj": 32**-0.5, "k_proj": 32**-0.5, "v_proj": 32**-0.5,
                      "out_proj": 32**-0.5 * 6**-0.5, "fc2": 32**-0.5 * 6**-0.5}  # fmt: skip
        found = {name: [] for name in deviations}
        for name, value in model.named_parameters():
            module, _, kind = name.rpartition(".")
            if kind == "weight" and (last := module.rpartition(".")[2]) in found:
                found[last].append(value.detach().flatten())
            elif kind == "bias":
                bound = {"fc1": 32**-0.5, "fc2": 64**-0.5}.get(module.rpartition(".")[2], 0)
                assert value.abs().max() <= bound
                assert bound == 0 or value.abs().max() > bound / 2
        for name, values in found.items():
            assert float(torch.cat(values).std()) == pytest.approx(deviations[name], rel=0.08), name


class TestSlip:
    @pytest.mark.parametrize(("size", "count"), [("s", 21_665_664), ("b", 85_798_656), ("l", 303_301_632)])
    def test_its_sizes_are_those_of_timm(self, size, count):
        tower = build_architecture(f"slip-vit-{size}")
        assert sum(value.numel() for value in tower.parameters()) == count
        heads = {block.attn.num_heads for block in tower.model.timm_model.blocks}
        assert heads == {12 if size in "sb" else 16}

    def test_converted_weights_make_the_same_network(self, slip, tmp_path):
        import timm

        state = {f"module.visual.{name}": value for name, value in slip.model.timm_model.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "slip.pt")
        convert_tower(tmp_path / "slip.pt", "slip", tmp_path / "slip")
        converted = load_vision_tower(str(tmp_path / "slip"))
        pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        network = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12, depth=2).eval()
        network.load_state_dict(slip.model.timm_model.state_dict())
        six = timm.create_model("vit_small_patch16_224", num_classes=0, depth=2).eval()
        six.load_state_dict(slip.model.timm_model.state_dict())
        with torch.no_grad():
            found = slip(pixels).pooler_output
            torch.testing.assert_close(converted(pixels).pooler_output, found)
            torch.testing.assert_close(network(pixels), found)
            assert not torch.allclose(six(pixels), found, atol=1e-2), "timm's own small ViT has 6 heads"
        assert converted.spec["image_processor"] == slip.spec["image_processor"]

    def test_without_random_they_are_not_to_be_had(self):
        with pytest.raises(OSError, match=r"'slip-vit-s' has no weights of its own: random:slip-vit-s.*convert"):
            load_vision_tower("slip-vit-s")
        with pytest.raises(ValueError, match=r"'random:clip-text' has no tokenizer of its own.*--text_tokenizer"):
            load_text_tower("random:clip-text")
        clip = build_architecture("clip-text").config
        sizes = (clip.vocab_size, clip.hidden_size, clip.num_hidden_layers, clip.num_attention_heads)
        assert sizes == (49408, 512, 12, 8)
        assert (clip.intermediate_size, clip.max_position_embeddings, clip.hidden_act) == (2048, 77, "quick_gelu")


class TestClipText:
    CAPTIONS = ("a b", "z a", " ".join("abcdefghijklmnopqrst"))

    def encoded(self, tower):
        inputs = tower.processor(list(self.CAPTIONS), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return inputs, tower(**inputs)

    def test_it_pools_at_the_end_token_also_of_a_cut_text(self, clip):
        tower = load_text_tower(f"random:{clip}")
        inputs, output = self.encoded(tower)
        ids = inputs["input_ids"]
        assert ids.shape[1] == tower.spec["max_length"] == 12
        # The reference's rule, for its tokenizer's end token has the largest number; here a cut text keeps it.
        largest = output.last_hidden_state[torch.arange(3), ids.argmax(dim=1)]
        assert torch.equal(output.pooler_output, largest)
        assert ids.argmax(dim=1).tolist() == [3, 3, 11]
        # The reference cuts first: of the long text the largest number is then some letter.
        whole = tower.processor(self.CAPTIONS[2])["input_ids"][:12]
        assert tower.config.eos_token_id not in whole
        assert torch.tensor(whole).argmax() == 11, "the last letter here, by chance of the alphabet"

    def test_the_largest_number_is_another_token_where_the_end_comes_first(self, clip, tmp_path):
        folder = tmp_path / "words"
        words("<x>", "<y>", START, END, last=()).save_pretrained(folder)
        tower = load_text_tower(f"random:{clip}", tokenizer=folder)
        inputs, output = self.encoded(tower)
        ids = inputs["input_ids"]
        assert tower.config.eos_token_id == tower.processor.eos_token_id == 3
        at_end = output.last_hidden_state[torch.arange(3), inputs["attention_mask"].sum(dim=1) - 1]
        assert torch.equal(output.pooler_output, at_end)
        assert (ids[torch.arange(3), inputs["attention_mask"].sum(dim=1) - 1] == 3).all()
        assert not torch.equal(ids.argmax(dim=1), (ids == 3).int().argmax(dim=1)), "where the largest number is wrong"

    def test_a_token_sees_none_that_follows(self, clip):
        tower = load_text_tower(f"random:{clip}")
        ids = torch.tensor([[0, 5, 6, 7, 8]])
        with torch.no_grad():
            first, other = tower(ids).last_hidden_state, tower(ids + torch.tensor([0, 0, 0, 0, 3])).last_hidden_state
        torch.testing.assert_close(first[:, :4], other[:, :4])
        assert not torch.allclose(first[:, 4], other[:, 4])
        # And padding changes nothing.
        inputs = tower.processor(["a b", "a b c d e f"], padding=True, return_tensors="pt")
        with torch.no_grad():
            padded, alone = tower(**inputs), tower(**tower.processor(["a b"], return_tensors="pt"))
        torch.testing.assert_close(padded.pooler_output[:1], alone.pooler_output)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (
                lambda: words(START, *(f"<{n}>" for n in range(40))),
                "vocabulary of 60 tokens, and its tokenizer needs",
            ),
            (lambda: words(START, template=None), r"pools at the token that ends a text.*end token is 28"),
            (lambda: words(START, template=f"{START} {END} $A"), "pools at the token that ends a text"),
            (lambda: words(START, end=None), "it has no end token"),
            (lambda: words(START, "<x>", END, last=()), "number 2: transformers' CLIP takes that as a sign"),
        ],
    )
    def test_a_tokenizer_that_does_not_fit_is_refused_by_name(self, clip, tmp_path, made, message):
        made().save_pretrained(tmp_path / "words")
        with pytest.raises(ValueError, match=rf"'random:small-clip'.*{message}"):
            load_text_tower(f"random:{clip}", tokenizer=tmp_path / "words")

    def test_its_vocabulary_is_compared_before_anything_is_computed(self, clip, tmp_path):
        words(START, *(f"<{n}>" for n in range(40))).save_pretrained(tmp_path / "words")
        spec = load_text_tower(f"random:{clip}").spec
        with pytest.raises(ValueError, match="a vocabulary of 60 tokens"):
            check_tower("text", spec | {"tokenizer": str(tmp_path / "words")})
        check_tower("text", spec)


class TestNames:
    @pytest.mark.parametrize(
        ("load", "name", "choice", "error", "message"),
        [
            (load_vision_tower, "random:nothing", {}, OSError, r"after random: comes a preset \(.*slip-vit-s"),
            (load_vision_tower, "random:timm:nothing", {}, ValueError, "timm has no model 'nothing'"),
            (load_vision_tower, "random:bert", {}, ValueError, "is a text tower; use load_text_tower"),
            (load_vision_tower, "lite0", {"init_seed": 3}, ValueError, "weights of its own: init_seed go with random:"),
            (
                load_text_tower,
                "minilm",
                {"tokenizer": "x"},
                ValueError,
                "of its own: tokenizer go with random:",
            ),
            (load_vision_tower, "random:timm:test_vit", {"init_seed": -1}, ValueError, "init_seed must be a whole"),
        ],
    )
    def test_what_is_none_says_so(self, load, name, choice, error, message):
        with pytest.raises(error, match=message):
            load(name, **choice)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "timm_wrapper", "architecture": "test_vit", "model_args": {"checkpoint_path": "x.pth"}},
             "model_args has checkpoint_path"),
            ({"model_type": "timm_wrapper", "architecture": "hf-hub:owner/name"}, "timm has no model 'hf-hub"),
            ({"model_type": "timm_wrapper", "architecture": "test_vit", "model_args": {"embed_dim": 1 << 30}},
             "embed_dim must be at most"),
        ],
    )  # fmt: skip
    def test_a_spec_may_come_from_anyone(self, change, message):
        spec = load_vision_tower("random:timm:test_vit").spec
        with pytest.raises(ValueError, match=message):
            load_vision_tower(spec | {"init_config": change})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_hidden_layers": 2000}, "at most 1000"),
            ({"model_type": "x"}, "no model_type 'x'"),
            ({"hidden_size": 1 << 20, "intermediate_size": 1 << 20}, "parameters, over"),
        ],
    )
    def test_of_transformers_too(self, vit, change, message):
        spec = load_vision_tower(f"random:{vit}").spec
        with pytest.raises(ValueError, match=message):
            load_vision_tower(spec | {"init_config": VIT | change})

    def test_nothing_was_pretrained_and_everything_says_so(self, vit, capsys):
        spec = load_vision_tower(f"random:{vit}", init_seed=3).spec
        assert tower_saw(spec, "chexpert") == "no"
        assert tower_saw(spec | {"init_seed": None}, "chexpert") == "unknown"
        digest = hashlib.sha256(json.dumps(VIT, sort_keys=True).encode()).hexdigest()[:8]
        assert tower_name(spec) == f"random:small-vit, init_seed=3, config {digest}"
        assert tower_name(partial_spec("vision", "random:dinov2-s", None, None)) == "random:dinov2-s, init_seed=0"
        assert tower_name(partial_spec("vision", "random:timm:test_vit", None, None)) == (
            "random:timm:test_vit, init_seed=0"
        )
        assert "random weights, seed 3: nothing was pretrained" in describe_tower("vision", spec)
        assert not is_hub_id(spec | {"name_or_path": "random:owner/name"})
        assert strictest_license([spec, {"license": "mit"}]) == "mit"
        assert strictest_license([spec]) is None
        assert terms_of(spec)["data_terms"] == "none: nothing was pretrained"
        said = _model_facts({"vision_tower": spec, "aligner": "linear"}, {})
        assert "random weights, seed 3: nothing was pretrained" in said["initialization"]
        assert is_on_this_machine("vision", f"random:{vit}")
        check_tower("vision", f"random:{vit}")
        assert towers_command(["list"]) == 0
        assert "random:slip-vit-s" in capsys.readouterr().out

    def test_there_is_nothing_to_bundle_or_verify(self, capsys):
        for name in ("random:dinov2-s", "slip-vit-s"):
            with pytest.raises(ValueError, match="has no weights to bundle"):
                known_facts(name)
        with pytest.raises(SystemExit):
            towers_command(["verify", "slip-vit-s"])
        assert "no weights to verify" in capsys.readouterr().err

    def test_another_network_has_another_name_in_results(self, vit, tmp_path):
        """Two runs of one name are one finished run, and the second one is never computed."""
        other = write_config(tmp_path / "small-vit", VIT | {"num_hidden_layers": 3})
        options = [{}, {"truncate_layers": 1}, {"layers": [1]}, {"layers": [1], "layers_norm": False}]
        options += [{"layers": [1, 2]}, {"layers": [1, 2], "layers_merge": "mean"}]
        towers = [load_vision_tower(f"random:{vit}", **one) for one in options] + [load_vision_tower(f"random:{other}")]
        assert len({tower_digest(towers[0]), tower_digest(towers[1]), tower_digest(towers[-1])}) == 3
        names = [tower_name(tower.spec) for tower in towers]
        assert len(set(names)) == len(names)
        assert names[1].endswith(", cut after 1 layer")
        assert names[4].endswith(", layers 1+2 (concat, norm)")

    def test_a_tower_that_is_named_downstream_is_drawn_from_what_is_said(self, vit, clip, tmp_path):
        model = AdaptorModel.from_towers(
            load_vision_tower(f"random:{vit}", init_seed=4), load_text_tower(f"random:{clip}", init_seed=6), **SMALL
        )
        model.save_pretrained(tmp_path / "model")
        other = write_config(tmp_path / "small-vit", VIT | {"intermediate_size": 48})
        start = ["--task", "classification", "--table", "x.csv", "--label_column", "x", "--output_dir", "out",
                 "--model", str(tmp_path / "model")]  # fmt: skip
        for name, said, seed in ((vit, ["--init_seed", "5"], 5), (vit, [], 4), (other, [], 0)):
            arguments = parse_downstream([*start, "--vision_tower", f"random:{name}", *said])
            found = load_adaptor(arguments).vision_model
            assert tower_digest(found) == tower_digest(load_vision_tower(f"random:{name}", init_seed=seed)), said
            assert tower_digest(found) == tower_digest(load_vision_tower(named_tower(arguments, "vision")))
        arguments = parse_downstream([*start, "--text_tower", f"random:{clip}"])
        assert load_checkpoint_text_tower(arguments, load_adaptor(arguments), "cpu").spec["init_seed"] == 6

    def test_the_script_draws_by_its_seed(self, vit, clip):
        given = ["--train_file", "pairs.csv", "--output_dir", "run", "--text_tower", "minilm"]
        _, model, run, _ = parse_arguments([*given, "--vision_tower", f"random:{vit}", "--seed", "7"])
        assert model.init_seed == 7
        cut = ["--truncate_vision_layers", "1", "--vision_tower"]
        data, model, _, _ = parse_arguments([*given, *cut, f"random:{vit}", "--train_vision_tower", "full"])
        assert "random:small-vit (vision; cut after 1 layer; all of it trains; random weights" in _towers(data, model)
        data, model, _, _ = parse_arguments([*given, *cut, "lite0"])
        assert "lite0 (vision; cut after 1 layer; on this machine)" in _towers(data, model)
        _, model, run, _ = parse_arguments([*given, "--vision_tower", f"random:{vit}", "--seed", "7"])
        assert str(vit) in path_values(model, run), "private mode hides it"
        _, model, _, _ = parse_arguments([*given, "--vision_tower", "lite0", "--seed", "7"])
        assert model.init_seed is None


class TestModels:
    @pytest.fixture
    def model(self, vit, clip):
        torch.manual_seed(0)
        towers = load_vision_tower(f"random:{vit}", init_seed=4), load_text_tower(f"random:{clip}", init_seed=4)
        return AdaptorModel.from_towers(*towers, **SMALL).eval()

    @pytest.fixture
    def inputs(self):
        ids = torch.tensor([[0, 7, 9, 28], [0, 8, 28, 1]])
        return {"pixel_values": torch.randn(2, 3, 28, 28), "input_ids": ids, "attention_mask": (ids != 1).long()}

    @pytest.mark.parametrize("in_checkpoint", [False, True])
    def test_a_checkpoint_gives_them_again(self, model, inputs, tmp_path, in_checkpoint):
        model.config.towers_in_checkpoint = in_checkpoint
        model.save_pretrained(tmp_path)
        torch.manual_seed(99)
        again = AutoModel.from_pretrained(tmp_path).eval()
        assert again.vision_model.spec == model.vision_model.spec
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)

    @pytest.mark.slow
    def test_the_code_beside_it_is_enough(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path / "model")
        torch.save(inputs, tmp_path / "inputs.pt")
        found = run_remote(REMOTE, tmp_path, tmp_path / "model", tmp_path / "inputs.pt")
        with torch.no_grad():
            expected = model(**inputs)
        assert torch.equal(found["image"], expected.image_embeds)
        assert torch.equal(found["text"], expected.text_embeds)

    def test_a_local_tokenizer_is_not_pushed(self, model):
        model.config.vision_tower = None
        with pytest.raises(ValueError, match="names the text tower by a folder of this machine"):
            model.push_to_hub("owner/name")

    @pytest.mark.parametrize("kind", ["vision", "text"])
    @pytest.mark.parametrize("how", ["full", "lora"])
    def test_one_that_trained_is_random_no_more(self, model, inputs, tmp_path, kind, how):
        tower = getattr(model, f"{kind}_model")
        tower.set_trainable(how)
        with torch.no_grad():
            for value in tower.parameters():
                if value.requires_grad:
                    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) / 10)
        model.eval().save_pretrained(tmp_path / "model")
        again = AutoModel.from_pretrained(tmp_path / "model").eval()
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)
        spec = getattr(again.config, f"{kind}_tower")
        row = f"| seed 4 | none: random weights | {'nothing' if spec['pretraining_data'] == [] else 'unknown'} |"
        assert describe_tower(kind, spec).endswith(row)
        card = write_tower_card(tmp_path / f"model/{kind}_tower").read_text()
        assert "(revision seed 4)" in card
        assert "Licence of what it started from: none: random weights." in card
        assert "Trained or pre-trained on: nothing." in card
        assert strictest_license([spec, {"license": "mit"}]) == "mit"
        assert spec["base_tower"]["name_or_path"] == f"random:small-{'vit' if kind == 'vision' else 'clip'}"
        assert spec["base_tower"]["init_seed"] == 4
        assert not {"init_seed", "init_config", "tokenizer"} & set(spec)
        saved = json.loads((tmp_path / "model/config.json").read_text())[f"{kind}_tower"]
        assert not {"init_seed", "init_config", "tokenizer"} & set(saved)
        save_tower(tower, tmp_path / "alone")
        load = load_vision_tower if kind == "vision" else load_text_tower
        assert load(str(tmp_path / "alone")).spec["trained"] == how

    def test_in_a_cache_another_seed_is_another_key(self, vit, clip, radiographs, tmp_path):
        table = datasets.Dataset.from_dict({
            "image": [read_image(path) for path in sorted(radiographs.glob("*.jpg"))[:3]],
            "text": ["a b", "c d", "e f"],
        })  # fmt: skip
        keys = []
        for seed in (0, 0, 1):
            spec = load_text_tower(f"random:{clip}", init_seed=seed).spec
            towers = {"vision_tower": load_vision_tower(f"random:{vit}", init_seed=seed), "text_tower": spec}
            cache = build_cache(table, cache_dir=tmp_path, num_workers=0, **towers)
            keys.append(tuple(one["key"] for one in cache.modality_manifests().values()))
            assert cache.vision_spec["init_seed"] == seed
        assert keys[0] == keys[1]
        assert not set(keys[0]) & set(keys[2])


def test_the_global_generator_stays_where_it_was():
    before = torch.get_rng_state()
    load_vision_tower("random:timm:resnet10t")
    assert torch.equal(torch.get_rng_state(), before)
