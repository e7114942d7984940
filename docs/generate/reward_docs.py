"""The page about the rewards, made from their docstrings: ``python docs/generate/reward_docs.py > docs/rewards.md``.

It reads source and runs none of it. A reward of yours is documented the same way: a class or function with the sections
of :data:`SECTIONS` in its docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import unigrpo.rewards

SECTIONS = ("Range", "Needs", "Source", "Cost", "Hacked by", "Recipe")
CONTRACT_MODULES = ("base", "plugin")
"""They define what a reward is, and hold none."""
_HEAD = re.compile(rf"({'|'.join(SECTIONS)}):\s*(.*)")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_INTRODUCTION = """\
# The rewards

Made from the docstrings by `python docs/generate/reward_docs.py > docs/rewards.md`.

A reward is named in a recipe under `rewards:`, one entry each; `weight`, `tasks`, `timeout_s`, `on_error` and the other
keys of an entry are the same for all. `unigrpo score REWARDS FILE.jsonl` tries a recipe's rewards on saved completions
before anything is trained, and `--bench` measures how many completions a second each takes. `None` is a reward that
does not apply. Read *hacked by* before a weight is set: what is optimised is what is written, not what is meant.

A plain function is a reward, too: `def length(completions, **columns): return [...]` in a file of yours, named as
`use: "path/to/file.py:length"`. TRL's reward functions run as they are; for its factories and for those of verl,
OpenRLHF and flow_grpo there are adapters (`Trl`, `Verl`, `OpenRlhf`, `FlowGrpo`). An adapter's entry names the function
in `arguments.function`; `arguments.make` holds the keywords of a function that makes the reward, `{}` for none.

What a reward imports, downloads or loads belongs to the top of its file, to its constructor or to `warm_up`, which is
called once while it is loaded: a method of a class, or an attribute of a function (`length.warm_up = load_weights`).
In a call it counts against `timeout_s`, and the answers of the first call would pay for it with the lowest value.

Plain functions and adapters score every completion of every step. A class or function that says
`is_deterministic = True` promises that each value depends on its own item alone: equal items are then scored once, and
remembered for later steps. The rewards below say so, apart from `Judge`, `Diversity` and the adapters; `cache: off` or
`cache: memory` in a recipe's entry overrules what a reward says. One that says `needs_whole_groups = True` is called
with whole groups and with the column `group_ids`, is never split, and nothing of it is kept.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardDoc:
    """What a docstring says of one reward."""

    module: str
    """Without the package: ``correctness``."""
    name: str
    description: str
    sections: Mapping[str, str]
    """By name; Recipe is YAML text. A section that is missing is not there."""

    @property
    def entry(self) -> dict[str, Any]:
        """Return the recipe's entry: one name and its settings.

        Raises:
            ValueError: if the section is no such YAML.
        """
        value = yaml.safe_load(self.sections.get("Recipe", ""))
        if not isinstance(value, dict) or len(value) != 1 or not isinstance(next(iter(value.values())), dict):
            raise ValueError(f"{self.module}:{self.name}: Recipe is {value!r}; wanted `name: {{use: ...}}`")
        return value

    @property
    def missing(self) -> list[str]:
        """Return the sections that are not there, or stand in another order."""
        absent = [section for section in SECTIONS if not self.sections.get(section)]
        is_ordered = list(self.sections) == [section for section in SECTIONS if section in self.sections]
        return absent or ([] if is_ordered else ["order: " + ", ".join(SECTIONS)])


def read_rewards(folder: Path | None = None) -> list[RewardDoc]:
    """Return the rewards of a folder by name, the adapters of others' functions last.

    Args:
        folder: of reward modules; None is the package's own.
    """
    folder = folder or Path(inspect.getfile(unigrpo.rewards)).parent
    docs = []
    for path in sorted(folder.glob("*.py")):
        if path.stem not in CONTRACT_MODULES:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs += [_doc(path.stem, node) for node in tree.body if _is_reward(node)]
    return sorted(docs, key=lambda doc: (doc.module == "adapters", doc.name.lower()))


def render(docs: list[RewardDoc]) -> str:
    """Return the page: a table, then a section each."""
    lines = [_INTRODUCTION, "| reward | range | needs | cost |", "|---|---|---|---|"]
    for doc in docs:
        cells = [_first(doc.sections.get(section, "")) for section in ("Range", "Needs", "Cost")]
        lines.append(f"| [{doc.name}](#{doc.name.lower()}) | {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    for doc in docs:
        lines += ["", f"## {doc.name}", "", f"`unigrpo.rewards.{doc.module}:{doc.name}`", "", doc.description, ""]
        lines += [f"- **{name}**: {text}" for name, text in doc.sections.items() if name != "Recipe"]
        lines += ["", "```yaml", "rewards:", textwrap.indent(doc.sections.get("Recipe", ""), "  "), "```"]
    return "\n".join([*lines, ""])


def _is_reward(node: ast.stmt) -> bool:
    """Return whether a top-level definition is a public class or function that scores completions."""
    if isinstance(node, ast.ClassDef):
        calls = [member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__call__"]
        is_scoring = any(_takes_completions(call) for call in calls) or "Recipe:" in (ast.get_docstring(node) or "")
    else:
        is_scoring = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_scoring_function(node)
    return is_scoring and not node.name.startswith("_")  # type: ignore[attr-defined]


def _is_scoring_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return _takes_completions(node) and "Recipe:" in (ast.get_docstring(node) or "")


def _takes_completions(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(argument.arg == "completions" for argument in [*node.args.args, *node.args.kwonlyargs])


def _doc(module: str, node: ast.stmt) -> RewardDoc:
    assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    text = ast.get_docstring(node) or ""
    description, sections = _parsed(text)
    return RewardDoc(module=module, name=node.name, description=description, sections=sections)


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    """Return the text before the sections, and each section: prose on one line, the recipe as it stands."""
    before: list[str] = []
    blocks: dict[str, list[str]] = {}
    current: list[str] = before
    for line in text.splitlines():
        head = _HEAD.fullmatch(line)
        if head:
            current = blocks.setdefault(head[1], [head[2]])
        elif blocks and line and not line[0].isspace():
            current = []  # Another section, such as Example.
        else:
            current.append(line)
    sections = {}
    for name, (first, *rest) in blocks.items():
        body = textwrap.dedent("\n".join(rest)).strip()
        sections[name] = body if name == "Recipe" else _prose(f"{first} {body}")
    return "\n".join(_paragraphs(before)), sections


def _paragraphs(lines: list[str]) -> Iterator[str]:
    for line in "\n".join(lines).strip().splitlines():
        yield _ROLE.sub(r"`\1`", line).replace("``", "`")


def _prose(text: str) -> str:
    return _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")


def _first(text: str) -> str:
    """Return the first sentence, or what stands before its semicolon."""
    for end in re.finditer(r"[.;] |\.$", text):
        start = text[: end.start()]
        if start.count("(") == start.count(")"):
            return start
    return text


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(render(read_rewards()))


if __name__ == "__main__":
    main()
