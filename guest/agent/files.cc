#include "guest/agent/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "guest/agent/console.h"
#include "guest/agent/file_path.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;

// The contract's defaults (agent.proto).
constexpr uint64_t kDefaultWindowBytes = 256 * 1024;
constexpr uint64_t kMaxWindowBytes = 4 * 1024 * 1024;
constexpr uint32_t kMaxEntries = 10'000;
// Room for names and link targets in one frame, which carries 4 MiB at most.
constexpr std::size_t kMaxListingBytes = 3 * 1024 * 1024;
constexpr std::size_t kChunkBytes = 64 * 1024;
// Each level holds a descriptor open.
constexpr int kMaxRemoveDepth = 256;

class FileRead : public StreamHandler {
 public:
  explicit FileRead(Call call) : call_(call) {}

  void OnMessage(const std::string& payload) override {
    pb::ReadFileInput input;
    if (!input.ParseFromString(payload)) { return End({Code::kInvalidArgument, "malformed input message"}); }
    switch (input.kind_case()) {
      case pb::ReadFileInput::kStart:
        if (started_) { return End({Code::kInvalidArgument, "start came twice"}); }
        return Start(input.start());
      case pb::ReadFileInput::kWindowBytes:
        window_ = std::min<uint64_t>(window_ + input.window_bytes(), 1ull << 40);
        return Pump();
      case pb::ReadFileInput::kCancel: return End({Code::kCancelled, "cancelled"});
      default: return End({Code::kInvalidArgument, "empty input message"});
    }
  }
  void OnOrphaned() override { file_.reset(); }
  void OnWritable() override { Pump(); }

 private:
  void Start(const pb::ReadFileStart& start) {
    started_ = true;
    if (const Status status = CheckPath(start.path()); !status.ok()) { return End(status); }
    if (start.window_bytes() > kMaxWindowBytes) { return End({Code::kInvalidArgument, "window_bytes: more than 4 MiB"}); }
    if (start.window_bytes() > 0) { window_ = start.window_bytes(); }
    path_ = start.path();
    // Non-blocking: a pipe or a device must not hold up the agent before it can be looked at.
    file_ = OpenPath(path_, O_RDONLY | O_NONBLOCK | O_NOCTTY, start.no_symlinks());
    struct stat info {};
    if (!file_ || fstat(file_.get(), &info) != 0) { return End(FileError(errno, path_)); }
    if (!S_ISREG(info.st_mode)) { return End({Code::kFailedPrecondition, path_ + ": not a regular file"}); }
    offset_ = start.offset();
    left_ = start.limit_bytes() > 0 ? start.limit_bytes() : UINT64_MAX;
    if (offset_ > INT64_MAX) { return End({Code::kInvalidArgument, "offset: too large"}); }
    pb::ReadFileOutput output;
    Describe(path_, info, output.mutable_info());
    call_.Send(output);
    Pump();
  }

  void Pump() {
    static char buffer[kChunkBytes];
    while (file_ && !call_.Congested()) {
      const std::size_t want = static_cast<std::size_t>(std::min<uint64_t>({kChunkBytes, window_, left_}));
      if (left_ == 0) { return End({}); }
      if (want == 0) { return; }
      const ssize_t got = pread(file_.get(), buffer, want, static_cast<off_t>(offset_));
      if (got < 0 && errno == EINTR) { continue; }
      if (got < 0) { return End(FileError(errno, path_)); }
      if (got == 0) { return End({}); }
      offset_ += static_cast<uint64_t>(got);
      window_ -= static_cast<uint64_t>(got);
      left_ -= static_cast<uint64_t>(got);
      pb::ReadFileOutput output;
      output.set_data(buffer, static_cast<std::size_t>(got));
      call_.Send(output);
    }
  }

  void End(const Status& status) {
    file_.reset();
    call_.Finish(status);
  }

  Call call_;
  bool started_ = false;
  std::string path_;
  UniqueFd file_;
  uint64_t offset_ = 0;
  uint64_t left_ = 0;
  uint64_t window_ = kDefaultWindowBytes;
};

class FileWrite : public StreamHandler {
 public:
  explicit FileWrite(Call call) : call_(call) {}
  ~FileWrite() override { Drop(); }

  void OnMessage(const std::string& payload) override {
    pb::WriteFileInput input;
    if (!input.ParseFromString(payload)) { return End({Code::kInvalidArgument, "malformed input message"}); }
    if (input.kind_case() == pb::WriteFileInput::kStart) {
      if (started_) { return End({Code::kInvalidArgument, "start came twice"}); }
      return Start(input.start());
    }
    if (!file_) { return; }  // It has failed; the host does not know yet.
    switch (input.kind_case()) {
      case pb::WriteFileInput::kData: return Append(input.data());
      case pb::WriteFileInput::kCommit: return Commit();
      default: return End({Code::kCancelled, "cancelled"});
    }
  }
  void OnOrphaned() override { Drop(); }

