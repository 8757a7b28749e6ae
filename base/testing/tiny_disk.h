// A file system that fills up: a tmpfs of its own, for tests of full disks. Needs root.
#ifndef FORKD_BASE_TESTING_TINY_DISK_H_
#define FORKD_BASE_TESTING_TINY_DISK_H_

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include <string>

namespace forkd {

// Mounted for as long as it lives; unmounted whatever the test's outcome.
class TinyDisk {
 public:
  // `size` as tmpfs has it: "1m".
  explicit TinyDisk(const std::string& size) {
    std::string dir = ::testing::TempDir() + "/tiny-disk-XXXXXX";
    if (::mkdtemp(dir.data()) == nullptr) { return; }
    path_ = dir;
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, ("mode=0700,size=" + size).c_str()) == 0;
  }
  ~TinyDisk() {
    // Detached: a test that failed may still have files open.
    if (mounted_) { ::umount2(path_.c_str(), MNT_DETACH); }
    if (!path_.empty()) { ::rmdir(path_.c_str()); }
  }
  TinyDisk(const TinyDisk&) = delete;
  TinyDisk& operator=(const TinyDisk&) = delete;

  // False where the caller may not mount: skip the test by name.
  bool mounted() const { return mounted_; }
  const std::string& path() const { return path_; }
  // Files stay.
  bool Resize(const std::string& size) {
    return ::mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV, ("size=" + size).c_str()) == 0;
  }

 private:
  std::string path_;
  bool mounted_ = false;
};

}  // namespace forkd

#endif  // FORKD_BASE_TESTING_TINY_DISK_H_
