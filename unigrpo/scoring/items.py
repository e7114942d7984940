"""Saved completions, read for scoring: a JSONL file, or a folder of pictures and a file of their prompts. Torch-free.

Of a line, ``prompt`` and ``completion`` must be there; ``answer``, ``image``, ``id``, ``task``, ``completion_ids`` and
``is_truncated`` are known, and any other column goes to the rewards under its own name. The lines that a training run
leaves in ``rollouts/`` are understood as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from unigrpo.data.jsonl import Line, Role, mapped, read_objects, reserved_problem
from unigrpo.errors import UserError
from unigrpo.files import open_regular
from unigrpo.pictures import MAX_PIXELS, PICTURE_SUFFIXES, PictureError, open_picture
from unigrpo.runs.samples import DATA_COLUMNS, SAVED_NAMES
from unigrpo.sanitized import short_repr
from unigrpo.types import Message, PolicyVersion, Prompt, Rollout, TaskKind

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMN_NAMES = ("prompt", "completion", "answer", "image", "id", "task", "completion_ids", "is_truncated")
_SAVED_NAMES = frozenset(SAVED_NAMES).difference(COLUMN_NAMES)
"""Further columns of a run's own rollouts, which are not the data's."""
_OF_A_ROLLOUT = frozenset({"reward", "seed"})
"""Columns that tell a rollout of a run from a line of the user's."""


class PictureRefusedError(UserError):
    """A picture of an item that cannot be scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreItem:
    """One saved completion; its pictures are still files."""

    source: str
    """File and line, or the picture: what errors and tables call it."""
    id: str
    """Id of its prompt: items of one id in a row are a group."""
    sample_index: int
    task: str
    kind: TaskKind
    turns: tuple[tuple[Role, str], ...]
    """Role and text."""
    images: tuple[Path, ...]
    """The prompt's own."""
    text: str | None
    picture: Path | None
    """What was generated: text or picture."""
    answer: Any
    """As the file has it."""
    columns: Mapping[str, Any]
    completion_ids: tuple[int, ...] | None
    is_truncated: bool
    max_pixels: int = MAX_PIXELS
    """Of a picture; one with more is refused."""

    @property
    def prompt_text(self) -> str:
        """Return the text of the last turn."""
        return self.turns[-1][1]

    def rollout(self) -> Rollout:
        """Return what a reward pool scores, its pictures read.

        Raises:
            PictureRefusedError: if one of them has no pixels to judge.
        """
        *before, (role, text) = self.turns
        messages = [Message(role=role, text=text) for role, text in before]
        images = tuple(read_picture(path, self.max_pixels) for path in self.images)
        prompt = Prompt(
            id=self.id,
            kind=self.kind,
            task=self.task,
            messages=(*messages, Message(role=role, text=text, images=images)),
            answer=self.answer,
            columns=self.columns,
        )
        ids = np.array(self.completion_ids or (), dtype=np.int64)
        return Rollout(
            prompt=prompt,
            sample_index=self.sample_index,
            token_ids=ids,
            spans=(),
            is_completion=np.ones(len(ids), dtype=bool),
            committed_step=np.zeros(len(ids), dtype=np.int32),
            committed_logprobs=np.zeros(len(ids), dtype=np.float32),
            text=self.text,
            image=None if self.picture is None else np.asarray(read_picture(self.picture, self.max_pixels)),
            seed=0,
            policy_version=PolicyVersion(step=0, kind="full", sha256=""),
            is_truncated=self.is_truncated,
        )


def read_items(
    source: Path,
    *,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    prompts: Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[ScoreItem]:
    """Return the items of a JSONL file, or of a folder of pictures, in order.

    Lines without an id that follow each other with the same prompt, image and answer are one group. A completion is a
    picture where the task is ``imagine``, where it names a picture file, or where it is null and there is an image; a
    path is inside the folder of the file, or of the pictures, which is looked into first.

    Args:
        source: the JSONL file, or the folder.
        columns: our name -> the file's.
        task: of every line, a kind or a recipe's name of a task; None takes each line's ``task`` column, else the kind.
            Where it is no kind, the kind is told from the completion and the image.
        prompts: of a folder: a JSONL file, or a text file of one prompt a line, in the order of the pictures' names;
            where there are k times as many pictures, k in a row belong to each prompt.
        max_pixels: of a picture; one that has more is refused when it is read.

    Raises:
        UserError: naming the file and the line that is wrong.
    """
    reader = _Reader(columns or {}, task, max_pixels)
    if source.is_dir():
        if prompts is None:
            raise UserError(f"{source} is a folder of pictures; give the file of their prompts with --prompts")
        items = list(_of_folder(source, prompts, reader))
    elif prompts is not None:
        raise UserError(
            f"--prompts belongs to a folder of pictures, and {source} is none; its lines hold their prompts"
        )
    else:
        items = list(reader.items(source, read_objects(source), None))
    if not items:
        raise UserError(f"{source} holds nothing to score; write one JSON object a line")
    return items


def _of_folder(folder: Path, prompts: Path, reader: _Reader) -> Iterator[ScoreItem]:
    pictures = sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES), key=_natural)
    if not pictures:
        raise UserError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    if prompts.suffix == ".txt":
        with open_regular(prompts) as file:
            content = file.read()
        try:
            texts = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{prompts} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        rows = [(line, {"prompt": text}) for line, text in enumerate(texts, start=1) if text.strip()]
    else:
        rows = list(read_objects(prompts))
    each, left = divmod(len(pictures), len(rows)) if rows else (0, 1)
    if left or not each:
        raise UserError(
            f"{folder} holds {len(pictures)} pictures and {prompts} {len(rows)} prompts; wanted as many, or a multiple "
            "(else a JSONL file whose `completion` names each prompt's picture)"
        )
    repeated = [row for row in rows for _ in range(each)]
    yield from reader.items(prompts, iter(repeated), pictures, folder)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order names as people do: 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


