"""Everything that has to be installed may be used, changed and sold."""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PERMISSIVE = (
    "apache", "bsd", "mit", "isc", "psf", "python software foundation", "python-2.0", "zlib", "0bsd", "cc0", "bsl-1.0",
    "boost", "unlicense", "hpnd", "mpl", "mozilla public license 2.0",
)  # fmt: skip
REFUSED = re.compile(r"\bA?GPL|\bLGPL|GNU|NonCommercial|CC.BY.NC|proprietary|NVIDIA", re.IGNORECASE)


def direct_requirements() -> list[Requirement]:
    """Of the program, and of the extras that requirements.txt names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^-e \.\[(.*)\]$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras.split(","))]
    return [Requirement(line) for lines in lists for line in lines]


def installed(requirement: Requirement) -> Distribution | None:
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        return distribution(requirement.name)
    except PackageNotFoundError:
        return None  # for another platform


def closure() -> dict[str, Distribution]:
    """Required packages and what they require, as installed here. The libraries that come with a CUDA build of torch
    are NVIDIA's: they belong to the driver's side, and the program runs without them."""
    found: dict[str, Distribution] = {}
    waiting = direct_requirements()
    while waiting:
        package = installed(waiting.pop())
        name = package.metadata["Name"].lower() if package else ""
        if not package or name in found or name.startswith(("nvidia-", "cuda-")):
            continue
        found[name] = package
        waiting += [Requirement(text) for text in package.requires or ()]
    return found


def licence(package: Distribution) -> str:
    """What the metadata says: the SPDX expression, else classifiers, else the first line of the licence field."""
    metadata = package.metadata
    if metadata["License-Expression"]:
        return metadata["License-Expression"]
    classifiers = [c.split("::")[-1].strip() for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    stated = [c for c in classifiers if c != "OSI Approved"]
    return "; ".join(stated) or (metadata["License"] or "").strip().split("\n")[0]


def test_required_packages_are_permissive_or_mpl():
    packages = closure()
    assert len(packages) > 30
    for name, package in packages.items():
        text = licence(package)
        assert not REFUSED.search(text), f"{name}: {text}"
        assert any(word in text.lower() for word in PERMISSIVE), f"{name}: cannot tell from {text!r}"


@pytest.mark.parametrize(
    "text", ["GPL-3.0-only", "GNU LGPLv3", "CC-BY-NC-4.0", "AGPL-3.0", "NVIDIA Proprietary Software"]
)
def test_the_check_refuses_others(text):
    assert REFUSED.search(text)


def test_neither_torchvision_nor_a_compiled_extension_is_required():
    names = {requirement.name.lower() for requirement in direct_requirements()}
    assert names.isdisjoint({"torchvision", "nvdiffrast", "diso", "tinycudann", "xformers", "drtk", "kaolin"})
    assert "torchvision" not in closure()


def test_the_exact_set_satisfies_the_ranges():
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    for requirement in direct_requirements():
        assert pins[requirement.name.lower()] in requirement.specifier


def test_our_own_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
