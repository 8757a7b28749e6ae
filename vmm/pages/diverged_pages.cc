#include "vmm/pages/diverged_pages.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/error.h"
#include "base/mapping.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace forkd::vmm {
namespace {

constexpr uint64_t kPage = static_cast<uint64_t>(kPageBytes);

// linux/fs.h since 6.7; Debian 12's headers are older than the kernels that it runs on.
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct PagemapScanArgument {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
constexpr unsigned long kPagemapScanIoctl = _IOWR('f', 16, PagemapScanArgument);
constexpr uint64_t kPageIsFile = 1 << 2;
constexpr uint64_t kPageIsPresent = 1 << 3;
constexpr uint64_t kPageIsSwapped = 1 << 4;

constexpr uint64_t kPagemapFile = 1ull << 61;
constexpr uint64_t kPagemapSwapped = 1ull << 62;
constexpr uint64_t kPagemapPresent = 1ull << 63;

// The text of a QEMU's maps is about 20 KiB; 16 MiB is past any process that is not broken (65,530 mappings by default).
constexpr std::size_t kMaxMapsBytes = 16 << 20;

absl::Status VmmFailed(absl::string_view message) { return Error(absl::StatusCode::kFailedPrecondition, Reason::kVmmFailed, message); }

struct MapsLine {
  uint64_t start;
  uint64_t end;
  absl::string_view permissions;
  uint64_t offset;
  uint64_t inode;
  absl::string_view path;
};

bool ParseMapsLine(absl::string_view line, MapsLine* out) {
  // "7f0000000000-7f0010000000 rw-p 00000000 00:01 1234   /memfd:forkd-x (deleted)"
  const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(' ', 5));
  if (fields.size() < 5) { return false; }
  const std::pair<absl::string_view, absl::string_view> range = absl::StrSplit(fields[0], absl::MaxSplits('-', 1));
  out->permissions = fields[1];
  out->path = fields.size() == 6 ? absl::StripLeadingAsciiWhitespace(fields[5]) : absl::string_view();
  return absl::SimpleHexAtoi(range.first, &out->start) && absl::SimpleHexAtoi(range.second, &out->end) && out->start < out->end &&
         out->permissions.size() == 4 && absl::SimpleHexAtoi(fields[2], &out->offset) && absl::SimpleAtoi(fields[4], &out->inode);
}

absl::StatusOr<std::string> ReadMaps(pid_t pid) {
  const UniqueFd fd(::open(absl::StrCat("/proc/", pid, "/maps").c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) { return VmmFailed(absl::StrCat("process ", pid, " has ended")); }
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof(buffer));
    if (got < 0) { return ErrnoError(errno, absl::StrCat("read /proc/", pid, "/maps")); }
    if (got == 0) { return text; }
    text.append(buffer, static_cast<std::size_t>(got));
    if (text.size() > kMaxMapsBytes) { return VmmFailed(absl::StrCat("process ", pid, " has an absurd number of mappings")); }
  }
}

void AppendPages(const RootMapping& mapping, uint64_t from, uint64_t to, std::vector<PageIndex>* indexes) {
  for (uint64_t address = from; address < to; address += kPage) { indexes->push_back((mapping.offset + (address - mapping.address)) / kPage); }
}

// False if this kernel has no PAGEMAP_SCAN.
absl::StatusOr<bool> ScanByIoctl(int pagemap, const RootMapping& mapping, std::vector<PageIndex>* indexes) {
  PageRegion regions[512];
  PagemapScanArgument argument{};
  argument.size = sizeof(argument);
  argument.start = mapping.address;
  argument.end = mapping.address + mapping.bytes;
  argument.vec = reinterpret_cast<uint64_t>(regions);
  argument.vec_len = std::size(regions);
  argument.category_inverted = kPageIsFile;
  argument.category_mask = kPageIsFile;
  argument.category_anyof_mask = kPageIsPresent | kPageIsSwapped;
  // Alike for all pages that match, so that neighbours come as one region.
  argument.return_mask = kPageIsFile;
  while (argument.start < argument.end) {
    const int count = ::ioctl(pagemap, kPagemapScanIoctl, &argument);
    if (count < 0) {
      if (errno == ENOTTY || errno == EINVAL) { return false; }
      if (errno == ESRCH) { return VmmFailed("the process has ended"); }
      return ErrnoError(errno, "scan a pagemap");
    }
    for (int i = 0; i < count; ++i) { AppendPages(mapping, regions[i].start, regions[i].end, indexes); }
    if (argument.walk_end <= argument.start) { return VmmFailed("the process has ended"); }
    argument.start = argument.walk_end;
  }
  return true;
}

