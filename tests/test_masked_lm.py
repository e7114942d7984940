"""Encoders of transformers as policies: their own logits, an enumerated sampler, padding, checkpoints, learning."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import clipped_loss
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from unigrpo.learner.batch import collate
from unigrpo.learner.learner import Learner
from unigrpo.methods.estimators.unigrpo import UniGRPO
from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora, save_adapter, save_merged
from unigrpo.models.policies.masked_lm import MaskedLmPolicy
from unigrpo.rollouts import sample_ids
from unigrpo.rollouts.units import generate, plan_units
from unigrpo.settings.learning import LearnerSettings
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Message, PolicyVersion, Prompt

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
SIZES = {
    "vocab_size": 7,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.6,
}
CONFIGS = {
    "bert": SIZES,
    "modernbert": {
        **SIZES,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "cls_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "local_attention": 4,
    },
    "roberta": {**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {
        "vocab_size": 7,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 24,
        "initializer_range": 0.6,
    },
    "electra": {**SIZES, "embedding_size": 16},
    "deberta-v2": SIZES,
}


def write_checkpoint(folder: Path, model_type: str = "bert", has_tokenizer: bool = True, **changes: object) -> Path:
    from transformers import AutoConfig, AutoModelForMaskedLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model(model_type, **(CONFIGS[model_type] | changes))
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    if has_tokenizer:
        tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[PAD]"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.add_special_tokens(WORDS[:4])
        tokenizer.save(str(folder / "tokenizer.json"))
        roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": {"content": "[MASK]"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def policy(folder: Path) -> MaskedLmPolicy:
    loaded = load_policy(folder, dtype="float32")
    assert isinstance(loaded, MaskedLmPolicy)
    return loaded


@torch.no_grad()
@pytest.mark.parametrize("model_type", CONFIGS)
def test_logits_padding_and_tied_weights_equal_transformers_own(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    policy = load_policy(write_checkpoint(tmp_path, model_type), dtype="float32")
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 4, 5, 3, 6, 3], [1, 6, 3, 2, 5, 5]])
    torch.testing.assert_close(policy.logits(ids), reference(input_ids=ids).logits, atol=2e-6, rtol=0)
    assert set(policy.module.state_dict()) == set(reference.state_dict())
    assert len(list(policy.module.parameters())) == len(list(reference.parameters())), "tied weights are one"
    for is_in_front in (False, True):
        is_padding = torch.tensor([[False] * 6 + [True] * 3]).roll(3 if is_in_front else 0, dims=1).expand(2, -1)
        padded = torch.full((2, 9), 5).masked_scatter(~is_padding, ids)
        torch.testing.assert_close(policy.logits(padded, is_padding)[~is_padding], policy.logits(ids).flatten(0, 1))


def test_ids_are_the_tokenizers_own(policy: MaskedLmPolicy) -> None:
    vocabulary = policy.vocabulary
    assert (vocabulary.mask_token_id, vocabulary.eos_token_id, vocabulary.pad_token_id) == (3, 2, 0)
    assert vocabulary.special == {"bos": 1}
    assert vocabulary.size == 7


@torch.no_grad()
def exact_pairs(policy: MaskedLmPolicy, ids: list[int], first: int) -> dict[tuple[int, int], float]:
    """Return the probability of each pair that two steps of the sampler give, over every way to get there."""

    def distribution(place: int, **given: int) -> torch.Tensor:
        row = torch.tensor([ids])
        for name, token in given.items():
            row[0, first + int(name[1:])] = token
        return policy.module(input_ids=row).logits[0, first + place].double().softmax(-1)

    left, right = distribution(0), distribution(1)
    pairs = {pair: 0.0 for pair in itertools.product(range(7), repeat=2)}
    for a, b in pairs.copy():
        weight = float(left[a] * right[b])
        if left[a] >= right[b]:  # the left token is committed, the right one drawn again
            for token, probability in enumerate(distribution(1, p0=a)):
                pairs[a, token] += weight * float(probability)
        else:
            for token, probability in enumerate(distribution(0, p1=b)):
                pairs[token, b] += weight * float(probability)
    return pairs


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_sampler_at_temperature_one_has_the_enumerated_distribution(model_type: str, tmp_path: Path) -> None:
    # The mask token's own probability is made negligible: committed, it would be drawn again.
    policy = load_policy(write_checkpoint(tmp_path, model_type), dtype="float32")
    with torch.no_grad():
        policy.module.get_output_embeddings().bias[3] = -60.0
    ids, num_rows = [1, 4, 3, 3, 2], 20000
    wanted = exact_pairs(policy, ids, first=2)
    assert sum(wanted.values()) == pytest.approx(1.0)
    assert max(wanted.values()) < 0.6, "a distribution that a constant would not pass"
    out = sample_ids(policy, torch.tensor([ids]).expand(num_rows, -1), num_denoising_steps=2, temperature=1.0)
    found = torch.bincount(out.token_ids[:, 2] * 7 + out.token_ids[:, 3], minlength=49).double() / num_rows
    expected = torch.tensor([wanted[pair] for pair in itertools.product(range(7), repeat=2)]).double()
    standard_error = (expected * (1 - expected) / num_rows).sqrt() + 1e-6
    assert ((found - expected).abs() / standard_error).max() < 4.5
    assert (found - expected).abs().sum() / 2 < 0.02, "total variation"


def test_prompt_without_a_template_is_start_text_end_and_gaps(policy: MaskedLmPolicy) -> None:
    prompt = Prompt(id="0", kind="reason", messages=(Message(role="user", text="a b"), Message(role="user", text="c")))
    canvas = policy.encode(prompt, SamplingSettings(completion_length=2, num_denoising_steps=2))
    assert canvas.token_ids.tolist() == [1, 4, 5, 2, 6, 2, 3, 3]
    policy.text_tokenizer.chat_template = "[CLS] {{ messages[0].content }} c"
    canvas = policy.encode(prompt, SamplingSettings(completion_length=1, num_denoising_steps=1))
    assert canvas.token_ids.tolist() == [1, 4, 5, 6, 3]
    assert policy.decode_text(np.array([4, 6, 2, 5])) == "a c"


def test_old_names_and_unused_heads_of_released_files_are_read(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    assert set(old) != set(state)
    old |= {"cls.seq_relationship.weight": torch.zeros(2, 16), "bert.pooler.dense.weight": torch.zeros(16, 16)}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file(old, tmp_path / "model.safetensors")
    ids = torch.tensor([[1, 3, 4]])
    assert torch.equal(
        load_policy(tmp_path, dtype="float32").logits(ids), load_policy(folder, dtype="float32").logits(ids)
    )


def test_rows_longer_than_the_positions_are_refused(policy: MaskedLmPolicy) -> None:
    with pytest.raises(ValueError, match=r"25 tokens.*positions for 24"):
        policy.logits(torch.ones(1, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="vocabulary range 4:8"):
        policy.head(torch.zeros(1, 16), (4, 8))


def test_inside_a_range_the_mask_token_has_no_probability(policy: MaskedLmPolicy) -> None:
    hidden = torch.ones(2, 16)
    assert torch.equal(policy.head(hidden, (4, 7)), policy.head(hidden)[:, 4:7])
    assert policy.head(hidden, (0, 7)).softmax(-1)[0, 3] == 0


def test_gradient_checkpointing_gives_the_same_gradients_without_dropout(folder: Path) -> None:
    gradients = []
    for is_checkpointing in (False, True):
        policy = load_policy(folder, dtype="float32", gradient_checkpointing=is_checkpointing)
        calls: list[int] = []
        layer = policy.module.bert.encoder.layer[0].attention
        layer.register_forward_hook(lambda *_arguments, calls=calls: calls.append(1))
        policy.logits(torch.tensor([[1, 4, 3, 3]])).square().sum().backward()
        assert len(calls) == 1 + is_checkpointing
        gradients.append([weight.grad for weight in policy.module.parameters()])
        assert not policy.module.bert.encoder.layer[0].output.dropout.training
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapter_keeps_transformers_names_and_reads_back_in_peft(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM

    policy = load_policy(folder, dtype="float32")
    ids = torch.tensor([[1, 4, 3, 3]])
    base = policy.logits(ids).detach()
    add_lora(policy, LoraSettings(r=2, alpha=4), seed=0)
    assert torch.equal(policy.logits(ids), base), "a fresh adapter is the base"
    policy.logits(ids).square().sum().backward()
    adapters = {name: weight for name, weight in policy.module.named_parameters() if weight.requires_grad}
    assert len(adapters) == 2 * len(policy.lora_targets) == 2 * 12
    assert all(weight.grad is not None for weight in adapters.values())
    with torch.no_grad():
        for weight in adapters.values():
            weight.add_(0.1)
    changed = policy.logits(ids).detach()
    assert (changed - base).abs().max() > 1e-2
    save_adapter(policy, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(plain(input_ids=ids).logits, changed, atol=1e-5, rtol=0)
    save_merged(policy, tmp_path / "merged")
    torch.testing.assert_close(
        load_policy(tmp_path / "merged", dtype="float32").logits(ids), changed, atol=1e-5, rtol=0
    )


def test_learner_raises_the_probability_of_the_rewarded_word(policy: MaskedLmPolicy) -> None:
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    settings = LearnerSettings(lr=1e-2, num_inner_updates=2, lr_schedule="constant")
    learner = Learner(policy, None, UniGRPO(), clipped_loss(coef=0.0), settings, num_steps=20)
    prompt = Prompt(id="0", kind="reason", messages=(Message(role="user", text="a"),))
    sampling = SamplingSettings(completion_length=3, num_denoising_steps=3, stop_at_eos=False)
    version = PolicyVersion(step=0, kind="adapter", sha256="0")
    means = []
    for step in range(20):
        (unit,) = plan_units([(prompt, sampling)], group_size=32, rows_per_unit=32, seed=0, step=step)
        rollouts = generate(policy, unit, version)
        rewards = np.array([(rollout.token_ids[rollout.is_completion] == 4).mean() for rollout in rollouts])
        means.append(rewards.mean())
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        batch = collate(rollouts, advantages, policy.vocabulary.eos_token_id)
        begun = learner.begin_batch(step, batch)
        assert not any(begun.update(n).is_skipped for n in range(begun.num_updates))
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.3, means


def test_a_folder_without_tokenizer_needs_the_ids(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, has_tokenizer=False)
    with pytest.raises(ValueError, match="mask id"):
        load_policy(tmp_path, dtype="float32")
    policy = load_policy(tmp_path, dtype="float32", vocabulary={"mask_token_id": 3, "eos_token_id": 2})
    assert policy.vocabulary.mask_token_id == 3
