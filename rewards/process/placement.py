"""Where the child process of a reward runs: on this machine or on a Ray cluster, under which interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from unigrpo.rewards.process.child import Child
from unigrpo.settings import RewardSettings

if TYPE_CHECKING:
    from unigrpo.rewards.process.remote_child import RemoteChild

AnyChild: TypeAlias = "Child | RemoteChild"
"""A child process, here or on another machine."""


def start_child(settings: RewardSettings, folder: Path | None = None) -> AnyChild:
    """Return a new child where the recipe places the reward, under the interpreter that it names.

    Args:
        settings: the reward's.
        folder: the recipe's, where a relative ``env: {python: PATH}`` starts.
    """
    module, arguments = "unigrpo.rewards.process.worker", list[str]()
    if settings.env is not None:
        module, arguments = "unigrpo.rewards.process.env_worker", [settings.env.model_dump_json(), str(folder or "")]
    if settings.placement == "ray":
        from unigrpo.rewards.process.remote_child import RemoteChild  # Ray, for those who use it.

        return RemoteChild(module, num_gpus=settings.num_gpus, num_cpus=settings.num_cpus, arguments=arguments)
    return Child(module, arguments=arguments)
