"""Monte Carlo estimate of log p(answer | prompt) under masked diffusion (LLaDA, arXiv 2502.09992, equation 6).

    log p(answer | prompt) >= E_l [ n / l * sum over masked i of log p(answer_i | noisy) ],   l ~ U{1, ..., n}

where l of the answer's n tokens, drawn without replacement, are masked. Under block-causal attention the earlier blocks
are clean and the same weights give each block its own bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unigrpo.errors import UserError
from unigrpo.learner.logprobs import token_logprobs
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import Policy


def log_likelihood(
    policy: Policy,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    *,
    num_draws: int = 128,
    rows: int = 16,
    guidance_scale: float = 0.0,
    seed: int = 0,
) -> float:
    """Return the estimate in nats, of the whole answer.

    Args:
        policy: any masked-diffusion policy.
        prompt_ids: given tokens, never masked.
        answer_ids: tokens that are scored; at least one.
        num_draws: noisy copies; the numbers of masked tokens are spread evenly over 1..n within every ``rows`` of them.
        rows: copies that go through the model together.
        guidance_scale: classifier-free guidance against the masked prompt; 0 is none.
        seed: of the masks, by a private generator.

    Raises:
        UserError: an empty answer, or no draw.
    """
    if not len(answer_ids) or num_draws < 1 or rows < 1:
        raise UserError(
            f"{len(answer_ids)} answer tokens, {num_draws} draws of {rows} rows; wanted at least one of each"
        )
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.tensor([*prompt_ids, *answer_ids], dtype=torch.int64)
    counts = [min(rows, num_draws - start) for start in range(0, num_draws, rows)]
    total = 0.0
    for count in counts:
        is_masked = draw_masks(len(prompt_ids), len(answer_ids), count, generator)
        noisy = token_ids.masked_fill(is_masked, policy.vocabulary.mask_token_id)
        scores = score_draws(policy, token_ids, noisy, is_masked, len(prompt_ids), guidance_scale)
        total += float(scores.double().sum())
    return total / num_draws


def draw_masks(prompt_length: int, answer_length: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Return [R, L] bool: each row masks l tokens of the answer; the l of the rows lie evenly around 1..n.

    A first l is uniform and the others follow in steps of n / R, wrapped: each row's l is uniform by itself and their
    mean varies less than with independent draws (LLaDA's own evaluation does the same).
    """
    first = int(torch.randint(1, answer_length + 1, (1,), generator=generator))
    steps = torch.arange(num_draws, dtype=torch.float64) * (answer_length / num_draws)
    num_masked = (first + steps.floor().long() - 1) % answer_length + 1
    order = torch.rand(num_draws, answer_length, generator=generator).argsort(dim=1).argsort(dim=1)
    is_masked = torch.zeros(num_draws, prompt_length + answer_length, dtype=torch.bool)
    is_masked[:, prompt_length:] = order < num_masked[:, None]
    return is_masked


@torch.no_grad()
def score_draws(
    policy: Policy,
    token_ids: Tensor,
    noisy_ids: Tensor,
    is_masked: Tensor,
    prompt_length: int,
    guidance_scale: float = 0.0,
) -> Tensor:
    """Return [R] float32: of each row, n / l times the sum of its masked tokens' log-probs, in nats.

    Args:
        policy: any masked-diffusion policy.
        token_ids: [L] int64, the clean row.
        noisy_ids: [R, L] int64.
        is_masked: [R, L] bool, at least one a row and none in the prompt.
        prompt_length: of the row's start that is given.
        guidance_scale: 0 is none.
    """
    device = policy.device
    noisy_ids, is_masked = noisy_ids.to(device), is_masked.to(device)
    targets = token_ids.to(device).expand_as(noisy_ids)
    lengths = torch.full((len(noisy_ids),), prompt_length, device=device)
    model_input = ModelInput(token_ids=noisy_ids, prompt_lengths=lengths, clean_ids=targets)
    if guidance_scale == 0:
        logprobs = token_logprobs(policy, model_input, targets, is_masked)
    else:
        blind = noisy_ids.clone()
        blind[:, :prompt_length] = policy.vocabulary.mask_token_id
        blind_targets = torch.where(torch.arange(targets.shape[1], device=device) < prompt_length, blind, targets)
        twin = ModelInput(token_ids=blind, prompt_lengths=lengths, clean_ids=blind_targets)
        given, unguided = (policy.head(policy.hidden(part)[is_masked]).float() for part in (model_input, twin))
        guided = unguided + (guidance_scale + 1) * (given - unguided)
        logprobs = guided.log_softmax(dim=-1).gather(1, targets[is_masked][:, None])[:, 0]
    row = is_masked.nonzero()[:, 0]
    sums = torch.zeros(len(noisy_ids), device=device).index_add(0, row, logprobs.float())
    return sums * ((targets.shape[1] - prompt_length) / is_masked.sum(dim=1))
