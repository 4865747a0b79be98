"""One prompt to one file: the command `triplaneturbo generate`."""

import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from triplaneturbo.base import convert
from triplaneturbo.bounds import GridPoints, Seed
from triplaneturbo.errors import ConfigError
from triplaneturbo.exporters.files import require_suffix
from triplaneturbo.pipelines.students import find_student
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline


def generate(
    prompt: str, out: Path, weights: Path | None, seed: int, resolution: int | None, device: str | None
) -> str:
    """Write the mesh of `prompt` to `out`, over what is there; returns what was made, for people.

    weights: a pipeline folder; None: see `find_student`. resolution: grid points along an edge, None: as trained.
    device: None: the GPU if there is one.

    Raises:
        ConfigError: an argument cannot be used.
        WeightsError: there are no weights, or they are damaged.
        EmptyFieldError: the field has no surface.
    """
    transformers_logging.disable_progress_bar()
    try:
        require_suffix(out)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    convert(Seed, seed, "--seed")
    if resolution is not None:
        convert(GridPoints, resolution, "--resolution")
    folder = weights or find_student()
    pipe = TextToMeshPipeline.from_pretrained(folder, device)
    start = time.perf_counter()
    output = pipe(prompt, seed=seed, resolution=resolution)
    output.export(out)
    took, (mesh,) = time.perf_counter() - start, output.meshes
    size = f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces"
    return f"{out}: {prompt!r} by seed {seed} and the weights of {folder}; {size}, {took:.1f} s on {pipe.device}"
