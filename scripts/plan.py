"""`make plan CONFIG=file`: what a run of that configuration takes, on top of config/config.yaml, as the workflow reads it."""

import sys
from pathlib import Path

from backtranslation import planning, settings

try:
    print(planning.show(planning.plan(settings.load(Path("config"), *map(Path, sys.argv[1:])), Path())))
except ValueError as error:
    sys.exit(f"ERROR: {error}")
