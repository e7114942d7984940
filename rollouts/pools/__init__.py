"""Where completions are generated: in this process, or by Ray actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unigrpo.models.base import Policy
    from unigrpo.rollouts.base import RolloutPool
    from unigrpo.settings.recipe import Recipe


def open_pool(recipe: Recipe, policy: Policy, on_wait: Callable[[str], None]) -> RolloutPool:
    """Return the pool that the recipe asks for; ``on_wait`` is told what a long wait is waiting for."""
    if recipe.rollouts.num_actors:
        from unigrpo.rollouts.pools.ray import RayPool

        return RayPool(recipe, on_wait)
    from unigrpo.rollouts.pools.local import LocalPool

    return LocalPool(policy)
