// Compares text with a file of the tree; rewrites the file instead when FORKD_UPDATE_GOLDENS is set:
//   FORKD_UPDATE_GOLDENS=1 bazel run //cli:forkctl_test
#ifndef FORKD_CLI_TESTING_GOLDEN_H_
#define FORKD_CLI_TESTING_GOLDEN_H_

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

namespace forkd::cli {

// `path` is relative to the repository's root.
inline void ExpectGolden(const std::string& text, const std::string& path) {
  if (std::getenv("FORKD_UPDATE_GOLDENS") != nullptr) {
    const char* const root = std::getenv("BUILD_WORKSPACE_DIRECTORY");
    ASSERT_NE(root, nullptr) << "goldens are updated by bazel run";
    std::ofstream(std::string(root) + "/" + path) << text;
    return;
  }
  std::ifstream file(path);
  ASSERT_TRUE(file.good()) << path << " is missing; FORKD_UPDATE_GOLDENS=1 bazel run makes it";
  std::stringstream content;
  content << file.rdbuf();
  EXPECT_EQ(text, content.str()) << "golden file " << path;
}

}  // namespace forkd::cli

#endif  // FORKD_CLI_TESTING_GOLDEN_H_
