"""Where the sampler fills: rows padded to one rectangle, and each open span's positions in every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unigrpo.errors import UserError
from unigrpo.models.layers.attention import positions_of
from unigrpo.models.pictures.features import join_features, shift_ids
from unigrpo.plugin import make
from unigrpo.settings.tasks import ScheduleChoice
from unigrpo.types import Canvas, Span

if TYPE_CHECKING:
    from unigrpo.models.base import Vocabulary
    from unigrpo.rollouts.schedules.base import Schedule
    from unigrpo.settings.tasks import SamplingSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class FillPlan:
    """One span to fill in every row."""

    positions: torch.Tensor
    """[N, C] int64 columns of the span in each row."""
    num_denoising_steps: int
    block_length: int
    schedule: Schedule
    vocabulary_range: tuple[int, int] | None
    is_text: bool
    first_step: int
    """Denoising steps of the spans before it: keys the noise."""

    def __post_init__(self) -> None:
        """Refuse a range that holds no id."""
        if self.vocabulary_range is not None and not 0 <= self.vocabulary_range[0] < self.vocabulary_range[1]:
            raise UserError(f"vocabulary_range is {self.vocabulary_range}; wanted start and stop with an id between")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """N rows to fill."""

    token_ids: torch.Tensor
    """[N, L] int64."""
    is_padding: torch.Tensor | None
    """[N, L] bool."""
    positions: torch.Tensor
    """[N, L] int64: index among the row's positions that are not padding; keys the noise."""
    is_open: torch.Tensor
    """[N, L] bool: holds the mask token at the start."""
    twin_ids: torch.Tensor | None
    """[N, L] int64: the unconditional twin; None without guidance."""
    twin_is_padding: torch.Tensor | None
    plans: tuple[FillPlan, ...]
    image_features: torch.Tensor | None = None
    """[F, D] of all rows together, see ``ModelInput``."""
    feature_offsets: torch.Tensor | None = None
    """[N] int64: where each row's features start, by which ``token_ids`` are ahead of the canvas's; None without."""

    @property
    def prompt_lengths(self) -> torch.Tensor:
        """Return [N] int64: positions before the first open one."""
        return self.is_open.to(torch.int8).argmax(dim=1)


