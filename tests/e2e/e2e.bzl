"""The end-to-end tests: a Python file each, against a daemon of its own on real microVMs."""

def e2e_test(name):
    native.sh_test(
        name = name,
        size = "enormous",
        timeout = "long",
        srcs = ["//scripts/lib:python_test.sh"],
        args = ["tests/e2e/%s.py" % name, "tests/e2e", "tests/e2e/stubs"],
        data = [
            name + ".py",
            "daemon.py",
            ":stubs",
            "//cli:forkctl",
            "//scripts/lib:unittest_cases",
            "//server:forkd-controller",
        ],
        tags = ["requires-root", "no-sandbox", "exclusive", "vm"],
    )
