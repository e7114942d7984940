"""What a run reads back of its own folder, each file by its schema: somebody may have touched it since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unigrpo.documents import read_object
from unigrpo.errors import UserError
from unigrpo.recipe.messages import wrong_value

Number = Annotated[float, Field(allow_inf_nan=False)] | None
"""A metric; None stands for one that was not finite."""
Count = Annotated[int, Field(ge=0, lt=10**12)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class State(_Record):
    """``state.json`` of a checkpoint."""

    step: Count
    seed: int | None = None
    wall_s: Seconds = 0.0
    unlogged: dict[str, list[Annotated[float, Field(allow_inf_nan=False)]]] = {}
    """Of a supervised stage: values since its last logged step, by metric."""
    unrecorded: dict[str, Any] = {}
    """Metrics of the step, where its evaluation was stopped and no log has them."""


class Summary(_Record):
    """``summary.json``."""

    num_steps: Count = 0
    wall_s: Seconds = 0.0
    eval_before: dict[str, Number] = {}
    eval_after: dict[str, Number] = {}


class MetricsRecord(_Record):
    """A line of ``metrics.jsonl``."""

    step: Annotated[int, Field(ge=1, lt=10**12)]


class SampleRecord(_Record):
    """A line of a ``samples.jsonl``, as far as a report shows it."""

    task: str
    id: str | None = None
    prompt: str
    completion: str | None = None
    image: str | None = None
    prompt_image: str | None = None
    reward: Number = None
    passed: dict[str, bool | None] = {}


class FilmRecord(_Record):
    """``film.json``."""

    prompt: str = ""
    frames: list[str] = []
    texts: list[str] = []


class RecipeSections(_Record):
    """``recipe.yaml``, as far as a report looks into it."""

    name: str = ""
    policy: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    evaluate: dict[str, str | bool | int | float | dict[str, str] | None] = {}


class Environment(_Record):
    """``environment.json``."""

    python: str = ""
    platform: str = ""
    num_cores: int | None = None
    gpus: list[str] = []
    packages: dict[str, str] = {}


R = TypeVar("R", bound=_Record)
_MANIFEST: TypeAdapter[dict[str, str]] = TypeAdapter(Annotated[dict[str, str], Field(strict=True)])
_METRICS: TypeAdapter[dict[str, Number]] = TypeAdapter(Annotated[dict[str, Number], Field(strict=True)])


def read_manifest(path: Path) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint, by its path there.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    found = checked_by(_MANIFEST, read_object(path, "it says what the checkpoint holds"), path)
    outside = [name for name in found if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside or "state.json" not in found:
        raise UserError(f"{path} names {outside[0]!r}" if outside else f"{path} does not name state.json")
    return found


def read_evaluation(path: Path) -> dict[str, Number]:
    """Return the metrics of a finished evaluation; None of them is one that was not finite.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    way_out = "delete it to evaluate again"
    return checked_by(_METRICS, read_object(path, way_out), path, way_out)


def read_record(kind: type[R], path: Path, way_out: str = "") -> R:
    """Return the record in a JSON file.

    Raises:
        UserError: naming the file and what is wrong with it, and the way out.
    """
    return record_of(kind, read_object(path, way_out), path, way_out)


def record_of(kind: type[R], values: Mapping[str, Any], where: Path | str, way_out: str = "") -> R:
    """Return values as a record.

    Raises:
        UserError: naming ``where`` they stand, the first wrong value, and the way out.
    """
    return checked_by(TypeAdapter(kind), values, where, way_out)


def checked_by(adapter: TypeAdapter[Any], values: Any, where: Path | str, way_out: str = "") -> Any:
    """Return values as an adapter takes them.

    Raises:
        UserError: naming ``where`` they stand, the first wrong value, and the way out.
    """
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = "absent" if first["type"] == "missing" else wrong_value(first)
        raise UserError(f"{where}: {key}: {problem}{way_out and f'; {way_out}'}") from error
