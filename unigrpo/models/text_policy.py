"""What every family shares behind the policy contract: the tokenizer, text canvases, the head over a range of ids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.models.files.folders import public_name
from unigrpo.models.files.vocabulary import TOKEN_TEXT
from unigrpo.models.layers.head import suppress
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from unigrpo.models.base import Vocabulary
    from unigrpo.models.files.tokenizer import TextTokenizer
    from unigrpo.settings.policy import LoraSettings
    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Canvas, ImageFit, Prompt, Span


def lora_layers(module: nn.Module, frozen_parts: tuple[str, ...]) -> list[str]:
    """Return the full names of the linear layers that LoRA wraps by default: see `TextPolicy.lora_targets`."""
    return [
        name.removesuffix(".base_layer")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and any(part.isdigit() for part in name.split("."))
        and not name.startswith(frozen_parts)
        and ".lora_" not in name
        and ".experts." not in name
    ]


class TextPolicy(ABC):
    """A policy (`unigrpo.models.base.Policy`) that reads and writes text; a family says how its body is built.

    A family is one file of `unigrpo.models.policies`, or a user's. Its class writes the facts below as literals, since
    `unigrpo.plugin.facts` reads them from source; those of a parent class are not looked up there.

    The body is called with token ids, padding and positions, gives [N, L, D] after the final norm, and has
    ``head(hidden, vocabulary_range)`` and ``is_checkpointing``. A family with another call writes its own `hidden`.

    Args:
        module: the body; its parameters are what trains.
        vocabulary: the token ids.
        tokenizer: text to ids; None for a checkpoint without tokenizer files, which then takes ids only.
        source: the folder or hub id that the weights came from; adapters name it as their base.
        image_size: side in pixels of the pictures in prompts, where the family reads pictures.
        image_fit: how they become squares; None is the release's way.
    """

    abilities: Abilities = Abilities()
    model_types: ClassVar[tuple[str, ...]] = ()
    """Values of config.json's ``model_type`` that are this family's."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """Values of its ``architectures``, or (diffusers) its ``_class_name``; shell patterns."""
    borrowed_types: ClassVar[tuple[str, ...]] = ()
    """Model types of other families that stand in files of this one; there the architecture decides."""
    hub_names: ClassVar[tuple[str, ...]] = ()
    """Parts of the names, in lower case, under which the family is published."""
    released_sizes: ClassVar[str] = ""
    """In YAML, `unigrpo.sizing.model_size.ModelSize` of checkpoints not here, by how their name on the hub starts."""
    unused_tensors: ClassVar[str] = r"(?!)"
    """A pattern of tensors of released files that the body does not need; by default none."""
    layouts: ClassVar[str] = ""
    """In YAML, what a random checkpoint in each released layout is made of: `unigrpo.testing.tiny.layouts.Layout`."""

    token_text: ClassVar[Mapping[str, str]] = TOKEN_TEXT
    """The tokens by which the family's tokenizer file names the ids (mask, eos, ...)."""
    required_text: ClassVar[tuple[str, ...]] = ()
    """What the tokenizer must bring back from its own ids, such as the tags of a thought."""
    greedy: ClassVar[Mapping[str, Any]] = {"temperature": 0.0, "remasking_temperature": 0.0}
    """What a task's sampling settings become where evaluation takes a completion for the policy's best."""
    frozen_parts: tuple[str, ...] = ()
    """How the names of the parts of the module begin that never train, so that an adapter there gets no gradient."""

    banned_ids: tuple[int, ...] = ()
    """Ids that the released sampler never draws; log-probs are of the distribution with them."""

    context_length: int | None = None
    """Tokens of the longest row that the checkpoint was made for; None where its files do not say."""

    adapter: LoraSettings | None = None
    """The adapter that `unigrpo.models.adapter` put on, its targets as full names; None: all weights train."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    base_digest: str = ""
    """What tells the weights, merged adapters included, from others (`unigrpo.models.files.weights.weights_digest`)."""
    folder: Path | None = None
    """Where the files are that came with the weights: config.json, tokenizer."""
    image_tokenizer: Any = None
    """encode(pixels [N, 3, H, W] in [-1, 1]) -> codes [N, K]; decode(codes, grid=None) -> pixels."""

    def __init__(
        self,
        *,
        module: Any,
        vocabulary: Vocabulary,
        tokenizer: TextTokenizer | None = None,
        source: str = "",
        image_size: int = 512,
        image_fit: ImageFit | None = None,
    ) -> None:
        self.module, self.vocabulary, self.tokenizer, self.source = module, vocabulary, tokenizer, source
        self.image_size, self.image_fit = image_size, image_fit or self.abilities.image_fit
        if tokenizer is not None:
            tokenizer.reserve(vocabulary.reserved)
        self.base_names: tuple[str, ...] = (public_name(source),)

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config with what the family keeps in other files of the folder; by default nothing."""
        return dict(config)

    @classmethod
    @abstractmethod
    def build(cls, config: Mapping[str, Any]) -> nn.Module:
        """Return the body of a config.json; called under ``torch.device("meta")``.

        Raises:
            UserError: a config value that the family's code does not compute.
        """

    @classmethod
    def module_name(cls, stored: str) -> str | None:
        """Return the body's name of a tensor of the files; None for one that the body does not need."""
        return None if re.search(cls.unused_tensors, stored) else stored

    @classmethod
    def stored_name(cls, own: str) -> str:
        """Return the files' name of a tensor of the body: the way back from `module_name`."""
        return own

    @classmethod
    def embedding_rows(cls, config: Mapping[str, Any]) -> int:
        """Return the rows of the embedding that a config.json asks for."""
        return int(config.get("embedding_size") or config["vocab_size"])

    @classmethod
    def codebook_size(cls, config: Mapping[str, Any]) -> int | None:
        """Return the number of image codes of a config.json; None for a family that writes no pictures."""
        return None

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.module.parameters()).device

    @property
    def lora_targets(self) -> list[str]:
        """Return the full names of the linear layers that LoRA wraps by default, whether an adapter is on them or not.

        They are those of the numbered blocks, so the head is not among them. Neither are routed experts: there are
        hundreds, and in one update most get few tokens or none. Their full names may be given as targets.
        """
        return lora_layers(self.module, self.frozen_parts)

    def image_features(self, images: Sequence[Image]) -> Tensor | None:
        """Return [F, D]: a prompt's pictures as its canvas holds them; None for a family that reads no pixels."""
        return None

    def recompute_blocks(self, is_recomputed: bool) -> None:
        """Have each block computed again in backward, or not: less memory, more time."""
        self.module.is_checkpointing = is_recomputed

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm."""
        return self.module(model_input.token_ids, model_input.is_padding, model_input.positions)

    def head(self, hidden: Tensor, vocabulary_range: tuple[int, int] | None = None) -> Tensor:
        """Return logits [..., V'] over a half-open range of ids (None: all of V); only those rows are multiplied.

        Inside a range the mask token has no probability, for sampler and learner alike: it is noise, not a completion.
        Over all of V it keeps its logit, as in the released samplers.
        """
        logits = self.module.head(hidden, vocabulary_range)
        return suppress(self.vocabulary.mask_token_id, logits, vocabulary_range)

    def logits(self, token_ids: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Return [N, L, V]: head after hidden, for checks and small models."""
        return self.head(self.hidden(ModelInput(token_ids=token_ids, is_padding=is_padding)))

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return chat-template ids and one open text span.

        Raises:
            UserError: a task other than reason, or a prompt with pictures.
        """
        from unigrpo.models import canvas as layout

        if prompt.kind != "reason" or prompt.images:
            raise UserError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r} with {len(prompt.images)} pictures; this policy "
                "is for text only. MMaDA, LLaDA-V, LaViDa and Show-o read pictures; MMaDA and Show-o write them"
            )
        return layout.text_canvas(((self._prompt_ids(prompt), None),), sampling, self.vocabulary)

    def num_prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt gives; pictures are counted, not read."""
        return len(self._prompt_ids(prompt))

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.text_tokenizer.encode_chat(prompt.messages)

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer.

        Raises:
            UserError: the checkpoint has none.
        """
        if self.tokenizer is None:
            raise UserError(
                f"{self.source or 'this policy'} was loaded without tokenizer files, so it takes token ids only; put "
                "tokenizer.json and tokenizer_config.json beside the weights, or give load_policy(tokenizer=FOLDER)"
            )
        return self.tokenizer

    def decode_text(self, token_ids: np.ndarray) -> str:
        """Return the text of a span's ids, up to the first one that ends a text, without special tokens."""
        ends = self.vocabulary.ends
        return self.text_tokenizer.decode(list(takewhile(lambda token: token not in ends, map(int, token_ids))))

    def decode_image(self, token_ids: np.ndarray, span: Span) -> Image:
        """Refuse: the vocabulary has no image codes.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.source or 'this policy'} has no image codes to decode; MMaDA and Show-o write pictures")
