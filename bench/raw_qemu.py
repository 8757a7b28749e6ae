"""The raw floor: the same QEMU with the same arguments, driven by hand with the fewest steps that do the same. No forkd code."""

import array
import ctypes
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import tempfile
import time

# Descriptor numbers that the product's command line names: memory, control socket, agent socket, root file system.
_MEMORY, _CONTROL, _AGENT, _ROOTFS = 10, 11, 12, 13
_PAGE = 4096

# PAGEMAP_SCAN, include/uapi/linux/fs.h, Linux 6.7.
_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def command_line(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def memory_of(pid):
    """A descriptor of the sealed memfd that a live child of the product maps."""
    return os.open(f"/proc/{pid}/fd/{_MEMORY}", os.O_RDWR | os.O_CLOEXEC)


class RawVm:
    """Started, restored and spoken to like a child of the product, without a jail."""

    def __init__(self, argv, memory, rootfs, state, token):
        self._folder = tempfile.TemporaryDirectory(prefix="forkd-raw-")
        self._token = token
        listeners = {}
        for number, name in ((_CONTROL, "control"), (_AGENT, "agent")):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"{self._folder.name}/{name}")
            listener.listen(2)
            listeners[number] = listener
        root = os.open(rootfs, os.O_RDONLY | os.O_CLOEXEC)
        sources = {_MEMORY: memory, _CONTROL: listeners[_CONTROL].fileno(), _AGENT: listeners[_AGENT].fileno(), _ROOTFS: root}
        # Above every target first, so that none overwrites another.
        raised = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for target, fd in sources.items()}

        def hand_over():
            for target, fd in raised.items():
                os.dup2(fd, target)

        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
                                        preexec_fn=hand_over)
        for fd in (*raised.values(), root):
            os.close(fd)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.connect(f"{self._folder.name}/control")
        self._lines = self._control.makefile("r")
        for listener in listeners.values():
            listener.close()
        json.loads(self._lines.readline())
        self._do("qmp_capabilities")
        self._send_fd("getfd", {"fdname": "state"}, state)
        self._do("migrate-incoming", uri="fd:state")
        while self._do("query-migrate").get("status") != "completed":
            pass

    def _send_fd(self, command, arguments, fd):
        text = json.dumps({"execute": command, "arguments": arguments}).encode()
        self._control.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        return self._answer()

    def _answer(self):
        while True:
            message = json.loads(self._lines.readline())
            if "error" in message:
                raise RuntimeError(message["error"])
            if "return" in message:
                return message["return"]

    def _do(self, command, **arguments):
        self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        return self._answer()

    def resume(self):
        self._do("cont")

    def stop(self):
        self._do("stop")

    def answer(self):
        """The agent's first word: a connection begins (guest/ttrpc/sync.h), and a ping is answered."""
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        agent.connect(f"{self._folder.name}/agent")
        nonce = os.urandom(8)
        agent.sendall(self._token + nonce + b"\0")
        wanted = bytes(b ^ 0xFF for b in self._token) + nonce
        got = b""
        while wanted not in got:
            got += agent.recv(65536)
        request = _field(1, b"forkd.agent.v1.AgentService") + _field(2, b"Ping") + _field(3, b"")
        agent.sendall(struct.pack(">IIBB", len(request), 1, 1, 0) + request)
        got = got[got.index(wanted) + len(wanted):]
        while len(got) < 10 or len(got) < 10 + struct.unpack(">I", got[:4])[0]:
            got += agent.recv(65536)
        agent.close()

    def branch(self):
        """Stop, device state, scan and copy of the diverged pages, resume. Returns pages and milliseconds of pause."""
        start, end = self.mapping()
        ready = ctypes.create_string_buffer(32 << 20)
        ctypes.memset(ready, 1, len(ready))  # Faulted in before the stop, as the product does.
        with tempfile.TemporaryFile() as file:
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)
            set_id = self._send_fd("add-fd", {}, fd)["fdset-id"]
            os.close(fd)
            begin = time.perf_counter()
            self.stop()
            self._do("xen-save-devices-state", filename=f"/dev/fdset/{set_id}", live=True)
            ranges = diverged(self.process.pid, start, end)
            pages = _copy(self.process.pid, ranges, ready)
            self.resume()
            pause = time.perf_counter() - begin
        return pages, pause * 1000

    def mapping(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/maps").read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[5].startswith("/memfd:forkd-") and "p" in words[1]:
                start, end = words[0].split("-")
                return int(start, 16), int(end, 16)
        raise RuntimeError("no private mapping of the root image")

    def close(self):
        self.process.kill()
        self.process.wait()
        self._control.close()
        self._lines.close()
        self._folder.cleanup()


def _field(number, value):
    return bytes([number << 3 | 2]) + bytes([len(value)]) + value


def diverged(pid, start, end):
    """Ranges of pages that are present or swapped and not of the file: what a child has for itself."""
    ranges = []
    vector = (ctypes.c_uint64 * 3 * 4096)()
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        while start < end:
            argument = bytearray(struct.pack("<12Q", 96, 0, start, end, 0, ctypes.addressof(vector), 4096, 0, _PAGE_IS_FILE, 0,
                                             _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED))
            struct.pack_into("<Q", argument, 8 * 8, _PAGE_IS_FILE)   # category_inverted
            struct.pack_into("<Q", argument, 9 * 8, _PAGE_IS_FILE)   # category_mask: (inverted) FILE must hold
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument, True)
            ranges += [(vector[i][0], vector[i][1]) for i in range(count)]
            walked = struct.unpack_from("<Q", argument, 4 * 8)[0]
            if walked >= end or count < 4096:
                break
            start = walked
    return ranges


def _copy(pid, ranges, into):
    total, at = 0, ctypes.addressof(into)
    for first in range(0, len(ranges), 1000):
        some = ranges[first:first + 1000]
        size = sum(end - start for start, end in some)
        local = _Iovec(at + total, size)
        remote = (_Iovec * len(some))(*[_Iovec(start, end - start) for start, end in some])
        got = _libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, len(some), 0)
        if got != size:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        total += size
    return total // _PAGE


