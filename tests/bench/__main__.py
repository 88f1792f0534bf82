"""`python -m tests.bench`: measure the mesh beside its floors. `--help` says more, docs/benchmarks.md says what for."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it: `support` and `bench` are found in tests/

from bench.cli import main

sys.exit(main())
