"""The engine for policies that denoise blocks of random ids: accept the surest tokens, replace the others by noise.

Each step samples a token at every position of the block. The positions of lowest entropy are accepted, as many as
leave the sum of their entropies, without the largest, within a bound: so many tokens may be sampled as if they did not
depend on each other (entropy-bounded sampling, arXiv 2505.24857). What is not accepted becomes a random id again. What
a block gives in the end are the likeliest tokens of its last step (DiffusionGemma).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from unigrpo.errors import UserError
from unigrpo.rollouts.draw import sample_logits
from unigrpo.seeding import uniform

if TYPE_CHECKING:
    from unigrpo.models.base import UniformPolicy
    from unigrpo.rollouts.layout import FillPlan
    from unigrpo.rollouts.state import SamplerState

NUM_NOISE_STREAMS = 2  # random ids, and tokens


class BlockNoise(Protocol):
    """Where an engine's randomness comes from; steps are counted over all blocks, from 0."""

    def random_ids(self, block: int, step: int) -> torch.Tensor:
        """Return [N, C] ids: those that ``step`` starts from at positions where nothing was accepted before it."""

    def sample(self, block: int, step: int, logits: torch.Tensor) -> torch.Tensor:
        """Return [N, C] tokens sampled from tempered logits [N, C, V]."""


class KeyedNoise:
    """Noise keyed by (row seed, step, position), so that neighbours and padding change no row.

    At temperature 0 tokens are the arg max, and the random ids are keyed by position and step alone: greedy tokens
    depend on no seed.
    """

    def __init__(self, keys: torch.Tensor, positions: torch.Tensor, temperature: float, allowed: torch.Tensor) -> None:
        """Take row seeds [N], positions [N, K, C] in the rows, and the ids that noise may be.

        Args:
            keys: [N].
            positions: [N, K, C] int64, of every block.
            temperature: of sampling, on top of the policy's own schedule.
            allowed: [A] int64.
        """
        self.keys = keys if temperature > 0 else torch.zeros_like(keys)
        self.positions, self.temperature, self.allowed = positions, temperature, allowed

    def random_ids(self, block: int, step: int) -> torch.Tensor:
        """Return [N, C] ids, uniform over what is allowed."""
        noise = uniform(self.keys, NUM_NOISE_STREAMS * step, self.positions[:, block])
        return self.allowed[(noise * len(self.allowed)).long()]

    def sample(self, block: int, step: int, logits: torch.Tensor) -> torch.Tensor:
        """Return [N, C] tokens, row by row so that one row's probabilities exist at a time."""
        noise = uniform(self.keys, NUM_NOISE_STREAMS * step + 1, self.positions[:, block])
        return torch.stack([sample_logits(row, self.temperature, own) for row, own in zip(logits, noise, strict=True)])


def accept(entropy: torch.Tensor, bound: float) -> torch.Tensor:
    """Return [N, C] bool: the positions of lowest entropy whose sum, without the largest, is within the bound."""
    ordered, order = entropy.sort(dim=-1, stable=True)
    is_within = ordered.cumsum(dim=-1) - ordered <= bound
    return torch.zeros_like(is_within).scatter_(-1, order, is_within)


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """Return [N, C] in nats of logits [N, C, V]; one row's probabilities exist at a time."""
    rows = []
    for row in logits:
        logprobs = row.log_softmax(dim=-1)
        rows.append(-(logprobs.exp() * logprobs).sum(dim=-1))
    return torch.stack(rows)


