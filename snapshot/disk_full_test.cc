// The store on a file system that fills up: a tmpfs of its own.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "base/beneath.h"
#include "base/error.h"
#include "base/testing/tiny_disk.h"
#include "snapshot/store.h"
#include "snapshot/testing/sample_manifest.h"
#include "snapshot/testing/sample_pages.h"

namespace forkd::snapshot {
namespace {

constexpr std::uint64_t kRootBytes = 4096 * kPageBytes;

class DiskFullTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!disk_.mounted()) { GTEST_SKIP() << "may not mount a tmpfs"; }
    const UniqueFd state(::open(disk_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    store_ = *SnapshotStore::OpenBlocking(state.get());
    memory_.reset(::memfd_create("disk-full-test", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(memory_.get(), kRootBytes), 0);
  }
  absl::StatusOr<Manifest> WriteRoot(const char* tag) {
    absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(*SnapshotTag::Parse(tag));
    if (!staged.ok()) { return staged.status(); }
    if (absl::Status s = staged->WriteDeviceStateBlocking("state"); !s.ok()) { return s; }
    if (absl::Status s = staged->WriteMemoryBlocking(memory_.get(), kRootBytes); !s.ok()) { return s; }
    return staged->PublishBlocking(UnpublishedRootForTest());
  }
  bool Empty() const { return std::filesystem::is_empty(disk_.path() + "/snapshots"); }

  TinyDisk disk_{"1m"};
  std::unique_ptr<SnapshotStore> store_;
  UniqueFd memory_;
};

void ExpectDiskFull(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(ReasonOf(status), "DISK_FULL") << status;
}

TEST_F(DiskFullTest, RootThatDoesNotFitLeavesNothing) {
  ASSERT_TRUE(WriteAllBlocking(memory_.get(), std::string(2 << 20, 'x'), 0, "memory").ok());
  ExpectDiskFull(WriteRoot("big").status());
  EXPECT_TRUE(Empty());
  // Sparse memory of the same size fits.
  memory_.reset(::memfd_create("disk-full-test", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memory_.get(), kRootBytes), 0);
  EXPECT_TRUE(WriteRoot("small").ok());
}

TEST_F(DiskFullTest, BranchThatDoesNotFitLeavesNothingAndTheRestAsItWas) {
  const absl::StatusOr<Manifest> root = WriteRoot("root");
  ASSERT_TRUE(root.ok()) << root.status();
  std::vector<std::pair<PageIndex, char>> pages;
  for (PageIndex i = 0; i < 400; ++i) { pages.emplace_back(i, 'x'); }
  {
    absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(*SnapshotTag::Parse("leaf"));
    ASSERT_TRUE(staged->WriteDeviceStateBlocking("state").ok());
    ExpectDiskFull(staged->WritePagesBlocking(PagesForTest(pages), kRootBytes));
  }
  EXPECT_EQ(store_->ListBlocking()->size(), 1u);
  EXPECT_TRUE(store_->VerifyBlocking(*SnapshotTag::Parse("root")).ok());
  // The space is free again.
  absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(*SnapshotTag::Parse("leaf"));
  ASSERT_TRUE(staged->WriteDeviceStateBlocking("state").ok());
  pages.resize(100);
  ASSERT_TRUE(staged->WritePagesBlocking(PagesForTest(pages), kRootBytes).ok());
  EXPECT_TRUE(staged->PublishBlocking(UnpublishedBranchForTest(*root)).ok());
}

TEST_F(DiskFullTest, ManifestThatDoesNotFitLeavesNothing) {
  // Fill all but a little: the folder and the device state fit, the rest does not.
  const std::string filler = disk_.path() + "/filler";
  UniqueFd fd(::open(filler.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  std::uint64_t at = 0;
  while (WriteAllBlocking(fd.get(), std::string(4096, 'x'), at, "filler").ok()) { at += 4096; }
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(at - 4096)), 0);
  ExpectDiskFull(WriteRoot("t").status());
  EXPECT_TRUE(Empty());
  std::filesystem::remove(filler);
  fd.reset();
  EXPECT_TRUE(WriteRoot("t").ok());
}

}  // namespace
}  // namespace forkd::snapshot
