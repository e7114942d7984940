"""What types cannot see in a recipe's rewards: gates that lead nowhere, workers that cannot be shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unigrpo.settings.rewards import RewardSettings

_OF_A_WORKER = ("num_workers", "placement", "num_gpus", "num_cpus", "env")
"""Settings of a process rather than of a reward in it."""


def composition_problems(rewards: Mapping[str, RewardSettings]) -> list[str]:
    """Return one line a problem; empty where the rewards fit together."""
    problems = [problem for name, reward in rewards.items() for problem in _one(reward, f"rewards.{name}")]
    problems += [
        f"rewards.{name}.on_error: raise on weight 0, which is logged only and may stop nothing; wanted mask"
        for name in sorted(logged_only(rewards))
        if rewards[name].on_error == "raise"
    ]
    return [*problems, *_gates(rewards), *_workers(rewards)]


def logged_only(rewards: Mapping[str, RewardSettings]) -> frozenset[str]:
    """Return the rewards that nothing optimised depends on: of weight 0, and in no way a gate of one that counts."""
    counting = {name for name, reward in rewards.items() if reward.weight != 0}
    pending = list(counting)
    while pending:
        gates = rewards.keys() & set(rewards[pending.pop()].gate) - counting
        counting |= gates
        pending += gates
    return frozenset(rewards.keys() - counting)


def _one(reward: RewardSettings, key: str) -> Iterator[str]:
    if (reward.on_error == "value") != (reward.error_value is not None):
        yield f"{key}: on_error: value and error_value go together; one was given without the other"
    if reward.on_error == "drop_group" and reward.weight == 0:
        yield f"{key}.on_error: drop_group on weight 0, which is logged only and may drop nothing; wanted mask"
    if reward.clip is not None and not reward.clip[0] < reward.clip[1]:
        yield f"{key}.clip: [{reward.clip[0]:g}, {reward.clip[1]:g}] is empty; wanted [lowest, highest]"
    if (reward.cache == "disk") != (reward.cache_file is not None):
        yield f"{key}: cache: disk and cache_file go together; one was given without the other"
    if reward.num_gpus and reward.placement == "local":
        yield f"{key}.num_gpus: a local worker sees every GPU of the machine; set placement: ray, or leave it out"


def beyond_range(name: str, reward: RewardSettings, bounds: tuple[float, float]) -> Iterator[str]:
    """Yield what of a reward's settings lies outside of the range that it declares, which is known once it is made."""
    low, high = bounds
    if reward.clip is not None:
        least, most = reward.clip
        if not (least < high and most > low):
            yield f"rewards.{name}.clip: [{least:g}, {most:g}] has nothing of the reward's range, [{low:g}, {high:g}]"
            return
        low, high = max(low, least), min(high, most)
    if reward.pass_at is not None and not low <= reward.pass_at <= high:
        yield f"rewards.{name}.pass_at: {reward.pass_at:g} is outside of what counts, [{low:g}, {high:g}]"


def _gates(rewards: Mapping[str, RewardSettings]) -> Iterator[str]:
    for name, reward in rewards.items():
        for gate in reward.gate:
            if gate not in rewards:
                yield f"rewards.{name}.gate: there is no reward {gate!r}; the recipe has {', '.join(rewards)}"
        circle = _circle(name, rewards)
        if circle:
            yield f"rewards.{name}.gate: it waits for itself ({' -> '.join(circle)}); wanted gates without a circle"


def _circle(start: str, rewards: Mapping[str, RewardSettings]) -> list[str]:
    """Return the way from a reward over gates back to it; empty where there is none."""
    pending = [[start, gate] for gate in rewards[start].gate]
    seen: set[str] = set()
    while pending:
        way = pending.pop()
        if way[-1] == start:
            return way
        if way[-1] in seen or way[-1] not in rewards:
            continue
        seen.add(way[-1])
        pending += [[*way, gate] for gate in rewards[way[-1]].gate]
    return []


def _workers(rewards: Mapping[str, RewardSettings]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, reward in rewards.items():
        if reward.worker is None:
            continue
        owner = first.setdefault(reward.worker, name)
        for field in _OF_A_WORKER:
            given, wanted = getattr(reward, field), getattr(rewards[owner], field)
            if given != wanted:
                yield (
                    f"rewards.{name}.{field}: {given} in the worker {reward.worker}, where rewards.{owner} has "
                    f"{wanted}; rewards of one worker live in one process, so they need the same"
                )
