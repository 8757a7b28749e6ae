#include "snapshot/memory_file.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/beneath.h"
#include "base/unique_fd.h"

namespace forkd::snapshot {
namespace {

constexpr std::uint64_t kBytes = 10 * kMemoryBlockBytes + 12288;  // the last block is short

UniqueFd NewMemory() { return UniqueFd(::memfd_create("memory-file-test", MFD_CLOEXEC)); }

// Data in block 0, at the end of block 3, and in the short last block.
UniqueFd Sample() {
  UniqueFd fd = NewMemory();
  EXPECT_EQ(::ftruncate(fd.get(), kBytes), 0);
  EXPECT_TRUE(WriteAllBlocking(fd.get(), "first", 0, "sample").ok());
  EXPECT_TRUE(WriteAllBlocking(fd.get(), "fourth", 4 * kMemoryBlockBytes - 6, "sample").ok());
  EXPECT_TRUE(WriteAllBlocking(fd.get(), "last", kBytes - 4, "sample").ok());
  return fd;
}

std::string Content(int fd) {
  std::string bytes(kBytes, '\0');
  EXPECT_TRUE(ReadAllBlocking(fd, absl::MakeSpan(bytes.data(), bytes.size()), 0, "content").ok());
  return bytes;
}

// docs/snapshot-format.md, word by word.
Sha256Digest DigestByTheBook(const std::string& bytes) {
  Sha256 all;
  all.Update("forkd memory 1\n");
  all.UpdateU64(bytes.size());
  for (std::size_t number = 0; number * 65536 < bytes.size(); ++number) {
    const std::string block = bytes.substr(number * 65536, 65536);
    if (block.find_first_not_of('\0') == std::string::npos) { continue; }
    const Sha256Digest digest = Sha256Of(block);
    all.UpdateU64(number);
    all.Update(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  }
  return all.Finish();
}

TEST(MemoryFileTest, DigestIsTheDocumentedOne) {
  const UniqueFd fd = Sample();
  const absl::StatusOr<Sha256Digest> digest = HashMemoryBlocking(fd.get(), kBytes, "memory.bin");
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(ToHex(*digest), ToHex(DigestByTheBook(Content(fd.get()))));
}

TEST(MemoryFileTest, HolesAndWrittenZerosHashAlike) {
  const UniqueFd sparse = Sample();
  const UniqueFd dense = NewMemory();
  ASSERT_TRUE(WriteAllBlocking(dense.get(), Content(sparse.get()), 0, "dense").ok());
  EXPECT_EQ(*HashMemoryBlocking(sparse.get(), kBytes, "a"), *HashMemoryBlocking(dense.get(), kBytes, "b"));
}

TEST(MemoryFileTest, EveryByteCounts) {
  const UniqueFd fd = Sample();
  const Sha256Digest before = *HashMemoryBlocking(fd.get(), kBytes, "a");
  for (const std::uint64_t at : {std::uint64_t{0}, kMemoryBlockBytes * 2 + 17, kBytes - 1}) {
    const std::string old = Content(fd.get()).substr(at, 1);
    ASSERT_TRUE(WriteAllBlocking(fd.get(), "!", at, "a").ok());
    EXPECT_NE(*HashMemoryBlocking(fd.get(), kBytes, "a"), before) << at;
    ASSERT_TRUE(WriteAllBlocking(fd.get(), old, at, "a").ok());
  }
  EXPECT_EQ(*HashMemoryBlocking(fd.get(), kBytes, "a"), before);
}

TEST(MemoryFileTest, DataThatMovesToAnotherBlockChangesTheDigest) {
  const UniqueFd a = NewMemory();
  const UniqueFd b = NewMemory();
  ASSERT_EQ(::ftruncate(a.get(), kBytes), 0);
  ASSERT_EQ(::ftruncate(b.get(), kBytes), 0);
  ASSERT_TRUE(WriteAllBlocking(a.get(), "x", kMemoryBlockBytes, "a").ok());
  ASSERT_TRUE(WriteAllBlocking(b.get(), "x", 2 * kMemoryBlockBytes, "b").ok());
  EXPECT_NE(*HashMemoryBlocking(a.get(), kBytes, "a"), *HashMemoryBlocking(b.get(), kBytes, "b"));
}

TEST(MemoryFileTest, CopyIsEqualSparseAndHashed) {
  const UniqueFd from = Sample();
  const UniqueFd dense = NewMemory();
  ASSERT_TRUE(WriteAllBlocking(dense.get(), Content(from.get()), 0, "dense").ok());
  const UniqueFd to = NewMemory();
  const absl::StatusOr<Sha256Digest> digest = CopyMemoryBlocking(dense.get(), to.get(), kBytes, "memory.bin");
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, *HashMemoryBlocking(from.get(), kBytes, "a"));
  EXPECT_EQ(Content(to.get()), Content(from.get()));
  struct stat status = {};
  ASSERT_EQ(::fstat(to.get(), &status), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), kBytes);
  EXPECT_EQ(status.st_blocks * 512, 3 * 4096);  // one page for each of the three words
}

TEST(MemoryFileTest, SourceThatIsTooShortIsOutOfRange) {
  const UniqueFd from = Sample();
  const UniqueFd to = NewMemory();
  EXPECT_TRUE(absl::IsOutOfRange(CopyMemoryBlocking(from.get(), to.get(), kBytes + 1, "memory.bin").status()));
  EXPECT_TRUE(absl::IsOutOfRange(HashMemoryBlocking(from.get(), kBytes + 1, "memory.bin").status()));
}

}  // namespace
}  // namespace forkd::snapshot
