"""Does a policy keep its contract? `check_policy` on a checkpoint, `check_sampler` on what samples from it."""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from unigrpo.errors import ConformanceError
from unigrpo.models import load_policy
from unigrpo.models.adapter import (
    adapter_disabled,
    adapter_state,
    add_lora,
    merge_adapter,
    save_adapter,
    save_merged,
    set_adapter_state,
)
from unigrpo.models.layers.attention import positions_of
from unigrpo.rollouts.sampler import SampleOutput, sample_ids
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import ModelInput

if TYPE_CHECKING:
    from unigrpo.models.base import BlockCausalPolicy, Policy

ROWS, LENGTH, PADDING = 4, 24, 8
"""The checks' inputs: rows, positions, and positions of padding, which are whole blocks of 4 or 8."""
LORA = LoraSettings(r=4, alpha=8.0)
LOWEST_COSINE = 0.9
"""Cosine of bfloat16 logits with float32 ones: rounding leaves 0.999, and a token that other experts take less."""
LOGPROB_TOLERANCE = 1e-3
"""Nats by which a kept key may move a token's log-prob."""


class Loader(Protocol):
    """Loads a policy from a folder, as `unigrpo.models.load_policy` does."""

    def __call__(self, path: Path, /, *, dtype: str) -> Policy:
        """Return the policy."""


class Sampler(Protocol):
    """Fills the mask tokens of rows, as `unigrpo.rollouts.sample_ids` does."""

    def __call__(
        self,
        policy: Policy,
        token_ids: Tensor,
        *,
        temperature: float,
        is_padding: Tensor | None,
        vocabulary_range: tuple[int, int] | None,
        seeds: Sequence[int],
        **settings: Any,
    ) -> SampleOutput:
        """Return what was filled in."""


def check_policy(path: str | Path, *, load: Loader = load_policy, tolerance: float = 1e-4) -> None:
    """Check a checkpoint's policy: small shapes, so use a small checkpoint (``unigrpo make-tiny``).

    Padding, neighbours and the order of rows change no result; a range of ids is those columns of all logits, without
    the mask token; a block-causal policy sees no later block, all of its own, and clean ids where they are given; any
    other sees both ways; bfloat16 gives logits that point the same way; what `save_merged` writes loads as it; a fresh
    adapter is the base bit by bit, an adapter that is off too; gradient reaches every LoRA target; a saved adapter
    merges to what the live one computes.
    ``tolerance`` is by how much float32 logits may differ between batches of different make-up.

    Raises:
        ConformanceError: for the first rule that is broken.
    """
    folder = Path(path)
    policy = load(folder, dtype="float32")
    ids = _ids(policy)
    with torch.no_grad():
        wanted = policy.logits(ids)
        _check_shape(policy, wanted)
        _check_head(policy, ids, wanted, tolerance)
        _check_batch(policy, ids, wanted, tolerance)
        if policy.abilities.attention == "block_causal":
            block_causal = cast("BlockCausalPolicy", policy)
            _check_blocks(block_causal, ids, wanted, tolerance)
            _check_clean(block_causal, ids, tolerance)
        elif policy.abilities.attention in ("full", "prefix"):
            _check_sight(policy, ids, wanted, tolerance)
        _check_half(load(folder, dtype="bfloat16").logits(ids), wanted)
    with tempfile.TemporaryDirectory() as temporary:
        save_merged(policy, Path(temporary) / "again")
        _check_same("a saved and loaded policy", load(Path(temporary) / "again", dtype="float32"), ids, wanted, 0.0)
        if policy.abilities.trained:
            _check_adapter(policy, folder, load, ids, wanted, Path(temporary) / "adapter", tolerance)


def _ids(policy: Policy) -> Tensor:
    """Return [4, 24] text ids, a third of them masked."""
    generator = torch.Generator().manual_seed(7)
    start, stop = policy.vocabulary.text_range
    ids = torch.randint(start, stop, (ROWS, LENGTH), generator=generator)
    is_masked = torch.rand(ROWS, LENGTH, generator=generator) < 1 / 3
    return ids.masked_fill(is_masked, policy.vocabulary.mask_token_id).to(policy.device)


