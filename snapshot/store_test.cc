#include "snapshot/store.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/fault_point.h"
#include "snapshot/memory_file.h"
#include "snapshot/testing/sample_manifest.h"
#include "snapshot/testing/sample_pages.h"

namespace forkd::snapshot {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kRootBytes = 64 * kPageBytes;

SnapshotTag Tag(absl::string_view text) { return *SnapshotTag::Parse(text); }

class SnapshotStoreTest : public ::testing::Test {
 protected:
  SnapshotStoreTest() {
    std::string dir = ::testing::TempDir() + "/store-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    state_.reset(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    absl::StatusOr<std::unique_ptr<SnapshotStore>> store = SnapshotStore::OpenBlocking(state_.get());
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    memory_.reset(::memfd_create("store-test", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(memory_.get(), kRootBytes), 0);
    EXPECT_TRUE(WriteAllBlocking(memory_.get(), "kernel", 0, "memory").ok());
    EXPECT_TRUE(WriteAllBlocking(memory_.get(), "stack", kRootBytes - 5, "memory").ok());
  }
  ~SnapshotStoreTest() override { fs::remove_all(dir_); }

  absl::StatusOr<Manifest> WriteRoot(absl::string_view tag) {
    absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag(tag));
    if (!staged.ok()) { return staged.status(); }
    if (absl::Status s = staged->WriteDeviceStateBlocking("device state"); !s.ok()) { return s; }
    if (absl::Status s = staged->WriteMemoryBlocking(memory_.get(), kRootBytes); !s.ok()) { return s; }
    return staged->PublishBlocking(UnpublishedRootForTest());
  }
  absl::StatusOr<Manifest> WriteBranch(absl::string_view tag, const Manifest& root) {
    absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag(tag));
    if (!staged.ok()) { return staged.status(); }
    if (absl::Status s = staged->WriteDeviceStateBlocking("branch state"); !s.ok()) { return s; }
    if (absl::Status s = staged->WritePagesBlocking(DocumentedPagesForTest(), kRootBytes); !s.ok()) { return s; }
    return staged->PublishBlocking(UnpublishedBranchForTest(root));
  }

  // Everything below snapshots/, hidden folders too.
  std::vector<std::string> Folders() const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(dir_ + "/snapshots")) { names.push_back(entry.path().filename()); }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string PathOf(absl::string_view tag, absl::string_view file) const { return absl::StrCat(dir_, "/snapshots/", tag, "/", file); }

  // Loading `tag` is refused for damage, and the message names the snapshot and `file`.
  void ExpectDamaged(absl::string_view tag, absl::string_view file, absl::string_view what) {
    const absl::Status status = store_->VerifyBlocking(Tag(tag));
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_EQ(ReasonOf(status), "SNAPSHOT_DAMAGED");
    EXPECT_NE(status.message().find(absl::StrCat("snapshot \"", tag, "\": ", file)), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(what), absl::string_view::npos) << status;
  }
  void FlipByte(absl::string_view tag, absl::string_view file, std::uint64_t at) {
    const UniqueFd fd(::open(PathOf(tag, file).c_str(), O_RDWR | O_CLOEXEC));
    char byte = 0;
    ASSERT_TRUE(ReadAllBlocking(fd.get(), absl::MakeSpan(&byte, 1), at, "file").ok());
    byte = static_cast<char>(byte ^ 1);
    ASSERT_TRUE(WriteAllBlocking(fd.get(), absl::string_view(&byte, 1), at, "file").ok());
  }

  std::string dir_;
  UniqueFd state_;
  std::unique_ptr<SnapshotStore> store_;
  UniqueFd memory_;  // a root's RAM
};

