"""The time of an import, in a new process each time."""

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import Built, Case, Competitor, Setting

MODULES = {
    "ours": "transformer_lib.models",  # the package alone loads no PyTorch
    "x-transformers": "x_transformers",
    "HF GPT-2": "transformers.models.gpt2.modeling_gpt2",
    "litgpt": "litgpt.model",
    "torch alone": "torch",
}


def cases(setting: Setting) -> Iterator[Case]:
    def competitor(name: str, module: str) -> Competitor:
        command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]

        def run() -> None:
            subprocess.run(command, check=True, capture_output=True)

        role = {"ours": "ours", "torch alone": "limit"}.get(name, "peer")
        note = "all of them import it" if role == "limit" else ""
        return Competitor(name=name, make=lambda: Built(run=run), role=role, note=note)

    found = [competitor(*item) for item in MODULES.items()]
    yield Case(suite="import", name="time to import", competitors=found)
