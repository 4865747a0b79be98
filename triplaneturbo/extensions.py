"""Extensions: every package and module in `custom/` is imported at launch, which fills the registry."""

import importlib
import sys
import traceback
from pathlib import Path

from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import import_rooms


def import_extensions(folder: Path) -> list[str]:
    """Import each package and `.py` file of `folder`, in the order of their names.

    Names that start with `_` or `.` or end in `_disabled` are left out. A missing folder holds no extensions.

    Returns:
        The dotted names of the imported modules.

    Raises:
        ConfigError: an extension cannot be imported; the message gives file, line and reason.
    """
    if not folder.is_dir():
        return []
    import_rooms()  # first, so that a name that is taken is the extension's mistake
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    return [_import_one(folder, name) for name in sorted(_extension_names(folder))]


def _extension_names(folder: Path) -> set[str]:
    names = set()
    for entry in folder.iterdir():
        is_module = entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
        if is_module and not entry.name.startswith(("_", ".")) and not entry.stem.endswith("_disabled"):
            names.add(entry.stem)
    return names


def _import_one(folder: Path, name: str) -> str:
    module = f"{folder.name}.{name}"
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        place = _place(error, folder / name)
        raise ConfigError(
            f"the extension {module} cannot be imported: {place}: {type(error).__name__}: {error}\n"
            f"Repair it, or rename it to {name}_disabled to launch without it."
        ) from error
    return module


def _place(error: BaseException, extension: Path) -> str:
    """file:line of the last statement of the extension that was being executed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(extension))]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"
