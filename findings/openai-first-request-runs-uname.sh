#!/usr/bin/env bash
# openai 3.57.0 (Python): the first request of a process starts a child process, `uname -p`.
#
# Guess before: what the SDK tells servers of the machine (X-Stainless-OS and so on) comes from `sys` and `platform`, in the process;
# an HTTP client starts no programs. anthropic 2.14.0, whose code comes from the same generator, takes care not to.
# Seen: the first asynchronous request calls platform.platform(), which runs `uname -p` to learn the processor. It is not a part of
# what is sent. In a sandbox without fork, and in every process of a pool of workers, it shows as a child that nobody started.
# anthropic starts none.
#
# Output seen:
#     openai: ['uname', '-p']
#     anthropic: nothing
#
# Exits 1 if they behave otherwise by now.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 anthropic==2.14.0
cat > "$work/first.py" <<'PY'
import asyncio, sys

started = []
sys.addaudithook(lambda event, args: started.append(args[1]) if event == "subprocess.Popen" else None)

async def main(name):
    if name == "openai":
        import openai
        client = openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", max_retries=0)
        request = client.models.list()
    else:
        import anthropic
        client = anthropic.AsyncAnthropic(api_key="none", base_url="http://127.0.0.1:9", max_retries=0)
        request = client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hello"}])
    started.clear()  # what an import starts does not count
    try:
        await request
    except Exception:
        pass  # nobody listens there
    print(f"{name}: {started[0] if started else 'nothing'}")

asyncio.run(main(sys.argv[1]))
PY
seen=$("$work/venv/bin/python" "$work/first.py" openai; "$work/venv/bin/python" "$work/first.py" anthropic)
echo "$seen"
[ "$seen" = "$(printf "openai: ['uname', '-p']\nanthropic: nothing")" ]
