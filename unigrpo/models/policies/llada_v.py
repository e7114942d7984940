"""LLaDA-V: the LLaDA body under Llama's names, with a SigLIP2 tower whose tiles are not pooled.

Written from the conversion script's names, the training configs and the tensors of ML-GSAI/LLaDA-V. The body is
bidirectional; in a conversation the answers end with ``<|eot_id|>``, and the released sampler never draws the ids that
end, start or head a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from unigrpo.models.layers.attention import visible_keys
from unigrpo.models.layers.decoder import Decoder, DecoderConfig
from unigrpo.models.llava import Eye, LlavaPolicy, embed
from unigrpo.types import ModelInput


class LladaV(Decoder):
    """The body with its eye."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        sizes = DecoderConfig.from_dict({"rms_norm_eps": 1e-5, **config})
        super().__init__(sizes)
        self.eye = Eye(self.model, config, sizes.hidden_size)


class LladaVPolicy(LlavaPolicy):
    """LLaDA-V behind the policy contract (`unigrpo.models.base.Policy`): pictures and text in, text out."""

    module: LladaV

    def __init__(self, **given: Any) -> None:
        """Take what every policy takes; a completion ends with the end of the turn, where its id is known."""
        super().__init__(**given)
        special = self.vocabulary.special or {}
        self.banned_ids = (
            *{
                self.vocabulary.pad_token_id,
                *(special[name] for name in ("bos", "start_header", "end_header") if name in special),
            },
        )
        if "eot" in special:
            self.vocabulary = replace(self.vocabulary, eos_token_id=special["eot"])

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> LladaV:
        """Return the body of a config.json."""
        return LladaV(config)

    @property
    def lora_targets(self) -> list[str]:
        """Return the full names of the seven linear layers of every layer of the language body."""
        return self.module.linear_names

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm."""
        embedded = embed(self.module.model.embed_tokens, model_input.token_ids, model_input.image_features)
        return self.module(None, visible_keys(model_input.is_padding), model_input.positions, embedded=embedded)
