#include "engine/file_signature.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace forkd::engine {

absl::StatusOr<std::string> FolderSignatureBlocking(const std::string& folder) {
  const UniqueFd dir(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!dir) { return ErrnoError(errno, absl::StrCat("open ", Quoted(folder))); }
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectoryBlocking(dir.get()));
  std::string signature;
  for (const std::string& name : names) {
    struct stat st {};
    if (fstatat(dir.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(name))); }
    absl::StrAppend(&signature, name, " ", st.st_ino, " ", st.st_size, " ", st.st_mtim.tv_sec, ".", st.st_mtim.tv_nsec, " ", st.st_ctim.tv_sec, ".",
                    st.st_ctim.tv_nsec, "\n");
  }
  return signature;
}

}  // namespace forkd::engine
