"""``unigrpo sample``: one completion of a policy: text, an answer about a picture, a picture, a filled-in picture."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unigrpo.cli.arguments import MaxPixels
from unigrpo.errors import UserError
from unigrpo.files import regular_file, replacing, write_atomically
from unigrpo.types import ImageFit

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.cli.pictures import Box
    from unigrpo.settings.tasks import SamplingSettings
    from unigrpo.types import Prompt, TaskKind


Kind = enum.StrEnum("Kind", ["reason", "understand", "imagine", "inpaint", "extrapolate"])
Direction = enum.StrEnum("Direction", ["left", "right", "up", "down"])
"""The side on which a picture grows."""


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id or asset:NAME of a checkpoint.")],
    task: Annotated[Kind, typer.Option("--task", help="What to make.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The question, or the picture's caption.")] = "",
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Picture to ask about (may be repeated), fill in or grow.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="inpaint: a picture that is white where to fill.")] = None,
    box: Annotated[str | None, typer.Option("--box", help="inpaint: LEFT,TOP,RIGHT,BOTTOM as fractions.")] = None,
    direction: Annotated[Direction, typer.Option("--direction", help="extrapolate: where to.")] = Direction.right,
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", help="A PEFT folder, or a run's directory; may be repeated.")
    ] = None,
    image_tokenizer: Annotated[
        str | None, typer.Option("--image-tokenizer", help="MAGVIT-v2 folder or hub id.")
    ] = None,
    image_size: Annotated[int, typer.Option("--image-size", help="Side in pixels of given pictures.")] = 512,
    image_fit: Annotated[
        ImageFit | None, typer.Option("--image-fit", help="How they become squares; as the release if not given.")
    ] = None,
    max_pixels: MaxPixels = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the picture, or the text.")] = None,
    length: Annotated[int | None, typer.Option("--length", help="Tokens to fill; 256 of text, 1024 codes.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps; 1 a 2 tokens, 15 a picture.")] = None,
    block_length: Annotated[int | None, typer.Option("--block-length", help="Text filled block by block.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 for text, 1 for pictures.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="0 for text, 3.5 for pictures.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same completion.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Sample one completion from a policy."""
    is_picture = task in (Kind.imagine, Kind.inpaint, Kind.extrapolate)
    from unigrpo.pictures import MAX_PIXELS
    from unigrpo.recipe.checks import reads_pixels

    needs_codes = task is not Kind.reason and not (task is Kind.understand and reads_pixels(model))
    if needs_codes and image_tokenizer is None:
        raise UserError(f"--task {task.value} needs --image-tokenizer: the folder or hub id of the MAGVIT-v2 tokenizer")
    images, limit = image or [], max_pixels or MAX_PIXELS
    _check_options(task, prompt, images, mask, box, out)
    _check_places(is_picture, length, out)
    region = mask if box is None else parse_box(box)
    settings = _settings(
        is_picture,
        length,
        num_denoising_steps=steps or None,
        block_length=block_length,
        temperature=temperature,
        guidance_scale=guidance,
    )
    asked = _prompt(task, prompt, images, limit)
    from unigrpo.cli.pictures import complete, complete_picture, load_with_adapters

    policy = load_with_adapters(
        model,
        adapter or [],
        dtype=dtype,
        device=device,
        image_tokenizer=image_tokenizer,
        image_size=image_size,
        image_fit=image_fit,
    )
    if task in (Kind.inpaint, Kind.extrapolate):
        if "imagine" not in policy.abilities.tasks:
            raise UserError(f"--task {task.value}: {model} writes no pictures; MMaDA and Show-o checkpoints do")
        towards = direction.value if task is Kind.extrapolate else None
        made: str | Image = complete_picture(
            policy, asked, settings, image=images[0], region=region, direction=towards, seed=seed, max_pixels=limit
        )
    else:
        made = complete(policy, policy.encode(asked, settings), settings, seed)
    _write(made, out)


