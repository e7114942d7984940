"""Where prompts come from: a JSONL file, or a class of the user's that makes them. Torch-free."""

from __future__ import annotations

import inspect
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from unigrpo.data.jsonl import Line, as_text, mapped, read_objects
from unigrpo.errors import UserError
from unigrpo.pictures import PictureError, check_picture, open_picture, shown_size
from unigrpo.plugin import resolve
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import Message, Prompt, TaskKind

Split = Literal["train", "eval"]
Demonstration = str | Image.Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_PIXELS = 16_000_000
COLUMN_NAMES = ("prompt", "answer", "image", "id", "completion")
"""Our names of a JSONL file's columns; every other column goes to the rewards under its own."""
_WAY_OUT = "map ours to them in data.columns"


class PromptSource(Protocol):
    """Prompts by number: the same number gives the same prompt in every process."""

    @property
    def num_prompts(self) -> int | None:
        """Return how many there are; None is no end."""

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order."""

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return a completion to learn from: text, or a picture; with probability ``noise`` a wrong one."""


def load_prompts(settings: DataSettings, task: str, kind: TaskKind, split: Split, seed: int) -> PromptSource:
    """Return the prompts of one task.

    Training prompts never end: each epoch is a new order, keyed by the seed and the epoch. A file's evaluation prompts
    come once, in the file's order.

    Args:
        settings: the recipe's ``data`` section.
        task: its name, which every prompt gets.
        kind: of the task; a generated prompt of another kind is an error.
        split: "train" or "eval".
        seed: keys the order.

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
        return GeneratedPrompts(settings.use, make(split, seed, **settings.arguments), task, kind)
    if settings.arguments:
        raise UserError(f"data.arguments {sorted(settings.arguments)} belong to `use`; a JSONL file takes none")
    path = settings.jsonl if split == "train" else settings.eval_jsonl
    if path is None:
        key = "jsonl" if split == "train" else "eval_jsonl"
        raise UserError(f"task {task!r} has no {split} prompts; set data.{key}")
    return JsonlPrompts(Path(path), task, kind, split, seed, columns=settings.columns, template=settings.template)


class GeneratedPrompts:
    """Prompts of a user's class, checked for their kind and given the name of their task."""

    def __init__(self, use: str, source: Any, task: str, kind: TaskKind) -> None:
        """Wrap a source that was made from ``use``."""
        self._use, self._source, self._task, self._kind = use, source, task, kind

    @property
    def num_prompts(self) -> int | None:
        """Return the source's own count; None where it states none."""
        count = getattr(self._source, "num_prompts", None)
        return None if count is None else int(count)

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order.

        Raises:
            UserError: if its kind is not the task's.
            TypeError: if it is no ``Prompt``.
        """
        prompt = self._source[index]
        if not isinstance(prompt, Prompt):
            raise UserError(f"{self._use}[{index}] is a {type(prompt).__name__}; return a unigrpo.types.Prompt")
        if prompt.kind != self._kind:
            raise UserError(
                f"{self._use} makes prompts of kind {prompt.kind!r}, but the task {self._task!r} is of kind "
                f"{self._kind!r}"
            )
        return replace(prompt, task=self._task)

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the source's completion of a prompt.

        Raises:
            UserError: if the source has none to give.
        """
        demonstrate = getattr(self._source, "demonstration", None)
        if demonstrate is None:
            raise UserError(f"{self._use} has no method demonstration(prompt, generator, noise); sft needs one")
        completion: Demonstration = demonstrate(prompt, generator, noise)
        return completion


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

    def __init__(
        self,
        path: Path,
        task: str,
        kind: TaskKind,
        split: Split,
        seed: int,
        *,
        columns: Mapping[str, str],
        template: str | None,
    ) -> None:
        """Read and check the file, with the headers of its pictures; their pixels are read when they are needed."""
        if template is not None and "{prompt}" not in template:
            raise UserError(f"data.template {template!r} has no {{prompt}}; say where the prompt goes")
        unknown = sorted(set(columns) - set(COLUMN_NAMES))
        if unknown:
            raise UserError(f"data.columns maps {unknown}, which are not ours; ours are {', '.join(COLUMN_NAMES)}")
        self._path, self._task, self._kind, self._split, self._seed = path, task, kind, split, seed
        self._file = _JsonlFile(path, kind, columns, template)
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
        if self._kind == "imagine":
            pictures = self._file.pictures(row)
            if len(pictures) != 1:
                raise row.line.error(f"{len(pictures)} pictures; a text-to-image demonstration is one")
            return pictures[0]
        for name in ("completion", "answer"):
            text = row.line.text(name)
            if text is not None:
                return text
        raise row.line.error(f"no completion to learn from; {row.line.present}; {_WAY_OUT}")


