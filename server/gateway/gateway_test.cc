// The gateway over real sockets in front of a typed gRPC server: the rows of the REST contract that need no microVM, and HTTP that means harm.
#include "server/gateway/gateway.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/runtime.h"
#include "base/unique_fd.h"
#include "proto/forkd/v1/sandbox.grpc.pb.h"
#include "proto/forkd/v1/snapshot.grpc.pb.h"

namespace forkd::gateway {
namespace {

using Json = nlohmann::json;

grpc::Status Failure(grpc::StatusCode code, const std::string& reason, const std::string& message, const google::protobuf::Message* more = nullptr) {
  google::rpc::Status details;
  details.set_code(code);
  google::rpc::ErrorInfo info;
  info.set_domain("forkd");
  info.set_reason(reason);
  details.add_details()->PackFrom(info);
  if (more != nullptr) { details.add_details()->PackFrom(*more); }
  return {code, message, details.SerializeAsString()};
}

grpc::Status Field(const std::string& field, const std::string& message) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field(field);
  bad.mutable_field_violations(0)->set_description(message);
  return Failure(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", absl::StrCat(field, ": ", message), &bad);
}

// Counts calls: a refused request must not become one.
std::atomic<int> calls{0};

class Snapshots : public v1::SnapshotService::Service {
  grpc::Status ListSnapshots(grpc::ServerContext*, const v1::ListSnapshotsRequest* request, v1::ListSnapshotsResponse* response) override {
    ++calls;
    if (request->label_size() == 2) { return grpc::Status::OK; }
    v1::SnapshotInfo* one = response->add_snapshots();
    one->set_tag("base");
    one->set_created_at_unix(1784700000);
    one->set_status(v1::SNAPSHOT_STATUS_READY);
    one->set_bootable(true);
    return grpc::Status::OK;
  }
  grpc::Status CreateSnapshot(grpc::ServerContext*, const v1::CreateSnapshotRequest* request, v1::SnapshotInfo* response) override {
    ++calls;
    if (request->tag() == "taken") { return Failure(grpc::StatusCode::ALREADY_EXISTS, "TAG_TAKEN", "snapshot taken already exists; DELETE first"); }
    response->set_tag(request->tag());
    response->set_memory_mib(request->memory_mib());
    return grpc::Status::OK;
  }
  grpc::Status DeleteSnapshot(grpc::ServerContext*, const v1::DeleteSnapshotRequest* request, v1::DeleteSnapshotResponse*) override {
    ++calls;
    if (request->tag() == "parent" && !request->cascade()) {
      return Failure(grpc::StatusCode::FAILED_PRECONDITION, "SNAPSHOT_HAS_DEPENDENTS", "snapshot `parent` is the parent of 1 chained snapshot(s)");
    }
    return grpc::Status::OK;
  }
  grpc::Status GetSnapshot(grpc::ServerContext*, const v1::GetSnapshotRequest* request, v1::SnapshotInfo* response) override {
    ++calls;
    response->set_tag(request->tag());
    return grpc::Status::OK;
  }
};

class Sandboxes : public v1::SandboxService::Service {
  grpc::Status CreateSandboxes(grpc::ServerContext*, const v1::CreateSandboxesRequest* request, v1::CreateSandboxesResponse* response) override {
    ++calls;
    if (request->has_n() && request->n() == 0) { return Field("n", "n must be ≥ 1; it is 0"); }
    for (int i = 0; i < (request->has_n() ? request->n() : 1); ++i) {
      response->add_sandboxes()->set_id(absl::StrCat("sb-", i));
      if (request->has_memory_limit_mib()) { response->mutable_sandboxes(i)->set_memory_limit_mib(request->memory_limit_mib()); }
    }
    return grpc::Status::OK;
  }
  grpc::Status GetSandbox(grpc::ServerContext*, const v1::GetSandboxRequest* request, v1::SandboxInfo*) override {
    ++calls;
    if (request->id() == "odd") { return Field("id", "sandbox id must be sb-…"); }
    return Failure(grpc::StatusCode::NOT_FOUND, "SANDBOX_UNKNOWN", absl::StrCat("sandbox ", request->id(), " not found"));
  }
  grpc::Status PingSandbox(grpc::ServerContext*, const v1::PingSandboxRequest* request, v1::PingSandboxResponse* response) override {
    ++calls;
    if (request->id() == "down") { return Failure(grpc::StatusCode::UNAVAILABLE, "AGENT_UNREACHABLE", "the agent does not answer"); }
    response->set_pong(true);
    return grpc::Status::OK;
  }
  grpc::Status Eval(grpc::ServerContext*, const v1::EvalRequest* request, v1::EvalResponse* response) override {
    ++calls;
    response->set_result(request->code());
    return grpc::Status::OK;
  }
  grpc::Status BranchSandbox(grpc::ServerContext*, const v1::BranchSandboxRequest* request, v1::SnapshotInfo* response) override {
    ++calls;
    if (request->tag() == "taken") { return Failure(grpc::StatusCode::ALREADY_EXISTS, "TAG_TAKEN", "snapshot taken already exists; DELETE first"); }
    if (request->tag() == "full") {
      google::rpc::RetryInfo retry;
      retry.mutable_retry_delay()->set_nanos(1);
      return Failure(grpc::StatusCode::RESOURCE_EXHAUSTED, "LIMIT_REACHED", "daemon is at its branch concurrency cap (4)", &retry);
    }
    response->set_status(request->has_wait() && !request->wait() ? v1::SNAPSHOT_STATUS_WRITING : v1::SNAPSHOT_STATUS_READY);
    return grpc::Status::OK;
  }
  grpc::Status ReadFile(grpc::ServerContext*, const v1::ReadFileRequest* request, grpc::ServerWriter<v1::ReadFileResponse>* writer) override {
    ++calls;
    if (request->path() == "/none") { return Failure(grpc::StatusCode::NOT_FOUND, "GUEST_FILE", "no such file"); }
    v1::ReadFileResponse piece;
    piece.set_data("one");
    writer->Write(piece);
    piece.set_data("two");
    writer->Write(piece);
    if (request->path() == "/broken") { return Failure(grpc::StatusCode::ABORTED, "SANDBOX_DELETED", "it went away"); }
    return grpc::Status::OK;
  }
  grpc::Status WriteFile(grpc::ServerContext*, grpc::ServerReader<v1::WriteFileRequest>* reader, v1::FileInfo* response) override {
    ++calls;
    v1::WriteFileRequest piece;
    while (reader->Read(&piece)) {
      if (response->path().empty()) { response->set_path(piece.path()); }
      response->set_size_bytes(response->size_bytes() + static_cast<int64_t>(piece.data().size()));
    }
    return grpc::Status::OK;
  }
};

struct Answer {
  int status = 0;
  std::string head;
  std::string body;
  Json json() const { return Json::parse(body, nullptr, false); }
};

class GatewayTest : public testing::Test {
 protected:
  GatewayTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&snapshots_);
    builder.RegisterService(&sandboxes_);
    server_ = builder.BuildAndStart();
    runtime_.Start();
    GatewayOptions options;
    options.bind = "127.0.0.1:0";
    options.version = "0.1.0";
    options.head_timeout = std::chrono::milliseconds(300);
    auto gateway = Gateway::Start(runtime_.executor(), server_->InProcessChannel({}), options);
    EXPECT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    calls = 0;
  }
  ~GatewayTest() override {
    runtime_.RunBlocking(gateway_->Stop());
    server_->Shutdown();
    runtime_.Stop();
  }

