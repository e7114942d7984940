"""``unigrpo make-tiny``: a random checkpoint of a family, of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unigrpo.errors import UserError


def make_tiny(
    family: Annotated[
        str,
        typer.Argument(metavar="FAMILY", help="llada, mmada, dream, sdar, llada_v, ..., or your own file.py:Class."),
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values of config.json by their published keys."),
    ] = None,
    release: Annotated[str | None, typer.Option("--release", help="Sizes of a released checkpoint: 8b, ...")] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Number of layers.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Width of the hidden states.")] = None,
    vocabulary: Annotated[int | None, typer.Option("--vocabulary", min=1, help="Rows of the embedding.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Of the weights.")] = 0,
) -> None:
    """Write a random checkpoint in a family's released layout, with tokenizer: for tests and dry runs."""
    from unigrpo.testing.tiny.make_tiny import make_tiny as write

    pairs = [change.partition("=") for change in changes or []]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: wanted KEY=VALUE, such as n_layers=4")
    config = {key: _value(key, value) for key, _, value in pairs}
    write(
        family,
        out,
        release=release,
        changes=config,
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        dtype=dtype,
        seed=seed,
    )
    typer.echo(f"make-tiny: {out}")


def _value(key: str, text: str) -> Any:
    import yaml

    from unigrpo.recipe.text import parse

    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text[:40]}: not YAML: {' '.join(str(error).split())}") from error
