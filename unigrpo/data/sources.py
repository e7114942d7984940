"""Where prompts come from: a JSONL file, or a class of the user's that makes them. Torch-free."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from unigrpo.data.generated import Demonstration, GeneratedPrompts
from unigrpo.data.jsonl import Line, Role, columns_problem, mapped, read_objects
from unigrpo.documents import half_problem
from unigrpo.errors import UserError
from unigrpo.pictures import MAX_PIXELS, PictureError, check_picture, open_picture, shown_size
from unigrpo.plugin import resolve
from unigrpo.sanitized import short_repr
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import ImageFit, Message, Prompt, TaskKind

Split = Literal["train", "eval"]

COLUMN_NAMES = ("prompt", "answer", "image", "id", "completion")
"""Our names of a JSONL file's columns; every other column goes to the rewards under its own."""
_WAY_OUT = "map ours to them in data.columns"
_PLACEHOLDER = re.compile(r"(?<![\w\\^{])\{(?!prompt\})([A-Za-z_]\w*)\}(?!\})")
"""A name in braces; not the argument of a LaTeX command, an index or an exponent."""


class PromptSource(Protocol):
    """Prompts by number: the same number gives the same prompt in every process."""

    @property
    def num_prompts(self) -> int | None:
        """Return how many there are; None is no end: training comes to each number, evaluation to the first ones."""

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order."""

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return a completion to learn from: text, or a picture; with probability ``noise`` a wrong one."""


def load_prompts(
    settings: DataSettings, task: str, kind: TaskKind, split: Split, seed: int, *, are_taught: bool = False
) -> PromptSource:
    """Return the prompts of one task.

    Training prompts never end: each epoch of a file is a new order, keyed by the seed and the epoch; a source of the
    user's that ends begins anew in its own order. A file's evaluation prompts come once, in the file's order.

    Args:
        settings: the recipe's ``data`` section.
        task: its name, which every prompt gets.
        kind: of the task; a generated prompt of another kind is an error.
        split: "train" or "eval".
        seed: keys the order.
        are_taught: whether a completion of each prompt is wanted, too.

    Raises:
        FileNotFoundError: the JSONL file is missing.
        UserError: a setting or a line of the file is wrong; the message has file and line.
    """
    if (settings.use is None) == (settings.jsonl is None and settings.eval_jsonl is None):
        raise UserError(
            f"data of task {task!r} has use={settings.use!r} and jsonl={settings.jsonl!r}; give exactly one of them"
        )
    if settings.use is not None:
        make: Any = resolve(settings.use)
        try:
            inspect.signature(make).bind(split, seed, **settings.arguments)
        except TypeError as error:
            raise UserError(f"{settings.use} is called with (split, seed, **data.arguments): {error}") from error
        source = make(split, seed, **settings.arguments)
        return GeneratedPrompts(settings, source, task, kind, repeats=split == "train")
    if settings.arguments:
        raise UserError(f"data.arguments {sorted(settings.arguments)} belong to `use`; a JSONL file takes none")
    path = settings.jsonl if split == "train" else settings.eval_jsonl
    if path is None:
        key = "jsonl" if split == "train" else "eval_jsonl"
        raise UserError(f"task {task!r} has no {split} prompts; set data.{key}")
    source = JsonlPrompts(Path(path), task, kind, split, seed, settings)
    if are_taught:
        source.check_demonstrations()
    return source


def template_problem(template: str | None) -> str | None:
    """Return what is wrong with ``data.template``; None where nothing is."""
    if template is None:
        return None
    if "{prompt}" not in template:
        given = short_repr(template)
        return f"{given} has no {{prompt}}, so that every prompt would be the same; say where the prompt goes"
    if problem := half_problem(template):
        return f"has {problem}"
    if other := _PLACEHOLDER.search(template):
        given = short_repr(template)
        return f"{other[0]} in {given}: {{prompt}} alone is filled in; write it without braces, or into the data"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one line of a file asks."""

    where: str
    """File and line."""
    turns: tuple[tuple[Role, str], ...]
    """Role and text, without the template."""
    pictures: tuple[Path, ...]
    """Files, of a question about them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    id: str
    line: Line


