#include "snapshot/store.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/fault_point.h"
#include "base/mapping.h"
#include "base/publish_dir.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "snapshot/damage.h"
#include "snapshot/memory_file.h"
#include "snapshot/pages_file.h"
#include "snapshot/zero_bytes.h"

namespace forkd::snapshot {
namespace {

constexpr char kFolder[] = "snapshots";
constexpr absl::string_view kStagingPrefix = ".staging-";
constexpr absl::string_view kTrashPrefix = ".trash-";
// QEMU's is 9 KB, with many vCPUs some 100 KB; Firecracker's below 1 MiB. What is beyond this was not written by a driver of ours.
constexpr std::int64_t kMaxDeviceStateBytes = 64 * 1024 * 1024;
constexpr mode_t kFolderMode = 0700;
constexpr mode_t kFileMode = 0600;

absl::Status TagTaken(absl::string_view tag) {
  return Error(absl::StatusCode::kAlreadyExists, Reason::kTagTaken, absl::StrCat("snapshot ", Quoted(tag), " exists"))
      .Meta("tag", tag)
      .Resource("snapshot", tag);
}

absl::Status Unknown(absl::string_view tag) {
  return Error(absl::StatusCode::kNotFound, Reason::kSnapshotUnknown, absl::StrCat("snapshot ", Quoted(tag), " does not exist"))
      .Meta("tag", tag)
      .Resource("snapshot", tag);
}

absl::Status WrongOrder(absl::string_view what) { return Error(absl::StatusCode::kInternal, Reason::kInternal, what); }

// A hidden name that nothing else has.
std::string HiddenName(absl::string_view prefix, absl::string_view tag) {
  std::random_device device;
  return absl::StrFormat("%s%s-%08x%08x", prefix, tag, device(), device());
}

absl::Status SyncFolder(int fd) {
  if (::fsync(fd) != 0) { return ErrnoError(errno, absl::StrCat("fsync ", Quoted(kFolder))); }
  return absl::OkStatus();
}

std::string ManifestDigestLine(absl::string_view manifest) { return absl::StrCat(ToHex(Sha256Of(manifest)), "  ", kManifestName, "\n"); }

absl::string_view View(const std::string& bytes) { return absl::string_view(bytes.data(), bytes.size()); }

// ---- Reading: every error of these is about one snapshot's folder and gets its tag by OfSnapshot ----

struct OpenFile {
  UniqueFd fd;
  std::int64_t size_bytes = 0;
};

// SNAPSHOT_DAMAGED if it is missing, a symlink or no regular file.
absl::StatusOr<OpenFile> OpenRegular(int dir, absl::string_view name) {
  // O_NONBLOCK: a FIFO in its place must not hang us.
  absl::StatusOr<UniqueFd> fd = OpenBeneath(dir, name, O_RDONLY | O_NONBLOCK);
  if (!fd.ok()) {
    if (absl::IsNotFound(fd.status())) { return Damaged(name, "is missing"); }
    if (ReasonOf(fd.status()) == ReasonName(Reason::kHostPathRefused)) { return Damaged(name, "is a symlink"); }
    return fd.status();
  }
  struct stat status = {};
  if (::fstat(fd->get(), &status) != 0) { return ErrnoError(errno, absl::StrCat("stat ", name)); }
  if (!S_ISREG(status.st_mode)) { return Damaged(name, "is not a regular file"); }
  return OpenFile{*std::move(fd), status.st_size};
}

// A read that finds the file shorter than it was a moment ago: somebody truncates it.
absl::Status ReadInside(int fd, absl::Span<char> bytes, std::uint64_t offset, absl::string_view name) {
  const absl::Status status = ReadAllBlocking(fd, bytes, offset, name);
  return absl::IsOutOfRange(status) ? Damaged(name, status.message()) : status;
}

absl::StatusOr<std::string> ReadSmall(int dir, absl::string_view name, std::int64_t max_bytes) {
  FORKD_ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(dir, name));
  if (file.size_bytes > max_bytes) { return Damaged(name, absl::StrCat("has ", file.size_bytes, " bytes, the limit is ", max_bytes)); }
  std::string bytes(static_cast<std::size_t>(file.size_bytes), '\0');
  FORKD_RETURN_IF_ERROR(ReadInside(file.fd.get(), absl::MakeSpan(bytes.data(), bytes.size()), 0, name));
  return bytes;
}

absl::StatusOr<Manifest> ReadManifest(int dir, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(const std::string bytes, ReadSmall(dir, kManifestName, kMaxManifestBytes));
  FORKD_ASSIGN_OR_RETURN(const std::string line, ReadSmall(dir, kManifestDigestName, 256));
  if (line != ManifestDigestLine(bytes)) { return Damaged(kManifestName, absl::StrCat("differs from its digest in ", kManifestDigestName)); }
  FORKD_ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(bytes));
  if (manifest.tag() != tag.str()) { return Damaged(kManifestName, absl::StrCat("tag: is ", Quoted(manifest.tag()))); }
  return manifest;
}

