"""DiffusionGemma through transformers' own class: a prompt is read causally, then blocks of random ids are denoised.

One set of text weights plays both parts. Generation only: noise is a random id here, not the mask token, so that every
estimator's question (which token stood under this mask?) has no meaning for it. Text only; the released class reads
pictures too, which this policy does not offer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.files import optional_file
from unigrpo.models.base import Abilities, UniformSampling
from unigrpo.models.files.folders import read_json
from unigrpo.models.layers.attention import positions_of
from unigrpo.models.layers.head import project, suppress
from unigrpo.models.layers.transformers_body import fill_buffers
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    from transformers import DynamicCache

OPEN_MARK = 4
"""Gemma's <mask>, which marks the open positions of a block; the model never sees it."""

SAMPLING_KEYS = {
    "t_min": "lowest_temperature",
    "t_max": "highest_temperature",
    "stability_threshold": "stability_threshold",
    "confidence_threshold": "confidence_threshold",
}
"""Names of generation_config.json and ours."""


@dataclass(kw_only=True, slots=True)
class _Read:
    """What the encoder keeps of rows: keys and values, and where they come from."""

    cache: DynamicCache
    is_real: Tensor
    """[N, P] bool: positions that are not padding."""
    last_hidden: Tensor
    """[N, p, D] of the positions read last."""

    @property
    def next_position(self) -> Tensor:
        """Return [N, 1]: the first position after those read."""
        return self.is_real.sum(dim=1, keepdim=True)


