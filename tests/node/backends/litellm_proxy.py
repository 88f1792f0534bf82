"""LiteLLM's own proxy as a process, in front of a server that speaks Chat Completions.

It is some hundred packages, so it has an environment of its own, beside the project's: `make gateway` (730 MB, a minute).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.protocols import Spoken, ask
from support import free_ports, run

OWN = Path(__file__).parents[3] / ".venv-litellm" / "bin" / "litellm"
PROGRAM = os.environ.get("LITELLM") or (str(OWN) if OWN.exists() else shutil.which("litellm"))
MISSING = "no LiteLLM here: `make gateway` installs it, or LITELLM names its program"
# Two settings make it speak Chat Completions to its server whatever it is asked in; the others leave each failure to its caller.
CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      {{model: "openai/{model}", api_base: "{upstream}/v1", api_key: none, use_chat_completions_api: true, max_retries: 0}}
litellm_settings: {{use_chat_completions_url_for_anthropic_messages: true, num_retries: 0}}
router_settings: {{disable_cooldowns: true, num_retries: 0}}
"""
START_S = 300.0


@contextlib.contextmanager
def proxy(upstream: str, folder: Path, model: str) -> Iterator[str]:
    """Its address, while the context is open. `folder` is an empty one for its files."""
    (folder / "config.yaml").write_text(CONFIG.format(upstream=upstream, model=model))
    (port,) = free_ports(1)
    command = (str(PROGRAM), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    with Path(folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
        try:
            run(_listening(f"http://127.0.0.1:{port}", process, folder / "log"), START_S + 10)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def _listening(url: str, process: subprocess.Popen[bytes], log: Path) -> Spoken:
    """What it speaks, once it listens."""
    async with asyncio.timeout(START_S):
        while True:
            assert process.poll() is None, f"LiteLLM has ended; what it has said is in {log}"
            try:
                return await ask(url, None)
            except BackendError:
                await asyncio.sleep(0.2)
