"""What a recipe gives to a parameter is checked against the annotation in its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unigrpo.errors import UserError
from unigrpo.plugin import PluginError, locate, locate_choice, make
from unigrpo.recipe.annotations import problem_of
from unigrpo.settings.base import choices_of
from unigrpo.settings.learning import KlChoice, ObjectiveChoice
from unigrpo.settings.tasks import ScheduleChoice

KL = "unigrpo.methods.kl"
CALL = "    def __call__(self, logprobs, other_logprobs): return logprobs\n"


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [1, -3], [1.5, "1", True, None]),
        ("float", [1.5, 2], ["1.5", None, float("nan")]),
        ("bool", [True], [1, "true"]),
        ("str | None", ["a", None], [3, ["a"]]),
        ("Literal['even', 3]", ["even", 3], ["evn", 4]),
        ("Annotated[float, Field(gt=0, le=1)]", [0.5, 1], [0, 1.1, "x"]),
        ("list[str]", [["a"], []], ["a", [1]]),
        ("list[str] | None", [["a"], None], ["a"]),
        ("Mapping[str, Any]", [{}, 3], []),
        ("Path", ["a", 3], []),
        ("'int | None'", [1, None], ["1"]),
        ("", [1, "a", None], []),
        ("Annotated[float, Field(gt=LOWEST)]", [-1, "a"], []),
        ("Annotated[str, Field(gt=0)]", ["a"], []),
        ("Literal[Color.RED]", ["red"], []),
        ("'int |'", [1, "a"], []),
    ],
)
def test_a_value_fits_its_annotation_or_is_named(annotation: str, right: list[Any], wrong: list[Any]) -> None:
    assert [problem_of(annotation, value) for value in right] == [None] * len(right)
    assert all("given " in (problem_of(annotation, value) or "") for value in wrong)


def test_the_message_names_what_was_given_and_what_was_wanted() -> None:
    assert problem_of("Annotated[int, Field(ge=1)]", 0) == "given 0, wanted greater than or equal to 1"
    assert problem_of("Literal['even', 'random']", "evn") == (
        "given 'evn'; wanted one of even, random; did you mean `even`?"
    )


def located(folder: Path, source: str, name: str = "Mine") -> Any:
    file = folder / "mine.py"
    file.write_text("from dataclasses import KW_ONLY, dataclass, field\nfrom typing import ClassVar\n\n" + source)
    return locate(f"{file}:{name}")


def test_inherited_fields_are_parameters_whether_the_base_is_here_or_imported(tmp_path: Path) -> None:
    own = "@dataclass\nclass Base:\n    size: int\n    shape: str = 'a'\n\n"
    found = located(tmp_path, own + "@dataclass\nclass Mine(Base):\n    size: int = 3\n    edge: float = field()\n")
    assert found.parameters == {"size", "shape", "edge"}
    assert found.required == {"edge"}
    plain = located(tmp_path, own + "class Mine(Base):\n    pass\n")
    assert (plain.parameters, plain.required) == ({"size", "shape"}, {"size"})
    theirs = "from unigrpo.methods.objectives.clipped import Clipped\n\nclass Mine(Clipped):\n    pass\n"
    assert located(tmp_path, theirs).parameters == {"clip_eps"}


def test_what_is_no_parameter_of_a_dataclass_is_none(tmp_path: Path) -> None:
    source = (
        "@dataclass\nclass Mine:\n    _: KW_ONLY\n    kind: ClassVar[str] = 'a'\n"
        "    made: int = field(init=False)\n    size: int = field(default=3)\n"
    )
    assert located(tmp_path, source).parameters == {"size"}


@pytest.mark.parametrize(
    "source",
    [
        "import attrs\n\n@attrs.define\nclass Mine:\n    size: int = 3\n",
        "class Mine:\n    def __init__(self, **keywords): ...\n",
        "from nowhere import Base\n\nclass Mine(Base): ...\n",
        "class Meta(type): ...\n\nclass Mine(metaclass=Meta): ...\n\nclass _Other: ...\n",
        "from nowhere import *\n",
        "from collections import Counter as Mine\n\nclass Mine(Mine): ...\n",
        "class Known:\n    def __init__(self, size): ...\n\nfrom nowhere import Base\n\nclass Mine(Base, Known): ...\n",
        "Mine, Other = object, object\n",
    ],
)
def test_where_source_does_not_tell_nothing_is_refused(source: str, tmp_path: Path) -> None:
    found = located(tmp_path, source)
    assert found.parameters is None


def test_a_function_or_a_class_without_the_contract_is_no_choice(tmp_path: Path) -> None:
    file = tmp_path / "kl.py"
    file.write_text(f"def call(a, b): ...\n\nclass Bare: ...\n\nclass Mine:\n{CALL}\nclass Child(Mine): ...\n")
    with pytest.raises(PluginError, match=r"is a function; wanted a class, such as those in unigrpo\.methods\.kl"):
        locate_choice(f"{file}:call", KL)
    with pytest.raises(PluginError, match=r"has no __call__; unigrpo\.methods\.kl\.base says what is wanted"):
        locate_choice(f"{file}:Bare", KL)
    assert locate_choice(f"{file}:Child", KL).parameters == frozenset()
    with pytest.raises(PluginError, match=r"has no is_linear; unigrpo\.methods\.objectives\.base says"):
        make(ObjectiveChoice(use=f"{file}:Mine"))


def test_a_bug_in_a_constructor_is_no_refusal(tmp_path: Path) -> None:
    file = tmp_path / "kl.py"
    file.write_text(
        "from unigrpo.errors import UserError\n\nclass Wrong:\n    def __init__(self, size=1):\n"
        "        if size < 0:\n            raise UserError('size below 0')\n"
        f"        None + size\n\n{CALL}"
    )
    with pytest.raises(TypeError, match="unsupported operand"):
        make(KlChoice(use=f"{file}:Wrong"))
    with pytest.raises(UserError, match="size below 0"):
        make(KlChoice.model_validate({"use": f"{file}:Wrong", "size": -1}))
    with pytest.raises(PluginError, match="unexpected keyword argument 'edge'"):
        make(KlChoice.model_validate({"use": f"{file}:Wrong", "edge": 1}))


def test_what_a_class_of_ours_refuses_is_said_in_a_line() -> None:
    with pytest.raises(PluginError) as caught:
        make(ScheduleChoice.model_validate({"use": "shift", "shift": -5}))
    assert str(caught.value) == "shift: shift: Input should be greater than or equal to 0.001, given -5"


def test_a_file_with_two_public_classes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "colors_of_a_test"
    folder.mkdir()
    (folder / "two.py").write_text("class One: ...\nclass Two: ...\n")
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"two.py has 2 public classes; wanted one"):
        locate_choice("two", "colors_of_a_test")


def test_choices_are_found_wherever_they_stand() -> None:
    found = dict(choices_of({"a": [KlChoice()], "b": {"c": ObjectiveChoice()}, "d": 3}))
    assert list(found) == ["a.0", "b.c"]
