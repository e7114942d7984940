"""Rewards in the shapes of other trainers; the adapters load them by path."""

import asyncio

import numpy as np
import torch


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "gsm8k"
    return float(solution_str.split()[-1] == str(ground_truth))


def compute_score_dict(data_source, solution_str, ground_truth, extra_info, bonus=0.0):
    is_right = solution_str.split()[-1] == str(ground_truth)
    detail = {"level": extra_info["level"]} if is_right else {}
    return {"score": is_right + bonus, "pred": solution_str.split()[-1], **detail}


async def compute_score_async(data_source, solution_str, ground_truth, extra_info):
    compute_score_async.waiting += 1
    compute_score_async.most = max(compute_score_async.most, compute_score_async.waiting)
    await asyncio.sleep(0.01)
    compute_score_async.waiting -= 1
    return {"score": np.float32(len(solution_str))}


compute_score_async.waiting = compute_score_async.most = 0


def compute_score_as_given(data_source, solution_str, ground_truth, extra_info, result):
    return result


def reward_func_tensor(queries, prompts, labels):
    return torch.tensor(
        [float(q.removeprefix(p) == label) for q, p, label in zip(queries, prompts, labels, strict=True)]
    )


def reward_func_dict(queries, prompts, labels, **kwargs):
    reward = reward_func_tensor(queries, prompts, labels)
    return {
        "rewards": 2 * reward - 1,
        "scores": reward,
        "extra_logs": {"accuracy": reward.mean(), "length": [len(q) for q in queries], "note": "text"},
    }


def reward_func_as_given(queries, prompts, labels, result):
    return result


def brightness(images, prompts, metadata):
    assert images.dtype == np.uint8
    assert images.ndim == 4
    return images.mean(axis=(1, 2, 3)) / 255, {"call_size": len(images)}


def make_brightness(device):
    def reward(images, prompts, metadata):
        assert isinstance(images, torch.Tensor)
        assert images.shape[1] == 3
        return images.to(device).mean(dim=(1, 2, 3)), {}

    return reward


def make_without_settings():
    return lambda images, prompts, metadata: ([float(item["wanted"]) for item in metadata], {})


def several_scores(images, prompts, metadata, only_strict):
    assert only_strict is False
    values = [0.25] * len(images)
    return {"avg": values, "jpeg": np.array(values) * 2}, {"group": "x"}


def strict_scores(images, prompts, metadata):
    return [0.5] * len(images), [1.0] * len(images), [0.0] * len(images), {"group": [0]}, {}


def scores_as_given(images, prompts, metadata, result):
    return result


def not_a_factory():
    return 3


def make_doubling(factor):
    def reward(prompts, completions, answer, **kwargs):
        return [factor * len(completion) for completion in completions]

    return reward


NUMBER = 3
