"""The state that a supervised run resumes from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unigrpo.checkpoint import latest_checkpoint

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_training_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the weights that train and AdamW's moments as two safetensors files."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    save_file(
        {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}, folder / "model.safetensors"
    )
    moments = {
        f"{key}:{name}": optimizer.state[weight][key].detach().cpu().contiguous()
        for name, weight in trained.items()
        if weight in optimizer.state
        for key in _MOMENTS
    }
    save_file(moments, folder / "optimizer.safetensors")


def load_training_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, run_dir: Path) -> None:
    """Put the newest checkpoint's weights and moments in place.

    Raises:
        ValueError: if it holds other weights than those that train.
    """
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None  # the caller has found it
    weights = load_file(checkpoint.folder / "model.safetensors")
    moments = load_file(checkpoint.folder / "optimizer.safetensors")
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    if set(weights) != set(trained):
        raise ValueError(
            f"{checkpoint.folder} holds {len(weights)} weights, the policy trains {len(trained)} others; resume "
            "with the recipe in the run directory"
        )
    for name, weight in trained.items():
        weight.data.copy_(weights[name])
        found = {key: moments[f"{key}:{name}"] for key in _MOMENTS if f"{key}:{name}" in moments}
        if found:
            optimizer.state[weight] = {
                key: value if key == "step" else value.to(weight.device) for key, value in found.items()
            }
