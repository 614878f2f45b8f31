"""What all Adaptor models share: how weights start, and how towers are attached, loaded and kept out of checkpoints."""

import contextlib
import math
import os
from collections.abc import Callable
from contextvars import ContextVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ADAPTER_CONFIG_NAME, is_peft_available, logging

from .carried_rows_adaptor import carry_training_rows
from .configuration_adaptor import AdaptorConfig, is_trained
from .image_processing_adaptor import READING
from .layers_adaptor import PackedLinear, ZeroBiasLinear, align_weights
from .projections_adaptor import ResidualScale, XavierLinear
from .random_specs_adaptor import DRAWN_KEYS
from .regular_files_adaptor import read_json
from .tower_bundles_adaptor import give_weights_the_mode_of_config
from .tower_folders_adaptor import copy_tower, folder_of_spec, is_tower_folder, network_of, save_tower
from .tower_training_adaptor import FROZEN, FULL
from .tower_weights_adaptor import changed_weights
from .towers_adaptor import TextTower, VisionTower, load_text_tower, load_vision_tower

TOWER_NAMES = ("vision_model", "text_model")
LOST = (
    "which a checkpoint without towers would lose. Call model.set_trainable_towers before towers train, which makes "
    "them folders of the checkpoint; or set model.config.towers_in_checkpoint = True to save them with the Adaptor"
)

_COMPLETE: ContextVar[Callable | None] = ContextVar("complete", default=None)
logger = logging.get_logger(__name__)


