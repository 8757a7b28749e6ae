"""An image as its `.image` file declares it, and the `.lock` beside it.

The file is TOML; README.md in the parent folder describes its keys. A mistake is a DeclarationError that names the file and the key.
"""

import dataclasses
import pathlib
import re
import tomllib

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class DeclarationError(Exception):
    """The declaration cannot be used as it stands; the message says where and why."""


@dataclasses.dataclass(frozen=True)
class ExtraFile:
    """One file put into the root, with its bytes read already."""

    path: str
    mode: int
    content: bytes


@dataclasses.dataclass(frozen=True)
class Declaration:
    name: str
    description: str
    suite: str
    kernel: str
    packages: tuple[str, ...]
    memory_mib: int
    kernel_args: str
    warm_up: str
    runner: tuple[str, ...]
    files: tuple[ExtraFile, ...]
    # Package name → version, the kernel's included; empty if there is no lock yet.
    lock: dict[str, str]
    lock_path: pathlib.Path


# console: the driver reads ttyS0 into a bounded ring. quiet: every printed line is a trap into the serial port, slow under emulation.
# panic=-1 with reboot=t ends the VMM at once when the guest's kernel dies, so that the daemon sees it. cryptomgr.notests: self-tests of ciphers
# that nobody uses here are a tenth of a boot under emulation. The VMM driver adds `tsc_early_khz=`, which depends on the host.
DEFAULT_KERNEL_ARGS = "console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests forkd.root=/dev/vda"


def _checked(table, key, kind, path, default=None):
    value = table.pop(key, default)
    if value is None:
        raise DeclarationError(f"{path}: `{key}` is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DeclarationError(f"{path}: `{key}` must be a {kind.__name__}, not {value!r}")
    return value


def _strings(table, key, path):
    values = _checked(table, key, list, path, default=[])
    if not all(isinstance(value, str) for value in values):
        raise DeclarationError(f"{path}: `{key}` must be a list of strings")
    return values


def _read_file_entry(entry, image_path):
    path = _checked(entry, "path", str, image_path)
    mode = int(_checked(entry, "mode", str, image_path, default="0644"), 8)
    if not path.startswith("/") or ".." in path.split("/"):
        raise DeclarationError(f"{image_path}: file path {path!r} must be absolute and without `..`")
    content = entry.pop("content", None)
    source = entry.pop("source", None)
    if (content is None) == (source is None):
        raise DeclarationError(f"{image_path}: file {path!r} needs either `content` or `source`")
    if entry:
        raise DeclarationError(f"{image_path}: unknown key {sorted(entry)[0]!r} in file {path!r}")
    if content is not None:
        return ExtraFile(path, mode, content.encode())
    try:
        return ExtraFile(path, mode, (image_path.parent / source).read_bytes())
    except OSError as error:
        raise DeclarationError(f"{image_path}: file {path!r}: {error}") from error


def read_lock(path):
    """`package=version` per line; comments and empty lines are skipped."""
    if not path.exists():
        return {}
    lock = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        package, separator, version = line.partition("=")
        if not separator or not version:
            raise DeclarationError(f"{path}:{number}: expected `package=version`, found {line!r}")
        lock[package] = version
    return lock


def read(path):
    """Reads and checks one declaration with the files it names."""
    path = pathlib.Path(path)
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{path}: {error}") from error
    name = _checked(table, "name", str, path)
    if not _NAME.fullmatch(name):
        raise DeclarationError(f"{path}: name {name!r} must match {_NAME.pattern}")
    packages = _strings(table, "packages", path)
    kernel = _checked(table, "kernel", str, path)
    for package in [*packages, kernel]:
        if not _PACKAGE.fullmatch(package):
            raise DeclarationError(f"{path}: {package!r} is no Debian package name")
    memory_mib = _checked(table, "memory_mib", int, path)
    if not 64 <= memory_mib <= 65536:
        raise DeclarationError(f"{path}: memory_mib {memory_mib} must be between 64 and 65536")
    files = [_read_file_entry(entry, path) for entry in table.pop("file", [])]
    extra_args = _checked(table, "kernel_args", str, path, default="")
    lock_path = path.with_suffix(".lock")
    declaration = Declaration(
        name=name,
        description=_checked(table, "description", str, path, default=""),
        suite=_checked(table, "suite", str, path, default="bookworm"),
        kernel=kernel,
        packages=tuple(sorted(packages)),
        memory_mib=memory_mib,
        kernel_args=f"{DEFAULT_KERNEL_ARGS} {extra_args}".strip(),
        warm_up=_checked(table, "warm_up", str, path, default="").strip(),
        runner=tuple(_strings(table, "runner", path)),
        files=tuple(files),
        lock=read_lock(lock_path),
        lock_path=lock_path,
    )
    if table:
        raise DeclarationError(f"{path}: unknown key {sorted(table)[0]!r}")
    return declaration
