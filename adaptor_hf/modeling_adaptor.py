"""The Adaptor model: a light aligner between frozen towers ("Freeze the backbones", arXiv 2401.01179)."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple, logging

from .arguments_adaptor import refuse_unknown
from .attention_pooling_adaptor import AttentionPooling, pool_sequence
from .configuration_adaptor import AdaptorConfig
from .dual_encoder_adaptor import DualEncoderMixin
from .embedding_origin_adaptor import are_projected
from .layers_adaptor import AdaptorEncoder
from .loss_adaptor import contrastive_loss, sigmoid_contrastive_loss
from .precision_adaptor import input_dtype, unit_vectors
from .pretrained_adaptor import AdaptorPreTrainedModel
from .projections_adaptor import ResidualScale, make_projection, project_sequence
from .token_sequences_adaptor import check_mask, check_sequence, expand_mask, token_sequence
from .tower_training_adaptor import FROZEN
from .towers_adaptor import TextTower, VisionTower, load_text_tower, load_vision_tower, tower_from_config

logger = logging.get_logger(__name__)


@dataclass
class AdaptorOutput(ModelOutput):
    """
    What comes out of the Adaptor: projected embeddings, in the space that images and texts share. The arguments of
    `forward` named `image_embeds` and `text_embeds` are what goes in: the towers' embeddings. The names are CLIP's; the
    one is no input for the other. Embeddings and scores are float32 or wider, whatever dtype the model computes in.

    Args:
        loss (`torch.Tensor`, scalar, *optional*, with `return_loss=True`): Contrastive loss of this batch alone; of a
            model with `logit_bias` the sigmoid loss.
        logits_per_image (`torch.Tensor` of shape `(num_images, num_texts)`): Scaled cosine similarities, plus
            `logit_bias` where the model has one: their sigmoid is then the probability that the two belong together.
        logits_per_text (`torch.Tensor` of shape `(num_texts, num_images)`): Its transpose.
        image_embeds (`torch.Tensor` of shape `(num_images, hidden_size)`): L2-normalised projected image embeddings.
        text_embeds (`torch.Tensor` of shape `(num_texts, hidden_size)`): L2-normalised projected text embeddings.
        image_last_hidden_state (`torch.Tensor` of shape `(num_images, N, hidden_size)`): Every image token after the
            last layer, L2-normalised a token. Token 0 is `image_embeds`.
        text_last_hidden_state (`torch.Tensor` of shape `(num_texts, L, hidden_size)`): The same for text.
        attentions (`tuple`, *optional*, with `output_attentions=True`): One pair `(image, text)` a layer, each
            `(batch, num_attention_heads, queries, keys)`, or `None` for a modality that was not given.
        pooler_output (`torch.Tensor` of shape `(batch, hidden_size)`, *optional*): The projected embeddings of the one
            modality that was given, `image_embeds` or `text_embeds`: what pipelines with `pool=True` ask for.
        image_pooling_weights (`torch.Tensor` of shape `(num_images, N - 1)`, *optional*, with
            `config.attention_pooling_heads`): Weight of each token in the pooled embedding, mean over the heads; 0 for
            padding, with sum 1.
        text_pooling_weights (`torch.Tensor` of shape `(num_texts, L - 1)`, *optional*): The same for text.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_last_hidden_state: torch.Tensor | None = None
    text_last_hidden_state: torch.Tensor | None = None
    attentions: tuple | None = None
    pooler_output: torch.Tensor | None = None
    image_pooling_weights: torch.Tensor | None = None
    text_pooling_weights: torch.Tensor | None = None