def check_blocks(
    num_positions: int, num_denoising_steps: int, block_length: int | None, attention_block: int | None
) -> int:
    """Return the block length.

    Args:
        num_positions: of the span.
        num_denoising_steps: total over its blocks.
        block_length: None is the attention's, or one block.
        attention_block: of a block-causal policy, whose last block may be cut short; None is full attention.

    Raises:
        UserError: if the span does not divide into blocks, or the steps over the blocks.
    """
    if block_length is not None and block_length < 1:
        raise UserError(f"block_length is {block_length}; wanted 1 or more, or None for one block")
    block_length = block_length or attention_block or num_positions
    if attention_block is not None:
        num_positions = -(-num_positions // block_length) * block_length
    if num_positions % block_length:
        raise UserError(
            f"{num_positions} open positions do not divide into blocks of {block_length}; "
            "choose a block_length that divides the completion length"
        )
    num_blocks = num_positions // block_length
    if num_denoising_steps < num_blocks or num_denoising_steps % num_blocks:
        raise UserError(
            f"{num_denoising_steps} denoising steps do not divide over {num_blocks} blocks "
            f"({num_positions} positions in blocks of {block_length}); choose a multiple of {num_blocks}"
        )
    return block_length


def layout_of_ids(
    token_ids: torch.Tensor,
    vocabulary: Vocabulary,
    sampling: SamplingSettings,
    *,
    is_padding: torch.Tensor | None = None,
    unconditional_ids: torch.Tensor | None = None,
    unconditional_is_padding: torch.Tensor | None = None,
    vocabulary_range: tuple[int, int] | None = None,
    attention_block: int | None = None,
) -> Layout:
    """Lay out plain rows: one span a row, from the first to the last mask token, of one length in all rows.

    With a schedule of pictures and a vocabulary range the span also takes in the given codes that touch it, because the
    schedule counts all codes of a picture, given ones too.

    Raises:
        UserError: if the rows' spans differ in length, or nothing is masked.
    """
    device, schedule = token_ids.device, make(sampling.schedule)
    is_padding = None if is_padding is None or not bool(is_padding.any()) else is_padding.to(device).bool()
    is_open = token_ids == vocabulary.mask_token_id
    if is_padding is not None:
        is_open &= ~is_padding
    if not bool(is_open.any(dim=1).all()):
        raise UserError(f"a row has no mask token (id {vocabulary.mask_token_id}): put it at the positions to generate")
    first = is_open.to(torch.int8).argmax(dim=1)
    last = token_ids.shape[1] - 1 - is_open.flip(1).to(torch.int8).argmax(dim=1)
    if schedule.is_for_pictures and vocabulary_range is not None:
        is_code = is_open | ((token_ids >= vocabulary_range[0]) & (token_ids < vocabulary_range[1]))
        first, last = _grow(is_code, first, last)
    length = last - first + 1
    if bool((length != length[0]).any()):
        raise UserError(
            f"the rows have {length.tolist()} positions to fill; give rows with the same number, or canvases"
        )
    num_positions = int(length[0])
    plan = FillPlan(
        positions=first[:, None] + torch.arange(num_positions, device=device)[None],
        num_denoising_steps=sampling.num_denoising_steps,
        block_length=check_blocks(num_positions, sampling.num_denoising_steps, sampling.block_length, attention_block),
        schedule=schedule,
        vocabulary_range=vocabulary_range,
        is_text=vocabulary_range is None or vocabulary_range != vocabulary.image_range,
        first_step=0,
    )
    twin_ids, twin_padding = None, None
    needs_twin = sampling.guidance_scale > 0
    if needs_twin and unconditional_ids is None:
        mask = torch.full_like(token_ids, vocabulary.mask_token_id)
        is_kept = is_open if is_padding is None else is_open | is_padding
        twin_ids, twin_padding = torch.where(is_kept, token_ids, mask), is_padding
    elif needs_twin and unconditional_ids is not None:
        twin_ids = unconditional_ids.to(device)
        twin_padding = is_padding
        ipad = (vocabulary.special or {}).get("ipad")
        if unconditional_is_padding is not None:
            twin_padding = unconditional_is_padding.to(device).bool()
        elif ipad is not None:
            twin_padding = twin_ids == ipad
    return Layout(
        token_ids=token_ids,
        is_padding=is_padding,
        positions=positions_of(torch.zeros_like(is_open) if is_padding is None else is_padding),
        is_open=is_open,
        twin_ids=twin_ids,
        twin_is_padding=twin_padding,
        plans=(plan,),
    )


def _grow(is_code: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    columns = torch.arange(is_code.shape[1], device=is_code.device)[None]
    before = torch.where(~is_code & (columns < first[:, None]), columns, -1).amax(dim=1)
    after = torch.where(~is_code & (columns > last[:, None]), columns, is_code.shape[1]).amin(dim=1)
    return before + 1, after - 1


def layout_of_canvases(
    canvases: Sequence[Canvas],
    vocabulary: Vocabulary,
    device: torch.device,
    *,
    needs_twin: bool,
    attention_block: int | None = None,
) -> Layout:
    """Lay out canvases, padded on the right to the longest.

    Under block-causal attention spans may differ in length, as each ends with a block; shorter ones repeat their last
    position in the plan.

    Raises:
        UserError: if there are none, their open spans differ, or guidance lacks a twin.
    """
    if not canvases:
        raise UserError("no canvas to fill: give at least one")
    open_spans = [canvas.open_spans for canvas in canvases]
    if len({tuple(_shape(span, attention_block) for span in spans) for spans in open_spans}) != 1:
        raise UserError("canvases that are sampled together need the same open spans; sample each kind by itself")
    length = max(len(canvas.token_ids) for canvas in canvases)
    token_ids = torch.full((len(canvases), length), vocabulary.pad_token_id, dtype=torch.int64)
    is_padding = torch.ones((len(canvases), length), dtype=torch.bool)
    is_open = torch.zeros((len(canvases), length), dtype=torch.bool)
    for row, canvas in enumerate(canvases):
        token_ids[row, : len(canvas.token_ids)] = torch.from_numpy(canvas.token_ids)
        is_padding[row, : len(canvas.token_ids)] = False
        for span in canvas.open_spans:
            is_open[row, span.start : span.stop] = token_ids[row, span.start : span.stop] == vocabulary.mask_token_id
    plans, first_step = [], 0
    for column in zip(*open_spans, strict=True):
        starts = torch.tensor([span.start for span in column])[:, None]
        stops = torch.tensor([span.stop for span in column])[:, None]
        span = max(column, key=lambda each: each.stop - each.start)
        num_positions, num_steps = span.stop - span.start, span.num_denoising_steps
        plan = FillPlan(
            positions=torch.minimum(starts + torch.arange(num_positions)[None], stops - 1).to(device),
            num_denoising_steps=num_steps,
            block_length=check_blocks(num_positions, num_steps, span.block_length, attention_block),
            schedule=make(span.schedule or ScheduleChoice()),
            vocabulary_range=span.vocabulary_range,
            is_text=span.kind == "text",
            first_step=first_step,
        )
        plans.append(plan)
        first_step += num_steps
    padding = is_padding.to(device) if bool(is_padding.any()) else None
    features, offsets = join_features([canvas.image_features for canvas in canvases])
    if features is not None:
        token_ids = shift_ids(token_ids, offsets, vocabulary.size)
    twin_ids, twin_padding = (
        _twins(canvases, token_ids, is_open, is_padding, vocabulary) if needs_twin else (None, None)
    )
    return Layout(
        token_ids=token_ids.to(device),
        is_padding=padding,
        positions=positions_of(is_padding).to(device),
        is_open=is_open.to(device),
        twin_ids=None if twin_ids is None else twin_ids.to(device),
        twin_is_padding=None if twin_padding is None else twin_padding.to(device),
        plans=tuple(plans),
        image_features=features,
        feature_offsets=None if features is None else offsets.to(device),
    )


def _shape(span: Span, attention_block: int | None) -> tuple[object, ...]:
    size, steps = span.stop - span.start, span.num_denoising_steps
    blocks = -(-size // (span.block_length or attention_block or size))
    length = None if attention_block else size
    return (span.kind, length, span.vocabulary_range, steps / blocks, span.block_length, repr(span.schedule))


def _twins(
    canvases: Sequence[Canvas],
    token_ids: torch.Tensor,
    is_open: torch.Tensor,
    is_padding: torch.Tensor,
    vocabulary: Vocabulary,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unconditional rows; a canvas without a twin has its given tokens masked, as the text samplers do."""
    mask = torch.full_like(token_ids, vocabulary.mask_token_id)
    twin_ids = torch.where(is_open | is_padding, token_ids, mask)
    twin_padding = is_padding.clone()
    for row, canvas in enumerate(canvases):
        if canvas.unconditional_ids is not None:
            twin_ids[row, : len(canvas.token_ids)] = torch.from_numpy(canvas.unconditional_ids)
        if canvas.unconditional_is_padding is not None:
            twin_padding[row, : len(canvas.token_ids)] = torch.from_numpy(canvas.unconditional_is_padding)
    return twin_ids, twin_padding
