"""The client against a real server that is slow, broken, rude or hostile."""

import asyncio
import gzip
import json
import logging
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from chat_server import Request, endless, raw, said, serving, status

from unigrpo.rewards.base import Failed
from unigrpo.rewards.judging.chat_client import Answer, ChatClient, retry_after_s

OK = said("fine")


def bodies(*texts: str) -> list[dict[str, Any]]:
    return [{"model": "judge", "messages": [{"role": "user", "content": text}]} for text in texts]


def ask(answer: Any, *texts: str, **settings: Any) -> list[Answer | Failed]:
    with serving(answer) as server:
        return ChatClient(server.url, **({"deadline_s": 5.0} | settings)).ask(bodies(*(texts or ("one",))))


def reason(answer: Any, **settings: Any) -> str:
    (failed,) = ask(answer, **settings)
    assert isinstance(failed, Failed)
    return failed.reason


def test_answers_come_back_in_order() -> None:
    answers = ask(lambda request: said(request.text), *(str(number) for number in range(20)))
    given = [answer.document["choices"][0]["message"]["content"] for answer in answers if isinstance(answer, Answer)]
    assert given == [str(number) for number in range(20)]


def test_nothing_is_sent_for_nothing() -> None:
    assert ChatClient("http://127.0.0.1:1/v1").ask([]) == []


def test_one_bad_item_leaves_the_others_alone_and_only_it_is_asked_again() -> None:
    with serving(lambda request: status(500, b"boom") if request.text == "bomb" else OK) as server:
        answers = ChatClient(server.url, deadline_s=5.0, num_retries=1).ask(bodies("a", "bomb", "b"))
        assert [type(answer) for answer in answers] == [Answer, Failed, Answer]
        assert "HTTP 500: boom, 2 times" in answers[1].reason  # type: ignore[union-attr]
        assert [sum(r.text == text for r in server.requests) for text in ("a", "bomb", "b")] == [1, 2, 1]


@pytest.mark.parametrize(
    "broken", [status(500), status(503), status(429), raw(b""), raw(b"HTTP/1.1 200 OK\r\nContent-")]
)
def test_what_another_try_may_mend_is_tried_again(broken: Any) -> None:
    (answer,) = ask(lambda request: broken if request.number == 0 else OK)
    assert isinstance(answer, Answer)
    assert (answer.num_tries, answer.document) == (2, OK)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (status(400, b"no such field"), "HTTP 400: no such field"),
        (status(401, b"who are you"), "HTTP 401: who are you"),
        (status(200, b"{"), "not JSON: {"),
        (status(200, b"[" * 100_000), "not JSON"),
        (status(200, b"[1]"), "not a JSON object"),
        (status(200, gzip.compress(json.dumps(OK).encode()), Content_Encoding="gzip"), "not JSON"),
        (status(200, b" " * 2_000_000), "longer than 1048576 bytes"),
        (endless(), "longer than 1048576 bytes"),
        (status(302, Location="http://127.0.0.1:1/"), "redirects (HTTP 302), which is refused"),
        (status(307, Location="/v1/elsewhere"), "redirects (HTTP 307), which is refused"),
    ],
)
def test_what_another_try_would_not_mend_fails_at_once(reply: Any, wanted: str) -> None:
    with serving(lambda request: reply) as server:
        (failed,) = ChatClient(server.url, deadline_s=5.0).ask(bodies("one"))
        assert isinstance(failed, Failed)
        assert wanted in failed.reason
        assert len(server.requests) == 1


def test_retry_after_is_honored() -> None:
    moments: list[float] = []

    def answer(request: Request) -> Any:
        moments.append(time.monotonic())
        return OK if request.number else status(429, Retry_After="1")

    assert isinstance(ask(answer)[0], Answer)
    assert 1.0 <= moments[1] - moments[0] < 2.0


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    start_s = time.monotonic()
    assert "the next try would be in 3600.0 s" in reason(lambda request: status(429, Retry_After="3600"))
    assert time.monotonic() - start_s < 1.0


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after_s("7") == 7.0
    assert 25.0 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 30.0
    assert [retry_after_s(text) for text in ("", "soon", "-5", "\u0663", formatdate(0))] == [0.0] * 5
    assert retry_after_s("9" * 5000) == 999999999.0


@pytest.mark.parametrize("slow", [endless(b" ", 0.05), lambda handler: time.sleep(2.0)])
def test_the_deadline_is_kept_and_the_quick_ones_are_answered(slow: Any) -> None:
    start_s = time.monotonic()
    answers = ask(lambda request: slow if request.text == "slow" else OK, "a", "slow", "b", deadline_s=0.6)
    assert time.monotonic() - start_s < 1.5
    assert [type(answer) for answer in answers] == [Answer, Failed, Answer]
    assert "no answer from" in answers[1].reason  # type: ignore[union-attr]


