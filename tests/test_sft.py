"""The supervised stage: it learns, it repeats bit by bit, it resumes, and what it writes loads."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.sft_losses import IGNORED, loss_lm, loss_t2i
from safetensors.torch import load_file

from unigrpo.data.sources import load_prompts
from unigrpo.errors import UserError
from unigrpo.models import load_policy
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.runs.directory import locked
from unigrpo.runs.trackers.base import Tracker
from unigrpo.settings.sft import SftRecipe, SftTaskSettings
from unigrpo.settings.tasks import DataSettings
from unigrpo.supervised.rows import CachedCodes, Demonstrations, add_noise, caching_codes
from unigrpo.supervised.sft import run_sft, task_loss
from unigrpo.types import ModelInput

SUMS = {"use": "unigrpo.quickstart.sums:Sums"}
CAPTIONS = {"use": "unigrpo.quickstart.scenes:ImagineScenes"}
QUESTIONS = {"use": "unigrpo.quickstart.scenes:UnderstandScenes"}


class CellColors:
    """An image tokenizer by hand: the code of a 16 x 16 cell is the mean of its pixels, in 16 levels."""

    def __init__(self):
        self.num_pictures = 0

    def encode(self, pixels):
        self.num_pictures += len(pixels)
        cells = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 16).flatten(1)
        return ((cells + 1) * 7.99).long().clamp(0, 15)

    def decode(self, codes, grid=None):
        cells = (codes.float() / 7.99 - 1).reshape(len(codes), 1, 4, 4)
        return torch.nn.functional.interpolate(cells, scale_factor=16).repeat(1, 3, 1, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("base") / "policy")


@pytest.fixture
def policy(base):
    codec = CachedCodes(CellColors())
    return load_policy(base, dtype="float32", image_tokenizer=codec, image_size=64)


def recipe(base, **changes):
    values = {
        "name": "test",
        "num_steps": 6,
        "policy": {"path": str(base), "dtype": "float32", "image_size": 64},
        "tasks": {"reason": {"data": SUMS, "batch_size": 8, "completion_length": 12}},
        "lr": 2e-3,
        "log_every": 2,
        "checkpoint": {"every": 0},
        **changes,
    }
    return SftRecipe.model_validate(values)


def weights(run_dir):
    return load_file(run_dir / "policy" / "model.safetensors")


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def demonstrations(policy, task, data, **changes):
    settings = SftTaskSettings(
        data=DataSettings(**data),
        **{"kind": task, "batch_size": 32, "completion_length": 16, **changes.pop("settings", {})},
    )
    source = load_prompts(settings.data, task, task, "train", 0)
    return Demonstrations(policy, task, settings, source, seed=0, **{"caption_dropout": 0.0, **changes})


def test_the_loss_falls_and_the_result_loads(base, tmp_path):
    summary = run_sft(recipe(base, num_steps=24, log_every=8), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [8, 16, 24]
    assert records[-1]["loss/reason"] < 0.7 * records[0]["loss/reason"]
    assert summary["loss"] == records[-1]["loss"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    trained = load_policy(summary["policy"], dtype="float32")
    assert trained.text_tokenizer.decode(trained.text_tokenizer.encode("żółć 🙂")) == "żółć 🙂"
    assert not same(weights(tmp_path / "run"), load_file(base / "model.safetensors"))


def test_a_seed_fixes_every_bit_and_no_global_generator_is_touched(base, tmp_path):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    run_sft(recipe(base), tmp_path / "one")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    run_sft(recipe(base), tmp_path / "two")
    run_sft(recipe(base, seed=1), tmp_path / "other")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize("lora", [{"enabled": False}, {"enabled": True, "r": 4}])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(base, tmp_path, lora):
    run_sft(recipe(base, lora=lora, log_every=4), tmp_path / "whole")
    stopped = recipe(base, lora=lora, log_every=4, checkpoint={"every": 3})

    class StopAfterFour(Tracker):
        def step(self, metrics):
            if metrics["step"] == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sft(stopped, tmp_path / "stopped", StopAfterFour())
    run_sft(stopped, tmp_path / "stopped", is_resumed=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    logs = []
    for name in ("whole", "stopped"):
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if "timing" not in key} for line in records])
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [4, 6]


def test_a_request_to_stop_ends_the_step_saves_it_and_resuming_ends_the_same(base, tmp_path):
    run_sft(recipe(base, log_every=1), tmp_path / "whole")

    class InterruptedAtTwo(Tracker):
        def progress(self, done, total, text):
            if done == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_sft(recipe(base, log_every=1), tmp_path / "stopped", InterruptedAtTwo())
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step_000002"]
    run_sft(recipe(base, log_every=1), tmp_path / "stopped", is_resumed=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_resuming_a_finished_run_returns_its_summary_and_changes_nothing(base, tmp_path):
    summary = run_sft(recipe(base, checkpoint={"every": 3}), tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    assert run_sft(recipe(base, checkpoint={"every": 3}), tmp_path / "run", is_resumed=True) == summary
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_lora_trains_the_adapter_alone_and_merging_it_is_the_written_policy(base, tmp_path):
    run_sft(recipe(base, lora={"enabled": True, "r": 4}), tmp_path / "run")
    before, after = load_file(base / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".blocks." in name and "norm" not in name for name in changed)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_folder_in_use_and_a_resume_without_checkpoint_are_refused(base, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run_sft(recipe(base), tmp_path)
    with pytest.raises(UserError, match="no whole checkpoint"):
        run_sft(recipe(base), tmp_path, is_resumed=True)


def test_a_run_of_another_process_is_refused_by_its_lock(base, tmp_path):
    stopped = recipe(base, checkpoint={"every": 2})
    run_sft(stopped, tmp_path / "run")

    class ResumesTheSame(Tracker):
        def step(self, metrics):
            with pytest.raises(UserError, match=f"process {os.getpid()} works in"):
                run_sft(stopped, tmp_path / "run", is_resumed=True)

    run_sft(stopped, tmp_path / "run", ResumesTheSame(), is_resumed=True)


def test_a_new_run_holds_its_lock_while_it_trains(base, tmp_path):
    held = []

    class TriesTheLock(Tracker):
        def step(self, metrics):
            with pytest.raises(UserError, match=r"process \d+ works in"), locked(tmp_path / "run"):
                pass
            held.append(metrics["step"])

    run_sft(recipe(base), tmp_path / "run", TriesTheLock())
    assert held == [2, 4, 6]


def test_curves_are_written_unless_the_recipe_says_not(base, tmp_path):
    run_sft(recipe(base, num_steps=2), tmp_path / "with")
    (events,) = (tmp_path / "with" / "tensorboard").glob("events.out.tfevents.*")
    assert b"loss/reason" in events.read_bytes()
    run_sft(recipe(base, num_steps=1, tracking={"use": ["jsonl"]}), tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()


COUNT_COMPILED = """
import sys
from unigrpo.settings.sft import SftRecipe
from unigrpo.supervised.sft import Training
for recipe in sys.argv[1:]:
    modules = Training(SftRecipe.model_validate_json(recipe)).policy.module.modules()
    print(sum(module._compiled_call_impl is not None for module in modules))
