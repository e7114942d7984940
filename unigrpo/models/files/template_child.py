"""The process that renders templates which nobody knows: its memory is limited here, its time by whoever reads it.

It is started by its path and imports nothing of this package: one JSON object a line in, one a line out.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import lru_cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
"""Address space of the process."""
OUTPUT_CHARS = 16_000_000
"""The longest text that is given back."""
FAULTS = (
    TemplateError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,  # a recursion without end is one
    AssertionError,
    SyntaxError,  # what Python's own compiler refuses of a deep template
    MemoryError,
)
"""What a template can raise."""


REFUSAL = "refuses these messages: "
"""How the fault of a template begins that said by itself, through ``raise_exception``, what it does not take."""


class _RefusedError(TemplateError):
    pass


def _refuse(message: object = "") -> None:
    raise _RefusedError(str(message))


def to_json(value: object, indent: int | None = None, **_: object) -> str:
    """Return JSON as chat templates expect it: as it is, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """Return the compiled template; compiling takes far longer than rendering."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = to_json
    return environment.from_string(template)


def render(template: str, values: dict[str, Any]) -> str:
    """Return what a template makes of values.

    Raises:
        ValueError: saying what is wrong with the template, or what it says against the values.
    """
    try:
        text = compiled(template).render(values)
    except _RefusedError as error:
        raise ValueError(f"{REFUSAL}{error}") from error
    except TemplateSyntaxError as error:
        raise ValueError(f"is no Jinja: line {error.lineno}: {error.message}") from error
    except SecurityError as error:
        raise ValueError(f"does what the sandbox forbids: {error}") from error
    except MemoryError as error:
        raise ValueError(f"takes more than {MEMORY_BYTES >> 20} MiB of memory") from error
    except FAULTS as error:
        raise ValueError(f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if len(text) > OUTPUT_CHARS:
        raise ValueError(f"writes {len(text):,} characters, more than {OUTPUT_CHARS:,}")
    return text


def main() -> None:
    """Answer requests ``{template, values}`` until there are no more."""
    highest = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY_BYTES if highest == resource.RLIM_INFINITY else min(highest, MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = {"text": render(request["template"], request["values"])}
        except ValueError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")  # ASCII, so that every character can be sent
        sys.stdout.flush()


if __name__ == "__main__":
    main()