class JsonlPrompts:
    """Prompts of a JSONL file, one object a line.

    ``columns`` says under which name the file holds our ``prompt``, ``answer``, ``image``, ``id`` and ``completion``;
    a name that is not mapped is looked up as it is. A prompt is text, or a list of ``{"role", "content"}`` turns; an
    image is one path or a list, inside the folder of the file. Every other column goes to the rewards.
    """

    def __init__(self, path: Path, task: str, kind: TaskKind, split: Split, seed: int, settings: DataSettings) -> None:
        """Read and check the file, with the headers of its pictures; their pixels are read when they are needed."""
        columns, template = settings.columns, settings.template
        if problem := template_problem(template):
            raise UserError(f"data.template: {problem}")
        unknown = sorted(set(columns) - set(COLUMN_NAMES))
        if unknown:
            raise UserError(f"data.columns maps {unknown}, which are not ours; ours are {', '.join(COLUMN_NAMES)}")
        self._path, self._task, self._kind, self._split, self._seed = path, task, kind, split, seed
        self._file = _JsonlFile(path, task, kind, columns, template, settings.image_fit, settings.max_pixels)
        self._rows = list(self._file.rows())
        self._row_of = {row.id: row for row in self._rows}
        self._epoch_order: tuple[int, np.ndarray] | None = None

    @property
    def num_prompts(self) -> int | None:
        """Return the number of evaluation prompts; None for training, which never ends."""
        return len(self._rows) if self._split == "eval" else None

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order.

        Raises:
            IndexError: if there is no such place.
            UserError: if its picture cannot be used.
        """
        if index < 0 or (self._split == "eval" and index >= len(self._rows)):
            raise IndexError(f"prompt {index} of {self._path}, which has {len(self._rows)}, counted from 0")
        if self._split == "eval":
            return self._file.prompt(self._rows[index], self._task)
        epoch, place = divmod(index, len(self._rows))
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
            self._epoch_order = (epoch, order)
        return self._file.prompt(self._rows[int(self._epoch_order[1][place])], self._task)

    def sketches(self) -> Iterator[tuple[str, str, Prompt]]:
        """Yield id, file and line, and prompt of every row; pictures are blank ones of the same size."""
        for row in self._rows:
            yield row.id, row.line.where, self.sketch(row.id, None)

    def sketch(self, row_id: str, texts: Sequence[str] | None) -> Prompt:
        """Return a row's prompt with blank pictures, and other texts of its turns where they are given."""
        return self._file.prompt(self._row_of[row_id], self._task, texts, is_blank=True)

    def texts(self, row_id: str) -> tuple[tuple[str, str], ...]:
        """Return role and text of each turn of a row's prompt, before the template."""
        line = self._row_of[row_id].line
        return line.turns(line.get("prompt"))

    def write(self, row_id: str, texts: Sequence[str]) -> None:
        """Put other texts in place of those of a row's turns."""
        self._file.texts[row_id] = tuple(texts)

    def drop(self, row_ids: Container[str]) -> int:
        """Leave rows out; return how many are left."""
        self._rows = [row for row in self._rows if row.id not in row_ids]
        self._epoch_order = None
        return len(self._rows)

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the ``completion`` column, else ``answer``; for text-to-image the picture of the ``image`` column.

        Raises:
            UserError: if the line has none, or noise is asked for, which a file cannot add.
        """
        if noise > 0:
            raise UserError(
                f"noise {noise} asked of {self._path}; a file's demonstrations are as they are: set it to 0"
            )
        row = self._row_of[prompt.id]
        self._file.check_taught(row)
        return self._file.pictures(row)[0] if self._kind == "imagine" else self._file.taught_text(row)

    def check_demonstrations(self) -> None:
        """Refuse a file of which a line has no completion to learn from.

        Raises:
            UserError: naming the first such line.
        """
        for row in self._rows:
            self._file.check_taught(row)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._path

    def asked(self) -> Iterator[Asked]:
        """Return what each line asks."""
        return map(self._file.asked, self._rows)


def check_jsonl(
    path: Path,
    kind: TaskKind,
    columns: Mapping[str, str],
    *,
    task: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_lines: int = 5_000,
    max_s: float = 0.2,
) -> list[Asked]:
    """Read the first lines of a JSONL file as training would, pictures' headers included.

    At most ``max_lines`` are read, and none after ``max_s`` seconds; columns that are not ours are passed over.

    Returns:
        What those lines ask.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: naming the file and the first line that is wrong.
    """
    ours = {name: column for name, column in columns.items() if name in COLUMN_NAMES}
    deadline = time.monotonic() + max_s
    file, found = _JsonlFile(path, task, kind, ours, None, max_pixels=max_pixels), list[Asked]()
    for row in file.rows():
        found.append(file.asked(row))
        if row.line.number >= max_lines or time.monotonic() > deadline:
            break
    return found


class _JsonlFile:
    """The lines of one file, checked one by one."""

    def __init__(
        self,
        path: Path,
        task: str | None,
        kind: TaskKind,
        columns: Mapping[str, str],
        template: str | None,
        image_fit: ImageFit | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._path, self._task, self._kind, self._template = path, task, kind, template
        self._image_fit, self._max_pixels = image_fit, max_pixels
        self._folders = (Path(os.path.realpath(path)).parent,)  # `resolve` raises for a loop of links
        self._needed = ("prompt", *(name for name in columns if name != "prompt"))
        self._columns = mapped(COLUMN_NAMES, columns)
        self._seen_pictures: set[Path] = set()
        self.texts: dict[str, Sequence[str]] = {}
        """By a row's id, what stands in place of the texts of its turns."""

    def rows(self) -> Iterator[_Row]:
        """Yield the rows of the file in order."""
        number_of_id: dict[str, int] = {}
        for number, values in read_objects(self._path):
            line = Line(path=self._path, number=number, values=values, columns=self._columns)
            row = self._checked(line)
            if row.id in number_of_id:
                raise row.line.error(f"id {row.id!r} is already that of line {number_of_id[row.id]}; ids are unique")
            number_of_id[row.id] = number
            yield row
        if not number_of_id:
            raise UserError(f"{self._path} holds no prompts; write one JSON object a line")

    def prompt(self, row: _Row, task: str, texts: Sequence[str] | None = None, *, is_blank: bool = False) -> Prompt:
        """Return the prompt of a row for the task of a name, with its pictures read, or blank ones of their sizes."""
        pictures: tuple[Image.Image, ...] = ()
        if self._kind != "imagine":
            pictures = self._blank_pictures(row) if is_blank else self.pictures(row)
        turns = self._turns(row.line, texts or self.texts.get(row.id))
        last = len(turns) - 1
        messages = (
            Message(role=role, text=text, images=pictures if place == last else ())
            for place, (role, text) in enumerate(turns)
        )
        return Prompt(
            id=row.id,
            kind=self._kind,
            task=task,
            messages=tuple(messages),
            answer=row.line.get("answer"),
            columns=row.line.others(),
            image_fit=self._image_fit,
        )

    def check_taught(self, row: _Row) -> None:
        """Refuse a row without a completion to learn from."""
        if self._kind != "imagine":
            self.taught_text(row)
        elif (count := len(self.picture_files(row.line))) != 1:
            raise row.line.error(f"{count} pictures; a text-to-image demonstration is one")

    def taught_text(self, row: _Row) -> str:
        """Return the text to learn from: the completion, else the answer."""
        for name in ("completion", "answer"):
            text = row.line.text(name)
            if text is not None:
                return text
        raise row.line.error(f"no completion to learn from; {row.line.present}; {_WAY_OUT}")

    def asked(self, row: _Row) -> Asked:
        """Return what a row asks."""
        pictures = () if self._kind == "imagine" else self.picture_files(row.line)
        return Asked(where=row.line.where, turns=row.line.turns(row.line.get("prompt")), pictures=pictures)

    def pictures(self, row: _Row) -> tuple[Image.Image, ...]:
        """Return the pictures of a row, fully read."""
        pictures = []
        for path in self.picture_files(row.line):
            try:
                pictures.append(open_picture(path, max_pixels=self._max_pixels))
            except (ValueError, FileNotFoundError) as error:
                raise row.line.error(str(error)) from error
        return tuple(pictures)

    def picture_files(self, line: Line) -> tuple[Path, ...]:
        """Return the files of a row's pictures."""
        return line.images(line.get("image"), self._folders)

    def _blank_pictures(self, row: _Row) -> tuple[Image.Image, ...]:
        return tuple(_blank(shown_size(path)) for path in self.picture_files(row.line))

    def _checked(self, line: Line) -> _Row:
        if problem := columns_problem(line.values):
            raise line.error(problem)
        for name in self._needed:
            line.needed(name, _WAY_OUT)
        identity = line.id()
        name = f"{self._path.stem}-{line.number}" if identity is None else identity
        task = line.others().get("task", self._task)
        if self._task is not None and task != self._task:
            raise line.error(
                f"a column 'task' of {short_repr(task)}, under which a reward gets the task's name in the recipe, "
                f"{self._task!r}; rename it, or leave it out"
            )
        self._turns(line)
        pictures = self.picture_files(line)
        if self._kind == "understand" and not pictures:
            raise line.error(f"no picture in column {self._columns['image']!r}; {line.present}; {_WAY_OUT}")
        for path in pictures:
            if path not in self._seen_pictures:
                try:
                    check_picture(path, max_pixels=self._max_pixels)
                except PictureError as error:
                    raise line.error(str(error)) from error
                self._seen_pictures.add(path)
        return _Row(id=name, line=line)

    def _turns(self, line: Line, texts: Sequence[str] | None = None) -> tuple[tuple[Role, str], ...]:
        """Return the turns of a row as they are asked, or with other texts; the last one in the template."""
        turns = line.turns(line.get("prompt"))
        if texts is not None:
            turns = tuple((role, text) for (role, _), text in zip(turns, texts, strict=True))
        *before, (role, text) = turns
        last = text if self._template is None else self._template.replace("{prompt}", text)
        if not last.strip() and texts is None:  # where it is cut, so short a trial is one of the cut's
            raise line.error("the prompt is empty; ask something, in data.template if it is the same of every line")
        return (*before, (role, last))


@lru_cache(maxsize=8)
def _blank(size: tuple[int, int]) -> Image.Image:
    """Return a picture of which only the size is looked at."""
    return Image.new("1", size)
