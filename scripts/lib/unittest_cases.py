"""Runs a module's unittest cases and, under Bazel, reports each by name in test.xml, so that scripts/test counts cases and not files."""

import os
import time
import unittest
import xml.etree.ElementTree as ElementTree


class _Result(unittest.TextTestResult):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.suite = ElementTree.Element("testsuite")
        self._started = 0.0

    def startTest(self, test):
        super().startTest(test)
        self._started = time.monotonic()

    def stopTest(self, test):
        super().stopTest(test)
        name = test.id().split(".")
        case = ElementTree.SubElement(self.suite, "testcase", classname=name[-2], name=name[-1])
        case.set("time", f"{time.monotonic() - self._started:.3f}")
        for other, text in self.failures + self.errors:
            if other.id().startswith(test.id()):
                ElementTree.SubElement(case, "failure", message=text.splitlines()[-1]).text = text
                break
        for other, reason in self.skipped:
            if other is test:
                ElementTree.SubElement(case, "skipped", message=reason)


def main():
    runner = unittest.TextTestRunner(resultclass=_Result, verbosity=2)
    result = unittest.main(testRunner=runner, exit=False).result
    if "XML_OUTPUT_FILE" in os.environ:
        suites = ElementTree.Element("testsuites")
        suites.append(result.suite)
        ElementTree.ElementTree(suites).write(os.environ["XML_OUTPUT_FILE"])
    raise SystemExit(0 if result.wasSuccessful() else 1)
