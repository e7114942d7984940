"""JSONL files of prompts and completions: lines, mapped columns, turns, pictures; a mistake names its file and line."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unigrpo.documents import half_problem, parse_json
from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import open_regular, regular_file
from unigrpo.sanitized import short_repr

Role = Literal["system", "user", "assistant"]

RESERVED_NAMES = (
    "prompts",
    "completions",
    "completion_ids",
    "group_ids",
    "images",
    "log_metric",
    "log_extra",
    "trainer_state",
    "self",
)
"""What a reward gets from us under these names, so that no column of the data can arrive under them."""


def read_objects(path: Path, *, may_end_torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank.

    ``may_end_torn`` passes over a last line without its end that is no JSON: whoever wrote it died.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: naming what is no regular file, or the file and the line that is wrong.
    """
    try:
        opened = open_regular(path)
    except MissingFileError as error:
        raise MissingFileError(f"{error}; give a JSONL file (here: {Path.cwd()})") from error
    with opened as file:
        for number, raw in enumerate(file, start=1):
            if not raw.removeprefix(BOM_UTF8).strip():
                continue
            try:
                values = parse_json(raw)
            except UserError as error:
                if may_end_torn and not raw.endswith(b"\n"):
                    return
                raise UserError(f"{path}:{number}: {error}") from error
            if not isinstance(values, dict):
                found = type(values).__name__
                raise UserError(f"{path}:{number}: a JSON {found}; each line is an object with named columns")
            yield number, values


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One object of a file, read by our names of its columns."""

    path: Path
    number: int
    values: Mapping[str, Any]
    columns: Mapping[str, str]
    """Our name -> the file's, of every name that is ours."""

    @property
    def where(self) -> str:
        """Return file and line, as errors call them."""
        return f"{self.path}:{self.number}"

    def error(self, what: str) -> UserError:
        """Return the error of this line."""
        return UserError(f"{self.where}: {what}")

    def get(self, name: str) -> Any:
        """Return the value of a column of ours; None where the line has none."""
        return self.values.get(self.columns[name])

    def text(self, name: str) -> str | None:
        """Return a value as text, numbers and lists as JSON; None where there is none."""
        value = self.get(name)
        return None if value is None else as_text(value)

    def id(self) -> str | None:
        """Return the id of the line, a number as text; None where it has none, or null.

        Raises:
            UserError: if it is neither text nor number.
        """
        value = self.get("id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(f"id {short_repr(value)}; it is a text or a number")
        return as_text(value)

    def needed(self, name: str, way_out: str) -> Any:
        """Return the value of a column that must be there; ``way_out`` says how to name the one that is meant.

        Raises:
            UserError: if there is no such column.
        """
        column = self.columns[name]
        if column not in self.values:
            raise self.error(f"no column {column!r} for {name!r}; {self.present}; {way_out}")
        return self.values[column]

    @property
    def present(self) -> str:
        """Return which columns there are, in words."""
        return f"its columns are {', '.join(map(repr, self.values)) or 'none'}"

    def others(self) -> dict[str, Any]:
        """Return the columns that are none of ours, under the file's names and as they stand there.

        Raises:
            UserError: if a reward gets something else from us under one's name.
        """
        taken = set(self.columns.values())
        found = {name: value for name, value in self.values.items() if name not in taken}
        if problem := reserved_problem(found):
            raise self.error(problem)
        return found

    def turns(self, given: Any) -> tuple[tuple[Role, str], ...]:
        """Return role and text of each turn of a prompt, which is a text or a list of ``{"role", "content"}``.

        Raises:
            UserError: if it is neither, or does not end with the user's turn.
        """
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
            roles = "/".join(get_args(Role))
            raise self.error(f"prompt {short_repr(given)}; it is text, or turns of role {roles} and content")
        if turns[-1]["role"] != "user":
            raise self.error(f"the last turn is the {turns[-1]['role']}'s; a prompt ends with the user's")
        return tuple((turn["role"], turn["content"]) for turn in turns)

    def images(self, given: Any, folders: Sequence[Path]) -> tuple[Path, ...]:
        """Return the files of no picture, of one path, or of a list of paths.

        Raises:
            UserError: if it is none of these, or as :meth:`file` says.
        """
        names = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error(f"image {short_repr(given)}; give a path or a list of paths")
        return tuple(self.file(name, folders) for name in names)

    def file(self, name: str, folders: Sequence[Path], way_out: str = "put it there, or correct its path") -> Path:
        """Return the first picture of that name that lies in one of the resolved folders.

        Raises:
            UserError: if there is none, if it is no regular file, or if all lie outside, a link's target included.
        """
        either = " or ".join(map(str, dict.fromkeys(folders)))
        shown = short_repr(name)
        try:
            places = [(folder, Path(os.path.realpath(folder / name))) for folder in folders]
        except ValueError as error:  # a zero byte, which no path holds
            raise self.error(f"picture {shown} is no path: {error}") from error
        inside = [path for folder, path in places if path.is_relative_to(folder)]
        if not inside:
            raise self.error(f"picture {shown} lies outside {either}; move it inside")
        for path in inside:
            try:
                return regular_file(path)
            except MissingFileError:
                continue
            except UserError as error:
                raise self.error(f"picture {error}") from error
        raise self.error(f"there is no picture {shown} in {either}; {way_out}")


def named_pictures(path: Path, columns: Mapping[str, str]) -> list[Path]:
    """Return the pictures that the lines of a file name, each once, in the lines' order.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: naming the file and the first line that is no object, or whose picture is not there.
    """
    ours, folders = mapped(("image",), columns), (Path(os.path.realpath(path)).parent,)
    lines = (Line(path=path, number=number, values=values, columns=ours) for number, values in read_objects(path))
    return list(dict.fromkeys(picture for line in lines for picture in line.images(line.get("image"), folders)))


def mapped(names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the file's name of each of our names: itself, where ``columns`` has no other."""
    return {name: columns.get(name, name) for name in names}


def as_text(value: Any) -> str:
    """Return a value of the data as text: a text as it is, all else as JSON; what JSON lacks, as Python shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def reserved_problem(columns: Iterable[str]) -> str | None:
    """Return what is wrong with the names of columns that are to reach rewards; None where nothing is."""
    taken = sorted(set(RESERVED_NAMES).intersection(columns))
    if not taken:
        return None
    way_out = "if it is the pictures, map `image` to it; else rename it" if taken[0] == "images" else "rename it"
    return f"a column {taken[0]!r}, under which a reward gets something else from us; {way_out}, or leave it out"


def columns_problem(columns: Mapping[str, Any]) -> str | None:
    """Return which column, by name or value, has half of a character in it; None where none has."""
    for name, value in columns.items():
        if problem := half_problem(name):
            return f"the name of column {short_repr(name)} has {problem}"
        if problem := half_problem(value):
            return f"{name} has {problem}"
    return None


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in get_args(Role) and isinstance(turn.get("content"), str)
