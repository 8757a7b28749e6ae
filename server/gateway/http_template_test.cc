#include "server/gateway/http_template.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace forkd::gateway {
namespace {

// "name=value,…", "-" for no match, "!" for an invalid escape.
std::string Matched(const char* text, const char* path) {
  const absl::StatusOr<HttpTemplate> parsed = HttpTemplate::Parse(text);
  if (!parsed.ok()) { return parsed.status().ToString(); }
  std::vector<HttpTemplate::Binding> bindings;
  switch (parsed->Match(path, &bindings)) {
    case HttpTemplate::Outcome::kNoMatch: return "-";
    case HttpTemplate::Outcome::kInvalidEncoding: return "!";
    case HttpTemplate::Outcome::kMatch: break;
  }
  std::string all;
  for (const HttpTemplate::Binding& binding : bindings) { absl::StrAppend(&all, all.empty() ? "" : ",", binding.field_path, "=", binding.value); }
  return all;
}

TEST(HttpTemplateTest, PathsBindVariables) {
  const struct {
    const char* text;
    const char* path;
    const char* bound;
  } rows[] = {
      {"/v1/a", "/v1/a", ""},
      {"/v1/a", "/v1/a/", "-"},
      {"/v1/a", "/v1/A", "-"},
      {"/v1/a", "v1/a", "-"},
      {"/v1/{id}", "/v1/x", "id=x"},
      {"/v1/{id}", "/v1/", "-"},
      {"/v1/{id}", "/v1/x/y", "-"},
      {"/v1/{id}", "/v1/a%2Fb%252F", "id=a/b%2F"},
      {"/v1/{id}", "/v1/%zz", "!"},
      {"/v1/{id}", "/v1/%ff", "!"},
      {"/v1/{start.id}/exec", "/v1/sb-1/exec", "start.id=sb-1"},
      {"/v1/{name=a/*/b/**}", "/v1/a/x/b/c/d", "name=a/x/b/c/d"},
      {"/v1/{name=a/*/b/**}", "/v1/a/x/b", "name=a/x/b"},
      {"/v1/{name=a/*/b/**}", "/v1/a/x%2fy/b/c", "name=a/x%2fy/b/c"},
      {"/v1/{name=a/*/b/**}", "/v1/a//b/c", "-"},
      {"/v1/{id}:go", "/v1/x:go", "id=x"},
      {"/v1/{id}:go", "/v1/x:stop", "-"},
      {"/v1/{a}/{b}", "/v1/1/2", "a=1,b=2"},
  };
  for (const auto& row : rows) { EXPECT_EQ(Matched(row.text, row.path), row.bound) << row.text << " " << row.path; }
}

TEST(HttpTemplateTest, MalformedTemplatesAreRefused) {
  for (const char* text : {"", "v1", "/", "/v1/", "/v1/{", "/v1/{}", "/v1/{a", "/v1/{a=}", "/v1/{a={b}}", "/v1/{a}/{a}", "/v1/**/x", "/v1:", "/v1/{1a}", "/a b"}) {
    EXPECT_FALSE(HttpTemplate::Parse(text).ok()) << text;
  }
}

}  // namespace
}  // namespace forkd::gateway
