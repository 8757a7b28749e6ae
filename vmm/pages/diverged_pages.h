// Guest memory of a VMM process from outside: which pages of its private copy of a root image have diverged, their copy, and their injection.
// Needs ptrace rights over the process (the launcher's business). Blocking, any thread.
//
// Sources: Documentation/admin-guide/mm/pagemap.rst (bits 61 file page or shared, 62 swapped, 63 present; PAGEMAP_SCAN, Linux 6.7),
// proc(5) for /proc/PID/maps, process_vm_readv(2).
#ifndef FORKD_VMM_PAGES_DIVERGED_PAGES_H_
#define FORKD_VMM_PAGES_DIVERGED_PAGES_H_

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mapping.h"
#include "base/page_set.h"

namespace forkd::vmm {

// A part of a private, writable mapping of the root image.
struct RootMapping {
  uint64_t address = 0;  // in the VMM process
  uint64_t bytes = 0;
  uint64_t offset = 0;  // in the root image
  friend bool operator==(const RootMapping&, const RootMapping&) = default;
};

// Pure: out of the text of /proc/PID/maps, the private writable mappings of the memfd `inode`, in ascending order of their offsets. They must
// cover [0, size_bytes) exactly once, else FAILED_PRECONDITION (VMM_FAILED). Lines of another form: INTERNAL (SYSTEM_CALL).
absl::StatusOr<std::vector<RootMapping>> ParseRootMappings(absl::string_view maps, ino_t inode, int64_t size_bytes);

// Reads /proc/PID/maps.
absl::StatusOr<std::vector<RootMapping>> FindRootMappings(pid_t pid, ino_t inode, int64_t size_bytes);

// kAuto takes PAGEMAP_SCAN where the kernel has it.
enum class ScanMethod { kAuto, kPagemapScan, kReadPagemap };

// Ascending indexes of the pages in `mappings` that are the process's own. UNIMPLEMENTED if `method` is not to be had here.
absl::StatusOr<std::vector<PageIndex>> ScanDivergedPages(pid_t pid, const std::vector<RootMapping>& mappings, ScanMethod method = ScanMethod::kAuto);

// Copies those pages out of the process, into `buffer` if it is large enough, else into new memory.
absl::StatusOr<PageSet> CopyPages(pid_t pid, const std::vector<RootMapping>& mappings, std::vector<PageIndex> indexes, Mapping buffer = Mapping());

// Writes `pages` into the process. INVALID_ARGUMENT if one of them lies in none of the mappings; nothing is written then.
absl::Status InjectPages(pid_t pid, const std::vector<RootMapping>& mappings, const PageSet& pages);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_PAGES_DIVERGED_PAGES_H_
