"""Published checkpoints (MVDream, RichDreamer, the student) to folders of safetensors, and a student back."""

import sys

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"convert.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")

if __name__ == "__main__":
    with stoppable():
        from triplaneturbo.evaluation.convert import main

        sys.exit(main(__doc__))
