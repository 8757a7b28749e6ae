"""The root's packages: a folder `tree` made by mmdebstrap, stripped of what a microVM never reads, and `installed.json` (name → version)."""

import json
import pathlib
import shutil
import tempfile

from recipe.run import run

# dpkg leaves these out as it unpacks. Licences stay: they must travel with the programs.
_EXCLUDED = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
]

# What package scripts leave that differs from build to build or serves package upgrades alone.
_REMOVED = [
    "etc/apt/preferences.d/forkd-lock",
    "etc/.pwd.lock",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/log/*",
]


# usrmerge brings all of Perl, 25 MiB of an image; usr-is-merged, which satisfies the same dependency, asks only that /usr be merged from the
# start, which the hook below sees to.
_NO_USRMERGE = "Package: usrmerge\nPin: release *\nPin-Priority: -1\n\n"
_MERGED_USR_HOOK = "/usr/share/mmdebstrap/hooks/merged-usr"


def _preferences(lock):
    """An apt preferences file that makes a locked version win while the mirror has it, and yields to the current one otherwise."""
    return _NO_USRMERGE + "".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"
        for name, version in sorted(lock.items())
        if not name.startswith("linux-image-")
    )


def _remove_leftovers(tree):
    for pattern in _REMOVED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # Mount points: what mmdebstrap put into them is the build's, not the guest's.
    for name in ("dev", "proc", "run", "sys", "tmp"):
        for path in (tree / name).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _compile_python(tree):
    """Byte code that is valid without a look at the source's time: what an import costs is felt in every boot and every cold start."""
    if not (tree / "usr/bin/python3").exists():
        return
    for path in tree.glob("usr/lib/python3*/**/__pycache__"):
        shutil.rmtree(path)
    folders = [f"/{path.relative_to(tree)}" for path in sorted(tree.glob("usr/lib/python3*"))]
    # One process: with several, which file a string is shared with, and so the bytes, would depend on timing.
    command = ["/usr/bin/python3", "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash", *folders]
    run(["chroot", tree, *command])


def build(suite, packages, lock, mirror, folder):
    """Fills `folder`. `mirror` is None for mmdebstrap's default sources of that suite."""
    tree = folder / "tree"
    with tempfile.TemporaryDirectory(prefix="forkd-packages-") as scratch:
        preferences = pathlib.Path(scratch) / "lock"
        preferences.write_text(_preferences(lock))
        command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--architectures=amd64"]
        command += [f"--dpkgopt={line}" for line in _EXCLUDED]
        command += [f"--include={','.join(packages)}"] if packages else []
        command += [f"--hook-dir={_MERGED_USR_HOOK}"]
        command += [f'--setup-hook=install -D -m 644 {preferences} "$1"/etc/apt/preferences.d/forkd-lock']
        run([*command, suite, tree, *([mirror] if mirror else [])])
    listed = run(["chroot", tree, "dpkg-query", "--show", "--showformat=${Package}=${Version}\n"])
    installed = dict(line.split("=", 1) for line in listed.splitlines())
    _compile_python(tree)
    _remove_leftovers(tree)
    (folder / "installed.json").write_text(json.dumps(installed, indent=2, sort_keys=True) + "\n")


def differences(lock, installed):
    """What a person should hear about a build that the lock did not decide alone: one line per package."""
    lines = []
    for name in sorted(lock.keys() | installed.keys()):
        if lock.get(name) != installed.get(name):
            lines.append(f"{name}: locked {lock.get(name, 'not at all')}, installed {installed.get(name, 'not at all')}")
    return lines
