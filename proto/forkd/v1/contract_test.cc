// The contract as released: names, numbers, types and routes compared with a committed text, so that a change of the wire is seen in review.
//   FORKD_UPDATE_GOLDENS=1 bazel run //proto/forkd/v1:contract_test
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "google/api/annotations.pb.h"
#include "proto/forkd/v1/admin.pb.h"
#include "proto/forkd/v1/options.pb.h"
#include "proto/forkd/v1/sandbox.pb.h"
#include "proto/forkd/v1/snapshot.pb.h"

namespace forkd::v1 {
namespace {

namespace pb = google::protobuf;

std::string TypeOf(const pb::FieldDescriptor* field) {
  if (field->is_map()) {
    return "map<" + TypeOf(field->message_type()->map_key()) + ", " + TypeOf(field->message_type()->map_value()) + ">";
  }
  if (field->message_type() != nullptr) {
    return field->message_type()->full_name();
  }
  return field->enum_type() != nullptr ? field->enum_type()->full_name() : field->type_name();
}

std::string RouteOf(const pb::MethodDescriptor* method) {
  const google::api::HttpRule& rule = method->options().GetExtension(google::api::http);
  std::string route = rule.has_get()      ? "GET " + rule.get()
                      : rule.has_post()   ? "POST " + rule.post()
                      : rule.has_put()    ? "PUT " + rule.put()
                      : rule.has_delete_() ? "DELETE " + rule.delete_()
                                          : "none";
  if (!rule.body().empty()) {
    route += " body=" + rule.body();
  }
  if (!rule.response_body().empty()) {
    route += " response_body=" + rule.response_body();
  }
  const int status = method->options().GetExtension(call).http_reply().status();
  return route + " -> " + std::to_string(status == 0 ? 200 : status);
}

void Append(const pb::EnumDescriptor* type, std::ostream& out) {
  out << "enum " << type->full_name() << "\n";
  for (int i = 0; i < type->value_count(); ++i) {
    out << "  " << type->value(i)->number() << " " << type->value(i)->name() << "\n";
  }
}

void Append(const pb::Descriptor* type, std::ostream& out) {
  if (type->options().map_entry()) {
    return;
  }
  out << "message " << type->full_name() << "\n";
  for (int i = 0; i < type->field_count(); ++i) {
    const pb::FieldDescriptor* field = type->field(i);
    out << "  " << field->number() << " " << field->name() << " "
        << (field->is_map()                                     ? ""
            : field->is_repeated()                              ? "repeated "
            : field->real_containing_oneof() != nullptr         ? "oneof "
            : field->has_presence() && !field->message_type() ? "optional "
                                                                : "")
        << TypeOf(field) << "\n";
  }
  for (int i = 0; i < type->nested_type_count(); ++i) {
    Append(type->nested_type(i), out);
  }
  for (int i = 0; i < type->enum_type_count(); ++i) {
    Append(type->enum_type(i), out);
  }
}

const std::vector<const pb::FileDescriptor*>& Files() {
  static const auto* const files = new std::vector<const pb::FileDescriptor*>{
      DoctorRequest::descriptor()->file(), CallOptions::descriptor()->file(), SandboxInfo::descriptor()->file(),
      SnapshotInfo::descriptor()->file()};
  return *files;
}

TEST(ContractTest, NamesNumbersTypesAndRoutesAreAsReleased) {
  std::stringstream text;
  for (const pb::FileDescriptor* file : Files()) {
    for (int s = 0; s < file->service_count(); ++s) {
      text << "service " << file->service(s)->full_name() << "\n";
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const pb::MethodDescriptor* method = file->service(s)->method(m);
        text << "  " << method->name() << "(" << (method->client_streaming() ? "stream " : "") << method->input_type()->full_name() << ") "
             << (method->server_streaming() ? "stream " : "") << method->output_type()->full_name() << "\n    " << RouteOf(method) << "\n";
      }
    }
    for (int i = 0; i < file->message_type_count(); ++i) {
      Append(file->message_type(i), text);
    }
    for (int i = 0; i < file->enum_type_count(); ++i) {
      Append(file->enum_type(i), text);
    }
    for (int i = 0; i < file->extension_count(); ++i) {
      text << "extend " << file->extension(i)->containing_type()->full_name() << "\n  " << file->extension(i)->number() << " "
           << file->extension(i)->name() << " " << TypeOf(file->extension(i)) << "\n";
    }
  }
  constexpr char kPath[] = "proto/forkd/v1/contract.golden";
  if (std::getenv("FORKD_UPDATE_GOLDENS") != nullptr) {
    const char* const root = std::getenv("BUILD_WORKSPACE_DIRECTORY");
    ASSERT_NE(root, nullptr) << "the golden file is updated by bazel run";
    std::ofstream(std::string(root) + "/" + kPath) << text.str();
    return;
  }
  std::ifstream file(kPath);
  ASSERT_TRUE(file.good());
  std::stringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(text.str(), golden.str());
}

TEST(ContractTest, EveryMethodHasARouteOfItsOwn) {
  std::set<std::string> routes;
  for (const pb::FileDescriptor* file : Files()) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const std::string route = RouteOf(file->service(s)->method(m));
        EXPECT_EQ(route.find("none"), std::string::npos) << file->service(s)->method(m)->full_name();
        EXPECT_TRUE(routes.insert(route.substr(0, route.find(" body"))).second) << route;
      }
    }
  }
}

// A variable of a path that is no field of the request could never be bound.
TEST(ContractTest, PathVariablesAndBodiesAreFieldsOfTheRequest) {
  for (const pb::FileDescriptor* file : Files()) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const pb::MethodDescriptor* method = file->service(s)->method(m);
        const std::string route = RouteOf(method);
        for (size_t open = route.find('{'); open != std::string::npos; open = route.find('{', open + 1)) {
          std::stringstream path(route.substr(open + 1, route.find('}', open) - open - 1));
          const pb::Descriptor* type = method->input_type();
          for (std::string part; std::getline(path, part, '.');) {
            ASSERT_NE(type, nullptr) << route;
            const pb::FieldDescriptor* field = type->FindFieldByName(part);
            ASSERT_NE(field, nullptr) << route << " of " << method->full_name();
            type = field->message_type();
          }
        }
        const google::api::HttpRule& rule = method->options().GetExtension(google::api::http);
        if (!rule.response_body().empty()) {
          EXPECT_NE(method->output_type()->FindFieldByName(rule.response_body()), nullptr) << route;
        }
        const HttpReply& reply = method->options().GetExtension(call).http_reply();
        if (!reply.accepted_field().empty()) {
          EXPECT_NE(method->output_type()->FindFieldByName(reply.accepted_field()), nullptr) << route;
        }
        const CliCommand& cli = method->options().GetExtension(call).cli();
        for (const std::string& name : {cli.output_field(), cli.process().stdout(), cli.process().stdout_raw(), cli.process().stderr(),
                                        cli.process().stderr_raw(), cli.process().exit_code(), cli.process().result(), cli.process().error()}) {
          EXPECT_TRUE(name.empty() || method->output_type()->FindFieldByName(name) != nullptr) << name << " of " << method->full_name();
        }
        EXPECT_TRUE(cli.input_field().empty() || method->input_type()->FindFieldByName(cli.input_field()) != nullptr);
      }
    }
  }
}

}  // namespace
}  // namespace forkd::v1
