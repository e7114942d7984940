"""Compiled blocks compute what plain ones do, keep their names, and take an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.models.adapter import adapter_disabled, add_lora
from unigrpo.settings.policy import LoraSettings
from unigrpo.testing.tiny.make_tiny import make_tiny


@pytest.mark.slow
def test_compiled_policy_equals_the_plain_one_with_and_without_adapter(tmp_path: Path) -> None:
    folder = make_tiny("llada", tmp_path / "policy", layers=1)
    # In a process of its own: the compiler refuses to start where something has imported the standard distutils.
    done = run([sys.executable, __file__, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def compare(folder: Path) -> None:
    """Raise unless both give the same logits and gradients."""
    plain, compiled = load_policy(folder, dtype="float32"), load_policy(folder, dtype="float32", compiled=True)
    assert compiled.module.state_dict().keys() == plain.module.state_dict().keys()
    ids = torch.randint(0, 400, (4, 24), generator=torch.Generator().manual_seed(0))
    is_padding = torch.arange(24).expand(4, 24) >= torch.tensor([[24], [20], [24], [16]])
    with torch.no_grad():
        wanted = plain.logits(ids, is_padding)[~is_padding]
        torch.testing.assert_close(compiled.logits(ids, is_padding)[~is_padding], wanted, atol=1e-4, rtol=0)
    for policy in (plain, compiled):
        policy.module.requires_grad_(False)
        add_lora(policy, LoraSettings(r=4), seed=0)
        policy.logits(ids).log_softmax(dim=-1).square().mean().backward()
    gradients = [
        {name: value.grad for name, value in policy.module.named_parameters() if ".lora_B." in name}
        for policy in (plain, compiled)
    ]
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, atol=1e-5, rtol=1e-3)
    with torch.no_grad(), adapter_disabled(compiled), adapter_disabled(plain):
        torch.testing.assert_close(compiled.logits(ids), plain.logits(ids), atol=1e-4, rtol=0)


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
