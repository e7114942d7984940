"""Where prompts come from: a JSONL file, or a class of the user's that makes them. Torch-free."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from unigrpo.plugin import resolve
from unigrpo.settings import DataSettings
from unigrpo.types import Message, Prompt, Task

Split = Literal["train", "eval"]
Demonstration = str | Image.Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_PIXELS = 16_000_000
_END_MARK = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL_BYTES = 4096
"""In which the end mark must stand: some writers leave bytes after it."""
_ROLES = ("system", "user", "assistant")
COLUMN_NAMES = ("prompt", "answer", "image", "id", "completion")
"""Our names of a JSONL file's columns; every other column goes to the rewards under its own."""


class PromptSource(Protocol):
    """Prompts by number: the same number gives the same prompt in every process."""

    @property
    def num_prompts(self) -> int | None:
        """Return how many there are; None is no end."""

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order."""

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return a completion to learn from: text, or a picture; with probability ``noise`` a wrong one."""


def load_prompts(settings: DataSettings, task: Task, split: Split, seed: int) -> PromptSource:
    """Return the prompts of one task.

    Training prompts never end: each epoch is a new order, keyed by the seed and the epoch. A file's evaluation prompts
    come once, in the file's order.

    Args:
        settings: the recipe's ``data`` section.
        task: every prompt gets it; a generated prompt of another task is an error.
        split: "train" or "eval".
        seed: keys the order.

    Raises:
        FileNotFoundError: the JSONL file is missing.
        ValueError: a setting or a line of the file is wrong; the message has file and line.
    """
    if (settings.use is None) == (settings.jsonl is None and settings.eval_jsonl is None):
        raise ValueError(
            f"data of task {task!r} has use={settings.use!r} and jsonl={settings.jsonl!r}; give exactly one of them"
        )
    if settings.use is not None:
        make: Any = resolve(settings.use)
        return GeneratedPrompts(settings.use, make(split, seed, **settings.arguments), task)
    if settings.arguments:
        raise ValueError(f"data.arguments {sorted(settings.arguments)} belong to `use`; a JSONL file takes none")
    path = settings.jsonl if split == "train" else settings.eval_jsonl
    if path is None:
        key = "jsonl" if split == "train" else "eval_jsonl"
        raise ValueError(f"task {task!r} has no {split} prompts; set data.{key}")
    return JsonlPrompts(Path(path), task, split, seed, columns=settings.columns, template=settings.template)


