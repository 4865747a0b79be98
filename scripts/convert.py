"""Published checkpoints (MVDream, RichDreamer, the student) to folders of safetensors, and a student back."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from triplaneturbo.interruption import stoppable

    with stoppable():
        from evaluation.convert import main

        sys.exit(main(__doc__))
