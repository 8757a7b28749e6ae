#include "vmm/qemu/run_sockets.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace forkd::vmm {
namespace {

std::string NewFolder(const std::string& name) {
  std::string path = absl::StrCat(std::getenv("TEST_TMPDIR"), "/", name);
  EXPECT_EQ(::mkdir(path.c_str(), 0700), 0);
  return path;
}

TEST(RunSockets, ListenConnectAndRemove) {
  const std::string dir = NewFolder(std::string(180, 'l'));  // longer than a socket address
  const absl::StatusOr<UniqueFd> listening = ListenInRunDir(dir, kAgentSocketName);
  ASSERT_TRUE(listening.ok()) << listening.status();
  struct stat info {};
  ASSERT_EQ(::stat(absl::StrCat(dir, "/", kAgentSocketName).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const absl::StatusOr<UniqueFd> client = ConnectInRunDir(dir, kAgentSocketName);
  ASSERT_TRUE(client.ok()) << client.status();
  const UniqueFd server(::accept(listening->get(), nullptr, nullptr));
  EXPECT_EQ(::send(client->get(), "x", 1, 0), 1);
  char byte = 0;
  EXPECT_EQ(::recv(server.get(), &byte, 1, 0), 1);
  RemoveRunSockets(dir);
  EXPECT_EQ(::rmdir(dir.c_str()), 0) << "nothing is left in it";
  RemoveRunSockets(dir);  // and again is no error
}

TEST(RunSockets, ALeftoverOfACrashIsReplaced) {
  const std::string dir = NewFolder("leftover");
  { const UniqueFd dead = *ListenInRunDir(dir, kQmpSocketName); }
  EXPECT_EQ(ConnectInRunDir(dir, kQmpSocketName).status().code(), absl::StatusCode::kUnavailable) << "nobody listens";
  const absl::StatusOr<UniqueFd> again = ListenInRunDir(dir, kQmpSocketName);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(ConnectInRunDir(dir, kQmpSocketName).ok());
}

TEST(RunSockets, AFolderThatIsNotThere) {
  EXPECT_EQ(ListenInRunDir("/no/such/folder", kQmpSocketName).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ConnectInRunDir("/no/such/folder", kQmpSocketName).status().code(), absl::StatusCode::kNotFound);
}

TEST(RunSockets, ConnectingNeverBlocks) {
  const std::string dir = NewFolder("busy");
  const UniqueFd listening = *ListenInRunDir(dir, kAgentSocketName);
  std::vector<UniqueFd> waiting;
  absl::Status refused;
  for (int i = 0; i < 50 && refused.ok(); ++i) {
    absl::StatusOr<UniqueFd> client = ConnectInRunDir(dir, kAgentSocketName);
    refused = client.status();
    if (client.ok()) { waiting.push_back(*std::move(client)); }
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << "too many wait";
}

}  // namespace
}  // namespace forkd::vmm
