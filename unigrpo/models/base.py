"""The contract between a policy and everything that samples from it or trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from PIL.Image import Image

    from unigrpo.models.files.tokenizer import TextTokenizer
    from unigrpo.settings.policy import LoraSettings
    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Canvas, ImageFit, ModelInput, Prompt, Span, TaskKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Token ids that the algorithms need; all sizes and ids come from the checkpoint's own files."""

    size: int
    """Rows of the embedding."""
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    """Equals eos in released tokenizers, so padding is never inferred from it."""
    text_range: tuple[int, int]
    """Half-open range of ids that text may use."""
    image_range: tuple[int, int] | None = None
    """Half-open range of the image codes; None for a text-only policy."""
    special: dict[str, int] | None = None
    """Named ids: bos, soi, eoi, t2i, mmu, ipad, start_header, end_header, eot."""
    other_ends: tuple[int, ...] = ()
    """Further ids that end a text: a chat model ends a turn, or the whole text."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Return every id that ends a text, the one that fills a tail first."""
        return tuple(dict.fromkeys((self.eos_token_id, *self.other_ends)))

    @property
    def reserved(self) -> frozenset[int]:
        """Return the ids that mean something of their own, so that no text may hold them."""
        return frozenset((self.mask_token_id, self.pad_token_id, *self.ends, *(self.special or {}).values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """What a family can do, which its class says in literals: it is known before torch is imported."""

    tasks: tuple[TaskKind, ...] = ("reason",)
    """What it generates."""
    untrained: tuple[TaskKind, ...] = ()
    """Tasks that the learner refuses."""
    why_untrained: str = ""
    attention: Literal["full", "prefix", "block_causal", "block_autoregressive", "omni"] = "full"
    """Who sees whom. prefix: a prompt sees the prompt only (`PrefixPolicy`); block_causal: a block sees itself and the
    blocks before it (`BlockCausalPolicy`); block_autoregressive: a block sees itself and what was read before it, which
    is causal (`UniformPolicy`); omni: text sees what stands before it, a picture that is written sees everything."""
    corruption: Literal["mask", "uniform"] = "mask"
    """What noise puts at a position: the mask token, or a random id; then the mask token only marks what is open."""
    pictures: Literal["none", "codes", "pixels"] = "none"
    """How pictures are read: by the codes of an image tokenizer, or by a vision encoder of the policy's own."""
    image_fit: ImageFit = "crop"
    """How the release makes a square of a picture that is read by codes, where the data does not say."""

    @property
    def cached(self) -> str | None:
        """Return of what the sampler may keep keys and values, always with the tokens of a full pass."""
        kept = {
            "prefix": "prompt",
            "block_causal": "finished blocks",
            "block_autoregressive": "prompt and finished blocks",
        }
        return kept.get(self.attention)

    @property
    def is_edited(self) -> bool:
        """Return whether the sampler may replace tokens of a block that is worked on (``editing_threshold``)."""
        return self.attention == "block_causal"

    @property
    def trained(self) -> tuple[TaskKind, ...]:
        """Return the tasks that the learner trains."""
        return tuple(task for task in self.tasks if task not in self.untrained)


class Policy(Protocol):
    """A masked-diffusion model with its tokenizer, seen from outside."""

    abilities: Abilities
    vocabulary: Vocabulary
    tokenizer: TextTokenizer | None
    """None for a checkpoint without tokenizer files: token ids only."""
    adapter: LoraSettings | None
    """The adapter that `unigrpo.models.adapter` put on, its targets as full names; None: all weights train."""
    source: str
    """The folder or hub id of the weights; adapters name it as their base."""
    revision: str | None
    base_digest: str
    """What tells the weights, merged adapters included, from others; empty where they were not loaded."""
    base_names: tuple[str, ...]
    """Names of the base and of the adapters merged into it, without places on this machine."""
    folder: Path | None
    """Where config.json and the tokenizer files are."""
    banned_ids: tuple[int, ...]
    """Ids that the released sampler never draws; log-probs are of the distribution with them."""
    greedy: ClassVar[Mapping[str, Any]]
    """What a task's sampling settings become where evaluation takes a completion for the policy's best."""
    context_length: int | None
    """Tokens of the longest row that the checkpoint was made for; None where its files do not say."""
    image_size: int
    """Side in pixels of the squares that pictures become."""
    image_fit: ImageFit
    """How they become squares, where a prompt does not say."""
    image_tokenizer: Any
    """encode(pixels [N, 3, H, W] in [-1, 1]) -> codes [N, K]; decode(codes, grid=None) -> pixels; None without one."""
    frozen_parts: tuple[str, ...]
    """How the names of the parts of the module begin that never train, so that an adapter there gets no gradient."""

    @property
    def module(self) -> torch.nn.Module:
        """Return the nn.Module that trains."""

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""

    @property
    def lora_targets(self) -> list[str]:
        """Return regular-expression-free full module names that LoRA wraps by default."""

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return a folder's config with what the family keeps in other files there."""

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return the canvas of a prompt: chat template, image codes, open spans, the unconditional twin."""

    def num_prompt_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt gives; pictures are counted by their sizes, not read."""

    def image_features(self, images: Sequence[Image]) -> torch.Tensor | None:
        """Return [F, D]: a prompt's pictures as its canvas holds them; None for a family that reads no pixels."""

    def recompute_blocks(self, is_recomputed: bool) -> None:
        """Have each block computed again in backward, or not: less memory, more time."""

    def hidden(self, model_input: ModelInput) -> torch.Tensor:
        """Return [N, L, D] after the final norm."""

    def head(self, hidden: torch.Tensor, vocabulary_range: tuple[int, int] | None = None) -> torch.Tensor:
        """Return logits [..., V'] over a half-open range of ids (None: all of V), in a fresh tensor.

        Inside a range the mask token, where it lies there, has no probability.
        """

    def logits(self, token_ids: torch.Tensor, is_padding: torch.Tensor | None = None) -> torch.Tensor:
        """Return [N, L, V]: head after hidden, for checks and small models."""

    def decode_text(self, token_ids: np.ndarray) -> str:
        """Return the text of a span's ids, up to the first of the vocabulary's ends."""

    def decode_image(self, token_ids: np.ndarray, span: Span) -> Image:
        """Return the picture of an image span's ids."""


class KeyValueStore(Protocol):
    """Keys and values of the positions of some rows, one slot a position."""

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has been kept yet."""

    def select(self, rows: torch.Tensor) -> None:
        """Keep the given rows [n], in their order; a row may come several times."""


class BlockCausalPolicy(Policy, Protocol):
    """A policy whose positions see their own block and the blocks before it; the grid starts at a row's first token.

    That makes keys and values of finished blocks exact for good, so a sampler may keep them. ``hidden`` is block-causal
    too. With ``clean_ids`` it gives what sampling saw: each block as in ``token_ids``, after the clean earlier blocks.
    """

    block_length: int
    """The attention's, where a ``ModelInput`` does not say otherwise."""

    def new_cache(self, capacity: int) -> KeyValueStore:
        """Return an empty store for rows of up to ``capacity`` positions; the first pass sets the number of rows."""

    def hidden_cached(
        self, model_input: ModelInput, cache: KeyValueStore, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return [n, C, D] of some positions of each row, given those before them, and keep theirs.

        Args:
            model_input: ids and positions [n, C]; whole blocks, in order, the last one to be written again until it is
                finished. Padding stands at the end and is not kept.
            cache: holds every earlier position.
            rows: [n] rows of the cache; None is all.
        """


class PrefixPolicy(Policy, Protocol):
    """A policy whose prompt sees only the prompt, so that a sampler may compute it once."""

    def keep_prompts(self, model_input: ModelInput) -> Any | None:
        """Return keys and values of the prompts of N rows, equal prompts once; None where the prompt sees the answer.

        Args:
            model_input: rows whose prompts start at column 0, with ``prompt_lengths``.
        """

    def hidden_after(self, model_input: ModelInput, kept: Any, rows: torch.Tensor) -> torch.Tensor:
        """Return [n, A, D] of the answers of rows [n], from whole rows [n, L]; each starts right after its prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSampling:
    """How a block of random ids is denoised, by the checkpoint's own generation_config.json."""

    entropy_bound: float = 0.1
    """Nats by which the tokens that one step accepts may depend on each other."""
    lowest_temperature: float = 0.4
    """Temperature of the logits at the end; in between it follows the steps linearly."""
    highest_temperature: float = 0.8
    """Temperature of the logits at the start."""
    stability_threshold: int = 1
    """Earlier steps with the same likeliest tokens before a row may stop; 0 asks for none."""
    confidence_threshold: float = 0.005
    """Mean entropy in nats below which a row may stop."""


class UniformPolicy(Policy, Protocol):
    """A policy that denoises whole blocks of random ids, one after another, behind what it has read."""

    block_length: int
    block_sampling: UniformSampling

    def read(self, token_ids: torch.Tensor, is_padding: torch.Tensor | None = None, kept: Any = None) -> Any:
        """Return keys and values of rows [N, P], which come after what was kept.

        Args:
            token_ids: [N, P].
            is_padding: [N, P] bool; padding stands before a row's first token.
            kept: of an earlier call, which is changed; None at the start.
        """

    def denoise(self, block: torch.Tensor, kept: Any, previous: torch.Tensor | None) -> torch.Tensor:
        """Return logits [N, B, V] of a block's ids [N, B], in float32.

        Args:
            block: ids, some of them noise.
            kept: what `read` returned; it is left as it is.
            previous: tempered logits of the step before, which the policy conditions itself on; None at the first.
        """
