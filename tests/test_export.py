import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from unigrpo.cli.app import run
from unigrpo.errors import UserError
from unigrpo.export import adapter_folder, export_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on an untrained tiny policy."""
    from unigrpo.quickstart.makers.policy import make_policy
    from unigrpo.recipe.load import load_recipe
    from unigrpo.train import train

    folder = tmp_path_factory.mktemp("export")
    make_policy(folder / "policy")
    (folder / "rewards.py").write_text(
        "def letters(*, prompts, completions, **columns):\n"
        "    return [sum(c in 'abcdef0123' for c in text) / max(len(text), 1) for text in completions]\n"
    )
    recipe = {
        "name": "exported",
        "num_steps": 1,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": "policy", "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {
            "reason": {
                "data": {"use": "unigrpo.quickstart.sums:Sums"},
                "prompts_per_step": 2,
                "sampling": {"completion_length": 8, "num_denoising_steps": 4},
            }
        },
        "rewards": {"letters": {"use": "rewards.py:letters"}},
        "learner": {"lr": 0.05},
        "evaluate": {"num_prompts": 4},
        "tracking": {"use": ["jsonl"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run"


def _logits(folder: Path, adapters: list[Path]) -> Any:
    import torch

    from unigrpo.cli.pictures import load_with_adapters

    policy = load_with_adapters(str(folder), adapters, dtype="float32")
    return policy.logits(torch.arange(20)[None]).detach()


def test_adapter_is_in_peft_s_layout_with_a_card(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    assert run(["export", str(run_dir), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "peft"
    assert front["base_model"] == "policy"
    assert str(run_dir) not in card.partition("## Recipe")[0]
    assert "masked-diffusion" in front["tags"]
    assert "after 1 steps of UniGRPO on reason" in card
    assert "| eval/reason/reward |" in card
    assert list(tmp_path.iterdir()) == [out]


def test_no_file_of_an_export_names_a_place_of_this_machine(run_dir: Path, tmp_path: Path) -> None:
    places = [str(run_dir.parent), str(run_dir.parent.parent), "/tmp/", "/home/", "/root/"]
    for is_merged in (False, True):
        export_run(run_dir, tmp_path / f"{is_merged}", is_merged=is_merged)
        for path in (tmp_path / f"{is_merged}").iterdir():
            found = [place for place in places if place.encode() in path.read_bytes()]
            assert found == [], path.name
    adapter = json.loads((tmp_path / "False" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "policy"
    card = (tmp_path / "False" / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(card)["rewards"]["letters"]["use"] == "rewards.py:letters"


def test_a_stranger_loads_a_moved_adapter_with_peft_alone(run_dir: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    from unigrpo.models import load_policy

    export_run(run_dir, tmp_path / "first", is_merged=False)
    (tmp_path / "first").rename(tmp_path / "moved")
    policy = load_policy(run_dir.parent / "policy", dtype="float32")
    PeftModel.from_pretrained(policy.module, str(tmp_path / "moved"))
    logits = policy.logits(torch.arange(20)[None]).detach()
    torch.testing.assert_close(logits, _logits(run_dir.parent / "policy", [run_dir]), atol=1e-5, rtol=1e-5)


def test_remote_code_that_is_not_there_is_not_named_by_merged_weights(run_dir: Path, tmp_path: Path) -> None:
    from unigrpo.models import load_policy
    from unigrpo.models.adapter import save_merged

    copy = tmp_path / "policy"
    shutil.copytree(run_dir.parent / "policy", copy)
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((copy / name).read_text()) if (copy / name).is_file() else {}
        values |= {"auto_map": {"AutoModel": "modeling.Theirs"}, "name_or_path": "/home/them/x", "_name_or_path": "/y"}
        (copy / name).write_text(json.dumps(values))
    save_merged(load_policy(copy, dtype="float32"), tmp_path / "merged")
    for name in ("config.json", "tokenizer_config.json"):
        left = json.loads((tmp_path / "merged" / name).read_text()).keys()
        assert left.isdisjoint({"auto_map", "name_or_path", "_name_or_path"}) and left
    load_policy(tmp_path / "merged", dtype="float32")


def test_python_of_the_card_loads_base_and_adapter(run_dir: Path, tmp_path: Path) -> None:
    import torch

    export_run(run_dir, tmp_path / "adapter", is_merged=False)
    code = (tmp_path / "adapter" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace("FOLDER", str(tmp_path / "adapter"))
    code += "import torch\nlogits = policy.logits(torch.arange(20)[None]).detach()\n"
    code += f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=run_dir.parent)  # where the base's name is a folder
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, _logits(run_dir.parent / "policy", [run_dir]), atol=1e-5, rtol=1e-5)


def test_merged_weights_equal_base_and_adapter(run_dir: Path, tmp_path: Path) -> None:
    import torch

    export_run(run_dir, tmp_path / "merged", is_merged=True)
    policy = run_dir.parent / "policy"
    with_adapter = _logits(policy, [run_dir])
    assert not torch.allclose(_logits(policy, []), with_adapter, atol=1e-4)
    torch.testing.assert_close(_logits(tmp_path / "merged", []), with_adapter, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "merged" / "README.md").is_file()


def test_existing_folder_is_not_overwritten(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["export", str(run_dir), "--out", str(tmp_path)]) == 2
    assert "nothing of yours is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_run_without_a_checkpoint_is_refused_and_leaves_nothing(run_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "run"
    empty.mkdir()
    (empty / "recipe.yaml").write_text((run_dir / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="no whole checkpoint yet"):
        export_run(empty, tmp_path / "out", is_merged=False)
    assert list(tmp_path.iterdir()) == [empty]


def test_adapter_of_a_run_is_its_last_checkpoint_s(run_dir: Path, tmp_path: Path) -> None:
    assert adapter_folder(run_dir).parent.name == "step_000001"
    assert adapter_folder(adapter_folder(run_dir)) == adapter_folder(run_dir)
    with pytest.raises(UserError, match="holds no adapter"):
        adapter_folder(tmp_path)
