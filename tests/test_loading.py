"""Folders to policies: shards, shared memory, sizes without memory, and each way a folder can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.models.families import policy_family
from unigrpo.models.files import weights
from unigrpo.models.loading import empty_module
from unigrpo.testing.tiny.make_tiny import make_tiny

GOLDEN = Path(__file__).parent / "golden" / "mmada_tiny"
IDS = torch.arange(24).view(2, 12)
RELEASE = {
    "architectures": ["MMadaModelLM"],
    "model_type": "mmada",
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "alibi": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "layer_norm_with_affine": True,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
    "flash_attention": False,
    "input_emb_norm": False,
    "embedding_size": 134656,
    "multi_query_attention": None,
    "scale_logits": False,
    "weight_tying": False,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "policy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, copy / name)
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_importing_models_imports_no_torch() -> None:
    code = "import sys, unigrpo.models; assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import unigrpo.models

    with pytest.raises(AttributeError, match="it offers load_image_tokenizer, load_policy"):
        _ = unigrpo.models.load_everything


def test_release_has_291_tensors_and_costs_no_memory() -> None:
    release = empty_module(policy_family(RELEASE), RELEASE)
    shapes = {name: tuple(tensor.shape) for name, tensor in release.state_dict().items()}
    assert len(shapes) == 291
    assert shapes["model.transformer.wte.weight"] == (134656, 4096)
    assert shapes["model.transformer.ff_out.weight"] == (134656, 4096)
    assert shapes["model.transformer.blocks.31.ff_out.weight"] == (4096, 12288)
    assert shapes["model.transformer.blocks.0.k_proj.weight"] == (4096, 4096)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert 8.05e9 < numbers < 8.1e9


@torch.no_grad()
def test_shards_give_what_one_file_gives(folder: Path) -> None:
    whole = load_policy(folder, dtype="float32").logits(IDS)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    weight_map = {name: f"model-0000{1 + index % 3}-of-00003.safetensors" for index, name in enumerate(names)}
    for shard in sorted(set(weight_map.values())):
        save_file({name: state[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(load_policy(folder, dtype="float32").logits(IDS), whole)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00003\.safetensors, not in the folder"):
        load_policy(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_weights_of_the_files_own_dtype_stay_mapped(folder: Path) -> None:
    policy = load_policy(folder, dtype="float32")
    address = policy.module.model.transformer.wte.weight.data_ptr()
    regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    owner = [
        region[5]
        for region in regions
        if len(region) > 5 and int(region[0].split("-")[0], 16) <= address < int(region[0].split("-")[1], 16)
    ]
    assert owner == [str(folder / "model.safetensors")]


def test_training_mapped_weights_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    policy = load_policy(folder, dtype="float32")
    with torch.no_grad():
        policy.module.model.transformer.ln_f.weight.add_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_dtype_is_the_one_asked_for(folder: Path) -> None:
    assert {tensor.dtype for tensor in load_policy(folder).module.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="'float16' is not supported; wanted float32 or bfloat16"):
        load_policy(folder, dtype="float16")


def test_policy_is_ready_to_sample_and_to_train(folder: Path) -> None:
    policy = load_policy(folder, dtype="float32", gradient_checkpointing=True)
    assert not policy.module.training
    assert policy.module.is_checkpointing
    assert all(parameter.requires_grad for parameter in policy.module.parameters())
    assert policy.device == torch.device("cpu")


def test_unfitting_tensors_are_named_ten_at_most(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    few = {name: value for name, value in state.items() if "blocks.0" not in name and "q_proj" not in name}
    few["stranger"] = torch.zeros(1)
    few["model.transformer.ln_f.weight"] = torch.zeros(3)
    save_file(few, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_policy(folder)
    message = str(caught.value)
    assert "10 missing: model.transformer.blocks.0." in message
    assert "1 unexpected: stranger" in message
    assert "1 misshapen: model.transformer.ln_f.weight [3] (wanted [64])" in message
    save_file({"stranger": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"21 missing: .* and 11 more"):
        load_policy(folder)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_cut_off_file_is_called_that(folder: Path, fraction: float) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=r"is cut off or damaged: .*download it again"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unopened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match=rf"only pickled weights \({name}\).*save_file"):
        load_policy(folder)


def test_the_line_of_the_refusal_converts_pickled_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    torch.save({name: state[name] for name in names[:9]}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({name: state[name] for name in names[9:]}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ValueError, match="refused") as caught:
        load_policy(folder)
    line = str(caught.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", line], cwd=folder, check=True, timeout=60)
    loaded = load_policy(folder, dtype="float32").module.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in names)


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    save_file({"decoder.weight": torch.ones(3, 2), "count": torch.tensor([7])}, tmp_path / "pytorch_model.safetensors")
    with torch.device("meta"):
        module = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(3, 2), "decoder": torch.nn.Linear(2, 3, False)})
        module.register_buffer("count", torch.zeros(1, dtype=torch.int64))
    module["embedding"].weight = module["decoder"].weight
    weights.fill(module, tmp_path, torch.bfloat16, torch.device("cpu"))
    assert module["embedding"].weight is module["decoder"].weight
    assert module["embedding"].weight.dtype == torch.bfloat16
    assert module.get_buffer("count").tolist() == [7]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_is_no_regular_file_is_refused_by_name_and_never_waited_for(folder: Path, name: str) -> None:
    for make, why in ((os.mkfifo, "is a named pipe"), (lambda path: os.symlink(name, path), "too many levels")):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(UserError, match=rf"{re.escape(name)}:? {why}"):
            load_policy(folder, dtype="float32")


def test_folder_without_weights_or_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load_policy(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_policy(folder)


def test_family_comes_from_the_config(folder: Path) -> None:
    edit_config(folder, model_type="custom", architectures=["LLaDAModelLM"])
    assert type(load_policy(folder).encode).__name__ == "method"
    assert type(load_policy(folder)).__name__ == "LladaPolicy"
    edit_config(folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(ValueError, match=r"\['custom', 'GPT2LMHeadModel'\]; known here are diffusion_gemma"):
        load_policy(folder)


def test_config_value_that_is_not_computed_stops_loading(folder: Path) -> None:
    edit_config(folder, alibi=True)
    with pytest.raises(ValueError, match="alibi = True"):
        load_policy(folder)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "asset:nowhere"])
def test_path_that_is_nothing(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere|no/such"):
        load_policy(path)


def test_hub_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing is no folder here and the hub did not deliver it"):
        load_policy("nobody/nothing")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_index_without_a_map_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json has no weight_map"):
        load_policy(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "holds a JSON list")])
def test_broken_config_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"policy/config\.json:? {message}"):
        load_policy(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_device_that_is_not_there_is_named(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' was asked for, and torch sees 0 CUDA devices here; give"):
        load_policy(folder, device=device)


@pytest.mark.parametrize("model_type", ["dream", "Dream", "llada"])
def test_model_type_and_architecture_of_two_families_are_refused(folder: Path, model_type: str) -> None:
    edit_config(folder, model_type=model_type, architectures=["MMadaModelLM"])
    with pytest.raises(ValueError, match=rf"contradicts itself: model_type '{model_type}'"):
        load_policy(folder)


def test_a_dtype_may_be_torchs_own_and_a_device_that_is_none_is_named(folder: Path) -> None:
    policy = load_policy(folder, dtype=torch.float32)
    assert {tensor.dtype for tensor in policy.module.state_dict().values()} == {torch.float32}
    for device, said in (("gpu", "'gpu' is not known"), (None, "None is not known"), ("meta", "'meta' is not supp")):
        with pytest.raises(ValueError, match=f"device {said}.*; wanted cpu, cuda or cuda:N"):
            load_policy(folder, device=device)  # type: ignore[arg-type]


def test_an_index_reads_nothing_outside_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.transformer.wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names \.\./elsewhere\.safetensors; wanted names of files beside it"):
        load_policy(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.transformer.ln_f.weight"
    save_file(state, folder / "a.safetensors")
    save_file({name: state[name]}, folder / "b.safetensors")
    weight_map = dict.fromkeys(state, "a.safetensors") | {name: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=rf"b\.safetensors holds {name}, which an earlier shard holds, too"):
        load_policy(folder)


@pytest.mark.parametrize(("family", "is_refused"), [("mmada", True), ("llada", False), ("sdar", False)])
def test_tags_of_a_thought_that_do_not_come_back_are_named(
    family: str, is_refused: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny(family, tmp_path / family)
    load_policy(tmp_path / family)
    assert not caplog.records
    path = tmp_path / family / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or "think" in token["content"]
    path.write_text(json.dumps(content))
    if is_refused:
        with pytest.raises(ValueError, match="loses <think>, </think>: encoded and decoded"):
            load_policy(tmp_path / family)
    else:
        load_policy(tmp_path / family)
        assert "loses <think>, </think>" in caplog.text


def test_another_layout_under_a_known_model_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LLaDAForMultiModalGeneration \(Lumina-DiMOO .*, which is not read here"):
        policy_family({"model_type": "llada", "architectures": ["LLaDAForMultiModalGeneration"]})


@pytest.mark.parametrize("token", ["<|soi|>", "<|ipad|>", "<|t2i|>", "<|eot_id|>"])
def test_a_tokenizer_that_lost_a_marker_is_refused_before_it_moves_the_image_codes(token: str, tmp_path: Path) -> None:
    make_tiny("mmada", tmp_path / "mmada")
    path = tmp_path / "mmada" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"the tokenizer has no \w+ \({re.escape(token)}\)|would be both"):
        load_policy(tmp_path / "mmada")


def test_an_id_of_two_roles_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="id 500 would be both mask and soi"):
        load_policy(folder, vocabulary={"mask": 500, "eos": 481, "soi": 500})
