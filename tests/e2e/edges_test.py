"""The contract's edges: streams used wrongly, files of all kinds, retries at the same moment, bytes that are no message, a census of the host."""

import contextlib
import os
import pathlib
import signal
import threading
import unittest

import grpc
import unittest_cases
from daemon import Daemon, DaemonTest, eventually, require_images
from proto.forkd.v1 import sandbox_pb2, snapshot_pb2

Code = grpc.StatusCode
State = sandbox_pb2.SandboxState
Request, Start = sandbox_pb2.ExecStreamRequest, sandbox_pb2.ExecStart


class OneSandbox(DaemonTest):
    """Cases that share a sandbox: none of them changes what another looks at."""

    @classmethod
    def prepare(cls):
        super().prepare()
        cls.sandbox = cls.daemon.fork("b")[0].id

    def tearDown(self):
        pass

    def _stream(self, *requests):
        return list(self.daemon.sandboxes.ExecStream(iter(requests)))

    def _write(self, *requests):
        return self.daemon.sandboxes.WriteFile(iter(requests))

    def _read(self, path, **more):
        return b"".join(p.data for p in self.daemon.sandboxes.ReadFile(sandbox_pb2.ReadFileRequest(id=self.sandbox, path=path, **more)))


class Streams(OneSandbox):
    def test_a_program_that_cannot_start_gives_an_exit_alone(self):
        events = self._stream(Request(start=Start(id=self.sandbox, args=["no-such-program"])))
        self.assertEqual([e.WhichOneof("message") for e in events], ["exit"])
        self.assertEqual((events[0].exit.exec_error.reason, events[0].exit.exit_code), ("NOT_FOUND", 127))

    def test_a_file_without_the_right_to_run_is_said(self):
        reply = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=self.sandbox, args=["/etc/passwd"]))
        self.assertEqual((reply.exec_error.reason, reply.exit_code), ("NOT_EXECUTABLE", 126))

    def test_a_folder_or_a_user_that_is_missing_is_no_missing_program(self):
        for more, reason in (({"cwd": "/no/such/folder"}, "BAD_CWD"), ({"user": "nobody-of-that-name"}, "BAD_USER")):
            reply = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=self.sandbox, args=["true"], **more))
            self.assertEqual(reply.exec_error.reason, reason)

    def test_the_end_of_input_ends_a_reader_at_a_terminal(self):
        for _ in range(5):  # From the second on its code is warm, and it closes the terminal and exits within one step of the agent's.
            events = self._stream(Request(start=Start(id=self.sandbox, args=["cat"], tty=True)), Request(stdin=b"line\n"),
                                  Request(close_stdin=sandbox_pb2.CloseStdin()))
            self.assertIn(b"line", b"".join(e.stdout for e in events))
            self.assertEqual((events[-1].exit.exit_code, events[-1].exit.HasField("signal")), (0, False))

    def test_a_stream_begins_with_start(self):
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
            self._stream(Request(stdin=b"early"))

    def test_a_stream_without_a_message_is_refused(self):
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
            self._stream()

    def test_a_stream_starts_once(self):
        start = Request(start=Start(id=self.sandbox, args=["sleep", "3001"]))
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
            self._stream(start, start)
        eventually(lambda: self.daemon.count(self.sandbox, "sleep 3001") == 0, what="the end of the program of a refused stream")

    def test_a_signal_out_of_range_is_refused_and_the_program_ends(self):
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
            self._stream(Request(start=Start(id=self.sandbox, args=["sleep", "3002"])), Request(signal=32))
        eventually(lambda: self.daemon.count(self.sandbox, "sleep 3002") == 0, what="the end of the program of a refused stream")

    def test_error_output_comes_apart_from_output(self):
        events = self._stream(Request(start=Start(id=self.sandbox, args=["sh", "-c", "echo out; echo err >&2; exit 3"])))
        self.assertEqual((b"".join(e.stdout for e in events), b"".join(e.stderr for e in events)), (b"out\n", b"err\n"))
        self.assertEqual(events[-1].exit.exit_code, 3)

    def test_a_stream_has_a_timeout_of_its_own(self):
        events = self._stream(Request(start=Start(id=self.sandbox, args=["sleep", "3003"], timeout_secs=1)))
        self.assertTrue(events[-1].exit.timed_out)
        self.assertEqual(self.daemon.count(self.sandbox, "sleep 3003"), 0)

    def test_a_signal_reaches_the_whole_group(self):
        started = threading.Event()

        def requests():
            yield Request(start=Start(id=self.sandbox, args=["sh", "-c", "sleep 3004 & echo up; wait"]))
            started.wait(30)
            yield Request(signal=15)

        exits = []
        for event in self.daemon.sandboxes.ExecStream(requests()):
            if event.stdout:
                started.set()
            if event.HasField("exit"):
                exits.append(event.exit.signal)
        self.assertEqual(exits, [15])
        eventually(lambda: self.daemon.count(self.sandbox, "sleep 3004") == 0, what="the end of the group")

    def test_a_mebibyte_of_input_arrives_whole(self):
        reply = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=self.sandbox, args=["wc", "-c"], stdin=b"x" * (1 << 20)))
        self.assertEqual(reply.stdout.strip(), str(1 << 20))

    def test_more_input_than_that_is_refused_by_name(self):
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD") as failure:
            self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=self.sandbox, args=["wc", "-c"], stdin=b"x" * ((1 << 20) + 1)))
        self.assertEqual(failure[0].fields, ["stdin"])

    def test_eight_programs_at_once_do_not_mix_their_output(self):
        answers = [None] * 8

        def run(n):
            answers[n] = self.daemon.sh(self.sandbox, f"for i in 1 2 3 4 5; do echo {n}; done").stdout

        threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [f"{n}\n" * 5 for n in range(8)])

    def test_a_call_whose_deadline_passes_ends_its_program(self):
        with self.assertRaises(grpc.RpcError) as context:
            self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=self.sandbox, args=["sleep", "3005"], timeout_secs=600), timeout=1)
        self.assertEqual(context.exception.code(), Code.DEADLINE_EXCEEDED)
        eventually(lambda: self.daemon.count(self.sandbox, "sleep 3005") == 0, what="the end of a program that nobody waits for")

    def test_signals_do_not_stop_the_agent(self):
        self.daemon.sh(self.sandbox, "kill -STOP 1; kill -KILL 1; kill -TERM 1; true")
        reply = self.daemon.sandboxes.PingSandbox(sandbox_pb2.PingSandboxRequest(id=self.sandbox))
        self.assertEqual((reply.pong, reply.pid, reply.hostname), (True, 1, self.sandbox))

    def test_an_image_without_a_runner_says_so(self):
        with self.refused(Code.FAILED_PRECONDITION, "RUNNER_UNAVAILABLE"):
            self.daemon.eval(self.sandbox, "1 + 1")


