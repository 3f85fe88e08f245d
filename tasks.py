"""`tasks.py export`: what `make export` does, without looking at the environment."""

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
NOTEBOOKS = [
    str(p) for p in Path("chapters").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
]
STRIP = [BIN / "nbstripout", "--keep-id", "--extra-keys", "metadata.language_info"]
for command in ([BIN / "nbdev-export"], [BIN / "nbdev-clean"], [*STRIP, *NOTEBOOKS]):
    subprocess.run(command, check=True)