 private:
  void Start(const pb::WriteFileStart& start) {
    started_ = true;
    start_ = start;
    if (const Status status = SplitPath(start.path(), &parts_); !status.ok()) { return End(status); }
    if (start.path().back() == '/') { return End({Code::kInvalidArgument, "path: names a folder"}); }
    if (start.has_mode() && start.mode() > 07777) { return End({Code::kInvalidArgument, "mode: more than 07777"}); }
    folder_ = start.create_parents() ? MakeFolders(parts_.folder, start.no_symlinks()) : OpenPath(parts_.folder, O_PATH | O_DIRECTORY, start.no_symlinks());
    if (!folder_) { return End(FileError(errno, parts_.folder)); }
    struct stat old {};
    const bool exists = fstatat(folder_.get(), parts_.name.c_str(), &old, AT_SYMLINK_NOFOLLOW) == 0;
    if (exists && start.exclusive()) { return End(FileError(EEXIST, start.path())); }
    if (exists && S_ISDIR(old.st_mode)) { return End(FileError(EISDIR, start.path())); }
    mode_ = start.has_mode() ? start.mode() : exists && S_ISREG(old.st_mode) ? old.st_mode & 07777 : 0644;
    uid_ = start.has_uid() ? start.uid() : exists ? old.st_uid : geteuid();
    gid_ = start.has_gid() ? start.gid() : exists ? old.st_gid : getegid();
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0) { random = reinterpret_cast<uintptr_t>(this); }
    char name[40];
    snprintf(name, sizeof name, ".forkd-%016llx.tmp", static_cast<unsigned long long>(random));
    file_ = UniqueFd(openat(folder_.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file_) { return End(FileError(errno, start.path())); }
    temporary_ = name;
  }

  void Append(const std::string& data) {
    std::size_t written = 0;
    while (written < data.size()) {
      const ssize_t put = write(file_.get(), data.data() + written, data.size() - written);
      if (put < 0 && errno == EINTR) { continue; }
      if (put < 0) { return End(FileError(errno, start_.path())); }
      written += static_cast<std::size_t>(put);
    }
    pb::WriteFileOutput output;
    output.set_window_bytes(static_cast<uint32_t>(written));
    call_.Send(output);
  }

  void Commit() {
    struct stat info {};
    // The owner first: changing it clears set-id bits. A file of somebody else's was never open to be read.
    if (fstat(file_.get(), &info) != 0 || ((info.st_uid != uid_ || info.st_gid != gid_) && fchown(file_.get(), uid_, gid_) != 0) ||
        fchmod(file_.get(), mode_) != 0) {
      return End(FileError(errno, start_.path()));
    }
    const unsigned flags = start_.exclusive() ? RENAME_NOREPLACE : 0;
    if (renameat2(folder_.get(), temporary_.c_str(), folder_.get(), parts_.name.c_str(), flags) != 0) { return End(FileError(errno, start_.path())); }
    temporary_.clear();
    pb::WriteFileOutput output;
    if (fstat(file_.get(), &info) == 0) { Describe(start_.path(), info, output.mutable_info()); }
    call_.Send(output);
    End({});
  }

  void Drop() {
    file_.reset();
    if (!temporary_.empty()) { unlinkat(folder_.get(), temporary_.c_str(), 0); }
    temporary_.clear();
    folder_.reset();
  }

  void End(const Status& status) {
    Drop();
    call_.Finish(status);
  }

  Call call_;
  bool started_ = false;
  pb::WriteFileStart start_;
  PathParts parts_;
  UniqueFd folder_;
  UniqueFd file_;
  std::string temporary_;
  mode_t mode_ = 0644;
  uid_t uid_ = 0;
  gid_t gid_ = 0;
};

// Removes what is in the open folder `folder`. 0 or errno.
int RemoveContents(int folder, dev_t device, int depth) {
  if (depth > kMaxRemoveDepth) { return ENAMETOOLONG; }
  const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* dir = copy < 0 ? nullptr : fdopendir(copy);
  if (dir == nullptr) {
    const int error = errno;
    UniqueFd closing(copy);
    return error;
  }
  int result = 0;
  while (const dirent* entry = readdir(dir)) {
    const char* name = entry->d_name;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) { continue; }
    if (unlinkat(folder, name, 0) == 0 || errno == ENOENT) { continue; }
    if (errno != EISDIR && errno != EPERM) {
      result = errno;
      break;
    }
    UniqueFd child(openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    struct stat info {};
    if (!child || fstat(child.get(), &info) != 0) {
      result = errno;
      break;
    }
    result = info.st_dev != device ? EBUSY : RemoveContents(child.get(), device, depth + 1);
    if (result == 0 && unlinkat(folder, name, AT_REMOVEDIR) != 0 && errno != ENOENT) { result = errno; }
    if (result != 0) { break; }
  }
  closedir(dir);
  return result;
}

}  // namespace

