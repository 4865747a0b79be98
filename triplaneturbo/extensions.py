"""Extensions: modules in `custom/` and those that installed packages name, imported at launch to fill the registry.

`custom/` of the working directory and that of the checkout that runs are one package, `custom`; `sys.path` has no part
in it. A package that is installed names its modules in its own pyproject.toml:

    [project.entry-points."triplaneturbo.extensions"]
    any-name = "my_package.my_module"
"""

import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec
from pathlib import Path

from triplaneturbo.errors import ConfigError
from triplaneturbo.places import PROJECT
from triplaneturbo.registry import import_rooms

GROUP = "triplaneturbo.extensions"


def custom_folders() -> tuple[Path, Path]:
    """`custom/` of the working directory and of the project, whether they exist or not."""
    return Path.cwd() / "custom", PROJECT / "custom"


def import_extensions(*folders: Path) -> list[str]:
    """Import what installed packages name, then each package and `.py` file of `folders`, in the order of their names.

    Names that start with `_` or `.` or end in `_disabled` are left out. A missing folder holds no extensions.

    Returns:
        The dotted names of the imported modules.

    Raises:
        ConfigError: two extensions have one name; or one cannot be imported, the message gives file, line and reason.
    """
    points, files = entry_points(group=GROUP), provide(*folders)
    if points or files:
        import_rooms()  # first, so that a name that is taken is the extension's mistake
    installed = [_import_installed(point) for point in sorted(points, key=lambda point: point.name)]
    return installed + [_import_file(module, files[module]) for module in sorted(files)]


def provide(*folders: Path) -> dict[str, Path]:
    """Make the extensions in `folders` importable, as `custom.<name>` for those of a folder named custom.

    Folders of one name are one package; an `__init__.py` of such a folder is not run.

    Returns:
        The file or folder of each module, by its dotted name.

    Raises:
        ConfigError: two extensions have one name.
    """
    packages: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()):
        packages.setdefault(folder.name, []).append(folder)
    found: dict[str, Path] = {}
    for package, places in packages.items():
        for path in (path for place in places for path in sorted(place.iterdir()) if _is_extension(path)):
            name = f"{package}.{path.stem}"
            if name in found:
                raise ConfigError(f"there are two extensions {name}: {found[name]} and {path}; rename one of them")
            found[name] = path
        module = sys.modules.setdefault(package, module_from_spec(ModuleSpec(package, None, is_package=True)))
        module.__path__ = list(map(str, places))
    return found


def _is_extension(path: Path) -> bool:
    is_module = path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    return is_module and not path.name.startswith(("_", ".")) and not path.stem.endswith("_disabled")


def _import_file(module: str, path: Path) -> str:
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the extension {module} cannot be imported: {_reason(error, path)}\n"
            f"Repair it, or rename it to {path.stem}_disabled to launch without it."
        ) from error
    return module


def _import_installed(point: EntryPoint) -> str:
    try:
        import_module(point.module)
    except (Exception, SystemExit) as error:
        package = point.dist.name if point.dist else "an unknown package"
        raise ConfigError(
            f"the extension {point.module} of the installed package {package} cannot be imported: {_reason(error)}\n"
            f"Repair it, or uninstall {package} to launch without it."
        ) from error
    return point.module


def _reason(error: BaseException, extension: Path | None = None) -> str:
    """What is wrong, after file:line of the last statement of the extension that was being executed."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {what}"
    frames = list(_outside_of_imports(traceback.extract_tb(error.__traceback__)))
    own = [frame for frame in frames if extension and frame.filename.startswith(str(extension))]
    shown = own or frames
    return f"{shown[-1].filename}:{shown[-1].lineno}: {what}" if shown else what


def _outside_of_imports(frames: Iterable[traceback.FrameSummary]) -> Iterable[traceback.FrameSummary]:
    machinery = (__file__, import_module.__code__.co_filename)
    return (frame for frame in frames if not frame.filename.startswith("<frozen") and frame.filename not in machinery)
