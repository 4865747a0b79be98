"""A web page that turns a prompt into a mesh: `triplaneturbo serve`, then open the address that it prints."""

import argparse
import asyncio
import contextvars
import ctypes
import functools
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import gradio as gr
import torch
from starlette.middleware import Middleware
from transformers.utils import logging as transformers_logging

from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.extensions import custom_folders, provide
from triplaneturbo.naming import slug
from triplaneturbo.pages.guard import Guard, Visitors
from triplaneturbo.pipelines import students
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.places import PROJECT
from triplaneturbo.weights.hub import STUDENT

MINIATURE_EXAMPLES = ("a red cube", "a blue pyramid", "a purple cross", "a yellow torus on a blue sphere")
FULL_SIZE_EXAMPLES = ("a wooden rocking chair", "a ripe pineapple", "a knight's helmet with a red plume")
MAX_CHARACTERS = 1000
RESOLUTIONS = (32, 256)  # 1.6 GB and 4 MB of mesh for the largest
MAX_WAITING = 20  # requests in the queue; further ones are told to come back
KEPT_RESULTS = 50  # the latest ones, which can be fetched
KEPT_SESSIONS = 100  # visitors whose page gradio remembers, 100 kB each
VIEWPOINT = (60, 70, 2.4)  # degrees around the y axis, the front being at 90, and from it; distance
VIEWER_GREY = (0.93, 0.94, 0.95, 1.0)  # white and dark objects both stand out


@dataclass(frozen=True)
class Student:
    """A pipeline folder, what it knows in a sentence (Markdown), and prompts to begin with.

    world: the module that knows what its prompts may be; it raises ValueError for others (`parse_caption`).
    """

    folder: Path
    about: str
    examples: tuple[str, ...] = ()
    world: ModuleType | None = None


def find_student(folder: Path | None, root: Path = PROJECT) -> Student:
    """The student of `folder`; without one what `students.find_student` finds.

    Raises:
        WeightsError: there is none, or the published student cannot be converted.
    """
    folder = students.find_student(root) if folder is None else folder
    if folder == students.published_folder(root):
        about = f"the published full-size student, `{STUDENT.target}`. It takes descriptions of a single object."
        return Student(folder, about, FULL_SIZE_EXAMPLES)
    if folder.resolve() in [place.resolve() for place in students.miniature_folders(root)]:
        about, world = "the **miniature student** of this project.", miniature_world()
        if world is not None:
            known = f"the shapes {', '.join(world.SHAPES)} in the colours {', '.join(world.PALETTE)}"
            about += f" It knows nothing but {known}, plain, striped or dotted, tall, flat or small, alone or up to"
            about += " three on, under and beside each other."
        return Student(folder, about, MINIATURE_EXAMPLES, world)
    return Student(folder, f"`{folder}`. They know what they were trained on; this page cannot tell what that was.")


def miniature_world() -> ModuleType | None:
    """What the miniature student's prompts may be, as far as its extension is at hand; that is not part of a wheel."""
    there = "custom.shapeworld" in provide(*custom_folders())
    return import_module("custom.shapeworld.world") if there else None


class Stopped(Exception):
    """The visitor does not want the mesh any more, or the page closes."""


def step_reporter(progress: Callable, total: int) -> Callable:
    """A hook for the network that reports each of its passes. A recorded CUDA graph has none, and is over at once."""
    passes = itertools.count(1)

    def report(*_: object) -> None:
        step = min(next(passes), total)  # recording a graph takes some more
        progress(0.6 * step / total, desc=f"Denoising step {step} of {total}")

    return report


def grid_reporter(progress: Callable, resolution: int) -> Callable:
    """The same for the network of distances, which goes through the grid slab by slab."""
    points = 0

    def report(_module: object, _inputs: object, distances: torch.Tensor) -> None:
        nonlocal points
        points += distances.numel()
        progress(0.7 + 0.15 * min(points / resolution**3, 1), desc="Extracting the surface")

    return report


