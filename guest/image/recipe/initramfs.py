"""The initramfs: the agent as /init, the kernel modules, and nothing else. A cpio archive in the kernel's `newc` format, uncompressed:
unpacking costs more than reading under software emulation. Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat

_DIRECTORIES = ["dev", "etc", "etc/forkd", "lib", "lib/forkd-modules", "newroot", "proc", "run", "sys", "tmp"]


class _Newc:
    """Writes entries with no times and with owner root, so that the same content gives the same bytes."""

    def __init__(self):
        self._parts = []
        self._inode = 0

    def add(self, name, mode, content=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = [self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0]
        self._append(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._append(content)

    def finish(self):
        self._inode = -1
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _append(self, content):
        padding = -len(content) % 4
        self._parts.append(content + b"\0" * padding)


def build(agent, modules_folder, order):
    """The archive's bytes. `agent` is the static program's content, `order` the modules in the order of insertion."""
    archive = _Newc()
    for name in _DIRECTORIES:
        archive.add(name, stat.S_IFDIR | 0o755)
    # The kernel opens it for /init's first three descriptors, before anything is mounted.
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("init", stat.S_IFREG | 0o755, agent)
    paths = []
    for file_name in order:
        archive.add(f"lib/forkd-modules/{file_name}", stat.S_IFREG | 0o644, (modules_folder / file_name).read_bytes())
        paths.append(f"/lib/forkd-modules/{file_name}\n")
    archive.add("etc/forkd/modules", stat.S_IFREG | 0o644, "".join(paths).encode())
    return archive.finish()