def test_the_deadline_covers_the_wait_for_a_turn() -> None:
    def answer(request: Request) -> Any:
        time.sleep(0.3)
        return OK

    start_s = time.monotonic()
    answers = ask(answer, *("x" * number for number in range(1, 9)), deadline_s=0.7, concurrency=1)
    assert time.monotonic() - start_s < 1.5
    assert sum(isinstance(answer, Answer) for answer in answers) == 2


def test_no_more_run_at_once_than_allowed() -> None:
    def answer(request: Request) -> Any:
        time.sleep(0.05)
        return OK

    with serving(answer) as server:
        answers = ChatClient(server.url, concurrency=3).ask(bodies(*map(str, range(12))))
        assert all(isinstance(answer, Answer) for answer in answers)
        assert server.most_running == 3


def test_a_refused_connection_is_said() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (failed,) = ChatClient(f"http://127.0.0.1:{port}/v1", num_retries=1).ask(bodies("one"))
    assert isinstance(failed, Failed)
    assert "ClientConnectorError" in failed.reason
    assert failed.reason.endswith(", 2 times")


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00\xff\x1b[31m not http",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_reason_without_control_characters(reply: bytes) -> None:
    text = reason(lambda request: raw(reply), num_retries=0)
    assert text.isprintable()
    assert len(text) < 500


def test_control_characters_of_a_complaint_are_not_passed_on() -> None:
    text = reason(lambda request: status(400, b"\x1b[2J\x00bad\r\n\xe2\x80\xaerequest\xff"))
    assert text.isprintable()
    assert "bad" in text


def test_cookies_are_not_kept_and_proxies_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    def answer(request: Request) -> Any:
        return OK if request.number else status(500, Set_Cookie="a=b")

    with serving(answer) as server:
        assert isinstance(ChatClient(server.url).ask(bodies("one"))[0], Answer)
        assert "Cookie" not in server.requests[1].headers


def test_the_key_comes_from_the_environment_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("JUDGE_API_KEY", key)
    caplog.set_level(logging.DEBUG)

    def answer(request: Request) -> Any:
        return status(401, f"{'no ' * 30}{request.headers['Authorization'] * 20}".encode())

    with serving(answer) as server:
        client = ChatClient(server.url, api_key_env="JUDGE_API_KEY")
        (failed,) = client.ask(bodies("one"))
        assert server.requests[0].headers["Authorization"] == f"Bearer {key}"
    assert isinstance(failed, Failed)
    assert "[key]" in failed.reason
    assert "secret" not in failed.reason + caplog.text + repr(client)


def test_a_key_in_the_recipe_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    for literal in ("sk-abc123", "hf_AbCdEf", "AKIAABCDEFGHIJKLMNOP", ""):
        with pytest.raises(ValueError, match="name of an environment variable") as caught:
            ChatClient("http://h/v1", api_key_env=literal)
        assert not literal or literal not in str(caught.value)
    for url in ("http://me:sk-abc@h/v1", "http://h/v1?key=sk-abc", "http://sk-abc@h/v1"):
        with pytest.raises(ValueError, match="api_key_env") as caught:
            ChatClient(url)
        assert "sk-abc" not in str(caught.value)
    with pytest.raises(ValueError, match="JUDGE_API_KEY is not set"):
        ChatClient("http://h/v1", api_key_env="JUDGE_API_KEY")
    monkeypatch.setenv("JUDGE_API_KEY", "sk\nX-Evil: 1")
    with pytest.raises(ValueError, match="no header can carry"):
        ChatClient("http://h/v1", api_key_env="JUDGE_API_KEY")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"url": "file:///etc/passwd"}, "give http://"),
        ({"url": "judge:8000"}, "give http://"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"num_retries": -1}, "num_retries -1"),
        ({"deadline_s": float("inf")}, "deadline_s inf"),
        ({"max_reply_bytes": 1}, "max_reply_bytes 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        ChatClient(**({"url": "http://h/v1"} | settings))


def test_a_caller_may_itself_run_in_a_loop() -> None:
    async def call() -> list[Answer | Failed]:
        return ask(lambda request: OK)

    assert isinstance(asyncio.run(call())[0], Answer)


def test_a_url_with_the_endpoint_is_taken_as_well() -> None:
    with serving(lambda request: OK) as server:
        ChatClient(f"{server.url}/chat/completions/").ask(bodies("one"))
        ChatClient(f"{server.url}/chat/completions").ask(bodies("one"))
        assert {request.path for request in server.requests} == {"/v1/chat/completions"}
