#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "guest/agent/testing/agent_fixture.h"

namespace forkd::guest {
namespace {

namespace fs = std::filesystem;

Task<absl::StatusOr<std::string>> ReadAll(std::shared_ptr<AgentClient> client, agentpb::ReadFileStart start) {
  absl::StatusOr<std::shared_ptr<FileReader>> reader = co_await client->ReadFile(std::move(start), Soon());
  if (!reader.ok()) { co_return reader.status(); }
  std::string all;
  while (true) {
    absl::StatusOr<std::string> piece = co_await (*reader)->Next(Soon());
    if (!piece.ok()) { co_return piece.status(); }
    if (piece->empty()) { co_return all; }
    all += *piece;
  }
}

Task<absl::StatusOr<agentpb::FileInfo>> WriteAll(std::shared_ptr<AgentClient> client, agentpb::WriteFileStart start, std::string data) {
  absl::StatusOr<std::shared_ptr<FileWriter>> writer = co_await client->WriteFile(std::move(start), Soon());
  if (!writer.ok()) { co_return writer.status(); }
  const absl::Status written = co_await (*writer)->Write(std::move(data), Soon());
  if (!written.ok()) { co_return written; }
  co_return co_await (*writer)->Commit(Soon());
}

// Writes without a commit.
Task<void> WriteAndDrop(std::shared_ptr<AgentClient> client, agentpb::WriteFileStart start, std::string data) {
  absl::StatusOr<std::shared_ptr<FileWriter>> writer = co_await client->WriteFile(std::move(start), Soon());
  EXPECT_TRUE(writer.ok());
  EXPECT_TRUE((co_await (*writer)->Write(std::move(data), Soon())).ok());
}

class AgentFilesTest : public AgentTest {
 protected:
  void SetUp() override {
    StartAgent("");
    folder_ = agent_->folder() + "/files";
    fs::create_directory(folder_);
  }
  absl::StatusOr<std::string> Read(const std::string& path) {
    agentpb::ReadFileStart start;
    start.set_path(path);
    return Run(ReadAll(client_, start));
  }
  absl::StatusOr<agentpb::FileInfo> Write(agentpb::WriteFileStart start, std::string data) { return Run(WriteAll(client_, std::move(start), std::move(data))); }
  static agentpb::WriteFileStart To(const std::string& path) {
    agentpb::WriteFileStart start;
    start.set_path(path);
    return start;
  }
  absl::Status Remove(const std::string& path, bool recursive, bool missing_ok = false) {
    agentpb::RemoveFileRequest request;
    request.set_path(path);
    request.set_recursive(recursive);
    request.set_missing_ok(missing_ok);
    return Run(client_->RemoveFile(request, Soon()));
  }
  absl::StatusOr<agentpb::FileInfo> Stat(const std::string& path, bool follow = false, bool no_symlinks = false) {
    agentpb::StatFileRequest request;
    request.set_path(path);
    request.set_follow_symlink(follow);
    request.set_no_symlinks(no_symlinks);
    return Run(client_->StatFile(request, Soon()));
  }
  static std::string OnDisk(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }
  // Names in the folder, temporary files included.
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) { names.push_back(entry.path().filename()); }
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string folder_;
};

TEST_F(AgentFilesTest, WhatIsWrittenIsReadBack) {
  for (std::size_t size : {0u, 1u, 65536u, 3'000'001u}) {
    std::string data;
    for (std::size_t i = 0; i < size; ++i) { data.push_back(static_cast<char>(i * 31 + i / 251)); }
    const absl::StatusOr<agentpb::FileInfo> written = Write(To(folder_ + "/a"), data);
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(written->size_bytes(), size);
    EXPECT_EQ(written->mode(), 0644u);
    EXPECT_EQ(OnDisk(folder_ + "/a"), data);
    const absl::StatusOr<std::string> read = Read(folder_ + "/a");
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, data);
  }
  EXPECT_EQ(Names(), std::vector<std::string>{"a"});
}

