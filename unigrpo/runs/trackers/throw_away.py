
import json
from unigrpo.runs.trackers.base import Tracker


class Notes(Tracker):
    def __init__(self, name="notes"):
        self.name = name

    def start(self, recipe, run_dir, resumed_step):
        self.path = run_dir / f"{self.name}.txt"
        self.note("start", resumed_step)

    def note(self, *heard):
        with self.path.open("a") as file:
            file.write(json.dumps(heard) + chr(10))

    def step(self, metrics):
        on_disk = (self.path.parent / "metrics.jsonl").read_text().splitlines()
        self.note("step", metrics["step"], len(on_disk))

    def samples(self, samples):
        self.note("samples", samples.name, samples.step, len(samples.rows))

    def done(self, summary):
        self.note("done", summary["num_steps"])

    def close(self):
        self.note("close")