"""


def test_the_recipe_says_whether_the_blocks_are_compiled(base):
    settings = {"path": str(base), "dtype": "float32", "image_size": 64}
    recipes = [recipe(base, policy=settings | {"compiled": compiled}) for compiled in (True, False)]
    arguments = [sys.executable, "-c", COUNT_COMPILED, *(each.model_dump_json() for each in recipes)]
    # In a process of its own, since the compiler warns when it is imported. It starts at the first call only.
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert [int(line) > 0 for line in done.stdout.split()] == [True, False]


def test_the_policy_that_trains_keeps_its_own_image_tokenizer(base):
    own = CellColors()
    policy = load_policy(base, dtype="float32", image_tokenizer=own, image_size=64)
    assert isinstance(caching_codes(policy).image_tokenizer, CachedCodes)
    assert policy.image_tokenizer is own


def test_a_demonstration_that_does_not_fit_is_named(base, tmp_path):
    short = {"reason": {"data": SUMS, "batch_size": 2, "completion_length": 5}}
    with pytest.raises(ValueError, match=r"sum-\d+\+\d+.*over completion_length 5"):
        run_sft(recipe(base, tasks=short), tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())  # so that the mended recipe may use it


def test_the_environment_is_written_beside_the_recipe(base, tmp_path):
    run_sft(recipe(base, num_steps=1), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_rows_hold_prompt_completion_and_the_eos_that_teaches_length(policy):
    rows = demonstrations(policy, "reason", SUMS).rows(3)
    eos = policy.vocabulary.eos_token_id
    for ids, is_open in zip(rows.clean_ids, rows.is_open, strict=True):
        text = policy.decode_text(ids[is_open].numpy())
        prompt = policy.text_tokenizer.decode(ids[~is_open].tolist())
        left, right = (int(part) for part in prompt.partition("user\n")[2].partition("=")[0].split("+"))
        assert text.endswith(f"</think>{left + right}")
        assert (ids[is_open] == eos).sum() == 16 - len(policy.text_tokenizer.encode(text))


def test_the_first_steps_are_right_whatever_the_noise(policy):
    source = demonstrations(policy, "reason", SUMS, settings={"noise": 1.0})

    def num_right(rows):
        texts = [policy.text_tokenizer.decode(ids.tolist()) for ids in rows.clean_ids]
        sums = [re.search(r"(\d+)\+(\d+)=.*</think>(\d+)", text, re.DOTALL).groups() for text in texts]
        return sum(int(a) + int(b) == int(answer) for a, b, answer in sums)

    assert num_right(source.rows(0, is_clean=True)) == 32
    assert num_right(source.rows(0)) == 0


def test_dropped_captions_are_the_twin_that_guidance_uses(policy):
    rows = demonstrations(policy, "imagine", CAPTIONS, caption_dropout=1.0).rows(0)
    special = policy.vocabulary.special
    text = [special["t2i"], special["bos"], policy.vocabulary.eos_token_id, special["soi"]]
    for ids, is_open, is_padding in zip(rows.clean_ids, rows.is_open, rows.is_padding, strict=True):
        assert ids[~is_open & ~is_padding].tolist() == [*text, special["eoi"]]
        assert (ids[is_open] >= policy.vocabulary.image_range[0]).all()


def test_each_picture_is_encoded_once():
    inner = CellColors()
    codec = CachedCodes(inner)
    pixels = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    assert torch.equal(codec.encode(pixels), CellColors().encode(pixels))
    assert torch.equal(codec.encode(pixels[1:]), CellColors().encode(pixels[1:]))
    assert inner.num_pictures == 2


@pytest.mark.parametrize(("task", "data"), [("reason", SUMS), ("understand", QUESTIONS), ("imagine", CAPTIONS)])
def test_the_loss_of_masked_positions_is_the_reference_loss_of_all_logits(policy, task, data):
    rows = demonstrations(policy, task, data).rows(0)
    noisy = add_noise(rows, kind=task, mask_token_id=policy.vocabulary.mask_token_id, min_mask_ratio=0.01)
    with torch.no_grad():
        logits = policy.head(policy.hidden(ModelInput(token_ids=noisy.token_ids, is_padding=rows.is_padding)))
        found = task_loss(policy, task, rows, 0.01)
    labels = rows.clean_ids.where(noisy.is_masked, torch.tensor(IGNORED))
    if task == "imagine":
        expected = loss_t2i(logits, labels, 0)
    else:
        expected = loss_lm(logits, labels, noisy.is_masked, noisy.mask_prob, torch.full((32,), 16))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_noise_stays_on_the_completion_and_follows_its_schedule(policy):
    for task, data in (("reason", SUMS), ("imagine", CAPTIONS)):
        source = demonstrations(policy, task, data)
        counts = []
        for step in range(12):
            rows = source.rows(step)
            noisy = add_noise(rows, kind=task, mask_token_id=policy.vocabulary.mask_token_id, min_mask_ratio=0.01)
            assert not (noisy.is_masked & ~rows.is_open).any()
            assert torch.equal(noisy.token_ids[~noisy.is_masked], rows.clean_ids[~noisy.is_masked])
            counts.append(noisy.is_masked.sum(1))
        fraction = torch.cat(counts).double().mean().item() / 16
        # E[(1 - e) t + e] = (1 + e) / 2; E[cos(pi t / 2)] = 2 / pi
        assert fraction == pytest.approx(0.505 if task == "reason" else 2 / np.pi, abs=0.03)
    assert min(counts[0]) >= 1


ASSET = Path(__file__).parents[1] / "unigrpo" / "assets" / "tiny_policy"


def test_the_shipped_policy_loads_and_its_tokenizer_loses_nothing():
    shipped = load_policy("asset:tiny_policy", dtype="float32")
    for text in ("żółć 🙂", "<think>15,08</think>85", "red circle left of blue square\n"):
        assert shipped.text_tokenizer.decode(shipped.text_tokenizer.encode(text)) == text
    assert shipped.vocabulary.image_range[1] - shipped.vocabulary.image_range[0] == 16
    assert (ASSET / "model.safetensors").stat().st_size < 4_000_000
