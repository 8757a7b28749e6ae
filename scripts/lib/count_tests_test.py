"""What scripts/test counts as passed, failed and skipped."""

import json
import pathlib
import tempfile
import unittest

import count_tests
import unittest_cases

_GOOGLETEST = """<testsuites><testsuite name="Frame">
<testcase name="Decodes" classname="Frame" status="run" result="completed"/>
<testcase name="Refuses" classname="Frame" status="run" result="completed"><failure message="expected 1"/></testcase>
<testcase name="NeedsKvm" classname="Frame" status="run" result="skipped"><skipped message="frame_test.cc:7&#10;no /dev/kvm"/></testcase>
<testcase name="DISABLED_Later" classname="Frame" status="notrun" result="suppressed"/>
</testsuite></testsuites>"""
_CRASHED = """<testsuites><testsuite name="a" tests="1" failures="0" errors="1">
<testcase name="a" status="run"><error message="exited with error code 139"/></testcase></testsuite></testsuites>"""
_PLAIN = '<testsuites><testsuite name="b"><testcase name="b" status="run"></testcase></testsuite></testsuites>'


class CountTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.events = []

    def add_result(self, label, status, xml, attempt=1):
        path = self.folder / f"{len(self.events)} test.xml"
        if xml is not None:
            path.write_text(xml)
        outputs = [{"name": "test.xml", "uri": path.as_uri()}] if xml is not None else []
        name = {"testResult": {"label": label, "run": 1, "shard": 1, "attempt": attempt}}
        self.events.append({"id": name, "testResult": {"status": status, "testActionOutput": outputs}})

    def count(self):
        path = self.folder / "events.json"
        path.write_text("\n".join(json.dumps(event) for event in self.events))
        return count_tests.count(path)

    def test_cases_are_counted_by_name(self):
        self.add_result("//a:a", "FAILED", _GOOGLETEST)
        total = self.count()
        self.assertEqual(total.passed, 1)
        self.assertEqual(total.failed, ["//a:a Frame.Refuses"])
        self.assertEqual(total.skipped, ["//a:a Frame.NeedsKvm: no /dev/kvm", "//a:a Frame.DISABLED_Later: disabled"])

    def test_a_target_without_cases_of_its_own_counts_once(self):
        self.add_result("//a:b", "PASSED", _PLAIN)
        self.assertEqual((self.count().passed, self.count().failed), (1, []))

    def test_a_crash_is_one_failure(self):
        self.add_result("//a:a", "FAILED", _CRASHED)
        total = self.count()
        self.assertEqual((total.passed, len(total.failed)), (0, 1))

    def test_a_timeout_without_xml_is_one_failure(self):
        self.add_result("//a:a", "TIMEOUT", None)
        self.assertEqual(self.count().failed, ["//a:a: TIMEOUT"])

    def test_a_failed_target_whose_cases_all_passed_is_a_failure(self):
        self.add_result("//a:a", "FAILED", _PLAIN)
        self.assertEqual(self.count().failed, ["//a:a: FAILED"])

    def test_the_last_attempt_counts(self):
        self.add_result("//a:a", "FAILED", _CRASHED, attempt=1)
        self.add_result("//a:a", "PASSED", _PLAIN, attempt=2)
        self.assertEqual((self.count().passed, self.count().failed), (1, []))

    def test_a_target_that_does_not_build_is_a_failure(self):
        self.events.append({"id": {"targetCompleted": {"label": "//a:a"}}, "completed": {"success": False}})
        self.events.append({"id": {"targetCompleted": {"label": "//a:b"}}, "aborted": {"reason": "ANALYSIS_FAILURE"}})
        self.add_result("//a:c", "PASSED", _PLAIN)
        total = self.count()
        self.assertEqual((total.passed, len(total.failed)), (1, 2))

    def test_xml_that_cannot_be_parsed_is_a_failure(self):
        self.add_result("//a:a", "PASSED", "<testsuites>")
        self.assertEqual(len(self.count().failed), 1)


if __name__ == "__main__":
    unittest_cases.main()
