"""Random checkpoints: names and shapes are the released ones, and nothing but the seed and the name draws a tensor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unigrpo.cli.app import run
from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.testing.tiny.layouts import layouts
from unigrpo.testing.tiny.make_tiny import json_files, make_tiny


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


DEPTH = 5
WIDTH = 96


@pytest.mark.parametrize("family", layouts())
def test_every_family_is_made_and_loaded_at_another_depth_and_width(family: str, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    assert run(["make-tiny", family, str(out), "--layers", str(DEPTH), "--width", str(WIDTH)]) == 0
    policy = load_policy(out, dtype="float32")
    blocks = {
        re.search(r"(?:layers?|blocks)\.(\d+)\.", name)
        for name, _ in policy.module.named_parameters()
        if "vision" not in name
    }
    assert max(int(found[1]) for found in blocks if found) == DEPTH - 1
    assert (policy.vocabulary.size, WIDTH) in {tuple(weight.shape) for weight in policy.module.parameters()}
    ids = torch.arange(5, 29)[None]
    logits = policy.logits(ids)
    assert logits.shape == (1, 24, policy.vocabulary.size)
    assert bool(torch.isfinite(logits).all())
    assert float(logits.detach().std()) > 0


@pytest.mark.parametrize(
    ("family", "width", "step", "why"),
    [
        ("llada", 100, 8, "it has 4 heads"),
        ("showo", 100, 16, "it has 4 heads"),
        ("bert", 70, 4, "it has 4 heads"),
        ("diffusion_gemma", 33, 8, "its experts' products need that"),
    ],
)
def test_a_width_that_cannot_be_is_one_line(
    family: str, width: int, step: int, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["make-tiny", family, str(tmp_path / "policy"), "--width", str(width)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: width {width} of {family} is no multiple of {step}: {why}")
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_another_file_is_set_there(tmp_path: Path) -> None:
    out = make_tiny("showo", tmp_path / "policy", changes={"phi_config.intermediate_size": 64})
    assert json.loads((out / "phi_config" / "config.json").read_text())["intermediate_size"] == 64
    with pytest.raises(UserError, match=r"has no phi_config.hidden_width; it has phi_config.hidden_"):
        make_tiny("showo", tmp_path / "other", changes={"phi_config.hidden_width": 64})


def test_a_release_that_only_names_its_language_model_is_made_at_other_sizes(tmp_path: Path) -> None:
    out = make_tiny("showo", tmp_path / "policy", release="256", layers=1, width=128)
    assert json.loads((out / "config.json").read_text())["llm_model_path"] == "phi_config"
    shape = load_policy(out).module.showo.model.embed_tokens.weight.shape  # type: ignore[union-attr, operator]
    assert shape == (58498, 128)
    assert json_files("showo", release="256")["config.json"]["llm_model_path"] == "microsoft/phi-1_5"


def test_what_is_said_of_every_layer_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    out = make_tiny("llada_moe", tmp_path / "policy", changes={"moe_layer_freq": [0, 1]}, layers=2)
    assert json.loads((out / "config.json").read_text())["moe_layer_freq"] == [0, 1]
    with pytest.raises(UserError, match=r"does not fit together: .*layer_types"):
        make_tiny(
            "diffusion_gemma", tmp_path / "other", layers=2, changes={"text_config.layer_types": ["full_attention"]}
        )


def test_diffusion_gemma_repeats_its_pattern_and_ends_with_a_full_layer(tmp_path: Path) -> None:
    text = json.loads((make_tiny("diffusion_gemma", tmp_path / "policy", layers=5) / "config.json").read_text())[
        "text_config"
    ]
    assert [name[:4] for name in text["layer_types"]] == ["slid", "slid", "full", "slid", "full"]
    assert text["per_layer_config"].keys() == {"2", "4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "gpt"}, r"no family 'gpt' with a layout; wanted one of diffusion_gemma, dream"),
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
