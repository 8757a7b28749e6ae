"""The macros that define every C++ target of forkd, so that warnings, tags and test settings are decided in one place."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

# -Wthread-safety: what a mutex guards says so (ABSL_GUARDED_BY). Debian's headers are system headers and stay silent.
_COPTS = [
    "-Wall",
    "-Wextra",
    "-Wthread-safety",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-c99-designator",
    "-Werror",
]

def forkd_cc_library(name, **kwargs):
    cc_library(name = name, copts = _COPTS + kwargs.pop("copts", []), **kwargs)

def forkd_cc_binary(name, **kwargs):
    cc_binary(name = name, copts = _COPTS + kwargs.pop("copts", []), **kwargs)

def forkd_cc_test(name, deps = [], size = "small", **kwargs):
    """A GoogleTest test; main() comes with it."""
    cc_test(
        name = name,
        size = size,
        copts = _COPTS + kwargs.pop("copts", []),
        deps = deps + ["@system//:gtest_main"],
        **kwargs
    )

def forkd_vm_test(name, tags = [], size = "large", **kwargs):
    """A GoogleTest test that starts real microVMs: needs root, the host's devices, and the machine for itself."""
    forkd_cc_test(
        name = name,
        size = size,
        tags = tags + ["requires-root", "no-sandbox", "exclusive", "vm"],
        **kwargs
    )

def forkd_fuzz_test(name, srcs, deps = [], corpus = None, **kwargs):
    """A libFuzzer target that, under plain `bazel test`, runs its corpus and then fuzzes for a short, bounded while."""
    data = native.glob([corpus + "/**"]) if corpus else []
    cc_test(
        name = name,
        srcs = srcs,
        size = "small",
        copts = _COPTS + ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined", "-g"],
        # The linker is called as for C; without the last option UBSan's vptr check has no runtime.
        linkopts = ["-fsanitize=fuzzer,address,undefined", "-fsanitize-link-c++-runtime"],
        linkstatic = True,
        deps = deps,
        data = data,
        args = ["-runs=20000", "-max_total_time=5", "-max_len=65536", "-rss_limit_mb=1024"] +
               ([native.package_name() + "/" + corpus] if corpus else []),
        tags = ["fuzz"],
        **kwargs
    )
