"""Ratios of forkd to the bare VMM's own floor, both measured in one run, turn by turn, so that noise hits both alike.

    bazel run //bench:spine -- [--quick] [--json FILE]

Needs root and FORKD_IMAGE_DIR (folder of the guest images `base` and `python`). Prints a Markdown table and the machine. Starts a daemon of its
own and cleans up.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

import raw_qemu
from daemon import Daemon
from proto.forkd.v1 import sandbox_pb2, snapshot_pb2


class Bench:
    def __init__(self, quick):
        self.quick = quick
        self.rows = []
        self.daemon = Daemon().start()

    def close(self):
        self.daemon.delete_all()
        for tag in self.daemon.tags():
            self.daemon.delete_snapshot(tag, cascade=True)
        self.daemon.close()

    def row(self, name, unit, ours, floor, wanted):
        ours, floor = sorted(ours), sorted(floor) if floor else None
        self.rows.append({
            "name": name, "unit": unit, "n": len(ours), "success_rate": 1.0, "p50": statistics.median(ours), "p99": ours[int(len(ours) * 0.99)],
            "max": ours[-1], "floor_p50": statistics.median(floor) if floor else None,
            "ratio": statistics.median(ours) / statistics.median(floor) if floor else None, "wanted": wanted,
        })

    def raw(self, tag, pid, manifest):
        folder = self.daemon.state / "snapshots" / tag
        state = os.open(folder / "device.state", os.O_RDONLY | os.O_CLOEXEC)
        memory = raw_qemu.memory_of(pid)
        try:
            return raw_qemu.RawVm(raw_qemu.command_line(pid), memory, manifest["rootfs"]["path"], state, bytes.fromhex(manifest["sync_token"]))
        finally:
            os.close(state)
            os.close(memory)

    def manifest(self, tag):
        return json.loads((self.daemon.state / "snapshots" / tag / "manifest.json").read_text())

    def cold_fork(self, n):
        """From the call to the child that has answered; by hand, from process start to the agent's first answer."""
        (keeper,) = self.daemon.fork("b")
        manifest = self.manifest("b")
        ours, floor = [], []
        for _ in range(n):
            begin = time.perf_counter()
            (child,) = self.daemon.fork("b")
            ours.append((time.perf_counter() - begin) * 1000)
            self.daemon.delete(child.id)
            begin = time.perf_counter()
            vm = self.raw("b", keeper.pid, manifest)
            vm.resume()
            vm.answer()
            floor.append((time.perf_counter() - begin) * 1000)
            vm.close()
        self.row("fork_cold", "ms", ours, floor, "≤ 1.25")
        self.daemon.delete(keeper.id)

    def branch_pause(self, n, mib):
        """The source's pause as the daemon reports it; by hand on a child restored from the same branch, so with the same pages diverged."""
        (source,) = self.daemon.fork("b")
        self.daemon.sh(source.id, f"head -c {mib << 20} /dev/urandom > /dev/shm/x")
        ours, pages = [], 0
        for i in range(n):
            branch = self.daemon.branch(source.id, f"p{i}")
            ours.append(branch.pause_us / 1000)
            pages = branch.page_count
            self.daemon.delete_snapshot(f"p{i}")
        manifest = self.manifest("b")
        vm = self.raw("b", source.pid, manifest)
        vm.resume()
        vm.answer()
        # The same number of pages, written from outside as the product's injection writes them.
        start, _ = vm.mapping()
        own = sum(e - s for s, e in raw_qemu.diverged(vm.process.pid, start, start + (128 << 20))) // 4096
        with open(f"/proc/{vm.process.pid}/mem", "r+b", buffering=0) as memory:
            for page in range(max(0, pages - own)):
                at = start + (32 << 20) + page * 4096
                memory.seek(at)
                content = memory.read(4096)
                memory.seek(at)
                memory.write(content)
        floor = [vm.branch()[1] for _ in range(n)]
        vm.close()
        self.row(f"branch_pause_{mib}mib", f"ms ({pages} pages)", ours, floor, "≤ 1.5")
        self.daemon.delete(source.id)

    def eval_against_cold_start(self, n):
        (child,) = self.daemon.fork("py")
        self.daemon.eval(child.id, "numpy.arange(10).sum()")
        ours, cold = [], []
        for _ in range(n):
            begin = time.perf_counter()
            assert self.daemon.eval(child.id, "numpy.arange(10).sum()").result == "45"
            ours.append((time.perf_counter() - begin) * 1000)
        for _ in range(max(3, n // 10)):
            begin = time.perf_counter()
            ran = self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=child.id, timeout_secs=120,
                                                                     args=["python3", "-c", "import numpy; print(numpy.arange(10).sum())"]))
            assert ran.stdout == "45\n", ran
            cold.append((time.perf_counter() - begin) * 1000)
        self.row("eval_warm", "ms", ours, None, "")
        self.row("eval_cold_start", "ms", cold, ours, "≥ 100")
        self.daemon.delete(child.id)

    def exec_true(self, n):
        (child,) = self.daemon.fork("b")
        self.daemon.sh(child.id, "true")
        times = []
        for _ in range(n):
            begin = time.perf_counter()
            self.daemon.sandboxes.Exec(sandbox_pb2.ExecRequest(id=child.id, args=["/bin/true"]))
            times.append((time.perf_counter() - begin) * 1000)
        self.row("exec_true", "ms", times, None, "")
        self.daemon.delete(child.id)

    def idle_memory(self, n):
        children = self.daemon.fork("b", n)
        time.sleep(2)  # They settle: what an idle child writes by itself belongs to the figure.
        unique, pss = [], []
        for child in children:
            for line in pathlib.Path(f"/proc/{child.pid}/maps").read_text().splitlines():
                words = line.split()
                if len(words) > 5 and words[5].startswith("/memfd:forkd-"):
                    start, end = (int(x, 16) for x in words[0].split("-"))
                    unique.append(sum(e - s for s, e in raw_qemu.diverged(child.pid, start, end)) / 1024)
                    break
            rollup = pathlib.Path(f"/proc/{child.pid}/smaps_rollup").read_text()
            pss.append(int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) / 1024)
        self.row("guest_unique_kib", "KiB", unique, None, "≤ 1024")
        self.row("vmm_pss_mib", "MiB", pss, None, "")
        for child in children:
            self.daemon.delete(child.id)

    def standby(self, n):
        self.daemon.close()
        self.daemon = Daemon("--standby-default", "1").start()
        self.daemon.snapshot("b")
        self.daemon.delete(self.daemon.fork("b")[0].id)
        times = []
        for _ in range(n):
            while self.daemon.snapshots.GetSnapshot(snapshot_pb2.GetSnapshotRequest(tag="b")).standby_ready < 1:
                time.sleep(0.02)
            begin = time.perf_counter()
            (child,) = self.daemon.fork("b")
            times.append((time.perf_counter() - begin) * 1000)
            self.daemon.delete(child.id)
        self.row("fork_standby", "ms", times, None, "")

    def run(self):
        n = 3 if self.quick else 30
        self.daemon.snapshot("b")
        self.cold_fork(n)
        self.branch_pause(n, 1)
        self.branch_pause(n, 16)
        self.exec_true(n)
        self.idle_memory(3 if self.quick else 10)
        self.daemon.snapshot("py", "python")
        self.eval_against_cold_start(n)
        self.standby(n)


def environment(accelerator):
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "accelerator": accelerator, "vmm": version,
            "date": datetime.date.today().isoformat()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds: shows that it works, not how fast")
    parser.add_argument("--json", help="also write the results here")
    arguments = parser.parse_args()
    bench = Bench(arguments.quick)
    try:
        bench.run()
        env = environment(bench.daemon.fork("b")[0].accelerator)
    finally:
        bench.close()
    print("| figure | unit | n | p50 | p99 | max | floor p50 | ratio | wanted |\n|---|---|---|---|---|---|---|---|---|")
    number = lambda value: "–" if value is None else f"{value:.2f}"
    for row in bench.rows:
        print(f"| {row['name']} | {row['unit']} | {row['n']} | {number(row['p50'])} | {number(row['p99'])} | {number(row['max'])} | "
              f"{number(row['floor_p50'])} | {number(row['ratio'])} | {row['wanted']} |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in env.items()))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"env": env, "results": bench.rows}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
