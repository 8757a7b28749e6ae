// Path templates of google.api.http, "/v1/{name=shelves/*/books/**}:archive", parsed once and matched against request paths.
// Grammar: google/api/http.proto, "Path template syntax". Pure and immutable; any thread.
#ifndef FORKD_SERVER_GATEWAY_HTTP_TEMPLATE_H_
#define FORKD_SERVER_GATEWAY_HTTP_TEMPLATE_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::gateway {

// Templates come from our own protos, paths from strangers: both are bounded.
inline constexpr std::size_t kMaxPathSegments = 64;

class HttpTemplate {
 public:
  enum class Wildcard {
    kNone,  // a literal
    kOne,  // `*`: one segment, not empty
    kRest,  // `**`: all that follows, perhaps nothing
  };
  struct Segment {
    Wildcard wildcard = Wildcard::kNone;
    std::string literal;
  };
  // Covers the segments [first, last) of the template.
  struct Variable {
    std::string field_path;
    std::size_t first = 0;
    std::size_t last = 0;
  };
  // What a variable stands for in one path: percent-decoded once. A variable of more than one segment keeps "%2F" and "%2f" as they are, for
  // a slash inside a segment is not one between segments.
  struct Binding {
    std::string field_path;
    std::string value;
  };
  enum class Outcome { kNoMatch, kMatch, kInvalidEncoding };

  // INVALID_ARGUMENT says what is wrong and at which byte.
  static absl::StatusOr<HttpTemplate> Parse(absl::string_view text);

  // `path` begins with "/" and has no query. On kMatch, `bindings` has one entry per variable, in the template's order. kInvalidEncoding: the
  // path fits, but an escape in a variable is broken or does not give UTF-8.
  Outcome Match(absl::string_view path, std::vector<Binding>* bindings) const;

  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<Variable>& variables() const { return variables_; }
  // After the colon; empty: none.
  const std::string& verb() const { return verb_; }
  // The template with variables' names left out: equal for two templates that match the same paths.
  std::string Shape() const;
  // Orders templates so that of two that match one path, the one that says more comes first.
  static bool MoreSpecific(const HttpTemplate& a, const HttpTemplate& b);

 private:
  friend class TemplateParser;
  std::vector<Segment> segments_;
  std::vector<Variable> variables_;
  std::string verb_;
};

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_HTTP_TEMPLATE_H_