TEST_F(SnapshotStoreTest, RootIsLoadedAsItWasWritten) {
  const absl::StatusOr<Manifest> written = WriteRoot("py312");
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->tag(), "py312");
  EXPECT_EQ(written->root_tag(), "py312");
  EXPECT_EQ(written->memory_bytes(), static_cast<std::int64_t>(kRootBytes));
  const absl::StatusOr<LoadedSnapshot> loaded = store_->LoadBlocking(Tag("py312"), MemoryCheck::kNow);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->manifest.SerializeAsString().size(), written->SerializeAsString().size());
  EXPECT_EQ(*loaded->device_state, "device state");
  EXPECT_EQ(loaded->pages, nullptr);
  const UniqueFd copy(::memfd_create("copy", MFD_CLOEXEC));
  ASSERT_TRUE(store_->CopyMemoryToBlocking(*loaded, copy.get()).ok());
  EXPECT_EQ(*HashMemoryBlocking(copy.get(), kRootBytes, "copy"), *HashMemoryBlocking(memory_.get(), kRootBytes, "memory"));
  EXPECT_EQ(Folders(), std::vector<std::string>{"py312"});
}

TEST_F(SnapshotStoreTest, MemoryMayBeFilledByItsWriter) {
  absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag("t"));
  ASSERT_TRUE(staged.ok());
  ASSERT_TRUE(staged->WriteDeviceStateBlocking("d").ok());
  const absl::StatusOr<int> fd = staged->CreateMemoryFileBlocking(kRootBytes);
  ASSERT_TRUE(fd.ok()) << fd.status();
  ASSERT_TRUE(WriteAllBlocking(*fd, "kernel", 0, "memory").ok());
  ASSERT_TRUE(WriteAllBlocking(*fd, "stack", kRootBytes - 5, "memory").ok());
  EXPECT_FALSE(staged->PublishBlocking(UnpublishedRootForTest()).ok());  // not hashed yet
  ASSERT_TRUE(staged->FinishMemoryBlocking().ok());
  const absl::StatusOr<Manifest> manifest = staged->PublishBlocking(UnpublishedRootForTest());
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(FindFile(*manifest, kMemoryName)->digest(), ToHex(*HashMemoryBlocking(memory_.get(), kRootBytes, "memory")));
  EXPECT_TRUE(store_->VerifyBlocking(Tag("t")).ok());
}

TEST_F(SnapshotStoreTest, BranchIsLoadedAsItWasWritten) {
  const Manifest root = *WriteRoot("root");
  const absl::StatusOr<Manifest> written = WriteBranch("leaf", root);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->pages().page_count(), 4);
  EXPECT_EQ(written->pages().zero_page_count(), 2);
  const absl::StatusOr<LoadedSnapshot> loaded = store_->LoadBlocking(Tag("leaf"), MemoryCheck::kWhenCopied);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*loaded->device_state, "branch state");
  EXPECT_FALSE(loaded->memory.valid());
  ASSERT_NE(loaded->pages, nullptr);
  EXPECT_TRUE(SamePages(*loaded->pages, DocumentedPagesForTest()));
}

TEST_F(SnapshotStoreTest, BranchWithoutPagesIsABranch) {
  const Manifest root = *WriteRoot("root");
  absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag("same"));
  ASSERT_TRUE(staged->WriteDeviceStateBlocking("").ok());
  ASSERT_TRUE(staged->WritePagesBlocking(PageSet(), kRootBytes).ok());
  ASSERT_TRUE(staged->PublishBlocking(UnpublishedBranchForTest(root)).ok());
  const absl::StatusOr<LoadedSnapshot> loaded = store_->LoadBlocking(Tag("same"), MemoryCheck::kNow);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(loaded->pages->empty());
  EXPECT_EQ(*loaded->device_state, "");
}

