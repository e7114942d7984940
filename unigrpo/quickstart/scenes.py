"""The little world of the quickstart: pictures of coloured shapes, and two endless sources of prompts about them.

A picture is 64 x 64 pixels: 4 x 4 cells of 16 x 16. A cell is empty or holds one of 5 colours x 3 shapes, so a cell is
one of 16 kinds: one code of a 4-bit image tokenizer. Everything is a function of (split, seed, index).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations, product
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from unigrpo.errors import UserError
from unigrpo.types import Message, Prompt

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (42, 157, 72),
    "blue": (41, 87, 214),
    "yellow": (244, 200, 28),
    "purple": (142, 48, 176),
}
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
PLACE_WORDS = ("yes", "no", "left", "right", "above", "below")
"""What noise may put for the answer to a question of place."""
BACKGROUND = (255, 255, 255)
NUM_CELLS = 4
"""Rows, and columns, of cells."""
CELL = 16
"""Side of a cell in pixels."""
SUPERSAMPLING = 8

Cell = tuple[int, int]
"""(row, column)."""
Part = Literal["train", "validation", "test"]
QuestionKind = Literal["color", "shape", "place"]

LAYOUTS: dict[str, tuple[Cell, Cell]] = {
    "left of": ((1, 0), (1, 3)),
    "right of": ((1, 3), (1, 0)),
    "above": ((0, 1), (3, 1)),
    "below": ((3, 1), (0, 1)),
}
"""Where the first and the second object of a caption stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A coloured shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        """Return such as ``red circle``."""
        return f"{self.color} {self.shape}"

    @property
    def kind(self) -> int:
        """Return 1..15; 0 is the empty cell."""
        return 1 + tuple(COLORS).index(self.color) * len(SHAPES) + SHAPES.index(self.shape)


