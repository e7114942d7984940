"""What a run learnt, for other tools: a PEFT adapter or merged weights, each with a model card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from unigrpo.errors import UserError
from unigrpo.files import new_folder
from unigrpo.models.files.folders import public_name
from unigrpo.runs.changes import described, read_history
from unigrpo.runs.checkpoint import FOLDER, Checkpoint, latest_checkpoint
from unigrpo.runs.directory import SUMMARY, read_run
from unigrpo.runs.nan_statistics import number_or_none
from unigrpo.runs.records import Summary, read_record
from unigrpo.settings.recipe import Recipe

_PLACE = re.compile(r"/\S*/[^\s{}]+")
"""A path from the root, of two parts at least."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_folder(path: Path) -> Path:
    """Return the PEFT folder at a path: itself, or the last checkpoint's of a run directory.

    Raises:
        UserError: if there is no adapter.
    """
    if (path / ADAPTER_FILES[1]).is_file():
        return path
    if (path / FOLDER).is_dir():
        return _adapter_of(_checkpoint_of(path))
    raise UserError(f"{path} holds no adapter; wanted a folder with {ADAPTER_FILES[1]}, or a run directory")


def export_run(run_dir: Path, out: Path, *, is_merged: bool) -> None:
    """Write the last whole checkpoint of a run into a new folder, which appears whole or not at all.

    Merged, it is whole weights in the released layout instead of the adapter.

    Raises:
        UserError: if the run has no whole checkpoint.
    """
    recipe = read_run(run_dir)
    checkpoint = _checkpoint_of(run_dir)
    with new_folder(out) as folder:
        if is_merged:
            _write_merged(recipe, checkpoint, folder)
        elif recipe.lora.enabled:
            for name in ADAPTER_FILES:
                shutil.copyfile(_adapter_of(checkpoint) / name, folder / name)
        else:
            raise UserError(f"{run_dir} trained all weights and has no adapter; give --merged for the whole weights")
        (folder / "README.md").write_text(model_card(recipe, checkpoint.step, run_dir, is_merged=is_merged))


def model_card(recipe: Recipe, step: int, run_dir: Path, *, is_merged: bool) -> str:
    """Return the README of an export: what it is, its scores, how to load it, how it was made."""
    is_adapter = not is_merged
    base, first = public_name(recipe.policy.path), recipe.policy.adapter
    front = {
        "base_model": base,
        "library_name": "peft" if is_adapter else "unigrpo",
        "tags": ["masked-diffusion", "reinforcement-learning", "unigrpo", *(["lora"] if is_adapter else [])],
    }
    made = "A LoRA adapter for" if is_adapter else "Weights trained from"
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {recipe.name}", ""]
    lines += [f"{made} `{base}`, after {step} steps of UniGRPO on {', '.join(recipe.tasks)}."]
    if first and is_adapter:
        lines += [f"The supervised adapter `{public_name(first)}` is merged into the base first.", ""]
    if scores := _scores(run_dir, step):
        lines += ["", "## Scores", "", "| held-out | before | after |", "|---|---|---|"]
        lines += [f"| {name} | {before} | {after} |" for name, before, after in scores]
    if changes := described(history.changes if (history := read_history(run_dir)) else ()):
        lines += ["", "## Changed while it was trained", ""]
        lines += [f"- `{key}`: {text}" for key, text in changes.items()]
    lines += ["", "## Use", "", *_use(recipe, is_adapter), "", "## Recipe", ""]
    values = _without_places(recipe.model_dump(mode="json", exclude_defaults=True))
    return "\n".join([*lines, "```yaml", yaml.safe_dump(values, sort_keys=False).strip(), "```", ""])


def _without_places(value: Any) -> Any:
    """Return a recipe's values with the name alone of every path of this machine, ``/place/file.py:Name`` included."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    is_place = isinstance(value, str) and "\n" not in value and (_PLACE.fullmatch(value) or Path(value).is_absolute())
    if is_place and (_PLACE.fullmatch(value) or Path(value).parent.exists()):
        return Path(value).name
    return value


def _use(recipe: Recipe, is_adapter: bool) -> list[str]:
    """Return the lines that show how to load an export, FOLDER being where it lies."""
    base = public_name(recipe.policy.path)
    settings = f'dtype="{recipe.policy.dtype}"'
    if recipe.policy.image_tokenizer:
        tokenizer = public_name(recipe.policy.image_tokenizer)
        settings += f', image_tokenizer="{tokenizer}", image_size={recipe.policy.image_size}'
        settings += f', image_fit="{recipe.policy.image_fit}"' if recipe.policy.image_fit else ""
    if not is_adapter:
        command = ["```", 'unigrpo sample FOLDER --task reason --prompt "..."', "```", ""]
        code = ["from unigrpo.models import load_policy", "", f'policy = load_policy("FOLDER", {settings})']
        return [*command, "```python", *code, "```"]
    first = f" --adapter {public_name(recipe.policy.adapter)}" if recipe.policy.adapter else ""
    merge_import = ["from unigrpo.models.adapter import merge_adapter"] if first else []
    merge = [f'merge_adapter(policy, "{public_name(recipe.policy.adapter)}")'] if recipe.policy.adapter else []
    return [
        "```",
        f'unigrpo sample {base}{first} --adapter FOLDER --task reason --prompt "..."',
        "```",
        "",
        "Or with plain PEFT on the policy's module:",
        "",
        "```python",
        "from unigrpo.models import load_policy",
        *merge_import,
        "from peft import PeftModel",
        "",
        f'policy = load_policy("{base}", {settings})',
        *merge,
        'PeftModel.from_pretrained(policy.module, "FOLDER")  # in place: policy.logits(token_ids) has the adapter',
        "```",
        "",
        "The adapter names its layers as the released class does. That class comes as remote code of the base's "
        "repository, which unigrpo does not run; loading the adapter onto it is not tested.",
    ]


def _scores(run_dir: Path, step: int) -> list[tuple[str, str, str]]:
    """Return the held-out scores, if they are of that step's weights."""
    path = run_dir / SUMMARY
    if not path.is_file():
        return []
    summary = read_record(Summary, path, "delete it, and resume the run to write it again").model_dump()
    if summary["num_steps"] != step:
        return []

    def shown(part: str, name: str) -> str:
        number = number_or_none((summary.get(part) or {}).get(name))
        return "-" if number is None else f"{number:.3f}"

    names = [name for name in summary.get("eval_after") or {} if name.endswith(("/reward", "/accuracy"))]
    return [(name, shown("eval_before", name), shown("eval_after", name)) for name in names]


def _checkpoint_of(run_dir: Path) -> Checkpoint:
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        raise UserError(f"{run_dir} has no whole checkpoint yet; train until the first one (checkpoint.every)")
    return checkpoint


def _adapter_of(checkpoint: Checkpoint) -> Path:
    for file in sorted(checkpoint.folder.rglob(ADAPTER_FILES[1])):
        return file.parent
    raise UserError(f"{checkpoint.folder} holds no adapter: that run trained all weights")


def _write_merged(recipe: Recipe, checkpoint: Checkpoint, folder: Path) -> None:
    from safetensors.torch import load_file

    from unigrpo.models.adapter import merge_adapter, save_merged, set_trainable_state
    from unigrpo.models.opening import open_policy

    policy: Any = open_policy(recipe.policy, recipe.lora, recipe.seed, is_frozen=True)
    if recipe.lora.enabled:
        merge_adapter(policy, _adapter_of(checkpoint))
    else:
        set_trainable_state(policy, load_file(checkpoint.folder / "model.safetensors"))
    save_merged(policy, folder)
