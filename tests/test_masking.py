import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.completion_masks import completion_masks

from unigrpo.learner.batch import collate
from unigrpo.types import PolicyVersion, Prompt, Rollout, Rollouts, Span

EOS, PAD = 1, 1


def make_rollout(token_ids, spans, prompt_id="p", seed=0, given=()):
    """A rollout whose open positions are those of the open spans less ``given``."""
    token_ids = np.array(token_ids, dtype=np.int64)
    committed = np.full(len(token_ids), -1, dtype=np.int32)
    is_completion = np.zeros(len(token_ids), dtype=bool)
    for span in spans:
        ended = False
        for place in range(span.start, span.stop) if span.is_open else ():
            if place in given:
                continue
            committed[place] = 0
            is_completion[place] = not ended
            ended = ended or (span.kind == "text" and token_ids[place] == EOS)
    return Rollout(
        prompt=Prompt(id=prompt_id, kind="reason", messages=()),
        sample_index=0,
        token_ids=token_ids,
        spans=tuple(spans),
        is_completion=is_completion,
        committed_step=committed,
        committed_logprobs=np.zeros(len(token_ids), dtype=np.float32),
        text="",
        image=None,
        seed=seed,
        policy_version=PolicyVersion(step=0, kind="adapter", sha256=""),
        is_truncated=False,
    )


def rollouts(*items):
    return Rollouts(items=items, group_ids=tuple(range(len(items))))


def text_rollout(token_ids, prompt_length, **keywords):
    prompt = Span(kind="prompt", start=0, stop=prompt_length)
    completion = Span(kind="text", start=prompt_length, stop=len(token_ids), is_open=True, vocabulary_range=(0, 8))
    return make_rollout(token_ids, [prompt, completion], **keywords)


@given(rows=st.lists(st.lists(st.tuples(st.sampled_from([EOS, 3]), st.booleans()), min_size=6, max_size=6), min_size=1))
def test_completion_ends_with_the_first_open_eos(rows):
    token_ids = torch.tensor([[token for token, _ in row] for row in rows])
    is_open = torch.tensor([[flag for _, flag in row] for row in rows])
    is_completion, is_tail = completion_masks(token_ids, is_open, EOS)
    for row, tokens in enumerate(rows):
        ended = False
        for place, (token, is_here_open) in enumerate(tokens):
            assert is_completion[row, place] == (is_here_open and not ended)
            assert is_tail[row, place] == (is_here_open and ended)
            ended = ended or (is_here_open and token == EOS)


def test_an_eos_ends_its_own_span_and_no_picture():
    #                         text      text      codes
    token_ids = torch.tensor([[3, 1, 1, 3, 3, 1, 1, 5]])
    span_index = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    is_text = span_index < 2
    is_completion, is_tail = completion_masks(token_ids, torch.ones_like(is_text), EOS, is_text, span_index)
    assert is_tail.long().tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(is_completion, ~is_tail)


def test_collate_partitions_every_position():
    batch = collate(
        rollouts(text_rollout([2, 3, 4, EOS, EOS], 2, seed=7), text_rollout([2, EOS, 4], 1, prompt_id="q", seed=8)),
        np.array([0.5, -0.5]),
        PAD,
    )
    kinds = [batch.is_prompt, batch.is_completion, batch.is_tail, batch.is_padding]
    assert (torch.stack(kinds).sum(0) == 1).all()
    letters = torch.stack(kinds).long().argmax(0)
    assert letters.tolist() == [[0, 0, 1, 1, 2], [0, 1, 2, 3, 3]]
    assert batch.token_ids.tolist() == [[2, 3, 4, 1, 1], [2, 1, 4, PAD, PAD]]
    assert batch.row_seeds.tolist() == [7, 8] and batch.lengths.tolist() == [5, 3]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.group_ids.tolist() == [0, 1] and batch.advantages.tolist() == [0.5, -0.5]


def test_collate_keeps_one_vocabulary_range_a_span_kind():
    picture = [
        Span(kind="prompt", start=0, stop=1),
        Span(kind="text", start=1, stop=2, is_open=True, vocabulary_range=(0, 8)),
        Span(kind="image_codes", start=2, stop=4, is_open=True, vocabulary_range=(10, 20)),
    ]
    batch = collate(rollouts(text_rollout([2, 3], 1), make_rollout([2, 3, 11, 12], picture)), np.zeros(2), PAD)
    assert batch.ranges == ((0, 8), (10, 20))
    assert batch.range_index[:, 1].tolist() == [0, 0] and batch.range_index[1, 2:].tolist() == [1, 1]


def test_given_tokens_inside_an_open_span_are_prompt():
    spans = [Span(kind="image_codes", start=0, stop=4, is_open=True)]
    batch = collate(rollouts(make_rollout([2, 3, 4, 5], spans, given=(1,))), np.zeros(1), PAD)
    assert batch.is_prompt.tolist() == [[False, True, False, False]] and not batch.is_tail.any()
    assert batch.prompt_lengths.tolist() == [0]  # what is given after the first open position is no prompt of it


def test_wrong_counts_are_named():
    with pytest.raises(ValueError, match="1 rollouts and 2 advantages"):
        collate(rollouts(text_rollout([2, 3], 1)), np.zeros(2), PAD)
    with pytest.raises(ValueError, match="is_text has shape"):
        completion_masks(torch.zeros(1, 2), torch.zeros(1, 2).bool(), EOS, torch.zeros(1, 3).bool())
