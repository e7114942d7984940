"""What loading costs in memory and time, on a synthetic sharded checkpoint in a temporary folder.

``python tests/benchmarks/loading.py [--json FILE] [--gigabytes 2]`` writes random float32 weights in LLaDA's layout, in
shards of an eighth, and loads them in fresh processes:

    converted    float32 files to bfloat16: every tensor is copied. Extra memory is the peak beyond the policy's own
                 bytes; a row is a fault where it is more than one shard.
    mapped       float32 files as float32: the files' pages are the weights; no memory of one's own.
    two_mapped   two such processes that have read every weight: what they hold together, each shared page counted once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEGABYTE = 1e6
NUM_SHARDS = 8
WIDTH = 1024


def write_checkpoint(folder: Path, gigabytes: float) -> dict[str, float]:
    """Write about so many gigabytes and return the sizes in bytes."""
    from unigrpo.testing.tiny.make_tiny import make_tiny

    block = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * 3 * WIDTH)
    layers = max(1, round(gigabytes * 1e9 / block))
    changes = {"n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 3 * WIDTH}
    shard_bytes = round(gigabytes * 1e9 / NUM_SHARDS)
    make_tiny("llada", folder, layers=layers, width=WIDTH, changes=changes, shard_bytes=shard_bytes)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return {"bytes": sum(files), "shard_bytes": max(files)}


def read_status() -> dict[str, int]:
    """Return this process's memory in bytes: peak and present resident, anonymous, and its share of shared pages."""
    status = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()
    found = re.findall(r"^(VmHWM|RssAnon|Pss|Rss):\s+(\d+) kB", status, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def load(folder: str, dtype: str, is_read: bool) -> None:
    """Load in this process and print what it took; with ``is_read`` every weight is read, then a line is awaited."""
    import torch

    from unigrpo.models import load_policy

    torch.set_num_threads(1)
    load_policy(str(Path(folder).parent / "small"), dtype=dtype)  # imports, which are not the load's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, start = read_status(), time.perf_counter()
    policy = load_policy(folder, dtype=dtype)
    seconds = time.perf_counter() - start
    peak = read_status()["VmHWM"]
    own = sum(tensor.numel() * tensor.element_size() for tensor in policy.module.state_dict().values())
    if is_read:
        total = sum(float(tensor.detach().sum()) for tensor in policy.module.parameters())
        assert total == total, "a weight is not a number"
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
    after = read_status()
    sys.stdout.write(
        json.dumps(
            {
                "own": own,
                "load_s": seconds,
                "peak": peak - before["Rss"],
                "anonymous": after["RssAnon"] - before["RssAnon"],
                "share": after["Pss"] - before["Pss"],
            }
        )
        + "\n"
    )


def child(folder: Path, dtype: str, is_read: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--load", str(folder), "--dtype", dtype, *(["--read"] if is_read else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def one(folder: Path, dtype: str) -> dict[str, Any]:
    output, _ = child(folder, dtype).communicate(timeout=600)
    return json.loads(output)


def two(folder: Path, dtype: str) -> dict[str, Any]:
    """Return the sum over two processes, while both have read everything."""
    children = [child(folder, dtype, is_read=True) for _ in range(2)]
    for process in children:
        assert process.stdout is not None
        process.stdout.readline()
    # Pss of the first is read while the second still holds the pages.
    results = []
    for process in children:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        results.append(json.loads(process.stdout.readline()))
        process.communicate(timeout=60)
    return {"own": results[0]["own"], "share": results[0]["share"], "load_s": max(r["load_s"] for r in results)}


def measure(gigabytes: float) -> list[dict[str, Any]]:
    from unigrpo.testing.tiny.make_tiny import make_tiny

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        make_tiny("llada", Path(temporary) / "small")
        sizes = write_checkpoint(folder, gigabytes)
        converted, mapped, both = one(folder, "bfloat16"), one(folder, "float32"), two(folder, "float32")
    extra = converted["peak"] - converted["own"]
    return [
        {
            "name": "converted",
            "ratio": sizes["shard_bytes"] / max(extra, 1),
            "extra_mb": extra / MEGABYTE,
            "shard_mb": sizes["shard_bytes"] / MEGABYTE,
            "own_mb": converted["own"] / MEGABYTE,
            "load_s": converted["load_s"],
            "is_ok": extra <= sizes["shard_bytes"],
        },
        {
            "name": "mapped",
            "ratio": mapped["own"] / max(mapped["anonymous"], 1),
            "anonymous_mb": mapped["anonymous"] / MEGABYTE,
            "own_mb": mapped["own"] / MEGABYTE,
            "load_s": mapped["load_s"],
            "is_ok": mapped["anonymous"] <= 0.05 * mapped["own"],
        },
        {
            "name": "two_mapped",
            "ratio": both["own"] / both["share"],
            "each_share_mb": both["share"] / MEGABYTE,
            "own_mb": both["own"] / MEGABYTE,
            "load_s": both["load_s"],
            "is_ok": both["share"] <= 0.6 * both["own"],
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--load")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--read", action="store_true")
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load, arguments.dtype, arguments.read)
        return 0
    rows = measure(arguments.gigabytes)
    for row in rows:
        numbers = ", ".join(f"{name} {value:,.1f}" for name, value in row.items() if isinstance(value, float))
        sys.stdout.write(f"{row['name']:12} {'ok   ' if row['is_ok'] else 'FAULT'} {numbers}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["is_ok"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
