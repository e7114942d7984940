"""LLaDA-V: tower, features, logits, tokens and training loss equal the reference; several pictures and turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from llava_specimens import FROM_PICTURE, PICTURES, Golden, sampling_of
from oracles.sft_losses import loss_lm
from PIL import Image

from unigrpo.models import load_policy
from unigrpo.models.adapter import add_lora
from unigrpo.models.layers.siglip import tower_config
from unigrpo.models.llava import PLACEHOLDER, SYSTEM, VisionEncoder, embed
from unigrpo.models.pictures.tiles import cut_tiles
from unigrpo.rollouts import sample
from unigrpo.settings.policy import LoraSettings
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.supervised.losses import text_mask_prob
from unigrpo.testing.tiny.make_tiny import make_tiny
from unigrpo.types import Message, ModelInput, Prompt, Span

STRICT = ("square_s16_g16_b16", "wide_s8_g16_b8", "tall_s8_g32_b16", "big_s6_g12_b4", "text_s16_g16_b8", "square_cfg1")
"""The released sampler's cases; every margin is over 2e-3."""
OTHER_SAMPLER = {
    "drl_static_conf": "low_confidence",
    "drl_static_margin": "full_margin",
    "drl_dyn_lo": "low_confidence_dynamic",
    "drl_dyn_hi": "low_confidence_dynamic",
}
"""Cases of dLLM-RL's sampler, which bans the mask token alone. Its neg_entropy commits the least certain: a bug. Its
``drl_eot`` case fills nothing behind an end once that is there, so it is another rule than stopping early."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("lladav_tiny")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory):
    """A random checkpoint with a tokenizer."""
    return load_policy(make_tiny("llada_v", tmp_path_factory.mktemp("tiny") / "policy"), dtype="float32")


def question(*messages: Message, task: str = "understand") -> Prompt:
    return Prompt(id="q", kind=task, messages=messages)


SAMPLING = SamplingSettings(completion_length=8, num_denoising_steps=4)


@torch.no_grad()
def test_tower_and_projector_equal_the_reference(golden: Golden) -> None:
    model, tiles = golden.policy.module.model, golden.policy.module.vision_encoder.tiles
    found = model.vision_tower.vision_tower(cut_tiles(golden.picture("square"), tiles))
    assert (found - golden.tensor("tower_square")).abs().max() <= 1e-5
    assert (model.mm_projector(found) - golden.tensor("projected_square")).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", PICTURES)
def test_embeddings_and_logits_equal_the_reference(golden: Golden, name: str) -> None:
    policy, ids, picture = golden.policy, golden.tensor("input_ids"), golden.picture(name)
    grown = policy.grow(ids, None, [golden.features(name)])
    embedded = embed(policy.module.model.embed_tokens, grown.token_ids, grown.image_features)
    assert (embedded - golden.tensor(f"embeds_{name}")).abs().max() <= 1e-5
    places, wanted = golden.tensor(f"logits_pos_{name}"), golden.tensor(f"logits_{name}")
    assert (policy.head(policy.hidden(grown))[:, places] - wanted).abs().max() <= 2e-5
    assert (policy.logits(ids, images=[picture])[:, places] - wanted).abs().max() <= 2 * FROM_PICTURE


@torch.no_grad()
def test_two_pictures_in_a_prompt_equal_the_reference(golden: Golden) -> None:
    eye, wanted = golden.policy.module.vision_encoder, golden.tensor("embeds_two")
    lengths = {name: len(eye.features(golden.picture(name))) for name in PICTURES}
    ids = golden.tensor("input_ids_two")
    pairs = [
        (first, second)
        for first in PICTURES
        for second in PICTURES
        if lengths[first] + lengths[second] + ids.shape[1] - 2 == wanted.shape[1]
    ]
    table = golden.policy.module.model.embed_tokens
    errors = []
    for pair in pairs:
        grown = golden.policy.grow(ids, None, [golden.features(name) for name in pair])
        errors.append((embed(table, grown.token_ids, grown.image_features) - wanted).abs().max())
    assert min(errors) <= 1e-5


@pytest.mark.parametrize("name", STRICT)
def test_tokens_equal_the_released_sampler(golden: Golden, name: str) -> None:
    case = golden.case(name)
    assert case["min_argmax_margin"] > 3e-5 < case["min_selection_log_gap"]
    pictures = [case["image"]] if case["image"] else []
    sampling = sampling_of(case, stop_at_eos=False)
    canvas = golden.canvas(golden.arrays[f"in_{name}"][0], pictures, sampling)
    found = sample(golden.policy, [canvas], sampling, [0]).token_ids[0]
    assert found[-case["gen_length"] :].tolist() == golden.arrays[f"out_{name}"][0].tolist()
    assert found[: -case["gen_length"]].tolist() == canvas.token_ids[: -case["gen_length"]].tolist()


def test_given_text_after_the_answer_is_attended_to(golden: Golden) -> None:
    case = golden.case("square_suffix")
    suffix = [int(token) for token in case["generation_suffix"].split()]
    canvas = golden.canvas(golden.arrays["in_square_suffix"][0], ["square"], sampling_of(case))
    end = len(canvas.token_ids)
    longer = replace(
        canvas,
        token_ids=np.concatenate([canvas.token_ids, suffix]),
        spans=(*canvas.spans, Span(kind="prompt", start=end, stop=end + len(suffix))),
    )
    found = (
        sample(golden.policy, [longer], sampling_of(case, stop_at_eos=False), [0])
        .token_ids[0, end - case["gen_length"] :]
        .tolist()
    )
    assert found == golden.arrays["out_square_suffix"][0].tolist()


def test_a_stop_token_ends_the_answer_and_changes_nothing_before_it(golden: Golden) -> None:
    stop = int(golden.arrays["stop_square_stop"][0])
    stopping = Golden("lladav_tiny", eos=stop, pad=481)
    case = golden.case("square_stop")
    ids = golden.arrays["in_square_stop"][0]
    sampling = sampling_of(case)
    out = sample(stopping.policy, [stopping.canvas(ids, ["square"], sampling)], sampling, [0])
    answer = out.token_ids[0, -case["gen_length"] :].tolist()
    wanted = golden.arrays["out_square_stop"][0].tolist()
    assert answer == wanted + [stop] * (len(answer) - len(wanted))
    assert out.num_forward_rows < case["steps"]  # the reference, which leaves what follows the stop, needs 6
    canvas = golden.canvas(ids, ["square"], sampling)
    endless = sample(golden.policy, [canvas], sampling_of(case, stop_at_eos=False), [0])
    assert endless.token_ids[0, -case["gen_length"] :].tolist() == golden.arrays["nostop_square_stop"][0].tolist()


@pytest.mark.parametrize("name", OTHER_SAMPLER)
def test_tokens_equal_the_sampler_of_dllm_rl(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden.policy, "banned_ids", (golden.policy.vocabulary.mask_token_id,))
    case = golden.case(name)
    above = {"threshold": case["unmask_threshold"]} if "unmask_threshold" in case else {}
    sampling = sampling_of(case, stop_at_eos=False, remasking={"use": OTHER_SAMPLER[name], **above})
    canvas = golden.canvas(golden.arrays[f"in_{name}"][0], [case["image"]], sampling)
    out = sample(golden.policy, [canvas], sampling, [0])
    length = case["gen_length"]
    assert out.token_ids[0, -length:].tolist() == golden.arrays[f"out_{name}"][0].tolist()


@torch.no_grad()
def test_training_loss_equals_the_reference(golden: Golden) -> None:
    policy = golden.policy
    is_padding = golden.tensor("train_attention_mask") == 0
    num_features = (is_padding.logical_not().sum(1) - (golden.tensor("train_input_ids") != PLACEHOLDER).sum(1)).tolist()
    features = {
        len(found): found
        for found in (policy.module.vision_encoder.features(golden.picture(name)) for name in PICTURES)
    }
    grown = policy.grow(golden.tensor("train_input_ids"), None, [features[count] for count in num_features])
    is_masked, labels = golden.tensor("train_masked"), golden.tensor("train_labels_expanded")
    noisy = replace(grown, token_ids=grown.token_ids.masked_fill(is_masked, 500), is_padding=is_padding)
    logits = policy.head(policy.hidden(noisy))
    assert (logits[is_masked] - golden.tensor("train_logits_masked")).abs().max() <= 2e-5
    probability = text_mask_prob(golden.tensor("train_t"), 1e-3)[:, None].expand(is_masked.shape)
    loss = loss_lm(logits, labels, is_masked, probability, (labels != -100).sum(1))
    assert abs(float(loss) - float(golden.arrays["train_loss"])) <= 1e-5


def ids_of(policy, spans: Sequence[Span], kind: str) -> list[int]:
    return [span.stop - span.start for span in spans if span.kind == kind]


def test_pictures_stand_before_their_message_over_several_turns(policy) -> None:
    wide, tall = Image.new("RGB", (120, 40), "red"), Image.new("RGB", (30, 90), "blue")
    canvas = policy.encode(
        question(
            Message(role="user", text="Which?", images=(wide, tall)),
            Message(role="assistant", text="Both."),
            Message(role="user", text="And this?", images=(wide,)),
        ),
        SAMPLING,
    )
    counts = [len(policy.module.vision_encoder.features(picture)) for picture in (wide, tall, wide)]
    assert ids_of(policy, canvas.spans, "image_slot") == counts
    assert canvas.image_features is not None and len(canvas.image_features) == sum(counts)
    is_picture = canvas.token_ids >= policy.vocabulary.size
    assert (canvas.token_ids[is_picture] - policy.vocabulary.size).tolist() == list(range(sum(counts)))
    starts = [span.start for span in canvas.spans if span.kind == "image_slot"]
    text = [
        policy.text_tokenizer.decode(canvas.token_ids[span.start : span.stop].tolist())
        for span in canvas.spans
        if span.kind == "prompt"
    ]
    assert starts == sorted(starts)
    assert SYSTEM in text[0] and text[1].strip() == ""
    assert "Which?" in text[2] and "Both." in text[2] and "And this?" in text[3]


def test_a_mark_in_the_text_says_where_a_picture_stands(policy) -> None:
    picture = Image.new("RGB", (56, 56), "red")
    marked = policy.encode(question(Message(role="user", text="Is <image> red?", images=(picture,))), SAMPLING)
    before = next(index for index, span in enumerate(marked.spans) if span.kind == "image_slot")
    ids = marked.token_ids[marked.spans[before - 1].start : marked.spans[before - 1].stop].tolist()
    assert policy.text_tokenizer.decode(ids).endswith("Is ")
    with pytest.raises(ValueError, match="has 1 pictures and <image> 2 times"):
        policy.encode(question(Message(role="user", text="<image> <image>", images=(picture,))), SAMPLING)
    with pytest.raises(ValueError, match="with 0 pictures; wanted reason without"):
        policy.encode(question(Message(role="user", text="What?")), SAMPLING)


def test_the_end_of_the_turn_ends_a_completion_and_structure_is_never_drawn(policy) -> None:
    special = policy.vocabulary.special
    assert policy.vocabulary.eos_token_id == special["eot"]
    assert set(policy.banned_ids) == {
        policy.vocabulary.pad_token_id,
        special["bos"],
        special["start_header"],
        special["end_header"],
    }
    assert special["eot"] not in policy.banned_ids


def test_the_eye_is_not_among_what_trains_or_takes_lora(policy) -> None:
    trained = {name for name, weight in policy.module.named_parameters() if weight.requires_grad}
    assert trained and not any("vision_tower" in name or "projector" in name or "newline" in name for name in trained)
    assert not any("vision" in name for name in policy.lora_targets)
    with pytest.raises(ValueError, match="no linear layer"):
        add_lora(policy, LoraSettings(targets=["model.mm_projector.0"]), seed=0)


@torch.no_grad()
def test_features_of_a_batch_share_one_table_and_rows_do_not_mix(policy) -> None:
    red, blue = (Image.new("RGB", (56, 56), color) for color in ("red", "blue"))
    canvases = [
        policy.encode(question(Message(role="user", text=text, images=pictures)), SAMPLING)
        for text, pictures in (("Which colour?", (red,)), ("Which?", (blue, red)))
    ]
    greedy = SAMPLING.model_copy(update={"temperature": 0.0, "stop_at_eos": False})
    together = sample(policy, [canvases[0], canvases[1], canvases[0]], greedy, [1, 2, 1])
    for row, canvas in enumerate((canvases[0], canvases[1], canvases[0])):
        alone = sample(policy, [canvas], greedy, [(1, 2, 1)[row]])
        assert together.token_ids[row, : len(canvas.token_ids)].tolist() == alone.token_ids[0].tolist()


def test_logits_need_a_picture_a_placeholder(golden: Golden) -> None:
    with pytest.raises(ValueError, match="0 pictures for 1 placeholders"):
        golden.policy.logits(golden.tensor("input_ids"))


def test_released_tower_sizes_are_known_by_name_and_others_must_be_given(golden: Golden) -> None:
    known = tower_config({"mm_vision_tower": "google/siglip2-so400m-patch14-384"})
    assert (known.image_size, known.patch_size, known.num_hidden_layers) == (384, 14, 26)
    assert (known.hidden_size, known.intermediate_size, known.num_attention_heads) == (1152, 4304, 16)
    with pytest.raises(ValueError, match="add them as vision_config"):
        tower_config({"mm_vision_tower": "openai/clip-vit-large-patch14"})
    with pytest.raises(ValueError, match="computes mlp2x_gelu"):
        VisionEncoder(golden.policy.module.model, golden.config | {"mm_projector_type": "linear"}, 64)


@torch.no_grad()
def test_padding_changes_no_row(golden: Golden) -> None:
    policy = golden.policy
    plain = policy.grow(
        golden.tensor("input_ids"), None, [policy.module.vision_encoder.features(golden.picture("square"))]
    )
    hidden = policy.hidden(plain)
    ids = torch.nn.functional.pad(plain.token_ids, (0, 7), value=3)
    is_padding = torch.arange(ids.shape[1])[None] >= plain.token_ids.shape[1]
    padded = policy.hidden(ModelInput(token_ids=ids, is_padding=is_padding, image_features=plain.image_features))
    assert (padded[:, : hidden.shape[1]] - hidden).abs().max() <= 1e-5
