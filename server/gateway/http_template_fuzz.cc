// Any template against any path: the two lines of the input. What parses has a shape that parses to the same shape again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "server/gateway/http_template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using forkd::gateway::HttpTemplate;
  const absl::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t newline = all.find('\n');
  const absl::StatusOr<HttpTemplate> parsed = HttpTemplate::Parse(all.substr(0, newline));
  if (!parsed.ok()) { return 0; }
  const absl::StatusOr<HttpTemplate> again = HttpTemplate::Parse(parsed->Shape());
  if (!again.ok() || again->Shape() != parsed->Shape()) { std::abort(); }
  if (newline == absl::string_view::npos) { return 0; }
  std::vector<HttpTemplate::Binding> bindings;
  const HttpTemplate::Outcome outcome = parsed->Match(all.substr(newline + 1), &bindings);
  if (outcome == HttpTemplate::Outcome::kMatch && bindings.size() != parsed->variables().size()) { std::abort(); }
  return 0;
}
