// A service that forkctl's code does not know, called by nothing but its descriptors.
#include <fstream>
#include <memory>
#include <string>

#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/testing/brewery.grpc.pb.h"
#include "cli/testing/run_captured.h"
// The options' generated extensions must be known before the descriptor set is parsed.
#include "proto/forkd/v1/options.pb.h"

namespace forkd::cli {
namespace {

class Brewery : public brewery::BreweryService::Service {
  grpc::Status BrewTea(grpc::ServerContext*, const brewery::BrewTeaRequest* request, brewery::Brew* brew) override {
    *brew->mutable_asked() = *request;
    brew->set_serial(9007199254740993);
    brew->set_brewed_at_unix(1784700000);
    brew->set_volume_bytes(1536);
    return grpc::Status::OK;
  }
  grpc::Status ListLeaves(grpc::ServerContext*, const brewery::ListLeavesRequest*, brewery::ListLeavesResponse* response) override {
    for (const char* name : {"assam", "ceylon-orange-pekoe", "na\x1b[31mna"}) {
      brewery::Leaf* leaf = response->add_leaves();
      leaf->set_name(name);
      leaf->set_weight_mib(12);
    }
    return grpc::Status::OK;
  }
  grpc::Status WatchDrops(grpc::ServerContext*, const brewery::WatchDropsRequest* request,
                          grpc::ServerWriter<brewery::Drop>* writer) override {
    for (int i = 1; i <= request->count(); ++i) {
      brewery::Drop drop;
      drop.set_number(i);
      drop.mutable_leaf()->set_name("assam");
      writer->Write(drop);
    }
    return request->count() > 5 ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the pot is empty") : grpc::Status::OK;
  }
  grpc::Status Grind(grpc::ServerContext*, grpc::ServerReader<brewery::GrindRequest>* reader, brewery::Brew* brew) override {
    brewery::GrindRequest piece;
    std::string beans;
    int messages = 0;
    while (reader->Read(&piece)) {
      if (++messages == 1) {
        brew->mutable_asked()->set_leaf(piece.name());
      } else if (!piece.name().empty()) {
        return {grpc::StatusCode::INVALID_ARGUMENT, "the name came twice"};
      }
      beans += piece.beans();
    }
    brew->set_serial(static_cast<int64_t>(beans.size()));
    brew->set_flaw(absl::StrCat(messages, " messages"));
    return grpc::Status::OK;
  }
};

class NewRpcTest : public testing::Test {
 protected:
  NewRpcTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
    std::ifstream file("cli/testing/brewery.binpb", std::ios::binary);
    EXPECT_TRUE(contract_.ParseFromIstream(&file));
  }

  Captured Run(std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(), {"--address", address_});
    return RunCaptured(contract_, arguments, input);
  }

  Brewery service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  google::protobuf::FileDescriptorSet contract_;
};

TEST_F(NewRpcTest, EveryKindOfFieldHasAFlagAndReachesTheServer) {
  const Captured run = Run({"tea",      "brew",       "assam",          "--addition", "milk",      "-a",       "sugar",   "--strength",
                            "strong",   "--water.temperature", "95",    "--water.source", "spring", "--guest", "anna=2",  "--guest",
                            "bob=1",    "--note",     "@@home",         "--no-stir",  "--hot",     "--mode",   "0644",    "--liters",
                            "1.5",      "--grains",   "18446744073709551615",         "--step=-1", "--steps",  "2",       "-o", "json"});
  EXPECT_EQ(run.err, "");
  EXPECT_EQ(run.exit, 0);
  EXPECT_EQ(run.out, R"({
  "asked": {
    "leaf": "assam",
    "additions": [
      "milk",
      "sugar"
    ],
    "strength": "strong",
    "water": {
      "temperature": 95,
      "source": "spring"
    },
    "guests": {
      "anna": 2,
      "bob": 1
    },
    "note": "QGhvbWU=",
    "stir": false,
    "hot": true,
    "mode": 420,
    "liters": 1.5,
    "grains": 18446744073709551615,
    "steps": [
      -1,
      2
    ],
    "ignored": "",
    "made_by_server": ""
  },
  "serial": 9007199254740993,
  "flaw": null,
  "brewed_at_unix": 1784700000,
  "volume_bytes": 1536
}
)");
}

TEST_F(NewRpcTest, DetailShowsTimesSizesAndModesForPeople) {
  const Captured run = Run({"brew", "assam", "--mode", "755"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_TRUE(absl::StrContains(run.out, "brewed_at_unix  2026-07-22 06:00:00Z\n")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "volume_bytes    1.5 KiB\n")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "  mode      0755\n")) << run.out;
}

