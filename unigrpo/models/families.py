"""Which class reads which checkpoint: a table of names, so that a family is imported only when one of its is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

from unigrpo.errors import UserError
from unigrpo.types import Task

if TYPE_CHECKING:
    from unigrpo.models.text_policy import TextPolicy

TASKS: tuple[Task, ...] = get_args(Task)
FAMILIES: dict[str, str] = {
    "llada": "unigrpo.models.policies.llada:LladaPolicy",
    "LLaDAModelLM": "unigrpo.models.policies.llada:LladaPolicy",
    "mmada": "unigrpo.models.policies.mmada:MmadaPolicy",
    "MMadaModelLM": "unigrpo.models.policies.mmada:MmadaPolicy",
    "Dream": "unigrpo.models.policies.dream:DreamPolicy",
    "dream": "unigrpo.models.policies.dream:DreamPolicy",
    "DreamModel": "unigrpo.models.policies.dream:DreamPolicy",
    "sdar": "unigrpo.models.policies.sdar:SdarPolicy",
    "SDARForCausalLM": "unigrpo.models.policies.sdar:SdarPolicy",
    "sdar_moe": "unigrpo.models.policies.sdar:SdarPolicy",
    "SDARMoeForCausalLM": "unigrpo.models.policies.sdar:SdarPolicy",
    "LlavaLLaDAModelLM": "unigrpo.models.policies.llada_v:LladaVPolicy",
    "LlavaLladaForMaskedDiffusion": "unigrpo.models.policies.lavida:LavidaPolicy",
    "lladamoe": "unigrpo.models.policies.llada_moe:LladaMoePolicy",
    "LLaDAMoEModelLM": "unigrpo.models.policies.llada_moe:LladaMoePolicy",
    "llada2_moe": "unigrpo.models.policies.llada2:Llada2Policy",
    "llada21_moe": "unigrpo.models.policies.llada2:Llada2Policy",
    "LLaDA2MoeModelLM": "unigrpo.models.policies.llada2:Llada2Policy",
    "diffusion_gemma": "unigrpo.models.policies.diffusion_gemma:DiffusionGemmaPolicy",
    "DiffusionGemmaForBlockDiffusion": "unigrpo.models.policies.diffusion_gemma:DiffusionGemmaPolicy",
    "Showo": "unigrpo.models.policies.showo:ShowoPolicy",
    "bert": "unigrpo.models.policies.masked_lm:MaskedLmPolicy",
    "modernbert": "unigrpo.models.policies.masked_lm:MaskedLmPolicy",
}
"""Policy class by config.json's `model_type`, its first architecture, or (diffusers) its `_class_name`."""

UNIFORM_CORRUPTION = (
    "DiffusionGemma is noised with random ids, not with a mask token, and no estimator here scores that; it generates "
    "only"
)
NEXT_TOKEN_TEXT = (
    "Show-o predicts text from what stands before it, so a masked token says nothing about it; its text can be "
    "evaluated, its pictures train"
)
UNTRAINED_TASKS: dict[str, dict[Task, str]] = {
    "unigrpo.models.policies.diffusion_gemma:DiffusionGemmaPolicy": dict.fromkeys(TASKS, UNIFORM_CORRUPTION),
    "unigrpo.models.policies.showo:ShowoPolicy": dict.fromkeys(("reason", "understand"), NEXT_TOKEN_TEXT),
}
"""Why the learner refuses a task of a family."""

MIXTURE_OF_EXPERTS = "LLaDAMoEModelLM"
MASKED_LM = "ForMaskedLM"
MASKED_LM_FAMILY = "unigrpo.models.policies.masked_lm:MaskedLmPolicy"
"""Any architecture of this ending is read through transformers' own class."""

NOT_READ = {
    "LLaDAForMultiModalGeneration": "Lumina-DiMOO and MMaDA-Parallel-A, whose pictures have tokens and ids of their own"
}
"""Architectures that write a known model type although they are something else."""

FOREIGN_TYPES = ("llama", "qwen2", "qwen3", "gpt2")
"""Model types of other families, whose layers differ; under these no known architecture is believed."""


def family_name(config: Mapping[str, Any]) -> str:
    """Return the "module:Class" that a config.json asks for.

    Raises:
        ValueError: a family that is not known here, or model type and architecture of two families.
    """
    model_type = config.get("model_type")
    architectures = list(config.get("architectures") or [])
    strange = [f"{name} ({NOT_READ[name]})" for name in architectures if name in NOT_READ]
    if strange:
        raise UserError(f"config.json is of {strange[0]}, which is not read here")
    if model_type == "llada" and MIXTURE_OF_EXPERTS in architectures:
        model_type = None  # its own configuration class is called LLaDAConfig, and may have written LLaDA's type
    diffusers = [config["_class_name"]] if "_class_name" in config else []
    named = [model_type, *architectures, *diffusers]
    known = [FAMILIES[name] for name in named if name in FAMILIES]
    known += [MASKED_LM_FAMILY for name in architectures if str(name).endswith(MASKED_LM)]
    if len(set(known)) > 1 or (known and model_type in FOREIGN_TYPES):
        raise UserError(
            f"config.json contradicts itself: model_type {model_type!r}, architectures {named[1:]}; set model_type to "
            "the family of the architecture"
        )
    if known:
        return known[0]
    raise UserError(f"config.json names the family {named}; known here are {', '.join(FAMILIES)}")


def is_known(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json names a family, and one only."""
    try:
        family_name(config)
    except ValueError:
        return False
    return True


def untrained_tasks(config: Mapping[str, Any]) -> Mapping[Task, str]:
    """Return the tasks that a config.json's family cannot train, each with the reason; torch is not imported.

    Raises:
        ValueError: a family that is not known here.
    """
    return UNTRAINED_TASKS.get(family_name(config), {})


def trains(family: type) -> bool:
    """Return whether the learner trains any task of a policy class."""
    return set(TASKS) > UNTRAINED_TASKS.get(f"{family.__module__}:{family.__qualname__}", {}).keys()


def import_family(name: str) -> type[TextPolicy]:
    """Return the class of a "module:Class" of the table."""
    module, _, class_name = name.partition(":")
    family: type[TextPolicy] = getattr(import_module(module), class_name)
    return family


def policy_family(config: Mapping[str, Any]) -> type[TextPolicy]:
    """Return the policy class that a config.json asks for.

    Raises:
        ValueError: a family that is not known here, or model type and architecture of two families.
    """
    return import_family(family_name(config))
