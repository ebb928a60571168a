"""Where the project lies, which is put on the path for the package, the configs, the tests' fixtures and train_step."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

for folder in (ROOT / "tests", ROOT / "benchmarks", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