class DiffusionGemmaPolicy(TextPolicy):
    """DiffusionGemma behind the policy contract, and behind `unigrpo.models.base.UniformPolicy`: text in, text out."""

    abilities = Abilities(
        tasks=("reason",),
        untrained=("reason", "understand", "imagine"),
        why_untrained="DiffusionGemma is noised with random ids, not with a mask token, and no estimator here scores "
        "that; it generates only",
        attention="block_autoregressive",
        corruption="uniform",
    )
    model_types = ("diffusion_gemma",)
    architectures = ("DiffusionGemmaForBlockDiffusion",)
    layouts = r"""
    diffusion_gemma:
      title: DiffusionGemma
      checkpoints: 26B-A4B
      golden: diffusion_gemma_tiny
      config: {architectures: [DiffusionGemmaForBlockDiffusion], model_type: diffusion_gemma,
        canvas_length: 8, initializer_range: 0.02, tie_word_embeddings: true, text_config: {
          attention_bias: false, attention_dropout: 0.0, final_logit_softcapping: 30.0,
          head_dim: 16, hidden_activation: gelu_pytorch_tanh, hidden_size: 64, initializer_range: 0.02,
          intermediate_size: 96, layer_types: [sliding_attention, sliding_attention,
            full_attention], max_position_embeddings: 4096, model_type: diffusion_gemma_text,
          moe_intermediate_size: 32, num_attention_heads: 4, num_experts: 8, num_hidden_layers: 3,
          num_key_value_heads: 2, per_layer_config: {'2': {head_dim: 32, num_key_value_heads: 1}},
          rms_norm_eps: 1.0e-06, rope_parameters: {full_attention: {partial_rotary_factor: 0.25,
              rope_theta: 1000000.0, rope_type: proportional}, sliding_attention: {rope_theta: 10000.0,
              rope_type: default}}, sliding_window: 8, tie_word_embeddings: true, top_k_experts: 2,
          use_bidirectional_attention: vision}, vision_config: {attention_bias: false,
          attention_dropout: 0.0, head_dim: 16, hidden_activation: gelu_pytorch_tanh,
          hidden_size: 32, initializer_range: 0.02, intermediate_size: 48, max_position_embeddings: 131072,
          model_type: gemma4_vision, num_attention_heads: 2, num_hidden_layers: 2, num_key_value_heads: 2,
          patch_size: 4, pooling_kernel_size: 2, position_embedding_size: 64, rms_norm_eps: 1.0e-06,
          rope_parameters: {rope_theta: 100.0, rope_type: axial}, standardize: false,
          use_clipped_linears: false}}
      ids: {text_config.eos_token_id: <eos>, text_config.bos_token_id: <bos>,
        text_config.pad_token_id: <pad>, boi_token_id: <|image>, eoi_token_id: <image|>,
        image_token_id: <|image|>}
      special_tokens: [<pad>, <eos>, <bos>, <|turn>, <turn|>, <|image>, <image|>, <|image|>]
      chat_template: "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n{{\
        \ message['content'] }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n\
        {% endif %}"
      bos_token: <bos>
      eos_token: <eos>
      vocabulary_keys: [text_config.vocab_size]
      layers_key: text_config.num_hidden_layers
      width_key: text_config.hidden_size
      releases:
        26b-a4b: {canvas_length: 256, text_config.hidden_size: 2816, text_config.num_hidden_layers: 30,
          text_config.num_attention_heads: 16, text_config.num_key_value_heads: 8, text_config.head_dim: 256,
          text_config.per_layer_config: {'5': {head_dim: 512, num_key_value_heads: 2}},
          text_config.layer_types: [sliding_attention, sliding_attention, sliding_attention,
            sliding_attention, sliding_attention, full_attention], text_config.intermediate_size: 2112,
          text_config.moe_intermediate_size: 704, text_config.num_experts: 128, text_config.top_k_experts: 8,
          text_config.vocab_size: 262144, text_config.sliding_window: 1024, vision_config.hidden_size: 1152,
          vision_config.intermediate_size: 4304, vision_config.num_hidden_layers: 27,
          vision_config.num_attention_heads: 16, vision_config.num_key_value_heads: 16,
          vision_config.head_dim: 72, vision_config.patch_size: 16, vision_config.pooling_kernel_size: 3,
          vision_config.position_embedding_size: 10240, vision_config.standardize: true}
      files: {generation_config.json: {confidence_threshold: null, max_denoising_steps: null,
          t_max: null, sampler_config: null, stability_threshold: null, t_min: null}}
    """

    token_text: ClassVar[Mapping[str, str]] = {"mask": "<mask>", "eot": "<turn|>"}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        fill_buffers(self.module)
        self.block_length = int(self.module.config.canvas_length)
        self.block_sampling = block_sampling(self.module.config.block_sampling)

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config with the ids of its text part, and the sampler's settings of generation_config.json."""
        text = config.get("text_config") or {}
        path = folder / "generation_config.json"
        generation = read_json(path) if optional_file(path) else {}
        ends = generation.get("eos_token_id", config.get("eos_token_id", text.get("eos_token_id")))
        if isinstance(ends, list):  # of a chat model: the end of a text, the end of a turn, in any order
            ends = next((end for end in ends if end != text.get("eos_token_id")), text.get("eos_token_id"))
        ids = {"eos": ends, "pad": text.get("pad_token_id"), "bos": text.get("bos_token_id"), "mask": OPEN_MARK}
        known = {f"{name}_token_id": token for name, token in ids.items() if token is not None}
        return known | dict(config) | {"eos_token_id": ends, "block_sampling": dict(generation)}

    @classmethod
    def embedding_rows(cls, config: Mapping[str, Any]) -> int:
        """Return the rows of the embedding that a config.json asks for."""
        return int(config["text_config"]["vocab_size"])

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' module of a config.json."""
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

        values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "dtype")}
        settings = DiffusionGemmaConfig(**values)
        settings._attn_implementation = "sdpa"  # the eager path fails on padding
        module: nn.Module = DiffusionGemmaForBlockDiffusion(settings)
        return module

    @property
    def lora_targets(self) -> list[str]:
        """Return the full names of the linear layers of the decoder's blocks; nothing trains them."""
        return [name for name in super().lora_targets if name.startswith("model.decoder.")]

    def recompute_blocks(self, is_recomputed: bool) -> None:
        """Do nothing: nothing trains it."""

    @torch.no_grad()
    def read(self, token_ids: Tensor, is_padding: Tensor | None = None, kept: _Read | None = None) -> _Read:
        """Return keys and values of rows [N, P], which come after what was kept.

        Raises:
            UserError: nothing to read.
        """
        from transformers import DynamicCache

        if token_ids.shape[1] == 0:
            raise UserError("there is no prompt to read; start rows with a token, such as <bos>")
        config = self.module.config
        is_real = torch.ones_like(token_ids, dtype=torch.bool) if is_padding is None else ~is_padding
        # A row that is padding from end to end sees itself: no softmax over nothing, hence no NaN.
        is_real = is_real | ~is_real.any(dim=1, keepdim=True) if kept is None else is_real
        cache = DynamicCache(config=config.get_text_config(decoder=True)) if kept is None else kept.cache
        earlier = is_real[:, :0] if kept is None else kept.is_real
        everything = torch.cat((earlier, is_real), dim=1)
        positions = positions_of(~everything)[:, earlier.shape[1] :]
        encoder = self.module.model.encoder
        places = torch.arange(earlier.shape[1], everything.shape[1], device=token_ids.device)[None]
        shape_alone = torch.empty(*token_ids.shape, 0, dtype=self.module.dtype, device=token_ids.device)
        masks = encoder.create_masks_for_generate(config, shape_alone, everything, cache, places)
        output = encoder(
            input_ids=token_ids,
            attention_mask=masks,
            position_ids=positions,
            use_cache=True,
            **{cache_argument(encoder): cache},
        )
        return _Read(cache=cache, is_real=everything, last_hidden=output.last_hidden_state)

    @torch.no_grad()
    def denoise(self, block: Tensor, kept: _Read, previous: Tensor | None) -> Tensor:
        """Return logits [N, B, V] of a block's ids [N, B], in float32, given the tempered ones of the step before."""
        return self.head(self._decode(block, kept, previous))

    def _decode(self, block: Tensor, kept: _Read, previous: Tensor | None) -> Tensor:
        decoder, config = self.module.model.decoder, self.module.config
        is_real = torch.cat((kept.is_real, torch.ones_like(block, dtype=torch.bool)), dim=1)
        masks = decoder.create_diffusion_decoder_attention_mask(config, block[..., None], kept.cache, is_real)
        positions = kept.next_position + torch.arange(block.shape[1], device=block.device)[None]
        if previous is not None:
            previous = previous.to(decoder.embed_tokens.weight.dtype)
        output = decoder(
            decoder_input_ids=block,
            self_conditioning_logits=previous,
            decoder_attention_mask=masks,
            decoder_position_ids=positions,
            **{cache_argument(decoder): kept.cache},
        )
        return output.last_hidden_state

    @torch.no_grad()
    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D]: the encoder's states of a prompt, then the decoder's of one block at a row's end.

        The block is what comes after ``prompt_lengths``, or else the last ``block_length`` tokens, and never a row's
        first token.

        Raises:
            UserError: prompts of different lengths.
        """
        ids = model_input.token_ids
        is_real = torch.ones_like(ids, dtype=torch.bool)
        if model_input.is_padding is not None:
            is_real = ~model_input.is_padding | model_input.is_padding.all(dim=1, keepdim=True)
        order = is_real.long().argsort(dim=1, stable=True)  # padding first, so that every block ends with its row
        place = order.argsort(dim=1)
        length = min(self.block_length, max(1, int(is_real.sum(dim=1).min()) - 1))
        if model_input.prompt_lengths is not None:
            lengths = is_real.sum(dim=1) - model_input.prompt_lengths
            if bool((lengths != lengths[0]).any()):
                raise UserError(f"blocks of {lengths.tolist()} tokens; give rows with blocks of one length")
            length = int(lengths[0])
        ids, is_real = ids.gather(1, order), is_real.gather(1, order)
        kept = self.read(ids[:, :-length], ~is_real[:, :-length])
        hidden = torch.cat((kept.last_hidden, self._decode(ids[:, -length:], kept, None)), dim=1)
        return hidden.gather(1, place[..., None].expand_as(hidden))

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] in float32, soft-capped, over a half-open range of ids (None: all of V).

        Raises:
            UserError: a range outside the embedding.
        """
        layer, cap = self.module.lm_head, self.module.final_logit_softcapping
        logits = project(hidden, layer, vocabulary_range, layer.out_features).float().div_(cap).tanh_().mul_(cap)
        return suppress(self.vocabulary.mask_token_id, logits, vocabulary_range)


def cache_argument(body: nn.Module) -> str:
    """Return how a body's ``forward`` calls its cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


def block_sampling(generation: Mapping[str, Any]) -> UniformSampling:
    """Return the sampler's settings of a generation_config.json; what it leaves open is the released default.

    Raises:
        UserError: another sampler than the entropy-bound one.
    """
    values = {ours: generation[name] for name, ours in SAMPLING_KEYS.items() if generation.get(name) is not None}
    sampler = generation.get("sampler_config")
    if isinstance(sampler, Mapping):
        if sampler.get("_cls_name", "EntropyBoundSamplerConfig") != "EntropyBoundSamplerConfig":
            raise UserError(f"generation_config.json asks for {sampler['_cls_name']}; only the entropy bound is known")
        values["entropy_bound"] = float(sampler["entropy_bound"])
    return UniformSampling(**values)
