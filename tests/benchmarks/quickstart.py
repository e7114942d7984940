"""What the quickstart learns: several seeds, before and after on the same held-out prompts, and a control.

    python tests/benchmarks/quickstart.py --seeds 0 1 2 --controls 0 1 2 --out runs/table

The control permutes the advantages inside every group, so that nothing can be learnt from them. Prints a Markdown table
and writes it, with every figure behind it, to OUT/table.json and OUT/table.md. Existing finished runs are not repeated.
"""

import argparse
import json
import math
import os
import platform
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil

from unigrpo.recipe.load import load_recipe
from unigrpo.runs.trackers.terminal import Terminal
from unigrpo.train import train

TASKS = ("reason", "understand", "imagine")
HARD = {"reason": "correctness", "understand": "correctness", "imagine": "scene"}


def scores(run_dir, name):
    """Return {task: {"reward": [n], "hard": [n], "greedy": [n]}} in the order of the prompts."""
    found = {task: {"id": [], "reward": [], "hard": [], "greedy": []} for task in TASKS}
    for line in (run_dir / f"eval_{name}" / "scores.jsonl").read_text().splitlines():
        record = json.loads(line)
        task = found[record["task"]]
        task["id"].append(record["id"])
        task["reward"].append(record["reward"])
        task["hard"].append(record["rewards"][HARD[record["task"]]])
        task["greedy"].append(record["greedy_passed"][HARD[record["task"]]])
    return found


def compare(run_dir):
    """Return a row a task: means before and after, and the paired standard error of the change."""
    before, after = scores(run_dir, "before"), scores(run_dir, "after")
    rows = {}
    for task in TASKS:
        assert before[task]["id"] == after[task]["id"], "the two evaluations must have the same prompts"
        row = {"n": len(before[task]["id"])}
        for kind in ("reward", "hard", "greedy"):
            first, last = (np.array(x[task][kind], dtype=float) for x in (before, after))
            change = last - first
            row[kind] = {
                "before": first.mean(),
                "after": last.mean(),
                "gain": change.mean(),
                "paired_se": change.std(ddof=1) / math.sqrt(len(change)),
                "before_se": first.std(ddof=1) / math.sqrt(len(first)),
            }
        rows[task] = row
    return rows


class PeakMemory:
    """The highest proportional set size of this process and all its children, sampled every second."""

    def __enter__(self):
        self.peak_gb, self._stopped = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        me = psutil.Process()
        while not self._stopped.wait(1.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between the listing and the reading
            self.peak_gb = max(self.peak_gb, total / 1024**3)

    def __exit__(self, *exception):
        self._stopped.set()
        self._thread.join()


def run(out, name, overrides):
    """Run the quickstart with overrides, unless its summary is there."""
    run_dir = out / name
    if not (run_dir / "summary.json").exists():
        recipe = load_recipe("quickstart", overrides)
        with PeakMemory() as memory, closing(Terminal(is_live=False)) as terminal:
            train(recipe, run_dir, terminal)
        (run_dir / "peak_pss_gb.json").write_text(json.dumps(memory.peak_gb))
    summary = json.loads((run_dir / "summary.json").read_text())
    peak = json.loads((run_dir / "peak_pss_gb.json").read_text())
    return {
        "rows": compare(run_dir),
        "wall_s": summary["wall_s"],
        "num_steps": summary["num_steps"],
        "peak_pss_gb": peak,
    }


def table(results):
    """Return the Markdown table: a row a run and task."""
    lines = [
        "| run | task | reward at T=1 | gain (95 % CI) | correctness or scene at T=1 (paired SE) | greedy accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for task, row in result["rows"].items():
            reward, hard, greedy = row["reward"], row["hard"], row["greedy"]
            interval = 1.96 * reward["paired_se"]
            lines.append(
                f"| {name} | {task} | {reward['before']:.3f} → {reward['after']:.3f} "
                f"| {reward['gain']:+.3f} ± {interval:.3f} "
                f"| {hard['before']:.3f} → {hard['after']:.3f} ({in_se(hard):+.1f} SE) "
                f"| {greedy['before']:.3f} → {greedy['after']:.3f} ({in_se(greedy):+.1f} SE) |"
            )
    return "\n".join(lines)


def in_se(part):
    """Return a gain in paired standard errors; 0 where nothing changed."""
    return part["gain"] / part["paired_se"] if part["paired_se"] else 0.0


def control_means(results):
    """Return a line: the mean gain of the controls a task, with the 95 % interval over their prompts."""
    controls = [result["rows"] for name, result in results.items() if name.startswith("control")]
    parts = []
    for task in TASKS if controls else ():
        gain = np.mean([rows[task]["reward"]["gain"] for rows in controls])
        se = math.sqrt(sum(rows[task]["reward"]["paired_se"] ** 2 for rows in controls)) / len(controls)
        parts.append(f"{task} {gain:+.3f} ± {1.96 * se:.3f}")
    return f"\n\nmean gain of {len(controls)} controls: {', '.join(parts)}" if parts else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--controls", type=int, nargs="*", default=[], help="seeds to run shuffled, too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="key.path=value, as for unigrpo train")
    arguments = parser.parse_args()
    results = {}
    for seed in arguments.seeds:
        results[f"seed {seed}"] = run(arguments.out, f"seed_{seed}", [f"seed={seed}", *arguments.overrides])
    for seed in arguments.controls:
        changes = [f"seed={seed}", "advantages.shuffle_within_groups=true", *arguments.overrides]
        results[f"control, seed {seed}"] = run(arguments.out, f"control_{seed}", changes)
    text = table(results) + control_means(results)
    costs = ", ".join(f"{name} {r['wall_s']:.0f} s and {r['peak_pss_gb']:.1f} GB" for name, r in results.items())
    text += (
        f"\n\n{platform.machine()}, {os.cpu_count()} cores; wall time and peak memory (PSS of all processes): {costs}\n"
    )
    (arguments.out / "table.md").write_text(text)
    (arguments.out / "table.json").write_text(json.dumps(results, indent=1))
    print(text)


if __name__ == "__main__":
    main()