class Files(OneSandbox):
    def test_sixteen_mebibytes_come_back_unchanged(self):
        data = os.urandom(16 << 20)
        pieces = [sandbox_pb2.WriteFileRequest(data=data[i:i + (1 << 20)]) for i in range(0, len(data), 1 << 20)]
        pieces[0].id, pieces[0].path = self.sandbox, "/tmp/big"
        self.assertEqual(self._write(*pieces).size_bytes, len(data))
        self.assertTrue(self._read("/tmp/big") == data)
        self.daemon.sh(self.sandbox, "rm /tmp/big")

    def test_a_reader_of_the_old_file_goes_on_reading_it(self):
        reply = self.daemon.sh(self.sandbox, "echo old > /tmp/swap; exec 3< /tmp/swap; sleep 0; echo $$; (sleep 600 <&3 > /dev/null 2>&1 &)")
        self.assertEqual(reply.exit_code, 0)
        self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/swap", data=b"new\n"))
        old = self.daemon.sh(self.sandbox, "for f in /proc/[0-9]*/fd/3; do case $(readlink $f) in /tmp/swap*) cat $f; break;; esac; done").stdout
        self.assertEqual((old, self._read("/tmp/swap")), ("old\n", b"new\n"))

    def test_a_link_at_the_end_is_replaced_and_not_followed(self):
        self.daemon.sh(self.sandbox, "echo target > /tmp/t; ln -sf /tmp/t /tmp/l")
        self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/l", data=b"own"))
        self.assertEqual((self._read("/tmp/t"), self._read("/tmp/l")), (b"target\n", b"own"))

    def test_a_replaced_file_keeps_its_mode(self):
        self.daemon.sh(self.sandbox, "echo x > /tmp/m; chmod 0751 /tmp/m")
        self.assertEqual(self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/m", data=b"y")).mode, 0o751)

    def test_missing_folders_are_made_only_where_asked(self):
        with self.refused(Code.NOT_FOUND, "GUEST_FILE"):
            self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/none/such", data=b"1"))
        made = self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/none/such", data=b"1", create_parents=True))
        self.assertEqual(made.size_bytes, 1)

    def test_beyond_the_end_there_is_nothing(self):
        self._write(sandbox_pb2.WriteFileRequest(id=self.sandbox, path="/tmp/short", data=b"abc"))
        self.assertEqual((self._read("/tmp/short", offset=100), self._read("/tmp/short", offset=1), self._read("/tmp/short", length=0)), (b"", b"bc", b""))

    def test_a_folder_is_not_read_and_the_root_is_not_removed(self):
        with self.refused(Code.FAILED_PRECONDITION, "GUEST_FILE"):
            self._read("/tmp")
        with self.refused(Code.INVALID_ARGUMENT, "INVALID_FIELD"):
            self.daemon.sandboxes.RemoveFile(sandbox_pb2.RemoveFileRequest(id=self.sandbox, path="/", recursive=True))

    def test_a_pipe_in_the_guest_does_not_hold_a_reader(self):
        self.daemon.sh(self.sandbox, "mkfifo /tmp/fifo")
        with self.refused(Code.FAILED_PRECONDITION, "GUEST_FILE"):
            self._read("/tmp/fifo")

    def test_a_guest_without_room_says_so(self):
        (full,) = self.daemon.fork("b")
        self.daemon.sh(full.id, "mkdir /tmp/small; mount -t tmpfs -o size=64k tmpfs /tmp/small")
        with self.refused(Code.RESOURCE_EXHAUSTED, "GUEST_FILE"):
            self._write(sandbox_pb2.WriteFileRequest(id=full.id, path="/tmp/small/f", data=b"x" * 300000))
        self.assertEqual(self.daemon.sh(full.id, "ls -A /tmp/small").stdout, "")


class Wire(OneSandbox):
    """Bytes on the wire that no client of ours sends."""

    def _raw(self, method, data):
        return self.daemon.channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)(data, timeout=30)

    def test_bytes_that_are_no_message_are_refused_and_the_daemon_lives(self):
        for data in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000)):
            with self.assertRaises(grpc.RpcError):
                self._raw("/forkd.v1.SandboxService/GetSandbox", data)
        self.assertEqual(self.daemon.get(self.sandbox).id, self.sandbox)

    def test_a_method_that_is_not_there_is_unimplemented(self):
        with self.assertRaises(grpc.RpcError) as context:
            self._raw("/forkd.v1.SandboxService/NoSuchMethod", b"")
        self.assertEqual(context.exception.code(), Code.UNIMPLEMENTED)

    def test_a_message_above_the_limit_is_refused(self):
        with self.assertRaises(grpc.RpcError) as context:
            self._raw("/forkd.v1.SandboxService/GetSandbox", b"\x0a" + b"\x80\x80\x80\x05" + b"x" * (10 << 20))
        self.assertEqual(context.exception.code(), Code.RESOURCE_EXHAUSTED)

    def test_fields_of_a_later_version_are_ignored(self):
        # Field 1000, a varint: a newer client's.
        reply = self._raw("/forkd.v1.SandboxService/GetSandbox", sandbox_pb2.GetSandboxRequest(id=self.sandbox).SerializeToString() + b"\xc0\x3e\x01")
        self.assertEqual(sandbox_pb2.SandboxInfo.FromString(reply).id, self.sandbox)


