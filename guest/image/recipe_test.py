"""The parts of an image build that need neither root nor a mirror. Whole images are built by scripts/test and booted by the tests on microVMs."""

import os
import pathlib
import tempfile
import unittest

import unittest_cases
from recipe import declaration, initramfs, kernel, packages, run, stage_cache

_MINIMAL = 'name = "tiny"\nkernel = "linux-image-cloud-amd64"\npackages = ["busybox"]\nmemory_mib = 128\n'


class FolderTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


class DeclarationTest(FolderTest):
    def read(self, text, lock=None):
        path = self.folder / "tiny.image"
        path.write_text(text)
        if lock is not None:
            (self.folder / "tiny.lock").write_text(lock)
        return declaration.read(path)

    def assert_refused(self, text, words, lock=None):
        with self.assertRaises(declaration.DeclarationError) as caught:
            self.read(text, lock)
        self.assertIn(words, str(caught.exception))
        self.assertIn("tiny.", str(caught.exception))

    def test_defaults(self):
        image = self.read(_MINIMAL)
        self.assertEqual((image.suite, image.runner, image.warm_up, image.lock), ("bookworm", (), "", {}))
        self.assertIn("forkd.root=/dev/vda", image.kernel_args.split())

    def test_packages_are_sorted_so_that_their_order_does_not_matter(self):
        image = self.read(_MINIMAL.replace('["busybox"]', '["zstd", "bash"]'))
        self.assertEqual(image.packages, ("bash", "zstd"))

    def test_mistakes_are_named(self):
        self.assert_refused(_MINIMAL + 'warmup = ""', "unknown key 'warmup'")
        self.assert_refused(_MINIMAL.replace("tiny", "Tiny/.."), "name")
        self.assert_refused(_MINIMAL.replace("busybox", "--hook=rm"), "no Debian package name")
        self.assert_refused(_MINIMAL.replace("128", '"128"'), "memory_mib")
        self.assert_refused(_MINIMAL.replace("128", "true"), "memory_mib")
        self.assert_refused(_MINIMAL.replace("128", "16"), "memory_mib 16")
        self.assert_refused(_MINIMAL.replace("kernel", "kernal"), "`kernel` is missing")
        self.assert_refused("name = ", "Invalid value")

    def test_files_come_from_text_or_from_a_file_beside_the_declaration(self):
        (self.folder / "tool").write_bytes(b"\x00\x01")
        image = self.read(
            _MINIMAL + '[[file]]\npath = "/a"\ncontent = "x"\n[[file]]\npath = "/b"\nsource = "tool"\nmode = "0755"\n'
        )
        self.assertEqual([(file.path, file.mode, file.content) for file in image.files], [("/a", 0o644, b"x"), ("/b", 0o755, b"\x00\x01")])

    def test_wrong_files_are_named(self):
        self.assert_refused(_MINIMAL + '[[file]]\npath = "/a"\n', "either `content` or `source`")
        self.assert_refused(_MINIMAL + '[[file]]\npath = "/a"\nsource = "none"\n', "No such file")
        self.assert_refused(_MINIMAL + '[[file]]\npath = "/../a"\ncontent = ""\n', "without `..`")
        self.assert_refused(_MINIMAL + '[[file]]\npath = "a"\ncontent = ""\n', "absolute")

    def test_the_lock_is_read(self):
        image = self.read(_MINIMAL, "# comment\n\nbusybox=1:1.35.0-4+b7\nlinux-image-6.1.0-1-cloud-amd64=6.1.1-1\n")
        self.assertEqual(image.lock["busybox"], "1:1.35.0-4+b7")
        self.assertEqual(kernel.locked(image.lock), "linux-image-6.1.0-1-cloud-amd64=6.1.1-1")
        self.assert_refused(_MINIMAL, "tiny.lock:1", lock="busybox 1.35\n")

    def test_the_shipped_declarations_are_locked(self):
        for path in pathlib.Path(__file__).parent.glob("*.image"):
            self.assertIsNotNone(kernel.locked(declaration.read_lock(path.with_suffix(".lock"))), path)


