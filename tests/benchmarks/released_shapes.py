"""Released shapes with random weights: seconds to load, tokens a second, seconds of a LoRA update, and peak memory.

    python tests/benchmarks/released_shapes.py --device cuda --json FILE --markdown FILE
    python tests/benchmarks/released_shapes.py llada sdar --device cpu --layers 2 --width 64 --rows 4 --length 16

A shape is FAMILY:RELEASE of `unigrpo make-tiny`, or FAMILY for its tiny sizes. Its checkpoint is written by make-tiny
in the dtype (no more than one shard is in memory) to a temporary folder, or to --keep, where the next run finds it; so
what is loaded was just written, and comes from the page cache as far as that holds it. Every shape has a process of its
own.

    load        load_policy to the device.
    generation  `unigrpo.rollouts.generate` of one group: --rows completions of --length open tokens in half as many
                steps, in blocks of the model or of 32; an EOS does not end them. Tokens are those of all rows.
    update      the learner on that group: noise, log-probs of the reference, forward and backward of LoRA of rank 16 in
                micro-batches with each block recomputed, AdamW.

Generation and update run once to warm up, then are timed. The peak of each is what the device held at most
(`torch.cuda.max_memory_allocated`; on a CPU the resident memory of the process, mapped files among it).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = ("llada:8b", "sdar:8b", "mmada:8b", "llada2:mini")
BLOCK = 32
WORDS = 24
SMALL = {"layers": None, "width": None}
TITLES = ("shape", "weights", "load", "peak", "generation", "peak", "update", "peak")


def write_checkpoint(shape: str, folder: Path, arguments: argparse.Namespace) -> Path:
    """Return the shape's folder, which is written unless it is there."""
    from unigrpo.testing.tiny.make_tiny import make_tiny

    family, _, release = shape.partition(":")
    sizes = "".join(f"-{name}{getattr(arguments, name)}" for name in ("layers", "width") if getattr(arguments, name))
    out = folder / f"{family}-{release or 'tiny'}{sizes}-{arguments.dtype}"
    if not (out / "config.json").is_file():
        make_tiny(
            family, out, release=release or None, layers=arguments.layers, width=arguments.width, dtype=arguments.dtype
        )
    return out


