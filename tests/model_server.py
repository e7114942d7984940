"""What ``vllm serve`` is to a judge, in a few lines: slow to start, one model, one answer. A program, not a test."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        if self.path == "/v1/models" and MODE != "health":
            self.reply(200, {"data": [{"id": "tiny-judge"}]})
        else:
            self.reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps({"reason": "fine", "score": 4})
        self.reply(200, {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})

    def reply(self, status: int, document: object) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


if __name__ == "__main__":
    PORT, MODE = int(sys.argv[1]), sys.argv[2]
    if MODE == "fail":
        print("\n".join(f"line {number}" for number in range(30)))
        sys.exit("\x1b[31mno GPU found")
    if MODE == "hang":
        time.sleep(600)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    facts: dict[str, object] = {"pids": [os.getpid(), engine.pid], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    facts["own"] = sorted(
        name for name in os.environ if name in ("PYTHONPATH", "OMP_NUM_THREADS") or name.startswith("UNIGRPO_CHILD_")
    )
    print(json.dumps(facts), flush=True)
    time.sleep(0.3)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
