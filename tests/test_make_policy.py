"""The tiny policy's files: the released layout, ids that agree, a tokenizer that loses nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from unigrpo.quickstart.makers.policy import (
    SPECIAL_TOKENS,
    build_config,
    build_tokenizer,
    build_weights,
    main,
    make_policy,
)

TOKENIZER = build_tokenizer()
GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("tiny") / "policy", seed=3)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("37+48=", ["3", "7", "+", "4", "8", "="]),
        ("<think>15,08</think>85", ["<think>", "1", "5", ",", "0", "8", "</think>", "8", "5"]),
        ("red circle left of blue square", ["red", " circle", " left", " of", " blue", " square"]),
        ("user\n", ["user", "\n"]),
        ("ż", ["<0xC5>", "<0xBC>"]),
    ],
)
def test_words_digits_and_tags_are_one_token_each(text, tokens):
    assert TOKENIZER.encode(text).tokens == tokens


def test_every_word_of_the_scenes_is_one_token():
    from unigrpo.quickstart.scenes import COLORS, PLACE_WORDS, RELATIONS, SHAPES

    for word in {*COLORS, *SHAPES, *PLACE_WORDS, *" ".join(RELATIONS).split()}:
        assert len(TOKENIZER.encode(word).ids) == len(TOKENIZER.encode(f" {word}").ids) == 1, word


def test_special_tokens_are_single_and_have_the_ids_of_the_config():
    config = build_config(TOKENIZER)
    for token in SPECIAL_TOKENS:
        assert TOKENIZER.encode(token).ids == [TOKENIZER.token_to_id(token)]
    named = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>", "mask": "<|mdm_mask|>"}
    for name, token in named.items():
        assert config[f"{name}_token_id"] == TOKENIZER.token_to_id(token)


def test_the_config_has_every_key_of_the_released_one_and_its_image_offset_trap(folder):
    config = json.loads((folder / "config.json").read_text())
    golden = json.loads((GOLDEN / "config.json").read_text())
    assert set(golden) - {"transformers_version", "gradient_checkpointing"} <= set(config)
    length = TOKENIZER.get_vocab_size()
    assert length < config["llm_vocab_size"]
    assert length + config["codebook_size"] <= config["embedding_size"]


def test_the_weights_have_the_released_names(folder):
    config = json.loads((folder / "config.json").read_text())
    names = json.loads((GOLDEN / "state_dict_keys.json").read_text())
    expected = {name for name in names if ".blocks." not in name}
    layer = {name.partition(".blocks.0.")[2] for name in names if ".blocks.0." in name}
    expected |= {f"model.transformer.blocks.{n}.{name}" for n in range(config["n_layers"]) for name in layer}
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == expected
    assert 300_000 < sum(weight.size for weight in weights.values()) < 1_000_000


def test_the_seed_decides_the_weights_and_nothing_global_does():
    config = build_config(TOKENIZER)
    before = np.random.get_state()[1].copy()
    first, again, other = (build_weights(config, TOKENIZER, seed) for seed in (0, 0, 1))
    assert np.array_equal(before, np.random.get_state()[1])
    name = "model.transformer.wte.weight"
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first[name], other[name])


def test_the_folder_loads_as_a_policy_of_the_three_tasks(folder):
    from unigrpo.models import load_policy

    policy = load_policy(folder, dtype="float32")
    assert policy.vocabulary.image_range == (TOKENIZER.get_vocab_size(), TOKENIZER.get_vocab_size() + 16)
    assert set(policy.vocabulary.special) == {
        "bos",
        "soi",
        "eoi",
        "t2i",
        "mmu",
        "ipad",
        "start_header",
        "end_header",
        "eot",
    }


def test_an_existing_checkpoint_is_not_overwritten(folder):
    with pytest.raises(FileExistsError, match="already holds"):
        make_policy(folder)


def test_used_folder_is_one_line_and_exit_code_2(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make_policy", str(folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {folder} already holds a checkpoint; name a new folder or delete it first\n"
    )
