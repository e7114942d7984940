"""Code that a recipe names: ours by a word, anybody's by ``module:name`` or ``path/to/file.py:name``.

A choice is a file: the values of ``kl:`` are the files of ``unigrpo/methods/kl``, and adding a file adds a value. There
is no registry. `locate` and `locate_choice` say whether a name exists, and which parameters it takes, by reading
source: a recipe is checked without running anybody's code. `resolve`, `choice` and `make` import it.
"""

from unigrpo.plugin.load import choice, make, relative_to, resolve
from unigrpo.plugin.source import (
    CodeReference,
    Located,
    PluginError,
    class_of_choice,
    facts,
    known_choices,
    locate,
    locate_choice,
    nearest,
    parse_reference,
)
from unigrpo.types import Chosen

__all__ = [
    "Chosen",
    "CodeReference",
    "Located",
    "PluginError",
    "choice",
    "class_of_choice",
    "facts",
    "known_choices",
    "locate",
    "locate_choice",
    "make",
    "nearest",
    "parse_reference",
    "relative_to",
    "resolve",
]
