"""Log-prob passes and updates against the full-logits form: CPU seconds and peak memory, as ratios (higher is better).

    python tests/benchmarks/learner.py --json FILE

One policy: width 512, 8 layers, V = 40,960, float32, LoRA r = 16 on every linear layer of the blocks; 8 rows of 64
prompt and 128 completion tokens; mask ratios spread evenly over (0, 1), as UniGRPO's schedule has them. The full-logits
form runs the head on every position, takes log-probs from [N, L, V] and multiplies by the mask. Both get the same noisy
ids; loss and gradients are compared before anything is reported. One row more scores 8 positions a row, as an
estimator on the trace of denoising does: there the head is nearly free for us, and costs the full form as much as ever.

Time is CPU seconds of one process, the variants in turn, medians. Memory is the kernel's peak of resident memory
(VmHWM, reset just before) over what was resident after the model was built and warmed up, one forked process a variant:
it is what a machine must have, it sees allocations outside of torch, and nothing of another variant lingers. There,
malloc maps blocks of 64 KiB and more on their own, so that freed tensors leave the resident set at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F

from unigrpo.learner.logprobs import token_logprobs
from unigrpo.methods.loss import make_loss
from unigrpo.models.adapter import add_lora
from unigrpo.models.base import Vocabulary
from unigrpo.models.policies.llada import Llada, LladaConfig, LladaPolicy
from unigrpo.settings.learning import KlChoice, ObjectiveChoice, RatioChoice
from unigrpo.settings.policy import LoraSettings
from unigrpo.types import ModelInput

ROWS, LENGTH, PROMPT, SIZE, WIDTH, LAYERS, CHUNK = 8, 192, 64, 40_960, 512, 8, 128
MASK, TRACE = SIZE - 1, 8
CLIP_EPS, KL_COEF = 0.2, 0.04
LOSS = make_loss(RatioChoice(), ObjectiveChoice(clip_eps=CLIP_EPS), KlChoice(coef=KL_COEF))
MEBIBYTE = 2**20


def make_policy() -> LladaPolicy:
    """Return the policy with an adapter whose B is not zero, so that every adapter weight has a gradient."""
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": 8, "mlp_hidden_size": 3 * WIDTH, "embedding_size": SIZE}
    vocabulary = Vocabulary(size=SIZE, mask_token_id=MASK, eos_token_id=1, pad_token_id=1, text_range=(0, MASK))
    policy = LladaPolicy(module=Llada(LladaConfig.from_dict(sizes)), vocabulary=vocabulary)
    policy.module.requires_grad_(False)
    add_lora(policy, LoraSettings(r=16), seed=0)
    with torch.no_grad():
        for name, weight in policy.module.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    return policy


class Task:
    """One update's inputs: noisy ids, true tokens, what is scored, and the other policies' log-probs on the grid."""

    def __init__(self, rows: int = ROWS, length: int = LENGTH, num_scored: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.randint(2, MASK, (rows, length), generator=generator)
        ratio = (torch.arange(rows)[:, None] + 0.5) / rows
        self.is_scored = torch.rand(rows, length, generator=generator) < ratio
        self.is_scored[:, : length // 3] = False
        if num_scored is not None:
            self.is_scored[:] = False
            self.is_scored[:, -num_scored:] = True
        self.model_input = ModelInput(token_ids=self.targets.masked_fill(self.is_scored, MASK))
        base = -torch.log(torch.tensor(float(SIZE)))
        self.old, self.ref = (base + 0.3 * torch.randn(rows, length, generator=generator) for _ in range(2))
        self.advantages = torch.linspace(-1, 1, rows)[:, None].expand(rows, length)
        self.weight = self.is_scored / (self.is_scored.sum(1, keepdim=True).clamp(min=1) * rows)


def full_logprobs(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return [N, L] by way of [N, L, V]."""
    logits = policy.head(policy.hidden(task.model_input))
    return -F.cross_entropy(logits.flatten(0, 1), task.targets.flatten(), reduction="none").view_as(task.targets)