def give_memory_back() -> None:
    """Return to the system, and to other programs on the GPU, what is free but kept for the next request."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class Generator:
    """Prompt to files, one call at a time. `folder` is the only place written to, and holds the latest results.

    Attributes: closing: to be set when the page closes; the page then ends the call under way.
    """

    def __init__(self, student: Student, device: str | None, folder: Path) -> None:
        """Raises WeightsError: the student's files are missing, damaged, or do not fit."""
        self.student, self.folder = student, folder
        self.pipe = TextToMeshPipeline.from_pretrained(student.folder, device)
        self.results: deque[Path] = deque()
        self.closing = threading.Event()

    def __call__(self, prompt: str, seed: int | None, resolution: int, progress: Callable) -> tuple[Path, Path, str]:
        """The GLB, the turntable picture and a report.

        progress: hears of every stage and of the steps within, `progress(share in [0, 1], desc=text)`; what it raises
            ends the call.

        Raises:
            ValueError: the prompt is empty or too long, there is no seed, or the prompt's field has no surface.
        """
        try:
            return self._generate(prompt, seed, resolution, progress)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors
            raise
        finally:
            give_memory_back()

    def _generate(self, prompt: str, seed: int | None, resolution: int, progress: Callable) -> tuple[Path, Path, str]:
        prompt = (prompt or "").strip()
        if not prompt:
            raise ValueError("The prompt is empty; say what to make, for example: a red cube")
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(f"The prompt has {len(prompt)} characters; at most {MAX_CHARACTERS} are allowed.")
        if seed is None:
            raise ValueError("There is no seed; give a whole number, for example: 0")
        start = time.perf_counter()
        progress(0.0, desc="Denoising")
        report_step = step_reporter(progress, self.pipe.config.num_inference_steps)
        with self.pipe.geometry.space_generator.unet.register_forward_hook(report_step):
            scene = self.pipe.generate((prompt,), seed=seed)
        progress(0.7, desc="Extracting the surface")
        report_grid = grid_reporter(progress, resolution)
        with self.pipe.geometry.field.sdf_network.layers[-1].register_forward_hook(report_grid):
            (mesh,) = self.pipe.extract((prompt,), scene, resolution=resolution)
        progress(0.85, desc="Drawing the turntable")
        exporter = MeshExporter({"save_name": slug(prompt)})
        (path,) = exporter([mesh], [prompt], self._new_folder())
        took = f"{time.perf_counter() - start:.1f} s on {self.pipe.device}"
        report = f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces, {took}, seed {seed}"
        return path, path.with_name("turntable.png"), "\n".join([report, *self._doubts(prompt)])

    def _new_folder(self) -> Path:
        """An empty folder for a result; the oldest ones make room."""
        while len(self.results) >= KEPT_RESULTS:
            shutil.rmtree(self.results.popleft())
        self.results.append(Path(tempfile.mkdtemp(dir=self.folder)))
        return self.results[-1]

    def _doubts(self, prompt: str) -> Iterator[str]:
        """What should be known about the mesh of a prompt that the student does not fully understand."""
        encoder = self.pipe.text_encoder
        if len(encoder.tokenizer(prompt, truncation=False, verbose=False).input_ids) > encoder.max_length:
            yield f"The text encoder reads {encoder.max_length} tokens; the end of this prompt was cut off."
        if self.student.world is not None:
            try:
                self.student.world.parse_caption(prompt)
            except ValueError as error:
                yield f"The miniature student was not trained on such prompts: {error}"