def parse_box(text: str) -> Box:
    """Return left, top, right, bottom as fractions of the picture.

    Raises:
        UserError: if they are not four numbers in order between 0 and 1.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--box {text!r}: wanted LEFT,TOP,RIGHT,BOTTOM, such as 0.25,0.25,0.75,0.75") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(f"--box {text!r}: wanted fractions with 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return left, top, right, bottom


def _check_options(
    task: Kind, prompt: str, images: list[Path], mask: Path | None, box: str | None, out: Path | None
) -> None:
    """Refuse options that a task lacks or has no use for, before anything heavy is loaded."""
    if not prompt and task is not Kind.extrapolate and task is not Kind.inpaint:
        raise UserError(f"--task {task.value} needs --prompt TEXT")
    needs_image = task in (Kind.understand, Kind.inpaint, Kind.extrapolate)
    if needs_image != bool(images):
        raise UserError(f"--task {task.value} {'needs' if needs_image else 'takes no'} --image")
    if len(images) > 1 and task is not Kind.understand:
        raise UserError(f"--task {task.value} takes one --image, given {len(images)}")
    for name, path in [*(("--image", image) for image in images), *([("--mask", mask)] if mask else [])]:
        try:
            regular_file(path)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    if task is Kind.inpaint and (mask is None) == (box is None):
        raise UserError("--task inpaint needs either --mask FILE or --box LEFT,TOP,RIGHT,BOTTOM")
    if task is not Kind.inpaint and (mask is not None or box is not None):
        raise UserError(f"--task {task.value} takes neither --mask nor --box")
    if task in (Kind.imagine, Kind.inpaint, Kind.extrapolate) and (out is None or out.suffix.lower() != ".png"):
        raise UserError(f"--task {task.value} makes a picture; wanted --out FILE.png, given {out or 'none'}")


def _check_places(is_picture: bool, length: int | None, out: Path | None) -> None:
    """Refuse a picture that is not square, and a file that could not be written."""
    if is_picture and length is not None and length > 0 and math.isqrt(length) ** 2 != length:
        side = math.isqrt(length)
        near = " or ".join(str(square) for square in (side**2, (side + 1) ** 2))
        raise UserError(f"--length {length}: a picture is a square of codes; wanted a square number, such as {near}")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first, or name another")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")


def _settings(is_picture: bool, length: int | None, **given: float | None) -> SamplingSettings:
    from pydantic import ValidationError

    from unigrpo.errors import RecipeError
    from unigrpo.recipe.messages import describe
    from unigrpo.settings.tasks import SamplingSettings

    if is_picture:
        values: dict[str, Any] = {"completion_length": length or 1024, "num_denoising_steps": 15, "temperature": 1.0}
        values |= {"guidance_scale": 3.5, "schedule": "cosine", "remasking_temperature": 1.0}
    else:
        values = {"completion_length": length or 256, "num_denoising_steps": max(1, (length or 256) // 2)}
        values |= {"temperature": 0.0}
    try:
        return SamplingSettings(**values | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise RecipeError("sample", describe(error, SamplingSettings)) from None


def _prompt(task: Kind, text: str, paths: list[Path], max_pixels: int) -> Prompt:
    from unigrpo.pictures import open_picture
    from unigrpo.types import Message, Prompt

    images = tuple(open_picture(path, max_pixels=max_pixels) for path in paths) if task is Kind.understand else ()
    kinds: dict[Kind, TaskKind] = {Kind.reason: "reason", Kind.understand: "understand"}
    message = Message(role="user", text=text, images=images)
    return Prompt(id="sample", kind=kinds.get(task, "imagine"), messages=(message,))


def _write(made: str | Image, out: Path | None) -> None:
    if isinstance(made, str):
        typer.echo(made)
        if out is not None:
            write_atomically(out, made)
    elif out is not None:
        with replacing(out) as temporary:
            made.save(temporary, format="PNG")
        typer.echo(f"picture: {out} ({made.width} x {made.height})")