absl::Status ScanByReading(int pagemap, const RootMapping& mapping, std::vector<PageIndex>* indexes) {
  std::vector<uint64_t> entries(8192);
  for (uint64_t done = 0; done < mapping.bytes;) {
    const uint64_t wanted = std::min<uint64_t>(entries.size(), (mapping.bytes - done) / kPage);
    const off_t at = static_cast<off_t>((mapping.address + done) / kPage * sizeof(uint64_t));
    const ssize_t got = ::pread(pagemap, entries.data(), wanted * sizeof(uint64_t), at);
    if (got < 0) { return ErrnoError(errno, "read a pagemap"); }
    const uint64_t count = static_cast<uint64_t>(got) / sizeof(uint64_t);
    if (count == 0) { return VmmFailed("the process has ended"); }
    for (uint64_t i = 0; i < count; ++i) {
      if ((entries[i] & (kPagemapPresent | kPagemapSwapped)) != 0 && (entries[i] & kPagemapFile) == 0) {
        indexes->push_back((mapping.offset + done) / kPage + i);
      }
    }
    done += count * kPage;
  }
  return absl::OkStatus();
}

// Runs of neighbouring pages, as addresses in the process. Pages are ascending, and so are the mappings' offsets.
absl::StatusOr<std::vector<iovec>> RemoteRuns(const std::vector<RootMapping>& mappings, absl::Span<const PageIndex> indexes) {
  std::vector<iovec> runs;
  auto mapping = mappings.begin();
  for (const PageIndex index : indexes) {
    while (mapping != mappings.end() && index >= (mapping->offset + mapping->bytes) / kPage) { ++mapping; }
    if (mapping == mappings.end() || index < mapping->offset / kPage) {
      return InvalidField("pages", absl::StrCat("page ", index, " lies beyond the guest's memory"));
    }
    char* address = reinterpret_cast<char*>(mapping->address + (index - mapping->offset / kPage) * kPage);
    if (!runs.empty() && static_cast<char*>(runs.back().iov_base) + runs.back().iov_len == address) {
      runs.back().iov_len += kPage;
    } else {
      runs.push_back({.iov_base = address, .iov_len = kPage});
    }
  }
  return runs;
}

using Transfer = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long, unsigned long);