ITEMS = tuple(Item(color=color, shape=shape) for color, shape in product(COLORS, SHAPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Which item stands in which cell; cells that are not named are empty."""

    cells: Mapping[Cell, Item]

    @property
    def kinds(self) -> np.ndarray:
        """Return [4, 4] int64: the kind of each cell, 0 where it is empty."""
        kinds = np.zeros((NUM_CELLS, NUM_CELLS), dtype=np.int64)
        for cell, item in self.cells.items():
            kinds[cell] = item.kind
        return kinds


def scene_of_kinds(kinds: np.ndarray) -> Scene:
    """Return the scene of [4, 4] kinds."""
    return Scene(cells={(int(r), int(c)): ITEMS[int(kinds[r, c]) - 1] for r, c in np.argwhere(kinds > 0)})


@cache
def _tile(kind: int) -> Image.Image:
    """Return the 16 x 16 picture of a kind, drawn eight times as large and averaged down."""
    side = CELL * SUPERSAMPLING
    tile = Image.new("RGB", (side, side), BACKGROUND)
    if kind > 0:
        item, margin = ITEMS[kind - 1], 2 * SUPERSAMPLING
        low, high, color = margin, side - margin - 1, COLORS[item.color]
        draw = ImageDraw.Draw(tile)
        if item.shape == "circle":
            draw.ellipse((low, low, high, high), fill=color)
        elif item.shape == "square":
            draw.rectangle((low, low, high, high), fill=color)
        else:
            draw.polygon(((side // 2, low), (high, high), (low, high)), fill=color)
    return tile.resize((CELL, CELL), Image.Resampling.BOX)


def render(scene: Scene) -> Image.Image:
    """Return the 64 x 64 RGB picture of a scene, shapes with smooth edges on white."""
    picture = Image.new("RGB", (NUM_CELLS * CELL, NUM_CELLS * CELL), BACKGROUND)
    for (row, column), item in scene.cells.items():
        picture.paste(_tile(item.kind), (column * CELL, row * CELL))
    return picture


def caption(first: Item, relation: str, second: Item) -> str:
    """Return such as ``red circle left of blue square``."""
    return f"{first} {relation} {second}"


def caption_scene(first: Item, relation: str, second: Item) -> Scene:
    """Return the one scene that a caption stands for."""
    where_first, where_second = LAYOUTS[relation]
    return Scene(cells={where_first: first, where_second: second})


def random_scene(rng: np.random.Generator, num_items: int) -> Scene:
    """Return a scene of ``num_items`` (0..16) items drawn with replacement, in cells drawn without."""
    kinds = np.zeros(NUM_CELLS**2, dtype=np.int64)
    kinds[rng.permutation(NUM_CELLS**2)[:num_items]] = rng.integers(1, len(ITEMS) + 1, size=num_items)
    return scene_of_kinds(kinds.reshape(NUM_CELLS, NUM_CELLS))


def part_of(key: str) -> Part:
    """Return where a prompt belongs by the hash of its content: a third is the test, a twelfth the validation."""
    digest = hashlib.blake2b(key.encode(), digest_size=4, salt=b"scenes").digest()
    slot = int.from_bytes(digest, "big") % 12
    return "test" if slot % 3 == 1 else "validation" if slot == 0 else "train"


@lru_cache(maxsize=16)
def _permutation(size: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


def _shuffled(index: int, size: int, seed: int, stream: int) -> int:
    """Return the index-th entry of an endless series of shuffled passes over ``range(size)``."""
    return int(_permutation(size, seed, stream, index // size)[index % size])


def _part(split: str, held_out: str) -> Part:
    """Return the part of the prompts that a split shows."""
    if split not in ("train", "eval"):
        raise UserError(f"split {split!r} is not known; it is 'train' or 'eval'")
    if held_out not in ("test", "validation"):
        raise UserError(f"held_out {held_out!r} is not known; it is 'test' or 'validation'")
    return "train" if split == "train" else "test" if held_out == "test" else "validation"


def _check_index(index: int) -> None:
    if index < 0:
        raise IndexError(f"prompt {index} asked for; a source is endless and starts at 0")


def _other(word: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of ``words`` that is not ``word``."""
    return str(rng.choice([other for other in words if other != word]))


@cache
def _captions(part: Part) -> tuple[tuple[Item, str, Item], ...]:
    """Return the captions of a part: 840 in all."""
    everything = ((first, relation, second) for first, second in permutations(ITEMS, 2) for relation in RELATIONS)
    return tuple(parts for parts in everything if part_of(caption(*parts)) == part)


class ImagineScenes:
    """Captions of two objects and their relation, for text-to-image.

    A recipe names it as ``use: "unigrpo.quickstart.scenes:ImagineScenes"``. Columns of a prompt: ``objects``
    ([[colour, shape], [colour, shape]], in the caption's order) and ``relation``. The captions of train, validation
    and test are disjoint whatever the seeds; every caption of a part comes once before any comes again.
    """

    def __init__(self, split: str, seed: int, held_out: str = "test") -> None:
        """Prepare a split: train, or eval with the captions of the part ``held_out``, test or validation.

        Raises:
            UserError: for another split or part.
        """
        self.part = _part(split, held_out)
        self.seed = seed

    def __getitem__(self, index: int) -> Prompt:
        """Return the index-th prompt, index >= 0."""
        _check_index(index)
        captions = _captions(self.part)
        first, relation, second = captions[_shuffled(index, len(captions), self.seed, 0)]
        return Prompt(
            id=f"imagine-{self.part}-{self.seed}-{index}",
            kind="imagine",
            messages=(Message(role="user", text=caption(first, relation, second)),),
            columns={"objects": [[item.color, item.shape] for item in (first, second)], "relation": relation},
        )

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> Image.Image:
        """Return the picture of a prompt; with probability ``noise`` two of its five parts are wrong.

        The parts are the colour and the shape of either object, and the layout.
        """
        items = [Item(color=color, shape=shape) for color, shape in prompt.columns["objects"]]
        relation = str(prompt.columns["relation"])
        if rng.random() < noise:
            for wrong in rng.permutation(5)[:2]:
                if wrong == 4:
                    relation = _other(relation, RELATIONS, rng)
                    continue
                item = items[wrong // 2]
                if wrong % 2:
                    items[wrong // 2] = Item(color=_other(item.color, tuple(COLORS), rng), shape=item.shape)
                else:
                    items[wrong // 2] = Item(color=item.color, shape=_other(item.shape, SHAPES, rng))
        return render(caption_scene(items[0], relation, items[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about a scene of two items of distinct colours and shapes, named in reading order."""

    scene: Scene
    text: str
    answer: str
    kind: QuestionKind

    @property
    def key(self) -> str:
        """Return what tells it from every other question: items, cells and text."""
        return f"{', '.join(f'{item} {cell}' for cell, item in self.scene.cells.items())}: {self.text}"


def _questions(scene: Scene, kind: QuestionKind) -> Iterator[Question]:
    (first_cell, first), (second_cell, second) = scene.cells.items()
    if kind == "color":
        for item in (first, second):
            text = f"what color is the {item.shape}?"
            yield Question(scene=scene, text=text, answer=item.color, kind=kind)
    elif kind == "shape":
        for item in (first, second):
            text = f"what shape is the {item.color} one?"
            yield Question(scene=scene, text=text, answer=item.shape, kind=kind)
    else:
        placed = ((first_cell, first), (second_cell, second))
        for (relation, axis), (one, two) in product((("above", 0), ("left of", 1)), permutations(placed)):
            if one[0][axis] != two[0][axis]:
                answer = "yes" if one[0][axis] < two[0][axis] else "no"
                text = f"is the {one[1].shape} {relation} the {two[1].shape}?"
                yield Question(scene=scene, text=text, answer=answer, kind=kind)


@cache
def _question_index(part: Part, kind: QuestionKind) -> tuple[tuple[Item, Item, Cell, Cell, int], ...]:
    """Return every question of a kind and part, as (item, item, cell, cell, number among the scene's questions)."""
    pairs = [(a, b) for a, b in permutations(ITEMS, 2) if a.color != b.color and a.shape != b.shape]
    places = list(combinations([(row, column) for row in range(NUM_CELLS) for column in range(NUM_CELLS)], 2))
    return tuple(
        (first, second, where_first, where_second, number)
        for (first, second), (where_first, where_second) in product(pairs, places)
        for number, question in enumerate(_questions(Scene(cells={where_first: first, where_second: second}), kind))
        if part_of(question.key) == part
    )


class UnderstandScenes:
    """A picture of two objects and a question with a one-word answer, for image understanding.

    A recipe names it as ``use: "unigrpo.quickstart.scenes:UnderstandScenes"``. The kinds of questions take turns.
    Columns of a prompt: ``objects`` ([[colour, shape], ...] in reading order), ``kind``. No (objects, cells,
    question) is in two parts.
    """

    def __init__(
        self, split: str, seed: int, kinds: Sequence[QuestionKind] = ("color", "shape", "place"), held_out: str = "test"
    ) -> None:
        """Prepare a split.

        Args:
            split: train or eval.
            seed: of the order in which the questions come.
            kinds: which questions are asked.
            held_out: which held-out questions eval gives: test or validation.

        Raises:
            UserError: for an unknown split or part, an unknown kind or no kinds.
        """
        self.part = _part(split, held_out)
        unknown = [kind for kind in kinds if kind not in ("color", "shape", "place")]
        if unknown or not kinds:
            raise UserError(f"kinds of questions {list(kinds)}; give one or more of color, shape, place")
        self.seed = seed
        self.kinds = tuple(kinds)

    def __getitem__(self, index: int) -> Prompt:
        """Return the index-th prompt, index >= 0."""
        _check_index(index)
        turn, kind = index // len(self.kinds), self.kinds[index % len(self.kinds)]
        entries = _question_index(self.part, kind)
        first, second, where_first, where_second, number = entries[
            _shuffled(turn, len(entries), self.seed, 1 + ("color", "shape", "place").index(kind))
        ]
        scene = Scene(cells={where_first: first, where_second: second})
        question = tuple(_questions(scene, kind))[number]
        return Prompt(
            id=f"understand-{self.part}-{self.seed}-{index}",
            kind="understand",
            messages=(Message(role="user", text=question.text, images=(render(scene),)),),
            answer=question.answer,
            columns={"objects": [[item.color, item.shape] for item in (first, second)], "kind": kind},
        )

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """Return ``<think>red circle, blue square</think>red``.

        With probability ``noise`` the answer, not the thought, is another word of its kind; for a question of place
        that may be a direction, so that even with noise 0.5 the right word is the likeliest by far.
        """
        answer = str(prompt.answer)
        if rng.random() < noise:
            words = {"color": tuple(COLORS), "shape": SHAPES, "place": PLACE_WORDS}[prompt.columns["kind"]]
            answer = _other(answer, words, rng)
        thought = ", ".join(f"{color} {shape}" for color, shape in prompt.columns["objects"])
        return f"<think>{thought}</think>{answer}"