// Opens a file that the manifest lists and compares its size.
absl::StatusOr<OpenFile> OpenListed(int dir, const File& entry) {
  FORKD_ASSIGN_OR_RETURN(OpenFile file, OpenRegular(dir, entry.name()));
  if (file.size_bytes != entry.size_bytes()) {
    return Damaged(entry.name(), absl::StrCat("has ", file.size_bytes, " bytes, its manifest says ", entry.size_bytes()));
  }
  return file;
}

absl::Status CompareDigest(const File& entry, const Sha256Digest& digest) {
  if (ToHex(digest) != entry.digest()) { return Damaged(entry.name(), "its content differs from its digest in the manifest"); }
  return absl::OkStatus();
}

absl::StatusOr<std::string> LoadDeviceState(int dir, const File& entry) {
  FORKD_ASSIGN_OR_RETURN(const OpenFile file, OpenListed(dir, entry));
  if (file.size_bytes > kMaxDeviceStateBytes) {
    return Damaged(entry.name(), absl::StrCat("has ", file.size_bytes, " bytes, the limit is ", kMaxDeviceStateBytes));
  }
  std::string bytes(static_cast<std::size_t>(file.size_bytes), '\0');
  FORKD_RETURN_IF_ERROR(ReadInside(file.fd.get(), absl::MakeSpan(bytes.data(), bytes.size()), 0, entry.name()));
  FORKD_RETURN_IF_ERROR(CompareDigest(entry, Sha256Of(bytes)));
  return bytes;
}

absl::StatusOr<PageSet> LoadPages(int dir, const File& entry, const Manifest& manifest) {
  FORKD_ASSIGN_OR_RETURN(const OpenFile file, OpenListed(dir, entry));
  const int fd = file.fd.get();
  std::string head(std::min<std::uint64_t>(kPagesHeaderBytes, static_cast<std::uint64_t>(file.size_bytes)), '\0');
  FORKD_RETURN_IF_ERROR(ReadInside(fd, absl::MakeSpan(head.data(), head.size()), 0, kPagesName));
  FORKD_ASSIGN_OR_RETURN(const PagesHeader header, ParsePagesHeader(head, static_cast<std::uint64_t>(file.size_bytes)));
  // Before anything is allocated by the header's word: the manifest's digest has been checked, the header's not yet.
  if (static_cast<std::int64_t>(header.page_count) != manifest.pages().page_count() ||
      static_cast<std::int64_t>(header.root_pages) != manifest.memory_bytes() / kPageBytes) {
    return Damaged(kPagesName, absl::StrCat("its header says ", header.page_count, " pages of a root of ", header.root_pages, ", its manifest ",
                                            manifest.pages().page_count(), " of ", manifest.memory_bytes() / kPageBytes));
  }
  head.resize(header.DataStart());
  FORKD_RETURN_IF_ERROR(ReadInside(fd, absl::MakeSpan(head.data(), head.size()), 0, kPagesName));
  FORKD_RETURN_IF_ERROR(CompareDigest(entry, Sha256Of(View(head).substr(0, header.IndexEnd()))));
  if (!AllZero(View(head).substr(header.IndexEnd()))) { return Damaged(kPagesName, absl::StrCat("offset ", header.IndexEnd(), ": padding is not zero")); }
  FORKD_ASSIGN_OR_RETURN(const PagesIndex index, ParsePagesIndex(head, header));

  // Zero extents stay untouched: the mapping is zero, and takes no memory where nobody wrote.
  FORKD_ASSIGN_OR_RETURN(Mapping bytes, Mapping::Anonymous(header.page_count * kPageBytes, Mapping::Prefault::kNo));
  std::uint64_t from = header.DataStart();
  std::uint64_t to = 0;
  for (const Extent& extent : index.extents) {
    const std::size_t length = static_cast<std::size_t>(extent.pages) * kPageBytes;
    if (!extent.zero) {
      const absl::Span<char> target = absl::MakeSpan(bytes.data() + to, length);
      FORKD_RETURN_IF_ERROR(ReadInside(fd, target, from, kPagesName));
      FORKD_RETURN_IF_ERROR(CheckExtent(extent, absl::string_view(target.data(), target.size()), from));
      from += length;
    }
    to += length;
  }
  return PageSet::Create(IndexesOf(index), std::move(bytes));
}

}  // namespace

