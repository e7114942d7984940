"""AdamW as every stage of training uses it: what is decayed, the rate of each step, and its state in a checkpoint."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unigrpo.errors import UserError
from unigrpo.models.adapter import ADAPTER_WEIGHTS, save_adapter, set_trainable_state, trainable_state
from unigrpo.models.files.weights import write_tensors
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.sft import SftRecipe

if TYPE_CHECKING:
    from unigrpo.models.base import Policy


ADAPTER, MODEL, OPTIMIZER = "adapter", "model.safetensors", "optimizer.safetensors"
"""What a checkpoint holds of training: an adapter in PEFT layout or all weights, and the optimizer's state."""
OptimizerSettings = LearnerSettings | SftRecipe
"""Both have the rate and its schedule, AdamW's betas and decay, and the longest gradient."""


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Return the rate of a step: a linear warm-up times, for ``cosine``, half a cosine over all steps of the run.

    The cosine starts with the run and not after the warm-up, and would be 0 at ``step == num_steps``.
    Steps count from 0.
    """
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    if settings.lr_schedule == "constant":
        return settings.lr * warmup
    return settings.lr * (warmup * 0.5 * (1.0 + math.cos(math.pi * step / num_steps)))


class Optimizer:
    """AdamW over the weights of a module that train; vectors (norms, biases) are not decayed."""

    def __init__(self, module: torch.nn.Module, settings: OptimizerSettings, num_steps: int) -> None:
        """Take the weights of a policy's body that require a gradient now; ``num_steps`` is the run's."""
        self._settings, self._num_steps = settings, num_steps
        self._weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        matrices = [weight for weight in self._weights.values() if weight.dim() > 1]
        vectors = [weight for weight in self._weights.values() if weight.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return learning_rate(self._settings, step, self._num_steps)

    def clip_gradients(self) -> torch.Tensor:
        """Scale the gradients down to the longest norm allowed, and return the norm that they had."""
        return torch.nn.utils.clip_grad_norm_(self._weights.values(), self._settings.max_grad_norm)

    def update(self, step: int) -> None:
        """Move the weights along their gradients, at the rate of a step."""
        for group in self._adamw.param_groups:
            group["lr"] = self.rate(step)
        self._adamw.step()

    def clear_gradients(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    @property
    def num_bytes(self) -> int:
        """Return about how much a checkpoint takes: the weights and two moments of each."""
        return 3 * sum(weight.numel() * weight.element_size() for weight in self._weights.values())

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies on CPU of the moments and step counts, as ``exp_avg:NAME`` and so on, for a checkpoint."""
        return {
            f"{key}:{name}": value.detach().to("cpu", copy=True).contiguous()
            for name, weight in self._weights.items()
            for key, value in self._adamw.state.get(weight, {}).items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take what ``state`` returned.

        Raises:
            UserError: if it belongs to other weights.
        """
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            kind, _, name = key.partition(":")
            found.setdefault(name, {})[kind] = value
        strange = sorted(found.keys() - self._weights.keys())
        if strange:
            raise UserError(
                f"the optimizer state has weights that the policy does not train: {strange[:10]}; resume with the "
                "recipe in the run directory"
            )
        for name, values in found.items():
            wanted = {"step": (), "exp_avg": self._weights[name].shape, "exp_avg_sq": self._weights[name].shape}
            shapes = {kind: tuple(value.shape) for kind, value in values.items()}
            if shapes != {kind: tuple(shape) for kind, shape in wanted.items()}:
                raise UserError(f"the optimizer state of {name} has {shapes}; wanted the shapes {wanted}")
        self._adamw.state.clear()
        for name, values in found.items():
            weight = self._weights[name]
            self._adamw.state[weight] = {
                kind: value.clone() if kind == "step" else value.to(weight, copy=True) for kind, value in values.items()
            }


def save_training(policy: Policy, optimizer: Optimizer, folder: Path) -> None:
    """Write the weights that train, and the optimizer's state, into a folder of a checkpoint."""
    if policy.adapter is not None:
        save_adapter(policy, folder / ADAPTER)
    else:
        write_tensors(trainable_state(policy), folder / MODEL)
    write_tensors(optimizer.state(), folder / OPTIMIZER)


def load_training(policy: Policy, optimizer: Optimizer, folder: Path) -> None:
    """Take what `save_training` wrote.

    Raises:
        UserError: naming the file, if it cannot be read, is not finite or belongs to other weights.
    """
    weights = folder / ADAPTER / ADAPTER_WEIGHTS if policy.adapter is not None else folder / MODEL
    for path, take in ((weights, partial(set_trainable_state, policy)), (folder / OPTIMIZER, optimizer.load_state)):
        try:
            state = load_file(path)
            strange = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
            if strange:
                raise UserError(f"{strange[0]} is not finite")
            take(state)
        except (OSError, SafetensorError, UserError) as error:
            raise UserError(f"{path} cannot be gone on from: {error}") from error
