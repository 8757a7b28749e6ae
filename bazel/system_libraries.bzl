"""Debian's libraries as Bazel targets `@system//:NAME`.

Each target takes its compile and link flags from pkg-config, or from the table where a library has no pkg-config file. The compile flags
matter: without spdlog's, for instance, every translation unit compiles the whole of spdlog again.
"""

# Target → pkg-config modules.
_MODULES = {
    "absl_status": ["absl_status", "absl_statusor", "absl_strings", "absl_str_format", "absl_cord"],
    "absl_base": ["absl_strings", "absl_str_format", "absl_span", "absl_time", "absl_flat_hash_map", "absl_flat_hash_set", "absl_cleanup"],
    "absl_synchronization": ["absl_synchronization"],
    "absl_random": ["absl_random_random"],
    "benchmark": ["benchmark"],
    "gmock": ["gmock"],
    "grpc++": ["grpc++"],
    "gtest": ["gtest"],
    "gtest_main": ["gtest_main", "gmock"],
    "openssl": ["openssl"],
    "protobuf": ["protobuf"],
    "protobuf_lite": ["protobuf-lite"],
    "seccomp": ["libseccomp"],
    "spdlog": ["spdlog"],
    "sqlite3": ["sqlite3"],
}

# Target → (defines, link options), for libraries without a pkg-config file.
_PLAIN = {
    "asio": ([
        "BOOST_ASIO_SEPARATE_COMPILATION",
        "BOOST_ASIO_NO_DEPRECATED",
        "BOOST_ASIO_DISABLE_BOOST_REGEX",
    ], ["-lpthread"]),
    "cli11": ([], []),
    "dl": ([], ["-ldl"]),
    "grpc++_error_details": ([], ["-lgrpc++_error_details"]),
    # Registers itself by static initialisation: the linker must keep it although nothing names it.
    "grpc++_reflection": ([], ["-Wl,--no-as-needed", "-lgrpc++_reflection"]),
    "nlohmann_json": ([], []),
    "pthread": ([], ["-lpthread"]),
    "protoc": ([], ["-lprotoc"]),
}

# Compile flags that Bazel's own toolchain or .bazelrc decides.
_DROPPED = ["-std=c++11", "-std=c++14", "-std=c++17", "-I/usr/include"]

def _pkg_config(ctx, modules, what):
    result = ctx.execute(["pkg-config", what] + modules)
    if result.return_code != 0:
        fail("pkg-config {} {}: {}\nRun scripts/test or scripts/quickstart: they install what is missing.".format(
            what,
            " ".join(modules),
            result.stderr,
        ))
    return [flag for flag in result.stdout.strip().split(" ") if flag and flag not in _DROPPED]

def _target(name, defines, copts, linkopts):
    return """
cc_library(
    name = "{name}",
    defines = {defines},
    linkopts = {linkopts},
)
""".format(name = name, defines = defines, linkopts = linkopts)

def _impl(ctx):
    lines = ["load(\"@rules_cc//cc:defs.bzl\", \"cc_library\")\n\npackage(default_visibility = [\"//visibility:public\"])\n"]
    for name, modules in _MODULES.items():
        cflags = _pkg_config(ctx, modules, "--cflags")
        defines = [flag[2:] for flag in cflags if flag.startswith("-D")]
        lines.append(_target(name, defines, [], _pkg_config(ctx, modules, "--libs")))
    for name, (defines, linkopts) in _PLAIN.items():
        lines.append(_target(name, defines, [], linkopts))
    ctx.file("BUILD.bazel", "".join(lines))

system_libraries = repository_rule(
    implementation = _impl,
    local = True,
    environ = ["PKG_CONFIG_PATH"],
    doc = "One repository with a cc_library for each system library that forkd links.",
)
