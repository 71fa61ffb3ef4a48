"""Writes fxprune/report/html/assets/libraries/: the libraries of the page for a browser, from the registry of npm.

Change VERSIONS, run `python docs/renew_libraries.py` (it needs npm and network), then the tests of tests/report/.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSIONS = {"cytoscape": "3.35.0", "@dagrejs/dagre": "3.1.3"}
FILES = {"cytoscape": "dist/cytoscape.min.js", "@dagrejs/dagre": "dist/dagre.min.js"}
FOLDER = Path(__file__).parents[1] / "fxprune/report/html/assets/libraries"
SOURCE_MAP = "//# sourceMappingURL="


def packed(name: str, folder: Path) -> tarfile.TarFile:
    """The archive of one package in the version that VERSIONS has."""
    command = ["npm", "pack", f"{name}@{VERSIONS[name]}", "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tarfile.open(folder / done.stdout.strip().splitlines()[-1])


def text(archive: tarfile.TarFile, name: str) -> str:
    """One file of a package."""
    found = archive.extractfile(f"package/{name}")
    assert found is not None
    return found.read().decode()


def main() -> None:
    """Writes the scripts and their licences."""
    licenses = ["The page holds these libraries, unchanged but for the comment that names a source map."]
    with tempfile.TemporaryDirectory() as folder:
        for name, version in VERSIONS.items():
            with packed(name, Path(folder)) as archive:
                lines = text(archive, FILES[name]).splitlines(keepends=True)
                script = "".join(line for line in lines if not line.startswith(SOURCE_MAP))
                (FOLDER / Path(FILES[name]).name).write_text(script, encoding="utf-8")
                head = f"{name} {version}, https://www.npmjs.com/package/{name}"
                licenses.append(f"{head}\n\n{text(archive, 'LICENSE').strip()}")
    (FOLDER / "LICENSES.txt").write_text("\n\n\n".join(licenses) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
