"""The sampler against the released samplers of LLaDA and MMaDA, and against its own promises."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unigrpo.models import load_policy
from unigrpo.rollouts import sample_ids

GOLDEN = Path(__file__).parent / "golden"
MMADA_IDS = {
    "bos": 480,
    "eos": 481,
    "pad": 481,
    "soi": 484,
    "eoi": 485,
    "t2i": 488,
    "mmu": 489,
    "ipad": 493,
    "mask": 500,
    "start_header": 502,
    "end_header": 503,
    "eot": 504,
    "image_offset": 505,
}
CODES = (505, 633)
SELECTION_MARGIN = 3e-5


@pytest.fixture(scope="module")
def mmada():
    return load_policy(GOLDEN / "mmada_tiny", dtype="float32", vocabulary=MMADA_IDS)


@pytest.fixture(scope="module")
def llada():
    return load_policy(GOLDEN / "llada_tiny", dtype="float32", vocabulary={"mask_token_id": 500})


def cases(name):
    return json.loads((GOLDEN / name).read_text())


def greedy_text_cases(path, key=None):
    listed = cases(path) if key is None else cases(path)[key]
    return [
        case
        for case in listed
        if case.get("temperature", 0) == 0
        and "t1" not in case["name"].split("_")
        and "maskignored" not in case["name"]
        and "fast" not in case["name"]
    ]


def open_after(prompt_ids, num_open, mask_token_id=500):
    prompt = torch.as_tensor(prompt_ids)
    return torch.cat([prompt, torch.full((len(prompt), num_open), mask_token_id)], dim=1)


def check_text_case(policy, arrays, case):
    name = case["name"]
    ids = torch.as_tensor(arrays[f"in_{name}"])
    expected = torch.as_tensor(arrays[f"out_{name}"])
    is_padding = torch.as_tensor(arrays[f"mask_{name}"]) == 0 if f"mask_{name}" in arrays else None
    num_open = expected.shape[1] - ids.shape[1]
    steps, block = (int(part[1:]) for part in [p for p in name.split("_") if p[0] in "sb" and p[1:].isdigit()][-2:])
    out = sample_ids(
        policy,
        open_after(ids, num_open),
        num_denoising_steps=case.get("steps", steps),
        block_length=case.get("block_length", block),
        guidance_scale=case["cfg_scale"],
        is_padding=is_padding,
    )
    assert torch.equal(out.token_ids, expected)


@pytest.mark.parametrize("case", greedy_text_cases("mmada_tiny/text_generate_cases.json"), ids=lambda c: c["name"])
def test_text_tokens_equal_mmadas_sampler(mmada, case):
    check_text_case(mmada, np.load(GOLDEN / "mmada_tiny/text_generate.npz"), case)


@pytest.mark.parametrize("case", greedy_text_cases("mmada_tiny/mmu_generate_cases.json"), ids=lambda c: c["name"])
def test_picture_question_tokens_equal_mmadas_sampler(mmada, case):
    check_text_case(mmada, np.load(GOLDEN / "mmada_tiny/mmu_generate.npz"), case)


@pytest.mark.parametrize("case", greedy_text_cases("llada_tiny/cases.json", "generate"), ids=lambda c: c["name"])
def test_text_tokens_equal_lladas_sampler(llada, case):
    check_text_case(llada, np.load(GOLDEN / "llada_tiny/generate.npz"), case)


def strict_picture_cases():
    return [
        case
        for case in cases("mmada_tiny/t2i_generate_cases.json")
        if case["mode"] == "greedy" and "res24" not in case["name"]
    ]


@pytest.mark.parametrize("case", strict_picture_cases(), ids=lambda c: c["name"])
def test_picture_codes_equal_mmadas_sampler(mmada, case):
    arrays = np.load(GOLDEN / "mmada_tiny/t2i_generate.npz")
    rows = f"in_N{case['N']}_B{case['B']}_"
    out = sample_ids(
        mmada,
        torch.as_tensor(arrays[rows + "input_ids"]),
        num_denoising_steps=case["timesteps"],
        schedule="cosine",
        guidance_scale=case["guidance_scale"],
        vocabulary_range=CODES,
        is_padding=torch.as_tensor(arrays[rows + "attention_mask"]) == 0,
        unconditional_ids=torch.as_tensor(arrays[rows + "uncond_input_ids"]),
    )
    codes = out.token_ids[:, -1 - case["N"] : -1] - CODES[0]
    expected = torch.as_tensor(arrays[f"out_{case['name']}"])
    if min(case["min_argmax_log_margin"], case["min_selection_log_gap"]) < SELECTION_MARGIN:
        # a gap below float32's noise: an honest sampler may choose either, so only nearly all codes must agree
        assert (codes == expected).float().mean() > 0.8
    else:
        assert torch.equal(codes, expected)


def test_masked_positions_after_each_step_equal_mmadas(mmada):
    arrays = np.load(GOLDEN / "mmada_tiny/t2i_generate.npz")
    name = "N64_B1_T8_gs0.0_greedy"
    out = sample_ids(
        mmada,
        torch.as_tensor(arrays["in_N64_B1_input_ids"]),
        num_denoising_steps=8,
        schedule="cosine",
        vocabulary_range=CODES,
        is_padding=torch.as_tensor(arrays["in_N64_B1_attention_mask"]) == 0,
    )
    committed = out.committed_step[0, -65:-1]
    for step, is_masked in enumerate(arrays[f"masked_{name}"][:-1, 0]):
        assert ((committed > step).numpy() == is_masked.astype(bool)).all()


def test_inpainting_keeps_given_codes_and_equals_mmadas_sampler(mmada):
    arrays = np.load(GOLDEN / "mmada_tiny/t2i_inpaint.npz")
    ids = torch.as_tensor(arrays["input_ids"])
    out = sample_ids(
        mmada,
        ids,
        num_denoising_steps=6,
        schedule="cosine",
        vocabulary_range=CODES,
        is_padding=torch.as_tensor(arrays["attention_mask"]) == 0,
    )
    assert torch.equal(out.token_ids[:, -17:-1] - 505, torch.as_tensor(arrays["out"]))
    assert (out.committed_step[ids != 500] == -1).all()


def text_ids(num_rows=4, prompt_length=9, num_open=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return open_after(torch.randint(0, 479, (num_rows, prompt_length), generator=generator), num_open)


SETTINGS = {"num_denoising_steps": 6, "block_length": 6, "temperature": 1.0, "seeds": [11, 12, 13, 14]}


def test_a_rows_tokens_do_not_depend_on_its_neighbors(llada):
    ids = text_ids()
    together = sample_ids(llada, ids, **SETTINGS).token_ids
    for row in range(4):
        alone = sample_ids(llada, ids[row : row + 1], **{**SETTINGS, "seeds": [11 + row]}).token_ids
        assert torch.equal(alone[0], together[row])
    order = torch.tensor([2, 0, 3, 1])
    permuted = sample_ids(llada, ids[order], **{**SETTINGS, "seeds": [13, 11, 14, 12]}).token_ids
    assert torch.equal(permuted, together[order])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_rows_tokens_do_not_depend_on_padding(llada, side):
    ids = text_ids()
    padding = torch.full((4, 5), 77)
    blank, filled = torch.zeros(ids.shape, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool)
    parts = [(padding, filled), (ids, blank)] if side == "left" else [(ids, blank), (padding, filled)]
    padded = sample_ids(
        llada, torch.cat([p[0] for p in parts], 1), is_padding=torch.cat([p[1] for p in parts], 1), **SETTINGS
    ).token_ids
    plain = sample_ids(llada, ids, **SETTINGS).token_ids
    assert torch.equal(padded[:, 5:] if side == "left" else padded[:, :-5], plain)


def test_stopping_at_eos_changes_nothing_up_to_and_including_it(llada):
    eos = llada.vocabulary.eos_token_id
    found = 0
    for seed in range(12):
        ids = text_ids(num_rows=4, num_open=24, seed=seed)
        arguments = dict(num_denoising_steps=12, block_length=8, vocabulary_range=(478, 484), temperature=1.0)
        whole = sample_ids(llada, ids, **arguments).token_ids[:, 9:]
        stopped = sample_ids(llada, ids, stop_at_eos=True, **arguments).token_ids[:, 9:]
        for row in range(4):
            places = (whole[row] == eos).nonzero()
            end = int(places[0]) + 1 if len(places) else 24
            found += len(places) > 0
            assert torch.equal(whole[row, :end], stopped[row, :end])
            assert (stopped[row, end:] == eos).all()
    assert found > 10


def test_stopping_at_eos_saves_forward_passes(llada):
    ids = text_ids(num_rows=4, num_open=24)
    arguments = dict(num_denoising_steps=24, block_length=4, vocabulary_range=(480, 483), temperature=1.0)
    whole = sample_ids(llada, ids, **arguments)
    stopped = sample_ids(llada, ids, stop_at_eos=True, **arguments)
    assert stopped.num_forward_rows < whole.num_forward_rows == 4 * 24


def test_draws_follow_the_softmax_at_their_temperature(llada):
    ids = open_after(torch.tensor([[1, 2, 3, 4]]).repeat(4000, 1), 1)
    out = sample_ids(llada, ids, num_denoising_steps=1, temperature=0.7, vocabulary_range=(100, 110), seeds=range(4000))
    expected = torch.softmax(llada.logits(ids[:1])[0, 4, 100:110].float() / 0.7, -1)
    counts = torch.bincount(out.token_ids[:, 4] - 100, minlength=10) / 4000
    assert torch.allclose(counts, expected, atol=5 * 0.5 / 4000**0.5)


def test_committed_logprobs_are_the_models_own_at_the_committing_state(llada):
    ids = text_ids()
    out = sample_ids(llada, ids, guidance_scale=1.5, **SETTINGS)
    current = ids.clone()
    for step in range(12):
        logprobs = torch.log_softmax(llada.logits(current).float(), -1)
        is_now = out.committed_step == step
        expected = logprobs.gather(-1, out.token_ids[..., None]).squeeze(-1)
        assert torch.allclose(out.committed_logprobs[is_now], expected[is_now], atol=1e-5)
        current[is_now] = out.token_ids[is_now]


def test_global_generators_are_untouched(llada):
    before = torch.get_rng_state()
    sample_ids(llada, text_ids(), **SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"num_denoising_steps": 6, "block_length": 5}, "do not divide into blocks of 5"),
        ({"num_denoising_steps": 5, "block_length": 6}, "choose a multiple of 2"),
        ({"num_denoising_steps": 6, "seeds": [1]}, "1 seeds for 4 rows"),
    ],
)
def test_impossible_settings_are_errors_that_say_what_is_wanted(llada, arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        sample_ids(llada, text_ids(), **arguments)


def test_a_row_without_masks_is_an_error(llada):
    with pytest.raises(ValueError, match="no mask token"):
        sample_ids(llada, torch.ones(1, 4, dtype=torch.long), num_denoising_steps=1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"remasking": "margin"}, "there is no 'margin'; "),
        ({"schedule": "cosin"}, "there is no 'cosin'; did you mean 'cosine'?"),
        (
            {"schedule": "shift", "schedule_shift": 0.0},
            "shift: Input should be greater than or equal to 0.001, given 0.0",
        ),
        ({"temperature": -1.0}, "temperature\n  Input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature\n  Input should be a finite number"),
        ({"guidance_scale": -1.0}, "guidance_scale\n  Input should be greater than or equal to 0"),
        ({"remasking_temperature": float("inf")}, "remasking_temperature\n  Input should be a finite number"),
        (
            {"remasking": "low_confidence_dynamic", "threshold": 0.0},
            "threshold: Input should be greater than 0, given 0.0",
        ),
        ({"editing_threshold": -0.5}, "editing_threshold\n  Input should be greater than or equal to 0"),
        ({"max_editing_rounds": -1}, "max_editing_rounds is -1"),
        ({"num_denoising_steps": 0}, "num_denoising_steps\n  Input should be greater than or equal to 1"),
        ({"block_length": 0}, "block_length\n  Input should be greater than or equal to 1"),
        ({"block_length": -4}, "block_length\n  Input should be greater than or equal to 1"),
        ({"vocabulary_range": (5, 5)}, "vocabulary_range is (5, 5); wanted start and stop"),
        ({"vocabulary_range": (-1, 5)}, "vocabulary_range is (-1, 5); wanted start and stop"),
    ],
)
def test_a_setting_that_means_nothing_is_named_with_what_is_wanted(setting: dict[str, Any], said: str) -> None:
    policy = load_policy(GOLDEN / "llada_tiny", dtype="float32", vocabulary={"mask_token_id": 500})
    ids = torch.tensor([[1, 2, 3, *[500] * 8]])
    with pytest.raises(ValueError, match=re.escape(said)):
        sample_ids(policy, ids, **({"num_denoising_steps": 8} | setting))