def _check_shape(policy: Policy, logits: Tensor) -> None:
    wanted = (ROWS, LENGTH, policy.vocabulary.size)
    if tuple(logits.shape) != wanted or not torch.isfinite(logits).all():
        raise ConformanceError(f"logits have shape {tuple(logits.shape)}; wanted finite ones of shape {wanted}")


def _check_half(half: Tensor, wanted: Tensor) -> None:
    if not torch.isfinite(half).all():
        raise ConformanceError("in bfloat16 some logits are not finite")
    cosine = float(torch.cosine_similarity(half.float().flatten(), wanted.flatten(), dim=0))
    if not cosine >= LOWEST_COSINE:
        raise ConformanceError(
            f"in bfloat16 the logits have a cosine of {cosine:.3g} with those of float32; wanted {LOWEST_COSINE:g}"
        )


def _check_blocks(policy: BlockCausalPolicy, ids: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Change the last token of the second block: nothing before that block moves, and its first position does."""
    size = policy.block_length
    if 2 * size > LENGTH:
        raise ConformanceError(f"block_length {size} is more than half of the check's {LENGTH}; give a smaller one")
    other = ids.clone()
    start, _ = policy.vocabulary.text_range
    other[:, 2 * size - 1] = torch.where(ids[:, 2 * size - 1] == start, start + 1, start)
    found = policy.logits(other)
    _check_near("a token of the second block, in the first,", found[:, :size], wanted[:, :size], tolerance)
    if float((found - wanted)[:, size].abs().max()) <= tolerance:
        raise ConformanceError("the first position of a block does not see its last one; a block sees all of itself")


def _check_clean(policy: BlockCausalPolicy, ids: Tensor, tolerance: float) -> None:
    """With clean ids, the second block is computed as if the first one had never been noised."""
    size = policy.block_length
    noisy = torch.full_like(ids, policy.vocabulary.mask_token_id)
    halfway = torch.cat((ids[:, :size], noisy[:, size:]), dim=1)
    wanted = policy.logits(halfway)[:, size : 2 * size]
    found = policy.head(policy.hidden(ModelInput(token_ids=noisy, clean_ids=ids)))[:, size : 2 * size]
    _check_near("clean_ids of the first block, in the second,", found, wanted, tolerance)


def _check_sight(policy: Policy, ids: Tensor, wanted: Tensor, tolerance: float) -> None:
    other = ids.clone()
    start, _ = policy.vocabulary.text_range
    other[:, -1] = torch.where(ids[:, -1] == start, start + 1, start)
    if float((policy.logits(other) - wanted)[:, 1].abs().max()) <= tolerance:
        raise ConformanceError("the second position does not see the last one; a masked policy sees both ways")


def _check_head(policy: Policy, ids: Tensor, wanted: Tensor, tolerance: float) -> None:
    hidden = policy.hidden(ModelInput(token_ids=ids))
    mask = policy.vocabulary.mask_token_id
    start, stop = max(0, mask - 3), min(policy.vocabulary.size, mask + 3)
    ranged = policy.head(hidden, (start, stop))
    if bool((ranged.softmax(dim=-1)[..., mask - start] > 0).any()):
        raise ConformanceError(f"inside the range {start}:{stop} the mask token {mask} has probability; it is noise")
    others = [index for index in range(stop - start) if index != mask - start]
    _check_near(f"the head over {start}:{stop}", ranged[..., others], wanted[..., start:stop][..., others], tolerance)


def _check_batch(policy: Policy, ids: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Check rows alone, in another order, and between paddings of any content."""
    for row in range(ROWS):
        _check_near(f"row {row} alone", policy.logits(ids[row : row + 1]), wanted[row : row + 1], tolerance)
    order = torch.tensor([2, 0, 3, 1], device=ids.device)
    _check_near("rows in another order", policy.logits(ids[order]), wanted[order], tolerance)
    filler = torch.full((ROWS, PADDING), policy.vocabulary.pad_token_id, device=ids.device)
    filler[1] = policy.vocabulary.mask_token_id
    is_filler, is_real = torch.ones_like(filler, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    right = policy.logits(torch.cat((ids, filler), dim=1), torch.cat((is_real, is_filler), dim=1))
    _check_near("padding on the right", right[:, :LENGTH], wanted, tolerance)
    is_padding = torch.cat((is_filler, is_real), dim=1)
    positions = positions_of(is_padding)
    model_input = ModelInput(token_ids=torch.cat((filler, ids), dim=1), is_padding=is_padding, positions=positions)
    left = policy.head(policy.hidden(model_input))
    _check_near("padding on the left", left[:, PADDING:], wanted, tolerance)


def _check_adapter(
    policy: Policy, folder: Path, load: Loader, ids: Tensor, wanted: Tensor, out: Path, tolerance: float
) -> None:
    layers = dict(policy.module.named_modules())
    unknown = [name for name in policy.lora_targets if not isinstance(layers.get(name), nn.Linear)]
    if unknown or not policy.lora_targets:
        raise ConformanceError(f"lora_targets names {unknown or 'nothing'}; wanted full names of linear layers")
    policy.module.requires_grad_(False)
    add_lora(policy, LORA, seed=3)
    _check_same("a fresh adapter", policy, ids, wanted, 0.0)
    logits = policy.logits(ids)
    if not logits.requires_grad:
        raise ConformanceError("logits carry no gradient: something detaches them, or computes them without gradient")
    logits.log_softmax(dim=-1).square().mean().backward()
    unreached = [
        name
        for name, parameter in policy.module.named_parameters()
        if ".lora_B." in name and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    if unreached:
        raise ConformanceError(f"no gradient reaches {', '.join(unreached[:10])} ({len(unreached)} in all)")
    generator = torch.Generator().manual_seed(5)
    drawn = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in adapter_state(policy).items()
    }
    set_adapter_state(policy, drawn)
    with torch.no_grad():
        live = policy.logits(ids)
        if torch.equal(live, wanted):
            raise ConformanceError("an adapter with weights changes no logit")
        with adapter_disabled(policy):
            _check_same("an adapter that is off", policy, ids, wanted, 0.0)
    save_adapter(policy, out)
    merged = load(folder, dtype="float32")
    merge_adapter(merged, out)
    _check_same("a saved and merged adapter", merged, ids, live, 10 * tolerance)


@torch.no_grad()
def _check_same(occasion: str, policy: Policy, ids: Tensor, wanted: Tensor, tolerance: float) -> None:
    _check_near(occasion, policy.logits(ids), wanted, tolerance)


def _check_near(occasion: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    worst = float((found - wanted).abs().max())
    if not worst <= tolerance:
        raise ConformanceError(f"{occasion} changes the logits by up to {worst:.3g}; wanted at most {tolerance:g}")


def check_sampler(policy: Policy, *, sampler: Sampler = sample_ids, **settings: Any) -> None:
    """Check a sampler on a policy.

    Given tokens stay; every mask token is replaced, by a token of the range; the same seeds give the same tokens, and
    at temperature 0 any seeds do; a row's tokens depend neither on its neighbours, nor on its place in the batch, nor
    on padding; it tells the step that committed each token, and leaves the caller's ids alone; a sampler that can keep
    keys (``use_cache``) gives the tokens and log-probs of one that does not; no global random state is used.
    The policy is a small one, in float32; the settings are the sampler's, for rows with 16 open positions.

    Raises:
        ConformanceError: for the first rule that is broken.
    """
    ids = _ids(policy)
    ids[ids == policy.vocabulary.mask_token_id] = policy.vocabulary.eos_token_id
    ids[:, LENGTH - 16 :] = policy.vocabulary.mask_token_id
    seeds = [11, 12, 13, 14]
    settings = {"num_denoising_steps": 8, "vocabulary_range": policy.vocabulary.text_range, **settings}

    def filled(rows: Sequence[int], temperature: float, **other: Any) -> Tensor:
        own_seeds = [seeds[row] for row in rows]
        given = {"seeds": own_seeds, "token_ids": ids[list(rows)], "is_padding": None, **settings, **other}
        before = given["token_ids"].clone()
        out = sampler(policy, temperature=temperature, **given)
        if not torch.equal(given["token_ids"], before):
            raise ConformanceError("the caller's token ids were written into; fill a copy")
        if given["is_padding"] is None:
            _check_steps(policy, before, out, settings["num_denoising_steps"])
        return out.token_ids

    state, other_state = torch.get_rng_state(), _other_random_state()
    everyone = range(ROWS)
    for temperature in (0.0, 1.0):
        wanted = filled(everyone, temperature)
        _check_filled(policy, ids, wanted, settings["vocabulary_range"])
        _check_tokens("a second call", filled(everyone, temperature), wanted)
        order = [2, 0, 3, 1]
        _check_tokens("rows in another order", filled(order, temperature), wanted[order])
        for row in everyone:
            _check_tokens(f"row {row} alone", filled([row], temperature), wanted[row : row + 1])
        padded, is_padding = _padded(policy, ids)
        found = filled(everyone, temperature, token_ids=padded, is_padding=is_padding)
        _check_tokens("padding on the left", found[:, PADDING:], wanted)
        if "use_cache" in inspect.signature(sampler).parameters and "use_cache" not in settings:
            _check_cache(
                sampler, policy, temperature=temperature, is_padding=None, seeds=seeds, token_ids=ids, **settings
            )
    _check_tokens("other seeds at temperature 0", filled(everyone, 0.0, seeds=[1, 2, 3, 4]), filled(everyone, 0.0))
    if torch.equal(filled(everyone, 1.0, seeds=[1, 2, 3, 4]), wanted):
        raise ConformanceError("other seeds give the same tokens at temperature 1; the noise must be keyed by them")
    if not torch.equal(torch.get_rng_state(), state) or _other_random_state() != other_state:
        raise ConformanceError("the global random state was used; take noise from the rows' seeds")


def _check_cache(sampler: Sampler, policy: Policy, **settings: Any) -> None:
    kept, computed = (sampler(policy, use_cache=use_cache, **settings) for use_cache in (True, False))
    _check_tokens("without kept keys", computed.token_ids, kept.token_ids)
    worst = float((computed.committed_logprobs - kept.committed_logprobs).abs().max())
    if not worst <= LOGPROB_TOLERANCE:
        raise ConformanceError(f"kept keys move log-probs by up to {worst:.3g}; wanted at most {LOGPROB_TOLERANCE:g}")


def _other_random_state() -> tuple[Any, ...]:
    """Return what Python's and numpy's global generators would give next."""
    return random.getstate(), repr(np.random.get_state(legacy=False))


def _check_steps(policy: Policy, ids: Tensor, out: SampleOutput, num_steps: int) -> None:
    is_open = ids == policy.vocabulary.mask_token_id
    steps = out.committed_step
    if bool((steps[~is_open] != -1).any()) or bool(((steps[is_open] < 0) | (steps[is_open] >= num_steps)).any()):
        raise ConformanceError(f"committed_step must be -1 at given tokens and 0..{num_steps - 1} at filled ones")
    if num_steps > 1 and is_open.any() and bool((steps[is_open] == steps[is_open][0]).all()):
        raise ConformanceError(f"every token says that step {int(steps[is_open][0])} of {num_steps} committed it")


def _padded(policy: Policy, ids: Tensor) -> tuple[Tensor, Tensor]:
    filler = torch.full((ROWS, PADDING), policy.vocabulary.pad_token_id, device=ids.device)
    is_padding = torch.zeros(ROWS, PADDING + LENGTH, dtype=torch.bool, device=ids.device)
    is_padding[:, :PADDING] = True
    return torch.cat((filler, ids), dim=1), is_padding


def _check_filled(policy: Policy, ids: Tensor, found: Tensor, vocabulary_range: tuple[int, int] | None) -> None:
    is_open = ids == policy.vocabulary.mask_token_id
    if not torch.equal(found[~is_open], ids[~is_open]):
        raise ConformanceError("a given token was changed")
    if bool((found == policy.vocabulary.mask_token_id).any()):
        raise ConformanceError("a mask token is left")
    start, stop = vocabulary_range or (0, policy.vocabulary.size)
    if not bool(((found[is_open] >= start) & (found[is_open] < stop)).all()):
        raise ConformanceError(f"a token outside of the range {start}:{stop} was sampled")


def _check_tokens(occasion: str, found: Tensor, wanted: Tensor) -> None:
    different = (found != wanted).nonzero().tolist()
    if different:
        raise ConformanceError(
            f"{occasion}: {len(different)} tokens differ, the first at row and position {different[0]}"
        )