class AdaptorPreTrainedModel(PreTrainedModel):
    config: AdaptorConfig
    base_model_prefix = "adaptor"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["AdaptorLayer"]
    _supports_sdpa = True
    # Where the weights were loaded from, and whether a save is part of a push.
    loaded_from: str | None = None
    is_pushed = False
    # Heads over images need no text tower.
    _tower_names = TOWER_NAMES

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """
        The reference's: torch's defaults, but Xavier over the packed (3d, d) attention matrix and zero biases. Of other
        aligners their sources': Xavier and zero biases for a gated unit, zero for a residual branch.
        """
        # By class of layer: for custom code transformers passes no module here that only holds other modules.
        if isinstance(module, PackedLinear):
            bound = math.sqrt(6 / (module.in_features + 3 * module.out_features))
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, XavierLinear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ResidualScale):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if isinstance(module, ZeroBiasLinear):
                init.zeros_(module.bias)
            elif module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(getattr(module, "logit_scale", None), nn.Parameter):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if getattr(module, "logit_bias", None) is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args,
        load_towers: bool = True,
        vision_model: VisionTower | None = None,
        text_model: TextTower | None = None,
        **kwargs,
    ):
        """
        Load an Adaptor, then its towers by the references in its config.

        Args:
            pretrained_model_name_or_path (`str`): A folder or hub id, as everywhere in transformers.
            load_towers (`bool`, defaults to `True`): `False` leaves the towers away (cached embeddings only).
            vision_model (`VisionTower`, *optional*): A tower already in memory, used instead of loading it.
            text_model (`TextTower`, *optional*): The same for text.
            kwargs: As for [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            OSError: if the weights are truncated or damaged, or a tower is not to be had: the message names it, its
                revision and how to put it in place.
        """
        base = cls._base_of_adapter(pretrained_model_name_or_path)

        def complete(model: "AdaptorPreTrainedModel") -> None:
            align_weights(model)
            # The Auto classes make the configuration without revision and subfolder.
            own = [spec for spec in (model.config.vision_tower, model.config.text_tower) if is_trained(spec)]
            revision = next((spec["revision"] for spec in own if spec["revision"]), kwargs.get("revision"))
            model.config.place_own_towers(os.fspath(base), kwargs.get("subfolder"), revision)
            model.attach_towers(vision_model, text_model)
            if load_towers:
                download = {
                    name: kwargs[name]
                    for name in ("local_files_only", "cache_dir", "token", "trust_remote_code")
                    if kwargs.get(name) is not None
                }
                model.load_towers(**download)
            elif model.config.towers_in_checkpoint:
                model.base_model.vision_model = model.base_model.text_model = None
            # Loading makes parameters anew, with gradients on.
            for name in TOWER_NAMES:
                if getattr(model.base_model, name) is not None:
                    getattr(model.base_model, name).requires_grad_(False)

        completing = _COMPLETE.set(complete)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model._complete()
        except SafetensorError as error:
            raise OSError(
                f"The weights in {base} are truncated or damaged ({error}). Copy or download them again, or take "
                "another checkpoint."
            ) from error
        finally:
            _COMPLETE.reset(completing)
        model.base_model.loaded_from = str(base)
        return loaded

    @staticmethod
    def _base_of_adapter(name_or_path: str | os.PathLike) -> str | os.PathLike:
        """The checkpoint to load: of a local folder that peft has written without config, the one it names."""
        file = os.path.join(name_or_path, ADAPTER_CONFIG_NAME)
        if os.path.isfile(os.path.join(name_or_path, "config.json")) or not os.path.isfile(file):
            return name_or_path
        adapter = read_json(file)
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        if not base or not isinstance(base, str):
            raise OSError(
                f"{name_or_path} holds an adapter of peft, and its {ADAPTER_CONFIG_NAME} names no base model: what was "
                "adapted had not been loaded from a checkpoint. Build that model as before, and load the adapter onto "
                "it with peft.PeftModel.from_pretrained(model, folder)."
            )
        if not is_peft_available():
            raise ImportError(f"{name_or_path} holds an adapter of peft: pip install peft")
        return base

    def _complete(self) -> None:
        """What follows the weights in `from_pretrained`, once; towers must be there before an adapter on them is."""
        complete = _COMPLETE.get()
        if complete is not None:
            _COMPLETE.set(None)
            complete(self)

    def load_adapter(self, *args, **kwargs):
        """As in transformers, onto the towers too."""
        self._complete()
        return super().load_adapter(*args, **kwargs)

    def get_input_embeddings(self) -> None:
        """None: an Adaptor reads the towers' embeddings. Tokens are the text tower's."""
        return None

    def load_towers(self, **kwargs) -> None:
        """Load and attach the towers that the config names and that are not attached yet. See `load_vision_tower`."""
        placement = {"dtype": self.dtype, "device": self.device}
        loaders = {"vision_model": load_vision_tower, "text_model": load_text_tower}
        for name in self._tower_names:
            spec = getattr(self.config, name.replace("_model", "_tower"))
            # Embeddings that were made elsewhere have no weights to load.
            if getattr(self.base_model, name) is None and spec is not None and spec["library"] != "external":
                self.attach_towers(**{name: loaders[name](spec, **placement, **kwargs)})

    def attach_towers(
        self,
        vision_model: VisionTower | None = None,
        text_model: TextTower | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Put loaded towers in place, moved to the model's device and dtype.

        Args:
            vision_model (`VisionTower`, *optional*): The tower, whose weights are not copied.
            text_model (`TextTower`, *optional*): The same for text.
            dtype (`torch.dtype`, *optional*): Another dtype for these towers than the model's, such as `torch.float32`
                beside an Adaptor in bfloat16.

        Raises:
            ValueError: if a tower's width is not the one that the Adaptor was built for.
        """
        for kind, tower in (("vision", vision_model), ("text", text_model)):
            if tower is None:
                continue
            expected = getattr(self.config, f"{kind}_hidden_size")
            if tower.hidden_size != expected:
                raise ValueError(
                    f"The {kind} tower {tower.spec['name_or_path']!r} gives {tower.hidden_size}-d embeddings, this "
                    f"Adaptor takes {expected}-d ones. Attach the tower it was trained with, or build a new Adaptor."
                )
            tower.to(device=self.device, dtype=dtype or self.dtype)
            setattr(self.base_model, f"{kind}_model", tower)
            known = getattr(self.config, f"{kind}_tower") or {}
            # How images were read in training is the checkpoint's, which another tower does not change.
            reading = {key: known[key] for key in READING if key in known and key not in tower.spec}
            setattr(self.config, f"{kind}_tower", tower.spec | reading if reading else tower.spec)
            # Users of VisionTextDualEncoder and CLIP look there. Not saved, unless the tower is.
            setattr(self.config, f"{kind}_config", tower.config)
        self.train(self.training)

    def save_pretrained(self, save_directory: str | os.PathLike, *, state_dict: dict | None = None, **kwargs):
        """
        Write config, code and weights. The towers are left out unless `config.towers_in_checkpoint`.

        Raises:
            ValueError: if a tower has trainable or changed weights that would be lost, or cannot be part of a
                checkpoint.
        """
        pushed = kwargs.get("push_to_hub") or self.base_model.is_pushed
        if kwargs.get("push_to_hub"):
            self._refuse_to_push_local_towers()
            self._refuse_to_push_restricted(kwargs.pop("accept_data_terms", False))
            _refuse_to_push_embeddings(save_directory)
            kwargs.setdefault("private", True)
        if not pushed:
            carry_training_rows(self.base_model.loaded_from, save_directory)
        state_dict = self.state_dict() if state_dict is None else state_dict
        left_out: set[str] = set()
        if self._hf_peft_config_loaded:
            # transformers then writes the adapter alone, whatever it is on.
            self._refuse_to_lose_changed_towers(state_dict, has_adapter=True)
        else:
            names: list[str] | tuple[str, ...] = TOWER_NAMES
            if self.config.towers_in_checkpoint:
                self._put_tower_configs()
                names = [name for name in TOWER_NAMES if is_trained(self._spec_of(name))]
            else:
                self._refuse_to_lose_trained_towers()
                self._refuse_to_lose_changed_towers(state_dict)
            self._save_trained_towers(save_directory, state_dict)
            towers = tuple(f"{self._base_prefix}{name}." for name in names)
            left_out = {name for name in state_dict if towers and name.startswith(towers)}
        if self._auto_class is not None:
            # A class registers one Auto class; the zero-shot pipeline looks for a second one. The class of the folder
            # that the config came from is left out: its code does not come along.
            names = ("AutoModel", "AutoModelForZeroShotImageClassification")
            self.config.auto_map = dict.fromkeys(names, "modeling_adaptor.AdaptorModel")
        # Not by the state dict: for a quantised model transformers makes one of its own.
        ignored, self._keys_to_ignore_on_save = self._keys_to_ignore_on_save, left_out
        try:
            saved = super().save_pretrained(save_directory, state_dict=dict(state_dict), **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored
        give_weights_the_mode_of_config(save_directory)
        return saved

    def _spec_of(self, name: str) -> dict | None:
        """What is known of a tower: that which is attached says itself whether it trained."""
        tower, spec = getattr(self.base_model, name), getattr(self.config, name.replace("_model", "_tower"))
        return spec if tower is None or not is_trained(tower.spec) else tower.spec

    def _note_trained_towers(self) -> None:
        """Of a tower that trains, or trained, the config says so: it is a folder of the checkpoint from now on."""
        keys = ("preset", "tested", "trained", "base_tower", "pretraining_data", "license", "data_terms")
        for name in TOWER_NAMES:
            spec, side = self._spec_of(name), name.replace("_model", "_tower")
            if is_trained(spec):
                known = getattr(self.config, side) or spec
                known = {key: value for key, value in known.items() if key not in DRAWN_KEYS}
                setattr(self.config, side, known | {key: spec[key] for key in keys if key in spec})

    def _is_elsewhere(self, name: str) -> bool:
        """Whether a trained tower is neither attached nor in the folder of this machine that the config names: an
        Adaptor on embeddings that it made at another place."""
        spec = self._spec_of(name)
        if not is_trained(spec) or getattr(self.base_model, name) is not None or spec.get("subfolder"):
            return False
        return not is_tower_folder(spec["name_or_path"])

    def _save_trained_towers(self, save_directory: str | os.PathLike, state_dict: dict) -> None:
        """Each as a folder of the checkpoint; what is as it was loaded is copied from there, with its card."""
        self._note_trained_towers()
        elsewhere = [name.replace("_model", "_tower") for name in TOWER_NAMES if self._is_elsewhere(name)]
        self.config._towers_elsewhere = elsewhere
        if elsewhere:
            logger.warning_once(
                f"{' and '.join(elsewhere)} trained, and the folder is not where the configuration says: what is saved "
                "names that place. Put the folder back, or load the tower and attach it, and save again."
            )
        for name in TOWER_NAMES:
            side, tower = name.replace("_model", "_tower"), getattr(self.base_model, name)
            spec = getattr(self.config, side)
            if not is_trained(spec) or side in elsewhere:
                continue
            folder = os.path.join(save_directory, side)
            prefix = f"{self._base_prefix}{name}."
            state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            source = os.path.join(spec["name_or_path"], spec.get("subfolder") or "")
            if tower is None:
                source = folder_of_spec(spec) if spec.get("subfolder") else source
            elif not _is_as_saved(tower, source, state):
                source = None
            if source is None:
                save_tower(tower, folder, state_dict=state or None)
                continue
            copy_tower(source, folder)
            if not self.base_model.is_pushed:
                carry_training_rows(source, folder)

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        """As in transformers, on the Adaptor's layers and on those of towers that train; timm's networks have their own
        way. Where batch statistics are trained it stays off: recomputing would count each batch twice."""
        found = False
        for name in TOWER_NAMES:
            tower = getattr(self.base_model, name)
            network = None if tower is None or tower.trainable == FROZEN else network_of(tower)
            if not hasattr(getattr(network, "timm_model", None), "set_grad_checkpointing"):
                continue
            counts = any(getattr(part, "running_mean", None) is not None for part in network.modules())
            if enable and counts and tower.trainable == FULL:
                logger.warning_once(f"{name} has batch statistics that train: it gets no gradient checkpointing.")
                continue
            with contextlib.suppress(NotImplementedError, AssertionError):
                network.timm_model.set_grad_checkpointing(enable)
                found = True
        try:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        except ValueError:
            if not found:
                raise
        self.train(self.training)

    @property
    def _base_prefix(self) -> str:
        return "" if self.base_model is self else f"{self.base_model_prefix}."

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = True, accept_data_terms: bool = False, **kwargs
    ) -> str:
        """
        As everywhere in transformers, but private unless asked otherwise: the model was trained on reports.

        Args:
            accept_data_terms: The terms of the training data, `config.data_terms`, allow this push.

        Raises:
            ValueError: if the config names a tower by a folder of this machine.
            PermissionError: if the training data's terms restrict sharing and were not accepted.
        """
        self._refuse_to_push_local_towers()
        self._refuse_to_push_restricted(accept_data_terms)
        self.base_model.is_pushed = True
        try:
            return super().push_to_hub(repo_id, private=private, **kwargs)
        finally:
            self.base_model.is_pushed = False

    def _refuse_to_push_restricted(self, accepted: bool) -> None:
        terms = dict(self.config.data_terms or {})
        for name in TOWER_NAMES:
            # A tower may have been trained on more than the Adaptor on it.
            spec = self._spec_of(name) or {}
            terms |= (spec.get("data_terms") or {}) if is_trained(spec) else {}
        if terms and not accepted:
            listed = "; ".join(f"{name}: {text}" for name, text in terms.items())
            raise PermissionError(
                f"The terms of the training data restrict what may be shared ({listed}), and nothing was pushed. If "
                "they allow this push, pass accept_data_terms=True."
            )

    def _refuse_to_push_local_towers(self) -> None:
        for kind in ("vision", "text"):
            if is_trained(self._spec_of(f"{kind}_model")) and not self._is_elsewhere(f"{kind}_model"):
                continue
            spec = getattr(self.config, f"{kind}_tower") or {}
            # Of random weights, where the tokenizer is.
            names = [spec.get("name_or_path") or "", spec.get("tokenizer") or ""]
            if any(os.path.isabs(name) or (name and os.path.isdir(name)) for name in names):
                raise ValueError(
                    f"The config names the {kind} tower by a folder of this machine: nobody else has it, and its path "
                    "would be public. Push the tower first, or set towers_in_checkpoint and save; then "
                    "adaptor_hf.hub.push_folder pushes the folder without local paths."
                )

    def _put_tower_configs(self) -> None:
        for kind in ("vision", "text"):
            tower = getattr(self.base_model, f"{kind}_model")
            if tower is None or is_trained(tower.spec):
                continue
            if tower.config is None:
                raise ValueError(
                    f"The {kind} tower {tower.spec['name_or_path']!r} ({tower.spec['library']}) has no transformers "
                    "configuration, so it cannot be rebuilt from a checkpoint. Save with towers_in_checkpoint=False."
                )
            setattr(self.config, f"{kind}_config", tower.config)

    def _refuse_to_lose_trained_towers(self) -> None:
        for name in TOWER_NAMES:
            tower = getattr(self.base_model, name)
            if tower is None or is_trained(tower.spec):
                continue
            if any(parameter.requires_grad for parameter in tower.parameters()):
                raise ValueError(
                    f"{name} has trainable parameters, {LOST}. An adapter of peft is saved by "
                    "peft.get_peft_model(...).save_pretrained, or merged first."
                )

    def _refuse_to_lose_changed_towers(self, state_dict: dict, has_adapter: bool = False) -> None:
        for name in TOWER_NAMES:
            tower = getattr(self.base_model, name)
            # An adapter of peft alone is written, and of a trained tower too it must be on what was loaded.
            if tower is None or (is_trained(tower.spec) and not has_adapter):
                continue
            if tower.loaded_weights is None:
                logger.warning_once(
                    f"{name} came in a checkpoint and is now left out of one: whether its source gives the same "
                    "weights is not known. To keep it, set model.config.towers_in_checkpoint = True."
                )
                continue
            prefix = f"{self._base_prefix}{name}."
            state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            state, marks = state or tower.state_dict(), tower.loaded_weights
            if has_adapter:
                state = {key.replace(".base_layer.", "."): value for key, value in state.items()}
                marks = {key.replace(".base_layer.", "."): mark for key, mark in marks.items()}
            changed = changed_weights(marks, state)
            if has_adapter:
                changed = [key for key in changed if key in marks]
            if changed:
                raise ValueError(
                    f"{len(changed)} weights of {name} are not those that were loaded ({changed[0]} is one), {LOST}; "
                    f"or save the tower with model.{name}.model.save_pretrained in a folder of its own beside its "
                    "processor or tokenizer, load it from there and attach it with model.attach_towers."
                )


def _is_as_saved(tower: nn.Module, folder: str, state: dict) -> bool:
    """Whether a tower came from this folder and has not changed since."""
    place = os.path.join(tower.spec["name_or_path"], tower.spec.get("subfolder") or "")
    if tower.loaded_weights is None or not is_tower_folder(folder) or place != folder:
        return False
    return not changed_weights(tower.loaded_weights, state or tower.state_dict())


def _refuse_to_push_embeddings(folder: str | os.PathLike) -> None:
    """
    `save_pretrained(folder, push_to_hub=True)` sends all that changes in the folder meanwhile, and so the files of a
    cache that another process builds there.

    Raises:
        ValueError: if there is a file of embeddings anywhere in the folder.
    """
    if any(name.endswith(".arrow") for _, _, names in os.walk(folder) for name in names):
        raise ValueError(
            "The folder holds embeddings, and nothing was pushed: transformers sends whatever changes in a folder "
            "while it saves there. Save to an empty folder, or call model.push_to_hub(...) or "
            "adaptor_hf.hub.push_folder(...)."
        )


__all__ = ["TOWER_NAMES", "AdaptorPreTrainedModel"]