// ---- Staging ----

struct StagedSnapshot::Impl {
  Impl(UniqueFd parent_fd, SnapshotTag snapshot_tag, std::string staging_name)
      : parent(std::move(parent_fd)), tag(std::move(snapshot_tag)), name(std::move(staging_name)) {}
  ~Impl() {
    memory.reset();
    // A failure here costs disk until the next start's sweep; nobody can be told.
    if (!published) { (void)RemoveTreeBlocking(parent.get(), name); }
  }

  absl::StatusOr<UniqueFd> CreateFile(absl::string_view file_name) {
    if (done) { return WrongOrder("a snapshot is written after its publication"); }
    return OpenBeneath(dir.get(), file_name, O_RDWR | O_CREAT | O_EXCL, kFileMode);
  }
  void AddFile(absl::string_view file_name, std::uint64_t size_bytes, const Sha256Digest& digest, absl::string_view scheme) {
    File file;
    file.set_name(std::string(file_name));
    file.set_size_bytes(static_cast<std::int64_t>(size_bytes));
    file.set_digest(ToHex(digest));
    file.set_scheme(std::string(scheme));
    files.push_back(std::move(file));
  }
  absl::Status WriteWhole(absl::string_view file_name, absl::string_view bytes) {
    FORKD_ASSIGN_OR_RETURN(const UniqueFd file, CreateFile(file_name));
    return WriteAllBlocking(file.get(), bytes, 0, file_name);
  }

  UniqueFd parent;  // the snapshots folder; a descriptor of its own
  SnapshotTag tag;
  std::string name;
  UniqueFd dir;
  UniqueFd memory;  // between CreateMemoryFileBlocking and FinishMemoryBlocking
  std::uint64_t memory_bytes = 0;
  std::vector<File> files;
  std::optional<PageCounts> pages;
  bool done = false;       // PublishBlocking was called
  bool published = false;  // and succeeded
};

StagedSnapshot::StagedSnapshot(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StagedSnapshot::StagedSnapshot(StagedSnapshot&&) noexcept = default;
StagedSnapshot::~StagedSnapshot() = default;

absl::Status StagedSnapshot::WriteDeviceStateBlocking(absl::string_view bytes) {
  if (static_cast<std::int64_t>(bytes.size()) > kMaxDeviceStateBytes) {
    return InvalidField("device_state", absl::StrCat("has ", bytes.size(), " bytes, the limit is ", kMaxDeviceStateBytes));
  }
  FORKD_RETURN_IF_ERROR(impl_->WriteWhole(kDeviceStateName, bytes));
  impl_->AddFile(kDeviceStateName, bytes.size(), Sha256Of(bytes), kSchemeSha256);
  return absl::OkStatus();
}

absl::Status StagedSnapshot::WriteMemoryBlocking(int source, std::uint64_t bytes) {
  FORKD_ASSIGN_OR_RETURN(const UniqueFd file, impl_->CreateFile(kMemoryName));
  FORKD_ASSIGN_OR_RETURN(const Sha256Digest digest, CopyMemoryBlocking(source, file.get(), bytes, kMemoryName));
  impl_->memory_bytes = bytes;
  impl_->AddFile(kMemoryName, bytes, digest, kSchemeBlocks);
  return absl::OkStatus();
}

absl::StatusOr<int> StagedSnapshot::CreateMemoryFileBlocking(std::uint64_t bytes) {
  FORKD_ASSIGN_OR_RETURN(impl_->memory, impl_->CreateFile(kMemoryName));
  if (::ftruncate(impl_->memory.get(), static_cast<off_t>(bytes)) != 0) { return ErrnoError(errno, absl::StrCat("set the size of ", kMemoryName)); }
  impl_->memory_bytes = bytes;
  return impl_->memory.get();
}

absl::Status StagedSnapshot::FinishMemoryBlocking() {
  if (!impl_->memory.valid()) { return WrongOrder("FinishMemoryBlocking without CreateMemoryFileBlocking"); }
  const UniqueFd file = std::move(impl_->memory);
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) { return ErrnoError(errno, absl::StrCat("stat ", kMemoryName)); }
  if (static_cast<std::uint64_t>(status.st_size) != impl_->memory_bytes) {
    return Error(absl::StatusCode::kInternal, Reason::kInternal,
                 absl::StrCat(kMemoryName, ": its writer made it ", status.st_size, " bytes long, not ", impl_->memory_bytes));
  }
  FORKD_ASSIGN_OR_RETURN(const Sha256Digest digest, HashMemoryBlocking(file.get(), impl_->memory_bytes, kMemoryName));
  impl_->AddFile(kMemoryName, impl_->memory_bytes, digest, kSchemeBlocks);
  return absl::OkStatus();
}

