"""BERT, ModernBERT and every other encoder of transformers with a masked-language-model head, as a diffusion policy.

The body is transformers' own class, so that names of tensors and adapters are its own; mask, EOS and padding are those
of the checkpoint's tokenizer (DiffusionBERT, arXiv 2211.15029). Bidirectional by construction; no shift.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.files import optional_file
from unigrpo.models.base import Abilities
from unigrpo.models.files.folders import read_json
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.models.layers.attention import positions_of
from unigrpo.models.layers.head import project, suppress
from unigrpo.models.layers.transformers_body import fill_buffers, set_recomputing
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ModelInput, Prompt

if TYPE_CHECKING:
    pass

TOKEN_ROLES = {
    "mask": ("mask_token",),
    "eos": ("eos_token", "sep_token"),
    "pad": ("pad_token",),
    "bos": ("cls_token", "bos_token"),
}
"""Our name of an id, and the tokenizer's names of the token, the first that it has."""


class MaskedLmPolicy(TextPolicy):
    """Any ``AutoModelForMaskedLM`` behind the policy contract: text in, text out.

    Raises:
        UserError: a class whose logits are not one linear layer of its last hidden states.
    """

    abilities = Abilities(tasks=("reason",))
    model_types = ("bert", "modernbert")
    architectures = ("*ForMaskedLM",)
    unused_tensors = r"^cls\.seq_relationship\.|(^|\.)pooler\.|\.position_ids$"
    layouts = r"""
    bert:
      title: BERT and any `AutoModelForMaskedLM`
      checkpoints: base, large
      compared_with: transformers' own class, enumeration
      config: {architectures: [BertForMaskedLM], model_type: bert, attention_probs_dropout_prob: 0.1,
        hidden_act: gelu, hidden_dropout_prob: 0.1, hidden_size: 64, initializer_range: 0.02,
        intermediate_size: 128, layer_norm_eps: 1.0e-12, max_position_embeddings: 512, num_attention_heads: 4,
        num_hidden_layers: 2, tie_word_embeddings: true, type_vocab_size: 2}
      ids: {pad_token_id: '[PAD]'}
      special_tokens: ['[PAD]', '[CLS]', '[SEP]', '[MASK]']
      chat_template: "[CLS]{% for message in messages %}[Question]{{ message['content'] }}[/Question]{% endfor\
        \ %}{% if add_generation_prompt %}[Answer]{% endif %}"
      bos_token: '[CLS]'
      eos_token: '[SEP]'
      mask_token: '[MASK]'
      releases:
        base: {hidden_size: 768, intermediate_size: 3072, num_hidden_layers: 12, num_attention_heads: 12,
          vocab_size: 30522}
        large: {hidden_size: 1024, intermediate_size: 4096, num_hidden_layers: 24, num_attention_heads: 16,
          vocab_size: 30522}
    modernbert:
      title: ModernBERT
      checkpoints: base, large
      compared_with: transformers' own class, enumeration
      config: {architectures: [ModernBertForMaskedLM], model_type: modernbert, attention_bias: false,
        attention_dropout: 0.0, classifier_activation: gelu, classifier_bias: false, decoder_bias: true,
        embedding_dropout: 0.0, global_attn_every_n_layers: 3, global_rope_theta: 160000.0, hidden_activation: gelu,
        hidden_size: 64, initializer_range: 0.02, intermediate_size: 96, local_attention: 128,
        local_rope_theta: 10000.0, max_position_embeddings: 8192, mlp_bias: false, mlp_dropout: 0.0,
        norm_bias: false, norm_eps: 1.0e-05, num_attention_heads: 4, num_hidden_layers: 3, tie_word_embeddings: true}
      ids: {pad_token_id: '[PAD]', cls_token_id: '[CLS]', sep_token_id: '[SEP]', eos_token_id: '[SEP]',
        bos_token_id: '[CLS]'}
      special_tokens: ['[PAD]', '[CLS]', '[SEP]', '[MASK]']
      chat_template: "[CLS]{% for message in messages %}[Question]{{ message['content'] }}[/Question]{% endfor\
        \ %}{% if add_generation_prompt %}[Answer]{% endif %}"
      bos_token: '[CLS]'
      eos_token: '[SEP]'
      mask_token: '[MASK]'
      releases:
        base: {hidden_size: 768, intermediate_size: 1152, num_hidden_layers: 22, num_attention_heads: 12,
          vocab_size: 50368}
        large: {hidden_size: 1024, intermediate_size: 2624, num_hidden_layers: 28, num_attention_heads: 16,
          vocab_size: 50368}
    """

    token_text: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        fill_buffers(self.module)
        embeddings = getattr(self.module.base_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        padding_row = getattr(table, "padding_idx", None)
        self._first_position = 0 if padding_row is None else padding_row + 1
        rows = table.num_embeddings - self._first_position if isinstance(table, nn.Embedding) else None
        self._max_length = rows or getattr(self.module.config, "max_position_embeddings", None)
        self.context_length = self._max_length
        self._takes_positions = "position_ids" in inspect.signature(self.module.forward).parameters
        self._is_recomputed = False
        self._check_head()

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' module of a config.json.

        Raises:
            UserError: a model type that transformers does not know, or one without a linear output layer.
        """
        from transformers import AutoConfig, AutoModelForMaskedLM

        values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "dtype")}
        settings = AutoConfig.for_model(config["model_type"], **values)
        module: nn.Module = AutoModelForMaskedLM.from_config(settings)
        output_layer = module.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(output_layer, nn.Linear):
            raise UserError(f"{type(module).__name__} has no linear output layer; this policy needs one")
        return module

    @classmethod
    def module_name(cls, stored: str) -> str | None:
        """Return the module's name of a tensor; old checkpoints name the norms' weights gamma and beta."""
        name = super().module_name(stored)
        return name and re.sub(
            r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        )

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config with the ids of the tokenizer's own mask, end, padding and start tokens."""
        if not optional_file(folder / "tokenizer.json"):
            return dict(config)
        tokenizer = TextTokenizer.from_folder(folder)
        texts: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if optional_file(folder / name):
                texts |= read_json(folder / name)
        ids: dict[str, int] = {}
        for role, names in TOKEN_ROLES.items():
            entries = [texts[name] for name in names if texts.get(name)]
            found = [tokenizer.token_id(entry["content"] if isinstance(entry, dict) else entry) for entry in entries]
            known = [token for token in found if token is not None]
            if known:
                ids[f"{role}_token_id"] = known[0]
        return dict(config) | ids

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return chat-template ids.

        Without a template: the start token, then each message with the end token after it, as these encoders were
        trained to see sentences.
        """
        tokenizer = self.text_tokenizer
        if tokenizer.chat_template is not None:
            return super()._prompt_ids(prompt)
        special = self.vocabulary.special or {}
        ids = [special["bos"]] if "bos" in special else []
        for message in prompt.messages:
            ids += [*tokenizer.encode(message.text), self.vocabulary.eos_token_id]
        return ids

    def recompute_blocks(self, is_recomputed: bool) -> None:
        """Have transformers compute each layer again in backward, or not."""
        self._is_recomputed = is_recomputed

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D]: what the output layer multiplies, the head's own transform included.

        Raises:
            UserError: a row longer than the learned positions reach, or positions that the class does not take.
        """
        captured: list[Tensor] = []

        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            captured.append(inputs[0])
            return (inputs[0][:, :0],)  # no logits are computed

        set_recomputing(self.module, self._is_recomputed and torch.is_grad_enabled())
        handle = self.module.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            self.module(**self._arguments(model_input))
        finally:
            handle.remove()
        return captured[0]

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] over a half-open range of ids (None: all of V), as every policy does.

        Raises:
            UserError: a range outside the embedding.
        """
        logits = project(hidden, self.module.get_output_embeddings(), vocabulary_range, self.vocabulary.size)
        return suppress(self.vocabulary.mask_token_id, logits, vocabulary_range)

    def _arguments(self, model_input: ModelInput) -> dict[str, Tensor]:
        """Return the class's own arguments; positions count from a row's first token that is no padding."""
        ids, is_padding, positions = model_input.token_ids, model_input.is_padding, model_input.positions
        if self._max_length is not None and ids.shape[1] > self._max_length:
            raise UserError(
                f"a row has {ids.shape[1]} tokens, {self.source or 'this policy'} has positions for "
                f"{self._max_length}; shorten prompts or sampling.completion_length"
            )
        arguments = {"input_ids": ids}
        if is_padding is not None and bool(is_padding.any()):
            # A row that is padding from end to end sees itself: no softmax over nothing, hence no NaN.
            arguments["attention_mask"] = (~is_padding | is_padding.all(dim=1, keepdim=True)).long()
            if positions is None:
                positions = positions_of(is_padding)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if self._takes_positions:
            arguments["position_ids"] = positions + self._first_position
        elif model_input.positions is not None:
            raise UserError(
                f"{type(self.module).__name__} takes no position ids; pad rows on the right, leave them out"
            )
        return arguments

    @torch.no_grad()
    def _check_head(self) -> None:
        """Prove at loading that ``head(hidden)`` gives the class's own logits."""
        model_input = ModelInput(token_ids=torch.zeros(1, 2, dtype=torch.int64, device=self.device))
        wanted = self.module(**self._arguments(model_input)).logits
        found = self.head(self.hidden(model_input))
        if not torch.allclose(found, wanted, atol=1e-3, rtol=1e-2):
            raise UserError(
                f"{type(self.module).__name__} does something to its logits after the output layer; this policy reads "
                "classes whose logits are that layer's"
            )
