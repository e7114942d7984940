"""The page about the model families: ``python docs/generate/family_docs.py > docs/families.md``.

What a family can do is read from its class, so that the page cannot say more than the code does; where it was compared
with a reference and which checkpoints were released is said here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from unigrpo.models.families import family_name, import_family, untrained_tasks
from unigrpo.testing.tiny.families import TINY_FAMILIES

_INTRODUCTION = """\
# The model families

Made from the code by `python docs/generate/family_docs.py > docs/families.md`.

`load_policy` reads `config.json` and picks the family; weights come from safetensors, without remote code. Every row
passes `check_policy` and `check_sampler` on a random checkpoint of its released layout (`unigrpo make-tiny FAMILY
DIR`); where something trains, adapters load in plain PEFT under the released names and three steps run through the
trainer (`tests/test_families.py`). *Golden* names the folder of `tests/golden` whose logits and tokens, made by the
family's reference implementation, are met, or what else the arithmetic is compared with. `unigrpo
inspect MODEL` says the same of one checkpoint, and what memory it needs.

| family | load | text | understand | image | cache | train | golden | released |
|---|---|---|---|---|---|---|---|---|
"""
_LEGEND = """
*text*: chat in, text out; *understand*: pictures and text in, text out; *image*: text in, a picture out. *cache*: keys
and values that the sampler keeps, always with the tokens of a full pass. All families load in float32 and bfloat16.

- Tags of a thought (`<think>`) may be one token or several. Where a tokenizer marks them as special, no reward would
  see them: MMaDA, whose format needs them, is refused then; other families load with a warning.
- MMaDA-Parallel-M has MMaDA's own classes in its published code; MMaDA-Parallel-A and Lumina-DiMOO are another layout
  and are refused.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """What the code cannot know of a family."""

    title: str
    checkpoints: str
    golden: str | None = None
    """Folder of tests/golden."""
    compared_with: str = ""
    """Where there is no golden: what else the arithmetic is compared with."""


OWN_CLASS = "transformers' own class, enumeration"
BY_HAND = "`sdar_tiny`; experts: a slow loop"

RELEASED = {
    "llada": Released(title="LLaDA", checkpoints="8B Base, 8B Instruct, 1.5 8B", golden="llada_tiny"),
    "mmada": Released(title="MMaDA", checkpoints="8B Base, 8B MixCoT, Parallel-M", golden="mmada_tiny"),
    "dream": Released(title="Dream, DiffuCoder", checkpoints="7B", golden="dream_tiny"),
    "sdar": Released(title="SDAR, TraDo", checkpoints="1.7B, 4B, 8B", golden="sdar_tiny"),
    "sdar_moe": Released(title="SDAR, mixture of experts", checkpoints="30B-A3B", compared_with=BY_HAND),
    "llada_v": Released(title="LLaDA-V", checkpoints="8B", golden="lladav_tiny"),
    "lavida": Released(title="LaViDa", checkpoints="8B", golden="lavida_tiny"),
    "llada_moe": Released(title="LLaDA-MoE", checkpoints="7B-A1B", golden="lladamoe_tiny"),
    "llada2": Released(title="LLaDA2.0", checkpoints="mini, flash", golden="llada2_tiny"),
    "llada21": Released(title="LLaDA2.1", checkpoints="mini, flash", golden="llada21_tiny"),
    "diffusion_gemma": Released(title="DiffusionGemma", checkpoints="26B-A4B", golden="diffusion_gemma_tiny"),
    "showo": Released(title="Show-o", checkpoints="256 and 512 pixels, 1.3B", golden="showo_tiny"),
    "bert": Released(title="BERT and any `AutoModelForMaskedLM`", checkpoints="base, large", compared_with=OWN_CLASS),
    "modernbert": Released(title="ModernBERT", checkpoints="base, large", compared_with=OWN_CLASS),
}
"""By the short name of `TINY_FAMILIES`."""

NOT_MADE = (
    "Not SDAR 1.7B and 4B: no config.json of theirs was at hand that says whether the head is the embedding; "
    "`--width`, `--layers` and `KEY=VALUE` make any size."
)
"""What the table lists as released and `make-tiny` does not know."""

CACHES = (("hidden_cached", "finished blocks"), ("keep_prompts", "prompt"), ("denoise", "prompt and finished canvases"))
"""Method of a family's class, and what it lets the sampler keep."""


def render() -> str:
    """Return the page."""
    reasons: dict[str, None] = {}
    lines = []
    for short, released in RELEASED.items():
        config = TINY_FAMILIES[short].config
        family = import_family(family_name(config))
        untrained = untrained_tasks(config)
        can = {task: "yes" if task in family.tasks else "no" for task in ("reason", "understand", "imagine")}
        trained = [task for task in family.tasks if task not in untrained]
        reasons |= dict.fromkeys(untrained.values())
        train = "yes" if len(trained) == len(family.tasks) else ", ".join(trained) or "no"
        cache = next((what for method, what in CACHES if hasattr(family, method)), "no")
        golden = f"`{released.golden}`" if released.golden else released.compared_with
        cells = (
            f"{released.title} (`{short}`)",
            "yes",
            can["reason"],
            can["understand"],
            can["imagine"],
            cache,
            train,
            golden,
            released.checkpoints,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    notes = "".join(f"- {reason}.\n" for reason in reasons)
    return f"{_INTRODUCTION}{''.join(lines)}{_LEGEND}{notes}\n{_sizes()}"


def _sizes() -> str:
    """Say which released sizes can be made, and which not."""
    known = (f"`{short}` {', '.join(entry.releases)}" for short, entry in TINY_FAMILIES.items())
    return (
        "`unigrpo make-tiny FAMILY DIR --release SIZE` makes a random checkpoint of a released size: "
        f"{'; '.join(known)}. {NOT_MADE}\n"
    )


if __name__ == "__main__":
    sys.stdout.write(render())
