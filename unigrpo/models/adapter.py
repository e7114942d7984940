"""LoRA adapters in PEFT's layout: put on, switched off for the reference, exchanged, saved, merged.

PEFT is imported only when an adapter is put on or saved; full fine-tuning goes through `trainable_state` without it.
Adapter weights are float32 whatever the base is, because a bfloat16 weight loses the small updates of RL.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file, replacing, sha256_of
from unigrpo.models.files import headers, weights
from unigrpo.models.files.folders import public_name, read_json, resolve_folder
from unigrpo.models.loading import HUB_FILES, read_config
from unigrpo.types import PolicyVersion

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.settings.policy import LoraSettings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
FORMAT = {"format": "pt"}
"""What transformers asks for in the head of a safetensors file."""
PREFIX = "base_model.model."
"""What PEFT puts before the base's own names."""
NAME = "default"
"""PEFT's name of the one adapter; it stands in module names and not in files."""
COPIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
REMOTE_CODE = ("auto_map", "_name_or_path", "name_or_path")
"""Keys of config files that name code or folders which do not come with the weights."""
BASE = "unigrpo.base"
"""Of the metadata of an adapter's file: digest and names of its base. The one key, since the format keeps no order of
several, and the same adapter is the same file."""
UNMERGED_OPTIONS = ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
"""Options of adapter_config.json under which W + scale B A is not the merged weight."""


def _target_names(policy: Policy, targets: list[str] | None) -> list[str]:
    """Return full module names; a short name means the layers of that name in the blocks."""
    if targets is None:
        return policy.lora_targets
    linears = [
        name
        for name, layer in policy.module.named_modules()
        if isinstance(layer, nn.Linear) and not name.startswith(policy.frozen_parts)
    ]
    names: list[str] = []
    for target in targets:
        found = [target] if target in linears else [name for name in policy.lora_targets if name.endswith("." + target)]
        if not found:
            raise UserError(_no_target(policy, target, linears))
        names += found
    return sorted(set(names))


def _no_target(policy: Policy, target: str, linears: list[str]) -> str:
    """Return why a name is no target, with the way out: LoRA wraps linear layers, and experts by full names alone."""
    in_experts = [name for name in linears if name.endswith("." + target)]
    fused = [
        name
        for name, parameter in policy.module.named_parameters()
        if (name == target or name.endswith("." + target)) and parameter.dim() > 1
    ]
    wanted = f"wanted {', '.join(sorted({name.rsplit('.', 1)[-1] for name in policy.lora_targets}))} or a full name"
    if in_experts:
        return (
            f"lora.targets has {target!r}, which only routed experts or frozen parts have: {len(in_experts)} layers; "
            f"give the full names of those that you mean, such as {in_experts[0]}; {wanted}"
        )
    if fused:
        return (
            f"lora.targets has {target!r}, which is one tensor and no linear layer ({fused[0]}), so that LoRA cannot "
            f"wrap it; leave it out, or train all weights with lora.enabled: false; {wanted}"
        )
    return f"lora.targets has {target!r}, no linear layer; {wanted}"


def _peft_settings(lora: LoraSettings, names: list[str]) -> dict[str, Any]:
    """Return PEFT's own settings; alpha is an integer where it can be, as other readers of the layout expect."""
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    return {"r": lora.r, "lora_alpha": alpha, "target_modules": names, "lora_dropout": 0.0, "bias": "none"}


def _lora_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's live weights under PEFT's file names, in name order."""
    named = {
        PREFIX + name.replace(f".{NAME}.", "."): parameter
        for name, parameter in module.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    return dict(sorted(named.items()))


def add_lora(policy: Policy, lora: LoraSettings, seed: int) -> None:
    """Put a fresh adapter on a policy, in place, and freeze its base.

    B is zero, so the output is the base's bit by bit; A is drawn by a private generator, so the global random state
    stays as it was; dropout is 0, so that old, policy and reference agree.

    Raises:
        UserError: a second adapter, or a target that is no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if policy.adapter is not None:
        raise UserError(f"{policy.source} has an adapter already; merge it into the base first (merge_adapter)")
    names = _target_names(policy, lora.targets)
    config = LoraConfig(**_peft_settings(lora, names))
    cuda = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        inject_adapter_in_model(config, policy.module, adapter_name=NAME)
    generator = torch.Generator().manual_seed(seed)
    for layer in policy.module.modules():
        for part in ("lora_A", "lora_B"):
            if isinstance(getattr(layer, part, None), nn.ModuleDict):
                getattr(layer, part).float()
    for name, parameter in _lora_parameters(policy.module).items():
        # kaiming_uniform with a = sqrt(5), PEFT's own start: bound 1 / sqrt(fan in)
        bound = 1.0 / math.sqrt(parameter.shape[1])
        is_first = ".lora_A." in name
        drawn = (torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound if is_first else None
        with torch.no_grad():
            parameter.zero_() if drawn is None else parameter.copy_(drawn)
    policy.module.train(False)
    policy.adapter = lora.model_copy(update={"targets": names})


@contextmanager
def adapter_disabled(policy: Policy) -> Iterator[None]:
    """Give the base's output, bit by bit, inside the context: the reference of a LoRA run.

    Raises:
        UserError: the policy has no adapter, hence no base beside itself.
    """
    if policy.adapter is None:
        raise UserError(
            f"{policy.source or 'the policy'} has no adapter to switch off; a full fine-tune needs a frozen copy as "
            "reference"
        )
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in policy.module.modules() if isinstance(layer, LoraLayer)]
    parameters = _lora_parameters(policy.module).values()
    trained = [parameter.requires_grad for parameter in parameters]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, is_trained in zip(parameters, trained, strict=True):
            parameter.requires_grad_(is_trained)


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in sorted(state)}


