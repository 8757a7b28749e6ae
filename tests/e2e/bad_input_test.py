"""What a client can send that is wrong: a clear error that names the field, and nothing happened."""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import threading
import time
import unittest

import grpc
import unittest_cases
from daemon import IMAGES, Daemon, DaemonTest, eventually, require_images
from proto.forkd.v1 import sandbox_pb2, snapshot_pb2

Code = grpc.StatusCode


class Requests(DaemonTest):
    def test_unknown_names_are_not_found(self):
        with self.refused(Code.NOT_FOUND, "SNAPSHOT_UNKNOWN"):
            self.daemon.fork("nope")
        with self.refused(Code.NOT_FOUND, "SNAPSHOT_UNKNOWN"):
            self.daemon.delete_snapshot("nope")
        with self.refused(Code.NOT_FOUND, "IMAGE_UNKNOWN") as failure:
            self.daemon.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(tag="t", image="nope"))
        self.assertIn("guest/image/build", failure[0].message, "says what to do")
        unknown = "sb-00000000-0000"
        for call in (self.daemon.get, self.daemon.delete, lambda i: self.daemon.sh(i, "true"), lambda i: self.daemon.eval(i, "1"),
                     lambda i: self.daemon.branch(i, "t")):
            with self.refused(Code.NOT_FOUND, "SANDBOX_UNKNOWN"):
                call(unknown)

    def test_odd_tags_and_ids_name_their_field(self):
        for tag in ("", "../etc", "a/b", "a b", "ü", "x" * 65, "a.b", "a\nb"):
            with self.subTest(tag=tag):
                with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
                    self.daemon.snapshot(tag)
                self.assertEqual(failure[0].fields, ["tag"])
                with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
                    self.daemon.fork(tag)
                self.assertEqual(failure[0].fields, ["snapshot_tag"])
        for sandbox in ("", "sb-", "../../x", "sb-zzzzzzzz-0000", "x" * 100):
            with self.subTest(id=sandbox), self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
                self.daemon.get(sandbox)
        self.assertEqual(self.daemon.tags(), ["b"])

    def test_numbers_out_of_range_name_their_field(self):
        for field, values in {"n": (0, -1, 1001), "memory_limit_mib": (0, 15), "lifetime_secs": (0,), "idle_timeout_secs": (-5,)}.items():
            for value in values:
                with self.subTest(field=field, value=value), self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
                    self.daemon.sandboxes.CreateSandboxes(sandbox_pb2.CreateSandboxesRequest(snapshot_tag="b", **{field: value}))
                self.assertEqual(failure[0].fields, [field])
        for field, value in (("vcpus", 0), ("vcpus", 9), ("memory_mib", 63), ("memory_mib", 1 << 20)):
            with self.subTest(field=field, value=value), self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
                self.daemon.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(tag="t", image="base", **{field: value}))
            self.assertEqual(failure[0].fields, [field])
        self.assertEqual(self.daemon.list(), [])

    def test_odd_programs_paths_and_environments_are_refused(self):
        (a,) = self.daemon.fork("b")
        Exec = sandbox_pb2.ExecRequest
        for request in (Exec(id=a.id), Exec(id=a.id, args=[""]), Exec(id=a.id, args=["a\0b"]), Exec(id=a.id, args=["true"], env={"A=B": "c"}),
                        Exec(id=a.id, args=["true"], env={"": "c"}), Exec(id=a.id, args=["true"], env={"A": "b\0"}),
                        Exec(id=a.id, args=["true"], cwd="relative"), Exec(id=a.id, args=["true"], cwd="/a/../b"),
                        Exec(id=a.id, args=["true"], timeout_secs=0), Exec(id=a.id, args=["x" * 200000])):
            with self.subTest(request=str(request)[:80]), self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
                self.daemon.sandboxes.Exec(request)
        for path in ("", "relative", "/a/../b", "/..", "/" + "x" * 300, "/a\0b"):
            with self.subTest(path=path[:20]), self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
                self.daemon.sandboxes.StatFile(sandbox_pb2.StatFileRequest(id=a.id, path=path))
            self.assertEqual(failure[0].fields, ["path"])
        with self.refused(Code.NOT_FOUND):
            list(self.daemon.sandboxes.ReadFile(sandbox_pb2.ReadFileRequest(id=a.id, path="/no/such/file")))

    def test_a_tag_is_taken_once(self):
        with self.refused(Code.ALREADY_EXISTS, "TAG_TAKEN"):
            self.daemon.snapshot("b")
        (a,) = self.daemon.fork("b")
        with self.refused(Code.ALREADY_EXISTS, "TAG_TAKEN"):
            self.daemon.branch(a.id, "b")
        self.assertEqual(self.daemon.sh(a.id, "echo on").stdout, "on\n")

    def test_a_snapshot_that_others_rest_on_is_not_deleted(self):
        (a,) = self.daemon.fork("b")
        self.daemon.branch(a.id, "leaf")
        with self.refused(Code.FAILED_PRECONDITION, "SNAPSHOT_HAS_DEPENDENTS") as failure:
            self.daemon.delete_snapshot("b")
        self.assertIn("leaf", failure[0].message)
        self.assertIn(a.id, failure[0].message)
        with self.refused(Code.INVALID_ARGUMENT):
            self.daemon.delete_snapshot("b", cascade=True, force=True)
        self.daemon.delete_all()
        self.daemon.delete_snapshot("leaf")

    def test_force_leaves_branches_that_say_that_they_cannot_be_forked(self):
        self.daemon.snapshot("root")
        (a,) = self.daemon.fork("root")
        self.daemon.branch(a.id, "orphan")
        self.daemon.delete_snapshot("root", force=True)
        orphan = self.daemon.snapshots.GetSnapshot(snapshot_pb2.GetSnapshotRequest(tag="orphan"))
        self.assertEqual((orphan.status, orphan.bootable), (snapshot_pb2.SNAPSHOT_STATUS_FAILED, False))
        self.assertIn("root", orphan.warning)
        with self.refused(Code.FAILED_PRECONDITION, "SNAPSHOT_NOT_READY"):
            self.daemon.fork("orphan")
        self.daemon.delete_all()
        self.daemon.delete_snapshot("orphan")

    def test_a_file_whose_writer_vanishes_stays_as_it_was(self):
        (a,) = self.daemon.fork("b")
        self.daemon.sh(a.id, "echo before > /tmp/f")
        for _ in range(10):
            sent = threading.Event()

            def requests():
                yield sandbox_pb2.WriteFileRequest(id=a.id, path="/tmp/f", data=b"half")
                sent.set()
                time.sleep(30)

            call = self.daemon.sandboxes._stub.WriteFile.future(requests(), timeout=60)
            sent.wait(10)
            time.sleep(0.01)
            call.cancel()
        time.sleep(0.3)
        self.assertEqual(self.daemon.sh(a.id, "cat /tmp/f; ls -a /tmp | wc -l").stdout.split()[0], "before")
        with self.refused(Code.INVALID_ARGUMENT):
            self.daemon.sandboxes.WriteFile(iter([sandbox_pb2.WriteFileRequest(id=a.id, path="/tmp/f"), sandbox_pb2.WriteFileRequest(path="/tmp/g")]))

    def test_cascade_takes_everything_that_rests_on_it(self):
        self.daemon.snapshot("tree")
        (a,) = self.daemon.fork("tree")
        self.daemon.branch(a.id, "tree-1")
        (b,) = self.daemon.fork("tree-1")
        self.daemon.branch(b.id, "tree-2")
        self.daemon.delete_snapshot("tree", cascade=True)
        self.assertEqual((self.daemon.tags(), self.daemon.list()), (["b"], []))

    def test_a_repeated_key_gives_the_first_answer_and_makes_nothing(self):
        first = self.daemon.fork("b", 2, idempotency_key="k1")
        again = self.daemon.fork("b", 2, idempotency_key="k1")
        self.assertEqual([s.id for s in first], [s.id for s in again])
        self.assertEqual(len(self.daemon.list()), 2)
        with self.refused(Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED"):
            self.daemon.fork("b", 3, idempotency_key="k1")
        with self.refused(Code.INVALID_ARGUMENT):
            self.daemon.fork("b", 1, idempotency_key="k" * 65)
        branch = self.daemon.branch(first[0].id, "keyed", idempotency_key="k2")
        self.assertEqual(self.daemon.branch(first[0].id, "keyed", idempotency_key="k2"), branch)
        self.assertEqual(self.daemon.get(first[0].id).branch_count, 1)
        self.daemon.delete_all()
        self.daemon.delete_snapshot("keyed")

    def test_the_contracts_contradictions_of_a_branch_are_refused(self):
        (a,) = self.daemon.fork("b")
        for more in ({"mode": sandbox_pb2.BRANCH_MODE_FULL, "diff": True}, {"diff": True, "live": True}, {"wait": False},
                     {"parent_tag": "other", "diff": True}, {"parent_tag": "b"}):
            with self.subTest(more=more), self.refused(Code.INVALID_ARGUMENT):
                self.daemon.branch(a.id, "contradiction", **more)
        self.assertNotIn("contradiction", self.daemon.tags())

    def test_an_image_that_needs_more_memory_says_how_much(self):
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
            self.daemon.snapshot("small", memory_mib=64)
        self.assertEqual(failure[0].fields, ["memory_mib"])

    def test_a_sandbox_that_is_deleted_while_it_is_used_ends_its_calls(self):
        (a,) = self.daemon.fork("b")
        ended = []

        def run():
            try:
                self.daemon.sh(a.id, "echo started > /tmp/s; sleep 600", timeout_secs=600)
                ended.append("it ended by itself")
            except grpc.RpcError as error:
                ended.append(error.code())

        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: self.daemon.sh(a.id, "test -e /tmp/s").exit_code == 0)
        self.daemon.delete(a.id)
        thread.join(30)
        self.assertEqual(ended, [Code.ABORTED])

    def test_a_sandbox_deleted_during_a_branch_leaves_all_or_nothing(self):
        for attempt in range(4):
            (a,) = self.daemon.fork("b")
            outcome = []

            def branch():
                try:
                    self.daemon.branch(a.id, "raced")
                    outcome.append("made")
                except grpc.RpcError as error:
                    outcome.append(error.code())

            thread = threading.Thread(target=branch)
            thread.start()
            time.sleep(0.002 * attempt)
            self.daemon.delete(a.id)
            thread.join(60)
            if outcome == ["made"]:
                self.assertEqual(self.daemon.sh(self.daemon.fork("raced")[0].id, "echo whole").stdout, "whole\n")
                self.daemon.delete_all()
                self.daemon.delete_snapshot("raced")
            else:
                self.assertIn(outcome[0], (Code.ABORTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION))
                self.assertNotIn("raced", self.daemon.tags())