def full_update(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return the loss after backward, on the whole grid."""
    logprobs = full_logprobs(policy, task)
    ratio = (logprobs - task.old).exp()
    surrogate = torch.minimum(ratio * task.advantages, ratio.clamp(1 - CLIP_EPS, 1 + CLIP_EPS) * task.advantages)
    kl = (task.ref - logprobs).exp() - (task.ref - logprobs) - 1
    loss = (task.weight * (KL_COEF * kl - surrogate)).sum()
    loss.backward()
    return loss.detach()


def our_logprobs(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return [S]."""
    return token_logprobs(policy, task.model_input, task.targets, task.is_scored, chunk=CHUNK)


def our_update(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return the loss after backward, on the scored positions."""
    old, ref, advantages, weight = (grid[task.is_scored] for grid in (task.old, task.ref, task.advantages, task.weight))
    rollout = task.is_scored.nonzero()[:, 0]
    loss = LOSS(our_logprobs(policy, task), old, ref, advantages, weight, rollout).loss
    loss.backward()
    return loss.detach()


def stacked(task: Task) -> Task:
    """Return a task of two draws in one batch, as the full-logits trainers pass their mu noisy copies."""
    return Task(rows=2 * len(task.targets), length=task.targets.shape[1])


@torch.no_grad()
def full_no_grad(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return the log-probs of two draws (mu = 2), stacked."""
    return full_logprobs(policy, stacked(task))


@torch.no_grad()
def full_no_grad_one_draw(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return the log-probs of one draw."""
    return full_logprobs(policy, task)


@torch.no_grad()
def our_no_grad(policy: LladaPolicy, task: Task) -> torch.Tensor:
    """Return the log-probs of two draws (mu = 2), in turn: what a draw needs is freed before the next."""
    return torch.stack([our_logprobs(policy, task) for _ in range(2)])


VARIANTS: dict[str, Callable[[LladaPolicy, Task], torch.Tensor]] = {
    "full_no_grad": full_no_grad,
    "full_no_grad_one_draw": full_no_grad_one_draw,
    "our_no_grad": our_no_grad,
    "full_update": full_update,
    "our_update": our_update,
    "full_update_checkpointed": full_update,
    "our_update_checkpointed": our_update,
}


def status_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def peak_bytes(name: str, policy: LladaPolicy) -> int:
    """Return the peak bytes of one variant over the model."""
    policy.module.is_checkpointing = name.endswith("checkpointed")
    VARIANTS[name](policy, Task(rows=2, length=6))
    policy.module.zero_grad(set_to_none=True)
    task = Task()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    VARIANTS[name](policy, task)
    return status_bytes("VmHWM") - before


def _send_peak(name: str, policy: LladaPolicy, pipe: Connection) -> None:
    pipe.send(peak_bytes(name, policy))


def print_peaks() -> None:
    """Print the peak bytes of every variant, each measured in a fork that starts from the same built model."""
    policy, peaks = make_policy(), {}
    context = multiprocessing.get_context("fork")
    for name in VARIANTS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_peak, args=(name, policy, sender))
        process.start()
        sender.close()
        peaks[name] = receiver.recv()
        process.join()
    print(json.dumps(peaks))


def measure_peaks() -> dict[str, int]:
    """Return ``print_peaks`` of a process whose malloc gives freed memory back."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment |= {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--peaks"]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def check_equal(policy: LladaPolicy, task: Task) -> None:
    """Refuse to compare two computations that differ."""
    losses, gradients = [], []
    for update in (full_update, our_update):
        policy.module.zero_grad(set_to_none=True)
        losses.append(update(policy, task).item())
        trained = [weight for weight in policy.module.parameters() if weight.requires_grad]
        gradients.append(torch.cat([weight.grad.flatten() for weight in trained if weight.grad is not None]))
    distance = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    if abs(losses[0] - losses[1]) > 1e-5 or distance > 1e-4:
        raise RuntimeError(f"the two updates differ: losses {losses}, gradients by {distance:.1e} of their norm")


def measure_times(repeats: int, task: Task) -> dict[str, float]:
    """Return the median CPU seconds of each update, the two in turn."""
    policy = make_policy()
    check_equal(policy, task)
    seconds: dict[str, list[float]] = {"full_update": [], "our_update": []}
    for _ in range(repeats):
        for name, values in seconds.items():
            policy.module.zero_grad(set_to_none=True)
            start = time.process_time()
            VARIANTS[name](policy, task)
            values.append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Write the rows, and show what they are made of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peaks", action="store_true", help="print the peak bytes of every variant and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peaks:
        print_peaks()
        return
    peak = measure_peaks()
    seconds = measure_times(arguments.repeats, Task())
    trace_row = measure_times(arguments.repeats, Task(num_scored=TRACE))
    pairs = {
        "no_grad_memory": (peak["full_no_grad"], peak["our_no_grad"]),
        "no_grad_memory_one_draw": (peak["full_no_grad_one_draw"], peak["our_no_grad"]),
        "update_memory": (peak["full_update"], peak["our_update"]),
        "update_memory_checkpointed": (peak["full_update_checkpointed"], peak["our_update_checkpointed"]),
        "update_time": (seconds["full_update"], seconds["our_update"]),
        "trace_row_time": (trace_row["full_update"], trace_row["our_update"]),
    }
    for name, (full, ours) in pairs.items():
        unit, scale = ("s", 1) if name.endswith("time") else ("MiB", MEBIBYTE)
        print(f"{name:28s} {full / scale:9.2f} {ours / scale:9.2f} {unit:4s} {full / ours:6.2f}x")
    rows = [{"name": name, "ratio": full / ours, "full": full, "ours": ours} for name, (full, ours) in pairs.items()]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