  UniqueFd Connect() {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(gateway_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  // Sends `bytes` and reads until the server closes (or 5 s).
  std::string Raw(const std::string& bytes) {
    UniqueFd fd = Connect();
    EXPECT_EQ(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    std::string all;
    char buffer[4096];
    pollfd waiting{fd.get(), POLLIN, 0};
    while (poll(&waiting, 1, 5000) == 1) {
      const ssize_t got = recv(fd.get(), buffer, sizeof(buffer), 0);
      if (got <= 0) { return all; }
      all.append(buffer, static_cast<std::size_t>(got));
    }
    return absl::StrCat(all, "\n(the connection stayed open)");
  }
  static Answer Parse(const std::string& raw) {
    Answer answer;
    if (raw.size() > 12) { answer.status = std::atoi(raw.c_str() + 9); }
    const std::size_t end = raw.find("\r\n\r\n");
    answer.head = raw.substr(0, end);
    if (end != std::string::npos) { answer.body = raw.substr(end + 4); }
    return answer;
  }
  std::string Host() const { return absl::StrCat("Host: 127.0.0.1:", gateway_->port(), "\r\n"); }
  Answer Call(const std::string& verb, const std::string& target, const std::string& body = "", const std::string& headers = "") {
    const bool post = !body.empty();
    return Parse(Raw(absl::StrCat(verb, " ", target, " HTTP/1.1\r\n", Host(), "Connection: close\r\n", headers,
                                  post && !absl::StrContains(headers, "Content-Type") ? "Content-Type: application/json\r\n" : "",
                                  post ? absl::StrCat("Content-Length: ", body.size(), "\r\n") : "", "\r\n", body)));
  }

  Snapshots snapshots_;
  Sandboxes sandboxes_;
  std::unique_ptr<grpc::Server> server_;
  Runtime runtime_;
  std::unique_ptr<Gateway> gateway_;
};

TEST_F(GatewayTest, ListIsABareArrayWithOptionalsLeftOut) {
  const Answer answer = Call("GET", "/v1/snapshots");
  ASSERT_EQ(answer.status, 200) << answer.head << answer.body;
  const Json list = answer.json();
  ASSERT_TRUE(list.is_array());
  EXPECT_EQ(list[0]["tag"], "base");
  EXPECT_EQ(list[0]["created_at_unix"], 1784700000);
  EXPECT_EQ(list[0]["status"], "ready");
  EXPECT_FALSE(list[0].contains("pause_ms"));
  EXPECT_EQ(Call("GET", "/v1/snapshots?label=a%3Db&label=c%3Dd&unknown=1").body, "[]");
}

TEST_F(GatewayTest, CreateAnswers201AndNullsAreExplicit) {
  const Answer answer = Call("POST", "/v1/sandboxes", R"({"snapshot_tag":"base","n":2,"prewarm":true,"memory_limit_mib":null,"new":1})");
  ASSERT_EQ(answer.status, 201) << answer.body;
  const Json list = answer.json();
  ASSERT_EQ(list.size(), 2U);
  EXPECT_TRUE(list[0].contains("netns") && list[0]["netns"].is_null());
  EXPECT_TRUE(list[0]["memory_limit_mib"].is_null());
  EXPECT_EQ(list[0]["branch_count"], 0);
}

struct Row {
  const char* verb;
  const char* target;
  const char* body;
  const char* headers;
  int status;
  const char* error;  // how `error` begins
};

TEST_F(GatewayTest, RefusalsHaveTheContractsStatusAndWords) {
  const Row rows[] = {
      {"GET", "/v1/nothing", "", "", 404, ""},
      {"GET", "/v1/snapshots/", "", "", 404, ""},
      {"PATCH", "/v1/snapshots", "", "", 405, ""},
      {"OPTIONS", "/v1/snapshots", "", "", 405, ""},
      {"GET", "/v1/snapshots/%ff", "", "", 400, "Invalid URL: Invalid UTF-8"},
      {"POST", "/v1/snapshots", "{}", "Content-Type: text/plain\r\n", 415, "Expected request with `Content-Type: application/json`"},
      {"POST", "/v1/snapshots", "", "", 415, "Expected request with `Content-Type: application/json`"},
      {"POST", "/v1/snapshots", "", "Content-Type: application/json\r\nContent-Length: 0\r\n", 400, "Failed to parse the request body as JSON: "},
      {"POST", "/v1/snapshots", "{", "", 400, "Failed to parse the request body as JSON: "},
      {"POST", "/v1/snapshots", "{}", "", 422, "Failed to deserialize the JSON body into the target type: missing field `tag`"},
      {"POST", "/v1/snapshots", R"({"tag":1})", "", 422, "Failed to deserialize the JSON body into the target type: "},
      {"POST", "/v1/snapshots", R"({"tag":"a","rw":null})", "", 422, "Failed to deserialize the JSON body into the target type: "},
      {"POST", "/v1/sandboxes", R"({"snapshot_tag":"a","n":-1})", "", 422, "Failed to deserialize the JSON body into the target type: "},
      {"POST", "/v1/sandboxes", R"({"snapshot_tag":"a","n":1.5})", "", 422, "Failed to deserialize the JSON body into the target type: "},
      {"POST", "/v1/sandboxes", R"({"snapshot_tag":"a","n":99999999999})", "", 400, "n must be ≤ 1000"},
      {"POST", "/v1/sandboxes", R"({"snapshot_tag":"a","n":0})", "", 400, "n must be ≥ 1"},
      {"POST", "/v1/sandboxes/sb-1/branch", R"({"mode":"odd"})", "", 422,
       "Failed to deserialize the JSON body into the target type: mode: unknown variant `odd`, expected one of `full`, `diff`, `live`"},
      {"POST", "/v1/sandboxes/sb-1/branch", "", "", 415, "Expected request"},
      {"DELETE", "/v1/snapshots/a?cascade=1", "", "", 400, "Failed to deserialize query string: provided string was not `true` or `false`"},
      {"DELETE", "/v1/snapshots/parent", "", "", 409, "snapshot `parent` is the parent of 1"},
      {"POST", "/v1/snapshots", R"({"tag":"taken"})", "", 400, "snapshot taken already exists; DELETE first"},
      {"POST", "/v1/sandboxes/sb-1/branch", R"({"tag":"taken"})", "", 409, "snapshot taken already exists; DELETE first"},
      {"POST", "/v1/sandboxes/sb-1/branch", R"({"tag":"full"})", "", 503, "daemon is at its branch concurrency cap"},
      {"GET", "/v1/sandboxes/sb-9", "", "", 404, "sandbox sb-9 not found"},
      {"GET", "/v1/sandboxes/odd", "", "", 404, "sandbox odd not found"},
      {"POST", "/v1/sandboxes/down/ping", "", "", 500, "ping: "},
      {"GET", "/v1/snapshots", "", "Origin: http://evil.example\r\n", 403, ""},
      {"GET", "/v1/snapshots", "", "Origin: null\r\n", 403, ""},
  };
  for (const Row& row : rows) {
    const Answer answer = Call(row.verb, row.target, row.body, row.headers);
    EXPECT_EQ(answer.status, row.status) << row.verb << " " << row.target << " " << row.body << "\n" << answer.head << "\n" << answer.body;
    const Json json = answer.json();
    ASSERT_TRUE(json.is_object()) << row.target << answer.body;
    EXPECT_TRUE(absl::StartsWith(json["error"].get<std::string>(), row.error)) << answer.body;
    for (const char* key : {"code", "message", "details", "request_id"}) { EXPECT_TRUE(json.contains(key)) << answer.body; }
  }
  EXPECT_TRUE(absl::StrContains(Call("PATCH", "/v1/snapshots").head, "Allow: GET,HEAD,POST\r\n"));
  EXPECT_TRUE(absl::StrContains(Call("PUT", "/v1/snapshots/a").head, "Allow: GET,HEAD,DELETE\r\n"));
  EXPECT_TRUE(absl::StrContains(Call("POST", "/v1/sandboxes/sb-1/branch", R"({"tag":"full"})").head, "Retry-After: 1"));
}

TEST_F(GatewayTest, RefusedRequestsNeverBecomeCalls) {
  Call("POST", "/v1/snapshots", "{}");
  Call("POST", "/v1/snapshots", R"({"tag":"a"})", "Content-Type: text/plain\r\n");
  Call("POST", "/v1/snapshots", R"({"tag":"a"})", "Origin: http://evil.example\r\n");
  EXPECT_EQ(Parse(Raw("GET /v1/snapshots HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n")).status, 421);
  EXPECT_EQ(Parse(Raw("GET /v1/snapshots HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n")).status, 421);
  EXPECT_EQ(calls.load(), 0);
}

TEST_F(GatewayTest, CallsWhoseBodyHasNothingToSayNeedNone) {
  EXPECT_EQ(Call("POST", "/v1/sandboxes/sb-1/ping").status, 200);
  EXPECT_EQ(Call("POST", "/v1/sandboxes/sb-1/ping", "", "Content-Type: application/json\r\nContent-Length: 0\r\n").status, 200);
  EXPECT_EQ(Call("POST", "/v1/sandboxes/sb-1/ping", "no json at all").status, 200);
  EXPECT_EQ(Call("GET", "/v1/snapshots", "", "Content-Type: application/json\r\n").status, 200);
}

TEST_F(GatewayTest, BranchIsAcceptedWhileItIsWritten) {
  EXPECT_EQ(Call("POST", "/v1/sandboxes/sb-1/branch", "{}").status, 201);
  EXPECT_EQ(Call("POST", "/v1/sandboxes/sb-1/branch", R"({"mode":"live","wait":false})").status, 202);
}

TEST_F(GatewayTest, DeleteAnswers204WithoutABody) {
  const Answer answer = Call("DELETE", "/v1/snapshots/parent?cascade=true&x=y");
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(answer.body, "");
  EXPECT_FALSE(absl::StrContains(answer.head, "Content-Length"));
}

TEST_F(GatewayTest, HeadHasTheLengthAndNoBody) {
  const Answer get = Call("GET", "/v1/snapshots");
  const Answer head = Call("HEAD", "/v1/snapshots");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");
  EXPECT_TRUE(absl::StrContains(head.head, absl::StrCat("Content-Length: ", get.body.size()))) << head.head << get.head << get.body;
}

TEST_F(GatewayTest, PathsAreDecodedOnce) {
  EXPECT_EQ(Call("GET", "/v1/snapshots/a%2Fb%2525").json()["tag"], "a/b%25");
}

TEST_F(GatewayTest, HealthAndVersion) {
  EXPECT_EQ(Call("GET", "/healthz").body, "{\"ok\":true}");
  EXPECT_EQ(Call("GET", "/version").body, "{\"version\":\"0.1.0\",\"api\":\"v1\"}");
  EXPECT_EQ(Call("POST", "/healthz").status, 405);
}

TEST_F(GatewayTest, NullablesOfEvalAreAlwaysThere) {
  const Json json = Call("POST", "/v1/sandboxes/sb-1/eval", R"({"code":"ä\u00df"})").json();
  EXPECT_EQ(json["result"], "äß");
  EXPECT_TRUE(json.contains("error") && json["error"].is_null());
}

TEST_F(GatewayTest, StreamsAreLinesEventsOrRawBytes) {
  EXPECT_TRUE(absl::StrContains(Call("GET", "/v1/sandboxes/s/files?path=/x").body, "{\"data\":\"b25l\"}\n"));
  EXPECT_TRUE(absl::StrContains(Call("GET", "/v1/sandboxes/s/files?path=/x", "", "Accept: text/event-stream\r\n").body, "data: {\"data\":\"b25l\"}\n\n"));
  const Answer raw = Parse(Raw(absl::StrCat("GET /v1/sandboxes/s/files?path=/x HTTP/1.0\r\n", Host(), "Accept: application/octet-stream\r\n\r\n")));
  EXPECT_EQ(raw.body, "onetwo");
  EXPECT_EQ(Call("GET", "/v1/sandboxes/s/files?path=/none").status, 404);
  const Answer broken = Call("GET", "/v1/sandboxes/s/files?path=/broken");
  EXPECT_EQ(broken.status, 200);
  EXPECT_TRUE(absl::StrContains(broken.body, "\"reason\":\"SANDBOX_DELETED\"")) << broken.body;
}

TEST_F(GatewayTest, FilesAreUploadedAsJsonOrRaw) {
  EXPECT_EQ(Call("PUT", "/v1/sandboxes/s/files", R"({"path":"/f","data":"b25l"})").json()["size_bytes"], 3);
  const Json raw = Call("PUT", "/v1/sandboxes/s/files?path=/g", std::string(600'000, 'x'), "Content-Type: application/octet-stream\r\n").json();
  EXPECT_EQ(raw["size_bytes"], 600'000);
  EXPECT_EQ(raw["path"], "/g");
}

TEST_F(GatewayTest, PipelinedRequestsAreAnsweredInOrderOnOneConnection) {
  const std::string raw = Raw(absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), "\r\nGET /v1/snapshots/two HTTP/1.1\r\n", Host(),
                                           "\r\nGET /version HTTP/1.1\r\n", Host(), "Connection: close\r\n\r\n"));
  const std::size_t first = raw.find("{\"ok\":true}");
  const std::size_t second = raw.find("\"tag\":\"two\"");
  const std::size_t third = raw.find("\"api\":\"v1\"");
  ASSERT_NE(third, std::string::npos) << raw;
  EXPECT_TRUE(first < second && second < third) << raw;
}

TEST_F(GatewayTest, ChunkedBodiesAndExpectContinue) {
  const Answer chunked = Parse(Raw(absl::StrCat("POST /v1/sandboxes/s/eval HTTP/1.1\r\n", Host(),
                                                "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                                                "8\r\n{\"code\":\r\n4\r\n\"x\"}\r\n0\r\n\r\n")));
  EXPECT_EQ(chunked.json()["result"], "x") << chunked.body;
  UniqueFd fd = Connect();
  const std::string head = absl::StrCat("POST /v1/sandboxes/s/eval HTTP/1.1\r\n", Host(),
                                        "Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 12\r\nConnection: close\r\n\r\n");
  ASSERT_EQ(send(fd.get(), head.data(), head.size(), MSG_NOSIGNAL), static_cast<ssize_t>(head.size()));
  char buffer[4096];
  pollfd waiting{fd.get(), POLLIN, 0};
  ASSERT_EQ(poll(&waiting, 1, 5000), 1);
  const ssize_t got = recv(fd.get(), buffer, sizeof(buffer), 0);
  EXPECT_EQ(std::string(buffer, static_cast<std::size_t>(got)), "HTTP/1.1 100 Continue\r\n\r\n");
  ASSERT_EQ(send(fd.get(), "{\"code\":\"y\"}", 12, MSG_NOSIGNAL), 12);
  ASSERT_EQ(poll(&waiting, 1, 5000), 1);
  const ssize_t rest = recv(fd.get(), buffer, sizeof(buffer), 0);
  EXPECT_TRUE(absl::StartsWith(std::string(buffer, static_cast<std::size_t>(rest)), "HTTP/1.1 200"));
}

TEST_F(GatewayTest, AmbiguousOrMalformedHeadsAre400AndTheConnectionCloses) {
  const std::string bad[] = {
      absl::StrCat("POST /v1/sandboxes/s/ping HTTP/1.1\r\n", Host(), "Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
      absl::StrCat("POST /v1/sandboxes/s/ping HTTP/1.1\r\n", Host(), "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
      absl::StrCat("POST /v1/sandboxes/s/ping HTTP/1.1\r\n", Host(), "Content-Length: +5\r\n\r\nhello"),
      absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), "X: a\r\n folded\r\n\r\n"),
      absl::StrCat("GET /healthz HTTP/1.1\n", Host(), "\r\n"),
      absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), "X: a\rb\r\n\r\n"),
      absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), "X : a\r\n\r\n"),
      absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), Host(), "\r\n"),
      "GET /healthz HTTP/1.1\r\n\r\n",
      absl::StrCat("GET http://x/healthz HTTP/1.1\r\n", Host(), "\r\n"),
      "\x16\x03\x01\x02\x01\r\n\r\n",
      absl::StrCat("POST /v1/sandboxes/s/eval HTTP/1.1\r\n", Host(), "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
  };
  for (const std::string& bytes : bad) {
    const std::string raw = Raw(bytes);
    EXPECT_EQ(Parse(raw).status, 400) << bytes << "\n---\n" << raw;
    EXPECT_FALSE(absl::StrContains(raw, "stayed open")) << bytes;
  }
  EXPECT_EQ(calls.load(), 0);
}

