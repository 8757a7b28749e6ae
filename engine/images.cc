#include "engine/images.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/ids.h"
#include "base/sha256.h"
#include "base/status_macros.h"

namespace forkd::engine {
namespace {

// image.json lists a few hundred packages: some 20 KiB.
constexpr int64_t kMaxImageRecordBytes = 1024 * 1024;
constexpr int kSupportedFormat = 1;
constexpr std::size_t kMaxDigests = 256;

absl::StatusOr<UniqueFd> OpenRoot(const std::string& root) {
  UniqueFd fd(::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd) { return ErrnoError(errno, absl::StrCat("open the image folder ", Quoted(root))); }
  return fd;
}

std::string TextOf(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t NumberOf(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

absl::Status Refused(absl::string_view path, absl::string_view why) {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostPathRefused, absl::StrCat(Quoted(path), " ", why)).Resource("file", path);
}

absl::StatusOr<nlohmann::json> ReadRecord(int root_fd, absl::string_view name) {
  FORKD_ASSIGN_OR_RETURN(UniqueFd fd, OpenBeneath(root_fd, absl::StrCat(name, "/image.json"), O_RDONLY));
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) { return ErrnoError(errno, "stat image.json"); }
  if (st.st_size > kMaxImageRecordBytes) { return Refused("image.json", absl::StrCat("has ", st.st_size, " bytes: not an image record")); }
  std::string text(static_cast<std::size_t>(st.st_size), '\0');
  FORKD_RETURN_IF_ERROR(ReadAllBlocking(fd.get(), absl::MakeSpan(text), 0, "image.json"));
  nlohmann::json record = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || NumberOf(record, "format") != kSupportedFormat) {
    return Refused(absl::StrCat(name, "/image.json"), "is not an image record of format 1: build the image again");
  }
  return record;
}

}  // namespace

GuestImages::GuestImages(std::string root) : root_(std::move(root)) {}

absl::StatusOr<std::string> GuestImages::DigestOf(int fd, absl::string_view path) {
  struct stat st {};
  if (fstat(fd, &st) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(path))); }
  const Signature signature(st.st_dev, st.st_ino, st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec, st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
  {
    absl::MutexLock lock(&mutex_);
    if (const auto it = digests_.find(signature); it != digests_.end()) { return it->second; }
  }
  Sha256 sha;
  std::string buffer(1024 * 1024, '\0');
  for (int64_t offset = 0; offset < st.st_size;) {
    const ssize_t got = pread(fd, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) { continue; }
    if (got < 0) { return ErrnoError(errno, absl::StrCat("read ", Quoted(path))); }
    if (got == 0) { return Refused(path, "became shorter while it was read"); }
    sha.Update(absl::string_view(buffer.data(), static_cast<std::size_t>(got)));
    offset += got;
  }
  std::string digest = ToHex(sha.Finish());
  absl::MutexLock lock(&mutex_);
  if (digests_.size() >= kMaxDigests) { digests_.clear(); }
  digests_[signature] = digest;
  return digest;
}

absl::StatusOr<HostFile> GuestImages::OpenFile(absl::string_view path) {
  if (path.find('\0') != absl::string_view::npos) { return Refused(path, "has a NUL byte in its name"); }
  std::string below(path);
  if (absl::StartsWith(path, "/")) {
    if (!absl::StartsWith(path, absl::StrCat(root_, "/"))) {
      return Refused(path, absl::StrCat("is not below the image folder ", Quoted(root_), ": copy it there, or start the daemon with --image-root"));
    }
    below = std::string(path.substr(root_.size() + 1));
  }
  FORKD_ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(root_));
  // O_NONBLOCK: a FIFO must not hold us at open.
  FORKD_ASSIGN_OR_RETURN(UniqueFd fd, OpenBeneath(root.get(), below, O_RDONLY | O_NONBLOCK));
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(path))); }
  if (!S_ISREG(st.st_mode)) { return Refused(path, "is not a regular file"); }
  if (st.st_uid != 0) { return Refused(path, absl::StrCat("belongs to uid ", st.st_uid, ", not to root: chown it")); }
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0) { return Refused(path, "can be written by others than its owner: chmod go-w it"); }
  HostFile file;
  file.path = absl::StrCat(root_, "/", below);
  file.size_bytes = st.st_size;
  FORKD_ASSIGN_OR_RETURN(file.sha256, DigestOf(fd.get(), path));
  file.fd = std::move(fd);
  return file;
}

