"""What heads on a frozen Adaptor share.

Towers and Adaptor are frozen and stay in evaluation mode under `model.train()`: no dropout, no drift of batch
statistics. To train them too, ask for gradients: `model.adaptor.requires_grad_(True)`.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import copy
import os

import torch

from .configuration_adaptor import AdaptorConfig
from .modeling_adaptor import AdaptorModel
from .pretrained_adaptor import TOWER_NAMES, AdaptorPreTrainedModel
from .tower_training_adaptor import FROZEN
from .towers_adaptor import VisionTower


class AdaptorHead(AdaptorPreTrainedModel):
    """What both heads share: a frozen [`AdaptorModel`] named `adaptor`, and where a head comes from."""

    _tower_names = ("vision_model",)

    @classmethod
    def from_adaptor(cls, adaptor: AdaptorModel, **config_kwargs) -> "AdaptorHead":
        """
        A new head on a model in memory. The Adaptor is shared, not copied, and frozen.

        Args:
            adaptor (`AdaptorModel`): Trained or not.
            config_kwargs: Fields of [`AdaptorConfig`] to change, such as `num_labels`.
        """
        config = copy.deepcopy(adaptor.config)
        in_checkpoint, config.towers_in_checkpoint = config.towers_in_checkpoint, False
        labels = {name: config_kwargs.pop(name) for name in ("num_labels", "id2label") if name in config_kwargs}
        # The labels of the model below are not those of the new head.
        fields = {**config.to_dict(), **config_kwargs}
        for name in ("id2label", "label2id", "num_labels"):
            if labels:
                fields.pop(name, None)
        model = cls(AdaptorConfig(**fields, **labels))
        model.adaptor = adaptor
        model.config.towers_in_checkpoint = in_checkpoint
        model.freeze_adaptor()
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *model_args, **kwargs):
        """
        Load a head, or a pre-trained [`AdaptorModel`] with a new head on it. The text tower is not loaded.

        Args and errors are those of [`AdaptorModel.from_pretrained`]. Towers and Adaptor come back frozen.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_adaptor()
        return loaded

    def freeze_adaptor(self) -> None:
        """Towers and Adaptor get no gradients, and are in evaluation mode from now on."""
        for name in TOWER_NAMES:
            if getattr(self.adaptor, name) is not None:
                getattr(self.adaptor, name).set_trainable(FROZEN)
        self.adaptor.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        towers = tuple(f"{name}." for name in TOWER_NAMES)
        names = [name for name, parameter in self.adaptor.named_parameters() if parameter.requires_grad]
        # Low-rank weights in a tower train without the Adaptor's dropout.
        if all(name.startswith(towers) for name in names):
            self.adaptor.eval()
            for name in TOWER_NAMES:
                if getattr(self.adaptor, name) is not None:
                    getattr(self.adaptor, name).train(mode)
        return self

    @property
    def feature_size(self) -> int:
        """Width of what the head reads: that of the Adaptor, or that of the tower (`config.feature_source`)."""
        return self.config.hidden_size if self._reads_adaptor else self.config.vision_hidden_size

    @property
    def _reads_adaptor(self) -> bool:
        return self.config.feature_source == "adaptor"

    def _vision_tower(self) -> VisionTower:
        if self.adaptor.vision_model is None:
            raise ValueError(self.adaptor._no_tower_message("vision", "pixel_values", "image_embeds"))
        return self.adaptor.vision_model

    def _check_inputs(self, pixel_values: torch.Tensor | None, image_embeds: torch.Tensor | None) -> None:
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("Give either pixel_values or image_embeds.")
        width = self.config.vision_hidden_size
        if image_embeds is not None and (image_embeds.ndim not in (2, 3) or image_embeds.shape[-1] != width):
            raise ValueError(
                f"image_embeds must be of shape (batch, {width}) or (batch, tokens, {width}), got "
                f"{tuple(image_embeds.shape)}."
            )


__all__ = ["AdaptorHead"]
