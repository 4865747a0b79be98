"""Four views of every exported mesh: python evaluation/mesh_visualize.py OBJ_DIR --save_dir DIR."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.views import main

        sys.exit(main())
