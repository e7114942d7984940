"""Code that a recipe names: ours by a word, anybody's by ``module:name`` or ``path/to/file.py:name``.

A choice is a file: the values of ``kl:`` are the files of ``unigrpo/methods/kl``, and adding a file adds a value. There
is no registry. `locate` and `locate_choice` say whether a name exists, and which parameters it takes, by reading
source: a recipe is checked without running anybody's code. `resolve`, `choice` and `make` import it.
"""

from unigrpo.plugin.load import choice as choice
from unigrpo.plugin.load import make as make
from unigrpo.plugin.load import relative_to as relative_to
from unigrpo.plugin.load import resolve as resolve
from unigrpo.plugin.source import CodeReference as CodeReference
from unigrpo.plugin.source import Located as Located
from unigrpo.plugin.source import PluginError as PluginError
from unigrpo.plugin.source import call_of as call_of
from unigrpo.plugin.source import class_of_choice as class_of_choice
from unigrpo.plugin.source import facts as facts
from unigrpo.plugin.source import known_choices as known_choices
from unigrpo.plugin.source import locate as locate
from unigrpo.plugin.source import locate_choice as locate_choice
from unigrpo.plugin.source import members_of as members_of
from unigrpo.plugin.source import nearest as nearest
from unigrpo.plugin.source import parse_reference as parse_reference
from unigrpo.types import Chosen as Chosen
