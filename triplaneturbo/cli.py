"""The command `triplaneturbo`, and the command lines of launch.py and gradio_app.py, which share its flags."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from triplaneturbo import __version__
from triplaneturbo.errors import USER_ERRORS, ConfigError, nearest
from triplaneturbo.host import importing, let_idle_threads_sleep
from triplaneturbo.interruption import stoppable
from triplaneturbo.places import find_recipe, recipes

MODES = {
    "train": "train what a configuration says",
    "validate": "make the pictures of validation with what was trained",
    "test": "make the turntables of the test prompts with what was trained",
    "export": "write the meshes of the test prompts",
}
READERS = {"show": "print the whole configuration, and where each value comes from"}
# Name, module of triplaneturbo.evaluation, what it measures.
EVALUATIONS = (
    ("shapeworld", "benchmark", "meshes of the miniature world against its exact solids"),
    ("views", "views", "four pictures of every exported mesh, for the CLIP score"),
    ("clip-score", "clip_score", "CLIP score and R@1 of such pictures"),
)


def main() -> int:
    """The command `triplaneturbo`; returns the exit code."""
    with stoppable():
        return run()


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    let_idle_threads_sleep()
    parser = argparse.ArgumentParser(
        prog="triplaneturbo", description="Text to coloured meshes, and the training of it.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for mode, what in (MODES | READERS).items():
        _add_launch(commands.add_parser(mode, help=what, description=f"{_sentence(what)}.", allow_abbrev=False), mode)
    translate = commands.add_parser("translate", help="print a file of the original in this project's names")
    translate.add_argument("file", metavar="CONFIG")
    _add_generate(
        commands.add_parser("generate", help="write the mesh of a prompt, or those of a library", allow_abbrev=False)
    )
    evaluate = commands.add_parser("evaluate", help="measure meshes", allow_abbrev=False)
    measures = evaluate.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    for name, _, what in EVALUATIONS:
        measures.add_parser(name, help=what, add_help=False)
    commands.add_parser("doctor", help="say what this machine has of what the program can use", allow_abbrev=False)
    commands.add_parser("serve", help="open a web page that turns prompts into meshes", add_help=False)
    # Measures and the page read the rest of the line themselves, --help included: their modules take seconds to import.
    flags, rest = parser.parse_known_args(arguments)
    program, own = f"{parser.prog} {flags.command}", commands.choices[flags.command]
    if flags.command == "serve":
        return serve(rest, program)
    if flags.command == "evaluate":
        return _evaluate(flags.measure, rest, program)
    if flags.command == "translate":
        _refuse_flags(own, rest)
        return _in_one_line(program, lambda: _translate(flags.file, rest))
    if flags.command in MODES | READERS:
        return _launch(own, flags, [*flags.words, *rest])
    _refuse_flags(own, rest)
    if flags.command == "doctor":
        from triplaneturbo.doctor import report

        print(report())
        return 0
    return _in_one_line(program, lambda: _generate(own, flags))


def launch(arguments: Sequence[str] | None = None) -> int:
    """The command line of launch.py; returns the exit code."""
    let_idle_threads_sleep()
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Train, check or export: "
        "`python launch.py --config configs/shapeworld/prd.yaml --train data.batch_size=8`.",
        allow_abbrev=False,
        epilog="key=value overrides the config",
    )
    parser.add_argument("--config", action="append", metavar="YAML", help="repeatable; later files win")
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--translate", metavar="YAML", help="print a file of the original in this project's names")
    for name, what in (MODES | READERS).items():
        modes.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=what)
    _add_flags(parser)
    _add_export_flags(parser)
    flags, overrides = parser.parse_known_args(arguments)
    if flags.translate:
        _refuse_flags(parser, overrides)
        return _in_one_line(parser.prog, lambda: _translate(flags.translate, overrides), traceback=flags.verbose)
    if not flags.config:
        parser.error("which configuration? Give --config FILE")
    if flags.mode != "export":
        for name in ("out", "overwrite"):
            if getattr(flags, name):
                parser.error(f"--{name} goes with --export")
    return start(parser, flags, flags.config, overrides)


def serve(arguments: Sequence[str], program: str) -> int:
    """The command line of the web page; returns the exit code when the page is closed."""
    try:
        from triplaneturbo.pages.app import main as open_page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        print(f'{program}: {error.name} is not installed; run: pip install "gradio>=6.31,<7"', file=sys.stderr)
        return 1
    return _in_one_line(program, lambda: open_page(arguments, program))


def start(parser: argparse.ArgumentParser, flags: argparse.Namespace, configs: list[str], overrides: list[str]) -> int:
    """Launch `flags.mode` with these configurations and overrides; returns the exit code."""
    _refuse_flags(parser, overrides)
    if getattr(flags, "overwrite", False):
        overrides = [*overrides, "system.exporter.overwrite=true"]
    gpus = None if "CUDA_VISIBLE_DEVICES" in os.environ else flags.gpu
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported
    if flags.typecheck:
        from jaxtyping import install_import_hook

        install_import_hook(["triplaneturbo", "custom"], "beartype.beartype")

    def run_it() -> int:
        with importing():
            from triplaneturbo.launcher import Launch, launch, show
        request = Launch(
            mode=flags.mode,
            configs=[str(find_recipe(config)) for config in configs],
            overrides=overrides,
            prompts=flags.prompt,
            out=getattr(flags, "out", None),
            gpus=gpus,
            verbose=flags.verbose,
        )
        if flags.mode in READERS:
            show(request)
        else:
            launch(request)
        return 0

    return _in_one_line(parser.prog, run_it, traceback=flags.verbose)


def _translate(config: str, overrides: list[str]) -> int:
    from triplaneturbo.config import translate_file

    print(translate_file(find_recipe(config), overrides), end="")
    return 0


def _in_one_line(program: str, work: Callable[[], int], traceback: bool = False) -> int:
    """The exit code of `work`; 2 and one message in place of a traceback after a mistake of the user."""
    try:
        return work()
    except USER_ERRORS as error:
        if traceback:
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return 2


def _refuse_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End the program if one of the words that no flag took looks like one."""
    for word in words:
        if word.startswith("-"):
            parser.error(f"there is no flag {word}; {nearest(word, parser._option_string_actions)}")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", help="devices, such as 0,1; ignored when CUDA_VISIBLE_DEVICES is set")
    parser.add_argument("--prompt", action="append", default=[], help="repeatable; in place of a prompt library")
    parser.add_argument("--verbose", action="store_true", help="debug messages, and tracebacks of user errors")
    parser.add_argument("--typecheck", action="store_true", help="check the shapes of all annotated tensors")


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="export to DIR/<prompt>/model.glb")
    parser.add_argument("--overwrite", action="store_true", help="export over meshes of another prompt, seed or run")


