"""Chat templates of strangers: rendered alike in this process and in the other, and never without a bound."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import write_tokenizer

from unigrpo.errors import UserError
from unigrpo.models.files import chat_template, template_child
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.types import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLADA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
TURNS = ({"role": "system", "content": "s"}, {"role": "user", "content": " a {{ b }} "})

BROKEN = {
    "{% for m in messages %}": "is no Jinja: line 1",
    "{{ messages | nothing }}": "is no Jinja: line 1: No filter named 'nothing'",
    "{{ nothing.of.this }}": "fails: UndefinedError: 'nothing' is undefined",
    "{{ nothing() }}": "fails: UndefinedError",
    "{{ messages[0]['content'] + 1 }}": "fails: TypeError",
    "{{ 1 / 0 }}": "fails: ZeroDivisionError",
    "{{ messages | map('int') | sum(attribute='x') }}": "fails: ",
    "{% include 'other' %}": "fails: TypeError: no loader",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails: RecursionError",
    "{{ ''.__class__.__mro__ }}": "does what the sandbox forbids",
    "{{ '%s' % messages.append(1) }}": "does what the sandbox forbids",
    "{{ '(' * 3000 }}{{" + "(" * 3000 + "1" + ")" * 3000 + "}}": "",
}
GREEDY = {
    "a product": "{{ 'x' * 10 ** 10 }}",
    "a filter": "{{ 'x' | center(10 ** 10) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "blocks": "{% macro d(x) %}" + "{{ x }}" * 200 + "{% endmacro %}{{ d(d(d(d(d('x'))))) }}",
}


def rendered(template: str, messages: tuple[dict[str, str], ...] = TURNS) -> str:
    return chat_template.render(template, "FILE", messages, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", [CHATML, LLADA])
def test_both_processes_write_what_the_release_writes(template: str) -> None:
    by_hand = {
        CHATML: "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n a {{ b }} <|im_end|>\n<|im_start|>assistant\n",
        LLADA: "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\na {{ b }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    }
    assert chat_template.is_linear(template) is (template == CHATML)
    values = {"messages": list(TURNS), "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    assert rendered(template) == template_child.render(template, values) == by_hand[template]
    assert chat_template._CHILD.render(template, values) == by_hand[template]


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=50))
def test_any_content_goes_to_the_other_process_and_back(content: str) -> None:
    messages = ({"role": "user", "content": content},)
    assert rendered("{% set m = messages[0] %}{{ m.content }}", messages) == content


def test_a_conversation_larger_than_a_pipe_goes_through() -> None:
    content = "é" * 1_000_000
    assert rendered("{% set m = messages[0] %}{{ m.content }}", ({"role": "user", "content": content},)) == content


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template_is_refused_at_load_by_its_file(template: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, {"chat_template": template})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: the chat template ") as caught:
        TextTokenizer.from_folder(folder)
    assert BROKEN[template] in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", GREEDY)
def test_a_template_that_wants_more_memory_than_there_is_is_refused(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"FILE: the chat template (takes more than|writes|broke|fails: Overflow)"):
        rendered(GREEDY[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_without_an_end_is_stopped_and_the_next_one_runs(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered(LLADA)
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"FILE: the chat template takes more than 0\.3 s and was stopped"):
        rendered(template)
    assert time.monotonic() - started < 2
    monkeypatch.setattr(chat_template, "SECONDS", 10.0)
    assert rendered("{% set m = messages[0] %}{{ m.content }}") == "s"


def test_a_thousand_prompts_take_a_second_at_most() -> None:
    rendered(LLADA)
    started = time.monotonic()
    for _ in range(1000):
        rendered(LLADA)
    assert time.monotonic() - started < 1.5


def test_templates_that_keep_or_repeat_something_are_not_called_linear() -> None:
    kept = [
        "{% set x = 1 %}",
        "{{ 'a' * 3 }}",
        "{% macro f() %}{% endmacro %}",
        "{{ range(3) }}",
        "{{ x | center(9) }}",
    ]
    kept += ["{% for m in messages %}{% for n in messages %}{% endfor %}{% endfor %}", "{% for i in x %}{% endfor %}"]
    kept += [
        "{{ messages | join }}",
        "{{ '%9d' % 1 }}",
        "{{ x.replace('a', 'b') }}",
        "{% filter indent %}a{% endfilter %}",
    ]
    assert [template for template in [*kept, *GREEDY.values()] if chat_template.is_linear(template)] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": {"lstrip": False}}, "bos_token is .*wanted text, or an object whose `content` is text"),
        ({"bos_token": {"content": 3}}, "bos_token"),
        ({"eos_token": ["</s>"]}, "eos_token"),
        ({"eos_token": 3}, "eos_token"),
        ({"chat_template": 3}, "the chat template is a JSON int; wanted text"),
        ({"chat_template": [{"name": "default"}]}, "entries of `name` and `template`"),
        ({"chat_template": ["x"]}, "entries of `name` and `template`"),
        ({"chat_template": [{"name": "default", "template": None}]}, None),
        ({"chat_template": {"default": "x"}}, "a JSON dict"),
        ({"chat_template": "x" * 1_000_001}, "1,000,001 characters"),
    ],
)
def test_settings_of_a_tokenizer_that_are_no_text_are_named(
    config: dict[str, object], message: str | None, tmp_path: Path
) -> None:
    folder = write_tokenizer(tmp_path, config)
    if message is None:
        assert TextTokenizer.from_folder(folder).chat_template is None
        return
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: .*{message}"):
        TextTokenizer.from_folder(folder)


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, {})
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        TextTokenizer.from_folder(folder)


def test_a_template_that_asks_for_other_turns_loads_and_refuses_the_prompt(tmp_path: Path) -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}ok"
    tokenizer = TextTokenizer.from_folder(write_tokenizer(tmp_path, {"chat_template": template}))
    assert tokenizer.render_chat((Message(role="system", text=""), Message(role="user", text="a"))) == "ok"
    with pytest.raises(UserError, match=r"tokenizer_config\.json: the chat template refuses these .*: system first"):
        tokenizer.render_chat((Message(role="user", text="a"),))


def test_the_process_is_one_and_knows_no_more_than_it_is_told() -> None:
    rendered(LLADA)
    first = chat_template._CHILD._process
    rendered("{% set x = 1 %}{{ x }}")
    assert first is not None and chat_template._CHILD._process is first
    assert os.getsid(first.pid) == first.pid  # Ctrl-C does not reach it
    assert rendered("{% set x = 1 %}{{ environ }}{{ config }}") == ""
