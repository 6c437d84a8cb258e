"""`make plan CONFIG=file`: what a run of that configuration takes, on top of config/config.yaml, as the workflow reads it."""

import sys
from pathlib import Path

from backtranslation import checks, planning, settings

try:
    config = settings.load(Path("config"), *map(Path, sys.argv[1:]))
    checks.check(config)
    print(planning.show(planning.plan(config, Path())))
except ValueError as error:
    sys.exit(f"ERROR: {error}")