absl::Status StagedSnapshot::WritePagesBlocking(const PageSet& pages, std::uint64_t root_bytes) {
  FORKD_ASSIGN_OR_RETURN(const EncodedPages encoded, EncodePagesHead(pages, root_bytes / kPageBytes));
  const PagesHeader& header = encoded.index.header;
  FORKD_ASSIGN_OR_RETURN(const UniqueFd file, impl_->CreateFile(kPagesName));
  FORKD_RETURN_IF_ERROR(WriteAllBlocking(file.get(), encoded.head, 0, kPagesName));
  std::uint64_t offset = header.DataStart();
  for (const absl::string_view run : StoredRuns(pages, encoded.index)) {
    FORKD_RETURN_IF_ERROR(WriteAllBlocking(file.get(), run, offset, kPagesName));
    offset += run.size();
  }
  impl_->memory_bytes = root_bytes;
  impl_->AddFile(kPagesName, header.FileBytes(), encoded.digest, kSchemeIndex);
  PageCounts counts;
  counts.set_page_count(static_cast<std::int64_t>(header.page_count));
  counts.set_zero_page_count(static_cast<std::int64_t>(header.page_count - header.stored_pages));
  impl_->pages = counts;
  return absl::OkStatus();
}

absl::StatusOr<Manifest> StagedSnapshot::PublishBlocking(Manifest manifest) {
  if (impl_->memory.valid()) { return WrongOrder("PublishBlocking before FinishMemoryBlocking"); }
  const SnapshotTag& tag = impl_->tag;
  manifest.set_format_version(kFormatVersion);
  manifest.set_tag(tag.str());
  if (manifest.kind() == ROOT) { manifest.set_root_tag(tag.str()); }
  manifest.set_memory_bytes(static_cast<std::int64_t>(impl_->memory_bytes));
  manifest.clear_files();
  for (const File& file : impl_->files) { *manifest.add_files() = file; }
  manifest.clear_pages();
  if (impl_->pages.has_value()) { *manifest.mutable_pages() = *impl_->pages; }
  FORKD_ASSIGN_OR_RETURN(const std::string bytes, SerializeManifest(manifest));
  FORKD_RETURN_IF_ERROR(impl_->WriteWhole(kManifestName, bytes));
  FORKD_RETURN_IF_ERROR(impl_->WriteWhole(kManifestDigestName, ManifestDigestLine(bytes)));
  impl_->done = true;
  if (const absl::Status status = PublishDirBlocking(impl_->parent.get(), impl_->name, tag.str()); !status.ok()) {
    return absl::IsAlreadyExists(status) ? TagTaken(tag.str()) : Annotate(status, absl::StrCat("snapshot ", Quoted(tag.str())));
  }
  impl_->published = true;
  return manifest;
}

// ---- The store ----

struct SnapshotStore::Impl {
  UniqueFd folder;

  absl::StatusOr<UniqueFd> OpenSnapshot(const SnapshotTag& tag) const {
    absl::StatusOr<UniqueFd> dir = OpenBeneath(folder.get(), tag.str(), O_RDONLY | O_DIRECTORY);
    if (dir.ok()) { return dir; }
    if (absl::IsNotFound(dir.status())) { return Unknown(tag.str()); }
    return OfSnapshot(tag.str(), Damaged("its folder", dir.status().message()));
  }

