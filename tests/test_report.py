import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from unigrpo.errors import UserError
from unigrpo.report.data import Change, Estimate, picture_url, read_run
from unigrpo.report.write import write_report

HOSTILE = "<script>alert(1)</script> & \"quotes\" <img src='http://example.org/x.png'>"


def make_run(folder: Path, *, num_steps: int = 60, seed: int = 0, name: str = "quickstart") -> Path:
    """Write a run directory with every part, of invented numbers."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    recipe = {
        "name": name,
        "description": "A tiny policy learns three tasks at once.",
        "seed": seed,
        "policy": {"path": "asset:tiny", "device": "cpu"},
        "evaluate": {"accuracy": {"reason": "correctness", "understand": "correctness"}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "torch": "2.13.0", "cpu": "2 cores"}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            file.write(json.dumps(_record(step, num_steps, generator)) + "\n")
    before, after = (_scores(gain) for gain in (0.0, 0.35))
    summary = {
        "eval_before": before,
        "eval_after": after,
        "num_steps": num_steps,
        "wall_s": 754.2,
        "seed": seed,
        "status": "finished",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for side, quality in (("before", 0.3), ("after", 0.9)):
        _write_samples(folder / f"eval_{side}", quality, np.random.default_rng(seed))
    _write_film(folder / "film")
    return folder


def _record(step: int, num_steps: int, generator: np.random.Generator) -> dict[str, Any]:
    done = 1 - np.exp(-3 * step / num_steps)
    record: dict[str, Any] = {"step": step}
    for place, task in enumerate(("reason", "understand", "imagine")):
        record[f"tasks/{task}/reward"] = 0.25 + 0.1 * place + 0.4 * done + generator.normal(0, 0.04)
        record[f"tasks/{task}/reward_std"] = 0.2 - 0.1 * done
    record["reward"] = 0.5 + 0.4 * done
    for part in ("correctness", "format", "picture"):
        record |= {f"rewards/{part}/mean": 0.4 + 0.5 * done, f"rewards/{part}/std": 0.2}
    record |= {"kl": 0.02 * done, "clip_ratio/region_mean": 0.02 + 0.03 * generator.random(), "loss": -0.01}
    record |= {"entropy": 2.0 - done, "mask_ratio": generator.random(), "grad_norm": None if step == 7 else 0.5}
    record |= {"timing_s/rollout": 2.0, "timing_s/logprobs": 0.8, "timing_s/update": 1.5, "timing_s/reward": 0.1}
    return record | {"timing_s/step": 4.6 + generator.random(), "perf/tokens_per_s": 900.0, "ratio_mean": 1.0}


def _scores(gain: float) -> dict[str, float]:
    scores: dict[str, float] = {}
    for place, task in enumerate(("reason", "understand", "imagine")):
        scores |= {f"eval/{task}/reward": 0.3 + 0.1 * place + gain, f"eval/{task}/reward_se": 0.018}
        scores |= {f"eval/{task}/n": 256.0, f"eval/{task}/rewards/format": 0.5 + gain}
        if task != "imagine":
            scores |= {f"eval/{task}/accuracy": 0.2 + gain, f"eval/{task}/accuracy_se": 0.03}
    return scores


def _write_samples(folder: Path, quality: float, generator: np.random.Generator) -> None:
    folder.mkdir()
    records = []
    for place in range(6):
        is_right = bool(generator.random() < quality)
        records.append(
            {
                "task": "reason",
                "id": f"r{place}",
                "prompt": f"What is {place} + 7? {HOSTILE}",
                "answer": str(place + 7),
                "completion": f"<think>{place} + 7</think><answer>{place + 7 if is_right else 3}</answer>",
                "image": None,
                "prompt_image": None,
                "reward": quality,
                "rewards": {"correctness": float(is_right)},
                "passed": {"correctness": is_right},
            }
        )
        _picture(folder / f"{place}_prompt.png", place, 1.0, generator)
        records.append(
            {
                "task": "understand",
                "id": f"u{place}",
                "prompt": "How many circles are there?",
                "answer": "2",
                "completion": "<answer>2</answer>" if is_right else "<answer>5</answer>",
                "image": None,
                "prompt_image": f"{place}_prompt.png",
                "reward": quality,
                "rewards": {"correctness": float(is_right)},
                "passed": {"correctness": is_right},
            }
        )
        _picture(folder / f"{place}.png", place, quality, generator)
        records.append(
            {
                "task": "imagine",
                "id": f"i{place}",
                "prompt": "a red circle left of a blue square",
                "answer": None,
                "completion": None,
                "image": f"{place}.png",
                "prompt_image": None,
                "reward": quality,
                "rewards": {"picture": quality},
            }
        )
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")


def _picture(path: Path, place: int, quality: float, generator: np.random.Generator) -> None:
    pixels = np.full((64, 64, 3), 240, dtype=np.uint8)
    y, x = np.mgrid[:64, :64]
    pixels[(x - 18) ** 2 + (y - 20 - 3 * place) ** 2 < 100] = (214, 60, 50)
    pixels[28:48, 40:58] = (50, 90, 210)
    noise = generator.integers(0, 256, pixels.shape)
    Image.fromarray((quality * pixels + (1 - quality) * noise).astype(np.uint8)).save(path)


def _write_film(folder: Path) -> None:
    folder.mkdir()
    frames = []
    for step in range(8):
        frames.append(f"{step:02d}.png")
        _picture(folder / frames[-1], 1, (step + 1) / 8, np.random.default_rng(step))
    film = {"prompt": "a red circle", "frames": frames, "texts": [f"step {step + 1}" for step in range(8)]}
    (folder / "film.json").write_text(json.dumps(film))


class _Page(HTMLParser):
    """Collects tags, outside addresses and text, and checks that tags close."""

    VOID = frozenset({"meta", "img", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    return page


def test_report_needs_nothing_outside_itself_and_runs_no_script(tmp_path: Path) -> None:
    out = write_report([make_run(tmp_path / "run")], tmp_path / "report.html")
    page = _parse(out)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"url\(|@import", out.read_text())


def test_report_holds_every_part_of_a_whole_run(tmp_path: Path) -> None:
    out = write_report([make_run(tmp_path / "run")], tmp_path / "report.html")
    text, page = out.read_text(), _parse(out)
    for wanted in (
        "Before and after",
        "Reward while training",
        "Pictures, before and after",
        "How a picture appears",
        "Completions: reason",
        "Completions: understand",
        "Rewards by name",
        "Optimisation and speed",
        "Where the time went",
        "How to repeat it",
        "+0.350 ± 0.050",
        "✓ right",
        "✗ wrong",
    ):
        assert wanted in text
    assert page.tags.count("img") == 12 + 8 + 6
    assert out.stat().st_size < 3_000_000


def test_the_report_marks_as_right_what_the_samples_say_passed_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sudoku = {"task": "reason", "prompt": "Fill it.", "completion": "123", "reward": 0.3}
    values = [(0.3, False), (0.7, True), (1.0, None)]
    records = [
        sudoku | {"id": str(place), "rewards": {"correctness": value}, "passed": {"correctness": passed}}
        for place, (value, passed) in enumerate(values)
    ]
    unsaid = sudoku | {"id": "unsaid", "rewards": {"correctness": 1.0}}
    lines = "\n".join(json.dumps(record) for record in [*records, unsaid])
    (run / "eval_before" / "samples.jsonl").unlink()
    (run / "eval_after" / "samples.jsonl").write_text(lines)
    marks = [sample.after["is_right"] for sample in read_run(run).samples if sample.after is not None]
    assert marks == [False, True, None, None]
    text = write_report([run], tmp_path / "report.html").read_text()
    assert (text.count("✓ right"), text.count("✗ wrong")) == (1, 1)


def test_text_of_completions_is_escaped(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "run")], tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    "missing",
    [
        "summary.json",
        "metrics.jsonl",
        "recipe.yaml",
        "environment.json",
        "film/film.json",
        "film/00.png",
        "eval_before/samples.jsonl",
        "eval_after/samples.jsonl",
        "eval_after/0.png",
    ],
)
def test_missing_part_is_left_out(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run", num_steps=3)
    (run / missing).unlink()
    _parse(write_report([run], tmp_path / "report.html"))


def test_empty_run_directory_makes_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert "unfinished" in write_report([run], tmp_path / "report.html").read_text()


def test_half_written_files_of_a_killed_run_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_steps=3)
    for name in ("summary.json", "environment.json", "film/film.json", "eval_after/samples.jsonl", "metrics.jsonl"):
        (run / name).write_text((run / name).read_text()[:-10])
    _parse(write_report([run], tmp_path / "report.html"))


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed{seed}", seed=seed, num_steps=5) for seed in (0, 1)]
    text = write_report(runs, tmp_path / "report.html").read_text()
    assert "2 runs compared" in text
    assert text.count("0.300 → 0.650") >= 2


def test_folder_that_is_not_there_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run directory"):
        write_report([tmp_path / "gone"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_picture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "text.png", "gone.png", None, 3):
        assert picture_url(folder, name) is None
    Image.new("RGB", (4, 4)).save(folder / "own.png")
    assert (picture_url(folder, "own.png") or "").startswith("data:image/png;base64,")


def test_interval_of_a_difference_by_hand() -> None:
    change = Change(
        task="reason",
        metric="reward",
        num_prompts=100,
        before=Estimate(value=0.5, error=0.03),
        after=Estimate(value=0.6, error=0.04),
    )
    difference = change.difference
    assert difference is not None
    assert difference.value == pytest.approx(0.1)
    assert difference.error == pytest.approx(0.05)
    assert difference.interval == pytest.approx((0.002, 0.198))
    assert change.verdict == "better"


def test_samples_are_paired_by_prompt(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", num_steps=2))
    assert len(run.samples) == 18
    assert all(sample.before and sample.after for sample in run.samples)
    assert run.tasks == ["imagine", "reason", "understand"]  # its recipe names none
