"""Random checkpoints: names and shapes are the released ones, and nothing but the seed and the name draws a tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unigrpo.cli.app import run
from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.testing.make_tiny import make_tiny


def test_sizes_dtype_and_published_keys_are_what_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    command = ["make-tiny", "llada", str(out), "n_kv_heads=2", "rope_theta=100.0", "--layers", "3", "--width", "32"]
    assert run([*command, "--vocabulary", "600", "--dtype", "bfloat16"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["n_layers"], config["d_model"], config["n_kv_heads"], config["rope_theta"]) == (3, 32, 2, 100.0)
    state = load_file(out / "model.safetensors")
    assert len(state) == 3 + 3 * 9
    assert state["model.transformer.wte.weight"].shape == (600, 32)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert load_policy(out).text_tokenizer.decode(load_policy(out).text_tokenizer.encode("red square")) == "red square"


def test_shards_and_layers_do_not_change_a_tensor_and_the_seed_does(tmp_path: Path) -> None:
    whole = load_file(make_tiny("llada", tmp_path / "whole") / "model.safetensors")
    cut = make_tiny("llada", tmp_path / "cut", layers=3, shard_bytes=100_000)
    other = load_file(make_tiny("llada", tmp_path / "other", seed=1) / "model.safetensors")
    files = sorted(cut.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert not any(torch.equal(other[name], tensor) for name, tensor in whole.items())
    assert load_policy(cut, dtype="float32").module.config.n_layers == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "gpt"}, r"no family 'gpt'; wanted one of llada, mmada"),
        ({"release": "9b"}, r"llada has no release '9b'; known are 8b"),
        ({"changes": {"n_layer": 3}}, r"has no n_layer; it has n_layers"),
        ({"vocabulary": 100}, r"the tokenizer alone has \d+ tokens; give more rows"),
        ({"dtype": "int8"}, r"wanted float32 or bfloat16"),
    ],
)
def test_what_cannot_be_made_is_named_and_leaves_nothing(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tiny(**{"family": "llada", "out": tmp_path / "policy", **arguments})
    with pytest.raises(ValueError, match="n_heads 3"):
        make_tiny("llada", tmp_path / "policy", changes={"n_heads": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["make-tiny", "llada", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(["make-tiny", "llada", str(tmp_path / "x"), "n_layers"]) == 2
    assert "wanted KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["missing", "special"])
def test_a_tokenizer_that_loses_the_tags_of_a_thought_is_refused(tmp_path: Path, fault: str) -> None:
    path = make_tiny("mmada", tmp_path / "policy") / "tokenizer.json"
    content = json.loads(path.read_text())
    if fault == "special":
        content["added_tokens"][-1]["special"] = True
    else:  # the vocabulary keeps no piece of it, neither characters nor bytes
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</think>"]
        content["model"]["vocab"] = [piece for piece in content["model"]["vocab"] if piece[0] not in ("/", "<0x2F>")]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="policy loses </think>: encoded and decoded"):
        load_policy(tmp_path / "policy", vocabulary={"mask_token_id": 1} if fault == "missing" else None)


def test_image_codes_that_do_not_fit_behind_the_tokenizer_are_refused(tmp_path: Path) -> None:
    path = make_tiny("mmada", tmp_path / "policy") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebook_size": 8192}))
    with pytest.raises(ValueError, match=r"8192 image codes from id \d+ end at \d+, but the embedding has \d+ rows"):
        load_policy(tmp_path / "policy")