  absl::StatusOr<Manifest> Read(const SnapshotTag& tag) const {
    FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, OpenSnapshot(tag));
    absl::StatusOr<Manifest> manifest = ReadManifest(dir.get(), tag);
    if (!manifest.ok()) { return OfSnapshot(tag.str(), manifest.status()); }
    return manifest;
  }

  // The root that `branch` stands on is there and is the one that it was taken of; its memory's bytes are the root's own business.
  absl::Status CheckRoot(const Manifest& branch) const {
    FORKD_ASSIGN_OR_RETURN(const SnapshotTag root_tag, SnapshotTag::Parse(branch.root_tag(), "root_tag"));
    const absl::StatusOr<Manifest> root = Read(root_tag);
    if (absl::IsNotFound(root.status())) { return Damaged(kPagesName, absl::StrCat("its root snapshot ", Quoted(root_tag.str()), " is missing")); }
    if (!root.ok()) { return root.status(); }
    const File* const memory = FindFile(*root, kMemoryName);
    if (memory == nullptr || memory->digest() != branch.root_memory_digest()) {
      return Damaged(kPagesName, absl::StrCat("snapshot ", Quoted(root_tag.str()), " is not the root that it was taken of"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<LoadedSnapshot> Load(int dir, const SnapshotTag& tag, MemoryCheck check) const {
    LoadedSnapshot loaded;
    FORKD_ASSIGN_OR_RETURN(loaded.manifest, ReadManifest(dir, tag));
    const Manifest& manifest = loaded.manifest;
    // ParseManifest has seen to it that the files of its kind are listed.
    FORKD_ASSIGN_OR_RETURN(std::string device_state, LoadDeviceState(dir, *FindFile(manifest, kDeviceStateName)));
    loaded.device_state = std::make_shared<const std::string>(std::move(device_state));
    if (manifest.kind() == BRANCH) {
      FORKD_RETURN_IF_ERROR(CheckRoot(manifest));
      FORKD_ASSIGN_OR_RETURN(PageSet pages, LoadPages(dir, *FindFile(manifest, kPagesName), manifest));
      loaded.pages = std::make_shared<const PageSet>(std::move(pages));
      return loaded;
    }
    const File& entry = *FindFile(manifest, kMemoryName);
    FORKD_ASSIGN_OR_RETURN(OpenFile memory, OpenListed(dir, entry));
    if (check == MemoryCheck::kNow) {
      FORKD_ASSIGN_OR_RETURN(const Sha256Digest digest, HashMemoryBlocking(memory.fd.get(), static_cast<std::uint64_t>(memory.size_bytes), kMemoryName));
      FORKD_RETURN_IF_ERROR(CompareDigest(entry, digest));
    }
    loaded.memory = std::move(memory.fd);
    return loaded;
  }
};

SnapshotStore::SnapshotStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SnapshotStore::~SnapshotStore() = default;

absl::StatusOr<std::unique_ptr<SnapshotStore>> SnapshotStore::OpenBlocking(int state_dir_fd) {
  if (::mkdirat(state_dir_fd, kFolder, kFolderMode) != 0) {
    if (errno != EEXIST) { return ErrnoError(errno, absl::StrCat("make folder ", Quoted(kFolder))); }
  } else {
    FORKD_RETURN_IF_ERROR(SyncFolder(state_dir_fd));
  }
  FORKD_ASSIGN_OR_RETURN(const UniqueFd folder, OpenBeneath(state_dir_fd, kFolder, O_RDONLY | O_DIRECTORY));
  return OpenFolderBlocking(folder.get());
}

absl::StatusOr<std::unique_ptr<SnapshotStore>> SnapshotStore::OpenFolderBlocking(int folder_fd) {
  auto impl = std::make_unique<Impl>();
  FORKD_ASSIGN_OR_RETURN(impl->folder, OpenBeneath(folder_fd, ".", O_RDONLY | O_DIRECTORY));
  return std::unique_ptr<SnapshotStore>(new SnapshotStore(std::move(impl)));
}

absl::StatusOr<StagedSnapshot> SnapshotStore::BeginBlocking(const SnapshotTag& tag) {
  const int folder = impl_->folder.get();
  struct stat status = {};
  if (::fstatat(folder, tag.str().c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) { return TagTaken(tag.str()); }
  if (errno != ENOENT) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(tag.str()))); }
  // Its own descriptor: a staged snapshot may outlive the store.
  UniqueFd parent(::fcntl(folder, F_DUPFD_CLOEXEC, 0));
  if (!parent.valid()) { return ErrnoError(errno, "duplicate a descriptor"); }
  std::string name = HiddenName(kStagingPrefix, tag.str());
  if (::mkdirat(folder, name.c_str(), kFolderMode) != 0) { return ErrnoError(errno, absl::StrCat("make folder ", Quoted(name))); }
  auto staged = std::make_unique<StagedSnapshot::Impl>(std::move(parent), tag, std::move(name));  // from here on its destructor cleans up
  FORKD_ASSIGN_OR_RETURN(staged->dir, OpenBeneath(folder, staged->name, O_RDONLY | O_DIRECTORY));
  return StagedSnapshot(std::move(staged));
}

absl::StatusOr<LoadedSnapshot> SnapshotStore::LoadBlocking(const SnapshotTag& tag, MemoryCheck check) {
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, impl_->OpenSnapshot(tag));
  absl::StatusOr<LoadedSnapshot> loaded = impl_->Load(dir.get(), tag, check);
  if (!loaded.ok()) { return OfSnapshot(tag.str(), loaded.status()); }
  return loaded;
}

