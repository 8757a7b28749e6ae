"""Crashes, full disks, dying guests: nothing is lost, nothing is left."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import grpc
import unittest_cases
from daemon import IMAGES, LONG, Daemon, DaemonTest, Failure, eventually, require_images
from proto.forkd.v1 import sandbox_pb2, snapshot_pb2

Code = grpc.StatusCode
State = sandbox_pb2.SandboxState


class Crashes(unittest.TestCase):
    def setUp(self):
        require_images()
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)
        self.daemon.start()

    refused = DaemonTest.refused

    def _restart(self, sig=signal.SIGKILL, environment=None):
        self.daemon.stop(sig)
        self.daemon._environment = environment or {}
        self.daemon.start()

    def _clean(self):
        self.daemon.delete_all()
        for tag in self.daemon.tags():
            with contextlib.suppress(grpc.RpcError):
                self.daemon.delete_snapshot(tag, cascade=True)
        eventually(lambda: not self.daemon.leftovers(), what=f"a clean state folder: {self.daemon.leftovers()}")

    def test_sandboxes_outlive_a_killed_daemon_and_keep_their_state(self):
        self.daemon.snapshot("b")
        running, paused = self.daemon.fork("b", 2)
        self.daemon.sh(running.id, "echo kept > /tmp/state; setsid sleep 4000 > /dev/null 2>&1 &")
        self.daemon.sandboxes.PauseSandbox(sandbox_pb2.PauseSandboxRequest(id=paused.id))
        self._restart()
        self.assertEqual({s.id: (s.state, s.pid) for s in self.daemon.list()},
                         {running.id: (State.SANDBOX_STATE_RUNNING, running.pid), paused.id: (State.SANDBOX_STATE_PAUSED, paused.pid)})
        self.assertEqual(self.daemon.sh(running.id, "cat /tmp/state").stdout, "kept\n")
        self.daemon.branch(running.id, "after")
        self.assertEqual(self.daemon.sh(self.daemon.fork("after")[0].id, "cat /tmp/state").stdout, "kept\n")
        self.daemon.sandboxes.ResumeSandbox(sandbox_pb2.ResumeSandboxRequest(id=paused.id))
        self.assertEqual(self.daemon.sh(paused.id, "echo on").stdout, "on\n")
        self._clean()

    def test_a_graceful_stop_leaves_sandboxes_running_unless_told_otherwise(self):
        self.daemon.snapshot("b")
        (a,) = self.daemon.fork("b")
        self.daemon.sh(a.id, "echo kept > /tmp/state")
        self._restart(signal.SIGTERM)
        self.assertEqual(self.daemon.sh(a.id, "cat /tmp/state").stdout, "kept\n")
        self.daemon._flags.append("--stop-sandboxes-on-exit")
        self._restart(signal.SIGTERM)
        self.assertEqual(len(self.daemon.list()), 1)
        self.assertEqual(self.daemon.stop(), 0)
        self.assertEqual(self.daemon.vmms(), [])
        self.daemon.start()
        self.assertEqual(self.daemon.list(), [])
        self._clean()

    def test_a_crash_at_every_point_of_publication_leaves_the_whole_branch_or_none(self):
        self.daemon.snapshot("b")
        for point in ("publish.before_sync", "publish.before_rename", "publish.after_rename"):
            with self.subTest(point=point):
                (a,) = self.daemon.fork("b")
                self._restart(environment={"FORKD_TEST_CRASH_AT": point})
                with self.assertRaises(grpc.RpcError):
                    self.daemon.branch(a.id, "half")
                self.assertEqual(self.daemon.process.wait(30), -signal.SIGKILL, "the daemon was killed at that point")
                self._restart()
                self.assertNotIn("half", self.daemon.tags(), "nobody was told that it exists")
                self.assertEqual(self.daemon.sh(a.id, "echo goes on").stdout, "goes on\n")
                self.daemon.branch(a.id, "half")
                self.assertEqual(self.daemon.sh(self.daemon.fork("half")[0].id, "echo whole").stdout, "whole\n")
                self.daemon.delete_all()
                self.daemon.delete_snapshot("half")
        self._clean()

    def test_a_crash_in_a_deletion_is_finished_by_the_next_daemon(self):
        for point in ("snapshot.delete.before_rename", "snapshot.delete.after_rename"):
            with self.subTest(point=point):
                self._restart(environment={"FORKD_TEST_CRASH_AT": point})
                self.daemon.snapshot("gone")
                with self.assertRaises(grpc.RpcError):
                    self.daemon.delete_snapshot("gone")
                self.assertEqual(self.daemon.process.wait(30), -signal.SIGKILL)
                self._restart()
                self.assertEqual(self.daemon.tags(), [])
                self.assertEqual(self.daemon.leftovers(), [])

    def test_rounds_of_create_branch_delete_with_kill_9_in_between_leave_nothing(self):
        seed = random.randrange(1 << 32)
        dice = random.Random(seed)
        print(f"seed {seed}")
        self.daemon.snapshot("b")
        for number in range(50 if LONG else 3):
            errors = []

            def work(call):
                try:
                    call()
                except grpc.RpcError as error:
                    errors.append(error.code())

            (a,) = self.daemon.fork("b")
            calls = [lambda: self.daemon.fork("b", 3), lambda: self.daemon.branch(a.id, f"r{number}"), lambda: self.daemon.delete(a.id),
                     lambda: self.daemon.sh(a.id, "sleep 5")]
            dice.shuffle(calls)
            threads = [threading.Thread(target=work, args=(call,)) for call in calls]
            for thread in threads:
                thread.start()
                time.sleep(dice.random() * 0.02)
            time.sleep(dice.random() * 0.5)
            self.daemon.kill()
            for thread in threads:
                thread.join(60)
            self.daemon.start()
            for sandbox in self.daemon.list():
                self.assertEqual(sandbox.state, State.SANDBOX_STATE_RUNNING, f"round {number}, seed {seed}: {sandbox}")
                self.assertEqual(self.daemon.sh(sandbox.id, "echo ok").stdout, "ok\n", f"round {number}, seed {seed}")
            accounted = sorted(s.pid for s in self.daemon.list())
            eventually(lambda: self.daemon.vmms() == accounted, what=f"round {number}, seed {seed}: VMMs {self.daemon.vmms()} of rows {accounted}")
            for tag in self.daemon.tags():
                (child,) = self.daemon.fork(tag)
                self.assertEqual(self.daemon.sh(child.id, "echo whole").stdout, "whole\n")
            self.daemon.delete_all()
            for tag in self.daemon.tags():
                if tag != "b":
                    self.daemon.delete_snapshot(tag)
        self._clean()

    def test_snapshots_outlive_a_lost_registry(self):
        self.daemon.snapshot("b")
        (a,) = self.daemon.fork("b")
        self.daemon.branch(a.id, "leaf")
        self.daemon.delete_all()
        self.daemon.stop()
        for path in self.daemon.state.glob("registry.db*"):
            path.unlink()
        self.daemon.start()
        self.assertEqual(self.daemon.tags(), ["b", "leaf"])
        self.assertEqual(self.daemon.sh(self.daemon.fork("leaf")[0].id, "echo whole").stdout, "whole\n")
        self._clean()

    def test_one_state_folder_has_one_daemon(self):
        second = Daemon(state=self.daemon.state)
        self.addCleanup(shutil.rmtree, second.folder, ignore_errors=True)
        self.assertEqual(second.start(expect_failure=True), 1)
        self.assertIn(str(self.daemon.process.pid), second.log())

    def test_a_port_in_use_is_said(self):
        second = Daemon("--grpc-bind", self.daemon.address)
        second._flags = [*second._flags]
        self.addCleanup(second.close)
        command = ["server/forkd-controller", "serve", "--grpc-bind", self.daemon.address, "--state-dir", str(second.state), "--image-root", IMAGES]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 1)
        self.assertIn(self.daemon.address, ended.stderr)


class Guests(DaemonTest):
    def test_a_vmm_that_is_killed_fails_its_sandbox_alone(self):
        a, b = self.daemon.fork("b", 2)
        os.kill(a.pid, signal.SIGKILL)
        eventually(lambda: self.daemon.get(a.id).state == State.SANDBOX_STATE_FAILED, what="a sandbox that is FAILED")
        failed = self.daemon.get(a.id)
        self.assertIn("signal 9", failed.failure.message)
        with self.refused(Code.FAILED_PRECONDITION, "SANDBOX_NOT_RUNNING") as failure:
            self.daemon.sh(a.id, "true")
        self.assertIn("signal 9", failure[0].message)
        self.assertEqual(self.daemon.sh(b.id, "echo fine").stdout, "fine\n")

    def test_a_guest_that_powers_off_or_panics_fails_its_sandbox(self):
        for script in ("sync; echo o > /proc/sysrq-trigger", "echo c > /proc/sysrq-trigger"):
            with self.subTest(script=script):
                (a,) = self.daemon.fork("b")
                with contextlib.suppress(grpc.RpcError):
                    self.daemon.sh(a.id, script, timeout_secs=20)
                eventually(lambda: self.daemon.get(a.id).state == State.SANDBOX_STATE_FAILED, what="a sandbox that is FAILED")
                self.assertTrue(self.daemon.get(a.id).failure.message)

    def test_a_guest_that_eats_its_memory_hurts_itself_alone(self):
        a, b = self.daemon.fork("b", 2)
        with contextlib.suppress(grpc.RpcError):
            self.daemon.sh(a.id, "tail /dev/zero; head -c 200000000 /dev/zero > /dev/shm/x; true", timeout_secs=8)
        self.assertEqual(self.daemon.sh(b.id, "echo fine").stdout, "fine\n")

    def test_a_vmm_beyond_its_memory_limit_is_ended_alone_and_says_why(self):
        if not self.daemon.cgroups() and "no quotas" in self.daemon.log():
            self.skipTest("this host has no cgroup controllers")
        a, b = self.daemon.fork("b", 2, memory_limit_mib=48)
        self.assertEqual(len(self.daemon.cgroups()) % 2, 0)
        self.assertEqual(self.daemon.sh(a.id, "echo within").stdout, "within\n", "the limit lies below the guest's memory and is no matter until it is reached")
        with contextlib.suppress(grpc.RpcError):
            self.daemon.sh(a.id, "head -c 40000000 /dev/urandom > /dev/shm/x", timeout_secs=60)
        eventually(lambda: self.daemon.get(a.id).state == State.SANDBOX_STATE_FAILED, what="a sandbox that is FAILED")
        failure = self.daemon.get(a.id).failure
        self.assertEqual(failure.reason, "OUT_OF_MEMORY")
        self.assertIn("out of memory", failure.message)
        self.assertEqual(self.daemon.sh(b.id, "echo fine").stdout, "fine\n")
        # The control: the same without a limit.
        (c,) = self.daemon.fork("b")
        self.daemon.sh(c.id, "head -c 40000000 /dev/urandom > /dev/shm/x", timeout_secs=60)
        self.assertEqual(self.daemon.get(c.id).state, State.SANDBOX_STATE_RUNNING)

    def test_a_chain_of_branches_does_not_make_forks_slower(self):
        (a,) = self.daemon.fork("b")
        depth = 20
        times = {}
        tag = "b"
        for level in range(1, depth + 1):
            self.daemon.sh(a.id, f"echo {level} > /tmp/level")
            tag = f"depth-{level}"
            self.daemon.branch(a.id, tag)
            self.daemon.delete(a.id)
            begin = time.monotonic()
            (a,) = self.daemon.fork(tag)
            times[level] = time.monotonic() - begin
        self.assertEqual(self.daemon.sh(a.id, "cat /tmp/level").stdout, f"{depth}\n")
        info = self.daemon.snapshots.GetSnapshotInfo(snapshot_pb2.GetSnapshotInfoRequest(tag=tag))
        self.assertEqual((info.chain_depth, list(info.ancestors)[0]), (depth, "b"))
        print(f"fork at depth 1: {times[1] * 1000:.0f} ms, at depth {depth}: {times[depth] * 1000:.0f} ms")
        self.daemon.delete_all()
        for level in range(depth, 0, -1):
            self.daemon.delete_snapshot(f"depth-{level}")


class FullDisk(unittest.TestCase):
    refused = DaemonTest.refused

    def test_a_full_disk_during_a_branch_leaves_a_running_source_and_no_half_snapshot(self):
        require_images()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="forkd-e2e-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        state = folder / "disk"
        state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m,mode=0700", "forkd-e2e", state], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", state], check=True)
        daemon = Daemon(folder=folder, state=state)
        self.addCleanup(daemon.close)
        daemon.start()
        daemon.snapshot("b")
        (a,) = daemon.fork("b")
        daemon.sh(a.id, "head -c 40000000 /dev/urandom > /dev/shm/x")
        with self.refused(Code.RESOURCE_EXHAUSTED, "DISK_FULL"):
            daemon.branch(a.id, "too-big")
        self.assertEqual(daemon.tags(), ["b"])
        self.assertEqual([p.name for p in (state / "snapshots").iterdir()], ["b"], "no half-written folder")
        self.assertEqual(daemon.sh(a.id, "rm /dev/shm/x; echo goes on").stdout, "goes on\n")
        daemon.delete_all()


class Hosts(unittest.TestCase):
    def setUp(self):
        require_images()
        self.folder = tempfile.mkdtemp(prefix="forkd-e2e-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def _serve(self, *flags, prefix=()):
        return subprocess.run([*prefix, "server/forkd-controller", "serve", "--grpc-bind", "127.0.0.1:0", "--state-dir", self.folder + "/state", *flags],
                              capture_output=True, text=True, timeout=60)

    def test_a_missing_vmm_says_what_to_install(self):
        ended = self._serve("--qemu", "/nonexistent/qemu")
        self.assertEqual(ended.returncode, 1)
        self.assertIn("qemu-system-x86", ended.stderr)

    def test_without_root_it_says_so(self):
        os.chmod(self.folder, 0o755)
        shutil.copy("server/forkd-controller", self.folder + "/forkd-controller")
        ended = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", self.folder + "/forkd-controller", "serve"],
                               capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 1)
        self.assertIn("needs root", ended.stderr)

    def test_a_state_folder_that_others_can_write_is_refused(self):
        os.mkdir(self.folder + "/state")
        os.chmod(self.folder + "/state", 0o777)
        ended = self._serve()
        self.assertEqual(ended.returncode, 1)
        self.assertIn("writ", ended.stderr)

    def test_a_bind_that_others_can_reach_is_refused(self):
        ended = subprocess.run(["server/forkd-controller", "serve", "--grpc-bind", "0.0.0.0:0", "--state-dir", self.folder + "/state"],
                               capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 1)
        self.assertIn("refusing unauthenticated non-loopback bind", ended.stderr)

    def test_doctor_needs_no_daemon(self):
        ended = subprocess.run(["server/forkd-controller", "doctor", "--state-dir", self.folder + "/state", "--image-root", IMAGES], capture_output=True,
                               text=True, timeout=60)
        self.assertEqual(ended.returncode, 0, ended.stdout)
        self.assertIn("qemu", ended.stdout)


if __name__ == "__main__":
    unittest_cases.main()