TEST_F(GatewayTest, HeadsAndBodiesAreBounded) {
  EXPECT_EQ(Parse(Raw(absl::StrCat("GET /healthz HTTP/1.1\r\n", Host(), "X: ", std::string(20'000, 'a'), "\r\n\r\n"))).status, 431);
  const Answer declared = Parse(Raw(absl::StrCat("POST /v1/sandboxes/s/eval HTTP/1.1\r\n", Host(),
                                                 "Content-Type: application/json\r\nContent-Length: 2097153\r\n\r\n")));
  EXPECT_EQ(declared.status, 413);
  EXPECT_TRUE(absl::StartsWith(declared.json()["error"].get<std::string>(), "Failed to buffer the request body: length limit exceeded"));
  EXPECT_EQ(Call("POST", "/v1/sandboxes/s/eval", std::string(100'000, '[')).status, 400);
  EXPECT_EQ(calls.load(), 0);
}

TEST_F(GatewayTest, ASlowHeadIsCutOff) {
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_EQ(Raw("GET /healthz HT"), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(4));
}

TEST(GatewayStartTest, OnlyLoopbackIsBoundWithoutAToken) {
  EXPECT_TRUE(CheckLoopback("127.0.0.1:8889").ok());
  EXPECT_TRUE(CheckLoopback("[::1]:8889").ok());
  EXPECT_TRUE(absl::StartsWith(CheckLoopback("0.0.0.0:8889").message(), "refusing unauthenticated non-loopback bind 0.0.0.0:8889; pass --token-file or bind"));
  EXPECT_FALSE(CheckLoopback("localhost:8889").ok());
}

}  // namespace
}  // namespace forkd::gateway