absl::Status SnapshotStore::CopyMemoryToBlocking(const LoadedSnapshot& root, int to) {
  const File* const entry = FindFile(root.manifest, kMemoryName);
  if (entry == nullptr || !root.memory.valid()) { return WrongOrder("CopyMemoryToBlocking of a branch"); }
  const absl::StatusOr<Sha256Digest> digest =
      CopyMemoryBlocking(root.memory.get(), to, static_cast<std::uint64_t>(entry->size_bytes()), kMemoryName);
  if (absl::IsOutOfRange(digest.status())) { return OfSnapshot(root.manifest.tag(), Damaged(kMemoryName, digest.status().message())); }
  if (!digest.ok()) { return OfSnapshot(root.manifest.tag(), digest.status()); }
  return OfSnapshot(root.manifest.tag(), CompareDigest(*entry, *digest));
}

absl::StatusOr<Manifest> SnapshotStore::ReadManifestBlocking(const SnapshotTag& tag) { return impl_->Read(tag); }

absl::Status SnapshotStore::VerifyBlocking(const SnapshotTag& tag) { return LoadBlocking(tag, MemoryCheck::kNow).status(); }

absl::StatusOr<SnapshotSizes> SnapshotStore::SizesBlocking(const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(const Manifest manifest, impl_->Read(tag));
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, impl_->OpenSnapshot(tag));
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectoryBlocking(dir.get()));
  SnapshotSizes sizes;
  sizes.memory_logical_bytes = manifest.memory_bytes();
  for (const std::string& name : names) {
    struct stat status = {};
    if (::fstatat(dir.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(name))); }
    const std::int64_t physical = std::int64_t{status.st_blocks} * 512;
    sizes.total_physical_bytes += physical;
    if (name == kMemoryName || name == kPagesName) { sizes.memory_physical_bytes = physical; }
    if (name == kDeviceStateName) { sizes.device_state_bytes = status.st_size; }
  }
  return sizes;
}

absl::StatusOr<std::vector<SnapshotTag>> SnapshotStore::ListBlocking() {
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectoryBlocking(impl_->folder.get()));
  std::vector<SnapshotTag> tags;
  for (const std::string& name : names) {
    absl::StatusOr<SnapshotTag> tag = SnapshotTag::Parse(name);
    if (!tag.ok()) { continue; }
    struct stat status = {};
    if (::fstatat(impl_->folder.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode)) { tags.push_back(*std::move(tag)); }
  }
  return tags;
}

absl::Status SnapshotStore::DeleteBlocking(const SnapshotTag& tag) {
  const int folder = impl_->folder.get();
  const std::string trash = HiddenName(kTrashPrefix, tag.str());
  FORKD_RETURN_IF_ERROR(FaultPoint("snapshot.delete.before_rename"));
  if (::renameat2(folder, tag.str().c_str(), folder, trash.c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == ENOENT) { return absl::OkStatus(); }
    return ErrnoError(errno, absl::StrCat("remove snapshot ", Quoted(tag.str())));
  }
  FORKD_RETURN_IF_ERROR(FaultPoint("snapshot.delete.after_rename"));
  FORKD_RETURN_IF_ERROR(SyncFolder(folder));
  return RemoveTreeBlocking(folder, trash);
}

absl::StatusOr<int> SnapshotStore::SweepStagingBlocking() {
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectoryBlocking(impl_->folder.get()));
  int removed = 0;
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, kStagingPrefix) && !absl::StartsWith(name, kTrashPrefix)) { continue; }
    FORKD_RETURN_IF_ERROR(RemoveTreeBlocking(impl_->folder.get(), name));
    ++removed;
  }
  return removed;
}

}  // namespace forkd::snapshot
