"""Rollouts as rewards see them, for tests of what scores them."""

import numpy as np

from unigrpo.types import Message, PolicyVersion, Prompt, Rollout, Span


def rollout(text: str | None, *, number: int = 0, image: np.ndarray | None = None, **prompt: object) -> Rollout:
    fields = {"id": f"p{number // 4}", "kind": "reason", "messages": (Message(role="user", text="?"),), "answer": "5"}
    return Rollout(
        prompt=Prompt(**(fields | prompt)),
        sample_index=number % 4,
        token_ids=np.arange(6),
        spans=(Span(kind="text", start=0, stop=6, is_open=True),),
        is_completion=np.arange(6) >= 3,
        committed_step=np.zeros(6, np.int32),
        committed_logprobs=np.zeros(6, np.float32),
        text=text,
        image=image,
        seed=0,
        policy_version=PolicyVersion(step=0, kind="adapter", sha256=""),
        is_truncated=False,
    )
