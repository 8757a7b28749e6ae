# shellcheck shell=bash
# Bazel and the guest images, as scripts/test and scripts/quickstart use them. Sourced; FORKD_ROOT is the repository's folder.

# Options before the command, such as --output_base=DIR.
read -r -a _forkd_bazel_startup <<<"${FORKD_BAZEL_STARTUP_OPTIONS:-}"

forkd_bazel() {
  (cd "$FORKD_ROOT" && bazel "${_forkd_bazel_startup[@]}" "$@")
}

# Folder for what is kept between runs and between clones.
forkd_cache_dir() {
  echo "${XDG_CACHE_HOME:-/var/cache}/forkd"
}

# Flags shared by build and test: a cache of compiled objects that a second clone uses too. Bazel does not see the system's headers, so the
# folder's name has a hash of every package's version, and the caches of other versions are deleted.
forkd_bazel_flags() {
  local versions folder other
  versions=$(dpkg-query --show --showformat='${Package}=${Version}\n' | sha256sum | cut -c1-16)
  folder="$(forkd_cache_dir)/bazel-$versions"
  mkdir -p "$folder"
  for other in "$(forkd_cache_dir)"/bazel-*; do
    [[ "$other" == "$folder" ]] || rm -rf "$other"
  done
  # Bazel 4 never deletes from it: started anew when it has grown beyond what twenty builds of everything need.
  if (($(du -sm "$folder" | cut -f1) > 8192)); then
    rm -rf "$folder"
    mkdir -p "$folder"
  fi
  echo "--disk_cache=$folder"
}

# The images in a folder of this clone: prints its path.
forkd_image_dir() {
  echo "$(forkd_bazel info output_base 2>/dev/null)/forkd-images"
}

# Builds the named images, or all, with the agent that Bazel built.
forkd_build_images() {
  local out=$1
  shift
  "$FORKD_ROOT/guest/image/build" --agent "$(forkd_bazel info bazel-bin 2>/dev/null)/guest/agent/forkd-agent" \
    --out "$out" --cache "$(forkd_cache_dir)/images" "$@"
}
