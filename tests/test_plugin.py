import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from unigrpo.plugin import PluginError, choice, known_choices, locate, locate_choice, resolve
from unigrpo.rewards.format import Format
from unigrpo.rewards.process.adapt import AdaptedReward, RewardContractError, load_reward

SPECIMENS = Path(__file__).parent / "reward_specimens.py"


def call(target: object, **settings: object) -> list[object]:
    adapted = AdaptedReward(target, name="it", arguments=settings)  # type: ignore[arg-type]
    return adapted(prompts=["p", "q"], completions=["a", "b"], answer=["1", "2"], task=["reason", "reason"], step=3)


def test_a_module_and_a_file_are_resolved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.py").write_text("class Box:\n    def inside(self): return 3\n")
    assert resolve("unigrpo.rewards.format:Format") is Format
    with caplog.at_level(logging.INFO):
        box = resolve("mine.py:Box", folder=tmp_path)
    assert box().inside() == 3  # type: ignore[operator]
    assert str(tmp_path / "mine.py") in caplog.text
    assert resolve(f"{tmp_path}/mine.py:Box.inside") is box.inside  # type: ignore[attr-defined]


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "rewards.py").write_text(f"value = {number}\n")
    assert [resolve(f"{number}/rewards.py:value", folder=tmp_path) for number in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("unigrpo.rewards.format", 'names no code; wanted "module:Name" or "path/to/file.py:name"'),
        (":x", "names no code"),
        ("mine.py:2x", "names no code"),
        ("mine.py:a.", "names no code"),
        ("no_such_package.x:y", "there is no module 'no_such_package'"),
        ("unigrpo.rewards.fromat:Format", "there is no module 'unigrpo.rewards.fromat'"),
        ("unigrpo.rewards.format:Fromat", "has no 'Fromat'; it has .*Format"),
        ("nowhere/mine.py:f", "there is no file .*nowhere/mine.py"),
    ],
)
def test_what_cannot_be_found_is_named_with_the_way_out(use: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        resolve(use)


def test_a_dotted_name_is_located_as_it_is_resolved(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Box:\n    class Inner:\n        def __init__(self, size, code): ...\nbox = Box()\n")
    for name in ("Box", "Box.Inner", "box.Inner"):
        assert resolve(f"{file}:{name}")
        assert locate(f"{file}:{name}").file == file
    assert locate(f"{file}:Box.Inner").parameters == {"size", "code"}
    assert locate(f"{file}:box.Inner").parameters is None
    with pytest.raises(PluginError, match=r"Box defines no 'Iner'; did you mean 'Inner'\?"):
        locate(f"{file}:Box.Iner")


def test_a_home_folder_is_found_without_running_as_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Box: ...\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/mine.py:Box").file == tmp_path / "mine.py"
    assert resolve("~/mine.py:Box").__name__ == "Box"  # type: ignore[attr-defined]


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of choices: what its files are, its values are."""
    folder = tmp_path / "shapes_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("class Shape: ...\n")
    (folder / "round.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Round:\n    size: float = 1.0\n\nclass _Other: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "shapes_of_a_test"


def test_a_file_of_a_folder_is_a_choice_and_its_fields_are_its_parameters(shapes: str, tmp_path: Path) -> None:
    assert list(known_choices(shapes)) == ["round"]
    assert locate_choice("round", shapes).parameters == {"size"}
    assert choice("round", shapes)(size=2.0).size == 2.0
    (tmp_path / shapes / "square.py").write_text("class Square: ...\n")
    assert list(known_choices(shapes)) == ["round", "square"]
    assert choice("square", shapes).__name__ == "Square"


def test_a_choice_of_the_user_is_a_class_by_its_path(shapes: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self, *, edge): ...\nedge = 3\n")
    assert locate_choice(f"{tmp_path}/mine.py:Mine", shapes).parameters == {"edge"}
    assert choice(f"{tmp_path}/mine.py:Mine", shapes).__name__ == "Mine"
    with pytest.raises(PluginError, match="is a int; wanted a class, such as those in shapes_of_a_test"):
        choice(f"{tmp_path}/mine.py:edge", shapes)


@pytest.mark.parametrize("find", [locate_choice, choice])
def test_an_unknown_choice_names_the_nearest(find: Callable[[str, str], object], shapes: str) -> None:
    with pytest.raises(PluginError, match=r"there is no 'ruond'; did you mean 'round'\?; known: round; your own: "):
        find("ruond", shapes)


def test_an_error_inside_the_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_thing_at_all\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all"):
            resolve("broken.py:f", folder=tmp_path)


def test_a_function_gets_what_it_names() -> None:
    assert call(lambda completions, answer: [c + a for c, a in zip(completions, answer, strict=True)]) == ["a1", "b2"]
    assert call(lambda prompts, **columns: [p + str(sorted(columns)) for p in prompts])[0].startswith("p['answer'")  # type: ignore[attr-defined]


def test_trl_names_are_offered() -> None:
    def reward(completions, solution, trainer_state, log_extra, log_metric, scale):
        log_extra("seen", solution)
        log_metric("scale", scale)
        return [scale * trainer_state.global_step + len(solution[0])] * len(completions)

    adapted = AdaptedReward(reward, name="it", arguments={"scale": 2})
    assert adapted(prompts=["p"], completions=["a"], answer=["1"], step=3) == [7]
    assert adapted.metrics == {"scale": [2.0]}
    assert {"answer", "solution"} <= set(adapted.wanted_columns or ())


def test_coroutines_are_awaited() -> None:
    async def reward(completions):
        return [1.0 for _ in completions]

    assert call(reward) == [1.0, 1.0]


@pytest.mark.parametrize("result", [1.0, "ab", [1.0], [], None, {"a": 1}, [1.0, 2.0, 3.0]])
def test_anything_but_one_value_a_completion_raises(result: object) -> None:
    with pytest.raises(RewardContractError, match=r"reward 'it' .* for 2 completions; return a list of 2"):
        call(lambda completions: result)


def test_an_empty_range_is_refused() -> None:
    class Flat(Format):
        range = (1.0, 1.0)

    with pytest.raises(RewardContractError, match=r"range \(1.0, 1.0\) is empty"):
        AdaptedReward(Flat(), name="it")


def test_a_class_is_made_with_its_arguments_and_a_number_is_no_reward() -> None:
    reward = load_reward(f"{SPECIMENS}:Scaled", {"factor": 0.5})
    assert reward.range == (-2.0, 3.0)
    assert reward(prompts=["p"], completions=["c"]) == [0.5]
    with pytest.raises(PluginError, match="is a int; a reward is a function or a class"):
        load_reward("unigrpo.rewards.text.answers:MAX_ANSWER_LENGTH")


def test_trl_rewards_run_unmodified() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl.rewards")
        accuracy = load_reward("trl.rewards:accuracy_reward")
        think = load_reward("trl.rewards:think_format_reward")
    completions = [r"<think>x</think> \boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}"]
    columns = {"prompts": ["?", "?"], "completions": completions, "answer": [r"\frac{1}{3}", r"\frac{1}{3}"]}
    assert accuracy(**columns) == [1.0, 0.0]  # type: ignore[arg-type]
    assert think(**columns) == [1.0, 0.0]  # type: ignore[arg-type]
