"""The page about the model families: ``python docs/generate/family_docs.py > docs/families.md``.

All of it is read from the families' classes, so that the page cannot say more than the code does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import get_args

from unigrpo.models.families import abilities, known_families
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.types import TaskKind

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
_GREEDY = """\
- Evaluation's greedy pass takes each completion at temperature 0, with the task's other settings. Where a family's
  release evaluates with settings of its own, these take their place there, and there alone (`greedy` of its class):
"""
_LEGEND = """
*text*: chat in, text out; *understand*: pictures and text in, text out; *image*: text in, a picture out. *cache*: keys
and values that the sampler keeps, always with the tokens of a full pass. All families load in float32 and bfloat16.

- Tags of a thought (`<think>`) may be one token or several. Where a tokenizer marks them as special, no reward would
  see them: MMaDA, whose format needs them, is refused then; other families load with a warning.
- Pictures are read from PNG, JPEG, WebP, GIF, BMP and TIFF, of several frames the first, up to `data.max_pixels`; they
  are turned as the camera says, 16-bit gray is scaled and transparency laid on white, for policies and rewards alike.
- Pictures that are read by codes become squares: MMaDA's and Show-o's releases crop the middle, so that is the default.
  MMaDA's own scripts squash pictures whose file or data set has `ai2d`, `clevr`, `docvqa`, `geo` or `llava` in its
  name, and pad Geo170K with white in stage 4: set `data.image_fit: squash` or `pad` for these. LLaDA-V and LaViDa cut
  pictures into tiles and have no such setting.
- Only the chat template makes control tokens: the name of one in a prompt, an earlier turn, a caption or a
  demonstration is tokenized as plain text, as with transformers' `split_special_tokens`. Control tokens are those that
  the tokenizer marks as special, and those whose ids the vocabulary reserves (mask, ends, padding, start, headers,
  picture marks), marked or not. Where a message has a picture, `<image>` in its text says where it stands.
- A text ends at the first of all its ends: every `eos_token_id` of config.json and generation_config.json, an id or a
  list, and the end of a turn (`<|eot_id|>`, `<|im_end|>`, `<|role_end|>`, `<turn|>`). What follows is tail: neither
  scored nor shown to a reward.
- A prompt may have what `max_sequence_length` or `max_position_embeddings` leaves beside the completion, or
  `data.max_prompt_tokens`; `data.too_long` says whether a longer one is refused, left out or cut.
- LoRA wraps every linear layer of the numbered blocks, those of a shared expert with them; not the head, a vision
  encoder or projector, nor a router. It leaves routed experts frozen, too: there are hundreds, and in one update most
  get few tokens or none. `lora.targets` may give an expert's layers by their full names; a short name that only
  experts have, or a parameter that is no linear layer, is refused. `unigrpo inspect MODEL` counts both.
- MMaDA-Parallel-M has MMaDA's own classes in its published code; MMaDA-Parallel-A and Lumina-DiMOO are another layout
  and are refused.
"""


NOT_MADE = (
    "Not SDAR 1.7B and 4B: no config.json of theirs was at hand that says whether the head is the embedding; "
    "`--width`, `--layers` and `KEY=VALUE` make any size."
)
"""What the table lists as released and `make-tiny` does not know."""


def render() -> str:
    """Return the page."""
    reasons: dict[str, None] = {}
    lines = []
    for short, layout in layouts().items():
        can = abilities(layout.family)
        reasons |= {can.why_untrained: None} if can.untrained else {}
        train = "yes" if can.trained == can.tasks else ", ".join(can.trained) or "no"
        golden = f"`{layout.golden}`" if layout.golden else layout.compared_with
        cells = (
            f"{layout.title} (`{short}`)",
            "yes",
            *("yes" if task in can.tasks else "no" for task in get_args(TaskKind)),
            can.cached or "no",
            train,
            golden,
            layout.checkpoints,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    notes = "".join(f"- {reason}.\n" for reason in reasons) + _GREEDY + "".join(_greedy())
    return f"{_INTRODUCTION}{''.join(lines)}{_LEGEND}{notes}\n{_sizes()}"


def _greedy() -> Iterator[str]:
    """Say with which settings a family is evaluated, where it has its own."""
    for name, said in known_families().items():
        if "greedy" in said:
            yield f"  `{name}` {', '.join(f'{key} {value}' for key, value in said['greedy'].items())}.\n"


def _sizes() -> str:
    """Say which released sizes can be made, and which not."""
    known = (f"`{short}` {', '.join(entry.releases)}" for short, entry in layouts().items())
    return (
        "`unigrpo make-tiny FAMILY DIR --release SIZE` makes a random checkpoint of a released size: "
        f"{'; '.join(known)}. {NOT_MADE}\n"
    )


if __name__ == "__main__":
    sys.stdout.write(render())
