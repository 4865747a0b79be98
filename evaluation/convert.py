"""The command line of scripts/convert.py."""

import argparse
import sys

from triplaneturbo.errors import USER_ERRORS
from triplaneturbo.pipelines.convert import convert, convert_back
from triplaneturbo.places import RECIPES

RECIPE = RECIPES / "TriplaneTurbo_v1.yaml"
USE = {
    "mvdream": "use it with system.guidance.mv_ckpt_path={}",
    "richdreamer": "use it with system.guidance.rd_ckpt_path={}",
    "student": 'use it with TextToMeshPipeline.from_pretrained("{}")',
}


def main(description: str, arguments: list[str] | None = None) -> int:
    """Convert as the command line says; 1 and a message if that is not possible."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("source", help="a published .pt, .ckpt or .pth file; with --to-original a pipeline folder")
    parser.add_argument("target", help="the folder to write; with --to-original a .pth file")
    parser.add_argument("--config", default=RECIPE, metavar="YAML", help="recipe of a student (default: %(default)s)")
    parser.add_argument("--to-original", action="store_true", help="write a student as the original's checkpoint")
    flags = parser.parse_args(arguments)
    try:
        if flags.to_original:
            convert_back(flags.source, flags.target)
            print(f"{flags.target}: written")
        else:
            kind = convert(flags.source, flags.target, flags.config)
            print(f"{flags.target}: {kind}; {USE[kind].format(flags.target)}")
    except USER_ERRORS as error:
        print(f"convert.py: {error}", file=sys.stderr)
        return 1
    return 0