std::shared_ptr<StreamHandler> NewFileRead(Call call) { return std::make_shared<FileRead>(call); }
std::shared_ptr<StreamHandler> NewFileWrite(Call call) { return std::make_shared<FileWrite>(call); }

void ListDirectory(const pb::ListDirectoryRequest& request, Call call) {
  if (const Status status = CheckPath(request.path()); !status.ok()) { return call.Finish(status); }
  if (request.max_entries() > kMaxEntries) { return call.Finish({Code::kInvalidArgument, "max_entries: more than 10000"}); }
  UniqueFd folder = OpenPath(request.path(), O_RDONLY | O_DIRECTORY, request.no_symlinks());
  DIR* dir = folder ? fdopendir(folder.get()) : nullptr;
  if (dir == nullptr) { return call.Finish(FileError(errno, request.path())); }
  const int fd = folder.release();  // closedir closes it.
  const std::size_t limit = request.max_entries() > 0 ? request.max_entries() : kMaxEntries;
  // The first `limit` names, whatever the folder's size: a heap whose top is the last of them.
  std::vector<std::string> names;
  pb::ListDirectoryResponse response;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") { continue; }
    names.push_back(name);
    std::push_heap(names.begin(), names.end());
    if (names.size() > limit) {
      std::pop_heap(names.begin(), names.end());
      names.pop_back();
      response.set_truncated(true);
    }
  }
  std::sort_heap(names.begin(), names.end());
  std::size_t bytes = 0;
  for (const std::string& name : names) {
    struct stat info {};
    if (fstatat(fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) { continue; }  // Removed meanwhile.
    pb::FileInfo described;
    Describe(name, info, &described);
    if (S_ISLNK(info.st_mode)) { DescribeLink(fd, name, &described); }
    bytes += described.ByteSizeLong() + 8;
    if (bytes > kMaxListingBytes) {
      response.set_truncated(true);
      break;
    }
    *response.add_entries() = std::move(described);
  }
  closedir(dir);
  call.Reply(response);
}

void StatFile(const pb::StatFileRequest& request, Call call) {
  if (const Status status = CheckPath(request.path()); !status.ok()) { return call.Finish(status); }
  pb::StatFileResponse response;
  struct stat info {};
  if (request.path().find_first_not_of('/') == std::string::npos) {
    if (stat("/", &info) != 0) { return call.Finish(FileError(errno, request.path())); }
    Describe(request.path(), info, response.mutable_info());
    return call.Reply(response);
  }
  if (request.follow_symlink()) {
    const UniqueFd opened = OpenPath(request.path(), O_PATH, request.no_symlinks());
    if (!opened || fstat(opened.get(), &info) != 0) { return call.Finish(FileError(errno, request.path())); }
    Describe(request.path(), info, response.mutable_info());
    return call.Reply(response);
  }
  // The folder alone is resolved, so that a symlink as the last part is seen and not refused.
  PathParts parts;
  if (const Status status = SplitPath(request.path(), &parts); !status.ok()) { return call.Finish(status); }
  const UniqueFd folder = OpenPath(parts.folder, O_PATH | O_DIRECTORY, request.no_symlinks());
  if (!folder || fstatat(folder.get(), parts.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) { return call.Finish(FileError(errno, request.path())); }
  Describe(request.path(), info, response.mutable_info());
  if (S_ISLNK(info.st_mode)) { DescribeLink(folder.get(), parts.name, response.mutable_info()); }
  call.Reply(response);
}

void RemoveFile(const pb::RemoveFileRequest& request, Call call) {
  PathParts parts;
  if (const Status status = SplitPath(request.path(), &parts); !status.ok()) { return call.Finish(status); }
  const auto end = [&](int error) {
    if (error == 0 || (error == ENOENT && request.missing_ok())) {
      call.Reply(pb::RemoveFileResponse());
    } else if (error == ENOTEMPTY || error == EEXIST) {
      call.Finish({Code::kFailedPrecondition, request.path() + ": not empty"});
    } else {
      call.Finish(FileError(error, request.path()));
    }
  };
  const UniqueFd folder = OpenPath(parts.folder, O_PATH | O_DIRECTORY, request.no_symlinks());
  if (!folder) { return end(errno); }
  struct stat info {};
  if (fstatat(folder.get(), parts.name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) { return end(errno); }
  if (!S_ISDIR(info.st_mode)) { return end(unlinkat(folder.get(), parts.name.c_str(), 0) == 0 ? 0 : errno); }
  if (request.recursive()) {
    const UniqueFd inside(openat(folder.get(), parts.name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!inside) { return end(errno); }
    if (const int error = RemoveContents(inside.get(), info.st_dev, 0); error != 0) { return end(error); }
  }
  end(unlinkat(folder.get(), parts.name.c_str(), AT_REMOVEDIR) == 0 ? 0 : errno);
}

}  // namespace forkd::agent
