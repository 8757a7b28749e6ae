#include "base/beneath.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace forkd {
namespace {

namespace fs = std::filesystem;

class BeneathTest : public ::testing::Test {
 protected:
  BeneathTest() {
    std::string dir = ::testing::TempDir() + "/beneath-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    top_ = dir;
    fs::create_directories(top_ + "/inside/sub");
    std::ofstream(top_ + "/outside") << "secret";
    std::ofstream(top_ + "/inside/sub/file") << "data";
    dir_.reset(::open((top_ + "/inside").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~BeneathTest() override { fs::remove_all(top_); }

  std::string top_;
  UniqueFd dir_;
};

TEST_F(BeneathTest, OpensWhatLiesBelow) {
  const absl::StatusOr<UniqueFd> fd = OpenBeneath(dir_.get(), "sub/file", O_RDONLY);
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(::fcntl(fd->get(), F_GETFD), FD_CLOEXEC);
  char bytes[4];
  ASSERT_TRUE(ReadAllBlocking(fd->get(), absl::MakeSpan(bytes), 0, "file").ok());
  EXPECT_EQ(absl::string_view(bytes, 4), "data");
  EXPECT_TRUE(absl::IsOutOfRange(ReadAllBlocking(fd->get(), absl::MakeSpan(bytes), 1, "file")));
}

TEST_F(BeneathTest, RefusesEveryWayOut) {
  fs::create_symlink("sub/file", top_ + "/inside/link");
  fs::create_directory_symlink(top_, top_ + "/inside/up");
  for (const char* path : {"../outside", "sub/../../outside", "link", "up/outside", "/etc/passwd"}) {
    const absl::Status status = OpenBeneath(dir_.get(), path, O_RDONLY).status();
    EXPECT_EQ(ReasonOf(status), "HOST_PATH_REFUSED") << path << ": " << status;
  }
  EXPECT_EQ(ReasonOf(OpenBeneath(dir_.get(), absl::string_view("sub/file\0x", 10), O_RDONLY).status()), "HOST_PATH_REFUSED");
  EXPECT_TRUE(absl::IsNotFound(OpenBeneath(dir_.get(), "none", O_RDONLY).status()));
}

TEST_F(BeneathTest, ListsNamesInOrder) {
  std::ofstream(top_ + "/inside/b") << "";
  std::ofstream(top_ + "/inside/.hidden") << "";
  EXPECT_EQ(*ListDirectoryBlocking(dir_.get()), (std::vector<std::string>{".hidden", "b", "sub"}));
  EXPECT_EQ(ListDirectoryBlocking(dir_.get())->size(), 3u);  // again: the position is not shared
}

TEST_F(BeneathTest, RemovesTreesAndFollowsNoLink) {
  fs::create_directory_symlink(top_, top_ + "/inside/sub/up");
  ASSERT_TRUE(RemoveTreeBlocking(dir_.get(), "sub").ok());
  EXPECT_FALSE(fs::exists(top_ + "/inside/sub"));
  EXPECT_TRUE(fs::exists(top_ + "/outside"));
  EXPECT_TRUE(RemoveTreeBlocking(dir_.get(), "sub").ok());
}

}  // namespace
}  // namespace forkd