absl::Status MoveRuns(Transfer transfer, pid_t pid, char* local, const std::vector<iovec>& runs) {
  for (std::size_t first = 0; first < runs.size();) {
    std::size_t bytes = 0;
    std::size_t count = 0;
    // One call moves at most IOV_MAX runs and (2^31 - 4096) bytes (read(2)); 1 GiB keeps well below.
    while (first + count < runs.size() && count < IOV_MAX && (count == 0 || bytes + runs[first + count].iov_len <= (1ull << 30))) {
      bytes += runs[first + count++].iov_len;
    }
    std::size_t moved = 0;
    // A run of more than the kernel's limit is moved in pieces.
    while (moved < bytes) {
      iovec remote[IOV_MAX];
      std::size_t remotes = 0;
      std::size_t skip = moved;
      for (std::size_t i = first; i < first + count; ++i) {
        if (skip >= runs[i].iov_len) {
          skip -= runs[i].iov_len;
          continue;
        }
        remote[remotes++] = {.iov_base = static_cast<char*>(runs[i].iov_base) + skip, .iov_len = runs[i].iov_len - skip};
        skip = 0;
      }
      const iovec ours{.iov_base = local + moved, .iov_len = bytes - moved};
      const ssize_t done = transfer(pid, &ours, 1, remote, remotes, 0);
      if (done < 0 && errno == ESRCH) { return VmmFailed(absl::StrCat("process ", pid, " has ended")); }
      if (done < 0) { return ErrnoError(errno, absl::StrCat("move guest pages of process ", pid)); }
      if (done == 0) { return VmmFailed(absl::StrCat("process ", pid, " has lost its guest memory")); }
      moved += static_cast<std::size_t>(done);
    }
    local += bytes;
    first += count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<RootMapping>> ParseRootMappings(absl::string_view maps, ino_t inode, int64_t size_bytes) {
  std::vector<RootMapping> found;
  for (const absl::string_view line : absl::StrSplit(maps, '\n', absl::SkipEmpty())) {
    MapsLine parsed{};
    if (!ParseMapsLine(line, &parsed)) {
      return Error(absl::StatusCode::kInternal, Reason::kSystemCall, absl::StrCat("a line of /proc/PID/maps has an unknown form: ", Quoted(line)));
    }
    // Inodes are unique within a file system alone; only a memfd has such a path.
    if (parsed.inode != inode || !absl::StartsWith(parsed.path, "/memfd:")) { continue; }
    if (parsed.permissions[1] != 'w' || parsed.permissions[3] != 'p') { continue; }
    found.push_back({.address = parsed.start, .bytes = parsed.end - parsed.start, .offset = parsed.offset});
  }
  std::sort(found.begin(), found.end(), [](const RootMapping& a, const RootMapping& b) { return a.offset < b.offset; });
  uint64_t covered = 0;
  for (const RootMapping& mapping : found) {
    if (mapping.offset != covered) { break; }
    covered += mapping.bytes;
  }
  if (found.empty() || covered != static_cast<uint64_t>(size_bytes) || found.back().offset + found.back().bytes != covered) {
    return VmmFailed(absl::StrCat("the process maps no private copy of the root image (", found.size(), " mappings, ", covered, " of ", size_bytes, " bytes)"));
  }
  return found;
}

absl::StatusOr<std::vector<RootMapping>> FindRootMappings(pid_t pid, ino_t inode, int64_t size_bytes) {
  FORKD_ASSIGN_OR_RETURN(const std::string maps, ReadMaps(pid));
  return ParseRootMappings(maps, inode, size_bytes);
}

absl::StatusOr<std::vector<PageIndex>> ScanDivergedPages(pid_t pid, const std::vector<RootMapping>& mappings, ScanMethod method) {
  const UniqueFd pagemap(::open(absl::StrCat("/proc/", pid, "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) {
    if (errno == ENOENT || errno == ESRCH) { return VmmFailed(absl::StrCat("process ", pid, " has ended")); }
    return ErrnoError(errno, absl::StrCat("open /proc/", pid, "/pagemap"));
  }
  std::vector<PageIndex> indexes;
  if (method != ScanMethod::kReadPagemap) {
    bool scanned = true;
    for (const RootMapping& mapping : mappings) {
      FORKD_ASSIGN_OR_RETURN(scanned, ScanByIoctl(pagemap.get(), mapping, &indexes));
      if (!scanned) { break; }
    }
    if (scanned) { return indexes; }
    if (method == ScanMethod::kPagemapScan) {
      return Error(absl::StatusCode::kUnimplemented, Reason::kHostMissing, "this kernel has no PAGEMAP_SCAN (Linux 6.7)");
    }
    indexes.clear();
  }
  for (const RootMapping& mapping : mappings) { FORKD_RETURN_IF_ERROR(ScanByReading(pagemap.get(), mapping, &indexes)); }
  return indexes;
}

absl::StatusOr<PageSet> CopyPages(pid_t pid, const std::vector<RootMapping>& mappings, std::vector<PageIndex> indexes, Mapping buffer) {
  FORKD_ASSIGN_OR_RETURN(const std::vector<iovec> runs, RemoteRuns(mappings, indexes));
  const std::size_t bytes = indexes.size() * kPage;
  if (buffer.size() < bytes) { FORKD_ASSIGN_OR_RETURN(buffer, Mapping::Anonymous(bytes, Mapping::Prefault::kYes)); }
  FORKD_RETURN_IF_ERROR(MoveRuns(::process_vm_readv, pid, buffer.data(), runs));
  buffer.ShrinkTo(bytes);
  return PageSet::Create(std::move(indexes), std::move(buffer));
}

absl::Status InjectPages(pid_t pid, const std::vector<RootMapping>& mappings, const PageSet& pages) {
  FORKD_ASSIGN_OR_RETURN(const std::vector<iovec> runs, RemoteRuns(mappings, pages.indexes()));
  // process_vm_writev only reads from the local side.
  return MoveRuns(::process_vm_writev, pid, const_cast<char*>(pages.bytes().data()), runs);
}

}  // namespace forkd::vmm
