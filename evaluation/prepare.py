"""The command line of scripts/prepare: bring what the recipes need to where the configurations look for it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from triplaneturbo.errors import WeightsError, WriteError
from triplaneturbo.weights.hub import Asset, Fetcher, Hub, Network, select


def main(assets: Sequence[Asset], description: str, arguments: list[str] | None = None, hub: Hub | None = None) -> int:
    """Fetch `assets`; 1 if any of them cannot be had, after all have been tried. Complete ones are left alone."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--root", default=".", metavar="DIR", help="the project's folder (default: here)")
    parser.add_argument("--from-folder", metavar="DIR", help="copy from DIR, use no network")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="repeatable; * stands for anything")
    parser.add_argument("--list", action="store_true", help="say what is there and what is not, fetch nothing")
    flags = parser.parse_args(arguments)
    try:
        chosen = select(assets, flags.only)
    except WeightsError as error:
        parser.error(str(error))
    root = Path(flags.root)
    if flags.list:
        for asset in chosen:
            sources = ", ".join(map(str, asset.sources)) or "git"
            print(f"{asset.state(root):8} {asset.target}: {asset.what}; from {sources}")
        return 0
    fetcher = Fetcher(root, hub or Network(), flags.from_folder)
    failed = 0
    for asset in chosen:
        try:
            print(f"{asset.target}: {fetcher.fetch(asset)}", flush=True)
        except (WeightsError, WriteError) as error:
            failed += 1
            print(error, file=sys.stderr)
    if failed:
        print(
            f"{failed} of {len(chosen)} are missing. Without a network: fetch them elsewhere and give their "
            "folder with --from-folder DIR; HF_HUB_OFFLINE=1 uses the cache of huggingface_hub; HF_ENDPOINT names a "
            "mirror.",
            file=sys.stderr,
        )
    return 1 if failed else 0
