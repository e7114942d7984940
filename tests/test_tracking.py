from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)] for tag in tags}


def test_finite_numbers_are_written_under_their_own_names(tmp_path: Path) -> None:
    from unigrpo.runs.trackers.tensorboard import TensorBoard

    board = TensorBoard(tmp_path)
    board.step({"step": 1, "reward": 0.5, "kl": None, "ratio_mean": float("nan"), "status": "ok"})
    board.step({"step": 2, "reward": 0.75})
    board.close()
    assert _scalars(tmp_path / "tensorboard") == {"reward": [(1, 0.5), (2, 0.75)]}


def test_events_after_the_resumed_step_are_hidden(tmp_path: Path) -> None:
    from unigrpo.runs.trackers.tensorboard import TensorBoard

    board = TensorBoard(tmp_path)
    for step in (1, 2, 3, 4):
        board.step({"step": step, "reward": step / 10})
    board.close()
    board = TensorBoard(tmp_path, resumed_step=2)
    board.step({"step": 3, "reward": 0.9})
    board.close()
    assert _scalars(tmp_path / "tensorboard")["reward"] == [(1, 0.1), (2, 0.2), (3, 0.9)]
