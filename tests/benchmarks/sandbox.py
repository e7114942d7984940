"""How fast the code reward is: sandboxes a second, and programs a second for each kind of test.

    python tests/benchmarks/sandbox.py [--num 40] [--parallel 2]

Prints a Markdown table.
"""

import argparse
import os
import time

from unigrpo.rewards.code import Code
from unigrpo.rewards.sandboxing.sandbox import Sandbox

MAIN = "if __name__ == '__main__':\n    print(add(*map(int, input().split())))"
PROGRAM = f"```python\ndef add(a, b):\n    return a + b\n{MAIN}\n```"
COLUMNS = {
    "cases (1 sandbox, 3 tests)": {
        "entry_point": "add",
        "cases": [{"input": [n, 1], "output": n + 1} for n in range(3)],
    },
    "scripts (1 sandbox, 3 tests)": {"inputs": ["1 2", "3 4", "5 6"], "outputs": ["3", "7", "11"]},
    "test lines (2 sandboxes, 3 tests)": {"tests": [f"assert add({n}, 1) == {n + 1}" for n in range(3)]},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=2)
    arguments = parser.parse_args()
    sandbox = Sandbox()
    spans = []
    for _ in range(arguments.num):
        started = time.monotonic()
        with sandbox.candidate():
            pass
        spans.append(time.monotonic() - started)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.parallel} programs at a time\n")
    print("| what | a second | ms each |\n|---|---|---|")
    mean = sum(spans) / len(spans)
    print(f"| start and end of a sandbox, one at a time | {1 / mean:.1f} | {mean * 1e3:.0f} |")
    print(f"| the fastest of these | {1 / min(spans):.1f} | {min(spans) * 1e3:.0f} |")
    code = Code(num_parallel=arguments.parallel)
    for name, columns in COLUMNS.items():
        started = time.monotonic()
        values = code(
            completions=[PROGRAM] * arguments.num,
            **{column: [value] * arguments.num for column, value in columns.items()},
        )
        seconds = time.monotonic() - started
        assert values == [1.0] * arguments.num, values
        print(f"| {name} | {arguments.num / seconds:.1f} | {seconds / arguments.num * 1e3:.0f} |")


if __name__ == "__main__":
    main()
