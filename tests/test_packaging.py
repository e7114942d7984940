"""The wheel as a user gets it: built, installed away from the repository, imported, type-checked."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
from pathlib import Path

from unigrpo.runs.trackers.base import Tracker
from unigrpo.recipe.load import load_recipe
from unigrpo.rewards.base import Reward
from unigrpo.settings.recipe import Recipe


def run(path: Path, tracker: Tracker, reward: Reward) -> list[float | None]:
    recipe: Recipe = load_recipe(path, ["learner.lr=3e-6"])
    tracker.phase(recipe.name)
    return reward(prompts=["1+1"], completions=["2"], answer=["2"])


silent = Tracker()
"""


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what the build reads, so that its outputs stay out of the repository."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("unigrpo", "rewards", "rollouts", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    _run("-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", ".", cwd=source)
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else of ours."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _isolated(site: Path, code: str) -> str:
    """Run code against the installed wheel and the environment's libraries, without the editable install."""
    libraries = sysconfig.get_paths()["purelib"]
    start = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path.append({libraries!r}); "
    return _run("-I", "-S", "-c", start + code, cwd=site).stdout.strip()


def test_wheel_puts_one_package_at_top_level(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"unigrpo"}


def test_wheel_holds_every_file_that_the_program_needs(site: Path) -> None:
    def wanted(folder: str, package: str) -> set[str]:
        root = ROOT / folder
        files = {path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        return {f"{package}/{path.relative_to(root)}" for path in files}

    held = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    folders = (("unigrpo", "unigrpo"), ("rewards", "unigrpo/rewards"), ("rollouts", "unigrpo/rollouts"))
    for folder, package in (*folders, ("recipes", "unigrpo/recipes")):
        assert wanted(folder, package) - held == set()


def test_installed_wheel_imports_from_its_own_place(site: Path) -> None:
    code = (
        "import unigrpo, unigrpo.rewards, unigrpo.rollouts, unigrpo.recipe.load as r, importlib.util as u; "
        "print(unigrpo.__file__); print(*r.packaged_recipes()); "
        "print(u.find_spec('rewards'), u.find_spec('rollouts'))"
    )
    file, recipes, top_level = _isolated(site, code).splitlines()
    assert file == str(site / "unigrpo" / "__init__.py")
    assert set(recipes.split()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert top_level == "None None"


def test_installed_program_shows_its_help(site: Path) -> None:
    assert "train" in _isolated(site, "from unigrpo.cli.app import run; run(['--help'])")


def test_bare_import_of_our_folders_is_refused() -> None:
    for name in ("rewards", "rollouts"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert f"import this package as `unigrpo.{name}`" in done.stderr


@pytest.mark.slow
def test_user_s_script_type_checks_against_the_wheel(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {site}\nstrict = True\nfollow_imports = silent\n"
        "[mypy-numpy.*,torch.*,PIL.*,huggingface_hub.*]\nfollow_imports = skip\n"
    )
    arguments = ["-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), str(script)]
    _run(*arguments, cwd=tmp_path)
    script.write_text(SCRIPT + "\nload_recipe(3)\n")
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'Argument 1 to "load_recipe" has incompatible type "int"' in done.stdout