class Branches(DaemonTest):
    def test_a_branch_outlives_its_source(self):
        (a,) = self.daemon.fork("b")
        self.daemon.sh(a.id, "echo kept > /tmp/x")
        self.daemon.branch(a.id, "outlives")
        self.daemon.delete(a.id)
        self.assertEqual(self.daemon.sh(self.daemon.fork("outlives")[0].id, "cat /tmp/x").stdout, "kept\n")

    def test_a_branch_without_a_name_gets_one(self):
        (a,) = self.daemon.fork("b")
        tag = self.daemon.sandboxes.BranchSandbox(sandbox_pb2.BranchSandboxRequest(id=a.id)).tag
        self.assertTrue(tag.startswith("branch-" + a.id), tag)
        self.assertIn(tag, self.daemon.tags())

    def test_sizes_of_the_difference_come_where_asked_for(self):
        (a,) = self.daemon.fork("b")
        diff = self.daemon.branch(a.id, "with-diff", mode=sandbox_pb2.BRANCH_MODE_DIFF, parent_tag="b")
        self.assertEqual(diff.diff_logical_bytes, 128 << 20)
        self.assertGreater(diff.diff_physical_bytes, 0)
        self.assertFalse(self.daemon.branch(a.id, "without-diff").HasField("diff_ms"))

    def test_a_live_branch_becomes_ready(self):
        (a,) = self.daemon.fork("b")
        self.daemon.branch(a.id, "live", mode=sandbox_pb2.BRANCH_MODE_LIVE, wait=False)
        get = lambda: self.daemon.snapshots.GetSnapshot(snapshot_pb2.GetSnapshotRequest(tag="live"))
        eventually(lambda: get().status == snapshot_pb2.SNAPSHOT_STATUS_READY, what="a branch that is ready")
        self.assertEqual(self.daemon.sh(self.daemon.fork("live")[0].id, "echo on").stdout, "on\n")

    def test_lineage_is_told_in_both_directions(self):
        (a,) = self.daemon.fork("b")
        self.daemon.branch(a.id, "gen1")
        (child,) = self.daemon.fork("gen1")
        self.daemon.branch(child.id, "gen2")
        info = lambda tag: self.daemon.snapshots.GetSnapshotInfo(snapshot_pb2.GetSnapshotInfoRequest(tag=tag))
        self.assertEqual((list(info("gen2").ancestors), info("gen2").chain_depth), (["b", "gen1"], 2))
        self.assertEqual((list(info("gen1").dependents), list(info("gen1").sandboxes)), (["gen2"], [child.id]))
        self.assertEqual(info("gen2").parent_content_hash, info("gen1").content_hash)
        self.assertGreater(child.generation, a.generation)

    def test_branches_at_once_are_whole_or_refused(self):
        (a,) = self.daemon.fork("b")
        outcomes = {}

        def branch(tag):
            try:
                outcomes[tag] = self.daemon.branch(a.id, tag).status
            except grpc.RpcError as error:
                outcomes[tag] = error.code()

        threads = [threading.Thread(target=branch, args=(f"at-once-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made = sorted(tag for tag, outcome in outcomes.items() if outcome == snapshot_pb2.SNAPSHOT_STATUS_READY)
        self.assertTrue(made, outcomes)
        self.assertTrue(all(outcome in (Code.ABORTED, Code.RESOURCE_EXHAUSTED) for tag, outcome in outcomes.items() if tag not in made), outcomes)
        self.assertEqual([tag for tag in self.daemon.tags() if tag.startswith("at-once")], made)
        self.assertEqual(self.daemon.get(a.id).branch_count, len(made))

    def test_one_key_at_the_same_moment_makes_one_result(self):
        outcomes = []

        def fork():
            try:
                outcomes.append(tuple(s.id for s in self.daemon.fork("b", 1, idempotency_key="race")))
            except grpc.RpcError as error:
                outcomes.append(error.code())

        threads = [threading.Thread(target=fork) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len({o for o in outcomes if isinstance(o, tuple)}), 1, outcomes)
        self.assertEqual(len(self.daemon.list()), 1)

    def test_a_paused_sandbox_can_be_deleted_and_a_running_one_resumed(self):
        (a,) = self.daemon.fork("b")
        self.assertEqual(self.daemon.sandboxes.ResumeSandbox(sandbox_pb2.ResumeSandboxRequest(id=a.id)).state, State.SANDBOX_STATE_RUNNING)
        self.daemon.sandboxes.PauseSandbox(sandbox_pb2.PauseSandboxRequest(id=a.id))
        self.daemon.delete(a.id)
        self.assertEqual((self.daemon.list(), self.daemon.vmms()), ([], []))

    def test_a_storm_of_processes_stays_in_its_guest(self):
        stormy, calm = self.daemon.fork("b", 2)
        with contextlib.suppress(grpc.RpcError):
            self.daemon.sh(stormy.id, "i=0; while [ $i -lt 3000 ]; do sleep 60 & i=$((i + 1)); done; wait", timeout_secs=5)
        self.assertEqual(self.daemon.sh(calm.id, "echo calm").stdout, "calm\n")


class Census(unittest.TestCase):
    """What the host has before a daemon and after it, whoever's it is: counted where it would show."""

    def _count(self, daemon):
        mark = str(daemon.folder)
        text = lambda path: pathlib.Path(path).read_text(errors="replace")
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd")) if daemon.process else 0
        links = []
        for entry in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                links.append(os.readlink(entry))
        return {
            "processes": len(daemon.vmms()),
            "unix sockets": text("/proc/net/unix").count(mark),
            "mounts": text("/proc/self/mountinfo").count(mark),
            "images in memory": sum("memfd:forkd-census" in link for link in links),
            "cgroups": len(daemon.cgroups()),
            "named networks": len(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else 0,
            "network devices": len(os.listdir("/sys/class/net")),
            "descriptors of the daemon": descriptors,
        }

    def test_nothing_of_the_host_is_kept_when_all_is_deleted(self):
        require_images()
        daemon = Daemon()
        self.addCleanup(daemon.close)
        nothing = self._count(daemon)
        daemon.start()

        def a_life(tag):
            daemon.snapshot(tag)
            (a,) = daemon.fork(tag)
            daemon.branch(a.id, tag + "-1")
            daemon.fork(tag + "-1")
            alive = self._count(daemon)
            daemon.delete_all()
            daemon.delete_snapshot(tag, cascade=True)
            return alive

        alive = a_life("census-a")
        self.assertEqual(alive["processes"], 2, "the control: what lives is counted")
        self.assertGreater(alive["images in memory"], 0)
        eventually(lambda: not daemon.leftovers(), what="a clean state folder")
        after_one = self._count(daemon)
        a_life("census-b")
        eventually(lambda: self._count(daemon) == after_one, what=f"the same as before a second life: {after_one}, not {self._count(daemon)}")
        self.assertEqual(daemon.stop(signal.SIGTERM), 0)
        self.assertEqual(self._count(daemon), nothing)


if __name__ == "__main__":
    unittest_cases.main()
