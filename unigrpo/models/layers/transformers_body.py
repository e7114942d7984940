"""A body that is one of transformers' own classes: what its loader does besides reading weights, and checkpointing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from unigrpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMPUTED = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
INITIALIZED = "_is_hf_initialized"
"""Transformers' own mark on a tensor that it must not draw afresh."""


@torch.no_grad()
def fill_buffers(module: PreTrainedModel) -> None:
    """Compute what no file holds (rotary wavelengths, position ids) in a module that was built on the meta device.

    Raises:
        UserError: a tensor that neither the files nor the class gave a value.
    """
    device = next(module.parameters()).device
    saved = set(module.state_dict())
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        if name in saved:
            setattr(tensor, INITIALIZED, True)
        elif tensor.is_meta:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = torch.empty_like(tensor, device=device)
    module.initialize_weights()
    empty = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    if empty:
        raise UserError(f"{type(module).__name__} has no value for {', '.join(empty[:10])}; another transformers?")


def set_recomputing(module: PreTrainedModel, is_recomputed: bool) -> None:
    """Switch per-layer gradient checkpointing of a module that is in evaluation mode.

    Transformers asks for training mode as well; it is set on the layers alone, not on the dropout inside them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = layer.training = is_recomputed
            layer._gradient_checkpointing_func = RECOMPUTED  # type: ignore[assignment]
