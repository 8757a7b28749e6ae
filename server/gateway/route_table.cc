#include "server/gateway/route_table.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "google/api/annotations.pb.h"
#include "server/gateway/field_path.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

// The order of the Allow header.
constexpr absl::string_view kVerbOrder[] = {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"};

absl::Status Wrong(const pb::MethodDescriptor* method, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("google.api.http of ", method->full_name(), ": ", what));
}

absl::StatusOr<Route> RouteOf(const pb::MethodDescriptor* method, const google::api::HttpRule& rule) {
  Route route;
  route.method = method;
  route.grpc_path = absl::StrCat("/", method->service()->full_name(), "/", method->name());
  std::string path;
  switch (rule.pattern_case()) {
    case google::api::HttpRule::kGet: route.verb = "GET"; path = rule.get(); break;
    case google::api::HttpRule::kPut: route.verb = "PUT"; path = rule.put(); break;
    case google::api::HttpRule::kPost: route.verb = "POST"; path = rule.post(); break;
    case google::api::HttpRule::kDelete: route.verb = "DELETE"; path = rule.delete_(); break;
    case google::api::HttpRule::kPatch: route.verb = "PATCH"; path = rule.patch(); break;
    case google::api::HttpRule::kCustom: route.verb = rule.custom().kind(); path = rule.custom().path(); break;
    case google::api::HttpRule::PATTERN_NOT_SET: return Wrong(method, "names no path");
  }
  absl::StatusOr<HttpTemplate> parsed = HttpTemplate::Parse(path);
  if (!parsed.ok()) { return Wrong(method, parsed.status().message()); }
  route.path = *std::move(parsed);
  const pb::Descriptor* request = method->input_type();
  std::set<const pb::FieldDescriptor*> bound;
  for (const HttpTemplate::Variable& variable : route.path.variables()) {
    const std::vector<const pb::FieldDescriptor*> fields = ResolveFieldPath(request, variable.field_path);
    if (fields.empty() || fields.back()->is_repeated() || fields.back()->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
      return Wrong(method, absl::StrCat("\"", variable.field_path, "\" is no plain field of ", request->full_name()));
    }
    if (fields.size() == 1) { bound.insert(fields.back()); }
  }
  if (rule.body() == "*") {
    // A request whose fields all stand in the path has nothing that a body could say.
    const bool any_left = request->field_count() > static_cast<int>(bound.size());
    route.body = any_left ? BodyUse::kMessage : BodyUse::kNone;
  } else if (!rule.body().empty()) {
    route.body = BodyUse::kField;
    route.body_field = request->FindFieldByName(rule.body());
    if (route.body_field == nullptr) { return Wrong(method, absl::StrCat("body \"", rule.body(), "\" is no field of ", request->full_name())); }
  }
  if (!rule.response_body().empty()) {
    route.response_field = method->output_type()->FindFieldByName(rule.response_body());
    if (route.response_field == nullptr) {
      return Wrong(method, absl::StrCat("response_body \"", rule.response_body(), "\" is no field of ", method->output_type()->full_name()));
    }
  }
  return route;
}

std::string AllowHeader(const std::set<std::string>& verbs) {
  std::vector<absl::string_view> ordered;
  for (const absl::string_view verb : kVerbOrder) {
    if (verbs.count(std::string(verb)) != 0 || (verb == "HEAD" && verbs.count("GET") != 0)) { ordered.push_back(verb); }
  }
  return absl::StrJoin(ordered, ",");
}

}  // namespace

absl::StatusOr<RouteTable> RouteTable::Build(const std::vector<const pb::MethodDescriptor*>& methods) {
  RouteTable table;
  std::set<std::string> seen;
  for (const pb::MethodDescriptor* method : methods) {
    if (!method->options().HasExtension(google::api::http)) { continue; }
    const google::api::HttpRule& rule = method->options().GetExtension(google::api::http);
    std::vector<const google::api::HttpRule*> rules = {&rule};
    for (const google::api::HttpRule& more : rule.additional_bindings()) {
      if (more.additional_bindings_size() != 0) { return Wrong(method, "additional_bindings do not nest"); }
      rules.push_back(&more);
    }
    for (const google::api::HttpRule* one : rules) {
      FORKD_ASSIGN_OR_RETURN(Route route, RouteOf(method, *one));
      if (!seen.insert(absl::StrCat(route.verb, " ", route.path.Shape())).second) {
        return Wrong(method, absl::StrCat(route.verb, " ", route.path.Shape(), " is another method's already"));
      }
      table.routes_.push_back(std::move(route));
    }
  }
  std::sort(table.routes_.begin(), table.routes_.end(), [](const Route& a, const Route& b) { return HttpTemplate::MoreSpecific(a.path, b.path); });
  return table;
}

RouteMatch RouteTable::Find(absl::string_view verb, absl::string_view path) const {
  const absl::string_view wanted = verb == "HEAD" ? "GET" : verb;
  RouteMatch match;
  std::set<std::string> others;
  bool invalid = false;
  for (const Route& route : routes_) {
    std::vector<HttpTemplate::Binding> bindings;
    const HttpTemplate::Outcome outcome = route.path.Match(path, &bindings);
    if (outcome == HttpTemplate::Outcome::kNoMatch) { continue; }
    if (route.verb != wanted) {
      others.insert(route.verb);
      continue;
    }
    if (outcome == HttpTemplate::Outcome::kInvalidEncoding) {
      invalid = true;
      break;
    }
    match.kind = RouteMatch::Kind::kFound;
    match.route = &route;
    match.bindings = std::move(bindings);
    return match;
  }
  if (invalid) {
    match.kind = RouteMatch::Kind::kInvalidPath;
  } else if (!others.empty()) {
    match.kind = RouteMatch::Kind::kMethodNotAllowed;
    match.allow = AllowHeader(others);
  }
  return match;
}

}  // namespace forkd::gateway
