"""Renew the pins: resolve every extra that the make targets install, for each Python, and write `pyXYZ.txt`.

    python constraints/update.py            # all
    python constraints/update.py 3.11       # one

`rtx` pins itself. Of `gpu-cu12` and `gpu-cu13` the one that suits the torch of that Python is pinned, as the Makefile
installs it; on a device their versions are left to the resolver, since they follow its toolkit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("vision", "cpu", "compile", "eval", "web", "ros", "dds", "zenoh", "train", "tabletop", "dev")
CUDA_EXTRA = {"3.10": "gpu-cu12"}
"""Where it is not `gpu-cu13`; the same choice as in the Makefile."""
GLIBC = range(5, 40)

TORCH = {"3.10": "torch==2.10.0"}
"""Newest torch of each Python where it is not 2.15; the CPU-only builds some indexes offer lack a torchvision."""


def requirements(extras: tuple[str, ...]) -> list[str]:
    """The base requirements and those of `extras`, as pyproject.toml has them."""
    import tomllib

    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def pip_report(lines: list[str], python: str, machine: str = "x86_64", *options: str) -> dict[str, str]:
    """Versions by name that pip would install on Linux for that Python and machine, nothing installed."""
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC] + [
        f"--platform=manylinux2014_{machine}"
    ]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report=-"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}", "--target=unused"),
        *(*platforms, *options, *lines),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip found no set of packages for Python {python} on {machine}:\n{done.stderr}")
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}


def main() -> None:
    """Write the file of each Python named on the command line, or of all."""
    for python in sys.argv[1:] or PYTHONS:
        extras = (*EXTRAS, CUDA_EXTRA.get(python, "gpu-cu13"))
        pins = pip_report([*requirements(extras), TORCH.get(python, "torch==2.15.0")], python)
        path = HERE / f"py{python.replace('.', '')}.txt"
        lines = [f"{name}=={version}\n" for name, version in sorted(pins.items(), key=lambda pin: pin[0].lower())]
        path.write_text(f"# Python {python}: made by constraints/update.py\n{''.join(lines)}")
        print(f"{path.name}: {len(lines)} pins")


if __name__ == "__main__":
    main()
