"""Ask an OpenAI-compatible chat server many questions at once; each answer or failure stands for itself.

Nothing a server sends is trusted: replies have a size limit, redirects are refused, compressed bodies are not expanded,
and the wait it asks for (Retry-After) ends at the deadline. Proxy variables and ``.netrc`` are not read.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from unigrpo.rewards.base import Failed

if TYPE_CHECKING:
    import aiohttp

_LOGGER = logging.getLogger(__name__)

_KEY_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_CONNECT_TIMEOUT_S = 5.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0
_NUM_SHOWN_CHARACTERS = 300
_TEARDOWN_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The JSON document a server sent."""

    document: dict[str, Any]
    num_tries: int
    seconds: float


class _RefusedError(RuntimeError):
    """A reply that another try may mend; ``wait_s`` is how long the server asks to wait."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _UselessError(RuntimeError):
    """A reply that another try would not mend."""


@dataclass(eq=False)
class ChatClient:
    """A client of ``URL/chat/completions``.

    Example:
        >>> client = ChatClient("http://127.0.0.1:8000/v1")
        >>> answers = client.ask([{"model": "judge", "messages": [{"role": "user", "content": "1 + 1 ="}]}])
    """

    url: str
    """The server's address, up to ``/v1``."""
    _: KW_ONLY
    api_key_env: str | None = None
    """The environment variable that holds the key; the key itself is never shown."""
    concurrency: int = 32
    """Requests on their way at the same time."""
    deadline_s: float = 25.0
    """Time of all questions of a call together, their retries and waits included."""
    num_retries: int = 3
    """Retries after 429, a 5xx or a lost connection."""
    max_reply_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        """Check the settings; nothing is sent yet.

        Raises:
            ValueError: for a URL with a key or of another scheme, a key in place of a variable's name, or a limit
                below its least.
        """
        self._url = _checked_url(self.url) + "/chat/completions"
        self._key = _key_of(self.api_key_env)
        _warn_of_plain_text(self.url, self._key)
        for name, least in (("concurrency", 1), ("num_retries", 0), ("max_reply_bytes", 1000)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}; give at least {least}")
        if not 0 < self.deadline_s < float("inf"):
            raise ValueError(f"deadline_s {self.deadline_s}; give seconds above 0")
        self._jitter = random.Random()  # Seeded by the system: workers that fail together must not retry together.

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer | Failed]:
        """Return one answer or failure a body, in order, within the deadline.

        The requests share one asyncio loop in a thread of its own, so that a caller may itself run in a loop.
        """
        answers: list[Answer | Failed | None] = [None] * len(bodies)
        done = threading.Event()
        if bodies:
            arguments = ([json.dumps(body).encode() for body in bodies], answers, done)
            threading.Thread(target=self._run, args=arguments, daemon=True, name="chat").start()
            # A name look-up cannot be cancelled: past the deadline the thread is left to end by itself.
            done.wait(self.deadline_s + _TEARDOWN_S)
        late = Failed(f"no answer from {self._url} in {self.deadline_s:g} s")
        return [late if answer is None else answer for answer in answers]

    def _run(self, bodies: list[bytes], answers: list[Answer | Failed | None], done: threading.Event) -> None:
        try:
            asyncio.run(self._ask_all(bodies, answers, done))
        finally:
            done.set()

    async def _ask_all(self, bodies: list[bytes], answers: list[Answer | Failed | None], done: threading.Event) -> None:
        import aiohttp

        end_s = time.monotonic() + self.deadline_s
        turn = asyncio.Semaphore(self.concurrency)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"

        async def fill(index: int) -> None:
            try:
                async with asyncio.timeout(end_s - time.monotonic()), turn:
                    answers[index] = await self._answer(session, bodies[index], end_s)
            except TimeoutError:
                answers[index] = Failed(f"no answer from {self._url} in {self.deadline_s:g} s")

        async with aiohttp.ClientSession(
            headers=headers,
            auto_decompress=False,
            trust_env=False,
            connector=aiohttp.TCPConnector(limit=self.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        ) as session:
            tasks = (fill(index) for index in range(len(bodies)))
            for index, error in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                if error is not None:
                    answers[index] = Failed(self._cleaned(f"{self._url}: {type(error).__name__}: {error}"))
        done.set()

    async def _answer(self, session: aiohttp.ClientSession, body: bytes, end_s: float) -> Answer | Failed:
        start_s = time.monotonic()
        for num_tries in range(1, self.num_retries + 2):
            try:
                document = await self._post(session, body)
                return Answer(document=document, num_tries=num_tries, seconds=time.monotonic() - start_s)
            except _UselessError as error:
                return Failed(str(error))
            except _RefusedError as error:
                reason, wait_s = str(error), max(error.wait_s, self._wait_s(num_tries))
            if num_tries > self.num_retries:
                break
            left_s = end_s - time.monotonic()
            if wait_s >= left_s:
                return Failed(f"{reason}; the next try would be in {wait_s:.1f} s, and {max(left_s, 0):.1f} s are left")
            await asyncio.sleep(wait_s)
        return Failed(f"{reason}, {self.num_retries + 1} times")

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> dict[str, Any]:
        import aiohttp

        try:
            async with session.post(self._url, data=body, allow_redirects=False) as response:
                payload = await self._limited(response)
                status, wanted_s = response.status, response.headers.get("Retry-After", "")
        except aiohttp.InvalidURL as error:
            raise _UselessError(f"{self._url} is not a URL that can be asked") from error
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError; a deadline arrives as cancelling.
            raise _RefusedError(self._cleaned(f"{self._url}: {type(error).__name__}: {error}")) from error
        except ValueError as error:  # What aiohttp raises for some headers that are not HTTP.
            raise _UselessError(self._cleaned(f"{self._url} sent what is not HTTP: {error}")) from error
        if status == 429 or status >= 500:
            raise _RefusedError(self._problem(status, payload), retry_after_s(wanted_s))
        if 300 <= status < 400:
            raise _UselessError(f"{self._url} redirects (HTTP {status}), which is refused; give the final url")
        if status != 200:
            raise _UselessError(self._problem(status, payload))
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise _UselessError(f"the reply is not JSON: {self._excerpt(payload)}") from error
        if not isinstance(document, dict):
            raise _UselessError(f"the reply is not a JSON object: {self._excerpt(payload)}")
        return document

    async def _limited(self, response: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > self.max_reply_bytes:
                raise _UselessError(f"the reply is longer than {self.max_reply_bytes} bytes (max_reply_bytes)")
            parts.append(part)
        return b"".join(parts)

    def _wait_s(self, num_tries: int) -> float:
        """Return a random wait whose upper bound doubles with each try."""
        bound = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (num_tries - 1))
        return bound * self._jitter.uniform(0.5, 1.0)

    def _problem(self, status: int, payload: bytes) -> str:
        return f"{self._url} said HTTP {status}: {self._excerpt(payload)}"

    def _excerpt(self, payload: bytes) -> str:
        return self._cleaned(payload.decode("utf-8", "replace"))

    def _cleaned(self, text: str) -> str:
        """Return the start of what a server said without the key (some repeat it) and without control characters."""
        text = text.replace(self._key, "[key]") if self._key else text
        return "".join(c if c.isprintable() else " " for c in text[:_NUM_SHOWN_CHARACTERS])


def retry_after_s(header: str) -> float:
    """Return the seconds that a Retry-After header asks for, given as a number or as a date; 0 for anything else."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, moment.timestamp() - time.time())


def _checked_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("the url of a judge holds a name, a key or a query; name the key's variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url {url!r}; give http://HOST:PORT/v1 or https://HOST/v1")
    return url.rstrip("/").removesuffix("/chat/completions")


def _key_of(name: str | None) -> str:
    """Return the key that an environment variable holds; empty for None."""
    if name is None:
        return ""
    if not _KEY_NAME.fullmatch(name):
        # What was given is not repeated: it may be the key.
        raise ValueError("api_key_env must be the name of an environment variable such as JUDGE_API_KEY, never a key")
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"the environment variable {name} is not set; export the server's key in it")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {name} holds characters that no header can carry")
    return key


def _warn_of_plain_text(url: str, key: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        _LOGGER.warning("the key for %s travels unencrypted; use https where others share the network", parts.hostname)
