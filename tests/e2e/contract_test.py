"""Every call of the contract, over gRPC, on real microVMs."""

import os
import subprocess
import threading
import time
import unittest

import grpc
import unittest_cases
from daemon import Daemon, DaemonTest, eventually
from proto.forkd.v1 import admin_pb2, sandbox_pb2, snapshot_pb2

State = sandbox_pb2.SandboxState


class Python(DaemonTest):
    """The warmed interpreter: what the product is for."""

    @classmethod
    def prepare(cls):
        cls.daemon.snapshot("py", "python")

    def test_eval_gives_the_value_of_the_last_expression_and_keeps_state(self):
        (a,) = self.daemon.fork("py")
        self.assertFalse(self.daemon.eval(a.id, "x = 20").HasField("result"))
        reply = self.daemon.eval(a.id, "print('hello')\nx + 1")
        self.assertEqual((reply.result, reply.stdout, reply.exit_code), ("21", "hello\n", 0))
        self.assertEqual(self.daemon.eval(a.id, "numpy.arange(10).sum() == 45").result, "True")

    def test_an_exception_is_an_answer_with_its_traceback(self):
        (a,) = self.daemon.fork("py")
        reply = self.daemon.eval(a.id, "def f():\n  return 1 / 0\nf()")
        self.assertEqual((reply.error, reply.exit_code), ("ZeroDivisionError: division by zero", 1))
        self.assertIn("in f", reply.traceback)

    def test_code_that_hangs_is_stopped_and_the_runner_comes_back(self):
        (a,) = self.daemon.fork("py")
        reply = self.daemon.eval(a.id, "while True: pass", timeout_secs=1)
        self.assertTrue(reply.timed_out)
        self.assertTrue(reply.error)
        self.assertEqual(self.daemon.eval(a.id, "6 * 7").result, "42")

    def test_children_do_not_share_variables(self):
        a, b = self.daemon.fork("py", 2)
        self.daemon.eval(a.id, "x = 1")
        self.assertIn("NameError", self.daemon.eval(b.id, "x").error)

    def test_no_two_children_draw_the_same_random_bytes(self):
        children = self.daemon.fork("py", 6)
        code = ("import os, random, uuid, ssl\n"
                "(os.urandom(16).hex(), random.random(), numpy.random.rand(), numpy.random.default_rng().random(), str(uuid.uuid4()), ssl.RAND_bytes(8).hex())")
        seen = [eval(self.daemon.eval(child.id, code).result, {"np": type("np", (), {"float64": float})}) for child in children]
        for position in range(6):
            self.assertEqual(len({row[position] for row in seen}), len(seen), f"generator {position}: {seen}")

    def test_a_branch_carries_variables_files_and_running_threads(self):
        (a,) = self.daemon.fork("py")
        self.daemon.eval(a.id, "import threading, time\nticks = 0\ndef run():\n  global ticks\n  while True:\n    ticks += 1\n    time.sleep(0.01)\n"
                               "threading.Thread(target=run, daemon=True).start()\nopen('/tmp/note', 'w').write('from before')")
        branch = self.daemon.branch(a.id, "br")
        self.assertEqual(branch.branched_from, a.id)
        self.assertGreater(branch.pause_us, 0)
        self.assertGreater(branch.page_count, 0)
        child, other = self.daemon.fork("br", 2)
        self.daemon.eval(other.id, "open('/tmp/note', 'w').write('changed')")
        self.assertEqual(self.daemon.eval(child.id, "open('/tmp/note').read()").result, "'from before'")
        before = int(self.daemon.eval(child.id, "ticks").result)
        eventually(lambda: int(self.daemon.eval(child.id, "ticks").result) > before, what="a thread that goes on in the child")
        before = int(self.daemon.eval(a.id, "ticks").result)
        eventually(lambda: int(self.daemon.eval(a.id, "ticks").result) > before, what="a source that goes on")
        # A branch of a branch.
        self.daemon.eval(child.id, "deeper = 'yes'")
        self.assertEqual(self.daemon.branch(child.id, "br2").depth, 2)
        (grandchild,) = self.daemon.fork("br2")
        self.assertEqual(self.daemon.eval(grandchild.id, "deeper + open('/tmp/note').read()").result, "'yesfrom before'")

    def test_ping_says_that_the_warm_up_is_done(self):
        (a,) = self.daemon.fork("py")
        reply = self.daemon.sandboxes.PingSandbox(sandbox_pb2.PingSandboxRequest(id=a.id))
        self.assertTrue(reply.pong and reply.warmup_ready)
        self.assertLess(abs(reply.guest_time_unix_ms / 1000 - time.time()), 5)