def _add_launch(parser: argparse.ArgumentParser, mode: str) -> None:
    parser.usage = "%(prog)s CONFIG... [key=value ...] [flags]"
    help_of_words = "configuration files, of which later ones win, from the working directory or the recipes that are "
    help_of_words += f"part of the program ({', '.join(recipes())}); then options that win over the files"
    parser.add_argument("words", nargs="*", metavar="CONFIG... [key=value ...]", help=help_of_words)
    _add_flags(parser)
    if mode == "export":
        _add_export_flags(parser)
    parser.set_defaults(mode=mode)


def _launch(parser: argparse.ArgumentParser, flags: argparse.Namespace, words: list[str]) -> int:
    _refuse_flags(parser, words)
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    configs = [word for word in words if word not in overrides]
    if not configs:
        parser.error(f"which configuration? Name a file or one of the recipes: {', '.join(recipes())}")
    return start(parser, flags, configs, overrides)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the mesh of a prompt, or of every prompt of a library. Weights, a prompt and a seed are "
    )
    parser.description += "one mesh. Of a library what is there already is not made again."
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("prompt", nargs="?", help='such as "a red cube"')
    what.add_argument("--library", metavar="NAME", help="a prompt library in load/, such as dreamfusion_415, or a "
                      ".json file")  # fmt: skip
    parser.add_argument("-o", "--out", required=True, metavar="PATH", type=Path, help="of a prompt: a .glb or .obj "
                        "file; of a library: a folder, in which every prompt gets one")  # fmt: skip
    parser.add_argument("--weights", metavar="DIR", type=Path, help="pipeline folder; default: the published student "
                        "if it is in pretrained/, else load/shapeworld, here or in the project")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--resolution", type=int, metavar="N", help="grid points along an edge; default: as trained")
    parser.add_argument("--device", help="default: the GPU if there is one, else the CPU; for a library all GPUs")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there; of a library: "
                        "replace meshes of another prompt, seed or training")  # fmt: skip
    own = parser.add_argument_group("of a library")
    own.add_argument("--split", choices=("train", "val", "test"), help="which of its lists (default: test)")
    own.add_argument("--batch-size", type=int, metavar="N", help="prompts that are made together (default: 1)")
    own.add_argument("--engine", choices=("processes", "ray"), help="who makes the meshes: a process on every GPU of "
                     "this machine (default), or the machines of a Ray cluster")  # fmt: skip
    own.add_argument("--ray-address", metavar="HOST:PORT", help="of the Ray cluster; default: RAY_ADDRESS, else the "
                     "one that runs here, else one that is started here")  # fmt: skip


def _generate(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> int:
    given = {name: getattr(flags, name) for name in ("split", "batch_size", "engine", "ray_address")}
    given = {name: value for name, value in given.items() if value is not None}
    if flags.library:
        return _generate_library(flags, given)
    if given:
        parser.error(f"--{next(iter(given)).replace('_', '-')} goes with --library")
    if flags.out.exists() and not flags.overwrite:
        raise ConfigError(f"{flags.out} is there already; give another -o, or --overwrite to replace it")
    with importing():
        from triplaneturbo.pipelines.generate import generate
    made = generate(flags.prompt, flags.out, flags.weights, flags.seed, flags.resolution, flags.device)
    print(made)
    return 0


def _generate_library(flags: argparse.Namespace, given: dict[str, Any]) -> int:
    """1 if prompts have no mesh."""
    from triplaneturbo.pipelines.library import LibraryRequest, generate_library

    common = ("library", "out", "weights", "seed", "resolution", "device", "overwrite")
    request = LibraryRequest(**{name: getattr(flags, name) for name in common}, **given)
    summary = generate_library(request, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(summary)
    return 1 if summary.failed else 0


def _evaluate(measure: str, arguments: Sequence[str], program: str) -> int:
    (module,) = (module for name, module, _ in EVALUATIONS if name == measure)

    def work() -> int:
        evaluation = import_module(f"triplaneturbo.evaluation.{module}")
        return evaluation.main(arguments, f"{program} {measure}") or 0

    return _in_one_line(program, work)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
