"""The supervised losses against the reference's own numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.sft_losses import IGNORED, loss_lm, loss_mmu, loss_t2i

from unigrpo.models import load_policy
from unigrpo.supervised.losses import num_masked_codes, text_mask_prob, text_weights

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"
MASK, IPAD, PREFIX = 500, 493, 17
IDS = {
    "bos": 480,
    "soi": 484,
    "eoi": 485,
    "t2i": 488,
    "mmu": 489,
    "ipad": 493,
    "start_header": 502,
    "end_header": 503,
    "eot": 504,
    "tokenizer_length": 505,
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "train_losses.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def losses(golden, logits):
    labels, is_masked = golden["labels"], golden["input_ids"] == MASK
    lm = (logits[2:4], labels[2:4], is_masked[2:4], golden["p_mask_lm"])
    return {
        "loss_t2i": loss_t2i(logits[:2], labels[:2], PREFIX),
        "loss_lm_no_answer_lengths": loss_lm(*lm),
        "loss_lm_with_answer_lengths": loss_lm(*lm, golden["answer_lengths_lm"]),
        "loss_mmu": loss_mmu(logits[4:], labels[4:], is_masked[4:], golden["p_mask_mmu"], golden["answer_lengths_mmu"]),
    }


def test_losses_of_the_stored_logits_are_the_reference_s(golden):
    for name, loss in losses(golden, golden["logits"]).items():
        assert loss.item() == pytest.approx(golden[name].item(), abs=1e-5), name


def test_losses_through_our_policy_are_the_reference_s_and_padding_is_hidden(golden):
    policy = load_policy(GOLDEN, dtype="float32", vocabulary=IDS)
    with torch.no_grad():
        logits = policy.logits(golden["input_ids"], golden["input_ids"] == IPAD)
    found = losses(golden, logits)
    # The reference feeds a mask that hides nothing; its number with a real one is stored beside it.
    expected = {name: golden[name].item() for name in found} | {"loss_t2i": golden["loss_t2i_if_bool_mask"].item()}
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected, abs=1e-5)
    assert abs(golden["loss_t2i"] - golden["loss_t2i_if_bool_mask"]) > 0.05


def test_text_loss_equals_slow_double_loop(golden):
    logits, labels, ids = golden["logits"][4:], golden["labels"][4:], golden["input_ids"][4:]
    total = 0.0
    for row in range(2):
        for place in range(ids.shape[1]):
            if ids[row, place] == MASK:
                logprob = logits[row, place].double().log_softmax(-1)[labels[row, place]].item()
                p, length = golden["p_mask_mmu"][row, place].item(), golden["answer_lengths_mmu"][row, place].item()
                total -= logprob / p / length / 2
    assert golden["loss_mmu"].item() == pytest.approx(total, abs=1e-5)


def test_a_row_without_a_mask_adds_nothing():
    is_masked = torch.tensor([[True, True, False], [False, False, False]])
    weights = text_weights(is_masked, torch.full((2, 3), 0.5), torch.tensor([2, 3]))
    assert weights.tolist() == [0.5, 0.5]  # 1 / (0.5 * 2 tokens * 2 rows)
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    nothing = loss_lm(logits, labels, torch.zeros_like(is_masked), torch.ones(2, 3))
    assert nothing.item() == 0.0


def test_a_picture_without_a_label_is_refused():
    with pytest.raises(ValueError, match="no label after the first 1 of 3"):
        loss_t2i(torch.zeros(1, 3, 4), torch.full((1, 3), IGNORED), 1)


def test_text_mask_probability_runs_from_the_least_to_one():
    prob = text_mask_prob(torch.tensor([0.0, 0.5, 1.0]), 1e-3)
    assert prob.tolist() == pytest.approx([0.001, 0.5005, 1.0])


def test_masked_codes_follow_the_cosine_and_are_never_none():
    counts = num_masked_codes(torch.tensor([0.0, 0.5, 2 / 3, 1.0]), 16)
    assert counts.tolist() == [16, 11, 8, 1]  # 16 cos(pi/4) = 11.3, 16 cos(pi/3) = 8
