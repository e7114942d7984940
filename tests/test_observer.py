from rich.console import Console

from unigrpo.cli.live import make_observer
from unigrpo.runs.trackers.base import Observer, SilentObserver


def test_every_observer_keeps_the_protocol() -> None:
    for observer in (SilentObserver(), make_observer(Console()), make_observer(Console(force_terminal=True))):
        assert isinstance(observer, Observer)


def test_silent_observer_takes_everything_and_shows_nothing(capsys) -> None:  # type: ignore[no-untyped-def]
    observer = SilentObserver()
    observer.phase("loading policy")
    observer.progress(1, 2, "rows")
    observer.step({"step": 1})
    observer.done({"status": "done"})
    assert capsys.readouterr() == ("", "")
