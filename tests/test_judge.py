"""The judge against a real server: what is asked, what replies are worth, and what candidates cannot do."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chat_server import Request, first_token, said, scored, serving
from PIL import Image

from unigrpo.rewards.base import Failed
from unigrpo.rewards.judge import Judge
from unigrpo.rewards.judging.judge_launch import launch_of
from unigrpo.rewards.process.adapt import AdaptedReward, load_reward
from unigrpo.settings.rewards import RewardSettings
from unigrpo.testing.conformance import check_reward

RUBRIC = "Is it a good answer to {prompt}?"


def judge(url: str, **arguments: Any) -> Judge:
    return Judge(**({"url": url, "model": "judge", "rubric": RUBRIC, "deadline_s": 5.0, "num_retries": 0} | arguments))


def value_of(reply: Any, completion: Any = "text", **arguments: Any) -> Any:
    with serving(lambda request: reply) as server:
        return judge(server.url, **arguments)(prompts=["?"], completions=[completion])[0]


def request_for(completion: Any, prompt: str = "?", columns: dict[str, Any] | None = None, **arguments: Any) -> Request:
    with serving(lambda request: scored(3)) as server:
        judge(server.url, **arguments)(prompts=[prompt], completions=[completion], **(columns or {}))
        return server.requests[0]


def test_a_whole_score_is_mapped_to_the_unit_interval() -> None:
    assert [value_of(scored(score)) for score in (1, 2, 3, 4, 5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert value_of(scored(7), scale=[0, 10]) == 0.7


def test_the_form_is_asked_of_the_server() -> None:
    body = request_for("text", request={"seed": 3}).body
    schema = body["response_format"]["json_schema"]["schema"]
    assert body["response_format"]["type"] == "json_schema"
    assert schema["properties"]["score"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert schema["required"] == ["reason", "score"]
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("judge", 0.0, 512, 3)


def test_yes_is_the_sum_over_its_spellings() -> None:
    reply = first_token({"Yes": 0.5, " yes": 0.2, "YES": 0.1, "No": 0.15, "Maybe": 0.05})
    assert value_of(reply, mode="yes_no") == pytest.approx(0.8, abs=1e-12)
    assert value_of(first_token({" No": 0.9, "no.": 0.1}), mode="yes_no") == 0.0


def test_digits_give_their_expected_value() -> None:
    # (1 * 0.1 + 4 * 0.5 + 5 * 0.2) / 0.8 = 3.875, which is 2.875 / 4 of the way from 1 to 5.
    reply = first_token({"4": 0.3, " 4": 0.2, "5": 0.2, "1": 0.1, "9": 0.1, "The": 0.1})
    assert value_of(reply, mode="digits") == pytest.approx(2.875 / 4, abs=1e-12)


def test_the_first_token_is_asked_for_with_twenty_alternatives() -> None:
    with serving(lambda request: first_token({"Yes": 1.0})) as server:
        judge(server.url, mode="yes_no")(prompts=["?"], completions=["text"])
    body = server.requests[0].body
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0.0)
    assert "response_format" not in body


def top(*entries: dict[str, Any]) -> dict[str, Any]:
    return said("Yes", logprobs={"content": [{"token": "Yes", "top_logprobs": list(entries)}]})


@pytest.mark.parametrize(
    ("mode", "reply", "wanted"),
    [
        ("schema", said("5"), "wanted an object of reason and score alone"),
        ("schema", said('{"score": 5}'), "wanted an object of reason and score alone"),
        ("schema", said('{"reason": "", "score": 5, "confidence": 1}'), "wanted an object of reason and score alone"),
        ("schema", said('{"reason": "", "score": 1, "score": 5}'), "has a key twice"),
        ("schema", said('{"reason": ["because"], "score": 5}'), "the reason is no text"),
        ("schema", said("Score: 5"), "not JSON"),
        ("schema", said("[" * 100_000), "not JSON"),
        ("schema", said('{"score": %s}' % ("9" * 5000)), "not JSON"),
        ("schema", scored(6), "no whole score from 1 to 5"),
        ("schema", scored(True), "no whole score"),
        ("schema", scored(4.5), "no whole score"),
        ("schema", scored("5"), "no whole score"),
        ("schema", scored(None), "no whole score"),
        ("schema", said('{"reason": "", "score": NaN}'), "no whole score"),
        ("schema", said('{"reason": "so', finish_reason="length"), "raise max_tokens"),
        ("schema", {"choices": []}, "0 choices; one was asked for"),
        ("schema", {"choices": scored(5)["choices"] * 2}, "2 choices; one was asked for"),
        ("schema", {"choices": ["5"]}, "1 choices"),
        ("schema", {"error": "no"}, "no list of choices"),
        ("schema", {"choices": [{}]}, "no text"),
        ("schema", {"choices": [{"message": {"content": None}}]}, "no text"),
        ("yes_no", said("Yes"), "no log-probabilities"),
        ("yes_no", said("Yes", logprobs=None), "no log-probabilities"),
        ("yes_no", said("Yes", logprobs={"content": []}), "no log-probabilities"),
        ("yes_no", top(), "no log-probabilities"),
        ("yes_no", top({"token": "Yes", "logprob": math.nan}), "log-probability that is none"),
        ("yes_no", top({"token": "Yes", "logprob": 5.0}), "log-probability that is none"),
        ("yes_no", top({"token": "Yes"}), "log-probability that is none"),
        ("yes_no", top({"token": 3, "logprob": -1.0}), "log-probability that is none"),
        ("yes_no", top({"token": "Yes", "logprob": 0.0}, {"token": "No", "logprob": 0.0}), "add up to 2"),
        ("yes_no", first_token({"<think>": 0.95, "Yes": 0.05}), "enable_thinking"),
        ("digits", first_token({"Yes": 1.0}), "a digit from 1 to 5"),
    ],
)
def test_what_is_no_judgment_is_an_error_and_not_a_zero(mode: str, reply: Any, wanted: str) -> None:
    failed = value_of(reply, mode=mode)
    assert isinstance(failed, Failed)
    assert wanted in failed.reason
    assert len(failed.reason) < 600


def test_an_endlessly_small_probability_is_none() -> None:
    tiny = {"token": "No", "logprob": -math.inf}, {"token": "no", "logprob": -(10**400)}
    assert value_of(top({"token": "Yes", "logprob": math.log(0.5)}, *tiny), mode="yes_no") == pytest.approx(0.5)


def test_one_failing_item_leaves_the_others_alone() -> None:
    with serving(lambda request: said("what?") if "bomb" in request.candidate else scored(5)) as server:
        values = judge(server.url)(prompts=["?"] * 4, completions=["a", "bomb", "b", "a"])
        assert values[0] == values[2] == values[3] == 1.0
        assert isinstance(values[1], Failed)
        assert len(server.requests) == 3  # Equal items are one question.


def test_the_contract_is_kept() -> None:
    with serving(lambda request: scored(1 + len(request.candidate) % 5)) as server:
        values = check_reward(judge(server.url), prompts=["a", "b", "c"], completions=["x", "xy", "xyz"])
    assert values == [0.25, 0.5, 0.75]


def test_a_text_without_visible_characters_is_the_minimum_unasked() -> None:
    with serving(lambda request: scored(5)) as server:
        given = ["", " \n", "\u200b\u202e", "<think>long</think>", "<|endoftext|>more"]
        assert judge(server.url)(prompts=["?"] * 5, completions=given) == [0.0] * 5
        assert server.requests == []


def test_reasoning_and_filler_are_left_out_unless_asked_for() -> None:
    text = "<think>hm</think> 42<|endoftext|>filler"
    assert request_for(text).candidate == "42"
    assert request_for(text, with_thinking=True).candidate == "<think>hm</think> 42"


def test_columns_fill_the_rubric_and_a_missing_one_does_not_apply() -> None:
    with serving(lambda request: scored(5)) as server:
        reward = judge(server.url, rubric='Task {prompt}, gold {answer}. Form: {"a": 1}')
        assert reward.wanted_columns == ("answer",)
        values = reward(prompts=["{answer}", "q"], completions=["x", "y"], answer=["five", None])
        assert values == [1.0, None]
        assert reward(prompts=["q"], completions=["x"]) == [None]
        assert server.requests[0].text.startswith('Task {answer}, gold five. Form: {"a": 1}\n')
        assert len(server.requests) == 1


def test_a_picture_is_sent_as_png() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    request = request_for(picture)
    (part,) = [part for part in request.body["messages"][-1]["content"] if part["type"] == "image_url"]
    prefix = "data:image/png;base64,"
    assert part["image_url"]["url"].startswith(prefix)
    sent = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix(prefix))))
    assert np.array_equal(np.asarray(sent), np.asarray(picture))


def test_a_large_picture_is_made_smaller_and_an_impossible_one_is_the_minimum() -> None:
    request = request_for(Image.new("RGB", (400, 100)), max_side=100)
    url = request.body["messages"][-1]["content"][2]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (100, 25)
    with serving(lambda request: scored(5)) as server:
        logged: dict[str, float] = {}
        completions = [Image.new("F", (8, 8)), Image.new("RGB", (8, 8)), "fine"]
        values = judge(server.url)(prompts=["?"] * 3, completions=completions, log_metric=logged.__setitem__)
    assert values == [0.0, 1.0, 1.0]
    assert logged["pictures/refused_fraction"] == 0.5


def test_own_pictures_are_shown_before_the_candidate() -> None:
    with serving(lambda request: scored(5)) as server:
        reward = judge(server.url, with_images=True)
        assert reward.wanted_columns == ("images",)
        shown = [Image.new("RGB", (4, 4))]
        assert reward(prompts=["?"] * 2, completions=["a cat"] * 2, images=[shown, []]) == [1.0, None]
    kinds = [part["type"] for part in server.requests[0].body["messages"][-1]["content"]]
    assert kinds == ["text", "text", "image_url", "text", "text", "text"]


def test_the_means_of_a_call_are_logged() -> None:
    with serving(lambda request: scored(3)) as server:
        reward = AdaptedReward(judge(server.url, max_characters=100), name="judge")
        assert reward(prompts=["?"] * 4, completions=["a", "b", "</candidate>", "c" * 101], step=1) == [0.5] * 4
    latency_s = reward.metrics.pop("judge/latency_s")
    assert 0 < latency_s[0] < 5
    assert reward.metrics == {
        "judge/num_retries": [0.0],
        "judge/answer_mass": [1.0],
        "judge/cut_fraction": [0.25],
        "judge/injection_fraction": [0.25],
    }


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"url": None}, "either url"),
        ({"launch": {"model": "m"}}, "either url"),
        ({"model": None}, "model is missing"),
        ({"rubric": " "}, "rubric is empty"),
        ({"rubric": "Judge {completion}"}, "leave it out"),
        ({"mode": "vibes"}, "one of schema, yes_no, digits"),
        ({"mode": "digits", "scale": [1, 10]}, "mode: schema"),
        ({"scale": [5, 1]}, "worst and best"),
        ({"scale": [1]}, "worst and best"),
        ({"min_mass": 0}, "min_mass"),
        ({"request": {"model": "other", "top_k": 1}}, "request holds model, which"),
        ({"api_key_env": "sk-123"}, "name of an environment variable"),
        ({"max_characters": 1}, "max_characters 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        judge(**({"url": "http://127.0.0.1:1/v1"} | arguments))


def test_the_recipe_entry_of_the_description_makes_a_judge() -> None:
    assert Judge.__doc__ is not None
    entry = yaml.safe_load(Judge.__doc__.split("Recipe:")[1])["judge"]
    assert load_reward(entry["use"], entry["arguments"]).range == (0.0, 1.0)
    assert entry["timeout_s"] > 25  # The judge's own deadline must come first.
    assert json.dumps(entry).count("prompt") == 1


def test_the_recipe_of_the_page_makes_a_judge() -> None:
    page = (Path(__file__).parent.parent / "docs" / "judge.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    settings = RewardSettings(**yaml.safe_load(blocks[0])["rewards"]["judge"])
    assert load_reward(settings.use, settings.arguments).wanted_columns == ()
    assert settings.timeout_s > settings.arguments["deadline_s"]
    assert launch_of(yaml.safe_load(blocks[1])["launch"]).gpus == (1,)
