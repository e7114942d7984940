"""The rules of the house that a machine can see."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"unigrpo": "unigrpo", "rewards": "unigrpo.rewards", "rollouts": "unigrpo.rollouts"}
MAX_LINES = 400
MAX_TOP_MODULES = 16
MAX_ROOMS = 36

LAYERS = {
    1: ("types", "errors", "seeding", "files", "sanitized", "lru", "torchvision_hook", "assets"),
    2: ("ray_start", "plugin", "settings", "pictures", "reward_table", "documents"),
    3: ("models", "data", "methods"),
    4: ("rewards", "rollouts", "learner", "recipe", "quickstart"),
    5: ("runs", "testing", "sizing"),
    6: ("evaluation", "report"),
    7: ("train", "supervised", "scoring", "export"),
    8: ("cli",),
    9: ("__main__",),
}
"""Imports point down, from a folder (or a module at the top) to one of a lower layer."""

NEIGHBORS = {("data", "models"), ("files", "errors"), ("assets", "errors"), ("recipe", "rewards")}
"""Folders that import one of their own layer."""

ONLY_IN = {
    "ray": ("ray_start", "rollouts.pools", "rollouts.actor", "rewards.process", "learner.ranks", "cli"),
    "transformers": ("models", "rewards", "quickstart.makers"),
    "peft": ("models",),
    "open_clip": ("rewards", "quickstart.makers"),
}
LIGHT = (
    "unigrpo",
    "unigrpo.types",
    "unigrpo.errors",
    "unigrpo.settings.recipe",
    "unigrpo.settings.sft",
    "unigrpo.runs.trackers.base",
    "unigrpo.recipe.load",
    "unigrpo.sizing.arithmetic",
    "unigrpo.sizing.model_size",
    "unigrpo.models",
    "unigrpo.rewards",
    "unigrpo.rollouts",
    "unigrpo.report.write",
    "unigrpo.cli",
    "unigrpo.cli.app",
    "unigrpo.runs.trackers.terminal",
    "unigrpo.scoring.score",
    "unigrpo.scoring.items",
    "unigrpo.scoring.page",
)
HEAVY = ("torch", "ray", "transformers", "peft", "open_clip")

BANNED_CALLS = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "os.system",
    "set_seed",
    "random.seed",
    "np.random.seed",
    "numpy.random.seed",
    "torch.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed_all",
}
BANNED_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package under its import name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def room(module: str) -> str:
    """The folder or top module of the package that a module belongs to; the face of the package is no room."""
    return module.removeprefix("unigrpo").removeprefix(".").partition(".")[0]


def layer(module: str) -> int | None:
    """The layer of the module's room."""
    return next((number for number, names in LAYERS.items() if room(module) in names), None)


def imports(module: str, *, with_types: bool) -> Iterator[tuple[str, int]]:
    """Every module that a module imports, with the line; imports for type checkers only on request."""
    pending: list[ast.AST] = [tree(module)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not with_types:
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; wanted the full name"
            base = node.module or ""
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in modules() else base), node.lineno
        pending.extend(ast.iter_child_nodes(node))


def test_every_room_has_a_layer() -> None:
    rooms = {room(module) for module in modules()} - {""}
    listed = [name for names in LAYERS.values() for name in names]
    assert sorted(listed) == sorted(rooms)


def test_imports_point_down() -> None:
    wrong = []
    for module in modules():
        own = layer(module) or 0
        is_contract = module.endswith(".base")  # it may name a type that stands higher, for type checkers
        for target, line in imports(module, with_types=not is_contract):
            if target not in modules() or room(target) in ("", room(module)):
                continue
            is_level = layer(target) == own and (room(module), room(target)) not in NEIGHBORS
            if room(module) and ((layer(target) or 0) > own or is_level):
                wrong.append(f"{module}:{line} (layer {own}) imports {target} (layer {layer(target)})")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {target for target, _ in imports(module, with_types=False) if target in modules() and target != module}
        for module in modules()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_rewards_and_rollouts_never_import_each_other() -> None:
    wrong = []
    for module in modules():
        for one, other in (("unigrpo.rewards", "unigrpo.rollouts"), ("unigrpo.rollouts", "unigrpo.rewards")):
            if module.startswith(one):
                found = imports(module, with_types=True)
                wrong += [f"{module}:{line}: {target}" for target, line in found if target.startswith(other)]
    assert wrong == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_package_is_imported_only_where_it_belongs(package: str) -> None:
    places = tuple(f"unigrpo.{place}" for place in ONLY_IN[package])
    wrong = [
        f"{module}:{line}"
        for module in modules()
        for target, line in imports(module, with_types=False)
        if target.partition(".")[0] == package
        and not any(module == place or module.startswith(f"{place}.") for place in places)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_no_file_is_longer_than_the_ceiling(folder: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > MAX_LINES} == {}


def test_the_house_is_not_over_its_number_of_rooms() -> None:
    top = [path for path in (ROOT / "unigrpo").glob("*.py") if path.name != "__init__.py"]
    folders = [path for path in (ROOT / "unigrpo").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(top) <= MAX_TOP_MODULES
    assert len(top) + len(folders) + len(("rewards", "rollouts", "recipes")) <= MAX_ROOMS


def _ways_to_grow() -> list[tuple[str, str, str, str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (.+) \| `(.+)` \| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 10
    return rows


@pytest.mark.parametrize(("what", "folder", "contract", "test"), _ways_to_grow())
def test_what_is_added_as_one_file_has_a_folder_a_contract_and_a_test(
    what: str, folder: str, contract: str, test: str
) -> None:
    exists = [(ROOT / folder).is_dir(), (ROOT / contract).is_file(), (ROOT / test).is_file()]
    if "as its folder comes" in what:
        assert not all(exists), f"{what}: it has come; take the words in brackets out of CONTRIBUTING.md"
    else:
        assert all(exists), f"{what}: wanted {folder}, {contract} and {test}"


def test_no_file_is_named_for_nothing() -> None:
    assert [str(path) for path in modules().values() if path.name in BANNED_NAMES] == []


def test_no_call_that_the_house_forbids() -> None:
    wrong = []
    for module in modules():
        forked = {
            inner
            for node in ast.walk(tree(module))
            if isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items[0])
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if node in forked and name == "torch.manual_seed":
                continue  # puts the global generator back afterwards
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            is_printing = name == "print" and not module.startswith("unigrpo.cli")
            is_unsafe = (
                words.get("shell") == "True"
                or words.get("trust_remote_code") == "True"
                or words.get("weights_only") == "False"
            )
            if name in BANNED_CALLS or is_printing or is_unsafe:
                wrong.append(f"{module}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert wrong == []


def test_no_blind_except() -> None:
    wrong = []
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                if caught in ("everything", "Exception", "BaseException"):
                    wrong.append(f"{module}:{node.lineno} catches {caught}")
    assert wrong == []


def test_nothing_unfinished_is_left() -> None:
    pattern = re.compile(r"#\s?(TODO|FIXME|XXX|HACK)\b|\braise NotImplementedError\b")
    wrong = [
        f"{module}:{number}"
        for module, path in modules().items()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert wrong == []


def test_package_list_equals_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {module for module, path in modules().items() if path.name == "__init__.py"} | {"unigrpo.recipes"}
    assert sorted(listed) == sorted(folders)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_is_content(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--exclude", "throw_away.py", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:]