absl::StatusOr<GuestImage> GuestImages::OpenBlocking(absl::string_view name) {
  FORKD_RETURN_IF_ERROR(SnapshotTag::Parse(name, "image").status());
  absl::StatusOr<UniqueFd> root = OpenRoot(root_);
  absl::StatusOr<nlohmann::json> record = root.ok() ? ReadRecord(root->get(), name) : root.status();
  if (absl::IsNotFound(record.status())) {
    std::vector<std::string> known;
    for (const ImageSummary& image : ListBlocking()) { known.push_back(image.name); }
    return Error(absl::StatusCode::kNotFound, Reason::kImageUnknown,
                 absl::StrCat("image ", Quoted(name), " is not in ", Quoted(root_), " (there: ", known.empty() ? "none" : absl::StrJoin(known, ", "),
                              "); build it with guest/image/build --out ", root_))
        .Resource("image", name)
        .Field("image", "unknown");
  }
  if (!record.ok()) { return record.status(); }
  GuestImage image;
  image.name = std::string(name);
  image.hash = TextOf(*record, "hash");
  image.kernel_args = TextOf(*record, "kernel_args");
  image.warm_up = TextOf(*record, "warm_up");
  image.has_runner = record->contains("runner") && !(*record)["runner"].empty();
  image.memory_mib = NumberOf(*record, "memory_mib");
  const std::pair<const char*, HostFile*> files[] = {{"kernel", &image.kernel}, {"initrd", &image.initrd}, {"rootfs.squashfs", &image.rootfs}};
  for (const auto& [file_name, file] : files) {
    FORKD_ASSIGN_OR_RETURN(*file, OpenFile(absl::StrCat(name, "/", file_name)));
    const nlohmann::json& entry = record->contains("files") ? (*record)["files"] : nlohmann::json::object();
    const std::string expected = entry.contains(file_name) ? TextOf(entry[file_name], "sha256") : std::string();
    if (file->sha256 != expected) {
      return Refused(absl::StrCat(name, "/", file_name), "is not the file that image.json describes: build the image again");
    }
  }
  return image;
}

absl::StatusOr<GuestImage> GuestImages::OpenHostFilesBlocking(absl::string_view kernel, absl::string_view rootfs) {
  GuestImage image;
  const std::tuple<const char*, absl::string_view, HostFile*> files[] = {{"kernel", kernel, &image.kernel}, {"rootfs", rootfs, &image.rootfs}};
  for (const auto& [field, path, file] : files) {
    absl::StatusOr<HostFile> opened = OpenFile(path);
    if (!opened.ok()) {
      if (absl::IsNotFound(opened.status())) { return InvalidField(field, absl::StrCat(field, " not found: ", Quoted(path))); }
      return Error(absl::StatusCode::kInvalidArgument, Reason::kHostPathRefused, absl::StrCat(field, ": ", opened.status().message()))
          .Meta("field", field)
          .Field(field, opened.status().message());
    }
    *file = *std::move(opened);
  }
  absl::StatusOr<GuestImage> base = OpenBlocking("base");
  if (!base.ok()) { return Annotate(base.status(), "the agent's initramfs comes from the image \"base\""); }
  image.initrd = std::move(base->initrd);
  image.kernel_args = std::move(base->kernel_args);
  return image;
}

absl::StatusOr<HostFile> GuestImages::ReopenBlocking(absl::string_view path, absl::string_view sha256) {
  absl::StatusOr<HostFile> file = OpenFile(path);
  std::string why;
  if (!file.ok()) {
    why = std::string(file.status().message());
  } else if (file->sha256 != sha256) {
    why = "its content has changed since the snapshot was taken";
  } else {
    return file;
  }
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotDamaged, absl::StrCat("root file system ", Quoted(path), ": ", why)).Meta("file", path);
}

std::vector<ImageSummary> GuestImages::ListBlocking() {
  std::vector<ImageSummary> images;
  const UniqueFd root(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root) { return images; }
  const absl::StatusOr<std::vector<std::string>> names = ListDirectoryBlocking(root.get());
  if (!names.ok()) { return images; }
  for (const std::string& name : *names) {
    if (!SnapshotTag::Parse(name).ok()) { continue; }
    absl::StatusOr<nlohmann::json> record = ReadRecord(root.get(), name);
    if (!record.ok()) { continue; }
    ImageSummary summary;
    summary.name = name;
    summary.hash = TextOf(*record, "hash");
    if (record->contains("files") && (*record)["files"].is_object()) {
      for (const auto& [file, entry] : (*record)["files"].items()) { summary.size_bytes += entry.is_object() ? NumberOf(entry, "size") : 0; }
    }
    images.push_back(std::move(summary));
  }
  return images;
}

}  // namespace forkd::engine