class GeneratedPrompts:
    """Prompts of a user's class, checked for their task."""

    def __init__(self, use: str, source: Any, task: Task) -> None:
        """Wrap a source that was made from ``use``."""
        self._use = use
        self._source = source
        self._task = task

    @property
    def num_prompts(self) -> int | None:
        """Return the source's own count; None where it states none."""
        count = getattr(self._source, "num_prompts", None)
        return None if count is None else int(count)

    def __getitem__(self, index: int) -> Prompt:
        """Return the prompt at a place of the order.

        Raises:
            ValueError: if its task is not the recipe's.
            TypeError: if it is no ``Prompt``.
        """
        prompt = self._source[index]
        if not isinstance(prompt, Prompt):
            raise TypeError(f"{self._use}[{index}] is a {type(prompt).__name__}; return a unigrpo.types.Prompt")
        if prompt.task != self._task:
            raise ValueError(f"{self._use} makes prompts of task {prompt.task!r}, but stands under {self._task!r}")
        return prompt

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the source's completion of a prompt.

        Raises:
            ValueError: if the source has none to give.
        """
        demonstrate = getattr(self._source, "demonstration", None)
        if demonstrate is None:
            raise ValueError(f"{self._use} has no method demonstration(prompt, generator, noise); sft needs one")
        completion: Demonstration = demonstrate(prompt, generator, noise)
        return completion


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    line: int
    id: str
    values: Mapping[str, Any]


class JsonlPrompts:
    """Prompts of a JSONL file, one object a line.

    ``columns`` says under which name the file holds our ``prompt``, ``answer``, ``image``, ``id`` and ``completion``;
    a name that is not mapped is looked up as it is. A prompt is text, or a list of ``{"role", "content"}`` turns; an
    image is one path or a list, inside the folder of the file. Every other column goes to the rewards.
    """

    def __init__(
        self, path: Path, task: Task, split: Split, seed: int, *, columns: Mapping[str, str], template: str | None
    ) -> None:
        """Read and check the file, with the headers of its pictures; their pixels are read when they are needed."""
        if template is not None and "{prompt}" not in template:
            raise ValueError(f"data.template {template!r} has no {{prompt}}; say where the prompt goes")
        unknown = sorted(set(columns) - set(COLUMN_NAMES))
        if unknown:
            raise ValueError(f"data.columns maps {unknown}, which are not ours; ours are {', '.join(COLUMN_NAMES)}")
        self._path = path
        self._task = task
        self._split = split
        self._seed = seed
        self._file = _JsonlFile(path, task, columns, template)
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
            ValueError: if its picture cannot be used.
        """
        if index < 0 or (self._split == "eval" and index >= len(self._rows)):
            raise IndexError(f"prompt {index} of {self._path}, which has {len(self._rows)}, counted from 0")
        if self._split == "eval":
            return self._file.prompt(self._rows[index])
        epoch, place = divmod(index, len(self._rows))
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
            self._epoch_order = (epoch, order)
        return self._file.prompt(self._rows[int(self._epoch_order[1][place])])

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, noise: float = 0.0) -> Demonstration:
        """Return the ``completion`` column, else ``answer``; for text-to-image the picture of the ``image`` column.

        Raises:
            ValueError: if the line has none, or noise is asked for, which a file cannot add.
        """
        if noise > 0:
            raise ValueError(
                f"noise {noise} asked of {self._path}; a file's demonstrations are as they are: set it to 0"
            )
        row = self._row_of[prompt.id]
        if self._task == "imagine":
            pictures = self._file.pictures(row)
            if len(pictures) != 1:
                raise self._file.error(row.line, f"{len(pictures)} pictures; a text-to-image demonstration is one")
            return pictures[0]
        for name in ("completion", "answer"):
            value = row.values.get(self._file.column[name])
            if value is not None:
                return _as_text(value)
        raise self._file.error(row.line, f"no completion to learn from; {_present(row.values)}")


def check_jsonl(
    path: Path, task: Task, columns: Mapping[str, str], *, max_lines: int = 5_000, max_s: float = 0.2
) -> None:
    """Read the first lines of a JSONL file as training would, pictures' headers included.

    Args:
        path: of the file.
        task: whose prompts it holds.
        columns: our name -> the file's; names that are not ours are passed over.
        max_lines: lines to read at most.
        max_s: seconds after which no further line is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and the first line that is wrong.
    """
    ours = {name: column for name, column in columns.items() if name in COLUMN_NAMES}
    deadline = time.monotonic() + max_s
    for row in _JsonlFile(path, task, ours, None).rows():
        if row.line >= max_lines or time.monotonic() > deadline:
            break


