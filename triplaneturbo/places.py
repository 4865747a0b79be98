"""Where the program finds what is not code: the project's folder, and the recipes."""

from pathlib import Path

from triplaneturbo.errors import ConfigError, nearest

PACKAGE = Path(__file__).resolve().parent
_AROUND = PACKAGE.parent
# The checkout of the repository that runs; None if the package is installed without one, from a wheel.
CHECKOUT = _AROUND if (_AROUND / "pyproject.toml").is_file() and (_AROUND / "configs").is_dir() else None
# The folder that relative paths in configurations start from, where load/ and pretrained/ are looked for: the checkout;
# without one the working directory in which the program was started.
PROJECT = CHECKOUT or Path.cwd()
# A wheel carries configs/ and evaluation/ within the package.
RECIPES = (CHECKOUT or PACKAGE) / "configs"


def recipes() -> list[str]:
    """The names of all recipes, such as shapeworld/prd.yaml."""
    return sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The configuration file `name`: from the working directory, otherwise among the recipes, with or without configs/.

    Raises:
        ConfigError: it is in neither place.
    """
    in_recipes = RECIPES / Path(name.removeprefix("configs/"))
    found = next((path for path in (Path(name), in_recipes) if path.exists()), None)
    if found is None:
        advice = nearest(name.removeprefix("configs/"), recipes())
        raise ConfigError(f"there is no configuration file {name}, here or among the recipes in {RECIPES}; {advice}")
    return found
