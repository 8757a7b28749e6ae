"""Results of build stages, kept in folders named by a hash of the stage's inputs.

A stage is built into a temporary folder beside its final place and renamed when complete: an interrupted build leaves no half result.
The caller holds the cache's lock (`StageCache.locked`), so that two builds at once share one result.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time

# A stage that no build has used for so long is deleted.
_UNUSED_SECONDS = 14 * 24 * 3600


def digest(inputs):
    """Hex SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def digest_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class StageCache:
    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        # 0700: a root's tree holds set-uid programs, which no other user of the host may reach.
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def locked(self, on_wait):
        """Holds the cache for one build; calls `on_wait` once if another build has it."""
        with open(self._folder / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._delete_unused()
            yield

    def get(self, stage, key, build, refresh=False):
        """The folder of `stage` for `key` (a hex digest), built by `build(folder)` if it is not there."""
        folder = self._folder / f"{stage}-{key[:32]}"
        if refresh and folder.exists():
            shutil.rmtree(folder)
        if not folder.exists():
            temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{stage}-", dir=self._folder))
            try:
                build(temporary)
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        os.utime(folder)
        return folder

    def _delete_unused(self):
        for folder in self._folder.iterdir():
            if not folder.is_dir():
                continue
            # A name with a dot in front is what a killed build left: the lock is ours, so nobody is writing it.
            if folder.name.startswith(".") or time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
