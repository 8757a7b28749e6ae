"""Debian's rules_cc 0.0.4, corrected for Debian's Bazel 4.2.3.

Two of its files load `use_cpp_toolchain` from a Bazel built-in file that 4.2.3 does not have. This rule copies the package and points
that load at a shim which defines the missing function.
"""

_SHIM = """
load("@bazel_tools//tools/cpp:toolchain_utils.bzl", _find = "find_cpp_toolchain")

find_cpp_toolchain = _find

def use_cpp_toolchain(mandatory = True):
    return ["@bazel_tools//tools/cpp:toolchain_type"]
"""

def _impl(ctx):
    source = "/usr/share/bazel/rules/cc"
    result = ctx.execute(["cp", "-rL", source + "/.", "."])
    if result.return_code != 0:
        fail("rules_cc is missing at {} (apt-get install bazel-rules-cc): {}".format(source, result.stderr))
    ctx.file("cc/private/rules_impl/toolchain_shim.bzl", _SHIM)
    for name in ["cc_flags_supplier.bzl", "compiler_flag.bzl"]:
        path = "cc/private/rules_impl/" + name
        text = ctx.read(path)
        ctx.file(path, text.replace(
            "@bazel_tools//tools/cpp:toolchain_utils.bzl",
            ":toolchain_shim.bzl",
        ))

debian_rules_cc = repository_rule(
    implementation = _impl,
    local = True,
    doc = "Copies Debian's rules_cc and mends the load that Bazel 4.2.3 cannot satisfy.",
)
