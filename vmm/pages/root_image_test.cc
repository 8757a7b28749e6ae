#include "vmm/pages/root_image.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/page_set.h"

namespace forkd::vmm {
namespace {

constexpr int64_t kPages = 256;
constexpr int64_t kBytes = kPages * kPageBytes;

UniqueFd NewFile(const std::string& name) {
  return UniqueFd(::open(absl::StrCat(std::getenv("TEST_TMPDIR"), "/", name).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
}

void WritePage(int fd, int64_t page, char byte) {
  const std::string bytes(static_cast<std::size_t>(kPageBytes), byte);
  ASSERT_EQ(::pwrite(fd, bytes.data(), bytes.size(), page * kPageBytes), kPageBytes);
}

char FirstByteOf(int fd, int64_t page) {
  char byte = '?';
  EXPECT_EQ(::pread(fd, &byte, 1, page * kPageBytes), 1);
  return byte;
}

int64_t BlocksOf(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return info.st_blocks * 512;
}

TEST(RootImage, WrittenAndFilledAgainIsTheSameAndSparse) {
  const RootImage image = *RootImage::CreateBlocking("test", kBytes);
  WritePage(image.fd(), 3, 'a');
  WritePage(image.fd(), 4, '\0');  // zeroed by the guest: a hole in the file
  WritePage(image.fd(), 200, 'b');
  WritePage(image.fd(), kPages - 1, 'c');
  const UniqueFd file = NewFile("image");
  ASSERT_TRUE(image.WriteToFileBlocking(file.get()).ok());
  struct stat info {};
  ASSERT_EQ(::fstat(file.get(), &info), 0);
  EXPECT_EQ(info.st_size, kBytes);
  EXPECT_LE(BlocksOf(file.get()), 4 * kPageBytes) << "three pages of data";

  RootImage copy = *RootImage::CreateBlocking("copy", kBytes);
  ASSERT_TRUE(copy.FillFromFileBlocking(file.get()).ok());
  for (int64_t page = 0; page < kPages; ++page) { EXPECT_EQ(FirstByteOf(copy.fd(), page), FirstByteOf(image.fd(), page)) << page; }
  EXPECT_LE(BlocksOf(copy.fd()), 4 * kPageBytes);
}

TEST(RootImage, SealedNobodyCanWriteItAnyMore) {
  RootImage image = *RootImage::CreateBlocking("test", kBytes);
  WritePage(image.fd(), 0, 'a');
  const UniqueFd other(::open(absl::StrCat("/proc/self/fd/", image.fd()).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(other.valid());
  EXPECT_FALSE(image.IsSealed());
  ASSERT_TRUE(image.SealBlocking().ok());
  EXPECT_TRUE(image.IsSealed());
  EXPECT_TRUE(image.SealBlocking().ok()) << "again is no error";
  for (const int fd : {image.fd(), other.get()}) {
    EXPECT_EQ(::pwrite(fd, "x", 1, 0), -1);
    EXPECT_EQ(errno, EPERM);
    EXPECT_EQ(::ftruncate(fd, 0), -1);
    EXPECT_EQ(::ftruncate(fd, 2 * kBytes), -1);
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    void* copy = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    ASSERT_NE(copy, MAP_FAILED) << "which is what a child does";
    static_cast<char*>(copy)[0] = 'z';
    ::munmap(copy, 4096);
  }
  EXPECT_EQ(FirstByteOf(image.fd(), 0), 'a');
}

TEST(RootImage, CannotBeSealedWhileAParentRuns) {
  RootImage image = *RootImage::CreateBlocking("test", kBytes);
  void* parent = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, image.fd(), 0);
  ASSERT_NE(parent, MAP_FAILED);
  const absl::Status refused = image.SealBlocking();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  ::munmap(parent, kBytes);
  EXPECT_TRUE(image.SealBlocking().ok());
}

TEST(RootImage, RefusesAFileOfAnotherSize) {
  RootImage image = *RootImage::CreateBlocking("test", kBytes);
  const UniqueFd file = NewFile("short");
  ASSERT_EQ(::ftruncate(file.get(), kBytes - 1), 0);
  const absl::Status refused = image.FillFromFileBlocking(file.get());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(refused), "SNAPSHOT_DAMAGED");
}

TEST(RootImage, RefusesSizesThatAreNoPages) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-4096}, int64_t{4095}}) {
    EXPECT_EQ(RootImage::CreateBlocking("test", bytes).status().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
}

TEST(RootImage, TakesBackItsDescriptorAndNoOther) {
  const RootImage image = *RootImage::CreateBlocking("test", kBytes);
  const absl::StatusOr<RootImage> again = RootImage::FromFd(UniqueFd(::fcntl(image.fd(), F_DUPFD_CLOEXEC, 3)));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->inode(), image.inode());
  EXPECT_EQ(again->size_bytes(), kBytes);
  EXPECT_EQ(RootImage::FromFd(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RootImage::FromFd(UniqueFd()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RootImage, AFullDiskIsSaidToBeOne) {
  const RootImage image = *RootImage::CreateBlocking("test", kBytes);
  WritePage(image.fd(), 0, 'a');
  WritePage(image.fd(), 100, 'b');
  // A file size limit would raise a signal; a memfd that may not grow refuses as a full disk does not: EPERM. /dev/full does.
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  const absl::Status refused = image.WriteToFileBlocking(full.get());
  EXPECT_FALSE(refused.ok());
}

}  // namespace
}  // namespace forkd::vmm
