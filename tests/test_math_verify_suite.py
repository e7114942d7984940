"""math-verify's own test suite, from its source distribution, with its comparison replaced by ours.

The suite's extraction stays: what its parser picks from a text is put into a box, so that only the comparison is ours.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

VERSION = "0.9.0"

REPLACEMENT = r"""
import tests.test_all as suite
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from unigrpo.rewards.correctness import Correctness

REWARD = Correctness(deadline_s=24.0)


def compare(gold, pred, match_types=("latex", "expr"), precision=6, strict=True, allow_set_relation_comp=False):
    targets = [LatexExtractionConfig(boxed_match_priority=0) if kind == "latex" else ExprExtractionConfig()
               for kind in match_types]
    picked = [[piece for piece in parse(text, targets) if isinstance(piece, str)][-1:] for text in (gold, pred)]
    if not all(picked):
        return 0
    return int(REWARD(completions=[r"\boxed{%s}" % picked[1][0]], answer=[picked[0][0]])[0] or 0)


suite.compare_strings = compare


def pytest_unconfigure():
    REWARD.close()
"""

ROUNDED = "rounds to the digits that the case asks for; ours asks for seven significant digits"
FALSE_CHAIN = "takes one side of a chain of equalities that is false or approximate; ours refuses the chain"
EXPLAINED = {
    r"test_latex_notation[$10/9$-Answer $ \\frac{1}{2} \\$ = \\frac{10}{9} $-1]": FALSE_CHAIN,
    r"test_relations_math[$x = 1/3$-$x = 5+5+1 = 1/3 \\approx 11$-1]": FALSE_CHAIN,
    r"test_relations_math[$11$-$x\\approx11$-1]": "takes about 11 for 11; ours asks for the number where gold is one",
    r"test_relations_math[$1/3$-$x=1/3\\approx1.3$-1]": FALSE_CHAIN,
    r"test_precision": ROUNDED,
    r"test_complex_math_expressions[$(\\begin{pmatrix}\\frac{1}{3}\\\\ \\frac{1}{5} \\end{pmatrix})$-"
    r"$\\begin{pmatrix}0.33\\\\0.2 \\end{pmatrix}$-1-2]": ROUNDED,
    r"test_complex_math_expressions[$(\\frac{3}{5},\\frac{8}{3}]$-$(0.6,2.6667]$-1-2]": ROUNDED,
    r"test_set_rel_assymetry[$x \\in [-2,7]$-$-2 \\\\le x \\\\le 7$-0-False]": "has a switch against inequalities for "
    "intervals; ours takes them always where the gold answer is a set",
    r"test_numina_cases[\\\\boxed{W(n) = 1 \\\\text{ and } W(n) = -1-W(x)=1orW(x)=-1-1]": "keeps both values beside "
    "the picked text, which is cut off in the middle of the unclosed box; ours sees the text alone",
    r"test_strict_variable_comparison[$f(x)$-$f(y)$-False-1]": "has a switch for any variable names; ours is strict",
}
"""Case: what upstream does, and ours does not. Every other case passes."""


@pytest.fixture(scope="module")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked test folder, with the replacement beside it."""
    folder = tmp_path_factory.mktemp("math_verify")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-binary",
        ":all:",
        "--no-deps",
        "--no-build-isolation",
        "--retries",
        "0",
        "--timeout",
        "15",
        f"math-verify=={VERSION}",
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        pytest.skip(
            f"math-verify {VERSION}'s source distribution could not be downloaded: {done.stderr.strip()[-300:]}"
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"math_verify-{VERSION}"
    (root / "tests" / "__init__.py").touch()
    (root / "our_comparison.py").write_text(REPLACEMENT)
    return root


def test_upstream_cases_pass_but_for_those_that_are_explained(suite_folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests",
            "-q",
            "-rf",
            "--tb=no",
            "-p",
            "our_comparison",
            "-p",
            "no:cacheprovider",
        ],
        cwd=suite_folder,
        env=os.environ | {"PYTHONPATH": str(suite_folder), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    totals = re.search(r"(\d+) failed, (\d+) passed", done.stdout)
    assert totals is not None, done.stdout[-2000:] + done.stderr[-2000:]
    failed = set(re.findall(r"^FAILED tests/\w+\.py::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE))
    assert failed == set(EXPLAINED)
    assert (int(totals[1]), int(totals[2])) == (len(EXPLAINED), 291 - len(EXPLAINED))
