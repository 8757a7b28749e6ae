#include "base/publish_dir.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "base/error.h"
#include "base/fault_point.h"
#include "base/unique_fd.h"

namespace forkd {
namespace {

namespace fs = std::filesystem;

class PublishDirTest : public ::testing::Test {
 protected:
  PublishDirTest() {
    std::string dir = ::testing::TempDir() + "/publish-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    top_ = dir;
    fs::create_directory(top_ + "/.staging");
    std::ofstream(top_ + "/.staging/file") << "data";
    parent_.reset(::open(top_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~PublishDirTest() override { fs::remove_all(top_); }
  std::string top_;
  UniqueFd parent_;
};

TEST_F(PublishDirTest, MovesTheFolderAndPassesItsFaultPointsInOrder) {
  std::vector<std::string> passed;
  const ScopedFaultHandlerForTest handler([&](absl::string_view name) {
    passed.emplace_back(name);
    return absl::OkStatus();
  });
  ASSERT_TRUE(PublishDirBlocking(parent_.get(), ".staging", "done").ok());
  EXPECT_TRUE(fs::exists(top_ + "/done/file"));
  EXPECT_FALSE(fs::exists(top_ + "/.staging"));
  EXPECT_EQ(passed, (std::vector<std::string>{"publish.before_sync", "publish.before_rename", "publish.after_rename"}));
}

TEST_F(PublishDirTest, DoesNotReplace) {
  fs::create_directory(top_ + "/done");
  EXPECT_EQ(PublishDirBlocking(parent_.get(), ".staging", "done").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::exists(top_ + "/.staging/file"));
  EXPECT_TRUE(fs::is_empty(top_ + "/done"));
}

TEST_F(PublishDirTest, ErrorBehindTheRenameTakesItBack) {
  const ScopedFaultHandlerForTest handler(
      [](absl::string_view name) { return name == "publish.after_rename" ? ErrnoError(EIO, "fsync") : absl::OkStatus(); });
  EXPECT_FALSE(PublishDirBlocking(parent_.get(), ".staging", "done").ok());
  EXPECT_TRUE(fs::exists(top_ + "/.staging/file"));
  EXPECT_FALSE(fs::exists(top_ + "/done"));
}

TEST_F(PublishDirTest, RefusesWhatIsNoRegularFile) {
  fs::create_symlink("/etc/passwd", top_ + "/.staging/link");
  EXPECT_FALSE(PublishDirBlocking(parent_.get(), ".staging", "done").ok());
  fs::remove(top_ + "/.staging/link");
  fs::create_directory(top_ + "/.staging/folder");
  EXPECT_FALSE(PublishDirBlocking(parent_.get(), ".staging", "done").ok());
  EXPECT_FALSE(fs::exists(top_ + "/done"));
}

}  // namespace
}  // namespace forkd
