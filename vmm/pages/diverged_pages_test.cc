#include "vmm/pages/diverged_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "vmm/pages/root_image.h"

namespace forkd::vmm {
namespace {

constexpr int64_t kPages = 3000;
constexpr int64_t kBytes = kPages * kPageBytes;

// A private copy of a sealed root, in this very process: what a VMM has.
class PrivateCopy {
 public:
  PrivateCopy() : root_(MakeRoot()) {
    memory_ = static_cast<char*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, root_.fd(), 0));
  }
  ~PrivateCopy() { ::munmap(memory_, kBytes); }

  char* page(int64_t index) { return memory_ + index * kPageBytes; }
  char* memory() { return memory_; }
  const RootImage& root() const { return root_; }
  std::vector<RootMapping> Mappings() {
    const auto found = FindRootMappings(::getpid(), root_.inode(), kBytes);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::vector<RootMapping>();
  }

 private:
  static RootImage MakeRoot() {
    RootImage root = *RootImage::CreateBlocking("pages-test", kBytes);
    const std::string page(static_cast<std::size_t>(kPageBytes), 'r');
    for (int64_t i = 0; i < kPages; i += 2) { EXPECT_EQ(::pwrite(root.fd(), page.data(), page.size(), i * kPageBytes), kPageBytes); }
    EXPECT_TRUE(root.SealBlocking().ok());
    return root;
  }
  RootImage root_;
  char* memory_;
};

constexpr char kMaps[] =
    "55d0c8a00000-55d0c8b00000 r-xp 00000000 fd:00 1234                       /usr/bin/qemu-system-x86_64\n"
    "7f0000000000-7f0001000000 rw-p 00000000 00:01 77                         /memfd:forkd-py (deleted)\n"
    "7f0001000000-7f0004000000 rw-p 01000000 00:01 77                         /memfd:forkd-py (deleted)\n"
    "7f0005000000-7f0006000000 rw-s 00000000 00:01 78                         /memfd:forkd-other (deleted)\n"
    "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n"
    "7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0 \n";

TEST(ParseRootMappings, FindsAMappingInPieces) {
  const auto found = ParseRootMappings(kMaps, 77, 64 << 20);
  ASSERT_TRUE(found.ok()) << found.status();
  const std::vector<RootMapping> expected = {{0x7f0000000000, 16 << 20, 0}, {0x7f0001000000, 48 << 20, 16 << 20}};
  EXPECT_EQ(*found, expected);
}

TEST(ParseRootMappings, RefusesAnythingButOnePrivateCopy) {
  struct Case {
    const char* name;
    std::string maps;
    ino_t inode;
    int64_t bytes;
  };
  const std::string two = absl::StrCat(kMaps, "7f1000000000-7f1001000000 rw-p 00000000 00:01 77 /memfd:forkd-py (deleted)\n");
  const Case cases[] = {
      {"another root", kMaps, 79, 64 << 20},
      {"a shared one, a parent's", kMaps, 78, 16 << 20},
      {"too small a copy", kMaps, 77, 128 << 20},
      {"too large a copy", kMaps, 77, 32 << 20},
      {"two copies", two, 77, 64 << 20},
      {"the same inode on a disk", "7f0000000000-7f0000001000 rw-p 00000000 fd:00 77 /some/file\n", 77, 4096},
      {"read-only", "7f0000000000-7f0000001000 r--p 00000000 00:01 77 /memfd:x (deleted)\n", 77, 4096},
      {"nothing", "", 77, 4096},
  };
  for (const Case& c : cases) {
    const absl::Status refused = ParseRootMappings(c.maps, c.inode, c.bytes).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << c.name << ": " << refused;
  }
}

TEST(ParseRootMappings, RefusesLinesOfAnotherForm) {
  for (const char* line : {"x", "7f00-7f01", "7f01-7f00 rw-p 0 00:01 77 /memfd:x", "7f00-7f01 rw 0 00:01 77 /memfd:x", "7f00-7f01 rw-p 0 00:01 x /memfd:x",
                           "zz-7f01 rw-p 0 00:01 77 /memfd:x"}) {
    EXPECT_EQ(ParseRootMappings(line, 77, 4096).status().code(), absl::StatusCode::kInternal) << line;
  }
}

class ScanTest : public testing::TestWithParam<ScanMethod> {
 protected:
  std::vector<PageIndex> Scan(PrivateCopy& copy) {
    const auto pages = ScanDivergedPages(::getpid(), copy.Mappings(), GetParam());
    if (pages.status().code() == absl::StatusCode::kUnimplemented) { missing_ = true; }
    return pages.ok() ? *pages : std::vector<PageIndex>();
  }
  bool missing_ = false;
};

INSTANTIATE_TEST_SUITE_P(Methods, ScanTest, testing::Values(ScanMethod::kAuto, ScanMethod::kPagemapScan, ScanMethod::kReadPagemap));