class _Reader:
    """The rows of one source, checked one by one."""

    def __init__(self, columns: Mapping[str, str], task: str | None, max_pixels: int) -> None:
        unknown = sorted(set(columns) - set(COLUMN_NAMES))
        if unknown:
            raise UserError(f"--column {unknown[0]}: not a name of ours; wanted one of {', '.join(COLUMN_NAMES)}")
        self._columns = mapped(COLUMN_NAMES, columns)
        self._task, self._max_pixels = task, max_pixels

    def items(
        self,
        path: Path,
        rows: Iterator[tuple[int, dict[str, Any]]],
        pictures: Sequence[Path] | None,
        folder: Path | None = None,
    ) -> Iterator[ScoreItem]:
        parent = Path(os.path.realpath(path)).parent
        folders = [place for place in (folder and folder.resolve(), parent) if place is not None]
        last: tuple[Any, ...] | None = None
        group, sample_index = "", 0
        for place, (number, values) in enumerate(rows):
            line = Line(path=path, number=number, values=values, columns=self._columns)
            given = line.id()
            own = line.get("id") if given is not None else [line.get(name) for name in ("prompt", "image", "answer")]
            key = (given is None, json.dumps(own, sort_keys=True), values.get("task"))
            sample_index = sample_index + 1 if key == last else 0
            if key != last:
                last, group = key, f"{path.stem}-{number}" if given is None else given
            item = self._item(line, folders, None if pictures is None else pictures[place])
            yield ScoreItem(**item, id=group, sample_index=sample_index, max_pixels=self._max_pixels)

    def _item(self, line: Line, folders: Sequence[Path], picture: Path | None) -> dict[str, Any]:
        turns = line.turns(_needed(line, "prompt"))
        images = line.images(_pictures_of_prompt(line), folders)
        text = None
        task, kind = self._stated_task(line)
        kind = kind or ("imagine" if picture is not None else None)
        if picture is None:
            text, picture = _completion(line, folders, kind)
        kind = kind or ("imagine" if picture is not None else "understand" if images else "reason")
        return {
            "source": line.where if text is not None else f"{line.where} ({_shown(picture)})",
            "task": task or kind,
            "kind": kind,
            "turns": turns,
            "images": () if kind == "imagine" else images,
            "text": text,
            "picture": picture,
            "answer": line.get("answer"),
            "columns": _data_columns(line),
            "completion_ids": _ids(line),
            "is_truncated": _is_truncated(line),
        }

    def _stated_task(self, line: Line) -> tuple[str | None, TaskKind | None]:
        """Return the task's name, and its kind where the name says it."""
        task = self._task or line.get("task")
        if task is not None and not isinstance(task, str):
            raise line.error(f"task {short_repr(task)}; wanted a task's name, or {', '.join(get_args(TaskKind))}")
        return task, next((kind for kind in get_args(TaskKind) if kind == task), None)


def _completion(line: Line, folders: Sequence[Path], kind: TaskKind | None) -> tuple[str | None, Path | None]:
    """Return the text, or the picture's path."""
    given = _needed(line, "completion")
    if (kind == "imagine" and not given) or (kind is None and given is None):
        given = line.get("image")
    if not isinstance(given, str):
        raise line.error(f"completion {short_repr(given)}; it is text, or the path of a picture")
    names_picture = given.lower().endswith(PICTURE_SUFFIXES) and "\n" not in given
    if kind == "imagine" or (kind is None and names_picture):
        return None, line.file(given, folders, "text that looks so needs task: reason")
    return given, None


def _pictures_of_prompt(line: Line) -> Any:
    """Return the prompt's pictures: of a run's own rollout all, or the one that there is."""
    saved = line.values.get("prompt_images") if line.values.keys() >= _OF_A_ROLLOUT else None
    given = line.get("image")
    return saved or (line.values.get("prompt_image") if given is None else given)


def _data_columns(line: Line) -> dict[str, Any]:
    """Return the columns of the data; of a run's own rollout also those that are kept apart, and nothing of the run."""
    columns = line.others()
    if not _OF_A_ROLLOUT <= line.values.keys():
        return columns
    kept_apart = line.values.get(DATA_COLUMNS, {})
    if not isinstance(kept_apart, dict) or reserved_problem(kept_apart):
        raise line.error(f"{DATA_COLUMNS} {short_repr(kept_apart)}; wanted an object of the data's own columns")
    return {name: value for name, value in columns.items() if name not in (*_SAVED_NAMES, DATA_COLUMNS)} | kept_apart


def _ids(line: Line) -> tuple[int, ...] | None:
    given = line.get("completion_ids")
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(token) is int and 0 <= token < 2**31 for token in given):
        raise line.error(f"completion_ids {short_repr(given)}; wanted a list of token ids")
    return tuple(given)


def _is_truncated(line: Line) -> bool:
    given = line.get("is_truncated")
    if given is not None and not isinstance(given, bool):
        raise line.error(f"is_truncated {short_repr(given)}; wanted true or false")
    return given or False


def _needed(line: Line, name: str) -> Any:
    return line.needed(name, f"say which with --column {name}=IT")


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Return a picture as 8-bit RGB.

    Raises:
        PictureRefusedError: naming the file, if it has no pixels to judge.
    """
    try:
        return open_picture(path, max_pixels=max_pixels)
    except PictureError as error:
        raise PictureRefusedError(str(error).replace(str(path), path.name, 1)) from error


def _shown(path: Path | None) -> str:
    return "" if path is None else path.name