class EntropyBound:
    """Fills one text span at the end of every row, block by block."""

    def __init__(self, state: SamplerState, policy: UniformPolicy, noise: BlockNoise | None = None) -> None:
        """Take the rows to fill.

        Args:
            state: the rows; its steps are shared equally among the blocks.
            policy: the state's, as what it is.
            noise: in place of keyed noise, to replay recorded tokens.

        Raises:
            UserError: several spans, given tokens behind or inside the span, steps that do not divide among the
                blocks, or guidance.
        """
        self.state, self.policy, self.settings = state, policy, policy.block_sampling
        self.plan = _only_plan(state)
        self.num_blocks = -(-self.plan.positions.shape[1] // policy.block_length)
        if self.plan.num_denoising_steps % self.num_blocks:
            raise UserError(
                f"{self.plan.num_denoising_steps} denoising steps do not divide over {self.num_blocks} blocks of "
                f"{policy.block_length} positions; choose a multiple"
            )
        self.num_steps = self.plan.num_denoising_steps // self.num_blocks
        self.banned = self._banned_ids()
        self.noise = noise or self._keyed_noise()

    def fill(self) -> None:
        """Fill the span of every row."""
        state, plan = self.state, self.plan
        rows = torch.arange(len(state.ids), device=state.ids.device)
        kept = self.policy.read(*self._prompts())
        length = self.policy.block_length
        for block in range(self.num_blocks):
            tokens, logprobs, steps = self._denoise(block, kept)
            columns = plan.positions[:, block * length : (block + 1) * length]
            width = columns.shape[1]  # the last block may reach beyond the span
            state.ids.scatter_(1, columns, tokens[:, :width])
            state.committed_logprobs.scatter_(1, columns, logprobs[:, :width])
            state.committed_step.scatter_(1, columns, steps[:, :width].int() + plan.first_step)
            if block + 1 == self.num_blocks or bool(state.is_finished(plan, rows).all()):
                break
            kept = self.policy.read(tokens, None, kept)
        if state.sampling.stop_at_eos:
            state.fill_tail(plan)

    def _denoise(self, block: int, kept: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the likeliest tokens of a row's last step, their log-probs, and the steps since which they stand."""
        settings, first_step = self.settings, block * self.num_steps
        current = self.noise.random_ids(block, first_step)
        best = torch.full_like(current, -1)
        since = torch.zeros_like(current)
        logprobs = torch.zeros(current.shape, device=current.device)
        previous: torch.Tensor | None = None
        is_done = torch.zeros(len(current), dtype=torch.bool, device=current.device)
        history: list[torch.Tensor] = []
        for step in range(self.num_steps):
            logits = self._allowed(self.policy.denoise(current, kept, previous))
            self.state.num_forward_rows += len(current)
            tempered = logits / self._temperature(step, logits.device)
            likeliest = tempered.argmax(dim=-1)
            entropy = entropies(tempered)
            is_accepted = accept(entropy, settings.entropy_bound)
            sampled = self.noise.sample(block, first_step + step, tempered)
            if step + 1 < self.num_steps:
                others = self.noise.random_ids(block, first_step + step + 1)
                following = torch.where(is_accepted, sampled, others)
                current = torch.where(is_done[:, None], current, following)
            is_moving = ~is_done[:, None]
            since = torch.where(is_moving & (likeliest != best), first_step + step, since)
            best = torch.where(is_moving, likeliest, best)
            logprobs = torch.where(is_moving, _logprobs(logits, likeliest), logprobs)
            previous = tempered if previous is None else torch.where(is_done[:, None, None], previous, tempered)
            is_done = is_done | self._may_stop(best, history, entropy)
            history = [*history, best][-settings.stability_threshold :] if settings.stability_threshold else []
            if bool(is_done.all()):
                break
        return best, logprobs, since

    def _temperature(self, step: int, device: torch.device) -> torch.Tensor:
        """Return the policy's own temperature at a step of a block, rounded to float32 as the reference does."""
        left = torch.tensor(self.num_steps - step, device=device) / self.num_steps
        lowest, highest = self.settings.lowest_temperature, self.settings.highest_temperature
        return lowest + (highest - lowest) * left

    def _may_stop(self, best: torch.Tensor, history: list[torch.Tensor], entropy: torch.Tensor) -> torch.Tensor:
        """Return [N]: whether the likeliest tokens are those of the steps before, and the policy is sure of them."""
        is_sure = entropy.mean(dim=-1) < self.settings.confidence_threshold
        if len(history) < self.settings.stability_threshold:
            return torch.zeros_like(is_sure)
        for earlier in history:
            is_sure = is_sure & (earlier == best).all(dim=-1)
        return is_sure

    def _prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what stands before the span [N, P], each row's own tokens last, and which of it is padding."""
        state, starts = self.state, self.plan.positions[:, :1]
        longest = int(starts.max())
        column = torch.arange(longest, device=starts.device)
        is_padding = column[None] >= starts
        if state.layout.is_padding is not None:
            is_padding = is_padding | state.layout.is_padding[:, :longest]
        order = (~is_padding).long().argsort(dim=1, stable=True)
        is_padding = is_padding.gather(1, order)
        shortest = int((~is_padding).sum(dim=1).max())
        return state.ids.gather(1, order)[:, longest - shortest :], is_padding[:, longest - shortest :]

    def _banned_ids(self) -> torch.Tensor:
        """Return [V] bool: ids outside the span's range; inside a range the mark of open positions, too."""
        vocabulary = self.policy.vocabulary
        ids = torch.arange(vocabulary.size, device=self.state.ids.device)
        if self.plan.vocabulary_range is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        start, stop = self.plan.vocabulary_range
        return (ids < start) | (ids >= stop) | (ids == vocabulary.mask_token_id)

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        if self.plan.vocabulary_range is None:
            return logits
        return logits.masked_fill(self.banned, torch.finfo(logits.dtype).min / 4)  # finite after the temperature

    def _keyed_noise(self) -> KeyedNoise:
        state, length = self.state, self.policy.block_length
        start = state.layout.positions.gather(1, self.plan.positions[:, :1])
        ahead = torch.arange(self.num_blocks * length, device=start.device)
        positions = (start + ahead).view(len(start), self.num_blocks, length)
        return KeyedNoise(state.keys, positions, state.sampling.temperature, (~self.banned).nonzero()[:, 0])


def _logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return [N, C] in nats of tokens [N, C] under logits [N, C, V], un-tempered."""
    chosen = logits.gather(-1, token_ids[..., None]).squeeze(-1)
    return chosen - torch.stack([row.logsumexp(dim=-1) for row in logits])


def _only_plan(state: SamplerState) -> FillPlan:
    plans, layout = state.layout.plans, state.layout
    if len(plans) != 1 or state.sampling.guidance_scale > 0 or state.sampling.editing_threshold is not None:
        raise UserError(
            f"{len(plans)} open spans, guidance_scale {state.sampling.guidance_scale}, editing_threshold "
            f"{state.sampling.editing_threshold}; a policy of blocks fills one span of text, without guidance"
        )
    if state.sampling.top_p < 1:
        raise UserError(f"top_p is {state.sampling.top_p}; a policy of blocks draws from all tokens: leave it out")
    (plan,) = plans
    is_given = ~layout.is_open
    if layout.is_padding is not None:
        is_given = is_given & ~layout.is_padding
    column = torch.arange(is_given.shape[1], device=is_given.device)
    if bool((is_given & (column[None] >= plan.positions[:, :1])).any()):
        raise UserError("given tokens stand behind or inside the open span; this policy writes at a row's end only")
    return plan
