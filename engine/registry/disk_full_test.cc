// The registry on a file system that fills up: a tmpfs of its own.
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"
#include "base/error.h"
#include "base/testing/tiny_disk.h"
#include "engine/registry/registry.h"

namespace forkd::engine {
namespace {

SnapshotTag Tag(absl::string_view text) { return *SnapshotTag::Parse(text); }

TEST(RegistryDiskFullTest, FullDiskRefusesNewRowsLosesNoneAndHealsWhenThereIsRoom) {
  TinyDisk disk("1m");
  if (!disk.mounted()) { GTEST_SKIP() << "may not mount a tmpfs"; }
  const std::unique_ptr<Registry> registry = *Registry::OpenBlocking(disk.path());
  const SnapshotRow root(Tag("py"), Tag("py"));
  ASSERT_TRUE(registry->InsertSnapshotBlocking(root).ok());
  ASSERT_TRUE(registry->MarkSnapshotReadyBlocking(root, std::nullopt).ok());
  std::size_t written = 0;
  absl::Status status;
  while (status.ok() && written < 10000) {
    SandboxRow row(*SandboxId::Parse(absl::StrFormat("sb-6a60c2f1-%08x", written)), Tag("py"), Tag("py"));
    row.failure = std::string(2000, 'x');
    status = registry->InsertSandboxesBlocking({row});
    if (status.ok()) { ++written; }
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(ReasonOf(status), "DISK_FULL") << status;
  const absl::StatusOr<std::vector<SandboxRow>> rows = registry->ListSandboxesBlocking();
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->size(), written);
  ASSERT_TRUE(disk.Resize("4m"));
  EXPECT_TRUE(registry->InsertSandboxesBlocking({SandboxRow(*SandboxId::Parse("sb-6a60c2f1-ffff"), Tag("py"), Tag("py"))}).ok());
  EXPECT_EQ(registry->ListSandboxesBlocking()->size(), written + 1);
}

}  // namespace
}  // namespace forkd::engine
