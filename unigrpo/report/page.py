"""HTML pages that need nothing else: one file, the package's style, everything escaped, no script and no network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from unigrpo.files import write_atomically


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Write a page; it is there whole or not at all.

    The template is one of the package and may include others; strings among the values are escaped there.

    Returns:
        The file.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(name: str) -> str:
        return resources.files("unigrpo.report").joinpath("templates", name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(**values)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out
