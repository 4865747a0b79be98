"""Train, check or export: `python launch.py --config configs/shapeworld/prd.yaml --train data.batch_size=8`."""

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Read the flags; everything else on the command line is a configuration override `key.key=value`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, epilog="key=value overrides the config")
    parser.add_argument("--config", action="append", required=True, metavar="YAML", help="repeatable; later files win")
    mode = parser.add_mutually_exclusive_group(required=True)
    for name in ("train", "validate", "test", "export"):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name)
    parser.add_argument("--gpu", help="devices, such as 0,1; ignored when CUDA_VISIBLE_DEVICES is set")
    parser.add_argument("--prompt", action="append", default=[], help="repeatable; in place of a prompt library")
    parser.add_argument("--out", metavar="DIR", help="export to DIR/<prompt>/model.glb")
    parser.add_argument("--overwrite", action="store_true", help="export over meshes of another prompt, seed or run")
    parser.add_argument("--verbose", action="store_true", help="debug messages, and tracebacks of user errors")
    parser.add_argument("--typecheck", action="store_true", help="check the shapes of all annotated tensors")
    flags, overrides = parser.parse_known_args(arguments)
    if flags.out and flags.mode != "export":
        parser.error("--out goes with --export")
    if flags.overwrite:
        if flags.mode != "export":
            parser.error("--overwrite goes with --export")
        overrides.append("system.exporter.overwrite=true")
    for unknown in (text for text in overrides if text.startswith("-")):
        from triplaneturbo.errors import nearest

        parser.error(f"there is no flag {unknown}; {nearest(unknown, parser._option_string_actions)}")

    gpus = None if "CUDA_VISIBLE_DEVICES" in os.environ else flags.gpu
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported
    if flags.typecheck:
        from jaxtyping import install_import_hook

        install_import_hook(["triplaneturbo", "custom"], "beartype.beartype")
    from triplaneturbo.errors import USER_ERRORS
    from triplaneturbo.launcher import Launch, launch

    request = Launch(
        mode=flags.mode,
        configs=flags.config,
        overrides=overrides,
        prompts=flags.prompt,
        out=flags.out,
        gpus=gpus,
        verbose=flags.verbose,
    )
    try:
        launch(request)
    except USER_ERRORS as error:
        if flags.verbose:
            raise
        print(f"launch.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from triplaneturbo.interruption import stoppable

    with stoppable():
        sys.exit(main())