TEST_F(NewRpcTest, YamlQuotesWhatWouldReadAsAnotherType) {
  const Captured run = Run({"brew", "yes", "--addition", "1.5", "--addition", "plain", "-o", "yaml"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_TRUE(absl::StartsWith(run.out, "asked:\n  leaf: \"yes\"\n  additions:\n    - \"1.5\"\n    - plain\n  strength: unspecified\n")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "\nflaw: null\n")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "\n  steps: []\n")) << run.out;
}

TEST_F(NewRpcTest, MethodWithoutOptionsIsNamedAfterItsServiceAndItself) {
  const Captured run = Run({"brewery", "list-leaves"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out,
            "NAME                 WEIGHT\n"
            "assam                12 MiB\n"
            "ceylon-orange-pekoe  12 MiB\n"
            "na\\x1b[31mna         12 MiB\n");
}

TEST_F(NewRpcTest, ServerStreamPrintsARowOrALineOfJsonForEachMessage) {
  Captured run = Run({"tea", "drops", "--count", "2"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, "NUMBER  NAME   WEIGHT\n1       assam  0 MiB\n2       assam  0 MiB\n");
  run = Run({"tea", "drops", "--count", "2", "--output=json"});
  EXPECT_EQ(run.out, "{\"number\":1,\"leaf\":{\"name\":\"assam\",\"weight_mib\":0}}\n{\"number\":2,\"leaf\":{\"name\":\"assam\",\"weight_mib\":0}}\n");
  run = Run({"tea", "drops", "--count", "1", "-o", "yaml"});
  EXPECT_EQ(run.out, "---\nnumber: 1\nleaf:\n  name: assam\n  weight_mib: 0\n");
}

TEST_F(NewRpcTest, StreamThatBreaksOffFailsAfterWhatArrived) {
  const Captured run = Run({"tea", "drops", "--count", "6"});
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.out, "\n6       assam")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.err, "the pot is empty (RESOURCE_EXHAUSTED)")) << run.err;
}

TEST_F(NewRpcTest, ClientStreamSendsStandardInputAfterTheFlags) {
  Captured run = Run({"tea", "grind", "arabica", "-o", "json"}, std::string(200'000, 'b'));
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_TRUE(absl::StrContains(run.out, "\"leaf\": \"arabica\"")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "\"serial\": 200000")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "\"flaw\": \"4 messages\"")) << run.out;
  run = Run({"tea", "grind", "arabica", "-o", "json"}, "");
  EXPECT_TRUE(absl::StrContains(run.out, "\"flaw\": \"1 messages\"")) << "an empty input is one message: " << run.out;
}

TEST_F(NewRpcTest, HelpTellsTheCommentsOfTheProto) {
  const Captured run = Run({"tea", "brew", "--help"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_TRUE(absl::StrContains(run.out, "Makes a brew. Needs water.")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "What kind of leaf.")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "--water.temperature")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "One of: mild, strong.")) << run.out;
  EXPECT_FALSE(absl::StrContains(run.out, "--ignored")) << "compatibility only: " << run.out;
  EXPECT_FALSE(absl::StrContains(run.out, "made-by-server")) << "output only: " << run.out;
}

TEST_F(NewRpcTest, ValuesOfTheWrongTypeAreUsageErrors) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"brew", "x", "--water.temperature", "hot"}, "a whole number is expected"},
      {{"brew", "x", "--water.temperature", "99999999999"}, "does not fit into 32 bits"},
      {{"brew", "x", "--strength", "huge"}, "one of mild, strong is expected"},
      {{"brew", "x", "--guest", "anna"}, "KEY=VALUE is expected"},
      {{"brew", "x", "--guest", "anna=many"}, "a whole number is expected"},
      {{"brew", "x", "--grains=-1"}, "a whole number from 0 is expected"},
      {{"brew", "x", "--mode", "8"}, "an octal number is expected"},
      {{"brew", "x", "--liters", "wet"}, "a number is expected"},
      {{"brew", "x", "--note", "@/nonexistent/file"}, "open \"/nonexistent/file\": No such file"},
      {{"brew", "x", "--timeout", "soon"}, "a time such as 30s or 5m is expected"},
      {{"brew", "x", "--output", "xml"}, "xml"},
      {{"brew", "x", "y"}, "y"},
      {{"brew"}, "LEAF is required"},
      {{"brew", "x", "--nothing"}, "--nothing"},
  };
  for (const auto& [arguments, problem] : cases) {
    const Captured run = Run(arguments);
    EXPECT_EQ(run.exit, kExitUsage) << problem;
    EXPECT_TRUE(absl::StrContains(run.err, problem)) << run.err;
    EXPECT_EQ(run.out, "");
  }
}

}  // namespace
}  // namespace forkd::cli