def build_page(generate: Generator) -> gr.Blocks:
    """The page, and its API endpoint /generate."""
    student, default = generate.student, generate.pipe.config.resolution
    tracker = gr.Progress()
    # Gradio starts the next request as soon as one is cancelled; this thread takes it once the last has ended.
    worker = ThreadPoolExecutor(max_workers=1)

    async def answer(prompt: str, seed: int, resolution: int, progress: gr.Progress = tracker) -> tuple:
        left = threading.Event()

        def report(share: float, desc: str) -> None:
            if left.is_set() or generate.closing.is_set():
                raise Stopped
            progress(share, desc=desc)

        work = functools.partial(contextvars.copy_context().run, generate, prompt, seed, resolution, report)
        try:
            mesh, picture, text = await asyncio.get_running_loop().run_in_executor(worker, work)
        except torch.OutOfMemoryError as error:
            raise gr.Error(f"Out of memory at resolution {resolution}; choose a smaller one.") from error
        except (ValueError, Stopped) as error:
            raise gr.Error(str(error) or "The page was closed.", print_exception=False) from error
        finally:
            left.set()  # if this was cancelled, the worker hears of it at its next report
        return mesh, mesh, picture, text

    with gr.Blocks(title="Text to mesh", analytics_enabled=False) as page:
        gr.Markdown(f"# Text to mesh\nWeights: {student.about}")
        with gr.Row():
            with gr.Column(scale=2):
                prompt = gr.Textbox(label="Prompt", max_length=MAX_CHARACTERS, autofocus=True)
                if student.examples:
                    gr.Examples([[example] for example in student.examples], prompt)
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
                    resolution = gr.Slider(*RESOLUTIONS, default, step=16, precision=0, label="Resolution")
                with gr.Row():
                    button = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop", variant="stop")
                report = gr.Textbox(label="Result", max_lines=12, interactive=False)
            with gr.Column(scale=3):
                viewer = gr.Model3D(
                    label="Mesh", interactive=False, clear_color=VIEWER_GREY, camera_position=VIEWPOINT, height=440
                )
                download = gr.DownloadButton("Download GLB", interactive=False)
                picture = gr.Image(show_label=False, interactive=False, buttons=["fullscreen", "download"])
        outputs = [viewer, download, picture, report]
        queue = {"api_name": "generate", "concurrency_limit": 1, "show_progress_on": viewer}
        done = gr.on([button.click, prompt.submit], answer, [prompt, seed, resolution], outputs, **queue)
        done.success(None, None, download, js="() => ({__type__: 'update', interactive: true})")
        stop.click(None, cancels=done)
    return page.queue(max_size=MAX_WAITING, api_open=False)


def launch(page: gr.Blocks, flags: argparse.Namespace, files: Path, *, wait: bool = True) -> None:
    """Open the page; returns when it is interrupted, or at once without `wait`. files: the folder that is served."""
    visitors = Visitors(flags.host, flags.allowed_host)
    _, _, public = page.launch(
        server_name=flags.host,
        server_port=flags.port,
        share=flags.share,
        prevent_thread_lock=True,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [Middleware(Guard, visitors=visitors, files=files)]},
        state_session_capacity=KEPT_SESSIONS,
        run_history=False,
        enable_monitoring=False,
        num_workers=0,  # processes that would serve files past the guard
        ssr_mode=False,
        mcp_server=False,
        footer_links=["api"],
    )
    if public and (host := urlsplit(public).hostname):
        visitors.named.add(host)
    if wait:
        page.block_thread()


def parse(arguments: Sequence[str], program: str | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(program, description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer under this host name, such as that of a proxy; can be given more than once",
    )
    parser.add_argument("--share", action="store_true", help="also open a public address, through gradio's servers")
    default = "the published student if it is in pretrained/, else the miniature one"
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help=f"pipeline folder; default: {default}")
    parser.add_argument("--device", help="default: the GPU if there is one, else the CPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], program: str) -> int:
    """Open the page that the command line asks for; returns when it is closed.

    Raises:
        WeightsError: the student is missing, damaged, or does not fit.
    """
    flags = parse(arguments, program)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="triplaneturbo-") as folder:  # a stopped program removes it
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio's own files, too
        generate = Generator(find_student(flags.weights), flags.device, Path(folder))
        try:
            launch(build_page(generate), flags, Path(folder))
        finally:
            generate.closing.set()
    return 0
