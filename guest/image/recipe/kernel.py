"""The guest kernel: a Debian package, downloaded and unpacked, never installed on the host.

Gives a folder with `vmlinuz`, the modules a microVM needs under `modules/`, and `kernel.json` (package, version, release, and the modules
in the order in which they can be inserted).
"""

import json
import lzma
import os
import pathlib
import re
import shutil
import tempfile

from recipe.run import ProgramError, run

# What the agent inserts. Dependencies come from the modules themselves. Debian builds ext4, TLS and the serial port in.
_WANTED = [
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio-rng",
    "virtio_net",
    "overlay",
    "squashfs",
    "vmw_vsock_virtio_transport",
]


def locked(lock):
    """`name=version` of the kernel in a lock, or None."""
    for name, version in lock.items():
        if name.startswith("linux-image-"):
            return f"{name}={version}"
    return None


def _current(package):
    """What the (meta) package stands for on this host's apt sources."""
    for line in run(["apt-cache", "depends", package]).splitlines():
        found = re.match(r"\s*Depends: (linux-image-\S+)", line)
        if found:
            package = found.group(1)
            break
    candidate = re.search(r"Candidate: (\S+)", run(["apt-cache", "policy", package]))
    if not candidate or candidate.group(1) == "(none)":
        raise ProgramError(f"apt knows no package {package}; run `apt-get update`, or name another kernel in the declaration")
    return f"{package}={candidate.group(1)}"


def _download(package, locked_version, folder, say):
    # As root in a folder of root's own, apt would warn that its own user cannot write there.
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "-q", "download"]
    if locked_version:
        try:
            run([*command, locked_version], cwd=folder)
            return locked_version
        except ProgramError:
            say(f"the locked kernel {locked_version} is no longer to be had; taking the current one")
    current = _current(package)
    run([*command, current], cwd=folder)
    return current


def _module_bytes(path):
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".ko":
        return content
    raise ProgramError(f"{path.name}: modules compressed so are not supported; name another kernel package")


def _dependencies(content):
    """The modules that a module's own .modinfo section says it needs."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [name for name in found.group(1).decode().split(",") if name] if found else []


def _collect_modules(tree, folder):
    """Copies the wanted modules and what they need; returns their file names, each after what it depends on."""
    available = {}
    for path in sorted(tree.rglob("*.ko*")):
        available[path.name.split(".")[0].replace("-", "_")] = path
    order = []

    def add(name):
        key = name.replace("-", "_")
        if key not in available:
            raise ProgramError(f"the kernel package has no module {name}")
        content = _module_bytes(available[key])
        file_name = available[key].name.split(".")[0] + ".ko"
        if file_name in order:
            return
        for dependency in _dependencies(content):
            add(dependency)
        order.append(file_name)
        (folder / file_name).write_bytes(content)

    for name in _WANTED:
        add(name)
    return order


def build(package, locked_version, folder, say):
    """Fills `folder`. `locked_version` is `name=version` or None; `say` reports what a person should know."""
    with tempfile.TemporaryDirectory(prefix="forkd-kernel-") as scratch:
        scratch = pathlib.Path(scratch)
        used = _download(package, locked_version, scratch, say)
        archive = next(scratch.glob("*.deb"))
        run(["dpkg-deb", "--extract", archive, scratch / "tree"])
        images = sorted((scratch / "tree" / "boot").glob("vmlinuz-*"))
        if len(images) != 1:
            raise ProgramError(f"{used} holds {len(images)} kernels, expected one")
        shutil.copyfile(images[0], folder / "vmlinuz")
        modules = folder / "modules"
        modules.mkdir()
        # usr-merged packages have usr/lib/modules, older ones lib/modules: the search covers both.
        order = _collect_modules(scratch / "tree", modules)
    name, _, version = used.partition("=")
    record = {"package": name, "version": version, "release": images[0].name.removeprefix("vmlinuz-"), "modules": order}
    (folder / "kernel.json").write_text(json.dumps(record, indent=2) + "\n")
    os.chmod(folder / "vmlinuz", 0o444)
