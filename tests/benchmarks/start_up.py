"""How long the command line takes to answer: the median of five warm runs of each command.

python tests/benchmarks/start_up.py --json FILE
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {"help": (["--help"], 0.5), "check": (["check", "quickstart"], 2.0)}
NUM_RUNS = 5


def seconds(arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "unigrpo", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, (arguments, limit) in COMMANDS.items():
        seconds(arguments)
        median = statistics.median(seconds(arguments) for _ in range(NUM_RUNS))
        rows.append({"name": name, "seconds": median, "limit_s": limit})
        print(f"unigrpo {' '.join(arguments)}: {median:.2f} s (limit {limit} s)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