class Meter:
    """Seconds and peak memory of calls on one device."""

    def __init__(self, device: str) -> None:
        import torch

        self._is_cuda = torch.device(device).type == "cuda"
        self._device = device

    def measure(self, call: Callable[[], Any]) -> tuple[Any, float, int]:
        """Return what a call returns, its seconds, and the bytes that were held at most."""
        import torch

        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            torch.cuda.synchronize(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        result = call()
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - start
        return result, seconds, torch.cuda.max_memory_allocated(self._device) if self._is_cuda else resident_peak()


def resident_peak() -> int:
    """Return the kernel's peak of resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; on a CPU this benchmark needs Linux")


def measure_shape(shape: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one shape, in this process."""
    from unigrpo.models import load_policy
    from unigrpo.models.families import abilities, family_name
    from unigrpo.models.loading import read_config

    first = write_checkpoint(shape.partition(":")[0], folder.parent, argparse.Namespace(**vars(arguments) | SMALL))
    load_policy(first, dtype=arguments.dtype, device=arguments.device)  # imports and the device's start are no load
    meter = Meter(arguments.device)
    policy, load_s, load_peak = meter.measure(
        lambda: load_policy(folder, dtype=arguments.dtype, device=arguments.device, gradient_checkpointing=True)
    )
    if "reason" not in policy.abilities.tasks:
        raise SystemExit(f"{shape} writes no text; this benchmark generates text")
    row = {
        "shape": shape,
        "num_parameters": sum(weight.numel() for weight in policy.module.parameters()),
        "load_s": load_s,
        "load_peak": load_peak,
    }
    rollouts, row_generation = measure_generation(policy, meter, arguments)
    row |= row_generation
    if "reason" not in abilities(family_name(read_config(folder))).untrained:
        row |= measure_update(policy, meter, rollouts, arguments)
    return row


def measure_generation(policy: Any, meter: Meter, arguments: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """Return the group's rollouts, and the part of the row that says how they came."""
    from unigrpo.rollouts.units import generate, plan_units
    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Message, PolicyVersion, Prompt

    text = " ".join(["red square"] * (WORDS // 2))
    prompt = Prompt(id="one", kind="reason", messages=(Message(role="user", text=text),))
    own = getattr(policy, "block_length", None)
    block = own or (BLOCK if arguments.length % BLOCK == 0 else arguments.length)
    steps = math.ceil(arguments.length / block) * max(1, block // 2)
    sampling = SamplingSettings(
        completion_length=arguments.length,
        num_denoising_steps=steps,
        block_length=None if own else block,
        stop_at_eos=False,
    )
    (unit,) = plan_units([(prompt, sampling)], group_size=arguments.rows, rows_per_unit=arguments.rows, seed=0, step=0)
    version = PolicyVersion(step=0, kind="adapter", sha256="0")
    generate(policy, unit, version)
    rollouts, seconds, peak = meter.measure(lambda: generate(policy, unit, version))
    return rollouts, {
        "generation_s": seconds,
        "tokens_per_s": arguments.rows * arguments.length / seconds,
        "generation_peak": peak,
        "prompt_length": len(rollouts[0].token_ids) - arguments.length,
    }


def measure_update(policy: Any, meter: Meter, rollouts: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the part of the row that says what an update takes."""
    import numpy as np

    from unigrpo.learner.batch import collate
    from unigrpo.learner.learner import Learner
    from unigrpo.methods.estimators.unigrpo import UniGRPO
    from unigrpo.methods.loss import make_loss
    from unigrpo.models.adapter import add_lora
    from unigrpo.settings.learning import KlChoice, LearnerSettings, ObjectiveChoice, RatioChoice
    from unigrpo.settings.policy import LoraSettings

    policy.module.requires_grad_(False)
    add_lora(policy, LoraSettings(r=16), seed=0)
    settings = LearnerSettings(lr=1e-5, num_inner_updates=1, micro_batch_rows=arguments.micro_batch_rows)
    loss = make_loss(RatioChoice(), ObjectiveChoice(), KlChoice())
    learner = Learner(policy, None, UniGRPO(), loss, settings, num_steps=2)
    advantages = np.linspace(-1, 1, len(rollouts))
    batch = collate(rollouts, advantages, policy.vocabulary.pad_token_id, device=policy.device)

    def update(step: int) -> Any:
        return learner.begin_batch(step, batch).update(0)

    update(0)
    stats, seconds, peak = meter.measure(lambda: update(1))
    if stats.is_skipped:
        raise RuntimeError("the update's gradient was not finite; nothing was measured")
    return {"update_s": seconds, "update_peak": peak, "num_scored": stats.num_scored}


def hardware(device: str) -> str:
    """Return the machine in words."""
    import torch

    if torch.device(device).type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit(f"torch sees no device {device} here; give --device cpu and small sizes")
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory / 1e9:.0f} GB; torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads; torch {torch.__version__}"


def run_in_process(shape: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a shape from a process of its own; one that fails is a row that says so."""
    command = [sys.executable, __file__, shape, "--child", str(folder), "--device", arguments.device]
    command += ["--dtype", arguments.dtype, "--rows", str(arguments.rows), "--length", str(arguments.length)]
    command += ["--micro-batch-rows", str(arguments.micro_batch_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"shape": shape, "error": lines[-1] if lines else f"ended with code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    if "error" in row:
        return [row["shape"], row["error"].replace("|", "/"), *[""] * (len(TITLES) - 2)]
    update = (
        [f"{row['update_s']:.2f} s", gigabytes(row["update_peak"])] if "update_s" in row else ["does not train", ""]
    )
    return [
        row["shape"],
        f"{row['num_parameters'] / 1e6:,.1f} M",
        f"{row['load_s']:.2f} s",
        gigabytes(row["load_peak"]),
        f"{row['tokens_per_s']:,.1f} tokens/s",
        gigabytes(row["generation_peak"]),
        *update,
    ]


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def markdown(report: dict[str, Any]) -> str:
    """Return the table with what it was measured on."""
    rows = [list(TITLES), ["---"] * len(TITLES), *(cells(row) for row in report["rows"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{report['hardware']}; {report['what']}.\n\n{table}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), metavar="FAMILY[:RELEASE]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--width", type=int, help="instead of the shape's")
    parser.add_argument("--rows", type=int, default=16, help="completions that are sampled together")
    parser.add_argument("--length", type=int, default=256, help="open tokens of each")
    parser.add_argument("--micro-batch-rows", type=int, default=4, help="rows with gradient at one time")
    parser.add_argument("--keep", type=Path, help="folder in which the checkpoints stay")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure_shape(arguments.shapes[0], arguments.child, arguments)))
        return 0
    from unigrpo.testing.tiny.layouts import layouts

    for shape in arguments.shapes:
        family, _, release = shape.partition(":")
        known = layouts()[family].releases if family in layouts() else {}
        if family not in layouts() or (release and release not in known):
            wanted = f"one of {', '.join(known)}" if known else f"one of {', '.join(layouts())}"
            parser.error(f"there is no shape {shape!r}; wanted {wanted}")
    what = f"{arguments.dtype}, {arguments.rows} rows of {arguments.length} open tokens"
    report: dict[str, Any] = {"hardware": hardware(arguments.device), "what": what, "rows": []}
    with tempfile.TemporaryDirectory() as temporary:
        for shape in arguments.shapes:
            folder = write_checkpoint(shape, arguments.keep or Path(temporary), arguments)
            report["rows"].append(run_in_process(shape, folder, arguments))
            print(" | ".join(cell for cell in cells(report["rows"][-1]) if cell), flush=True)
            if not arguments.keep:
                for path in folder.glob("*.safetensors"):
                    path.unlink()  # the next may need the disk
    print(f"\n{markdown(report)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(report))
    return 1 if any("error" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
