import pytest
import torch

from unigrpo.learner.logprobs import token_logprobs
from unigrpo.models.base import Vocabulary
from unigrpo.models.layers.llada import Llada, LladaConfig
from unigrpo.models.policies.llada import LladaPolicy
from unigrpo.types import ModelInput

SIZE, MASK = 40, 39
HEAD = "model.transformer.ff_out.weight"
RANGES = ((0, 25), (25, 38), None)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    config = LladaConfig.from_dict(
        {"d_model": 16, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 24, "embedding_size": SIZE}
    )
    vocabulary = Vocabulary(size=SIZE, mask_token_id=MASK, eos_token_id=1, pad_token_id=1, text_range=(0, 25))
    return LladaPolicy(module=Llada(config), vocabulary=vocabulary)


@pytest.fixture
def case():
    """Ids, targets inside their ranges, scored positions (none in row 2), range of each position."""
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, SIZE, (4, 7), generator=generator)
    range_index = torch.randint(0, 3, (4, 7), generator=generator)
    targets = torch.where(range_index == 1, 25 + token_ids % 13, token_ids % 25)
    is_scored = torch.rand(4, 7, generator=generator) < 0.6
    is_scored[2] = False
    return token_ids, targets, is_scored, range_index


def slow_logprobs(policy, token_ids, targets, is_scored, range_index, ranges):
    """Full logits, then position by position in float64."""
    logits = policy.logits(token_ids)
    scores = []
    for row, place in is_scored.nonzero().tolist():
        start, stop = ranges[range_index[row, place]] or (0, SIZE)
        row_logits = logits[row, place, start:stop].double()
        scores.append(row_logits[targets[row, place] - start] - row_logits.logsumexp(0))
    return torch.stack(scores)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("trains", ["body", "head", "all", "none"])
def test_values_and_gradients_equal_full_logits_in_slow_loops(policy, case, chunk, trains):
    token_ids, targets, is_scored, range_index = case
    parameters = dict(policy.module.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_({"all": True, "none": False}.get(trains, (name == HEAD) == (trains == "head")))
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    scores = token_logprobs(
        policy, ModelInput(token_ids=token_ids), targets, is_scored, range_index, RANGES, chunk=chunk
    )
    expected = slow_logprobs(policy, token_ids, targets, is_scored, range_index, RANGES)
    torch.testing.assert_close(scores.double(), expected, atol=2e-6, rtol=0)
    cotangent = torch.linspace(-1, 2, len(scores))
    if trained:
        got = torch.autograd.grad(scores, list(trained.values()), cotangent)
        wanted = torch.autograd.grad(expected, list(trained.values()), cotangent.double())
        for name, one, other in zip(trained, got, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4, msg=name)
    else:
        assert not scores.requires_grad


@pytest.mark.parametrize("has_frozen_head", [True, False])
def test_chunk_size_changes_nothing(policy, case, has_frozen_head):
    token_ids, targets, is_scored, _ = case
    policy.module.get_parameter(HEAD).requires_grad_(not has_frozen_head)
    results = []
    for chunk in (2, 1024):
        policy.module.zero_grad()
        scores = token_logprobs(policy, ModelInput(token_ids=token_ids), targets, is_scored, chunk=chunk)
        scores.square().sum().backward()
        query = policy.module.get_parameter("model.transformer.blocks.0.q_proj.weight")
        results.append((scores.detach(), query.grad.clone()))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_gradient_equals_finite_differences(policy, case):
    token_ids, targets, is_scored, range_index = case
    policy.module.requires_grad_(False).double()
    generator = torch.Generator().manual_seed(2)
    embedded = torch.randn(4, 7, 16, generator=generator, dtype=torch.float64, requires_grad=True)

    class HiddenGiven:
        head = staticmethod(policy.head)

        def __init__(self, hidden):
            self.hidden = lambda _: hidden

    def scores(hidden):
        return token_logprobs(
            HiddenGiven(hidden), ModelInput(token_ids=token_ids), targets, is_scored, range_index, RANGES, chunk=2
        )

    assert torch.autograd.gradcheck(scores, (embedded,))


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("has_frozen_head", [True, False])
def test_a_pass_without_gradient_gives_the_same_floats(policy, case, chunk, has_frozen_head):
    token_ids, targets, is_scored, range_index = case
    policy.module.get_parameter(HEAD).requires_grad_(not has_frozen_head)
    arguments = (policy, ModelInput(token_ids=token_ids), targets, is_scored, range_index, RANGES, chunk)
    scores = token_logprobs(*arguments)
    with torch.no_grad():
        assert torch.equal(token_logprobs(*arguments), scores)


def test_no_tensor_is_larger_than_chunk_times_vocabulary(policy, case, monkeypatch):
    token_ids, targets, is_scored, _ = case
    sizes = []
    head = policy.head

    def watched(hidden, vocabulary_range=None):
        sizes.append(len(hidden))
        return head(hidden, vocabulary_range)

    monkeypatch.setattr(policy, "head", watched)
    for is_trained in (True, False):
        policy.module.get_parameter(HEAD).requires_grad_(is_trained)
        token_logprobs(policy, ModelInput(token_ids=token_ids), targets, is_scored, chunk=4).sum().backward()
    assert max(sizes) == 4


def test_half_precision_logits_are_widened_before_the_softmax(policy, case):
    token_ids, targets, is_scored, _ = case
    policy.module.bfloat16()
    scores = token_logprobs(policy, ModelInput(token_ids=token_ids), targets, is_scored, chunk=3)
    expected = policy.logits(token_ids).float().log_softmax(-1).gather(-1, targets[..., None])[..., 0][is_scored]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=2e-2, rtol=0)
    scores.sum().backward()