def _copy_into(live: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in live.items()}
    weights.compare_shapes(wanted, {name: tuple(tensor.shape) for name, tensor in state.items()}, what)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(state[name])


def adapter_state(policy: Policy) -> dict[str, Tensor]:
    """Return copies on CPU of the adapter's weights under PEFT's names, in name order.

    Raises:
        UserError: no adapter.
    """
    if policy.adapter is None:
        raise UserError(f"{policy.source or 'the policy'} has no adapter; add_lora puts one on")
    return _copies(_lora_parameters(policy.module))


def set_adapter_state(policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Write an adapter's weights into the live ones, in place, so that an optimiser keeps its references.

    Raises:
        UserError: no adapter, or names or shapes that differ.
    """
    if policy.adapter is None:
        raise UserError(f"{policy.source or 'the policy'} has no adapter to fill; add_lora puts one on")
    _copy_into(_lora_parameters(policy.module), state, "the adapter state")


def trainable_state(policy: Policy) -> dict[str, Tensor]:
    """Return copies on CPU of what trains: the adapter, or all weights of a policy without one."""
    return _copies(policy.module.state_dict()) if policy.adapter is None else adapter_state(policy)


def set_trainable_state(policy: Policy, state: Mapping[str, Tensor]) -> None:
    """Write what `trainable_state` returned into the live weights.

    Raises:
        UserError: names or shapes that differ.
    """
    if policy.adapter is None:
        _copy_into(policy.module.state_dict(), state, "the policy state")
    else:
        set_adapter_state(policy, state)


def state_version(state: Mapping[str, Tensor], step: int, kind: Literal["adapter", "full"]) -> PolicyVersion:
    """Return the version of delivered weights: sha256 over names, shapes, dtypes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return PolicyVersion(step=step, kind=kind, sha256=digest.hexdigest())


def save_adapter(policy: Policy, folder: str | Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which plain PEFT loads on the same base.

    Raises:
        UserError: no adapter.
    """
    from peft import LoraConfig

    state = adapter_state(policy)
    lora = policy.adapter
    assert lora is not None  # adapter_state refuses a policy without one
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        **_peft_settings(lora, lora.targets or []),
        base_model_name_or_path=" + ".join(policy.base_names),  # a stack is no name that anything loads by itself
        revision=policy.revision,
        inference_mode=True,
    )
    content = config.to_dict()
    content["target_modules"] = sorted(content["target_modules"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    base = f"{policy.base_digest} {' + '.join(policy.base_names)}"
    weights.write_tensors(state, folder / ADAPTER_WEIGHTS, {BASE: base})


def _read_rank_and_scale(path: Path) -> tuple[int, float]:
    """Return the rank and the factor of B A that an adapter_config.json asks for."""
    content = read_json(path)
    if content.get("peft_type") != "LORA":
        raise UserError(f"{path} is of type {content.get('peft_type')!r}; only LORA is merged here")
    refused = [key for key in UNMERGED_OPTIONS if content.get(key)]
    if content.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise UserError(
            f"{path} sets {', '.join(refused)}, which is not merged here; merge it with PEFT, give the result"
        )
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path} has r = {rank!r} and lora_alpha = {alpha!r}; wanted a whole number and a number")
    return rank, float(alpha) / (math.sqrt(rank) if content.get("use_rslora") else rank)


def merge_adapter(policy: Policy, folder: str | Path) -> None:
    """Add a saved adapter to the base's weights, W + scale B A, computed in float32; no PEFT state is left.

    The policy has no adapter of its own; the folder is in PEFT layout, safetensors only.

    Raises:
        MissingFileError: no adapter in the folder.
        UserError: a kind of adapter that is not merged here, tensors that do not fit the base, or an adapter that says
            that it was trained on another base.
    """
    if policy.adapter is not None:
        raise UserError(f"{policy.source} has an adapter of its own; merge {folder} before add_lora")
    path = resolve_folder(folder, files=HUB_FILES)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not optional_file(path / name):
            raise MissingFileError(f"{path} has no {name}; wanted an adapter in PEFT layout, safetensors only")
    rank, scale = _read_rank_and_scale(path / ADAPTER_CONFIG)
    _require_base(policy, path / ADAPTER_WEIGHTS)
    stored = headers.read_headers([path / ADAPTER_WEIGHTS])
    headers.require_reals(stored, list(stored))
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    linears = {name: layer for name, layer in policy.module.named_modules() if isinstance(layer, nn.Linear)}
    targets = sorted({name.removeprefix(PREFIX).partition(".lora_")[0] for name in shapes})
    unknown = [name for name in targets if name not in linears]
    if unknown:
        raise UserError(f"the adapter {path} is for {headers.describe(unknown)}, no linear layers of {policy.source}")
    wanted: dict[str, tuple[int, ...]] = {}
    for name in targets:
        wanted[f"{PREFIX}{name}.lora_A.weight"] = (rank, linears[name].in_features)
        wanted[f"{PREFIX}{name}.lora_B.weight"] = (linears[name].out_features, rank)
    weights.compare_shapes(wanted, shapes, str(path))
    state = dict(weights.read_tensors([path / ADAPTER_WEIGHTS], frozenset(wanted), torch.float32, policy.device))
    with torch.no_grad():
        for name in targets:
            delta = state[f"{PREFIX}{name}.lora_B.weight"] @ state[f"{PREFIX}{name}.lora_A.weight"]
            weight = linears[name].weight
            weight.copy_(weight.float() + scale * delta)
    digest = sha256_of(path / ADAPTER_WEIGHTS)
    policy.base_digest = hashlib.sha256(f"{policy.base_digest} {digest} {scale}".encode()).hexdigest()
    policy.base_names = (*policy.base_names, public_name(str(folder)))


def _require_base(policy: Policy, file: Path) -> None:
    """Refuse an adapter whose file says that its base had other weights; files of other programs do not say."""
    digest, _, names = headers.read_metadata(file).get(BASE, "").partition(" ")
    if digest and policy.base_digest and digest != policy.base_digest:
        raise UserError(
            f"{file} was trained on {names} and this base is {' + '.join(policy.base_names)}, whose "
            "weights are others; load that base, with its adapters in that order, and then this one"
        )


def _merged_state(policy: Policy) -> dict[str, Tensor]:
    """Return all weights, tied ones once, with the adapter, if any, added; the policy itself is left as it is."""
    state: dict[str, Tensor] = {}
    for name, tensor in policy.module.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = tensor.detach()
    if policy.adapter is not None:
        scale = policy.adapter.alpha / policy.adapter.r
        lora = {name: parameter.detach() for name, parameter in _lora_parameters(policy.module).items()}
        for target in policy.adapter.targets or ():
            delta = lora[f"{PREFIX}{target}.lora_B.weight"] @ lora[f"{PREFIX}{target}.lora_A.weight"]
            weight = state[f"{target}.weight"]
            state[f"{target}.weight"] = (weight.float() + scale * delta).to(weight.dtype)
    for first, *others in weights.tied_names(policy.module):
        for name in others:
            if state[name].data_ptr() == state[first].data_ptr():
                del state[name]
    return {name: state[name].cpu().contiguous() for name in sorted(state)}


def save_merged(policy: Policy, folder: str | Path) -> None:
    """Write a whole checkpoint, adapter included, that `load_policy` reads: weights, config, tokenizer files.

    Raises:
        UserError: a policy that was not loaded from a folder, so that its config is not known.
    """
    if policy.folder is None:
        raise UserError("the policy was not loaded from a folder, so there is no config.json to copy; use load_policy")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = _merged_state(policy)
    # The base may be mapped from a file of this very name: never cut that file short, put a new one in its place.
    with replacing(folder / headers.WEIGHTS) as temporary:
        weights.write_tensors(state, temporary, FORMAT)
    config = policy.complete_config(read_config(policy.folder), policy.folder)
    config = {key: value for key, value in config.items() if key not in REMOTE_CODE}
    config["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sources = [policy.folder]
    if policy.tokenizer is not None and policy.tokenizer.folder is not None:
        sources.append(policy.tokenizer.folder)
    for source in sources:
        for name in COPIED_FILES:
            if (source / name).is_file() and source.resolve() != folder.resolve():
                _copy_without_code(source / name, folder / name)


def _copy_without_code(source: Path, target: Path) -> None:
    """Copy a file; of a tokenizer's settings without those that name code or folders of the machine it comes from."""
    content = read_json(source) if source.name == "tokenizer_config.json" else {}
    if content.keys().isdisjoint(REMOTE_CODE):
        shutil.copyfile(source, target)
        return
    kept = {key: value for key, value in content.items() if key not in REMOTE_CODE}
    target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