class AdaptorModel(DualEncoderMixin, AdaptorPreTrainedModel):
    """
    Image and text embeddings in one space, from cached embeddings of frozen towers or from raw inputs.

    A model without towers (`load_towers=False`, or a config that names none) takes `image_embeds` and `text_embeds`.
    With towers it also takes `pixel_values` and `input_ids`.

    Input `(B, D)` means B samples of one token. A sequence `(B, N, D)` is always `[pooled, token_1, ..., token_N-1]`.
    Each modality attends only to itself; with one token each that is also exactly what the reference code computes.
    What stands between towers and shared space is `config.aligner`.

    Example:

    ```python
    >>> from adaptor_hf import AdaptorModel

    >>> model = AdaptorModel.from_towers("dinov2-b", "biobert")
    >>> model.save_pretrained("my-adaptor")  # the Adaptor and the towers' references, about 49 MB
    ```
    """

    def __init__(self, config: AdaptorConfig):
        super().__init__(config)
        self.visual_projection = make_projection(config, config.vision_hidden_size)
        self.text_projection = make_projection(config, config.text_hidden_size)
        self.shared_encoder = AdaptorEncoder(config)
        self.residual_scale = ResidualScale(config.hidden_size) if config.aligner == "residual" else None
        if config.token_projection:
            self.visual_token_projection = make_projection(config, config.vision_hidden_size)
            self.text_token_projection = make_projection(config, config.text_hidden_size)
        self.visual_pooling = self.text_pooling = None
        if config.attention_pooling_heads is not None:
            self.visual_pooling = AttentionPooling(config.vision_hidden_size, config.attention_pooling_heads)
            self.text_pooling = AttentionPooling(config.text_hidden_size, config.attention_pooling_heads)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.tensor(float(bias))))
        self.vision_model: VisionTower | None = None
        self.text_model: TextTower | None = None
        if config.towers_in_checkpoint:
            if config.vision_config is not None:
                self.vision_model = tower_from_config(config.vision_tower, config.vision_config)
            if config.text_config is not None:
                self.text_model = tower_from_config(config.text_tower, config.text_config)
        self.post_init()

    @classmethod
    def from_towers(
        cls,
        vision_tower: str | dict | VisionTower | None = None,
        text_tower: str | dict | TextTower | None = None,
        *,
        train_vision_tower: str | int = FROZEN,
        train_text_tower: str | int = FROZEN,
        **config_kwargs,
    ) -> "AdaptorModel":
        """
        A new, untrained Adaptor on two towers, frozen unless told otherwise.

        Args:
            vision_tower (`str`, `dict` or `VisionTower`, *optional*): A preset's name, hub id, local folder,
                `timm:NAME`, `xrv:NAME`, a tower reference or a loaded tower. `None`: it takes embeddings only.
            text_tower (`str`, `dict` or `TextTower`, *optional*): The same for text.
            train_vision_tower, train_text_tower (`str` or `int`, defaults to `"frozen"`): What of them trains, see
                `set_trainable_towers`. A loaded tower is changed, not copied.
            config_kwargs: Other arguments of [`AdaptorConfig`].

        Raises:
            OSError: if a tower's weights are not to be had; the message says how to put them in place.
        """
        if isinstance(vision_tower, (str, dict)):
            vision_tower = load_vision_tower(vision_tower)
        if isinstance(text_tower, (str, dict)):
            text_tower = load_text_tower(text_tower)
        for tower, modality in ((vision_tower, "vision"), (text_tower, "text")):
            if tower is not None:
                config_kwargs[f"{modality}_hidden_size"] = tower.hidden_size
                config_kwargs[f"{modality}_tower"] = tower.spec
        # Built without towers first: initialisation must not touch their weights.
        in_checkpoint = config_kwargs.pop("towers_in_checkpoint", False)
        model = cls(AdaptorConfig(**config_kwargs))
        model.attach_towers(vision_tower, text_tower)
        model.config.towers_in_checkpoint = in_checkpoint
        trained = {"vision_model": train_vision_tower, "text_model": train_text_tower}
        model.set_trainable_towers(**{name: value for name, value in trained.items() if value != FROZEN})
        return model

    def set_trainable_towers(
        self,
        vision_model: str | int | None = None,
        text_model: str | int | None = None,
        *,
        lora_rank: int = 8,
    ) -> None:
        """
        Choose what of the attached towers trains. `save_pretrained` then writes them as folders beside the Adaptor.

        Args:
            vision_model (`str` or `int`, *optional*): `"frozen"`, `"lora"`, `"full"` or the number of last blocks. By
                default it stays as it is.
            text_model (`str` or `int`, *optional*): The same for text.
            lora_rank (`int`, defaults to 8): Of low-rank weights (`"lora"`).

        Raises:
            ValueError: if a tower is not attached, or as of `set_trainable` of a tower.
        """
        for name, trainable in (("vision_model", vision_model), ("text_model", text_model)):
            if trainable is None:
                continue
            tower = getattr(self, name)
            if tower is None:
                raise ValueError(f"{name} is not attached, and cannot train: call load_towers() first.")
            tower.set_trainable(trainable, lora_rank=lora_rank)
        self._note_trained_towers()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Input of the vision tower.
            image_embeds (`torch.Tensor` of shape `(B, D)` or `(B, N, D)`, *optional*): Embeddings of that tower.
            image_attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 for tokens, 0 for padding.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` `(B, hidden_size)` and `last_hidden_state`, L2-normalised.
        """
        refuse_unknown(self.get_image_features, kwargs)
        outputs = self(pixel_values=pixel_values, image_embeds=image_embeds, image_attention_mask=image_attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.image_last_hidden_state, pooler_output=outputs.image_embeds
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Args:
            input_ids, attention_mask, token_type_ids (`torch.Tensor` of shape `(B, L)`, *optional*): Tower input.
            text_embeds (`torch.Tensor` of shape `(B, D)` or `(B, L, D)`, *optional*): Embeddings of that tower.
            text_attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): Mask of `text_embeds` sequences.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` `(B, hidden_size)` and `last_hidden_state`, L2-normalised.
        """
        refuse_unknown(self.get_text_features, kwargs)
        outputs = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            text_embeds=text_embeds,
            text_attention_mask=text_attention_mask,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.text_last_hidden_state, pooler_output=outputs.text_embeds
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        return_logits: bool = True,
        output_attentions: bool | None = None,
        output_tokens: bool | Collection[str] = False,
        fuse_pairs: bool = False,
        **kwargs,
    ) -> tuple | AdaptorOutput:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(B, L)`, *optional*): Tokens for the text tower.
            pixel_values (`torch.Tensor` of shape `(M, C, H, W)`, *optional*): Images for the vision tower.
            attention_mask, token_type_ids (`torch.Tensor` of shape `(B, L)`, *optional*): They go with `input_ids`.
            image_embeds (`torch.Tensor` of shape `(M, D)` or `(M, N, D)`, *optional*): Cached embeddings of the vision
                tower, not the `image_embeds` of an [`AdaptorOutput`].
            text_embeds (`torch.Tensor` of shape `(B, D)` or `(B, L, D)`, *optional*): The same of the text tower.
            image_attention_mask, text_attention_mask (`torch.Tensor` of shape `(M, N)`, `(B, L)`, *optional*): 1 for
                tokens, 0 for padding of a cached sequence. Token 0 must be 1.
            return_loss (`bool`, *optional*): Compute the contrastive loss of this batch; needs as many texts as images.
            return_logits (`bool`, defaults to `True`): `False` skips the similarity matrices.
            output_attentions (`bool`, *optional*): Return attention weights (eager attention).
            output_tokens (`bool` or collection of `"image"`, `"text"`, defaults to `False`): Of raw inputs, let the
                tower's tokens go in after its pooled embedding, as they do of a cached sequence: of both modalities
                (`True`), or of those that are named.
            fuse_pairs (`bool`, defaults to `False`): Let row i of one modality query row i of the other, as the
                reference code does with sequences. For heads that are not contrastive: before a contrastive loss it
                leaks which rows belong together.

        Raises:
            ValueError: for missing or contradicting inputs, for `fuse_pairs` with `return_loss`, or for lengths that
                cannot be fused.
            TypeError: for an unknown argument. Those that transformers and peft hand to every model are ignored.
        """
        refuse_unknown(self.forward, kwargs)
        if fuse_pairs and return_loss:
            raise ValueError(
                "fuse_pairs=True lets each image see its own text before the loss, so the loss falls without any "
                "learning of what image and text share (32-way top-1 of 93 % on pure noise). Compute a contrastive "
                "loss with fuse_pairs=False."
            )
        with_tokens = ("image", "text") if output_tokens is True else output_tokens or ()
        image = self._image_tokens(pixel_values, image_embeds, "image" in with_tokens)
        text = self._text_tokens(input_ids, attention_mask, token_type_ids, text_embeds, "text" in with_tokens)
        if image is None and text is None:
            raise ValueError("Give pixel_values or image_embeds, input_ids or text_embeds, or one of each.")
        if text is not None and text_attention_mask is None and text.shape[1] > 1 and attention_mask is not None:
            # Of a live tower whose tokens are read: those of the text, after the pooled embedding.
            text_attention_mask = torch.cat([torch.ones_like(attention_mask[:, :1]), attention_mask], 1)

        check_mask(image_attention_mask, image)
        check_mask(text_attention_mask, text)
        image, image_weights = self._pool(image, self.visual_pooling, image_attention_mask)
        text, text_weights = self._pool(text, self.text_pooling, text_attention_mask)
        image = self._project(image, self.visual_projection, "image_embeds", image_attention_mask)
        text = self._project(text, self.text_projection, "text_embeds", text_attention_mask)
        masks = (expand_mask(image_attention_mask, image), expand_mask(text_attention_mask, text))
        image, text, attentions = self._encode(image, text, *masks, bool(output_attentions), fuse_pairs)

        image_tokens = None if image is None else unit_vectors(image)
        text_tokens = None if text is None else unit_vectors(text)
        image_embeds = None if image is None else image_tokens[:, 0]
        text_embeds = None if text is None else text_tokens[:, 0]
        both = image is not None and text is not None
        if return_loss and not both:
            raise ValueError("return_loss=True needs images and texts, got one modality.")
        loss = logits_per_text = None
        if both and return_logits:
            logits_per_text = self._similarity(text_embeds, image_embeds)
        if return_loss:
            loss = self._loss(image_embeds, text_embeds)
        return AdaptorOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            image_last_hidden_state=image_tokens,
            text_last_hidden_state=text_tokens,
            attentions=attentions,
            pooler_output=None if both else image_embeds if text_embeds is None else text_embeds,
            image_pooling_weights=image_weights,
            text_pooling_weights=text_weights,
        )

    def _similarity(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        # A scale of 100 leaves half precision no digits.
        dtype = torch.promote_types(image_embeds.dtype, torch.float32)
        with torch.autocast(image_embeds.device.type, enabled=False):
            logits = self.get_logit_scale().to(dtype).exp() * (text_embeds.to(dtype) @ image_embeds.to(dtype).T)
            return logits if self.logit_bias is None else logits + self.logit_bias.to(dtype)

    def _loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        scale = self.get_logit_scale()
        if self.logit_bias is not None:
            return sigmoid_contrastive_loss(image_embeds, text_embeds, scale, self.logit_bias, normalize=False)
        weight = self.config.image_to_text_weight
        return contrastive_loss(image_embeds, text_embeds, scale, image_to_text_weight=weight, normalize=False)

    def get_logit_scale(self) -> torch.Tensor:
        """The logarithm of the similarity scale (scalar), bounded by `config.max_logit_scale` where one is set."""
        if self.config.max_logit_scale is None:
            return self.logit_scale
        return self.logit_scale.clamp(max=math.log(self.config.max_logit_scale))

    def _image_tokens(self, pixel_values, image_embeds, with_tokens: bool) -> torch.Tensor | None:
        """What enters the projection, `(M, D)` or `(M, N, D)`."""
        if pixel_values is not None:
            if image_embeds is not None:
                raise ValueError("Give pixel_values or image_embeds, not both.")
            if self.vision_model is None:
                raise ValueError(self._no_tower_message("vision", "pixel_values", "image_embeds"))
            image_embeds = self._of_tower(self.vision_model(pixel_values), with_tokens)
        elif image_embeds is not None:
            self._notice_projected(image_embeds, "image_embeds")
        return check_sequence(image_embeds, self.config.vision_hidden_size, "image_embeds")

    def _text_tokens(
        self, input_ids, attention_mask, token_type_ids, text_embeds, with_tokens: bool
    ) -> torch.Tensor | None:
        if input_ids is not None:
            if text_embeds is not None:
                raise ValueError("Give input_ids or text_embeds, not both.")
            if self.text_model is None:
                raise ValueError(self._no_tower_message("text", "input_ids", "text_embeds"))
            tower_output = self.text_model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            text_embeds = self._of_tower(tower_output, with_tokens)
        elif text_embeds is not None:
            self._notice_projected(text_embeds, "text_embeds")
        return check_sequence(text_embeds, self.config.text_hidden_size, "text_embeds")

    def _of_tower(self, output: BaseModelOutputWithPooling, with_tokens: bool) -> torch.Tensor:
        """The pooled embedding, and the tokens where they are asked for or the pooled embedding is made of them."""
        if self.config.attention_pooling_heads is None and not with_tokens:
            return output.pooler_output
        return token_sequence(output.pooler_output, output.last_hidden_state)

    def _notice_projected(self, embeds: torch.Tensor, name: str) -> None:
        # In training it would cost a synchronisation a step.
        if self.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if embeds.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        layers = self.shared_encoder.layers
        if (
            self.config.aligner == "adaptor"
            and embeds.shape[-1] == self.config.hidden_size
            and are_projected(embeds, layers[-1].layer_norm2)
        ):
            logger.warning_once(
                f"{name} look like projected embeddings that came out of this Adaptor. It takes tower embeddings: "
                "those of the cache, or model.vision_model(...).pooler_output and model.text_model(...).pooler_output. "
                "Compare projected embeddings with each other: image_embeds @ text_embeds.T."
            )

    def _no_tower_message(self, modality: str, raw: str, cached: str) -> str:
        spec = getattr(self.config, f"{modality}_tower")
        known = f"its config names {spec['name_or_path']!r}" if spec else "its config names none"
        return (
            f"{raw} needs the {modality} tower, which is not attached ({known}). Call model.load_towers(), or pass "
            f"{cached} computed by that tower."
        )

    def _pool(
        self, embeds: torch.Tensor | None, pooling: AttentionPooling | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if embeds is None or pooling is None:
            return embeds, None
        return pool_sequence(pooling, embeds.to(input_dtype(pooling, self.dtype)), mask)

    def _project(
        self, embeds: torch.Tensor | None, projection: nn.Module, name: str, mask: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Unit vectors `(B, N, hidden_size)` of embeddings."""
        if embeds is None:
            return None
        dtype = input_dtype(projection, self.dtype)
        if self.config.aligner == "mlp":
            tokens = None
            if self.config.token_projection:
                tokens = self.visual_token_projection if name == "image_embeds" else self.text_token_projection
            return unit_vectors(project_sequence(projection, tokens, embeds.to(dtype), mask)).to(dtype)
        return unit_vectors(projection(embeds.to(dtype))).to(dtype)

    def _encode(self, image, text, image_mask, text_mask, output_attentions, fuse_pairs):
        if fuse_pairs and not len(self.shared_encoder.layers):
            raise ValueError(
                f"fuse_pairs=True needs layers that attend, and the aligner {self.config.aligner!r} has none. Use "
                'aligner "adaptor" or "residual".'
            )
        before = image, text
        image, text, attentions = self.shared_encoder(image, text, image_mask, text_mask, output_attentions, fuse_pairs)
        if self.residual_scale is not None:
            image, text = (
                None if start is None else self.residual_scale(start, branch)
                for start, branch in zip(before, (image, text), strict=True)
            )
        return image, text, attentions


__all__ = ["AdaptorModel", "AdaptorOutput", "AdaptorPreTrainedModel"]
