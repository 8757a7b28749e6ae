#include "server/gateway/http_template.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/gateway/percent_coding.h"

namespace forkd::gateway {
namespace {

// What a segment of a path may hold unescaped, but for ":", which begins a verb (RFC 3986, pchar).
bool IsLiteralCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::string_view("-._~!$&'()+,;@%").find(c) != absl::string_view::npos;
}

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNameCharacter(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_'; }

}  // namespace

// Recursive descent of one level: variables do not nest.
class TemplateParser {
 public:
  explicit TemplateParser(absl::string_view text) : text_(text) {}

  absl::StatusOr<HttpTemplate> Run() {
    if (!Take('/')) { return Wrong("must begin with \"/\""); }
    if (absl::Status status = Segments(/*in_variable=*/false); !status.ok()) { return status; }
    if (Take(':')) {
      while (at_ < text_.size() && IsLiteralCharacter(text_[at_])) { result_.verb_.push_back(text_[at_++]); }
      if (result_.verb_.empty()) { return Wrong("has an empty verb"); }
    }
    if (at_ != text_.size()) { return Wrong("has a character that does not belong there"); }
    for (std::size_t i = 0; i + 1 < result_.segments_.size(); ++i) {
      if (result_.segments_[i].wildcard == HttpTemplate::Wildcard::kRest) { return Wrong("has something after \"**\""); }
    }
    return std::move(result_);
  }

 private:
  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("path template \"", text_, "\" ", what, " (byte ", at_, ")"));
  }
  bool Take(char c) {
    if (at_ == text_.size() || text_[at_] != c) { return false; }
    ++at_;
    return true;
  }

  absl::Status Segments(bool in_variable) {
    do {
      if (absl::Status status = OneSegment(in_variable); !status.ok()) { return status; }
      if (result_.segments_.size() > kMaxPathSegments) { return Wrong("has too many segments"); }
    } while (Take('/'));
    return absl::OkStatus();
  }

  absl::Status OneSegment(bool in_variable) {
    if (Take('*')) {
      const bool rest = Take('*');
      result_.segments_.push_back({rest ? HttpTemplate::Wildcard::kRest : HttpTemplate::Wildcard::kOne, ""});
      return absl::OkStatus();
    }
    if (Take('{')) { return in_variable ? Wrong("has a variable inside a variable") : Variable(); }
    HttpTemplate::Segment segment;
    while (at_ < text_.size() && IsLiteralCharacter(text_[at_])) { segment.literal.push_back(text_[at_++]); }
    if (segment.literal.empty()) { return Wrong("has an empty segment"); }
    result_.segments_.push_back(std::move(segment));
    return absl::OkStatus();
  }

  absl::Status Variable() {
    HttpTemplate::Variable variable;
    variable.first = result_.segments_.size();
    do {
      if (at_ == text_.size() || !IsNameStart(text_[at_])) { return Wrong("has a variable without a field's name"); }
      if (!variable.field_path.empty()) { variable.field_path.push_back('.'); }
      while (at_ < text_.size() && IsNameCharacter(text_[at_])) { variable.field_path.push_back(text_[at_++]); }
    } while (Take('.'));
    if (Take('=')) {
      if (absl::Status status = Segments(/*in_variable=*/true); !status.ok()) { return status; }
    } else {
      result_.segments_.push_back({HttpTemplate::Wildcard::kOne, ""});
    }
    if (!Take('}')) { return Wrong("has a variable that is not closed"); }
    variable.last = result_.segments_.size();
    for (const HttpTemplate::Variable& other : result_.variables_) {
      if (other.field_path == variable.field_path) { return Wrong("binds a field twice"); }
    }
    result_.variables_.push_back(std::move(variable));
    return absl::OkStatus();
  }

  const absl::string_view text_;
  std::size_t at_ = 0;
  HttpTemplate result_;
};

absl::StatusOr<HttpTemplate> HttpTemplate::Parse(absl::string_view text) { return TemplateParser(text).Run(); }

HttpTemplate::Outcome HttpTemplate::Match(absl::string_view path, std::vector<Binding>* bindings) const {
  bindings->clear();
  if (path.empty() || path[0] != '/') { return Outcome::kNoMatch; }
  path.remove_prefix(1);
  if (!verb_.empty()) {
    const std::size_t colon = path.rfind(':');
    if (colon == absl::string_view::npos || path.substr(colon + 1) != verb_) { return Outcome::kNoMatch; }
    path = path.substr(0, colon);
  }
  if (std::count(path.begin(), path.end(), '/') >= static_cast<std::ptrdiff_t>(kMaxPathSegments)) { return Outcome::kNoMatch; }
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '/');
  const bool open_ended = !segments_.empty() && segments_.back().wildcard == Wildcard::kRest;
  const std::size_t fixed = segments_.size() - (open_ended ? 1 : 0);
  // "/a" also fits "/a/**": `**` may stand for nothing at all, its slash included.
  if (open_ended ? parts.size() < fixed : parts.size() != fixed) { return Outcome::kNoMatch; }
  for (std::size_t i = 0; i < fixed; ++i) {
    if (segments_[i].wildcard == Wildcard::kOne ? parts[i].empty() : parts[i] != segments_[i].literal) { return Outcome::kNoMatch; }
  }
  for (const Variable& variable : variables_) {
    const bool to_the_end = open_ended && variable.last == segments_.size();
    const bool several = to_the_end || variable.last - variable.first > 1;
    const std::size_t last = to_the_end ? parts.size() : variable.last;
    std::string raw;
    for (std::size_t i = variable.first; i < last; ++i) { absl::StrAppend(&raw, i == variable.first ? "" : "/", parts[i]); }
    std::optional<std::string> value = DecodePath(raw, several ? SlashEscapes::kKeep : SlashEscapes::kDecode);
    if (!value.has_value()) { return Outcome::kInvalidEncoding; }
    bindings->push_back({variable.field_path, *std::move(value)});
  }
  return Outcome::kMatch;
}

std::string HttpTemplate::Shape() const {
  std::string shape;
  for (const Segment& segment : segments_) {
    switch (segment.wildcard) {
      case Wildcard::kNone: absl::StrAppend(&shape, "/", segment.literal); break;
      case Wildcard::kOne: absl::StrAppend(&shape, "/*"); break;
      case Wildcard::kRest: absl::StrAppend(&shape, "/**"); break;
    }
  }
  if (!verb_.empty()) { absl::StrAppend(&shape, ":", verb_); }
  return shape;
}

bool HttpTemplate::MoreSpecific(const HttpTemplate& a, const HttpTemplate& b) {
  // With a verb, `{x}` no longer swallows ":verb".
  if (a.verb_.empty() != b.verb_.empty()) { return !a.verb_.empty(); }
  for (std::size_t i = 0; i < std::min(a.segments_.size(), b.segments_.size()); ++i) {
    if (a.segments_[i].wildcard != b.segments_[i].wildcard) { return a.segments_[i].wildcard < b.segments_[i].wildcard; }
  }
  return a.segments_.size() > b.segments_.size();
}

}  // namespace forkd::gateway
