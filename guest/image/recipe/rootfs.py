"""The root file system: the packages' tree, what every forkd guest has, and the declared files, as one read-only squashfs."""

import pathlib
import tempfile

from recipe.run import run

# Name → content. The agent bind-mounts or rewrites the identity files in each fork: here they are the same for all.
_GUEST_FILES = {
    "etc/hostname": "forkd\n",
    "etc/hosts": "127.0.0.1 localhost forkd\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "",
}

# Hook folders of the agent, and the mount points.
_GUEST_FOLDERS = ["etc/forkd/post-fork.d", "etc/forkd/pre-snapshot.d", "usr/lib/forkd", "proc", "sys", "dev", "run", "tmp", "root"]

# lz4: under emulation the first `import numpy` takes 0.3 s less than with zstd, for a file a third larger. -Xhc would make the file a fifth
# smaller and the build 15 s longer. 128 KiB blocks are squashfs's own default.
_COMPRESSION = ["-comp", "lz4", "-b", "131072"]


def _write(path, content, mode):
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    # A package may have put a symlink there; it must not be followed out of the tree.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def build(packages_tree, files, folder):
    """Writes `folder/rootfs.squashfs`. `files` are declaration.ExtraFile."""
    with tempfile.TemporaryDirectory(prefix=".tree-", dir=folder) as scratch:
        tree = pathlib.Path(scratch) / "tree"
        run(["cp", "--archive", "--reflink=auto", packages_tree, tree])
        for name, content in _GUEST_FILES.items():
            _write(tree / name, content.encode(), 0o644)
        for name in _GUEST_FOLDERS:
            (tree / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            _write(tree / file.path.lstrip("/"), file.content, file.mode)
        tree.chmod(0o755)
        output = folder / "rootfs.squashfs"
        run(["mksquashfs", tree, output, "-noappend", "-no-progress", "-quiet", "-no-exports", *_COMPRESSION])
        output.chmod(0o444)