TEST_F(AgentFilesTest, ARangeIsRead) {
  ASSERT_TRUE(Write(To(folder_ + "/a"), "0123456789").ok());
  agentpb::ReadFileStart start;
  start.set_path(folder_ + "/a");
  start.set_offset(3);
  start.set_limit_bytes(4);
  EXPECT_EQ(*Run(ReadAll(client_, start)), "3456");
  start.set_offset(100);
  EXPECT_EQ(*Run(ReadAll(client_, start)), "");
}

TEST_F(AgentFilesTest, NothingShowsBeforeTheCommitAndNothingIsLeftWithoutIt) {
  ASSERT_TRUE(Write(To(folder_ + "/a"), "old").ok());
  Go(WriteAndDrop(client_, To(folder_ + "/a"), std::string(500'000, 'n')));
  EXPECT_TRUE(Eventually([this] { return Names() == std::vector<std::string>{"a"}; }));
  EXPECT_EQ(OnDisk(folder_ + "/a"), "old");
  // Nor when the host goes.
  std::shared_ptr<FileWriter> writer = *Run(client_->WriteFile(To(folder_ + "/a"), Soon()));
  EXPECT_TRUE(Run(writer->Write("half", Soon())).ok());
  EXPECT_TRUE(Eventually([this] { return Names().size() == 2; }));
  Connect();
  EXPECT_TRUE(Eventually([this] { return Names() == std::vector<std::string>{"a"}; }));
  Go([](std::shared_ptr<FileWriter>* writer) -> Task<void> { writer->reset(); co_return; }(&writer));
}

TEST_F(AgentFilesTest, AReplacedFileKeepsItsModeUnlessToldOtherwise) {
  ASSERT_TRUE(Write(To(folder_ + "/a"), "one").ok());
  chmod((folder_ + "/a").c_str(), 0750);
  struct stat before {};
  stat((folder_ + "/a").c_str(), &before);
  EXPECT_EQ(Write(To(folder_ + "/a"), "two")->mode(), 0750u);
  struct stat after {};
  stat((folder_ + "/a").c_str(), &after);
  EXPECT_NE(before.st_ino, after.st_ino) << "replaced, not written into";
  agentpb::WriteFileStart start = To(folder_ + "/a");
  start.set_mode(04711);
  EXPECT_EQ(Write(start, "three")->mode(), 04711u);
  start.set_mode(010000);
  EXPECT_EQ(Write(start, "four").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(AgentFilesTest, ParentsAreMadeWhenAsked) {
  agentpb::WriteFileStart start = To(folder_ + "/x/y/z");
  EXPECT_EQ(Write(start, "deep").status().code(), absl::StatusCode::kNotFound);
  start.set_create_parents(true);
  ASSERT_TRUE(Write(start, "deep").ok());
  EXPECT_EQ(OnDisk(folder_ + "/x/y/z"), "deep");
  start.set_exclusive(true);
  EXPECT_EQ(Write(start, "again").status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(AgentFilesTest, ASymlinkIsReplacedNeverWrittenThrough) {
  ASSERT_TRUE(Write(To(folder_ + "/victim"), "safe").ok());
  fs::create_symlink(folder_ + "/victim", folder_ + "/link");
  ASSERT_TRUE(Write(To(folder_ + "/link"), "new").ok());
  EXPECT_EQ(OnDisk(folder_ + "/victim"), "safe");
  EXPECT_EQ(Stat(folder_ + "/link")->type(), agentpb::FILE_TYPE_REGULAR);
}

TEST_F(AgentFilesTest, SymlinksInThePathAreRefusedWhenAsked) {
  fs::create_directory(folder_ + "/real");
  ASSERT_TRUE(Write(To(folder_ + "/real/f"), "data").ok());
  fs::create_directory_symlink(folder_ + "/real", folder_ + "/dir");
  fs::create_symlink(folder_ + "/real/f", folder_ + "/link");
  EXPECT_EQ(*Read(folder_ + "/dir/f"), "data");
  for (const char* path : {"/dir/f", "/link"}) {
    agentpb::ReadFileStart start;
    start.set_path(folder_ + path);
    start.set_no_symlinks(true);
    const absl::Status status = Run(ReadAll(client_, start)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path << status;
    EXPECT_EQ(ReasonOf(status), "GUEST_FILE");
  }
  agentpb::WriteFileStart start = To(folder_ + "/dir/g");
  start.set_no_symlinks(true);
  EXPECT_EQ(Write(start, "x").status().code(), absl::StatusCode::kFailedPrecondition);
  start.set_path(folder_ + "/dir/deeper/g");
  start.set_create_parents(true);
  EXPECT_EQ(Write(start, "x").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(fs::exists(folder_ + "/real/deeper"));
  EXPECT_EQ(Stat(folder_ + "/dir/f", false, true).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Stat(folder_ + "/link", false, true)->link_target(), folder_ + "/real/f");
  EXPECT_EQ(Stat(folder_ + "/link", true)->type(), agentpb::FILE_TYPE_REGULAR);
}

TEST_F(AgentFilesTest, WhatIsNoRegularFileIsNotRead) {
  ASSERT_EQ(mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  for (const std::string& path : {folder_ + "/pipe", std::string("/dev/zero"), folder_}) {
    const absl::Status status = Read(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path << status;
  }
  EXPECT_EQ(Read(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Write(To(folder_), "x").status().code(), absl::StatusCode::kFailedPrecondition);
  // Files that say that they are empty are read to their end.
  EXPECT_NE(Read("/proc/self/status")->find("forkd-agent"), std::string::npos);
}

TEST_F(AgentFilesTest, BadPathsAreRefusedByEveryCall) {
  for (const std::string& path : {std::string(), std::string("relative"), std::string("../etc/passwd"), std::string("/a\0b", 4), "/" + std::string(4096, 'a')}) {
    EXPECT_EQ(Read(path).status().code(), absl::StatusCode::kInvalidArgument) << path.size();
    EXPECT_EQ(Write(To(path), "x").status().code(), absl::StatusCode::kInvalidArgument) << path.size();
    EXPECT_EQ(Stat(path).status().code(), absl::StatusCode::kInvalidArgument) << path.size();
    EXPECT_EQ(Remove(path, true).code(), absl::StatusCode::kInvalidArgument) << path.size();
    agentpb::ListDirectoryRequest list;
    list.set_path(path);
    EXPECT_EQ(Run(client_->ListDirectory(list, Soon())).status().code(), absl::StatusCode::kInvalidArgument) << path.size();
  }
  for (const std::string& path : {std::string("/"), std::string("//"), folder_ + "/.", folder_ + "/.."}) {
    EXPECT_EQ(Remove(path, true).code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(Write(To(path), "x").status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_EQ(Write(To(folder_ + "/" + std::string(256, 'n')), "x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Stat("/")->type(), agentpb::FILE_TYPE_DIRECTORY);
}

TEST_F(AgentFilesTest, AFolderIsListedByNameWithItsKinds) {
  ASSERT_TRUE(Write(To(folder_ + "/b"), "four").ok());
  fs::create_directory(folder_ + "/a");
  fs::create_symlink("b", folder_ + "/c");
  mkfifo((folder_ + "/d").c_str(), 0600);
  agentpb::ListDirectoryRequest request;
  request.set_path(folder_);
  absl::StatusOr<agentpb::ListDirectoryResponse> response = Run(client_->ListDirectory(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->entries_size(), 4);
  EXPECT_FALSE(response->truncated());
  EXPECT_EQ(response->entries(0).name(), "a");
  EXPECT_EQ(response->entries(0).type(), agentpb::FILE_TYPE_DIRECTORY);
  EXPECT_EQ(response->entries(1).size_bytes(), 4u);
  EXPECT_GT(response->entries(1).mtime_ns(), 1'600'000'000'000'000'000);
  EXPECT_EQ(response->entries(2).type(), agentpb::FILE_TYPE_SYMLINK);
  EXPECT_EQ(response->entries(2).link_target(), "b");
  EXPECT_EQ(response->entries(3).type(), agentpb::FILE_TYPE_OTHER);
  request.set_max_entries(2);
  response = Run(client_->ListDirectory(request, Soon()));
  ASSERT_EQ(response->entries_size(), 2);
  EXPECT_EQ(response->entries(1).name(), "b");
  EXPECT_TRUE(response->truncated());
  request.set_path(folder_ + "/b");
  EXPECT_EQ(Run(client_->ListDirectory(request, Soon())).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(AgentFilesTest, AHugeFolderIsCutAtItsLimit) {
  for (int i = 0; i < 10'050; ++i) { std::ofstream(folder_ + "/f" + std::to_string(100'000 + i)); }
  agentpb::ListDirectoryRequest request;
  request.set_path(folder_);
  const absl::StatusOr<agentpb::ListDirectoryResponse> response = Run(client_->ListDirectory(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->entries_size(), 10'000);
  EXPECT_TRUE(response->truncated());
  EXPECT_EQ(response->entries(0).name(), "f100000");
  EXPECT_EQ(response->entries(9'999).name(), "f109999");
}

TEST_F(AgentFilesTest, RemovalIsRecursiveWhenAskedAndFollowsNoSymlink) {
  fs::create_directories(folder_ + "/tree/one/two");
  fs::create_directory(folder_ + "/outside");
  ASSERT_TRUE(Write(To(folder_ + "/outside/kept"), "x").ok());
  ASSERT_TRUE(Write(To(folder_ + "/tree/one/two/f"), "x").ok());
  fs::create_directory_symlink(folder_ + "/outside", folder_ + "/tree/one/link");
  EXPECT_EQ(Remove(folder_ + "/tree", false).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Remove(folder_ + "/tree", true).ok());
  EXPECT_FALSE(fs::exists(folder_ + "/tree"));
  EXPECT_TRUE(fs::exists(folder_ + "/outside/kept"));
  fs::create_directory_symlink(folder_ + "/outside", folder_ + "/link");
  EXPECT_TRUE(Remove(folder_ + "/link", true).ok());
  EXPECT_TRUE(fs::exists(folder_ + "/outside/kept"));
  EXPECT_EQ(Remove(folder_ + "/link", true).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Remove(folder_ + "/link", true, true).ok());
  EXPECT_TRUE(Remove(folder_ + "/outside/", true).ok());
}

TEST_F(AgentFilesTest, AFullDiskIsExhaustionAndLeavesNothing) {
  if (geteuid() != 0) { GTEST_SKIP() << "mounting a small tmpfs needs root"; }
  if (mount("small", folder_.c_str(), "tmpfs", 0, "size=256k") != 0) { GTEST_SKIP() << "this root may not mount a tmpfs"; }
  const absl::Status status = Write(To(folder_ + "/large"), std::string(1 << 20, 'x')).status();
  const std::vector<std::string> left = Names();
  const bool small_fits = Write(To(folder_ + "/small"), "x").ok();
  umount(folder_.c_str());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(ReasonOf(status), "GUEST_FILE");
  EXPECT_TRUE(left.empty());
  EXPECT_TRUE(small_fits);
}

Task<void> ReadSlowly(std::shared_ptr<AgentClient> client, std::string path, std::shared_ptr<FileReader>* reader) {
  agentpb::ReadFileStart start;
  start.set_path(std::move(path));
  absl::StatusOr<std::shared_ptr<FileReader>> opened = co_await client->ReadFile(std::move(start), Soon());
  EXPECT_TRUE(opened.ok());
  if (opened.ok()) { *reader = *std::move(opened); }
}

TEST_F(AgentFilesTest, ALargeFileReadSlowlyHoldsNobodyUp) {
  { std::ofstream(folder_ + "/large"); }
  fs::resize_file(folder_ + "/large", 1ull << 30);
  std::shared_ptr<FileReader> reader;
  Go(ReadSlowly(client_, folder_ + "/large", &reader));
  EXPECT_EQ(reader->info().size_bytes(), 1ull << 30);
  EXPECT_EQ(Run(reader->Next(Soon()))->size(), 65536u);
  EXPECT_EQ(Exec({"true"}).end.exit_code(), 0);
  EXPECT_LT(agent_->PrivateKib(), 4 * 1024);
  Go([](std::shared_ptr<FileReader>* reader) -> Task<void> { reader->reset(); co_return; }(&reader));
  EXPECT_EQ(Exec({"true"}).end.exit_code(), 0);
}

TEST_F(AgentFilesTest, SyncAnswers) { EXPECT_TRUE(Run(client_->Sync(Soon())).ok()); }

}  // namespace
}  // namespace forkd::guest
