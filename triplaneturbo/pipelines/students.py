"""The student that makes the meshes when none is named."""

import contextlib
from pathlib import Path

from triplaneturbo.errors import WeightsError
from triplaneturbo.pipelines.convert import convert
from triplaneturbo.pipelines.text_to_mesh import CONFIG_FILE
from triplaneturbo.places import CHECKOUT, PROJECT, RECIPES
from triplaneturbo.weights.hub import STABLE_DIFFUSION_2, STUDENT

MINIATURE = Path("load", "shapeworld")
RECIPE = RECIPES / "TriplaneTurbo_v1.yaml"


def find_student(root: Path = PROJECT) -> Path:
    """The pipeline folder of the published student if its files are in place below `root`; otherwise that of the
    miniature one, below the working directory or `root`. The first call writes the published one in our format.

    Raises:
        WeightsError: neither is there, or the published one cannot be converted.
    """
    missing = [problem for asset in (STABLE_DIFFUSION_2, STUDENT) for problem in asset.missing(root)]
    if not missing:
        return _published(root)
    folders = miniature_folders(root)
    found = next((folder for folder in folders if (folder / CONFIG_FILE).is_file()), None)
    if found is None:
        where = f"--root {root}" if CHECKOUT is None else ""
        command = f"python scripts/prepare/download_eval_only.py {where}".strip()
        raise WeightsError(
            f"no weights are named (--weights DIR), and there are none to choose:\n"
            f"  the miniature student: no {CONFIG_FILE} in {' or '.join(map(str, folders))}; "
            "it is part of the repository\n"
            f"  the published student: {missing[0]}"
            f"{f', and {len(missing) - 1} more files are missing' if missing[1:] else ''}; "
            f"fetched by {'' if CHECKOUT else 'the repository: '}{command}"
        )
    return found


def miniature_folders(root: Path = PROJECT) -> list[Path]:
    """Where the miniature student is looked for."""
    return list(dict.fromkeys((Path.cwd() / MINIATURE, root / MINIATURE)))


def published_folder(root: Path = PROJECT) -> Path:
    """Where the published student is written in our format, beside its checkpoint."""
    return (root / STUDENT.target).with_suffix("")


def _published(root: Path) -> Path:
    folder = published_folder(root)
    if not (folder / CONFIG_FILE).is_file():
        with contextlib.chdir(root):  # the recipe's paths are relative to the project
            convert(STUDENT.target, folder, RECIPE)
    return folder
