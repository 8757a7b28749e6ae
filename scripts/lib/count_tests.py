#!/usr/bin/env python3
"""Counts test cases from Bazel's event file, prints what failed and what was skipped by name, and ends with `N passed, N failed, N skipped`.

    scripts/lib/count_tests.py EVENTS.json

A target that does not build, crashes, or runs out of time counts as one failure: it has no cases to count. Exit status 0 only if nothing
failed and something passed.
"""

import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


class Count:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []

    def add_cases(self, label, xml_path):
        """Adds the cases of one test.xml; returns how many of them failed."""
        failed = 0
        for case in ElementTree.parse(xml_path).iter("testcase"):
            name = f"{label} {case.get('classname') or ''}.{case.get('name')}".replace(" .", " ")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed.append(name)
                failed += 1
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                reason = case.find("skipped")
                text = "disabled" if reason is None else (reason.get("message") or reason.text or "").strip()
                # GoogleTest puts the source line before the message.
                self.skipped.append(f"{name}: {text.splitlines()[-1] if text else 'no reason given'}")
            else:
                self.passed += 1
        return failed


def _events(path):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _xml_path(result):
    for output in result.get("testActionOutput", []):
        if output.get("name") == "test.xml" and output.get("uri", "").startswith("file://"):
            return pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path))
    return None


def count(path):
    total = Count()
    # (label, run, shard) → the last attempt's result: a flaky test counts as its last attempt went.
    results = {}
    broken = {}
    for event in _events(path):
        name = event.get("id", {})
        if "testResult" in name and "testResult" in event:
            key = name["testResult"]
            results[(key["label"], key.get("run", 1), key.get("shard", 1))] = event["testResult"]
        elif "targetCompleted" in name and not event.get("completed", {}).get("success", False):
            broken[name["targetCompleted"]["label"]] = "does not build" if "completed" in event else "was not built"
        elif "aborted" in event and "label" in str(name):
            label = next((value["label"] for value in name.values() if isinstance(value, dict) and "label" in value), None)
            if label and event["aborted"].get("reason") != "SKIPPED":
                broken.setdefault(label, event["aborted"].get("description") or "was not built")
    for (label, _, shard), result in sorted(results.items(), key=lambda item: item[0]):
        broken.pop(label, None)
        status = result.get("status", "NO_STATUS")
        xml = _xml_path(result)
        failed = 0
        if xml is not None and xml.exists():
            try:
                failed = total.add_cases(label, xml)
            except ElementTree.ParseError as error:
                total.failed.append(f"{label}: {xml}: {error}")
                failed = 1
        elif status == "PASSED":
            total.passed += 1
        if status not in ("PASSED", "FLAKY") and failed == 0:
            total.failed.append(f"{label}: {status}" + (f", shard {shard}" if shard > 1 else ""))
    total.failed += [f"{label}: {reason}" for label, reason in sorted(broken.items())]
    return total


def main():
    try:
        total = count(sys.argv[1])
    except (OSError, ValueError) as error:
        # Bazel died before it wrote anything that can be read.
        print(f"no test results: {error}")
        print("0 passed, 1 failed")
        return 1
    for name in total.skipped:
        print(f"SKIPPED {name}")
    for name in total.failed:
        print(f"FAILED {name}")
    if total.passed == 0 and not total.failed:
        print("FAILED no test ran")
        print("0 passed, 1 failed")
        return 1
    closing = f"{total.passed} passed, {len(total.failed)} failed"
    print(closing + (f", {len(total.skipped)} skipped" if total.skipped else ""))
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
