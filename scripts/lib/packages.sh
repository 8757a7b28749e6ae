# shellcheck shell=bash
# The one list of Debian packages that forkd is built, tested and run with, and the function that installs what is missing. Sourced.

FORKD_PACKAGES=(
  # Build: Bazel with the rules that Debian ships, and one compiler. binutils: `strip` for the agent.
  bazel-bootstrap bazel-platforms bazel-rules-cc bazel-rules-java bazel-rules-proto bazel-skylib
  binutils clang-19 libclang-rt-19-dev libc6-dev libstdc++-12-dev lld-19 pkg-config
  # The contract: protoc, its gRPC plugins, google/api/*.proto (gateway) and google/rpc/*.proto (gogo).
  golang-github-gogo-googleapis-dev golang-github-grpc-ecosystem-grpc-gateway-dev
  libprotobuf-dev libprotoc-dev protobuf-compiler protobuf-compiler-grpc
  # Libraries.
  libabsl-dev libboost1.81-dev libcap-dev libcli11-dev libgrpc++-dev libseccomp-dev libspdlog-dev libsqlite3-dev libssl-dev
  nlohmann-json3-dev
  # Tests and benchmarks; python3-grpcio and python3-protobuf: a gRPC client that is not ours.
  libbenchmark-dev libgmock-dev libgtest-dev python3-grpcio python3-protobuf
  # At run time: the VMM, and what builds guest images.
  ca-certificates debian-archive-keyring mmdebstrap python3 qemu-system-x86 squashfs-tools
)

# Prints those of FORKD_PACKAGES that are not installed.
forkd_missing_packages() {
  local package
  for package in "${FORKD_PACKAGES[@]}"; do
    if [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]]; then
      echo "$package"
    fi
  done
}

# Installs what is missing, says what, and leaves the rest alone. Needs root only if something is missing. Uses `step` from steps.sh.
forkd_install_packages() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "forkd is built with Debian 12's packages, and this machine has no apt-get." >&2
    return 1
  fi
  local missing
  mapfile -t missing < <(forkd_missing_packages)
  if ((${#missing[@]} == 0)); then
    return 0
  fi
  echo "Missing Debian packages: ${missing[*]}"
  if ((EUID != 0)); then
    echo "Installing them needs root: run this as root, or install them first: apt-get install ${missing[*]}" >&2
    return 1
  fi
  # A source that cannot be reached need not be the one that matters: the installation decides.
  step "apt-get update" env DEBIAN_FRONTEND=noninteractive apt-get update -q ||
    echo "apt-get update had errors; going on with the package lists that are there." >&2
  if ! step "apt-get install, ${#missing[@]} packages" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}"; then
    echo "The packages could not be installed. Is a Debian 12 mirror reachable, and has /etc/apt/sources.list bookworm, its updates and security?" >&2
    return 1
  fi
}
