"""Configuration of the Adaptor: a light module between a frozen vision tower and a frozen text tower."""

import copy
import difflib
import math
import os
from dataclasses import fields
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .regular_files_adaptor import check_model_folder

# Far above any model of this family; a change here is for who has one.
MAX_PARAMETERS, MAX_LAYERS, MAX_WIDTH = 2_000_000_000, 1000, 1 << 17

# Of each aligner the number of hidden layers that it has where none is given.
ALIGNERS = {"adaptor": 2, "linear": 0, "residual": 2, "gated": 0, "mlp": 1}
SHARED_LAYERS = ("adaptor", "residual")
NORMS = ("batch", "layer", "none")
TOKENS = ("image_tokens", "text_tokens")
# How a checkpoint names itself, where its towers are folders of it.
OWN = "."
_PLACES = ("name_or_path", "revision", "subfolder", "init_seed", "init_check", "init_config", "tokenizer")


@strict
class AdaptorConfig(PreTrainedConfig):
    r"""
    Configuration of an [`AdaptorModel`]. The defaults are those of "Freeze the backbones" (arXiv 2401.01179):
    two post-norm Transformer layers of width 768, shared by both modalities.

    Args:
        vision_hidden_size (`int`, defaults to 768): Width of the image embeddings that enter the Adaptor.
        text_hidden_size (`int`, defaults to 768): Width of the text embeddings that enter the Adaptor.
        aligner (`str`, defaults to `"adaptor"`): What stands between the towers and the shared space: `"adaptor"` (the
            paper's: a linear projection a side, then layers that both share), `"linear"` (the projections alone),
            `"residual"` (linear, plus shared layers as a branch that starts at zero), `"gated"` (SAIL's gated unit a
            side) or `"mlp"` (a small MLP a side). `"adaptor"` with `num_hidden_layers=0` becomes `"linear"`.
        hidden_size (`int`, defaults to 768): Width of the Adaptor and of the embeddings it returns.
        num_hidden_layers (`int`, *optional*): Number of shared layers (`adaptor` and `residual`: 2 by default), or of
            hidden layers of each MLP (`mlp`: 1 by default). `linear` and `gated` have none: 0.
        num_attention_heads (`int`, defaults to 12): Number of attention heads of the shared layers; must divide
            `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the feed-forward layers and of the MLPs' hidden layers, 2048 by
            default. Of `gated` the width of its branches; `None`: eight times the width of each tower.
        hidden_act (`str`, defaults to `"relu"`): Activation of the feed-forward layers and of the MLPs.
        hidden_dropout_prob (`float`, *optional*): Dropout after attention, in and after the feed-forward layer
            (`adaptor` and `residual`: 0.1 by default), and after each hidden layer of an MLP (0 by default).
        attention_probs_dropout_prob (`float`, defaults to 0.1): Dropout of the attention weights.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of the layer norms.
        projection_norm (`str`, defaults to `"batch"`): Of `mlp`, the norm of its hidden layers: `"batch"`, `"layer"` or
            `"none"`.
        projection_output_norm (`bool`, defaults to `False`): Of `mlp`, a batch norm without weights after the last
            layer, as MGCA has it.
        token_projection (`bool`, defaults to `False`): Of `mlp`, a second MLP a side for the tokens of a sequence.
            Without it tokens go through that of the pooled embedding.
        attention_pooling_heads (`int`, *optional*): Number of heads of an attention pooling (LoVT's), which makes the
            pooled embedding of the tokens of a sequence; must divide the width of each tower. `None`: it is the
            tower's.
        logit_scale_init_value (`float`, defaults to 2.6592): Initial logarithm of the similarity scale: ln(1/0.07) in
            the paper, ln(10) in SigLIP.
        max_logit_scale (`float`, *optional*): Upper bound of the scale `exp(logit_scale)`. `None` is the reference
            (no bound); CLIP uses 100.
        logit_bias_init_value (`float`, *optional*): Initial value of a trained bias of the similarities, which makes
            the model's loss the sigmoid loss of SigLIP (arXiv 2303.15343, which takes -10 with a scale of 10). `None`
            is the paper's model: no bias, softmax losses.
        image_to_text_weight (`float`, defaults to 0.75): Weight of the image-to-text direction of the loss, alpha in
            equation (4) of the paper. The other direction gets `1 - image_to_text_weight`.
        feature_source (`str`, defaults to `"adaptor"`): What heads read: `"adaptor"` or the raw `"tower"`.
        classifier_hidden_size (`int`, *optional*): Width of the classification head's hidden layer; 512 is the paper's
            head. `None`: one linear layer.
        classifier_dropout (`float`, defaults to 0.1): Dropout before each linear layer of the classification head.
        segmentation_decoder (`str`, *optional*): `"tokens"` (up-sampling of patch tokens) or `"unet"` (skips from a
            convolutional tower). `None`: `"unet"` where `skip_channels` are known, else `"tokens"`.
        skip_channels (`list[int]`, *optional*): Channels of the tower's feature maps at a half, a quarter, an eighth
            and a sixteenth of the input size, 0 where there is none: the U-Net's skips. Found from the tower.
        image_size (`int`, *optional*): Side of the images that the segmentation decoder is built for. `None`: that of
            the tower's image processor.
        towers_in_checkpoint (`bool`, defaults to `False`): Whether `save_pretrained` writes the towers' weights too.
            By default a checkpoint holds the Adaptor alone and names its towers.
        data_terms (`dict[str, str]`, *optional*): Data sets that it was trained on whose terms restrict sharing, with
            those terms. A push then asks for consent.
        trained_on (`list[str]`, *optional*): Token sequences that it read in training, `"image_tokens"` and
            `"text_tokens"`; whoever scores it on pooled embeddings says so. `None`: pooled embeddings alone, and the
            field is left out of what is saved.
        split_rule (`dict`, *optional*): How the pre-training data was split, so that evaluation holds out the same
            patients: fields of `adaptor_hf.data.split_rule.SplitRule`. `None`: not known.
        vision_tower (`dict`, *optional*): Resolved reference of the vision tower (see `towers_adaptor`): library, name
            or path, revision, pooling, image processing, pretraining data, licence. `None`: cached embeddings only.
        text_tower (`dict`, *optional*): The same for the text tower.
        vision_config (`PreTrainedConfig` or `dict`, *optional*): Architecture of the vision tower: that of an attached
            tower, as its library has it. Stored only with `towers_in_checkpoint=True`, where towers are built from it.
        text_config (`PreTrainedConfig` or `dict`, *optional*): The same for the text tower.

    Raises:
        ValueError: (as a strict dataclass error) if sizes, probabilities or weights are out of range.
        TypeError: if an unknown argument looks like a misspelt field.

    Example:

    ```python
    >>> from adaptor_hf import AdaptorConfig, AdaptorModel

    >>> model = AdaptorModel(AdaptorConfig(vision_hidden_size=384))
    >>> model.num_parameters()
    11912705
    ```"""

    model_type = "adaptor"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="dinov2", optional=True),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True),
    }
    # Similarity matrices and token sequences are useless once concatenated over batches.
    keys_to_ignore_at_inference = [
        "logits_per_image",
        "logits_per_text",
        "image_last_hidden_state",
        "text_last_hidden_state",
        "attentions",
        "pooler_output",
    ]

    vision_hidden_size: int = 768
    text_hidden_size: int = 768
    aligner: str = "adaptor"
    hidden_size: int = 768
    num_hidden_layers: int | None = None
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int | None = None
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    projection_norm: str = "batch"
    projection_output_norm: bool = False
    token_projection: bool = False
    attention_pooling_heads: int | None = None
    logit_scale_init_value: float | int = 2.6592
    max_logit_scale: float | int | None = None
    logit_bias_init_value: float | int | None = None
    image_to_text_weight: float | int = 0.75
    feature_source: str = "adaptor"
    classifier_hidden_size: int | None = None
    classifier_dropout: float | int = 0.1
    segmentation_decoder: str | None = None
    skip_channels: list[int] | None = None
    image_size: int | None = None
    towers_in_checkpoint: bool = False
    data_terms: dict[str, str] | None = None
    trained_on: list[str] | None = None
    split_rule: dict[str, Any] | None = None
    vision_tower: dict[str, Any] | None = None
    text_tower: dict[str, Any] | None = None
    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        # PreTrainedConfig keeps unknown arguments silently: a typo would leave the default in force.
        known = [field.name for field in fields(self)]
        for name in kwargs:
            # What VisionTextDualEncoder calls it, which looks like another field.
            close = ["hidden_size"] if name == "projection_dim" else difflib.get_close_matches(name, known, 1, 0.8)
            if close and not name.startswith("_"):
                raise TypeError(f"AdaptorConfig got an unknown argument {name!r}. Did you mean {close[0]!r}?")
        if self.aligner == "adaptor" and self.num_hidden_layers == 0:
            # How two projections were asked for before aligners had names.
            self.aligner = "linear"
        if self.num_hidden_layers is None:
            self.num_hidden_layers = ALIGNERS.get(self.aligner, 0)
        if self.intermediate_size is None and self.aligner != "gated":
            self.intermediate_size = 2048
        if self.hidden_dropout_prob is None:
            self.hidden_dropout_prob = 0.1 if self.aligner in SHARED_LAYERS else 0.0
        super().__post_init__(**kwargs)

    def with_aligner(self, aligner: str) -> "AdaptorConfig":
        """This configuration with another aligner, in that one's own shape and between the same widths."""
        own = ("num_hidden_layers", "intermediate_size", "hidden_dropout_prob", "projection_norm",
               "projection_output_norm", "token_projection")  # fmt: skip
        kept = {name: value for name, value in self.to_dict().items() if name not in own}
        return type(self)(**(kept | {"aligner": aligner}))

    @property
    def num_shared_layers(self) -> int:
        """Number of layers that both modalities share: none of an aligner that has its own module a side."""
        return self.num_hidden_layers if self.aligner in SHARED_LAYERS else 0

    @classmethod
    def from_vision_text_configs(
        cls, vision_config: PreTrainedConfig, text_config: PreTrainedConfig, **kwargs
    ) -> "AdaptorConfig":
        """
        A configuration for towers of these architectures, as `VisionTextDualEncoderConfig` makes one. It names no
        towers: a model of it takes embeddings of their widths until towers are attached, for none is ever random.

        Args:
            vision_config, text_config (`PreTrainedConfig`): Of the towers; both have a `hidden_size`.
            kwargs: Fields of this class. `projection_dim` stands for `hidden_size`; `num_attention_heads` is by default
                the largest divisor of it up to 12.

        Raises:
            TypeError: for an argument that is no field.
            ValueError: for a configuration without `hidden_size`, or with `towers_in_checkpoint=True`.
        """
        configs = {"vision_config": vision_config, "text_config": text_config}
        for name, config in configs.items():
            width = name.replace("config", "hidden_size")
            if not isinstance(getattr(config, "hidden_size", None), int) and width not in kwargs:
                raise ValueError(f"{name} ({type(config).__name__}) has no hidden_size: pass {width}.")
            kwargs.setdefault(width, getattr(config, "hidden_size", None))
        if kwargs.get("towers_in_checkpoint"):
            raise ValueError(
                "towers_in_checkpoint=True needs towers with weights: pass it to from_vision_text_pretrained."
            )
        return cls(**configs, **fields_of_dual_encoder(kwargs))

    def to_dict(self) -> dict[str, Any]:
        """As the base class; architectures of towers that a checkpoint does not hold are left out."""
        return _without_unset(super(AdaptorConfig, self._as_saved()).to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`, without what is as the base class has it."""
        return _without_unset(super(AdaptorConfig, self._as_saved()).to_diff_dict())

    def to_json_string(self, use_diff: bool = True) -> str:
        """As the base class; towers that were trained are named by their folder in the checkpoint, not by its place."""
        portable = copy.copy(self)
        for side in ("vision_tower", "text_tower"):
            spec = getattr(self, side)
            if is_trained(spec) and side not in self.__dict__.get("_towers_elsewhere", ()):
                setattr(
                    portable, side, portable_spec(spec) | {"name_or_path": OWN, "revision": None, "subfolder": side}
                )
                # Its folder says it.
                setattr(portable, side.replace("tower", "config"), None)
        return super(AdaptorConfig, portable).to_json_string(use_diff)

    def _as_saved(self) -> "AdaptorConfig":
        if self.towers_in_checkpoint or (self.vision_config is None and self.text_config is None):
            return self
        bare = copy.copy(self)
        bare.vision_config = bare.text_config = None
        return bare

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As the base class; towers that are folders of the checkpoint are named by their place."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        place, inside = os.fspath(pretrained_model_name_or_path), kwargs.get("subfolder")
        config.place_own_towers(place, inside, _commit_of(place, inside, kwargs))
        return loaded

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As the base class; a value that is none of its option is a `ValueError`."""
        place = kwargs.get("name_or_path")
        try:
            loaded = super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"the configuration is refused: {error.__cause__ or error}") from error
        if place:
            # The Auto classes come here without `from_pretrained`.
            (loaded[0] if isinstance(loaded, tuple) else loaded).place_own_towers(os.fspath(place))
        return loaded

    def place_own_towers(self, place: str, subfolder: str | None = None, revision: str | None = None) -> None:
        """
        Name towers that are folders of the checkpoint (".") by where it is.

        Args:
            place: Its folder, a file in it, or its hub id; a folder gets its absolute path.
            subfolder: Of the checkpoint in that place.
            revision: Commit of a hub id. `None`, as from the Auto classes, which tell a configuration none: that of the
                default branch.
        """
        if os.path.isfile(place):
            place = os.path.dirname(place) or os.curdir
        is_folder = os.path.isdir(place)
        for side in ("vision_tower", "text_tower"):
            spec = getattr(self, side)
            where = os.path.abspath(place) if is_folder else place
            if spec is None or spec.get("name_or_path") not in (OWN, where) or not is_trained(spec):
                continue
            where = {
                "name_or_path": where,
                "revision": None if is_folder else revision,
                "subfolder": f"{subfolder.strip('/')}/{side}" if subfolder else side,
            }
            setattr(self, side, spec | where)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As the base class; a file that is nested too deeply, or none, is an error that names it."""
        check_model_folder(pretrained_model_name_or_path)
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except RecursionError:
            raise ValueError(
                f"the configuration in {str(pretrained_model_name_or_path)!r} is nested too deeply to be read: it is "
                "damaged. Copy the model again."
            ) from None

    def validate_architecture(self):
        """Part of strict validation: runs when a config is made and when it is saved."""
        self._check_aligner()
        self._check_bounds()
        for name in ("vision_hidden_size", "text_hidden_size", "hidden_size", "intermediate_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads < 1 or (self.num_shared_layers and self.hidden_size % self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}). Change one of them."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if not 0 <= self.image_to_text_weight <= 1:
            raise ValueError(f"image_to_text_weight must lie in [0, 1], got {self.image_to_text_weight}.")
        if self.max_logit_scale is not None and self.max_logit_scale <= 0:
            raise ValueError(f"max_logit_scale must be positive or None, got {self.max_logit_scale}.")
        if self.feature_source not in ("adaptor", "tower"):
            raise ValueError(f'feature_source must be "adaptor" or "tower", got {self.feature_source!r}.')
        for name in ("classifier_hidden_size", "image_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 or None, got {getattr(self, name)}.")
        if self.trained_on is not None and (not self.trained_on or set(self.trained_on) - set(TOKENS)):
            raise ValueError(f"trained_on must be some of {', '.join(TOKENS)}, or None, got {self.trained_on!r}.")
        if self.segmentation_decoder not in (None, "tokens", "unet"):
            raise ValueError(f'segmentation_decoder must be "tokens" or "unet", got {self.segmentation_decoder!r}.')
        if self.skip_channels is not None and (len(self.skip_channels) != 4 or min(self.skip_channels) < 0):
            raise ValueError(f"skip_channels must be four numbers of 0 or more, got {self.skip_channels}.")

    def _check_aligner(self) -> None:
        if self.aligner not in ALIGNERS:
            close = difflib.get_close_matches(self.aligner, ALIGNERS, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"aligner must be one of {', '.join(ALIGNERS)}, got {self.aligner!r}.{meant}")
        for name in ("num_hidden_layers", "hidden_dropout_prob", "intermediate_size"):
            if getattr(self, name) is None and (name, self.aligner) != ("intermediate_size", "gated"):
                raise ValueError(f"{name} must be a number with aligner {self.aligner!r}, got None.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be 0 or more, got {self.num_hidden_layers}.")
        if ALIGNERS[self.aligner] == 0 and self.num_hidden_layers:
            raise ValueError(
                f"The aligner {self.aligner!r} has no layers to count: leave num_hidden_layers out, got "
                f"{self.num_hidden_layers}. With layers there are {', '.join(n for n in ALIGNERS if ALIGNERS[n])}."
            )
        if ALIGNERS[self.aligner] and not self.num_hidden_layers:
            raise ValueError(
                f"The aligner {self.aligner!r} needs num_hidden_layers of at least 1, got 0. Two projections without "
                'any are aligner "linear".'
            )
        if self.projection_norm not in NORMS:
            raise ValueError(f"projection_norm must be one of {', '.join(NORMS)}, got {self.projection_norm!r}.")
        for name in ("projection_output_norm", "token_projection"):
            if getattr(self, name) and self.aligner != "mlp":
                raise ValueError(f'{name}=True goes with aligner "mlp" only, got {self.aligner!r}. Leave it out.')
        heads = self.attention_pooling_heads
        for name in ("vision_hidden_size", "text_hidden_size") if heads is not None else ():
            if heads < 1 or getattr(self, name) % heads:
                raise ValueError(
                    f"attention_pooling_heads ({heads}) must divide {name} ({getattr(self, name)}). Change it, or "
                    "leave it out."
                )

    def _check_bounds(self) -> None:
        """A configuration may come from anyone: what no model has is refused before it takes all memory."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} must be a finite number, got {value}.")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers must be at most {MAX_LAYERS}, got {self.num_hidden_layers}.")
        if (parameters := self._about_parameters()) > MAX_PARAMETERS:
            raise ValueError(
                f"these sizes make an Adaptor of {parameters:,} parameters, over {MAX_PARAMETERS:,}: check "
                "hidden_size, intermediate_size, num_hidden_layers, vision_hidden_size and text_hidden_size."
            )
        if abs(self.logit_scale_init_value) > 100:
            raise ValueError(
                f"logit_scale_init_value, a logarithm, must lie in [-100, 100], got {self.logit_scale_init_value}."
            )
        if self.logit_bias_init_value is not None and abs(self.logit_bias_init_value) > 100:
            raise ValueError(
                f"logit_bias_init_value must lie in [-100, 100] or be None, got {self.logit_bias_init_value}."
            )
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}.")
        widths = {"classifier_hidden_size": self.classifier_hidden_size, "image_size": self.image_size}
        widths |= {"skip_channels": max(self.skip_channels or [0])}
        for kind in ("vision_config", "text_config"):
            config = getattr(self, kind)
            tower = config if isinstance(config, dict) else config.to_dict() if config is not None else {}
            sizes = ("hidden_size", "intermediate_size", "image_size")
            widths |= {f"{name} of {kind}": tower.get(name) for name in sizes}
            if isinstance(layers := tower.get("num_hidden_layers"), int) and layers > MAX_LAYERS:
                raise ValueError(f"num_hidden_layers of {kind} must be at most {MAX_LAYERS}, got {layers}.")
        for name, value in widths.items():
            if isinstance(value, int) and value > MAX_WIDTH:
                raise ValueError(f"{name} must be at most {MAX_WIDTH}, got {value}.")

    def _about_parameters(self) -> int:
        """What an Adaptor of these sizes has, without biases and norms; layers count twice."""
        sides, width = (self.vision_hidden_size, self.text_hidden_size), self.intermediate_size
        pooling = 0 if self.attention_pooling_heads is None else sum(4 * side**2 for side in sides)
        if self.aligner == "gated":
            branches = [(side, 8 * side if width is None else width) for side in sides]
            return pooling + sum(branch * (2 * side + self.hidden_size) for side, branch in branches)
        if self.aligner == "mlp":
            between = (self.num_hidden_layers - 1) * width**2 + width * self.hidden_size
            return pooling + (1 + self.token_projection) * sum(side * width + between for side in sides)
        layer = 2 * (4 * self.hidden_size**2 + 2 * self.hidden_size * width)
        return pooling + self.num_shared_layers * layer + sum(sides) * self.hidden_size


def _commit_of(name: str, subfolder: str | None, kwargs: dict[str, Any]) -> str | None:
    """The commit of a hub id whose config.json was just read, from its place in the cache."""
    if os.path.exists(name):
        return None
    file = f"{subfolder.strip('/')}/config.json" if subfolder else "config.json"
    found = try_to_load_from_cache(name, file, cache_dir=kwargs.get("cache_dir"), revision=kwargs.get("revision"))
    folder = found[: -len(file)].rstrip("/\\") if isinstance(found, str) else ""
    return os.path.basename(folder) or kwargs.get("revision")


def is_trained(spec: dict[str, Any] | None) -> bool:
    """Whether a tower's spec is of one that was trained: a folder of its checkpoint."""
    return (spec or {}).get("trained") is not None


def portable_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """A trained tower's spec as its folder states it: without places of this machine, and without how it started."""
    return {key: copy.deepcopy(value) for key, value in spec.items() if key not in _PLACES}


def _without_unset(saved: dict[str, Any]) -> dict[str, Any]:
    """As saved before there was `trained_on`, where it says nothing."""
    saved = {name: value for name, value in saved.items() if name != "_towers_elsewhere"}
    return {name: value for name, value in saved.items() if name != "trained_on" or value is not None}


def fields_of_dual_encoder(arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Fields of an [`AdaptorConfig`] for arguments that VisionTextDualEncoder's users give.

    Raises:
        TypeError: for an argument that is no field, or for both `projection_dim` and `hidden_size`.
    """
    found = dict(arguments)
    if "projection_dim" in found:
        if "hidden_size" in found:
            raise TypeError("projection_dim and hidden_size are the same width: give one of them.")
        found["hidden_size"] = found.pop("projection_dim")
    known = [field.name for field in fields(AdaptorConfig)]
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, "projection_dim"], n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "It is no field of AdaptorConfig."
            raise TypeError(f"unexpected argument {name!r}. {hint}")
    width = found.get("hidden_size", AdaptorConfig.hidden_size)
    if isinstance(width, int) and width > 0:
        # A head of the paper's 12 where the width allows it; theirs is 512 by default.
        heads = next(count for count in range(12, 0, -1) if width % count == 0)
        found.setdefault("num_attention_heads", heads)
    return found


__all__ = ["ALIGNERS", "OWN", "AdaptorConfig", "fields_of_dual_encoder", "is_trained", "portable_spec"]
