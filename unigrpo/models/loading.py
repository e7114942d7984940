"""From a path to a policy: the family by config.json, weights from safetensors only, no remote code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from unigrpo.models import weights
from unigrpo.models.llada import Llada, LladaConfig, LladaPolicy
from unigrpo.models.mmada import MmadaPolicy
from unigrpo.models.tokenizer import TextTokenizer
from unigrpo.models.vocabulary import resolve_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAMILIES: dict[str, type[LladaPolicy]] = {
    "llada": LladaPolicy,
    "LLaDAModelLM": LladaPolicy,
    "mmada": MmadaPolicy,
    "MMadaModelLM": MmadaPolicy,
}
"""Policy class by config.json's `model_type` or by its first architecture."""

ASSET = "asset:"
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]


def resolve_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        path: a folder, ``asset:NAME`` (ships with the package), or a hub id ``OWNER/NAME``, which is downloaded
            (json, safetensors and jinja files only).
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: no such folder, asset or hub id, or no way to reach the hub.
    """
    text = str(path)
    if text.startswith(ASSET):
        folder = Path(str(resources.files("unigrpo.assets"))) / text.removeprefix(ASSET)
        if not folder.is_dir():
            known = sorted(entry.name for entry in folder.parent.iterdir() if (entry / "config.json").is_file())
            raise FileNotFoundError(f"no asset {text!r} ships with the package; it has {', '.join(known) or 'none'}")
        return folder
    if Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    if isinstance(path, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise FileNotFoundError(f"{text} is no folder; wanted a checkpoint folder, asset:NAME or a hub id OWNER/NAME")
    return _download(text, revision)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{hub_id!r} is no folder here and could not be downloaded from the hub ({type(error).__name__}: {error}); "
            "check the name and the network, or give the folder of a downloaded checkpoint"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        FileNotFoundError: there is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; wanted a checkpoint folder in the released layout")
    return json.loads(path.read_text(encoding="utf-8"))


def policy_family(config: Mapping[str, Any]) -> type[LladaPolicy]:
    """Return the policy class that a config.json asks for.

    Raises:
        ValueError: a family that is not known here.
    """
    named = [config.get("model_type"), *(config.get("architectures") or [])]
    for name in named:
        if name in FAMILIES:
            return FAMILIES[name]
    raise ValueError(f"config.json names the family {named}; known here are {', '.join(FAMILIES)}")


def _empty_module(config: Mapping[str, Any]) -> Llada:
    with torch.device("meta"):
        return Llada(LladaConfig.from_dict(config))


def policy_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a config, of any size: nothing is allocated."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_module(config).state_dict().items()}


def _find_tokenizer(folder: Path, tokenizer: str | Path | TextTokenizer | None) -> TextTokenizer | None:
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if tokenizer is not None:
        return TextTokenizer.from_folder(resolve_folder(tokenizer))
    return TextTokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None


def load_policy(
    path: str | Path,
    dtype: str = "bfloat16",
    device: str | torch.device = "cpu",
    tokenizer: str | Path | TextTokenizer | None = None,
    vocabulary: Mapping[str, int] | None = None,
    image_tokenizer: Any = None,
    image_size: int = 512,
    revision: str | None = None,
    gradient_checkpointing: bool = False,
) -> LladaPolicy:
    """Return the policy of a checkpoint, in evaluation mode.

    On CPU, weights whose dtype is the file's stay memory-mapped, so that processes on one machine share them.

    Args:
        path: a folder, ``asset:NAME``, or a hub id.
        dtype: float32 or bfloat16.
        device: cpu, cuda or cuda:N.
        tokenizer: a folder with tokenizer.json, where the checkpoint's own has none.
        vocabulary: ids by name (mask_token_id, eos_token_id, soi, image_offset, ...); they win over the files'.
        image_tokenizer: folder or hub id of the MAGVIT-v2 tokenizer, or an object with encode and decode.
        image_size: side in pixels to which the pictures of prompts are resized and cropped.
        revision: branch, tag or commit of a hub id.
        gradient_checkpointing: compute each block again in backward.

    Raises:
        FileNotFoundError: no such checkpoint or no weights in it.
        ValueError: a family, config value, id or tensor that does not fit, or pickled weights.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; wanted {' or '.join(DTYPES)}")
    folder = resolve_folder(path, revision)
    config = read_config(folder)
    family = policy_family(config)
    module = _empty_module(config)
    text_tokenizer = _find_tokenizer(folder, tokenizer)
    ids = resolve_vocabulary(
        config,
        size=module.config.embedding_size,
        tokenizer=text_tokenizer,
        overrides=vocabulary,
        codebook_size=family.codebook_size(config),
    )
    weights.fill(module, folder, DTYPES[dtype], torch.device(device))
    module.is_checkpointing = gradient_checkpointing
    module.eval()
    policy = family(module=module, vocabulary=ids, tokenizer=text_tokenizer, source=str(path), image_size=image_size)
    policy.folder, policy.revision = folder, revision
    if isinstance(image_tokenizer, str | Path):
        from unigrpo.models.magvit import load_image_tokenizer

        image_tokenizer = load_image_tokenizer(resolve_folder(image_tokenizer))
    policy.image_tokenizer = image_tokenizer
    return policy
