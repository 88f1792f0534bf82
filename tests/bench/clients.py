"""What an ask by the clients for other languages takes beside the same messages by hand on the same NATS client.

    mesh up my_agents & mesh start bench --kind Coder --backend scripted
    make bench-clients ARGS=bench

Each client's `bench` program asks in turns, by the library and by hand, with one caller. Five rounds, each with new processes; of
each round the medians' ratio counts, and of the rounds their median.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

CLIENTS = Path(__file__).parents[2] / "client"
PROGRAMS = {"c": ("c/dist/bench",), "typescript": ("node", "typescript/dist/conformance/bench.js")}
ROUNDS = 5
ASKS = 300
ROUND_S = 300


def measured(language: str, agent: str) -> tuple[float, float]:
    """Medians of one round, in microseconds: by hand, by the library."""
    command = [*PROGRAMS[language], agent, str(ASKS)]
    said = subprocess.run(command, cwd=CLIENTS, check=True, capture_output=True, text=True, timeout=ROUND_S).stdout
    pairs = [json.loads(line) for line in said.splitlines()]
    by_hand, by_library = (statistics.median(pair[name] for pair in pairs) for name in ("hand_us", "library_us"))
    return float(by_hand), float(by_library)


def main() -> None:
    agent = sys.argv[1] if len(sys.argv) > 1 else "bench"
    print("| client | by hand, us | by the library, us | ratio |\n|---|---|---|---|")
    for language in PROGRAMS:
        built = subprocess.run([CLIENTS / language / "conformance" / "build"], check=False)
        if built.returncode != 0:
            continue
        rounds = sorted((measured(language, agent) for _ in range(ROUNDS)), key=lambda pair: pair[1] / pair[0])
        by_hand, by_library = rounds[ROUNDS // 2]
        print(f"| {language} | {by_hand:.0f} | {by_library:.0f} | {by_library / by_hand:.2f} |")


if __name__ == "__main__":
    main()
