"""Work units: whole groups, fixed before dispatch, and rollouts that say how they came to be."""

import numpy as np
import pytest

from unigrpo.models import load_policy
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.quickstart.scenes import ImagineScenes
from unigrpo.quickstart.sums import Sums
from unigrpo.rollouts.units import generate, plan_units
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import PolicyVersion

TEXT = SamplingSettings(completion_length=12, num_denoising_steps=4, temperature=1.0)
PICTURE = SamplingSettings(completion_length=16, num_denoising_steps=4, schedule="cosine", guidance_scale=1.0)
VERSION = PolicyVersion(step=0, kind="adapter", sha256="0" * 64)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(make_policy(tmp_path_factory.mktemp("policy") / "tiny"), dtype="float32")


def prompts(count):
    source = Sums(split="train", seed=0)
    return [(source[index], TEXT) for index in range(count)]


def test_units_hold_whole_groups_of_one_kind_in_the_prompts_order():
    picture = ImagineScenes(split="train", seed=0)
    mixed = [*prompts(5), *((picture[index], PICTURE) for index in range(3))]
    units = plan_units(mixed, group_size=4, rows_per_unit=8, seed=0, step=0)
    assert [len(unit.prompts) for unit in units] == [2, 2, 1, 2, 1]
    assert [prompt.id for unit in units for prompt in unit.prompts] == [prompt.id for prompt, _ in mixed]
    assert {unit.sampling.schedule.use for unit in units[:3]} == {"linear"}


def test_a_seed_is_one_rows_alone_and_changes_with_the_step_and_the_run():
    def seeds(seed, step):
        return [s for u in plan_units(prompts(3), group_size=4, rows_per_unit=8, seed=seed, step=step) for s in u.seeds]

    assert len({*seeds(0, 0), *seeds(0, 1), *seeds(1, 0)}) == 36
    assert seeds(0, 0) == seeds(0, 0)


def test_a_prompt_that_comes_twice_in_a_step_gets_other_samples_the_second_time():
    twice = [*prompts(1), *prompts(1)]
    seeds = [seed for u in plan_units(twice, group_size=4, rows_per_unit=8, seed=0, step=0) for seed in u.seeds]
    assert len(set(seeds)) == 8


def test_a_group_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="raise rows_per_unit"):
        plan_units(prompts(1), group_size=8, rows_per_unit=4, seed=0, step=0)


def test_tokens_do_not_depend_on_how_prompts_are_cut_into_units(policy):
    def tokens(rows):
        units = plan_units(prompts(4), group_size=4, rows_per_unit=rows, seed=0, step=0)
        return [r.token_ids for unit in units for r in generate(policy, unit, VERSION)]

    for one, other in zip(tokens(4), tokens(16), strict=True):
        assert np.array_equal(one, other)


def test_a_rollout_ends_at_its_first_eos(policy):
    unit = plan_units(prompts(4), group_size=8, rows_per_unit=32, seed=0, step=0)[0]
    eos = policy.vocabulary.eos_token_id
    for rollout in generate(policy, unit, VERSION):
        span = next(span for span in rollout.spans if span.is_open)
        ids = rollout.token_ids[span.start : span.stop]
        ends = np.flatnonzero(ids == eos)
        length = int(ends[0]) + 1 if len(ends) else len(ids)
        assert rollout.completion_length == length
        assert rollout.is_truncated == (len(ends) == 0)
        assert (ids[length:] == eos).all()
        assert (rollout.committed_step[: span.start] == -1).all()
        assert (rollout.committed_step[span.start : span.stop] >= 0).all()
        assert (rollout.committed_logprobs[rollout.is_completion] < 0).all()


def test_samples_of_one_prompt_differ(policy):
    unit = plan_units(prompts(1), group_size=8, rows_per_unit=8, seed=0, step=0)[0]
    rollouts = generate(policy, unit, VERSION)
    assert len({rollout.token_ids.tobytes() for rollout in rollouts}) == 8
    assert [rollout.sample_index for rollout in rollouts] == list(range(8))
