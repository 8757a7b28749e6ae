"""Generated protobuf and gRPC code, by Debian's protoc and plugins."""

load("@rules_cc//cc:defs.bzl", "cc_library")

_GOOGLEAPIS = "/usr/share/gocode/src/github.com/grpc-ecosystem/grpc-gateway/third_party/googleapis"

def forkd_proto(name, srcs, deps = [], grpc = False, lite = False, visibility = None, descriptor_set = False):
    """A cc_library of the generated code of `srcs`, whose headers are included by their path from the repository's root.

    Args:
      name: the library's name.
      srcs: .proto files of this package.
      deps: other forkd_proto targets whose files these import.
      grpc: also generate the services.
      lite: link the lite runtime (the files must say `option optimize_for = LITE_RUNTIME`).
      visibility: as usual.
      descriptor_set: also write NAME.binpb, a FileDescriptorSet with imports and comments.
    """
    outs = []
    for src in srcs:
        base = src[:-len(".proto")]
        outs += [base + ".pb.h", base + ".pb.cc"]
        if grpc:
            outs += [base + ".grpc.pb.h", base + ".grpc.pb.cc"]
    plugin = "--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin --grpc_out=$(GENDIR)" if grpc else ""
    dep_srcs = [dep + "_protos" for dep in deps]
    native.filegroup(
        name = name + "_protos",
        srcs = srcs + dep_srcs,
        visibility = ["//visibility:public"],
    )
    native.genrule(
        name = name + "_gen",
        srcs = srcs + dep_srcs,
        outs = outs,
        cmd = "protoc -I. -I/usr/include -I{googleapis} --cpp_out=$(GENDIR) {plugin} {files}".format(
            googleapis = _GOOGLEAPIS,
            plugin = plugin,
            files = " ".join(["$(location %s)" % s for s in srcs]),
        ),
        message = "Generating protobuf code",
    )
    if descriptor_set:
        native.genrule(
            name = name + "_descriptor_set",
            srcs = srcs + dep_srcs,
            outs = [name + ".binpb"],
            cmd = ("protoc -I. -I/usr/include -I{googleapis} --include_imports --include_source_info " +
                   "--descriptor_set_out=$@ {files}").format(
                googleapis = _GOOGLEAPIS,
                files = " ".join(["$(location %s)" % s for s in srcs]),
            ),
            visibility = visibility,
        )
    cc_library(
        name = name,
        srcs = [o for o in outs if o.endswith(".cc")],
        hdrs = [o for o in outs if o.endswith(".h")],
        copts = ["-w"],
        deps = deps + (["@system//:grpc++"] if grpc else []) + ["@system//:protobuf_lite" if lite else "@system//:protobuf"],
        visibility = visibility,
    )

def googleapis_proto(name, paths, root = _GOOGLEAPIS, deps = [], visibility = None):
    """A cc_library of the generated code of googleapis files (Apache-2.0) that come with a Debian package.

    Args:
      name: the library's name.
      paths: the files, relative to `root`.
      root: the folder that the package puts them in; by default that of grpc-gateway, which has google/api.
      deps: as usual.
      visibility: as usual.
    """
    outs = []
    for path in paths:
        outs += [path[:-len(".proto")] + ".pb.h", path[:-len(".proto")] + ".pb.cc"]
    native.filegroup(
        name = name + "_protos",
        srcs = [],
        visibility = ["//visibility:public"],
    )
    native.genrule(
        name = name + "_gen",
        outs = outs,
        cmd = "protoc -I/usr/include -I{googleapis} --cpp_out=$(RULEDIR) {paths}".format(
            googleapis = root,
            paths = " ".join(["%s/%s" % (root, p) for p in paths]),
        ),
    )
    cc_library(
        name = name,
        srcs = [o for o in outs if o.endswith(".cc")],
        hdrs = [o for o in outs if o.endswith(".h")],
        includes = ["."],
        copts = ["-w"],
        deps = deps + ["@system//:protobuf"],
        visibility = visibility,
    )