TEST_P(ScanTest, OnlyWrittenPagesHaveDiverged) {
  PrivateCopy copy;
  volatile char sink = 0;
  for (int64_t page = 0; page < kPages; page += 3) { sink = sink + *copy.page(page); }  // reading copies nothing
  EXPECT_TRUE(Scan(copy).empty());
  if (missing_) { GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN"; }
  std::mt19937 random(7);
  std::set<PageIndex> written = {0, kPages - 1};
  for (int i = 0; i < 400; ++i) { written.insert(random() % kPages); }
  for (PageIndex page = 1000; page < 1600; ++page) { written.insert(page); }
  for (const PageIndex page : written) { *copy.page(static_cast<int64_t>(page)) = 'w'; }
  EXPECT_EQ(Scan(copy), std::vector<PageIndex>(written.begin(), written.end()));
}

TEST_P(ScanTest, AMappingInPiecesIsOneMemory) {
  PrivateCopy copy;
  ASSERT_EQ(::madvise(copy.page(1000), 500 * kPageBytes, MADV_DONTDUMP), 0);  // splits it in the kernel
  ASSERT_EQ(copy.Mappings().size(), 3u);
  for (const int64_t page : {999, 1000, 1499, 1500, 2999}) { *copy.page(page) = 'w'; }
  const std::vector<PageIndex> expected = {999, 1000, 1499, 1500, 2999};
  const std::vector<PageIndex> found = Scan(copy);
  if (missing_) { GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN"; }
  EXPECT_EQ(found, expected);
}

TEST(CopyAndInject, PagesGoFromOneCopyToAnother) {
  PrivateCopy source;
  std::mt19937 random(3);
  std::set<PageIndex> written;
  // More runs than one system call takes (1024), and one long run.
  for (PageIndex page = 0; page < 2600; page += 2) { written.insert(page); }
  for (PageIndex page = 2600; page < 2900; ++page) { written.insert(page); }
  for (const PageIndex page : written) { std::memset(source.page(static_cast<int64_t>(page)), static_cast<int>(random() % 256), kPageBytes); }
  const std::vector<RootMapping> from = source.Mappings();
  const auto pages = CopyPages(::getpid(), from, *ScanDivergedPages(::getpid(), from));
  ASSERT_TRUE(pages.ok()) << pages.status();
  EXPECT_EQ(pages->page_count(), static_cast<int64_t>(written.size()));

  PrivateCopy target;
  ASSERT_TRUE(InjectPages(::getpid(), target.Mappings(), *pages).ok());
  EXPECT_EQ(std::memcmp(source.memory(), target.memory(), kBytes), 0);
  EXPECT_EQ(*ScanDivergedPages(::getpid(), target.Mappings()), std::vector<PageIndex>(written.begin(), written.end())) << "injected pages are the copy's own";
}

TEST(CopyAndInject, ABufferThatIsTooSmallIsReplaced) {
  PrivateCopy copy;
  for (const int64_t page : {5, 6, 7}) { *copy.page(page) = static_cast<char>('0' + page); }
  for (const std::size_t pages : {0u, 1u, 3u, 9u}) {
    Mapping buffer = *Mapping::Anonymous(pages * kPageBytes, Mapping::Prefault::kYes);
    const auto set = CopyPages(::getpid(), copy.Mappings(), {5, 6, 7}, std::move(buffer));
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->page(2)[0], '7') << pages;
  }
}

TEST(CopyAndInject, APageBeyondTheEndIsRefusedBeforeAnythingIsWritten) {
  PrivateCopy target;
  Mapping bytes = *Mapping::Anonymous(2 * kPageBytes, Mapping::Prefault::kNo);
  std::memset(bytes.data(), 'x', 2 * kPageBytes);
  const PageSet pages = *PageSet::Create({1, kPages}, std::move(bytes));
  EXPECT_EQ(InjectPages(::getpid(), target.Mappings(), pages).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(*target.page(1), 'x');
}

TEST(CopyAndInject, NothingIsNoError) {
  PrivateCopy copy;
  const auto pages = CopyPages(::getpid(), copy.Mappings(), {});
  ASSERT_TRUE(pages.ok());
  EXPECT_TRUE(pages->empty());
  EXPECT_TRUE(InjectPages(::getpid(), copy.Mappings(), *pages).ok());
}

TEST(CopyAndInject, AProcessThatIsGone) {
  const std::vector<RootMapping> mappings = {{0x10000, 4096, 0}};
  constexpr pid_t kNobody = 1 << 22;
  EXPECT_EQ(FindRootMappings(kNobody, 1, 4096).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ScanDivergedPages(kNobody, mappings).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CopyPages(kNobody, mappings, {0}).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace forkd::vmm
