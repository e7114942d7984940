"""What every section of a recipe is: typed, frozen, refused where a name is unknown or a number not finite. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """A section of a recipe: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(BaseModel):
    """A part chosen by name: `use`, and the parameters of the class beside it. A bare name is short for `{use: NAME}`."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    folder: ClassVar[str]
    """The package whose files are the known values."""
    use: str

    @model_validator(mode="before")
    @classmethod
    def _from_its_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping | Choice):
            return value
        if not isinstance(value, str):
            raise ValueError("a name, or `use` with the parameters of the class beside it")
        return {"use": value}

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the parameters of the class that `use` names."""
        return dict(self.model_extra or {})


def choices_of(section: Any, key: str = "") -> Iterator[tuple[str, Choice]]:
    """Yield every choice in a part of a recipe, with its key."""
    if isinstance(section, Choice):
        yield key, section
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(section, BaseModel):
        parts = ((name, getattr(section, name)) for name in type(section).model_fields)
    elif isinstance(section, Mapping):
        parts = section.items()
    elif isinstance(section, list | tuple):
        parts = enumerate(section)
    for name, part in parts:
        yield from choices_of(part, f"{key}.{name}" if key else str(name))