class Shell(DaemonTest):
    def test_children_are_machines_of_their_own(self):
        children = self.daemon.fork("b", 4)
        script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1"
        answers = [self.daemon.sh(child.id, script).stdout.splitlines() for child in children]
        for line in range(4):
            self.assertEqual(len({answer[line] for answer in answers}), 4, answers)
        self.assertEqual(answers[0][0], children[0].id)

    def test_exec_passes_environment_folder_user_input_and_exit_code(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(
            id=a.id, args=["sh", "-c", "cat; echo $GREETING; pwd; id -u; echo oops >&2; exit 7"], env={"GREETING": "hi=there"}, cwd="/tmp",
            user="nobody", stdin=b"from stdin\n"))
        self.assertEqual(reply.stdout.splitlines(), ["from stdin", "hi=there", "/tmp", "65534"])
        self.assertEqual((reply.stderr, reply.exit_code), ("oops\n", 7))

    def test_a_missing_program_is_an_exec_error_and_no_success(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=a.id, args=["no-such-program"]))
        self.assertEqual((reply.exec_error.reason, reply.exit_code), ("NOT_FOUND", 127))
        self.assertTrue(reply.error)

    def test_a_timeout_kills_the_whole_process_group(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sh(a.id, "sleep 1001 & sleep 1001", timeout_secs=1)
        self.assertTrue(reply.timed_out)
        self.assertEqual(self.daemon.count(a.id, "sleep 1001"), 0)
        self.daemon.sh(a.id, "setsid sleep 1001 > /dev/null 2>&1 &")
        self.assertEqual(self.daemon.count(a.id, "sleep 1001"), 1, "the control: what lives is counted")

    def test_death_by_signal_is_told(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sh(a.id, "kill -TERM $$")
        self.assertEqual((reply.signal, reply.exit_code), (15, -15))

    def test_bytes_that_are_no_utf8_come_unchanged_beside_the_text(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sh(a.id, r"printf 'a\377b'")
        self.assertEqual((reply.stdout, reply.stdout_raw), ("a\ufffdb", b"a\xffb"))

    def test_output_beyond_the_limit_is_cut_and_said_so(self):
        (a,) = self.daemon.fork("b")
        reply = self.daemon.sh(a.id, "head -c 3000000 /dev/zero", max_output_bytes=1000)
        self.assertEqual((len(reply.stdout), reply.stdout_truncated, reply.exit_code), (1000, True, 0))

    def test_a_stream_carries_input_output_and_one_exit(self):
        (a,) = self.daemon.fork("b")
        Request, Start = sandbox_pb2.ExecStreamRequest, sandbox_pb2.ExecStart
        requests = iter([Request(start=Start(id=a.id, args=["cat"])), Request(stdin=b"one "), Request(stdin=b"two"),
                         Request(close_stdin=sandbox_pb2.CloseStdin())])
        events = list(self.daemon.sandboxes.ExecStream(requests))
        self.assertEqual(events[0].WhichOneof("message"), "started")
        self.assertEqual(b"".join(e.stdout for e in events), b"one two")
        self.assertEqual([e.exit.exit_code for e in events if e.HasField("exit")], [0])

    def test_a_terminal_has_a_size_that_can_change_and_takes_signals(self):
        (a,) = self.daemon.fork("b")
        Request, Start, Size = sandbox_pb2.ExecStreamRequest, sandbox_pb2.ExecStart, sandbox_pb2.TerminalSize
        resized = threading.Event()

        def requests():
            yield Request(start=Start(id=a.id, tty=True, size=Size(rows=11, columns=77),
                                      args=["bash", "-c", "trap 'stty size; echo resized' WINCH; stty size; while true; do sleep 0.1; done"]))
            resized.wait(30)
            yield Request(resize=Size(rows=22, columns=99))
            sized.wait(30)
            yield Request(signal=9)

        sized = threading.Event()
        output, exits = b"", []
        for event in self.daemon.sandboxes.ExecStream(requests()):
            output += event.stdout
            if b"11 77" in output:
                resized.set()
            if b"22 99" in output:
                sized.set()
            if event.HasField("exit"):
                exits.append(event.exit.signal)
        self.assertIn(b"22 99", output)
        self.assertEqual(exits, [9])

    def test_a_gibibyte_of_output_to_a_slow_reader_leaves_the_daemon_small(self):
        (a,) = self.daemon.fork("b")
        size = (1 << 30) if os.environ.get("FORKD_TEST_LONG") == "1" else (64 << 20)
        before = _rss(self.daemon.process.pid)
        Request, Start = sandbox_pb2.ExecStreamRequest, sandbox_pb2.ExecStart
        got, most = 0, 0
        for event in self.daemon.sandboxes.ExecStream(iter([Request(start=Start(id=a.id, args=["head", "-c", str(size), "/dev/zero"]))])):
            got += len(event.stdout)
            most = max(most, _rss(self.daemon.process.pid))
        self.assertEqual(got, size)
        self.assertLess(most - before, 64 << 20)

    def test_a_client_that_vanishes_has_its_program_killed(self):
        (a,) = self.daemon.fork("b")
        Request, Start = sandbox_pb2.ExecStreamRequest, sandbox_pb2.ExecStart
        for detach, lives in ((False, 0), (True, 1)):
            forever = threading.Event()

            def requests():
                yield Request(start=Start(id=a.id, args=["sleep", "4242"], detach=detach))
                forever.wait(30)

            stream = self.daemon.sandboxes.ExecStream(requests())
            next(stream)
            stream.cancel()
            forever.set()
            eventually(lambda: self.daemon.count(a.id, "sleep 4242") == lives, what=f"detach={detach}: {lives} of them")

    def test_files_go_in_and_out_unchanged(self):
        (a,) = self.daemon.fork("b")
        data = os.urandom(3 << 20)
        Request = sandbox_pb2.WriteFileRequest
        chunks = [Request(id=a.id, path="/tmp/new/dir/file", mode=0o640, create_parents=True)]
        chunks += [Request(data=data[i:i + 500000]) for i in range(0, len(data), 500000)]
        info = self.daemon.sandboxes.WriteFile(iter(chunks))
        self.assertEqual((info.size_bytes, info.mode), (len(data), 0o640))
        pieces = list(self.daemon.sandboxes.ReadFile(sandbox_pb2.ReadFileRequest(id=a.id, path="/tmp/new/dir/file")))
        self.assertEqual(pieces[0].info.size_bytes, len(data))
        self.assertEqual(b"".join(p.data for p in pieces), data)
        part = list(self.daemon.sandboxes.ReadFile(sandbox_pb2.ReadFileRequest(id=a.id, path="/tmp/new/dir/file", offset=100, length=10)))
        self.assertEqual(b"".join(p.data for p in part), data[100:110])

    def test_folders_can_be_listed_stated_and_removed(self):
        (a,) = self.daemon.fork("b")
        self.daemon.sh(a.id, "mkdir -p /tmp/d/sub; echo hi > /tmp/d/f; ln -s f /tmp/d/link")
        listing = self.daemon.sandboxes.ListDirectory(sandbox_pb2.ListDirectoryRequest(id=a.id, path="/tmp/d"))
        self.assertEqual([(e.name, sandbox_pb2.FileType.Name(e.type)[10:]) for e in listing.entries],
                         [("f", "FILE"), ("link", "SYMLINK"), ("sub", "DIRECTORY")])
        stat = lambda path, **more: self.daemon.sandboxes.StatFile(sandbox_pb2.StatFileRequest(id=a.id, path=path, **more))
        self.assertEqual(stat("/tmp/d/link").link_target, "f")
        self.assertEqual(stat("/tmp/d/link", follow=True).size_bytes, 3)
        remove = lambda **more: self.daemon.sandboxes.RemoveFile(sandbox_pb2.RemoveFileRequest(id=a.id, path="/tmp/d", **more))
        with self.refused(grpc.StatusCode.FAILED_PRECONDITION):
            remove()
        remove(recursive=True)
        with self.refused(grpc.StatusCode.NOT_FOUND):
            stat("/tmp/d")

    def test_pause_stops_and_resume_goes_on(self):
        (a,) = self.daemon.fork("b")
        pause = lambda: self.daemon.sandboxes.PauseSandbox(sandbox_pb2.PauseSandboxRequest(id=a.id))
        self.assertEqual(pause().state, State.SANDBOX_STATE_PAUSED)
        self.assertEqual(pause().state, State.SANDBOX_STATE_PAUSED, "idempotent")
        with self.refused(grpc.StatusCode.FAILED_PRECONDITION, "SANDBOX_NOT_RUNNING"):
            self.daemon.sh(a.id, "true")
        self.daemon.branch(a.id, "of-paused")
        self.assertEqual(self.daemon.get(a.id).state, State.SANDBOX_STATE_PAUSED, "a branch leaves it as it was")
        self.assertEqual(self.daemon.sandboxes.ResumeSandbox(sandbox_pb2.ResumeSandboxRequest(id=a.id)).state, State.SANDBOX_STATE_RUNNING)
        self.assertEqual(self.daemon.sh(a.id, "echo on").stdout, "on\n")

    def test_watchers_see_a_sandbox_come_change_and_go(self):
        stream = self.daemon.sandboxes.WatchSandboxes(sandbox_pb2.WatchSandboxesRequest(include_current=True))
        seen, done = [], threading.Event()

        def watch():
            try:
                for event in stream:
                    seen.append((sandbox_pb2.SandboxEventType.Name(event.type)[19:], State.Name(event.sandbox.state)[14:]))
                    if seen[-1][0] == "DELETED":
                        done.set()
            except grpc.RpcError:
                pass

        thread = threading.Thread(target=watch)
        thread.start()
        (a,) = self.daemon.fork("b")
        self.daemon.delete(a.id)
        self.assertTrue(done.wait(30), seen)
        stream.cancel()
        thread.join()
        kinds = [kind for kind, _ in seen]
        self.assertEqual((kinds[0], kinds[-1]), ("CREATED", "DELETED"))
        self.assertIn(("CHANGED", "RUNNING"), seen)

    def test_lists_filter_by_label_snapshot_and_state(self):
        (a,) = self.daemon.fork("b", labels={"team": "red", "n": "1"})
        self.daemon.fork("b", labels={"team": "blue"})
        ids = lambda **f: [s.id for s in self.daemon.sandboxes.ListSandboxes(sandbox_pb2.ListSandboxesRequest(**f)).sandboxes]
        self.assertEqual(ids(label=["team=red"]), [a.id])
        self.assertEqual(len(ids(label=["team"])), 2)
        self.assertEqual(ids(label=["team=red", "n=2"]), [])
        self.assertEqual(ids(snapshot_tag="other"), [])
        self.assertEqual(len(ids(state=State.SANDBOX_STATE_RUNNING)), 2)

    def test_a_sandbox_says_what_it_is(self):
        (a,) = self.daemon.fork("b", lifetime_secs=3600, idle_timeout_secs=600, memory_limit_mib=256)
        self.assertEqual((a.vmm, a.state, a.vcpus, a.memory_mib, a.root_tag), ("qemu", State.SANDBOX_STATE_RUNNING, 1, 128, "b"))
        self.assertEqual(a.isolation == snapshot_pb2.ISOLATION_HARDWARE, a.accelerator == "kvm")
        self.assertEqual((a.expires_at_unix - a.created_at_unix, a.idle_timeout_secs, a.memory_limit_mib), (3600, 600, 256))

    def test_a_snapshot_says_what_it_holds(self):
        detail = self.daemon.snapshots.GetSnapshotInfo(snapshot_pb2.GetSnapshotInfoRequest(tag="b"))
        self.assertEqual(detail.memory_logical_bytes, 128 << 20)
        self.assertLess(detail.memory_physical_bytes, detail.memory_logical_bytes)
        self.assertEqual(sorted(f.name for f in detail.files), ["device.state", "memory.bin"])
        (a,) = self.daemon.fork("b")
        self.daemon.branch(a.id, "child")
        detail = self.daemon.snapshots.GetSnapshotInfo(snapshot_pb2.GetSnapshotInfoRequest(tag="b"))
        self.assertIn("child", detail.dependents)
        detail = self.daemon.snapshots.GetSnapshotInfo(snapshot_pb2.GetSnapshotInfoRequest(tag="child"))
        self.assertEqual((list(detail.ancestors), detail.parent_tag, detail.chain_depth), (["b"], "b", 1))
        self.assertEqual(self.daemon.snapshots.GetSnapshot(snapshot_pb2.GetSnapshotRequest(tag="child")).kind, snapshot_pb2.SNAPSHOT_KIND_BRANCH)
        self.daemon.delete_all()
        self.daemon.delete_snapshot("child")

    def test_two_processors_fork_branch_and_run(self):
        self.daemon.snapshot("smp", vcpus=2)
        (a,) = self.daemon.fork("smp")
        self.assertEqual(self.daemon.sh(a.id, "nproc; (yes > /dev/null & yes > /dev/null & sleep 0.3; kill %1 %2) ; echo x > /tmp/x").stdout.split()[0], "2")
        self.daemon.branch(a.id, "smp-branch")
        (child,) = self.daemon.fork("smp-branch")
        self.assertEqual(self.daemon.sh(child.id, "nproc; cat /tmp/x").stdout.split(), ["2", "x"])

    def test_a_lifetime_ends_a_sandbox_and_so_does_idleness(self):
        (short,) = self.daemon.fork("b", lifetime_secs=2)
        (idle,) = self.daemon.fork("b", idle_timeout_secs=2)
        (stays,) = self.daemon.fork("b")
        eventually(lambda: [s.id for s in self.daemon.list()] == [stays.id], 30, "two that expire and one that stays")

    def test_doctor_and_host_info_answer(self):
        checks = {c.name: c.status for c in self.daemon.admin.Doctor(admin_pb2.DoctorRequest()).checks}
        self.assertLessEqual({"kvm", "qemu", "disk", "memory", "kernel", "cgroups", "smt", "ksm", "swap", "core dumps"}, set(checks))
        host = self.daemon.admin.GetHostInfo(admin_pb2.GetHostInfoRequest())
        self.assertIn("base", [image.name for image in host.images])
        self.assertGreater(host.memory_budget_mib, 0)

    def test_health_and_reflection_are_served(self):
        # By hand on the wire, as any generic client: the health service's empty request, the reflection service's list.
        check = self.daemon.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
        self.assertEqual(check(b"", timeout=10), b"\x08\x01", "SERVING")
        reflect = self.daemon.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", request_serializer=bytes,
                                                    response_deserializer=bytes)
        listing = next(reflect(iter([b"\x3a\x00"]), timeout=10))
        for service in (b"forkd.v1.SnapshotService", b"forkd.v1.SandboxService", b"forkd.v1.AdminService"):
            self.assertIn(service, listing)

    def test_forkctl_does_the_same(self):
        run = lambda *words: subprocess.run(["cli/forkctl", "--address", self.daemon.address, *words], capture_output=True, text=True, timeout=120)
        made = run("fork", "b", "-o", "json")
        self.assertEqual(made.returncode, 0, made.stderr)
        (sandbox,) = self.daemon.list()
        self.assertIn(sandbox.id, made.stdout)
        ran = run("exec", sandbox.id, "--", "sh", "-c", "echo out; echo err >&2; exit 9")
        self.assertEqual((ran.returncode, ran.stdout, ran.stderr), (9, "out\n", "err\n"))
        self.assertEqual(run("rm", sandbox.id).returncode, 0)
        missing = run("sandbox", "get", "sb-00000000-0000")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("SANDBOX_UNKNOWN", missing.stderr)


class Standby(DaemonTest):
    flags = ("--standby-default", "2")

    def test_children_wait_are_claimed_and_are_machines_of_their_own(self):
        get = lambda: self.daemon.snapshots.GetSnapshot(snapshot_pb2.GetSnapshotRequest(tag="b"))
        (first,) = self.daemon.fork("b")  # From here on the snapshot is known to the pool.
        eventually(lambda: get().standby_ready == 2, 60, "two standby children")
        a, b = self.daemon.fork("b", 2)
        self.assertEqual(get().standby_hits, 2)
        names = [self.daemon.sh(s.id, "hostname; cat /etc/machine-id; head -c 8 /dev/urandom | od -An -tx1").stdout for s in (first, a, b)]
        self.assertEqual(len({tuple(n.splitlines()) for n in names}), 3)
        self.assertEqual(names[1].splitlines()[0], a.id)
        # One that dies while it waits is not handed out.
        eventually(lambda: get().standby_ready == 2, 60, "two standby children again")
        waiting = set(self.daemon.vmms()) - {s.pid for s in self.daemon.list()}
        os.kill(min(waiting), 9)
        alive = self.daemon.fork("b", 2)
        self.assertEqual([self.daemon.sh(s.id, "echo ok").stdout for s in alive], ["ok\n", "ok\n"])


def _rss(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


if __name__ == "__main__":
    unittest_cases.main()
