"""What ./setup.sh demo runs: meshes from the shipped student, then a training of one prompt."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.demo import main

        main()