TEST_F(SnapshotStoreTest, FilesAreForTheirOwnerAloneAndSparse) {
  ASSERT_TRUE(WriteRoot("t").ok());
  for (const char* file : {"manifest.json", "manifest.sha256", "device.state", "memory.bin"}) {
    struct stat status = {};
    ASSERT_EQ(::stat(PathOf("t", file).c_str(), &status), 0) << file;
    EXPECT_EQ(status.st_mode & 07777, 0600u) << file;
  }
  const absl::StatusOr<SnapshotSizes> sizes = store_->SizesBlocking(Tag("t"));
  ASSERT_TRUE(sizes.ok()) << sizes.status();
  EXPECT_EQ(sizes->memory_logical_bytes, static_cast<std::int64_t>(kRootBytes));
  EXPECT_EQ(sizes->memory_physical_bytes, 2 * kPageBytes);
  EXPECT_EQ(sizes->device_state_bytes, 12);
  EXPECT_GT(sizes->total_physical_bytes, sizes->memory_physical_bytes);
}

TEST_F(SnapshotStoreTest, BranchTakesTheDiskOfItsChangedPagesAlone) {
  const Manifest root = *WriteRoot("root");
  ASSERT_TRUE(WriteBranch("leaf", root).ok());
  const absl::StatusOr<SnapshotSizes> sizes = store_->SizesBlocking(Tag("leaf"));
  ASSERT_TRUE(sizes.ok());
  EXPECT_EQ(sizes->memory_logical_bytes, static_cast<std::int64_t>(kRootBytes));
  EXPECT_EQ(sizes->memory_physical_bytes, 3 * kPageBytes);  // the head and two pages; the zero pages take none
}

TEST_F(SnapshotStoreTest, ManifestPassesSha256sum) {
  ASSERT_TRUE(WriteRoot("t").ok());
  EXPECT_EQ(std::system(absl::StrCat("cd ", dir_, "/snapshots/t && sha256sum --quiet -c manifest.sha256").c_str()), 0);
}

TEST_F(SnapshotStoreTest, WhatIsNotPublishedLeavesNothing) {
  {
    absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag("t"));
    ASSERT_TRUE(staged.ok());
    ASSERT_TRUE(staged->WriteDeviceStateBlocking("d").ok());
    EXPECT_EQ(Folders().size(), 1u);
    EXPECT_TRUE(store_->ListBlocking()->empty());
    EXPECT_EQ(ReasonOf(store_->VerifyBlocking(Tag("t"))), "SNAPSHOT_UNKNOWN");
  }
  EXPECT_TRUE(Folders().empty());
}

TEST_F(SnapshotStoreTest, TagIsTakenOnce) {
  ASSERT_TRUE(WriteRoot("t").ok());
  EXPECT_EQ(ReasonOf(WriteRoot("t").status()), "TAG_TAKEN");
}

TEST_F(SnapshotStoreTest, FirstOfTwoPublicationsWins) {
  absl::StatusOr<StagedSnapshot> slow = store_->BeginBlocking(Tag("t"));
  ASSERT_TRUE(slow.ok());
  ASSERT_TRUE(slow->WriteDeviceStateBlocking("slow").ok());
  ASSERT_TRUE(slow->WriteMemoryBlocking(memory_.get(), kRootBytes).ok());
  ASSERT_TRUE(WriteRoot("t").ok());
  const absl::Status status = slow->PublishBlocking(UnpublishedRootForTest()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(status), "TAG_TAKEN");
  EXPECT_EQ(*store_->LoadBlocking(Tag("t"), MemoryCheck::kNow)->device_state, "device state");
}

TEST_F(SnapshotStoreTest, IncompleteSnapshotsAreNotPublished) {
  absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag("t"));
  ASSERT_TRUE(staged->WriteDeviceStateBlocking("d").ok());
  const absl::Status no_memory = staged->PublishBlocking(UnpublishedRootForTest()).status();
  EXPECT_EQ(ReasonOf(no_memory), "INVALID_FIELD") << no_memory;
  ASSERT_TRUE(staged->WriteMemoryBlocking(memory_.get(), kRootBytes).ok());
  Manifest no_machine = UnpublishedRootForTest();
  no_machine.clear_machine();
  EXPECT_EQ(ReasonOf(staged->PublishBlocking(no_machine).status()), "INVALID_FIELD");
  EXPECT_TRUE(staged->PublishBlocking(UnpublishedRootForTest()).ok());  // a refused manifest may be mended
}

