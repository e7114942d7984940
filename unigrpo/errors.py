"""Errors that a user can mend: the command line shows them as one short message, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """What was given, what was wanted, and the way out."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named and is not there."""


class StorageError(UserError, OSError):
    """A disk that is full, read-only or failing: the path, what the system said, and how much room is needed."""


class RecipeError(UserError):
    """A recipe that cannot run, with every problem found in it."""

    def __init__(self, source: str, problems: list[str]) -> None:
        """Keep the file or packaged recipe, and its problems, each a line ``key.path: what is wrong``."""
        self.source = source
        self.problems = tuple(problems)
        many = "\n  ".join([f"{source}: {len(problems)} problems", *problems])
        super().__init__(f"{source}: {problems[0]}" if len(problems) == 1 else many)


class ConformanceError(AssertionError):
    """A contract that is not kept: which, what was given and what was wanted."""
