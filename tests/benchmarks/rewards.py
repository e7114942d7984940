"""Completions a second of each reward, beside the peer's own function where it can be run.

    python tests/benchmarks/rewards.py --markdown docs/rewards_throughput.md --json FILE

Both are called in this process with the same batches; a pass warms up, then the median of five counts, each pass on
items of its own, so that no cache answers. Model rewards run with random weights of the real size, except where the
table says tiny. Mathematical answers are LLaDA-8B-Instruct's on GSM8K where UNIGRPO_TEST_DATA names a folder that has
them, else made up. A row whose packages are not here is left out, and said so. Lines of the table are rows of ROWS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from reward_items import (
    GROUP,
    Columns,
    choices,
    compositions,
    countdowns,
    groups,
    lettered,
    maths,
    pictures,
    programs,
    questions,
    scenes,
    sudokus,
    thoughts,
    tokens,
)

from unigrpo.rewards.process.adapt import load_reward

NUM_PASSES = 5
TOYS = ("clip_alignment", "aesthetics")
"""Rows that --toy makes tiny."""
GOLDEN = Path(__file__).parent.parent / "golden"
Call = Callable[..., list[Any]]


class NotHere(RuntimeError):
    """A row that cannot be measured on this machine, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    ours: Callable[[Setup], Call]
    items: Callable[[int], Columns]
    peer: Callable[[Setup], Call] | None = None
    peer_name: str = ""
    share: float = 1.0
    """Of the items asked for: slow rewards take fewer."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What rows are made with."""

    is_toy: bool
    device: str
    stack: ExitStack
    folder: Path


def reward(use: str, **arguments: Any) -> Callable[[Setup], Call]:
    """Return what makes one of our rewards."""
    return lambda setup: load_reward(f"unigrpo.rewards.{use}", arguments)


def trl(name: str, make: Mapping[str, Any] | None = None) -> Callable[[Setup], Call]:
    """Return what makes one of TRL's."""

    def made(setup: Setup) -> Call:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import trl.rewards  # noqa: F401
            except ImportError as error:
                raise NotHere(f"trl: {error}") from error
        arguments = {"function": f"trl.rewards:{name}"} | ({} if make is None else {"make": make})
        return load_reward("unigrpo.rewards.adapters:Trl", arguments)

    return made


