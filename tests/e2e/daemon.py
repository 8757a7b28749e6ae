"""A forkd daemon for a test: started on a free port and a scratch folder, stopped with everything that it made, and a census that says so."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import grpc
from google.rpc import error_details_pb2, status_pb2
from proto.forkd.v1 import admin_pb2, admin_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc, snapshot_pb2, snapshot_pb2_grpc

IMAGES = os.environ.get("FORKD_IMAGE_DIR", "")
LONG = os.environ.get("FORKD_TEST_LONG") == "1"
_CALL_SECONDS = 300


def require_images():
    if not IMAGES or not pathlib.Path(IMAGES, "base/image.json").exists():
        raise unittest.SkipTest("FORKD_IMAGE_DIR names no guest images (scripts/test builds them)")


def eventually(condition, seconds=20, what="condition"):
    """Waits for an event that has no handle to wait on. The deadline is for hangs, not for speed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {seconds} s")
        time.sleep(0.02)


class Failure:
    """What a refused call carries, read as any client would: from the status's binary details."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self.reason, self.metadata, self.fields, self.retry = "", {}, [], None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    self._take(detail)

    def _take(self, detail):
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            self.reason, self.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            self.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            self.retry = retry.retry_delay.ToTimedelta().total_seconds()

    def __repr__(self):
        return f"{self.code} {self.reason}: {self.message}"


class Daemon:
    def __init__(self, *flags, folder=None, environment=None, state=None, images=None):
        self._own_folder = folder is None
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="forkd-e2e-"))
        self.state = pathlib.Path(state) if state else self.folder / "state"
        # Standby children come and go by themselves: tests that count processes do without, and one test has them.
        self._flags = [*flags] if "--standby-default" in flags else ["--standby-default", "0", *flags]
        self._environment = environment or {}
        self._images = images or IMAGES
        self.process = None
        self.log_path = self.folder / "daemon.log"

    def start(self, expect_failure=False):
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        log = open(self.log_path, "ab")
        command = ["server/forkd-controller", "serve", "--grpc-bind", "127.0.0.1:0", "--bind", "127.0.0.1:0", "--state-dir", str(self.state), "--image-root", str(self._images),
                   "--ready-file", str(ready), "--log-level", "debug", *self._flags]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **self._environment})
        log.close()
        if expect_failure:
            return self.process.wait(timeout=30)
        eventually(lambda: ready.exists() or self.process.poll() is not None, 60, "a daemon that serves")
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.log()[-2000:]}")
        lines = dict(line.split("=", 1) for line in ready.read_text().split())
        self.address, self.rest_address = lines["grpc"], lines["rest"]
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", 32 << 20)])
        self.snapshots = _Stub(snapshot_pb2_grpc.SnapshotServiceStub(self.channel))
        self.sandboxes = _Stub(sandbox_pb2_grpc.SandboxServiceStub(self.channel))
        self.admin = _Stub(admin_pb2_grpc.AdminServiceStub(self.channel))
        return self

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, sig=signal.SIGTERM):
        if self.process is None:
            return None
        self.channel.close() if hasattr(self, "channel") else None
        self.process.send_signal(sig)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def kill(self):
        return self.stop(signal.SIGKILL)

    def vmms(self):
        """Live VMM processes that were started below our state folder, whoever their parent is now."""
        found = []
        mark = f"FORKD_RUN_DIR={self.state}/run/".encode()
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return sorted(found)

    def _kill_vmms(self):
        pids = self.vmms()
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def cgroups(self):
        """Leaves of our instance in every hierarchy."""
        instance = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        return [str(p) for p in pathlib.Path("/sys/fs/cgroup").glob(f"*/forkd/{instance}/*") if p.is_dir()] + [
            str(p) for p in pathlib.Path("/sys/fs/cgroup").glob(f"forkd/{instance}/*") if p.is_dir()]

    def leftovers(self):
        """What a daemon without sandboxes and snapshots must not have left: processes, cgroups, run folders, half-written snapshots."""
        left = [f"process {pid}" for pid in self.vmms()] + self.cgroups()
        for name in ("run", "snapshots"):
            with contextlib.suppress(OSError):
                left += [str(path) for path in (self.state / name).iterdir()]
        return left

    def close(self):
        """Ends everything, also after a failure."""
        with contextlib.suppress(Exception):
            self.kill()
        # Again and again: a VMM that was being started when the daemon was killed appears only now.
        eventually(lambda: not self._kill_vmms(), what="the ends of the VMMs")
        # A daemon that was killed leaves its groups to its successor; here there is none. The last one takes the common parent with it.
        for leaf in self.cgroups():
            for group in (pathlib.Path(leaf), pathlib.Path(leaf).parent):
                with contextlib.suppress(OSError):
                    group.rmdir()
        instance = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        for group in [*pathlib.Path("/sys/fs/cgroup").glob(f"*/forkd/{instance}"), *pathlib.Path("/sys/fs/cgroup").glob("*/forkd")]:
            with contextlib.suppress(OSError):
                group.rmdir()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # What the tests say most.

    def snapshot(self, tag, image="base", memory_mib=None, **more):
        return self.snapshots.CreateSnapshot(
            snapshot_pb2.CreateSnapshotRequest(tag=tag, image=image, memory_mib=memory_mib or {"base": 128, "python": 256}[image], **more))

    def fork(self, tag, n=1, **more):
        return list(self.sandboxes.CreateSandboxes(sandbox_pb2.CreateSandboxesRequest(snapshot_tag=tag, n=n, **more)).sandboxes)

    def sh(self, sandbox, script, **more):
        return self.sandboxes.Exec(sandbox_pb2.ExecRequest(id=sandbox, args=["sh", "-c", script], **more))

    def count(self, sandbox, command_line):
        """How many processes in the guest have exactly this command line."""
        script = f"for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\" = '{command_line} ' ] && echo one; done; true"
        return len(self.sh(sandbox, script).stdout.split())

    def eval(self, sandbox, code, **more):
        return self.sandboxes.Eval(sandbox_pb2.EvalRequest(id=sandbox, code=code, **more))

    def branch(self, sandbox, tag, **more):
        return self.sandboxes.BranchSandbox(sandbox_pb2.BranchSandboxRequest(id=sandbox, tag=tag, **more))

    def get(self, sandbox):
        return self.sandboxes.GetSandbox(sandbox_pb2.GetSandboxRequest(id=sandbox))

    def delete(self, sandbox):
        return self.sandboxes.DeleteSandbox(sandbox_pb2.DeleteSandboxRequest(id=sandbox))

    def list(self):
        return list(self.sandboxes.ListSandboxes(sandbox_pb2.ListSandboxesRequest()).sandboxes)

    def delete_all(self):
        for sandbox in self.list():
            self.delete(sandbox.id)

    def delete_snapshot(self, tag, **more):
        return self.snapshots.DeleteSnapshot(snapshot_pb2.DeleteSnapshotRequest(tag=tag, **more))

    def tags(self):
        return [s.tag for s in self.snapshots.ListSnapshots(snapshot_pb2.ListSnapshotsRequest()).snapshots]


class _Stub:
    """Every call with a deadline: a hang is a failure, not a stuck test."""

    def __init__(self, stub):
        self._stub = stub

    def __getattr__(self, name):
        method = getattr(self._stub, name)

        def call(request, timeout=_CALL_SECONDS, **more):
            return method(request, timeout=timeout, **more)

        return call


class DaemonTest(unittest.TestCase):
    """A case whose class has one daemon with the snapshot `b` of the image `base`; sandboxes are deleted after each case."""

    flags = ()

    @classmethod
    def setUpClass(cls):
        require_images()
        cls.daemon = Daemon(*cls.flags)
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()
        cls.prepare()

    @classmethod
    def prepare(cls):
        cls.daemon.snapshot("b")

    @classmethod
    def tearDownClass(cls):
        # The census: with everything deleted, nothing is left.
        cls.daemon.delete_all()
        for tag in cls.daemon.tags():
            with contextlib.suppress(grpc.RpcError):
                cls.daemon.delete_snapshot(tag, cascade=True)
        eventually(lambda: not cls.daemon.leftovers(), what=f"a clean state folder ({cls.daemon.leftovers()})")
        assert cls.daemon.stop() == 0, cls.daemon.log()[-2000:]

    def tearDown(self):
        self.daemon.delete_all()

    @contextlib.contextmanager
    def refused(self, code, reason=None):
        """A call that must be refused; yields a list that then holds the Failure."""
        caught = []
        with self.assertRaises(grpc.RpcError) as context:
            yield caught
        caught.append(Failure(context.exception))
        self.assertEqual(caught[0].code, code, caught[0])
        if reason is not None:
            self.assertEqual(caught[0].reason, reason, caught[0])