@pytest.mark.parametrize("chunk", [2, 1024])
def test_padding_and_neighbors_do_not_change_a_row(policy, case, chunk):
    token_ids, targets, is_scored, range_index = case
    together = token_logprobs(
        policy, ModelInput(token_ids=token_ids), targets, is_scored, range_index, RANGES, chunk=chunk
    )
    padded = [torch.nn.functional.pad(tensor[:1], (0, 3)) for tensor in (token_ids, targets, is_scored, range_index)]
    is_padding = (torch.arange(10) >= 7)[None]
    alone = token_logprobs(
        policy, ModelInput(token_ids=padded[0], is_padding=is_padding), *padded[1:], RANGES, chunk=chunk
    )
    torch.testing.assert_close(alone, together[: len(alone)], atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 1024])
def test_nothing_scored_gives_an_empty_vector_with_zero_gradient(policy, case, chunk):
    token_ids, targets, is_scored, range_index = case
    scores = token_logprobs(
        policy, ModelInput(token_ids=token_ids), targets, torch.zeros_like(is_scored), range_index, RANGES, chunk=chunk
    )
    assert scores.shape == (0,)
    scores.sum().backward()


def test_global_generator_stays_as_it_was(policy, case):
    token_ids, targets, is_scored, _ = case
    state = torch.get_rng_state()
    token_logprobs(policy, ModelInput(token_ids=token_ids), targets, is_scored, chunk=2).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_true_token_outside_of_its_range_is_named(policy, case):
    token_ids, _, is_scored, _ = case
    with pytest.raises(ValueError, match=r"true tokens 30\.\.30 do not lie in the vocabulary range 0:25"):
        token_logprobs(
            policy, ModelInput(token_ids=token_ids), torch.full_like(token_ids, 30), is_scored, None, ((0, 25),)
        )


def test_a_mask_of_another_shape_is_named(policy, case):
    token_ids, targets, is_scored, _ = case
    with pytest.raises(ValueError, match="as is_scored"):
        token_logprobs(policy, ModelInput(token_ids=token_ids), targets[:, 1:], is_scored)
    with pytest.raises(ValueError, match="as the ids"):
        token_logprobs(policy, ModelInput(token_ids=token_ids[1:]), targets, is_scored)
