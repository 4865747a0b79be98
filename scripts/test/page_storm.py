"""Send many requests at once to the web page, and see that each is answered and that memory and files stay bounded.

    python scripts/test/page_storm.py --requests 100 [--weights FOLDER] [--device cpu] [--large 256]

Starts the page on a free port of this machine. Every request comes from a visitor of its own, all at the same time;
one that finds the queue full tries again until it is answered. Each has another seed and prompt: the answer must be a
GLB of this prompt with this seed in its report. Fails if a request is lost or mixed up, if memory in use grows by more
than --growth from the end of the warm-up to the end of the storm or to the end of a last request at the resolution
--large, or if the stopped page leaves files behind. Linux only: memory is read from /proc.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from triplaneturbo.evaluation.world import PALETTE, SHAPES
from triplaneturbo.naming import slug

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 5  # requests after which libraries are loaded and pools filled
PATIENCE = 3600  # seconds until a request counts as lost
RESOLUTIONS = (32, 48, 64)


@dataclass(frozen=True)
class Answer:
    """What became of a request: an error, or none; how often the queue was full."""

    error: str
    refusals: int


def send(url: str, content: dict) -> dict:
    """The JSON that a POST of JSON is answered with."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def ask(address: str, prompt: str, seed: int, resolution: int) -> Answer:
    """Send one request to the page at `address`, as often as the queue is full, and check its answer."""
    refusals, end, call = 0, time.monotonic() + PATIENCE, f"{address}gradio_api/call/generate"
    while time.monotonic() < end:
        try:
            event = send(call, {"data": [prompt, seed, resolution]})["event_id"]
        except urllib.error.HTTPError as error:
            reason = error.read().decode()
            if error.code != 503 or "Queue is full" not in reason:
                return Answer(f"status {error.code}: {reason}", refusals)
            refusals += 1
            time.sleep(min(0.25 * 2**refusals, 8) * random.uniform(0.5, 1))
            continue
        return Answer(check(f"{call}/{event}", prompt, seed), refusals)
    return Answer("not answered in time", refusals)


def check(url: str, prompt: str, seed: int) -> str:
    """Wait for the answer at `url`; what is wrong with it, or nothing."""
    kind = ""
    with urllib.request.urlopen(url, timeout=PATIENCE) as lines:
        for line in lines:
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                kind = value
            elif field == "data" and kind == "error":
                return f"error {value}"
            elif field == "data" and kind == "complete":
                mesh, _, _, report = json.loads(value)
                break
        else:
            return "no answer"
    if f"seed {seed}" not in report.splitlines()[0].split(", ") or Path(mesh["path"]).stem != slug(prompt):
        return f"the answer of another request: {mesh['path']}, {report}"
    with urllib.request.urlopen(mesh["url"], timeout=60) as file:
        return "" if file.read(4) == b"glTF" else "no GLB"


def storm(address: str, n_requests: int) -> list[Answer]:
    """The answers of `n_requests` requests sent at the same time."""
    prompts = [f"a {color} {shape}" for color in PALETTE for shape in SHAPES]
    start = threading.Barrier(n_requests)

    def visit(index: int) -> Answer:
        start.wait()
        try:
            return ask(address, prompts[index % len(prompts)], index, RESOLUTIONS[index % len(RESOLUTIONS)])
        except OSError as error:
            return Answer(f"connection: {error}", 0)

    with ThreadPoolExecutor(n_requests) as pool:
        return list(pool.map(visit, range(n_requests)))


class Page:
    """The page in a process of its own, whose temporary files are below `folder`."""

    def __init__(self, flags: argparse.Namespace, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address, self.folder = f"http://127.0.0.1:{port}/", folder
        command = [sys.executable, ROOT / "gradio_app.py", "--port", str(port), "--weights", flags.weights]
        if flags.device:
            command += ["--device", flags.device]
        self.process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("the page did not start")

    def memory(self, what: str = "VmRSS") -> int:
        """MiB in use; VmHWM: at most since `forget_peak`."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(what))

    def forget_peak(self) -> None:
        """Count the peak of memory anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def files(self) -> tuple[int, int]:
        """Number and MiB of its files."""
        sizes = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return len(sizes), sum(sizes) >> 20

    def stop(self) -> None:
        """As a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def run(flags: argparse.Namespace, page: Page) -> list[str]:
    """The storm on a started page; returns what is wrong."""
    for answer in storm(page.address, WARM_UP):
        if answer.error:
            return [f"warm-up: {answer.error}"]
    before, start = page.memory(), time.monotonic()
    page.forget_peak()
    answers = storm(page.address, flags.requests)
    after, took = page.memory(), time.monotonic() - start
    lost = [answer.error for answer in answers if answer.error]
    refusals = sum(answer.refusals for answer in answers)
    files, size = page.files()
    print(f"{flags.requests} requests at once in {took:.0f} s: {len(answers) - len(lost)} answered, {len(lost)} lost,")
    print(f"  {refusals} refusals because the queue was full, all tried again")
    print(f"memory {before} MiB before, {after} after, {page.memory('VmHWM')} at most; {files} files of {size} MiB")
    wrong = sorted(set(lost))
    if after - before > flags.growth:
        wrong.append(f"memory grew by {after - before} MiB, more than {flags.growth}")
    if flags.large:
        page.forget_peak()
        answer, large = ask(page.address, "a red cube", 0, flags.large), page.memory()
        print(f"one request at resolution {flags.large}: memory {large} MiB after, {page.memory('VmHWM')} at most")
        wrong += [answer.error] if answer.error else []
        if large - before > flags.growth:
            wrong.append(f"after the large request memory has grown by {large - before} MiB, more than {flags.growth}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--weights", type=Path, default=ROOT / "load" / "shapeworld")
    parser.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    parser.add_argument("--large", type=int, default=0, help="resolution of a last request; default: none")
    parser.add_argument("--growth", type=int, default=150, help="MiB; default: %(default)s")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Page(flags, Path(folder))
        try:
            wrong = run(flags, page)
        finally:
            page.stop()
        left = page.files()[0]
        print(f"{left} files left after the page was stopped")
        wrong += [f"{left} files were left"] if left else []
    for error in wrong:
        print(f"WRONG: {error}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
