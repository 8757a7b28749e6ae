// A manifest with everything in it, for tests.
#ifndef FORKD_SNAPSHOT_TESTING_SAMPLE_MANIFEST_H_
#define FORKD_SNAPSHOT_TESTING_SAMPLE_MANIFEST_H_

#include <string>

#include "snapshot/manifest.h"

namespace forkd::snapshot {

// What an engine fills in before it publishes: no files, tag, version, sizes.
inline Manifest UnpublishedRootForTest() {
  Manifest m;
  m.set_kind(ROOT);
  m.set_created_at_unix(1785000000);
  (*m.mutable_machine())["vmm"] = "qemu";
  (*m.mutable_machine())["vmm_version"] = "7.2.22";
  (*m.mutable_machine())["accelerator"] = "tcg";
  m.mutable_shape()->set_vcpus(2);
  m.mutable_shape()->set_memory_mib(256);
  m.mutable_image()->set_name("python");
  m.mutable_image()->set_hash(std::string(64, 'a'));
  m.mutable_kernel()->set_path("/var/lib/forkd/images/python/vmlinuz");
  m.mutable_kernel()->set_sha256(std::string(64, 'b'));
  m.mutable_rootfs()->set_path("/var/lib/forkd/images/python/rootfs.squashfs");
  m.mutable_rootfs()->set_sha256(std::string(64, 'c'));
  m.set_agent_version("1.0.0");
  m.set_sync_token("00112233445566778899aabbccddeeff");
  (*m.mutable_labels())["team"] = "blue ü \"q\"";
  m.add_captured("memory");
  m.add_captured("device-state");
  return m;
}

inline Manifest UnpublishedBranchForTest(const Manifest& root) {
  Manifest m = UnpublishedRootForTest();
  m.set_kind(BRANCH);
  m.set_root_tag(root.tag());
  m.set_parent_tag(root.tag());
  m.set_depth(1);
  m.set_root_memory_digest(FindFile(root, kMemoryName)->digest());
  m.set_branched_from("sb-6a60c2f1-0001");
  m.set_pause_ms(6);
  return m;
}

inline void AddFileForTest(Manifest& m, const char* name, std::int64_t bytes, const char* scheme) {
  File* const file = m.add_files();
  file->set_name(name);
  file->set_size_bytes(bytes);
  file->set_digest(std::string(64, 'd'));
  file->set_scheme(scheme);
}

// Valid as they are.
inline Manifest RootForTest() {
  Manifest m = UnpublishedRootForTest();
  m.set_format_version(kFormatVersion);
  m.set_tag("py312");
  m.set_root_tag("py312");
  m.set_memory_bytes(256 << 20);
  AddFileForTest(m, kDeviceStateName, 9000, kSchemeSha256);
  AddFileForTest(m, kMemoryName, 256 << 20, kSchemeBlocks);
  return m;
}

inline Manifest BranchForTest() {
  Manifest m = UnpublishedBranchForTest(RootForTest());
  m.set_format_version(kFormatVersion);
  m.set_tag("branch-1");
  m.set_memory_bytes(256 << 20);
  m.mutable_pages()->set_page_count(4);
  m.mutable_pages()->set_zero_page_count(2);
  AddFileForTest(m, kDeviceStateName, 9000, kSchemeSha256);
  AddFileForTest(m, kPagesName, 12288, kSchemeIndex);
  return m;
}

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_TESTING_SAMPLE_MANIFEST_H_
