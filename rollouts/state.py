"""The rows of one call of ``sample`` while they are filled: what every engine shares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unigrpo.errors import UserError
from unigrpo.plugin import make
from unigrpo.rollouts.draw import SampledTokens, sample_tokens
from unigrpo.rollouts.orders.base import NOISY, Candidates, Order, reads_logits
from unigrpo.seeding import uniform

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.rollouts.layout import FillPlan, Layout
    from unigrpo.settings.tasks import SamplingSettings

MAX_EDITING_ROUNDS = 16
NUM_NOISE_STREAMS = 2  # the tokens' and the remasking's


class SamplerState:
    """Token ids, and when and with which log-prob each was committed."""

    def __init__(
        self,
        policy: Policy,
        layout: Layout,
        keys: torch.Tensor,
        sampling: SamplingSettings,
        max_editing_rounds: int = MAX_EDITING_ROUNDS,
    ) -> None:
        """Start from the layout's ids.

        Args:
            policy: fills them.
            layout: N rows, with the spans to fill.
            keys: [N] row seeds.
            sampling: what no span holds: temperatures, guidance, order, editing, where to stop.
            max_editing_rounds: passes over a block that has no mask left.

        Raises:
            UserError: for rounds below 0.
        """
        if max_editing_rounds < 0:
            raise UserError(f"max_editing_rounds is {max_editing_rounds}; wanted 0 or more")
        self.policy, self.layout, self.keys, self.sampling = policy, layout, keys, sampling
        self.max_editing_rounds = max_editing_rounds
        self.order: Order = make(sampling.remasking)
        self.mask = policy.vocabulary.mask_token_id
        self.ids = layout.token_ids.clone()
        self.ends = torch.tensor(policy.vocabulary.ends, device=self.ids.device)
        self.committed_step = torch.full_like(self.ids, -1, dtype=torch.int32)
        self.committed_logprobs = torch.zeros(self.ids.shape, dtype=torch.float32, device=self.ids.device)
        self.num_forward_rows = 0

    def uniforms(
        self, rows: torch.Tensor, columns: torch.Tensor, step: torch.Tensor | int, stream: int
    ) -> torch.Tensor:
        """Return [n, B] float64 in (0, 1) at the columns [n, B] of the rows, keyed by seed, step and position.

        ``step`` is that of all rows, or [n]; ``stream`` is 0 for the tokens, 1 for the remasking.
        """
        position = self.layout.positions[rows].gather(1, columns)
        return uniform(self.keys[rows], NUM_NOISE_STREAMS * step + stream, position)

    def sample(
        self,
        plan: FillPlan,
        hidden: torch.Tensor,
        unconditional: torch.Tensor | None,
        uniforms: torch.Tensor,
        is_mask_banned: bool = False,
    ) -> SampledTokens:
        """Sample a token at each of S positions (see `sample_tokens`)."""
        return sample_tokens(
            self.policy,
            hidden,
            unconditional,
            vocabulary_range=plan.vocabulary_range,
            temperature=self.sampling.temperature,
            guidance_scale=self.sampling.guidance_scale,
            uniforms=uniforms,
            banned_id=self.mask if is_mask_banned else None,
            top_p=self.sampling.top_p,
            score=self.order.score if reads_logits(self.order) else None,
        )

    def select(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        step: torch.Tensor | int,
        candidates: Candidates,
        noise_temperature: float = 0.0,
    ) -> torch.Tensor:
        """Return [n, B] bool: the masked positions to commit, by the sampling's order.

        ``rows`` are [n], ``columns`` [n, B], ``step`` that of all rows, or [n]; the candidates are without the Gumbel
        noise on the scores that ``noise_temperature`` asks for.
        """
        if self.order.reads in NOISY:
            candidates = replace(candidates, noise=self.uniforms(rows, columns, step, 1))
        elif noise_temperature > 0:
            noise = -torch.log(-torch.log(self.uniforms(rows, columns, step, 1)))
            candidates = replace(candidates, scores=candidates.scores + noise_temperature * noise)
        return self.order.select(candidates)

    def commit(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        is_committed: torch.Tensor,
        is_sampled: torch.Tensor,
        sampled: SampledTokens,
        step: torch.Tensor | int,
    ) -> None:
        """Write sampled tokens.

        ``rows`` are [n], ``columns`` [n, B], ``step`` that of all rows, or [n]; ``is_committed`` [n, B] lies inside
        ``is_sampled`` [n, B], which says where the S tokens belong, in row-major order.
        """
        in_sample = is_committed[is_sampled]
        row_of = rows[:, None].expand_as(is_committed)[is_committed]
        column_of = columns[is_committed]
        self.ids[row_of, column_of] = sampled.token_ids[in_sample]
        self.committed_logprobs[row_of, column_of] = sampled.logprobs[in_sample]
        if isinstance(step, int):
            self.committed_step[row_of, column_of] = step
        else:
            self.committed_step[row_of, column_of] = step[:, None].expand_as(is_committed)[is_committed].int()

    def is_finished(self, plan: FillPlan, rows: torch.Tensor) -> torch.Tensor:
        """Return [n] bool: whether a row's text span has every token up to its first end."""
        if not (self.sampling.stop_at_eos and plan.is_text):
            return torch.zeros_like(rows, dtype=torch.bool)
        span = self.ids[rows].gather(1, plan.positions[rows])
        is_stop = (span == self.mask) | torch.isin(span, self.ends)
        first = is_stop.to(torch.int8).argmax(dim=1, keepdim=True)
        return is_stop.any(1) & (span.gather(1, first).squeeze(1) != self.mask)

    def fill_tail(self, plan: FillPlan) -> None:
        """Put EOS at every open position after the first end of a text span."""
        span = self.ids.gather(1, plan.positions)
        is_end = torch.isin(span, self.ends)
        is_tail = (is_end.cumsum(1) - is_end.long()) > 0
        is_tail &= self.layout.is_open.gather(1, plan.positions)
        row, slot = is_tail.nonzero(as_tuple=True)
        column = plan.positions[row, slot]
        self.ids[row, column] = self.policy.vocabulary.eos_token_id
        never = self.committed_step[row, column] < 0
        self.committed_step[row[never], column[never]] = plan.first_step + plan.num_denoising_steps - 1
