"""A policy as a recipe describes it: base, merged supervised adapter, fresh adapter to train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from unigrpo.errors import UserError
from unigrpo.models.adapter import add_lora, merge_adapter
from unigrpo.models.loading import load_policy
from unigrpo.settings.policy import LoraSettings, PolicySettings

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.types import TaskKind


def open_policy(settings: PolicySettings, lora: LoraSettings, seed: int, is_frozen: bool = False) -> Policy:
    """Return the policy: the same weights, bit for bit, in every process that calls this with the same arguments.

    Args:
        settings: the checkpoint.
        lora: the adapter to add; disabled trains all weights.
        seed: keys the adapter's initial weights.
        is_frozen: leave everything without gradient and without a fresh adapter (a reference, or only to sample).
    """
    policy = load_policy(
        settings.path,
        use=settings.use,
        dtype=settings.dtype,
        device=settings.device,
        image_tokenizer=settings.image_tokenizer,
        image_size=settings.image_size,
        image_fit=settings.image_fit,
        revision=settings.revision,
        gradient_checkpointing=settings.gradient_checkpointing,
        compiled=settings.compiled,
    )
    if settings.adapter is not None:
        merge_adapter(policy, settings.adapter)
    if is_frozen or lora.enabled:
        policy.module.requires_grad_(False)
    if lora.enabled and not is_frozen:
        add_lora(policy, lora, seed)
    return policy


def refuse_untrained(policy: Policy, tasks: Iterable[TaskKind]) -> None:
    """Refuse to train tasks that the policy's family only generates.

    Raises:
        UserError: with the family's reason.
    """
    for task in tasks:
        if task in policy.abilities.untrained:
            raise UserError(f"{policy.source} does not train the task {task}: {policy.abilities.why_untrained}")
