"""The nouns of the package: frozen records that every layer shares.

Letters in shapes: **P** prompts, **G** group size, **N** = P·G rollouts, **L** padded length, **V** vocabulary,
**D** width, **M** mask draws, **R** rows of a draw, **K** rewards. Importing this module imports the standard
library alone: a reward's worker may run where there is nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

ImageFit = Literal["squash", "pad", "crop"]
"""How a picture becomes a square: both sides resized to it, bars beside the shorter one, or the longer one cut."""
TaskKind = Literal["reason", "understand", "imagine"]
"""Text to text; pictures and text to text; text to a picture. A recipe may have several tasks of a kind."""
SpanKind = Literal["prompt", "image_slot", "text", "image_codes"]


class Chosen(Protocol):
    """What a recipe says of a choice: `unigrpo.settings.base.Choice`."""

    folder: ClassVar[str]

    @property
    def use(self) -> str:
        """Return the name."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation; its images stand before its text."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What is asked: no tensors, so that it crosses processes and files."""

    id: str
    """Unique in its task; with the task's name it keys the randomness of its rollouts."""
    kind: TaskKind
    messages: tuple[Message, ...]
    task: str = ""
    """The name of its task in the recipe; the kind where nothing names it."""
    answer: Any = None
    """What a correct completion says, as the data has it: text, number, list, ...; None where there is no answer."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data set's other columns, handed to every reward by name."""
    image_fit: ImageFit | None = None
    """How its pictures become squares; None leaves it to the policy. Rewards see them as they are."""

    def __post_init__(self) -> None:
        """Take the kind for the name where none is given."""
        object.__setattr__(self, "task", self.task or self.kind)

    @property
    def text(self) -> str:
        """Return the text of the last user turn."""
        return next(message.text for message in reversed(self.messages) if message.role == "user")

    @property
    def images(self) -> tuple[Image, ...]:
        """Return all images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A run of positions ``start:stop`` of a canvas that is filled, and scored, in one way."""

    kind: SpanKind
    start: int
    stop: int
    is_open: bool = False
    """Whether the sampler fills its mask tokens. Given tokens inside an open span stay (inpainting)."""
    vocabulary_range: tuple[int, int] | None = None
    """Half-open range of token ids it may hold; None is the whole vocabulary, as the reference text samplers do."""
    num_denoising_steps: int = 0
    """Total over all blocks of the span."""
    block_length: int | None = None
    """Positions filled before the next block starts; None is one block."""
    schedule: Chosen | None = None
    """How many positions a denoising step commits; None where nothing is to be filled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """One row of tokens with the mask token at every position to fill, and the spans it is made of."""

    token_ids: np.ndarray
    """[L] int64; from the vocabulary's size on, id size + i stands for row i of ``image_features``."""
    spans: tuple[Span, ...]
    """Ordered, adjacent, covering 0..L."""
    unconditional_ids: np.ndarray | None = None
    """[L] int64: the twin without the prompt, for guidance."""
    unconditional_is_padding: np.ndarray | None = None
    """[L] bool: positions of the twin that nothing attends to."""
    image_features: torch.Tensor | None = None
    """[F, D]: what a family that reads pixels puts in place of embeddings; computed once a prompt."""

    @property
    def open_spans(self) -> tuple[Span, ...]:
        """Return the spans that the sampler fills, in order."""
        return tuple(span for span in self.spans if span.is_open)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyVersion:
    """Which weights made a rollout."""

    step: int
    kind: Literal["adapter", "full"]
    sha256: str
    """Hash of the delivered tensors: names, shapes, dtypes and bytes, in name order. Empty where none were delivered:
    the pool samples with the learner's own policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of one prompt, as numpy, so that it crosses processes."""

    prompt: Prompt
    sample_index: int
    """0..G-1 within its group."""
    token_ids: np.ndarray
    """[L] int64, no padding: prompt and filled completion; after the first end of a text span, EOS."""
    spans: tuple[Span, ...]
    is_completion: np.ndarray
    """[L] bool: open positions up to and including the first end of their span (image codes: all)."""
    committed_step: np.ndarray
    """[L] int32: the denoising step that committed the token; -1 where it was given."""
    committed_logprobs: np.ndarray
    """[L] float32, nats: of the token when committed, un-tempered, unguided, over the span's range; 0 where given."""
    text: str | None
    """Decoded text of the open text spans, up to the first end; None for a picture without text."""
    image: np.ndarray | None
    """[H, W, 3] uint8 picture of the open image span; None for text."""
    seed: int
    policy_version: PolicyVersion
    is_truncated: bool
    """Whether a text span ended without an end."""

    @property
    def completion_length(self) -> int:
        """Return the number of open positions up to and including the first end."""
        return int(self.is_completion.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts(Sequence[Rollout]):
    """N rollouts in the order of their prompts, those of one group together."""

    items: tuple[Rollout, ...]
    group_ids: tuple[int, ...]
    """[N]: the number of each rollout's prompt, from 0; a prompt that comes twice has two groups."""
    num_redispatched: int = 0
    """Work units that were generated again because their actor died."""
    image_features: tuple[torch.Tensor | None, ...] = ()
    """[P]: of each group, as its canvas held them; empty where a unit keeps none, or another process made them."""

    @property
    def groups(self) -> list[list[int]]:
        """Return the rows of each group."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(self.group_ids):
            rows[group].append(row)
        return list(rows.values())

    def __len__(self) -> int:
        """Return N."""
        return len(self.items)

    def __getitem__(self, row: Any) -> Any:
        """Return one rollout, or a tuple of them."""
        return self.items[row]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """The one argument of a policy's ``hidden``."""

    token_ids: torch.Tensor
    """[N, L] int64."""
    is_padding: torch.Tensor | None = None
    """[N, L] bool: positions hidden from attention; None is no padding."""
    positions: torch.Tensor | None = None
    """[N, L] int64 rotary positions; None is 0..L-1."""
    image_features: torch.Tensor | None = None
    """[F, D], of all rows together: row i stands at every token id that is the vocabulary's size + i."""
    prompt_lengths: torch.Tensor | None = None
    """[N] int64: positions before the first one that is generated; for families whose prompt sees only itself."""
    clean_ids: torch.Tensor | None = None
    """[N, L] int64: the tokens under the noise; a block-causal policy sees them in the blocks before each noisy one."""
    block_length: int | None = None
    """Block length of block-causal attention; None is the policy's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """N rollouts padded on the right to one length; the four masks partition every position."""

    token_ids: torch.Tensor
    """[N, L] int64."""
    is_prompt: torch.Tensor
    """[N, L] bool: given positions, never noised."""
    is_completion: torch.Tensor
    """[N, L] bool: open positions up to and including the first end of their span."""
    is_tail: torch.Tensor
    """[N, L] bool: open positions after it: visible to attention, noised, never scored."""
    is_padding: torch.Tensor
    """[N, L] bool: hidden from attention."""
    range_index: torch.Tensor
    """[N, L] int64 into ``ranges``: the vocabulary range of each position."""
    ranges: tuple[tuple[int, int] | None, ...]
    advantages: torch.Tensor
    """[N] float."""
    group_ids: torch.Tensor
    """[N] int64."""
    row_seeds: torch.Tensor
    """[N] int64: keys the mask draws of each rollout."""
    lengths: torch.Tensor
    """[N] int64: positions that are not padding, so that a work unit can be cut to its longest row."""
    prompt_lengths: torch.Tensor
    """[N] int64: positions before the first open one."""
    committed_step: torch.Tensor
    """[N, L] int32: the denoising step that committed each token; -1 where it was given, and at padding."""
    committed_logprobs: torch.Tensor
    """[N, L] float32, nats: the sampler's own log-prob of each token as it was committed; 0 where given."""
    image_features: torch.Tensor | None = None
    """[F, D] of all prompts together, see ``ModelInput``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskDraw:
    """One draw of diffusion noise over a batch. R >= N: an estimator may use several rows a rollout."""

    noisy_ids: torch.Tensor
    """[R, L] int64: the batch's ids with the mask token where noised."""
    is_scored: torch.Tensor
    """[R, L] bool: positions whose log-prob enters the loss."""
    weight: torch.Tensor
    """[R, L] float64: weight of each position in the loss; 0 where not scored. Global: sums over all micro-batches."""
    rollout_index: torch.Tensor
    """[R] int64: the rollout of each row."""
    mask_ratio: torch.Tensor
    """[R] float64: probability with which a completion position was masked."""
    num_empty: int = 0
    """Rollouts with no scored position: they add 0 to the loss and stay in N."""