class HostFiles(unittest.TestCase):
    """Files that a caller names lie below the image folder, are regular, root's, and not writable by others."""

    @classmethod
    def setUpClass(cls):
        require_images()
        # A folder of images of our own: the test puts bad files into it.
        folder = pathlib.Path(tempfile.mkdtemp(prefix="forkd-e2e-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        cls.images = folder / "images"
        cls.images.mkdir()
        shutil.copytree(pathlib.Path(IMAGES, "base"), cls.images / "base")
        cls.daemon = Daemon(folder=folder, images=cls.images)
        cls.addClassCleanup(cls.daemon.close)
        cls.daemon.start()

    refused = DaemonTest.refused

    def _create(self, kernel, rootfs):
        return self.daemon.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(tag="t", kernel=kernel, rootfs=rootfs, memory_mib=128))

    def test_unfit_files_are_refused_by_field(self):
        good_kernel, good_root = str(self.images / "base/kernel"), str(self.images / "base/rootfs.squashfs")
        bad = self.images / "bad"
        bad.mkdir()
        os.mkfifo(bad / "fifo")
        os.mknod(bad / "null", 0o600 | 0o020000, os.makedev(1, 3))
        (bad / "link").symlink_to("/etc/shadow")
        (bad / "inner-link").symlink_to("../base/rootfs.squashfs")
        (bad / "folder").mkdir()
        (bad / "writable").write_bytes(b"x")
        (bad / "writable").chmod(0o666)
        (bad / "foreign").write_bytes(b"x")
        os.chown(bad / "foreign", 1234, 1234)
        (self.daemon.state / "secret").write_bytes(b"x")
        for path in [str(bad / name) for name in ("fifo", "null", "link", "inner-link", "folder", "writable", "foreign", "missing")] + [
                "/etc/shadow", "/dev/kvm", "/proc/self/mem", str(self.images) + "/../state/secret", "../../etc/shadow", str(self.daemon.state / "secret")]:
            for field, kernel, rootfs in (("rootfs", good_kernel, path), ("kernel", path, good_root)):
                with self.subTest(path=path, field=field), self.refused(Code.INVALID_ARGUMENT) as failure:
                    self._create(kernel, rootfs)
                self.assertEqual(failure[0].fields, [field], failure[0])
        self.assertEqual(self.daemon.tags(), [])

    def test_good_files_boot(self):
        self.assertTrue(self._create("base/kernel", str(self.images / "base/rootfs.squashfs")).bootable)
        (a,) = self.daemon.fork("t")
        self.assertEqual(self.daemon.sh(a.id, "echo booted").stdout, "booted\n")
        self.daemon.delete_all()
        self.daemon.delete_snapshot("t")


class Damage(DaemonTest):
    """A snapshot whose files have changed is refused by name, whether it is in memory or not."""

    def _damaged(self, tag, change, names):
        folder = self.daemon.state / "snapshots" / tag
        kept = {path.name: (path.read_bytes(), path.stat().st_mode) for path in folder.iterdir()}
        try:
            change(folder)
            with self.refused(Code.FAILED_PRECONDITION, "SNAPSHOT_DAMAGED") as failure:
                self.daemon.fork(tag)
            self.assertIn(names, failure[0].message)
            self.assertEqual(self.daemon.list(), [])
        finally:
            self.daemon.delete_all()
            for name, (content, mode) in kept.items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(mode)

    def test_missing_truncated_and_altered_files_are_named(self):
        (a,) = self.daemon.fork("b")
        self.daemon.sh(a.id, "head -c 300000 /dev/urandom > /tmp/x")
        self.daemon.branch(a.id, "d")
        self.daemon.delete_all()

        def flip(name, position):
            def change(folder):
                data = bytearray((folder / name).read_bytes())
                data[position % len(data)] ^= 1
                (folder / name).write_bytes(data)
            return change

        for tag, name in (("b", "memory.bin"), ("b", "device.state"), ("d", "pages.bin"), ("d", "device.state"), ("b", "manifest.json")):
            with self.subTest(tag=tag, file=name, damage="missing"):
                self._damaged(tag, lambda folder: (folder / name).unlink(), name)
            with self.subTest(tag=tag, file=name, damage="truncated"):
                self._damaged(tag, lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2), name)
            with self.subTest(tag=tag, file=name, damage="one bit"):
                self._damaged(tag, flip(name, (self.daemon.state / "snapshots" / tag / name).stat().st_size // 2), name)
        # Put right again, it forks.
        for tag in ("b", "d"):
            (a,) = self.daemon.fork(tag)
            self.assertEqual(self.daemon.sh(a.id, "echo whole").stdout, "whole\n")
        self.daemon.delete_all()
        self.daemon.delete_snapshot("d")

    def test_a_snapshot_of_another_machine_is_refused_with_the_difference(self):
        folder = self.daemon.state / "snapshots" / "b"
        kept = {name: (folder / name).read_bytes() for name in ("manifest.json", "manifest.sha256")}
        try:
            for field, value in (("vmm_version", "9.9.9"), ("accelerator", "other"), ("machine", "q35"), ("cpu_model", "8086"), ("host_cpu", "none")):
                manifest = json.loads(kept["manifest.json"])
                manifest["machine"][field] = value
                text = json.dumps(manifest, indent=1).encode()
                (folder / "manifest.json").write_bytes(text)
                digest = kept["manifest.sha256"].replace(hashlib.sha256(kept["manifest.json"]).hexdigest().encode(), hashlib.sha256(text).hexdigest().encode())
                (folder / "manifest.sha256").write_bytes(digest)
                with self.subTest(field=field), self.refused(Code.FAILED_PRECONDITION, "SNAPSHOT_INCOMPATIBLE") as failure:
                    self.daemon.fork("b")
                self.assertIn(value, failure[0].message)
        finally:
            for name, content in kept.items():
                (folder / name).write_bytes(content)


class Admission(DaemonTest):
    flags = ("--memory-budget-mib", "420")

    def test_what_does_not_fit_is_refused_with_a_time_to_retry_and_leaves_nothing(self):
        with self.refused(Code.RESOURCE_EXHAUSTED, "MEMORY_EXHAUSTED") as failure:
            self.daemon.fork("b", 50)
        self.assertGreater(failure[0].retry, 0)
        self.assertEqual((self.daemon.list(), self.daemon.vmms()), ([], []))
        with self.refused(Code.RESOURCE_EXHAUSTED, "MEMORY_EXHAUSTED"):
            self.daemon.snapshot("big", memory_mib=1024)
        self.assertEqual(self.daemon.tags(), ["b"])
        reply = self.daemon.sandboxes.CreateSandboxes(sandbox_pb2.CreateSandboxesRequest(snapshot_tag="b", n=50, allow_partial=True))
        self.assertGreater(len(reply.sandboxes), 0)
        self.assertEqual(len(reply.sandboxes) + len(reply.failures), 50)
        self.assertEqual(reply.failures[0].reason, "MEMORY_EXHAUSTED")
        self.daemon.delete_all()
        # Memory that was given back can be taken again.
        self.assertEqual(len(self.daemon.fork("b", len(reply.sandboxes))), len(reply.sandboxes))


if __name__ == "__main__":
    unittest_cases.main()
