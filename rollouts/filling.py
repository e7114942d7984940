"""The rows of one call of ``sample`` while they are filled: what every engine shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from unigrpo.errors import UserError
from unigrpo.rollouts.draw import Draw, draw_tokens
from unigrpo.rollouts.orders.selection import SCORES, highest, highest_or_above, origin, sequential_score
from unigrpo.seeding import uniform
from unigrpo.types import Remasking

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.rollouts.layout import FillPlan, Layout

NUM_NOISE_STREAMS = 2  # the token draw's and the remasking's


@dataclass(frozen=True, kw_only=True, slots=True)
class HowToFill:
    """The settings of one call that no span holds."""

    temperature: float
    guidance_scale: float
    remasking: Remasking
    remasking_temperature: float
    threshold: float
    """Probability above which ``low_confidence_dynamic`` commits."""
    editing_threshold: float | None
    """Probability above which a written token is replaced; None is never."""
    max_editing_rounds: int
    """Passes over a block that has no mask left."""
    stop_at_eos: bool

    def __post_init__(self) -> None:
        """Refuse what no order or draw can follow.

        Raises:
            ValueError: naming the setting, its value and what is wanted.
        """
        if self.remasking not in get_args(Remasking):
            raise UserError(
                f"remasking {self.remasking!r} is not known; wanted one of {', '.join(get_args(Remasking))}"
            )
        for name in ("temperature", "guidance_scale", "remasking_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; wanted 0 or more, and finite")
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}; wanted a probability above 0, at most 1")
        if self.editing_threshold is not None and not self.editing_threshold >= 0:
            raise UserError(f"editing_threshold is {self.editing_threshold}; wanted a probability, or None for never")
        if self.max_editing_rounds < 0:
            raise UserError(f"max_editing_rounds is {self.max_editing_rounds}; wanted 0 or more")


class Filling:
    """Token ids, and when and with which log-prob each was committed."""

    def __init__(self, policy: Policy, layout: Layout, keys: torch.Tensor, how: HowToFill) -> None:
        """Start from the layout's ids; ``keys`` [N] are the row seeds."""
        self.policy, self.layout, self.keys, self.how = policy, layout, keys, how
        self.mask = policy.vocabulary.mask_token_id
        self.ids = layout.token_ids.clone()
        self.committed_step = torch.full_like(self.ids, -1, dtype=torch.int32)
        self.committed_logprobs = torch.zeros(self.ids.shape, dtype=torch.float32, device=self.ids.device)
        self.num_forward_rows = 0

    def uniforms(
        self, rows: torch.Tensor, columns: torch.Tensor, step: torch.Tensor | int, stream: int
    ) -> torch.Tensor:
        """Return [n, B] float64 in (0, 1) at the columns [n, B] of the rows, keyed by seed, step and position.

        Args:
            rows: [n].
            columns: [n, B].
            step: of all rows, or [n].
            stream: 0 for the token draw, 1 for the remasking.
        """
        position = self.layout.positions[rows].gather(1, columns)
        return uniform(self.keys[rows], NUM_NOISE_STREAMS * step + stream, position)

    def draw(
        self,
        plan: FillPlan,
        hidden: torch.Tensor,
        unconditional: torch.Tensor | None,
        uniforms: torch.Tensor,
        is_mask_banned: bool = False,
    ) -> Draw:
        """Draw at S positions (see `draw_tokens`)."""
        return draw_tokens(
            self.policy,
            hidden,
            unconditional,
            vocabulary_range=plan.vocabulary_range,
            temperature=self.how.temperature,
            guidance_scale=self.how.guidance_scale,
            uniforms=uniforms,
            banned_id=self.mask if is_mask_banned else None,
            score=SCORES.get(self.how.remasking),
        )

    def select(
        self,
        scores: torch.Tensor,
        is_masked: torch.Tensor,
        count: torch.Tensor,
        noise: torch.Tensor,
        *,
        remasking_temperature: float = 0.0,
        fraction: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return [n, B] bool: the masked positions to commit.

        Args:
            scores: [n, B] float64, of the drawn tokens.
            is_masked: [n, B] bool.
            count: [n], how many; ``low_confidence_dynamic`` may commit more.
            noise: [n, B] in (0, 1).
            remasking_temperature: of Gumbel noise on the scores.
            fraction: [n] of the masked positions that ``origin`` commits in the mean.
        """
        remasking = self.how.remasking
        if remasking == "random":
            return highest(noise, is_masked, count)
        if remasking == "sequential":
            return highest(sequential_score(scores), is_masked, count)
        if remasking == "origin":
            if fraction is None:
                raise UserError(
                    "remasking 'origin' is for full attention; a block-causal policy commits by another order"
                )
            return origin(noise, is_masked, fraction)
        if remasking_temperature > 0:
            scores = scores - remasking_temperature * torch.log(-torch.log(noise))
        if remasking == "low_confidence_dynamic":
            return highest_or_above(scores, is_masked, count, self.how.threshold)
        return highest(scores, is_masked, count)

    def commit(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        is_committed: torch.Tensor,
        is_drawn: torch.Tensor,
        draw: Draw,
        step: torch.Tensor | int,
    ) -> None:
        """Write the drawn tokens.

        Args:
            rows: [n].
            columns: [n, B].
            is_committed: [n, B] bool, inside ``is_drawn``.
            is_drawn: [n, B] bool: where the S tokens of the draw belong, in row-major order.
            draw: the tokens.
            step: of all rows, or [n].
        """
        in_draw = is_committed[is_drawn]
        row_of = rows[:, None].expand_as(is_committed)[is_committed]
        column_of = columns[is_committed]
        self.ids[row_of, column_of] = draw.token_ids[in_draw]
        self.committed_logprobs[row_of, column_of] = draw.logprobs[in_draw]
        if isinstance(step, int):
            self.committed_step[row_of, column_of] = step
        else:
            self.committed_step[row_of, column_of] = step[:, None].expand_as(is_committed)[is_committed].int()

    def is_finished(self, plan: FillPlan, rows: torch.Tensor) -> torch.Tensor:
        """Return [n] bool: whether a row's text span has every token up to its first EOS."""
        if not (self.how.stop_at_eos and plan.is_text):
            return torch.zeros_like(rows, dtype=torch.bool)
        span = self.ids[rows].gather(1, plan.positions[rows])
        is_stop = (span == self.mask) | (span == self.policy.vocabulary.eos_token_id)
        first = is_stop.to(torch.int8).argmax(dim=1, keepdim=True)
        return is_stop.any(1) & (span.gather(1, first).squeeze(1) != self.mask)

    def fill_tail(self, plan: FillPlan) -> None:
        """Put EOS at every open position after the first EOS of a text span."""
        span = self.ids.gather(1, plan.positions)
        is_eos = span == self.policy.vocabulary.eos_token_id
        is_tail = (is_eos.cumsum(1) - is_eos.long()) > 0
        is_tail &= self.layout.is_open.gather(1, plan.positions)
        row, slot = is_tail.nonzero(as_tuple=True)
        column = plan.positions[row, slot]
        self.ids[row, column] = self.policy.vocabulary.eos_token_id
        never = self.committed_step[row, column] < 0
        self.committed_step[row[never], column[never]] = plan.first_step + plan.num_denoising_steps - 1
