"""From a path to a policy: the family by config.json, weights from safetensors only, no remote code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file
from unigrpo.models.families import policy_family
from unigrpo.models.files import weights
from unigrpo.models.files.config_file import context_length
from unigrpo.models.files.folders import read_json, resolve_folder
from unigrpo.models.files.tokenizer import TextTokenizer, has_tokenizer
from unigrpo.models.files.vocabulary import resolve_vocabulary, stored_ends
from unigrpo.models.layers.packed_experts import pack_experts
from unigrpo.models.text_policy import TextPolicy
from unigrpo.types import ImageFit

_LOGGER = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

THOUGHT = ("<think>", "</think>")
"""What rewards look for around a thought."""

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
"""What is downloaded of a hub id."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        MissingFileError: there is none.
        UserError: it is no JSON object.
    """
    path = folder / "config.json"
    if not optional_file(path):
        raise MissingFileError(f"{folder} has no config.json; wanted a checkpoint folder in the released layout")
    return read_json(path)


def empty_module(family: type[TextPolicy], config: Mapping[str, Any]) -> nn.Module:
    """Return the module of a config on the meta device: names and shapes, nothing allocated."""
    with torch.device("meta"):
        return family.build(config)


def stored_shapes(config: Mapping[str, Any], folder: Path, use: str | None = None) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor as a folder's files hold it: a tied one once.

    Args:
        config: content of config.json.
        folder: where the family's further config files are.
        use: the family, where config.json does not say it.
    """
    family = policy_family(config, use)
    module = empty_module(family, family.complete_config(config, folder))
    again = {name for names in weights.tied_names(module) for name in names[1:]}
    return {
        family.stored_name(name): tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name not in again
    }


def _find_tokenizer(folder: Path, tokenizer: str | Path | TextTokenizer | None) -> TextTokenizer | None:
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if tokenizer is not None:
        return TextTokenizer.from_folder(resolve_folder(tokenizer, files=HUB_FILES))
    return TextTokenizer.from_folder(folder) if has_tokenizer(folder) else None


def _check_text(tokenizer: TextTokenizer | None, required: Sequence[str]) -> None:
    """Refuse tokenizer files that lose a text, and warn of a thought's tags that a family does not need.

    Whether a tag is one token or several does not matter; a special one is left out of what rewards see. A tokenizer
    that the caller made is the caller's business.
    """
    if tokenizer is None or tokenizer.folder is None:
        return
    lost = [text for text in (*required, *THOUGHT) if tokenizer.decode(tokenizer.encode_markup(text)) != text]
    if lost and not required:
        _LOGGER.warning(
            "the tokenizer in %s loses %s: encoded and decoded, it does not come back, so a reward that looks for it "
            "(format, correctness behind a thought) never sees it",
            tokenizer.folder,
            ", ".join(lost),
        )
    elif lost:
        lost = list(dict.fromkeys(lost))
        raise UserError(
            f"the tokenizer in {tokenizer.folder} loses {', '.join(lost)}: encoded and decoded, it does not come back, "
            "so no reward would see it; it must be a token that is not special, or spelled by others. Give the "
            "checkpoint's own files, or load_policy(tokenizer=FOLDER)"
        )


def _checked_device(given: str | torch.device) -> torch.device:
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {given!r} is not known; wanted cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {str(given)!r} is not supported; wanted cpu, cuda or cuda:N")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UserError(
            f"device {str(device)!r} was asked for, and torch sees {count} CUDA devices here; give cpu, install a CUDA "
            "build of torch with its driver, or look at CUDA_VISIBLE_DEVICES"
        )
    return device


def compile_blocks(module: nn.Module) -> list[str]:
    """Compile the numbered layers of a body, not those inside of them; names and adapters stay as they are.

    Returns:
        The layers' names.
    """
    blocks = [
        name
        for name, _ in module.named_modules()
        if name.rpartition(".")[2].isdigit() and not any(part.isdigit() for part in name.split(".")[:-1])
    ]
    for name in blocks:
        module.get_submodule(name).compile(dynamic=True)
    return blocks


def load_policy(
    path: str | Path,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    tokenizer: str | Path | TextTokenizer | None = None,
    vocabulary: Mapping[str, int] | None = None,
    image_tokenizer: Any = None,
    image_size: int = 512,
    image_fit: ImageFit | None = None,
    revision: str | None = None,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    use: str | None = None,
) -> TextPolicy:
    """Return the policy of a checkpoint, in evaluation mode.

    On CPU, weights whose dtype is the file's stay memory-mapped, so that processes on one machine share them.

    Args:
        path: a folder, ``asset:NAME``, or a hub id.
        dtype: float32 or bfloat16, by name or torch's own.
        device: cpu, cuda or cuda:N.
        tokenizer: a folder with tokenizer.json, where the checkpoint's own has none.
        vocabulary: ids by name (mask_token_id, eos_token_id, soi, image_offset, ...); they win over the files'.
        image_tokenizer: folder or hub id of the MAGVIT-v2 tokenizer, or an object with encode and decode.
        image_size: side in pixels of the squares that pictures become.
        image_fit: how they become squares; None is as the family's release does.
        revision: branch, tag or commit of a hub id.
        gradient_checkpointing: compute each block again in backward.
        compiled: run each block through torch.compile, at its first call; sums may round differently with and without
            gradient, so that a first ratio is 1 up to rounding only.
        use: the family, a file of `unigrpo.models.policies` or ``path/to/file.py:Class``; None is config.json's.

    Raises:
        MissingFileError: no such checkpoint or no weights in it.
        UserError: a family, config value, id or tensor that does not fit, pickled weights, or a device that this
            machine lacks.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; wanted {' or '.join(DTYPES)}")
    place = _checked_device(device)
    folder = resolve_folder(path, files=HUB_FILES, revision=revision)
    stored = read_config(folder)
    family = policy_family(stored, use)
    if image_fit is not None and family.abilities.pictures != "codes":
        raise UserError(f"image_fit {image_fit!r}: {path} makes no squares of pictures; leave it out")
    config = family.complete_config(stored, folder)
    module = empty_module(family, config)
    text_tokenizer = _find_tokenizer(folder, tokenizer)
    _check_text(text_tokenizer, family.required_text)
    ids = resolve_vocabulary(
        config,
        size=family.embedding_rows(config),
        tokenizer=text_tokenizer,
        overrides=vocabulary,
        codebook_size=family.codebook_size(config),
        token_text=family.token_text,
        ends=stored_ends(folder, config, stored),
    )
    weights.fill(module, folder, DTYPES[dtype], place, family.module_name)
    module.eval()
    digest = weights.weights_digest(module)
    pack_experts(module)
    if compiled:
        compile_blocks(module)
    policy = family(
        module=module,
        vocabulary=ids,
        tokenizer=text_tokenizer,
        source=str(path),
        image_size=image_size,
        image_fit=image_fit,
    )
    policy.folder, policy.revision = folder, revision
    policy.context_length = policy.context_length or context_length(config)
    policy.base_digest = digest
    policy.recompute_blocks(gradient_checkpointing)
    if isinstance(image_tokenizer, str | Path):
        from unigrpo.models.pictures.magvit import load_image_tokenizer

        image_tokenizer = load_image_tokenizer(image_tokenizer, device=str(place))
    policy.image_tokenizer = image_tokenizer
    return policy
