"""Four views of every exported mesh: python evaluation/mesh_visualize.py OBJ_DIR --save_dir DIR."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"mesh_visualize.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.views import main

        sys.exit(main())