TEST_F(SnapshotStoreTest, PageBeyondTheRootIsRefused) {
  absl::StatusOr<StagedSnapshot> staged = store_->BeginBlocking(Tag("t"));
  EXPECT_EQ(ReasonOf(staged->WritePagesBlocking(PagesForTest({{64, 'x'}}), kRootBytes)), "INVALID_FIELD");
}

TEST_F(SnapshotStoreTest, ListsTagsAloneInOrder) {
  for (const char* tag : {"b", "a", "C_-9"}) { ASSERT_TRUE(WriteRoot(tag).ok()); }
  fs::create_directory(dir_ + "/snapshots/not a tag");
  std::ofstream(dir_ + "/snapshots/file") << "x";
  EXPECT_EQ(*store_->ListBlocking(), (std::vector<SnapshotTag>{Tag("C_-9"), Tag("a"), Tag("b")}));
}

TEST_F(SnapshotStoreTest, FolderOfSnapshotsMayBeNamedItself) {
  ASSERT_TRUE(WriteRoot("t").ok());
  const UniqueFd folder(::open((dir_ + "/snapshots").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const absl::StatusOr<std::unique_ptr<SnapshotStore>> store = SnapshotStore::OpenFolderBlocking(folder.get());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE((*store)->VerifyBlocking(Tag("t")).ok());
}

TEST_F(SnapshotStoreTest, DeletionIsCompleteAndIdempotent) {
  ASSERT_TRUE(WriteRoot("t").ok());
  ASSERT_TRUE(store_->DeleteBlocking(Tag("t")).ok());
  EXPECT_TRUE(Folders().empty());
  EXPECT_TRUE(store_->DeleteBlocking(Tag("t")).ok());
  EXPECT_TRUE(WriteRoot("t").ok());
}

TEST_F(SnapshotStoreTest, DeletionSparesWhatASymlinkPointsTo) {
  ASSERT_TRUE(WriteRoot("t").ok());
  fs::create_directory(dir_ + "/precious");
  std::ofstream(dir_ + "/precious/file") << "x";
  fs::create_directory_symlink(dir_ + "/precious", PathOf("t", "link"));
  ASSERT_TRUE(store_->DeleteBlocking(Tag("t")).ok());
  EXPECT_TRUE(fs::exists(dir_ + "/precious/file"));
}

// ---- Damage, each kind by name ----

TEST_F(SnapshotStoreTest, MissingFilesAreNamed) {
  for (const char* file : {"manifest.json", "manifest.sha256", "device.state", "memory.bin"}) {
    ASSERT_TRUE(WriteRoot("t").ok());
    fs::remove(PathOf("t", file));
    ExpectDamaged("t", file, "is missing");
    ASSERT_TRUE(store_->DeleteBlocking(Tag("t")).ok());
  }
  const Manifest root = *WriteRoot("root");
  ASSERT_TRUE(WriteBranch("leaf", root).ok());
  fs::remove(PathOf("leaf", "pages.bin"));
  ExpectDamaged("leaf", "pages.bin", "is missing");
}

TEST_F(SnapshotStoreTest, TruncatedAndGrownFilesAreNamed) {
  const Manifest root = *WriteRoot("root");
  ASSERT_TRUE(WriteBranch("leaf", root).ok());
  for (const auto& [tag, file, bytes] : {std::tuple("root", "memory.bin", kRootBytes), std::tuple("leaf", "pages.bin", std::uint64_t{12288}),
                                         std::tuple("leaf", "device.state", std::uint64_t{12})}) {
    for (const std::uint64_t size : {bytes - 1, bytes + 1}) {
      fs::resize_file(PathOf(tag, file), size);
      ExpectDamaged(tag, file, absl::StrCat("has ", size, " bytes, its manifest says ", bytes));
      fs::resize_file(PathOf(tag, file), bytes);
    }
  }
}

TEST_F(SnapshotStoreTest, OneFlippedByteIsFoundWhereverItIs) {
  const Manifest root = *WriteRoot("root");
  ASSERT_TRUE(WriteBranch("leaf", root).ok());
  struct Place {
    const char* tag;
    const char* file;
    std::uint64_t at;
  };
  const Place places[] = {{"root", "manifest.json", 40},     {"root", "memory.bin", 0},      {"root", "memory.bin", kRootBytes / 2},
                          {"root", "memory.bin", kRootBytes - 1}, {"root", "device.state", 3}, {"leaf", "manifest.json", 100},
                          {"leaf", "pages.bin", 0},          {"leaf", "pages.bin", 30},      {"leaf", "pages.bin", 0x50},
                          {"leaf", "pages.bin", 0x200},      {"leaf", "pages.bin", 4096},    {"leaf", "pages.bin", 12287}};
  for (const Place& place : places) {
    SCOPED_TRACE(absl::StrCat(place.tag, "/", place.file, " byte ", place.at));
    FlipByte(place.tag, place.file, place.at);
    ExpectDamaged(place.tag, place.file, "");
    FlipByte(place.tag, place.file, place.at);
    ASSERT_TRUE(store_->VerifyBlocking(Tag(place.tag)).ok());
  }
  FlipByte("root", "manifest.sha256", 1);
  ExpectDamaged("root", "manifest.json", "differs from its digest");
}

TEST_F(SnapshotStoreTest, MemoryThatChangedIsFoundWhenItIsCopied) {
  ASSERT_TRUE(WriteRoot("t").ok());
  FlipByte("t", "memory.bin", 70000);
  const absl::StatusOr<LoadedSnapshot> loaded = store_->LoadBlocking(Tag("t"), MemoryCheck::kWhenCopied);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const UniqueFd copy(::memfd_create("copy", MFD_CLOEXEC));
  const absl::Status status = store_->CopyMemoryToBlocking(*loaded, copy.get());
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_DAMAGED");
  EXPECT_NE(status.message().find("memory.bin"), absl::string_view::npos);
}

TEST_F(SnapshotStoreTest, SymlinksFifosAndFoldersInPlaceOfFilesAreRefused) {
  ASSERT_TRUE(WriteRoot("t").ok());
  const std::string path = PathOf("t", "device.state");
  fs::rename(path, dir_ + "/elsewhere");
  fs::create_symlink(dir_ + "/elsewhere", path);
  ExpectDamaged("t", "device.state", "is a symlink");
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  ExpectDamaged("t", "device.state", "is not a regular file");
  fs::remove(path);
  fs::create_directory(path);
  ExpectDamaged("t", "device.state", "is not a regular file");
}

TEST_F(SnapshotStoreTest, FolderThatIsASymlinkIsRefused) {
  ASSERT_TRUE(WriteRoot("t").ok());
  fs::create_directory_symlink(dir_ + "/snapshots/t", dir_ + "/snapshots/alias");
  EXPECT_EQ(ReasonOf(store_->VerifyBlocking(Tag("alias"))), "SNAPSHOT_DAMAGED");
  // A copy under another name has another's manifest.
  fs::remove(dir_ + "/snapshots/alias");
  fs::copy(dir_ + "/snapshots/t", dir_ + "/snapshots/alias", fs::copy_options::recursive);
  ExpectDamaged("alias", "manifest.json", "tag");
}

TEST_F(SnapshotStoreTest, RootThatWasMadeAgainDoesNotFitItsOldBranches) {
  const Manifest root = *WriteRoot("root");
  ASSERT_TRUE(WriteBranch("leaf", root).ok());
  ASSERT_TRUE(store_->DeleteBlocking(Tag("root")).ok());
  ExpectDamaged("leaf", "pages.bin", "\"root\" is missing");
  ASSERT_TRUE(WriteAllBlocking(memory_.get(), "another kernel", 0, "memory").ok());
  ASSERT_TRUE(WriteRoot("root").ok());
  ExpectDamaged("leaf", "pages.bin", "not the root that it was taken of");
}

TEST_F(SnapshotStoreTest, AnotherFormatVersionIsIncompatible) {
  ASSERT_TRUE(WriteRoot("t").ok());
  const std::string edit = absl::StrCat("cd ", dir_, "/snapshots/t && sed -i 's/\"format_version\": 1/\"format_version\": 2/' manifest.json && ",
                                        "sha256sum manifest.json > manifest.sha256");
  ASSERT_EQ(std::system(edit.c_str()), 0);
  const absl::Status status = store_->VerifyBlocking(Tag("t"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_INCOMPATIBLE");
}

// ---- Bad luck ----

TEST_F(SnapshotStoreTest, ErrorAtAnyPointOfPublicationLeavesNothing) {
  for (const char* point : {"publish.before_sync", "publish.before_rename", "publish.after_rename"}) {
    {
      const ScopedFaultHandlerForTest fault([point](absl::string_view name) { return name == point ? ErrnoError(ENOSPC, "fsync") : absl::OkStatus(); });
      const absl::Status status = WriteRoot("t").status();
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << point;
      EXPECT_EQ(ReasonOf(status), "DISK_FULL") << point;
    }
    EXPECT_TRUE(Folders().empty()) << point;
  }
  EXPECT_TRUE(WriteRoot("t").ok());
}

// Runs `work` in a child that is killed when it reaches `point`; false if it never does.
template <typename Work>
bool DiesAt(const char* point, Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    const ScopedFaultHandlerForTest crash([point](absl::string_view name) {
      if (name == point) { ::kill(::getpid(), SIGKILL); }
      return absl::OkStatus();
    });
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

TEST_F(SnapshotStoreTest, KillDuringPublicationLeavesTheWholeSnapshotOrNone) {
  struct Point {
    const char* name;
    bool published;
  };
  for (const Point& point : {Point{"publish.before_sync", false}, Point{"publish.before_rename", false}, Point{"publish.after_rename", true}}) {
    SCOPED_TRACE(point.name);
    ASSERT_TRUE(DiesAt(point.name, [&] { (void)WriteRoot("t"); }));
    EXPECT_EQ(*store_->SweepStagingBlocking(), point.published ? 0 : 1);
    EXPECT_EQ(Folders(), point.published ? std::vector<std::string>{"t"} : std::vector<std::string>{});
    const absl::Status status = store_->VerifyBlocking(Tag("t"));
    EXPECT_TRUE(point.published ? status.ok() : absl::IsNotFound(status)) << status;
    ASSERT_TRUE(store_->DeleteBlocking(Tag("t")).ok());
  }
}

TEST_F(SnapshotStoreTest, KillDuringDeletionLeavesTheWholeSnapshotOrNone) {
  ASSERT_TRUE(WriteRoot("t").ok());
  ASSERT_TRUE(DiesAt("snapshot.delete.before_rename", [&] { (void)store_->DeleteBlocking(Tag("t")); }));
  EXPECT_EQ(*store_->SweepStagingBlocking(), 0);
  EXPECT_TRUE(store_->VerifyBlocking(Tag("t")).ok());
  ASSERT_TRUE(DiesAt("snapshot.delete.after_rename", [&] { (void)store_->DeleteBlocking(Tag("t")); }));
  EXPECT_TRUE(absl::IsNotFound(store_->VerifyBlocking(Tag("t"))));
  EXPECT_EQ(*store_->SweepStagingBlocking(), 1);
  EXPECT_TRUE(Folders().empty());
}

}  // namespace
}  // namespace forkd::snapshot