def check_jsonl(
    path: Path, kind: TaskKind, columns: Mapping[str, str], *, max_lines: int = 5_000, max_s: float = 0.2
) -> None:
    """Read the first lines of a JSONL file as training would, pictures' headers included.

    At most ``max_lines`` are read, and none after ``max_s`` seconds; columns that are not ours are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: naming the file and the first line that is wrong.
    """
    ours = {name: column for name, column in columns.items() if name in COLUMN_NAMES}
    deadline = time.monotonic() + max_s
    for row in _JsonlFile(path, kind, ours, None).rows():
        if row.line.number >= max_lines or time.monotonic() > deadline:
            break


class _JsonlFile:
    """The lines of one file, checked one by one."""

    def __init__(self, path: Path, kind: TaskKind, columns: Mapping[str, str], template: str | None) -> None:
        self._path, self._kind, self._template = path, kind, template
        self._folders = (path.resolve().parent,)
        self._needed = ("prompt", *(name for name in columns if name != "prompt"))
        self._columns = mapped(COLUMN_NAMES, columns)
        self._seen_pictures: set[Path] = set()
        self.texts: dict[str, Sequence[str]] = {}
        """By a row's id, what stands in place of the texts of its turns."""

    def rows(self) -> Iterator[_Row]:
        """Yield the rows of the file in order."""
        number_of_id: dict[str, int] = {}
        for number, values in read_objects(self._path):
            row = self._checked(Line(path=self._path, number=number, values=values, columns=self._columns))
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
        turns = row.line.turns(row.line.get("prompt"))
        if (texts := texts or self.texts.get(row.id)) is not None:
            turns = tuple((role, text) for (role, _), text in zip(turns, texts, strict=True))
        last = len(turns) - 1
        messages = (
            Message(
                role=role,
                text=text if place < last or self._template is None else self._template.replace("{prompt}", text),
                images=pictures if place == last else (),
            )
            for place, (role, text) in enumerate(turns)
        )
        return Prompt(
            id=row.id,
            kind=self._kind,
            task=task,
            messages=tuple(messages),
            answer=row.line.text("answer"),
            columns=row.line.others(),
        )

    def pictures(self, row: _Row) -> tuple[Image.Image, ...]:
        """Return the pictures of a row, fully read."""
        pictures = []
        for path in self._picture_files(row.line):
            try:
                pictures.append(prompt_picture(path))
            except (ValueError, FileNotFoundError) as error:
                raise row.line.error(str(error)) from error
        return tuple(pictures)

    def _blank_pictures(self, row: _Row) -> tuple[Image.Image, ...]:
        return tuple(Image.new("1", shown_size(path)) for path in self._picture_files(row.line))

    def _checked(self, line: Line) -> _Row:
        for name in self._needed:
            line.needed(name, _WAY_OUT)
        if self._kind == "understand" and self._columns["image"] not in line.values:
            raise line.error(f"no picture in column {self._columns['image']!r}; {line.present}; {_WAY_OUT}")
        given = line.values.get(self._columns["id"], f"{self._path.stem}-{line.number}")
        line.turns(line.get("prompt"))
        for path in self._picture_files(line):
            if path not in self._seen_pictures:
                try:
                    check_picture(path, max_pixels=MAX_IMAGE_PIXELS, formats=IMAGE_FORMATS)
                except PictureError as error:
                    raise line.error(f"{path}: {error}") from error
                self._seen_pictures.add(path)
        return _Row(id=as_text(given), line=line)

    def _picture_files(self, line: Line) -> tuple[Path, ...]:
        return line.images(line.get("image"), self._folders)


def prompt_picture(path: Path) -> Image.Image:
    """Return a prompt's picture as 8-bit RGB, fully read.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: for a format other than PNG, JPEG and WEBP, a truncated file, or more than 16 million pixels.
    """
    try:
        return open_picture(path, max_pixels=MAX_IMAGE_PIXELS, formats=IMAGE_FORMATS)
    except PictureError as error:
        raise UserError(f"{path}: {error}") from error