class _JsonlFile:
    """The lines of one file, checked one by one."""

    def __init__(self, path: Path, task: Task, columns: Mapping[str, str], template: str | None) -> None:
        self._path = path
        self._task = task
        self._template = template
        self._mapped = dict(columns)
        self._seen_pictures: set[Path] = set()
        self.column = {name: columns.get(name, name) for name in COLUMN_NAMES}

    def rows(self) -> Iterator[_Row]:
        """Yield the rows of the file in order."""
        if not self._path.is_file():
            raise FileNotFoundError(
                f"{self._path} does not exist or is no file; give a JSONL file (here: {Path.cwd()})"
            )
        line_of_id: dict[str, int] = {}
        with self._path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                row = self._parse(line, raw)
                if row.id in line_of_id:
                    other = line_of_id[row.id]
                    raise self.error(line, f"id {row.id!r} is already that of line {other}; ids are unique")
                line_of_id[row.id] = line
                yield row
        if not line_of_id:
            raise ValueError(f"{self._path} holds no prompts; write one JSON object a line")

    def prompt(self, row: _Row) -> Prompt:
        """Return the prompt of a row, with its pictures read."""
        pictures = () if self._task == "imagine" else self.pictures(row)
        answer = row.values.get(self.column["answer"])
        taken = set(self.column.values())
        return Prompt(
            id=row.id,
            task=self._task,
            messages=self._messages(row, pictures),
            answer=None if answer is None else _as_text(answer),
            columns={name: value for name, value in row.values.items() if name not in taken},
        )

    def pictures(self, row: _Row) -> tuple[Image.Image, ...]:
        """Return the pictures of a row, fully read."""
        pictures = []
        for path in self._image_paths(row):
            try:
                pictures.append(open_picture(path))
            except (ValueError, FileNotFoundError) as error:
                raise self.error(row.line, str(error)) from error
        return tuple(pictures)

    def error(self, line: int, what: str) -> ValueError:
        """Return the error of a line."""
        return ValueError(f"{self._path}:{line}: {what}")

    def _parse(self, line: int, raw: bytes) -> _Row:
        try:
            values = json.loads(raw.decode("utf-8-sig"))
        except ValueError as error:  # bad UTF-8 and bad JSON both are ValueErrors
            raise self.error(line, f"not JSON: {error}") from error
        if not isinstance(values, dict):
            raise self.error(line, f"a JSON {type(values).__name__}; each line is an object with named columns")
        for name in {"prompt": None, **self._mapped}:
            if self.column[name] not in values:
                raise self.error(line, f"no column {self.column[name]!r} for {name!r}; {_present(values)}")
        if self._task == "understand" and self.column["image"] not in values:
            raise self.error(line, f"no picture in column {self.column['image']!r}; {_present(values)}")
        row = _Row(line=line, id=_as_text(values.get(self.column["id"], f"{self._path.stem}-{line}")), values=values)
        self._messages(row, ())
        for path in self._image_paths(row):
            self._check_picture(row, path)
        return row

    def _check_picture(self, row: _Row, path: Path) -> None:
        if path in self._seen_pictures:
            return
        try:
            with _opened(path, MAX_IMAGE_PIXELS) as picture:
                _check_end(path, picture.format)
                self._seen_pictures.add(path)
        except (ValueError, FileNotFoundError) as error:
            raise self.error(row.line, str(error)) from error

    def _messages(self, row: _Row, pictures: tuple[Image.Image, ...]) -> tuple[Message, ...]:
        given = row.values[self.column["prompt"]]
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(turns, Sequence) or not turns or not all(_is_turn(turn) for turn in turns):
            raise self.error(row.line, f"prompt {given!r}; it is text, or turns of role {'/'.join(_ROLES)} and content")
        if turns[-1]["role"] != "user":
            raise self.error(row.line, f"the last turn is the {turns[-1]['role']}'s; a prompt ends with the user's")
        messages = []
        for number, turn in enumerate(turns, start=1):
            is_last = number == len(turns)
            text = turn["content"]
            if is_last and self._template is not None:
                text = self._template.replace("{prompt}", text)
            messages.append(Message(role=turn["role"], text=text, images=pictures if is_last else ()))
        return tuple(messages)

    def _image_paths(self, row: _Row) -> list[Path]:
        given = row.values.get(self.column["image"])
        names = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error(row.line, f"image {given!r}; give a path or a list of paths")
        folder = self._path.resolve().parent
        paths = [(folder / name).resolve() for name in names]
        for name, path in zip(names, paths, strict=True):
            if not path.is_relative_to(folder):
                raise self.error(row.line, f"picture {name!r} lies outside {folder}; move it inside")
        return paths


def open_picture(path: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return a picture as RGB, fully read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a format other than PNG, JPEG and WEBP, a truncated file, or more than ``max_pixels`` pixels.
    """
    with _opened(path, max_pixels) as picture:
        return picture.convert("RGB")


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Give a picture of which only the header has been read; name what is wrong with it, inside the context, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ValueError(f"{path} has {width} x {height} pixels, over the limit of {max_pixels}; shrink it")
                yield picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} has more pixels than the limit of {max_pixels}; shrink it") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"picture {path} does not exist") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture of a format that is read: {', '.join(IMAGE_FORMATS)}") from error
    except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG chunk as SyntaxError
        raise ValueError(f"{path} cannot be read to its end ({error}); it is truncated or damaged") from error


def _check_end(path: Path, kind: str | None) -> None:
    """Refuse a file that was cut off, without decoding it: by its end mark, or by the size that its header states."""
    with path.open("rb") as file:
        header = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    is_whole = size >= 8 + int.from_bytes(header[4:], "little") if kind == "WEBP" else _END_MARK[kind or ""] in tail
    if not is_whole:
        raise ValueError(f"{path} ends too early; it is truncated or damaged")


def _present(values: Mapping[str, Any]) -> str:
    return f"its columns are {', '.join(map(repr, values)) or 'none'}; map ours to them in data.columns"


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