def random_weights(setup: Setup, name: str = "ViT-B-32") -> str:
    """Return a file of random weights for an architecture, the same for both sides of a row."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    file = setup.folder / f"{name}.safetensors"
    if not file.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_file(open_clip.create_model(name).state_dict(), file)
    return str(file)


def clip(setup: Setup) -> Call:
    model = {"model": "asset:tiny_clip"} if setup.is_toy else {"model": "ViT-B-32", "pretrained": random_weights(setup)}
    return load_reward("unigrpo.rewards.clip_alignment:ClipAlignment", model | {"device": setup.device})


def open_clip_loop(setup: Setup) -> Call:
    """Return what a script does with open_clip: one picture and its caption at a time."""
    import open_clip
    import torch

    from unigrpo.models.files.folders import resolve_folder

    name = f"local-dir:{resolve_folder('asset:tiny_clip')}" if setup.is_toy else "ViT-B-32"
    file = None if setup.is_toy else random_weights(setup)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=file, device=setup.device)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()

    def score(*, prompts: list[str], completions: list[Any], **columns: Any) -> list[float]:
        values = []
        with torch.inference_mode():
            for prompt, picture in zip(prompts, completions, strict=True):
                pixels = preprocess(picture).unsqueeze(0).to(setup.device)
                image = model.encode_image(pixels, normalize=True)
                text = model.encode_text(tokenizer([prompt]).to(setup.device), normalize=True)
                values.append(max(0.0, float((image * text).sum())))  # as ours counts it
        return values

    return score


def hps(setup: Setup) -> Call:
    from clip_specimens import architecture

    name = architecture(setup.folder / "configs", "tiny-ViT-H-14", width=24)
    arguments = {"weights": random_weights(setup, name), "model": name, "device": setup.device}
    return load_reward("unigrpo.rewards.hps_v2:HpsV2", arguments)


def pick(setup: Setup) -> Call:
    from clip_specimens import transformers_clip

    folder = transformers_clip(setup.folder / "PickScore_v1")
    return load_reward("unigrpo.rewards.pick_score:PickScore", {"model": f"local-dir:{folder}", "device": setup.device})


def aesthetics(setup: Setup) -> Call:
    from clip_specimens import architecture

    name = "ViT-L-14-quickgelu"
    if setup.is_toy:
        name = architecture(setup.folder / "configs", "tiny-ViT-L-14-quickgelu", width=768, is_quick=True)
    head = str(GOLDEN / "aesthetic_affine.safetensors")
    arguments = {"model": name, "pretrained": random_weights(setup, name), "head": head, "device": setup.device}
    return load_reward("unigrpo.rewards.aesthetics:Aesthetics", arguments)


def image_reward(setup: Setup) -> Call:
    folder = GOLDEN / "imagereward_tiny"
    if not folder.is_dir():
        raise NotHere(f"{folder.name} is not among the goldens")
    arguments = {"checkpoint": str(folder / "ImageReward_tiny.pt"), "vocabulary": str(folder / "tokenizer")}
    heads = {"num_vision_heads": 4, "num_text_heads": 6, "device": setup.device}
    return load_reward("unigrpo.rewards.image_reward:ImageReward", arguments | heads)


def judge(setup: Setup) -> Call:
    from chat_server import scored, serving

    server = setup.stack.enter_context(serving(lambda request: scored(3)))
    arguments = {"url": server.url, "model": "judge", "rubric": "Is it a good answer to {prompt}?"}
    return load_reward("unigrpo.rewards.judge:Judge", arguments)


def code(setup: Setup) -> Call:
    from unigrpo.rewards.sandboxing.sandbox import SandboxUnavailableError

    try:
        return load_reward("unigrpo.rewards.code:Code", {})
    except SandboxUnavailableError as error:
        raise NotHere(str(error)) from error


ROWS = (
    Row(
        name="correctness",
        ours=reward("correctness:Correctness"),
        items=maths,
        peer=trl("accuracy_reward"),
        peer_name="TRL accuracy_reward",
    ),
    Row(
        name="format",
        ours=reward("format:Format", variant="trl"),
        items=thoughts,
        note="variant trl",
        peer=trl("think_format_reward"),
        peer_name="TRL think_format_reward",
    ),
    Row(
        name="repetition",
        ours=reward("repetition:Repetition"),
        items=tokens,
        peer=trl("get_repetition_penalty_reward", {"ngram_size": 3}),
        peer_name="TRL get_repetition_penalty_reward",
    ),
    Row(
        name="length",
        ours=reward("length:Length", max_length=256, soft_margin=64),
        items=tokens,
        peer=trl("get_soft_overlong_punishment", {"max_completion_len": 256, "soft_punish_cache": 64}),
        peer_name="TRL get_soft_overlong_punishment",
    ),
    Row(name="countdown", ours=reward("countdown:Countdown"), items=countdowns),
    Row(name="sudoku", ours=reward("sudoku:Sudoku"), items=sudokus),
    Row(name="multiple_choice", ours=reward("multiple_choice:MultipleChoice"), items=choices),
    Row(name="exact_match", ours=reward("exact_match:ExactMatch"), items=maths),
    Row(name="jpeg_size", ours=reward("jpeg_size:JpegSize"), items=pictures, share=0.5, note="512 x 512"),
    Row(name="scene", ours=reward("scene:Scene"), items=scenes, share=0.5, note="64 x 64"),
    Row(
        name="clip_alignment",
        ours=clip,
        items=pictures,
        peer=open_clip_loop,
        peer_name="open_clip, one picture at a time",
        share=0.25,
        note="ViT-B-32, 512 x 512",
    ),
    Row(name="aesthetics", ours=aesthetics, items=pictures, share=0.04, note="ViT-L-14, 512 x 512"),
    Row(name="hps_v2", ours=hps, items=pictures, share=0.25, note="tiny weights, 512 x 512"),
    Row(name="pick_score", ours=pick, items=pictures, share=0.25, note="tiny weights, 512 x 512"),
    Row(name="image_reward", ours=image_reward, items=pictures, share=0.25, note="tiny weights, 512 x 512"),
    Row(name="ocr", ours=reward("ocr:Ocr"), items=lettered, share=0.05, note="RapidOCR's own models, 512 x 512"),
    Row(
        name="compositional",
        items=compositions,
        share=0.5,
        note="the scene reader in place of Mask2Former, 64 x 64",
        ours=reward("compositional:Compositional", detector="tests/scene_detector.py:SceneDetector"),
    ),
    Row(name="vqa_accuracy", ours=reward("vqa_accuracy:VQAAccuracy"), items=questions, note="ten answers a question"),
    Row(
        name="diversity of texts",
        ours=reward("diversity:Diversity"),
        items=lambda count: groups(maths(count)),
        note=f"groups of {GROUP}",
    ),
    Row(
        name="diversity of pictures",
        ours=reward("diversity:Diversity"),
        items=lambda count: groups(pictures(count)),
        share=0.5,
        note=f"pixels, groups of {GROUP}, 512 x 512",
    ),
    Row(name="judge", ours=judge, items=maths, share=0.5, note="a local server that answers at once"),
    Row(name="code", ours=code, items=programs, share=0.1, note="two tests a program"),
)


def passes(columns: Columns) -> Iterator[Columns]:
    """Yield one part of the items for the warm-up and one for each pass."""
    each = len(columns["completions"]) // (NUM_PASSES + 1)
    for number in range(NUM_PASSES + 1):
        yield {name: values[number * each : (number + 1) * each] for name, values in columns.items()}


def measured(call: Call, columns: Columns) -> tuple[float, list[Any]]:
    """Return completions a second, the median pass, and all values."""
    rates, values = [], []
    for part in passes(columns):
        start = time.perf_counter()
        values += call(**part)
        rates.append(len(part["completions"]) / (time.perf_counter() - start))
    return statistics.median(rates[1:]), values


def measure(row: Row, num_items: int, *, is_toy: bool, device: str) -> dict[str, Any]:
    """Return the figures of one row; ``missing`` where it cannot be measured."""
    at_least = 2 * (NUM_PASSES + 1)
    columns = row.items(max(at_least, round(num_items * row.share)))
    entry: dict[str, Any] = {
        "name": row.name,
        "note": "tiny weights" if is_toy and row.name in TOYS else row.note,
        "peer": row.peer_name,
        "items": len(columns["prompts"]),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setup = Setup(is_toy=is_toy, device=device, stack=stack, folder=folder)
        try:
            entry["items_per_s"], values = measured(row.ours(setup), columns)
            if row.peer is not None:
                entry["peer_items_per_s"], theirs = measured(row.peer(setup), columns)
                entry["ratio"] = entry["items_per_s"] / entry["peer_items_per_s"]
                entry["agreement"] = float(
                    np.mean(
                        [
                            np.isclose(float(a or 0), float(b or 0), atol=1e-4)
                            for a, b in zip(values, theirs, strict=True)
                        ]
                    )
                )
        except NotHere as error:
            entry["missing"] = str(error)
    return entry


def markdown(entries: list[dict[str, Any]], command: str, device: str, *, has_gpu: bool) -> str:
    """Return the page that documents the figures; ``has_gpu`` is whether the machine shows one, used or not."""
    missing = "" if has_gpu or device != "cpu" else " There are no figures of a GPU, because none was at hand."
    lines = [
        "# Throughput of the rewards",
        "",
        f"Completions a second in one process with {num_threads()} on {os.cpu_count()} shared CPU cores "
        f"({platform.machine()}), device {device}, "
        f"made by `{command}`: a pass warms up, then the median of {NUM_PASSES} counts, each on items of its own."
        f"{missing}",
        "",
        "| reward | items | ours, /s | the peer's own function | /s | ours ÷ peer | same value | note |",
        "|---|--:|--:|---|--:|--:|--:|---|",
    ]
    for entry in entries:
        if "missing" in entry:
            lines.append(f"| {entry['name']} | | | | | | | not measured: {entry['missing']} |")
            continue
        peer = ["", "", "", ""]
        if "ratio" in entry:
            rate, ratio, same = entry["peer_items_per_s"], entry["ratio"], entry["agreement"]
            peer = [entry["peer"], _rate(rate), _rate(ratio), f"{same:.0%}"]
        cells = [entry["name"], f"{entry['items']}", _rate(entry["items_per_s"]), *peer, entry["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def num_threads() -> str:
    """Return how many threads numeric libraries have here, in words."""
    import torch

    count = torch.get_num_threads()
    return "one thread" if count == 1 else f"{count} threads"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--num-items", type=int, default=600)
    parser.add_argument("--only", nargs="*", choices=[row.name for row in ROWS])
    parser.add_argument("--toy", action="store_true", help="tiny models")
    parser.add_argument("--device", default="cpu", help="of the model rewards")
    options = parser.parse_args()
    entries = []
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        entries.append(measure(row, options.num_items, is_toy=options.toy, device=options.device))
        print(json.dumps(entries[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(entries, indent=1))
    if options.markdown:
        import torch

        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        command, has_gpu = f"python {' '.join(sys.argv)}", torch.cuda.is_available()
        options.markdown.write_text(markdown(entries, command, options.device, has_gpu=has_gpu))


if __name__ == "__main__":
    main()