def read_newc(archive):
    """An independent reader: yields (name, mode, content) as the kernel would see them."""
    offset = 0
    while True:
        header = archive[offset : offset + 110]
        assert header[:6] == b"070701", header
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        name_end = offset + 110 + fields[11]
        name = archive[offset + 110 : name_end - 1].decode()
        start = (name_end + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, fields[1], archive[start : start + fields[6]]
        offset = (start + fields[6] + 3) & ~3


class InitramfsTest(FolderTest):
    def build(self):
        (self.folder / "a.ko").write_bytes(b"aaaaa")
        (self.folder / "b-c.ko").write_bytes(b"bb")
        return initramfs.build(b"\x7fELF agent", self.folder, ["b-c.ko", "a.ko"])

    def test_the_agent_is_init_and_modules_are_listed_in_order(self):
        entries = {name: (mode, content) for name, mode, content in read_newc(self.build())}
        self.assertEqual(entries["init"], (0o100755, b"\x7fELF agent"))
        self.assertEqual(entries["lib/forkd-modules/a.ko"], (0o100644, b"aaaaa"))
        self.assertEqual(entries["etc/forkd/modules"][1], b"/lib/forkd-modules/b-c.ko\n/lib/forkd-modules/a.ko\n")
        self.assertEqual(entries["dev/console"][0], 0o020600)

    def test_folders_come_before_what_is_in_them(self):
        seen = set()
        for name, _, _ in read_newc(self.build()):
            self.assertTrue("/" not in name or os.path.dirname(name) in seen, name)
            seen.add(name)

    def test_same_input_same_bytes(self):
        self.assertEqual(self.build(), self.build())


def module(depends):
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


class KernelTest(FolderTest):
    def test_modules_follow_what_they_depend_on(self):
        tree = self.folder / "tree/lib/modules/1/kernel"
        tree.mkdir(parents=True)
        for name, depends in {
            "virtio_ring": "",
            "virtio": "virtio_ring",
            "virtio_mmio": "virtio,virtio_ring",
            "virtio_console": "virtio",
            "virtio_blk": "virtio",
            "virtio-rng": "virtio",
            "failover": "",
            "net_failover": "failover",
            "virtio_net": "net_failover,virtio",
            "overlay": "",
            "squashfs": "",
            "vsock": "",
            "vmw_vsock_virtio_transport_common": "vsock",
            "vmw_vsock_virtio_transport": "vmw_vsock_virtio_transport_common,virtio",
        }.items():
            (tree / f"{name}.ko").write_bytes(module(depends))
        order = kernel._collect_modules(self.folder / "tree", self.folder)
        self.assertEqual(order[:3], ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko"])
        self.assertLess(order.index("failover.ko"), order.index("net_failover.ko"))
        self.assertLess(order.index("vsock.ko"), order.index("vmw_vsock_virtio_transport.ko"))
        self.assertEqual(len(order), len(set(order)))
        self.assertEqual((self.folder / "virtio-rng.ko").read_bytes(), module("virtio"))

    def test_a_kernel_without_a_needed_module_is_refused(self):
        (self.folder / "tree").mkdir()
        with self.assertRaisesRegex(run.ProgramError, "virtio_mmio"):
            kernel._collect_modules(self.folder / "tree", self.folder)


class StageCacheTest(FolderTest):
    def test_a_stage_is_built_once(self):
        cache = stage_cache.StageCache(self.folder / "cache")
        built = []
        for _ in range(2):
            folder = cache.get("root", "0" * 64, lambda place: (built.append(place), (place / "f").write_text("x")))
            self.assertEqual((folder / "f").read_text(), "x")
        self.assertEqual(len(built), 1)

    def test_a_failed_build_leaves_nothing(self):
        cache = stage_cache.StageCache(self.folder / "cache")
        with self.assertRaises(ZeroDivisionError):
            cache.get("root", "0" * 64, lambda place: 1 // 0)
        self.assertEqual(list((self.folder / "cache").iterdir()), [])

    def test_what_a_killed_build_left_is_removed(self):
        cache = stage_cache.StageCache(self.folder / "cache")
        left = self.folder / "cache/.root-abc"
        left.mkdir()
        with cache.locked(lambda: None):
            self.assertFalse(left.exists())

    def test_a_stage_that_nobody_used_for_long_is_removed(self):
        cache = stage_cache.StageCache(self.folder / "cache")
        old = cache.get("root", "0" * 64, lambda place: None)
        used = cache.get("root", "1" * 64, lambda place: None)
        os.utime(old, (0, 0))
        with cache.locked(lambda: None):
            self.assertEqual((old.exists(), used.exists()), (False, True))

    def test_others_may_not_look_in(self):
        stage_cache.StageCache(self.folder / "cache")
        self.assertEqual((self.folder / "cache").stat().st_mode & 0o777, 0o700)


class LockTest(unittest.TestCase):
    def test_locked_versions_are_preferred_not_demanded(self):
        text = packages._preferences({"bash": "5.2-1", "linux-image-6.1.0-1-cloud-amd64": "6.1"})
        self.assertIn("Package: bash\nPin: version 5.2-1\nPin-Priority: 1001\n", text)
        self.assertNotIn("linux-image", text)

    def test_differences_are_named(self):
        self.assertEqual(packages.differences({"a": "1"}, {"a": "1"}), [])
        self.assertEqual(
            packages.differences({"a": "1", "b": "1"}, {"b": "2", "c": "3"}),
            ["a: locked 1, installed not at all", "b: locked 1, installed 2", "c: locked not at all, installed 3"],
        )


class RunTest(unittest.TestCase):
    def test_a_failed_program_is_reported_with_its_output(self):
        with self.assertRaisesRegex(run.ProgramError, "(?s)status 3.*oh dear"):
            run.run(["sh", "-c", "echo oh dear >&2; exit 3"])

    def test_a_missing_program_is_reported(self):
        with self.assertRaisesRegex(run.ProgramError, "is not installed"):
            run.run(["forkd-no-such-program"])


if __name__ == "__main__":
    unittest_cases.main()
