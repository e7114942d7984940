"""Prompts over what a policy's rows can hold are refused by file and line, left out or cut, before anything runs."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unigrpo.data.limits import most_tokens, within_limits
from unigrpo.data.sources import PromptSource, load_prompts
from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.models.files.config_file import context_length
from unigrpo.models.text_policy import TextPolicy
from unigrpo.recipe.load import load_recipe
from unigrpo.runs.directory import create_run_dir
from unigrpo.runs.run import open_run
from unigrpo.settings.tasks import DataSettings, SamplingSettings
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.types import Message, Prompt, TaskKind

LONG = "long word " * 20_000
TEMPLATE = "Keep this. {prompt} And this."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llada", tmp_path_factory.mktemp("policies") / "llada", changes={"max_sequence_length": 100})


@pytest.fixture(scope="module")
def policy(folder: Path) -> TextPolicy:
    return load_policy(folder, dtype="float32")


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def limited(policy: TextPolicy, settings: DataSettings, kind: TaskKind = "reason", **given: Any) -> PromptSource:
    source = load_prompts(settings, kind, kind, given.pop("split", "eval"), 0)
    return within_limits(source, policy, settings, task=kind, completion_length=20, **given)


def rows_of(source: PromptSource) -> list[str]:
    return [source[index].text for index in range(source.num_prompts or 0)]


def test_long_prompt_is_refused_with_file_line_and_count(policy: TextPolicy, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "short"}, {"prompt": LONG})
    num_tokens = policy.num_prompt_tokens(Prompt(id="p", kind="reason", messages=(Message(role="user", text=LONG),)))
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: the prompt has {num_tokens} tokens.*over 80 \(what the 100"):
        limited(policy, DataSettings(eval_jsonl=path))


def test_long_prompt_is_left_out_and_counted(
    policy: TextPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "one"}, {"prompt": LONG}, {"prompt": "three"})
    with caplog.at_level(logging.WARNING):
        source = limited(policy, DataSettings(eval_jsonl=path, too_long="skip"))
    assert rows_of(source) == ["one", "three"]
    assert "1 of 3 prompts are too long and left out" in caplog.text
    trained = limited(policy, DataSettings(jsonl=path, too_long="skip"), split="train")
    assert {trained[index].text for index in range(4)} == {"one", "three"}
    with pytest.raises(UserError, match=r"no prompt of task 'reason' is left; .*all\.jsonl:1"):
        limited(policy, DataSettings(eval_jsonl=write(tmp_path / "all.jsonl", {"prompt": LONG}), too_long="skip"))


def test_cut_prompt_ends_as_it_did_keeps_the_template_and_is_as_long_as_it_may(
    policy: TextPolicy, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "a < b <|eot_id|> " * 40 + "the question"})
    settings = DataSettings(eval_jsonl=path, template=TEMPLATE, too_long="cut", max_prompt_tokens=60)
    (text,) = rows_of(limited(policy, settings))
    assert text.startswith("Keep this. ") and text.endswith("the question And this.")
    asked = Prompt(id="p", kind="reason", messages=(Message(role="user", text=text),))
    start = len("Keep this. ")
    longer = Message(role="user", text=f"{text[:start]}zz{text[start:]}")
    assert (
        policy.num_prompt_tokens(asked)
        <= 60
        < policy.num_prompt_tokens(Prompt(id="p", kind="reason", messages=(longer,)))
    )
    canvas = policy.encode(asked, SamplingSettings(completion_length=20, num_denoising_steps=20))
    assert canvas.open_spans[0].start == policy.num_prompt_tokens(asked)


def test_cut_takes_the_oldest_of_the_users_turns_and_no_other(policy: TextPolicy, tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("user", LONG), ("assistant", "yes"), ("user", "and now?")]
    row = {"prompt": [{"role": role, "content": text} for role, text in turns]}
    source = limited(policy, DataSettings(eval_jsonl=write(tmp_path / "rows.jsonl", row), too_long="cut"))
    system, first, assistant, last = (message.text for message in source[0].messages)
    assert (system, assistant, last) == ("be kind", "yes", "and now?")
    assert len(first) < 100 and LONG.endswith(first)


def test_prompt_whose_template_alone_is_too_long_cannot_be_cut(policy: TextPolicy, tmp_path: Path) -> None:
    settings = DataSettings(
        eval_jsonl=write(tmp_path / "rows.jsonl", {"prompt": "x"}),
        template="many words " * 90 + "{prompt}",
        too_long="cut",
    )
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the prompt has"):
        limited(policy, settings)


def test_completion_that_leaves_no_room_is_refused(policy: TextPolicy, tmp_path: Path) -> None:
    settings = DataSettings(eval_jsonl=write(tmp_path / "rows.jsonl", {"prompt": "x"}))
    source = load_prompts(settings, "reason", "reason", "eval", 0)
    with pytest.raises(UserError, match="no room for a prompt; lower completion_length"):
        within_limits(source, policy, settings, task="reason", completion_length=100)


def test_demonstration_that_does_not_fit_is_refused_or_left_out_at_load(policy: TextPolicy, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": "fine"}, {"prompt": "y", "completion": "far too many words " * 20}]
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the demonstration has \d+ tokens, over completion_length 20"):
        limited(policy, DataSettings(jsonl=path), split="train", is_taught=True)
    source = limited(policy, DataSettings(jsonl=path, too_long="skip"), split="train", is_taught=True)
    assert {source[index].text for index in range(3)} == {"x"}


class Endless:
    """Prompts without end, one of which is long."""

    def __init__(self, split: str, seed: int) -> None:
        """Take what every source takes."""

    def __getitem__(self, index: int) -> Prompt:
        text = LONG if index == 3 else "short"
        return Prompt(id=str(index), kind="reason", messages=(Message(role="user", text=text),))


def test_prompts_that_a_class_makes_are_looked_at_as_they_come(policy: TextPolicy) -> None:
    use = f"{__file__}:Endless"
    refused = limited(policy, DataSettings(use=use), split="train")
    assert refused[2].text == "short"
    with pytest.raises(UserError, match=r"Endless\[3\]: the prompt has \d+ tokens"):
        refused[3]
    assert LONG.endswith(limited(policy, DataSettings(use=use, too_long="cut"), split="train")[3].text)
    with pytest.raises(UserError, match="known by number only"):
        limited(policy, DataSettings(use=use, too_long="skip"), split="train")


class Codes:
    """An image tokenizer of one code for 16 x 16 pixels."""

    downsampling = 16

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), pixels.shape[-1] * pixels.shape[-2] // 256, dtype=torch.int64)


@pytest.mark.parametrize("family", ["llada_v", "mmada"])
def test_pictures_are_counted_as_the_canvas_holds_them(tmp_path: Path, family: str) -> None:
    policy = load_policy(
        make_tiny(family, tmp_path / "policy"), dtype="float32", image_tokenizer=Codes(), image_size=64
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (120, 40), "red").save(tmp_path / "wide.jpg", exif=turned)
    path = write(tmp_path / "rows.jsonl", {"prompt": "what?", "image": "wide.jpg"})
    settings = DataSettings(eval_jsonl=path)
    source = load_prompts(settings, "understand", "understand", "eval", 0)
    ((_, _, sketch),) = source.sketches()
    canvas = policy.encode(
        Prompt(
            id="p",
            kind="understand",
            messages=(Message(role="user", text="what?", images=(Image.new("RGB", (40, 120), "red"),)),),
        ),
        SamplingSettings(completion_length=20, num_denoising_steps=20),
    )
    assert policy.num_prompt_tokens(sketch) == canvas.open_spans[0].start


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"max_sequence_length": 4096}, 4096),
        ({"max_position_embeddings": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"phi": {"max_position_embeddings": 2048}}, 2048),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_context_is_read_from_the_checkpoint(config: dict[str, Any], wanted: int | None) -> None:
    assert context_length(config) == wanted


@pytest.mark.parametrize("text", ["abc", "żółć", "ﷺ" * 3, "🦊", "\ud800"])
def test_bound_of_tokens_is_no_lower_than_bytes_of_any_normal_form(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert most_tokens(text) >= max(len(form.encode("utf-8", "surrogatepass")) for form in forms)


@pytest.mark.parametrize("key", ["jsonl", "eval_jsonl"])
def test_run_refuses_before_it_evaluates(folder: Path, tmp_path: Path, key: str) -> None:
    write(tmp_path / "good.jsonl", {"prompt": "1+1", "answer": "2"})
    write(tmp_path / "long.jsonl", {"prompt": "1+1", "answer": "2"}, {"prompt": LONG, "answer": "2"})
    files = {"jsonl": "good.jsonl", "eval_jsonl": "good.jsonl", key: "long.jsonl"}
    recipe = {
        "name": "small",
        "num_steps": 1,
        "group_size": 2,
        "policy": {"path": str(folder), "dtype": "float32"},
        "tasks": {
            "reason": {
                "data": files,
                "prompts_per_step": 1,
                "sampling": {"completion_length": 8, "num_denoising_steps": 4},
            }
        },
        "rewards": {"format": {"use": "unigrpo.rewards.format:Format"}},
        "learner": {"lr": 0.001},
        "tracking": {"use": ["jsonl"]},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    create_run_dir(loaded, tmp_path / "run")
    with pytest.raises(UserError, match=r"long\.jsonl:2: the prompt has"), open_run(loaded, tmp_path / "run"):
        pass


def test_a_prompt_is_cut_where_no_template_stands_around_it(policy: TextPolicy, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "1+2 " * 600}, {"prompt": "q" * 20_000}, {"prompt": "short"})
    rows = rows_of(limited(policy, DataSettings(eval_jsonl=path, too_long="cut")))
    assert ("1+2 " * 600).endswith(rows[0]) and 0 < len(rows[0]) < 400
    assert set(rows[1]) == {"q"} and rows[2] == "short"
