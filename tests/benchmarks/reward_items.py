"""What the rewards are measured on, as columns: real answers where there are some, else made-up ones, and pictures."""

from __future__ import annotations

import functools
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unigrpo.quickstart.scenes import random_scene, render
from unigrpo.rewards.text.answers import cut_at_eos

GROUP = 8
Columns = dict[str, list[Any]]


@functools.cache
def generations() -> list[tuple[str, str, str]]:
    """Return prompt, completion and answer of saved generations; empty without the folder."""
    folder = os.environ.get("UNIGRPO_TEST_DATA")
    paths = sorted(Path(folder).glob("llada_generations/gsm8k_*.json")) if folder else []
    found = [item for path in paths for item in json.loads(path.read_text())["generations"]]
    return [(item["question"], item["generations"], str(item["ground_truth"])) for item in found]


def maths(count: int) -> Columns:
    """Return answers to word problems: real ones, else made-up ones of the same shape."""
    rng = np.random.default_rng(0)
    rows = generations()[:count] or [
        (f"What is {n} and {n + 1}?", f"We add {n} and {n + 1}.\n\\boxed{{{2 * n + int(wrong)}}}", str(2 * n + 1))
        for n, wrong in enumerate(rng.integers(1, 3, count))
    ]
    prompts, completions, answers = (list(column) for column in zip(*rows, strict=True))
    return {"prompts": prompts, "completions": completions, "answer": answers}


def thoughts(count: int) -> Columns:
    columns = maths(count)
    columns["completions"] = [f"<think>\n{cut_at_eos(text)}\n</think>\nSo much." for text in columns["completions"]]
    return columns


def tokens(count: int) -> Columns:
    columns = maths(count)
    columns["completion_ids"] = [
        [zlib.crc32(word.encode()) % 50_000 for word in text.split()] for text in columns["completions"]
    ]
    return columns


def countdowns(count: int) -> Columns:
    texts = [f"We try a few.\n\\boxed{{{n + 60} + {n + 3} - {n}}}" for n in range(count)]
    answers = [f"[[{n + 60}, {n + 3}, {n}], {n + 63}]" for n in range(count)]
    return {"prompts": ["?"] * count, "completions": texts, "answer": answers}


def sudokus(count: int) -> Columns:
    rng = np.random.default_rng(0)
    solutions = ["1234341221434321" for _ in range(count)]
    puzzles = ["".join(cell if rng.random() < 0.5 else "0" for cell in solution) for solution in solutions]
    answers = [f"{n}</reasoning><answer>{solution}</answer>" for n, solution in enumerate(solutions)]
    return {"prompts": [f"Solve:\n{puzzle}" for puzzle in puzzles], "completions": answers, "answer": solutions}


def choices(count: int) -> Columns:
    letters = ["ABCD"[n % 4] for n in range(count)]
    texts = [f"Number {n} is round, so the answer is ({letter})." for n, letter in enumerate(letters)]
    return {"prompts": ["?"] * count, "completions": texts, "answer": letters, "choices": [list("wxyz")] * count}


def programs(count: int) -> Columns:
    texts = [f"```python\ndef add(a, b):\n    return a + b  # {n}\n```" for n in range(count)]
    tests = [["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]] * count
    return {"prompts": ["Write add."] * count, "completions": texts, "tests": tests}


def pictures(count: int, side: int = 512) -> Columns:
    """Return soft noise, GROUP pictures a caption, as a policy's groups are."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
    captions = [f"a photo of {n // GROUP + 2} round stones on a table" for n in range(count)]
    made = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in coarse]
    return {"prompts": captions, "completions": made}


def scenes(count: int) -> Columns:
    objects = [[["red", "circle"], ["blue", "square"]]] * count
    return {**pictures(count, 64), "objects": objects, "relation": ["left of"] * count}


def lettered(count: int) -> Columns:
    """Return pictures with a line of text."""
    columns = pictures(count)
    texts = [f"Platform {n} closed" for n in range(count)]
    for picture, text in zip(columns["completions"], texts, strict=True):
        draw = ImageDraw.Draw(picture)
        draw.rectangle((20, 200, 492, 280), fill="white")
        draw.text((40, 215), text, fill="black", font=ImageFont.load_default(size=40))
    return columns | {"text": texts}


def questions(count: int) -> Columns:
    texts = [f"It shows {n} boats, so the answer is {n % 7}." for n in range(count)]
    answers = [[str((n + more) % 7) for more in (0, 0, 0, 0, 0, 0, 0, 1, 1, 2)] for n in range(count)]
    return {"prompts": ["How many?"] * count, "completions": texts, "answers": answers, "answer": ["0"] * count}


def compositions(count: int) -> Columns:
    """Return rendered scenes, each asked for two objects in a place."""
    rng = np.random.default_rng(0)
    made = [render(random_scene(rng, 2)) for _ in range(count)]
    include = [[{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["left of", 0]}]] * count
    return {"prompts": ["-"] * count, "completions": made, "include": include, "tag": ["position"] * count}


def groups(columns: Columns) -> Columns:
    """Return the items as groups of one prompt each."""
    numbers = [n // GROUP for n in range(len(columns["prompts"]))]
    return columns | {"prompts": [f"prompt {number}" for number in numbers], "group_ids": numbers}
