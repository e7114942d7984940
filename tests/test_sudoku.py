import json
import time
from pathlib import Path

import pytest
from PIL import Image

from unigrpo.rewards.sudoku import Sudoku, find_puzzle
from unigrpo.testing.conformance import check_reward

PUZZLE = "4320004330100004"
SOLUTION = "4321124334122134"
PROMPT = f"Solve the following Sudoku puzzle: {PUZZLE}\n"


def score(text: object, *, prompt: object = PROMPT, solution: object = SOLUTION, **settings: bool) -> float | None:
    return Sudoku(**settings)(prompts=[prompt], completions=[text], answer=[solution])[0]


@pytest.mark.parametrize(
    ("text", "num_right"),
    [
        (f"<answer>\n{SOLUTION}\n</answer>", 8),
        (f"<answer>{PUZZLE}</answer>", 0),
        ("<answer>4320 0043 3012 0004</answer>", 1),
        ("<answer>4321\n1243\n3412\n2134</answer>", 8),
        ("<answer>```\n4 3 2 1\n1 2 4 3\n3 4 1 2\n2 1 3 4\n```</answer>", 8),
        ("<answer>|43|21|\n|12|43|\n-----\n|34|12|\n|21|34|</answer>", 8),
        (r"so \boxed{4321124334122134}.", 8),
        ("<answer>4321</answer>", 1),
        ("<answer>" + SOLUTION + "9999</answer>", 8),
        ("<answer></answer>\n" + SOLUTION, 8),
        ("it is " + SOLUTION + ".", 8),
        ("<think>" + SOLUTION + "</think> no idea", 0),
        ("<answer>" + PUZZLE + "</answer><|endoftext|><answer>" + SOLUTION + "</answer>", 0),
        ("<answer>1111111111111111</answer>", 3),
        ("<answer>it cannot be solved</answer>", 0),
        (rf"\boxed{{{SOLUTION}", 0),
        (f"The answer is not {SOLUTION}", 0),
        (f"<answer>not {SOLUTION}</answer>", 0),
        (f"<answer>{SOLUTION} or {PUZZLE}</answer>", 0),
        (rf"\boxed{{{SOLUTION}}} is wrong.", 0),
        (f"<answer>**{SOLUTION}**</answer>", 8),
        (f"**{SOLUTION}**", 8),
        ("", 0),
    ],
)
def test_blank_cells_right(text: str, num_right: int) -> None:
    assert score(text) == num_right / 8


def test_given_cells_may_have_to_stay() -> None:
    assert score("<answer>1111111111111111</answer>", needs_givens=True) == 0.0
    assert score(f"<answer>{SOLUTION}</answer>", needs_givens=True) == 1.0


def test_the_puzzle_is_found_among_examples() -> None:
    shots = f"Puzzle: 0204032001400402\nSolution: 1234432121433412\nPuzzle: {PUZZLE}. Answer in 16 digits."
    assert find_puzzle(shots, SOLUTION) == PUZZLE
    assert find_puzzle("4 3 2 _\n_ _ 4 3\n3 _ 1 _\n_ _ _ 4", SOLUTION) == PUZZLE
    assert find_puzzle("432...433.1....4", SOLUTION) == PUZZLE
    assert find_puzzle("Solve 4321124334122134", SOLUTION) is None
    assert find_puzzle("4320 is the first row, 00433010 and 0004 the others", SOLUTION) is None


def test_nine_by_nine() -> None:
    solution = "".join(str((3 * (row % 3) + row // 3 + column) % 9 + 1) for row in range(9) for column in range(9))
    puzzle = "".join("." if cell % 3 else digit for cell, digit in enumerate(solution))
    text = "<answer>" + solution[:40] + "0" * 41 + "</answer>"
    right = sum(cell < 40 for cell in range(81) if cell % 3)
    assert score(text, prompt=f"Solve {puzzle}", solution=solution) == pytest.approx(right / 54)


def test_a_column_may_hold_the_puzzle() -> None:
    reward = Sudoku()
    values = reward(prompts=["Solve it."], completions=[SOLUTION], answer=[SOLUTION], puzzle=[PUZZLE])
    assert values == [1.0]


def test_it_does_not_apply_without_puzzle_or_solution() -> None:
    assert score(SOLUTION, solution=None) is None
    assert score(SOLUTION, solution="red") is None
    assert score(SOLUTION, prompt="What is 2 + 2?") is None
    assert score(Image.new("RGB", (2, 2))) is None
    assert Sudoku()(prompts=[PROMPT], completions=[SOLUTION]) == [None]


@pytest.mark.parametrize("piece", ["0", "<answer>", "4320 ", "\\boxed{", " "])
def test_a_megabyte_takes_under_a_second(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    score(text, prompt=text + PROMPT)
    assert time.process_time() - start < 1.0


def test_reward_keeps_its_contract() -> None:
    completions = [SOLUTION, PUZZLE, "<answer>4321</answer>"]
    given = check_reward(Sudoku(), prompts=[PROMPT] * 3, completions=completions, answer=[SOLUTION] * 3)
    assert given == [1.0, 0.0, 0.125]


def test_cells_of_real_outputs_are_the_published_ones(test_data: Path) -> None:
    folder = test_data / "llada_generations"
    verdicts = json.loads((folder / "verdicts.json").read_text())["items"]
    given, wanted, num_blanks = [], [], 0
    for name in (name for name in verdicts if name.startswith("sudoku")):
        rows = json.loads((folder / name).read_text())["generations"]
        values = Sudoku()(
            prompts=[row["question"] for row in rows],
            completions=[row["generations"] for row in rows],
            answer=[row["ground_truth"] for row in rows],
        )
        blanks = [row["question"].strip()[-16:].count("0") for row in rows]
        given += [round((value or 0) * count) for value, count in zip(values, blanks, strict=True)]
        wanted += [item["correct_cells"] for item in verdicts[name]]
        num_blanks += sum(blanks)
    assert given == wanted
    assert (sum(given), num_blanks) == (79, 1184)
