// The client against guests that break the protocol. Each guest is a few lines that write what they like on a real socket.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"
#include "guest/client/agent_client.h"
#include "guest/ttrpc/frame.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ttrpc::FrameType;

const ttrpc::SyncToken kToken = *ttrpc::SyncToken::FromHex("a1b2c3d4e5f60718293a4b5c6d7e8f90");

#if __has_feature(address_sanitizer)
// Its shadow and quarantine are not what is measured here.
constexpr long kMemoryFactor = 50;
#else
constexpr long kMemoryFactor = 1;
#endif

Deadline Soon() { return Deadline::In(seconds(20)); }

// The guest's end, used by one thread.
class Wire {
 public:
  explicit Wire(UniqueFd fd) : fd_(std::move(fd)), scanner_(kToken) {
    sink_.payload = [this](std::span<const char> in) {
      while (parser_.Feed(&in) == ttrpc::FrameParser::Result::kFrame) {
        if (parser_.frame().stream_id != 0) { frames_.push_back(parser_.frame()); }
      }
    };
    sink_.hello = [this](const ttrpc::HelloScanner::Hello& hello) { hello_ = hello; };
  }
  // False when the host is gone.
  bool Put(const std::string& bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t put = send(fd_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (put <= 0) { return false; }
      sent += static_cast<std::size_t>(put);
    }
    return true;
  }
  bool PutFrame(uint32_t stream, FrameType type, uint8_t flags, const std::string& data) {
    std::string bytes;
    ttrpc::AppendFrame(ttrpc::Frame{.stream_id = stream, .type = type, .flags = flags, .data = data}, &bytes);
    return Put(bytes);
  }
  bool Respond(uint32_t stream, int code, const std::string& text, const std::string& payload) {
    ttrpc::Response response;
    if (code != 0) {
      response.mutable_status()->set_code(code);
      response.mutable_status()->set_message(text);
    }
    response.set_payload(payload);
    return PutFrame(stream, FrameType::kResponse, 0, response.SerializeAsString());
  }
  bool PutExec(uint32_t stream, const agentpb::ExecOutput& output) { return PutFrame(stream, FrameType::kData, 0, output.SerializeAsString()); }
  std::optional<ttrpc::HelloScanner::Hello> ReadHello() {
    while (!hello_.has_value() && Fill()) {}
    return hello_;
  }
  void Answer() {
    if (const auto hello = ReadHello(); hello.has_value()) { Put(ttrpc::EncodeAnswer(kToken, hello->nonce)); }
  }
  // The next frame of the host's; nullopt when it is gone.
  std::optional<ttrpc::Frame> ReadFrame() {
    while (frames_.empty() && Fill()) {}
    if (frames_.empty()) { return std::nullopt; }
    ttrpc::Frame frame = std::move(frames_.front());
    frames_.erase(frames_.begin());
    return frame;
  }
  // Until the host closes.
  void WaitForClose() {
    while (Fill()) { frames_.clear(); }
  }
  // The same, without reading anything.
  void WaitForHangup() {
    pollfd poll_fd{fd_.get(), POLLRDHUP, 0};
    poll(&poll_fd, 1, -1);
  }

 private:
  bool Fill() {
    char buffer[16 * 1024];
    const ssize_t got = recv(fd_.get(), buffer, sizeof buffer, 0);
    if (got <= 0) { return false; }
    scanner_.Feed(std::span<const char>(buffer, static_cast<std::size_t>(got)), sink_);
    return true;
  }
  UniqueFd fd_;
  ttrpc::HelloScanner scanner_;
  ttrpc::HelloScanner::Sink sink_;
  ttrpc::FrameParser parser_;
  std::optional<ttrpc::HelloScanner::Hello> hello_;
  std::vector<ttrpc::Frame> frames_;
};

template <typename T>
Task<void> Store(Task<T> task, std::optional<T>* result) {
  result->emplace(co_await std::move(task));
}

class HostileGuestTest : public testing::Test {
 protected:
  HostileGuestTest() { runtime_.Start(); }
  ~HostileGuestTest() override {
    if (client_ != nullptr) {
      runtime_.RunBlocking([](std::shared_ptr<AgentClient>* client) -> Task<void> {
        client->reset();
        co_return;
      }(&client_));
    }
    host_end_.reset();
    if (guest_.joinable()) { guest_.join(); }
  }

  // The guest runs on a thread of its own; it should end when its socket does.
  void StartGuest(std::function<void(Wire&)> behaviour) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    host_end_ = UniqueFd(ends[0]);
    guest_ = std::thread([fd = ends[1], behaviour = std::move(behaviour)] {
      Wire wire{UniqueFd(fd)};
      behaviour(wire);
    });
  }
  absl::Status Connect(Deadline deadline = Soon()) {
    absl::StatusOr<std::shared_ptr<AgentClient>> client = Run(AgentClient::Connect(std::move(host_end_), kToken, deadline));
    if (!client.ok()) { return client.status(); }
    client_ = *std::move(client);
    return absl::OkStatus();
  }
  // A guest that answers the hello and then does as told.
  void StartAfterHello(std::function<void(Wire&)> behaviour) {
    StartGuest([behaviour = std::move(behaviour)](Wire& wire) {
      wire.Answer();
      behaviour(wire);
      wire.WaitForClose();
    });
    const absl::Status connected = Connect();
    ASSERT_TRUE(connected.ok()) << connected;
  }
  template <typename T>
  T Run(Task<T> task) {
    std::optional<T> result;
    runtime_.RunBlocking(Store(std::move(task), &result));
    return *std::move(result);
  }
  // Runs until the guest's breach has closed the connection; the reason must be AGENT_PROTOCOL.
  void ExpectBreach(const absl::Status& status, const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(ReasonOf(status), "AGENT_PROTOCOL") << status;
    EXPECT_NE(std::string(status.message()).find(what), std::string::npos) << status;
    EXPECT_TRUE(Run([](AgentClient* client) -> Task<bool> { co_return client->closed(); }(client_.get())));
    EXPECT_EQ(client_->status(), status);
  }
  agentpb::ExecStart True() {
    agentpb::ExecStart start;
    start.add_argv("true");
    return start;
  }
  static long RssKib() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("VmRSS:")) { return std::stol(line.substr(6)); }
    }
    return 0;
  }

  Runtime runtime_;
  UniqueFd host_end_;
  std::thread guest_;
  std::shared_ptr<AgentClient> client_;
};

TEST_F(HostileGuestTest, SilenceAtTheHelloIsUnreachable) {
  StartGuest([](Wire& wire) { wire.WaitForClose(); });
  const absl::Status status = Connect(Deadline::In(milliseconds(100)));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "AGENT_UNREACHABLE");
}

TEST_F(HostileGuestTest, AFloodInsteadOfTheAnswerCostsNoMemory) {
  StartGuest([](Wire& wire) {
    const std::string noise(64 * 1024, '\x5e');
    while (wire.Put(noise)) {}
  });
  const long before = RssKib();
  const absl::Status status = Connect(Deadline::In(milliseconds(300)));
  EXPECT_EQ(ReasonOf(status), "AGENT_UNREACHABLE");
  EXPECT_LT(RssKib() - before, 4 * 1024 * kMemoryFactor);
}

TEST_F(HostileGuestTest, AnotherNoncesAnswerIsNotOurs) {
  StartGuest([](Wire& wire) {
    ttrpc::Nonce nonce = wire.ReadHello()->nonce;
    nonce[7] ^= 1;
    wire.Put(ttrpc::EncodeAnswer(kToken, nonce));
    wire.WaitForClose();
  });
  EXPECT_EQ(ReasonOf(Connect(Deadline::In(milliseconds(100)))), "AGENT_UNREACHABLE");
}

TEST_F(HostileGuestTest, AGuestThatHangsUpAtTheHelloIsUnreachableAtOnce) {
  StartGuest([](Wire& wire) { wire.ReadHello(); });
  EXPECT_EQ(ReasonOf(Connect()), "AGENT_UNREACHABLE");
}

TEST_F(HostileGuestTest, StaleBytesBeforeTheAnswerAreDropped) {
  StartGuest([](Wire& wire) {
    const auto hello = wire.ReadHello();
    wire.PutFrame(77, FrameType::kData, 0, "the end of an older life");
    const std::string answer = ttrpc::EncodeAnswer(kToken, hello->nonce);
    wire.Put(answer.substr(0, 9));
    for (char byte : answer) { wire.Put(std::string(1, byte)); }
    const auto ping = wire.ReadFrame();
    wire.Respond(ping->stream_id, 0, "", agentpb::PingResponse().SerializeAsString());
    wire.WaitForClose();
  });
  ASSERT_TRUE(Connect().ok());
  EXPECT_TRUE(Run(client_->Ping(Soon())).ok());
}

// Each breach of framing, answered to a ping.
struct Breach {
  const char* name;
  const char* what;
  std::function<void(Wire&, uint32_t stream)> act;
};

class FramingBreachTest : public HostileGuestTest, public testing::WithParamInterface<Breach> {};

TEST_P(FramingBreachTest, EndsTheConnectionAndEveryPendingCall) {
  const Breach breach = GetParam();
  StartAfterHello([breach](Wire& wire) {
    const auto first = wire.ReadFrame();
    const auto second = wire.ReadFrame();
    if (first.has_value() && second.has_value()) { breach.act(wire, second->stream_id); }
  });
  std::optional<absl::StatusOr<agentpb::PingResponse>> other;
  runtime_.Spawn(Store(client_->Ping(Soon()), &other));
  ExpectBreach(Run(client_->Ping(Soon())).status(), breach.what);
  EXPECT_EQ(ReasonOf(Run(client_->Ping(Soon())).status()), "AGENT_PROTOCOL");
  ASSERT_TRUE(Run([](auto* other) -> Task<bool> { co_return other->has_value(); }(&other)));
  // The one breach that begins with a proper answer to the other call.
  EXPECT_EQ((*other).status().ok(), std::string(breach.name) == "AnsweredTwice");
}

INSTANTIATE_TEST_SUITE_P(
    All, FramingBreachTest,
    testing::Values(
        Breach{"UnknownType", "unknown frame type", [](Wire& wire, uint32_t id) { wire.PutFrame(id, static_cast<FrameType>(9), 0, "x"); }},
        Breach{"Oversized", "longer than the limit", [](Wire& wire, uint32_t) { wire.Put(std::string("\x00\x40\x00\x01\x00\x00\x00\x01\x02\x00", 10)); }},
        Breach{"Noise", "longer than the limit", [](Wire& wire, uint32_t) { wire.Put(std::string(100, '\xff')); }},
        Breach{"UnknownStream", "does not exist", [](Wire& wire, uint32_t) { wire.PutFrame(1001, FrameType::kData, 0, "x"); }},
        Breach{"StreamZero", "does not exist", [](Wire& wire, uint32_t) { wire.PutFrame(0, FrameType::kData, ttrpc::kFlagNoData, ""); }},
        Breach{"AnsweredTwice", "does not exist",
               [](Wire& wire, uint32_t id) {
                 wire.Respond(id - 2, 0, "", "");
                 wire.Respond(id - 2, 0, "", "");
               }},
        Breach{"RequestFromTheGuest", "a request from the guest", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kRequest, 0, ""); }},
        Breach{"MalformedResponse", "malformed response", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kResponse, 0, "\xff\xff\xff"); }},
        Breach{"MalformedPayload", "malformed answer to Ping", [](Wire& wire, uint32_t id) { wire.Respond(id, 0, "", "\x0a\xff"); }},
        Breach{"TextThatIsNotUtf8", "malformed answer to Ping", [](Wire& wire, uint32_t id) { wire.Respond(id, 0, "", "\x0a\x02\xff\xfe"); }},
        Breach{"DataOnAUnaryCall", "data on a unary call", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kData, 0, "x"); }}),
    [](const testing::TestParamInfo<Breach>& info) { return info.param.name; });

// Each breach inside an exec's stream.
struct ExecBreach {
  const char* name;
  const char* what;
  std::function<void(Wire&, uint32_t stream)> act;
};

class ExecBreachTest : public HostileGuestTest, public testing::WithParamInterface<ExecBreach> {};

agentpb::ExecOutput Out(std::size_t bytes) {
  agentpb::ExecOutput output;
  output.set_stdout_data(std::string(bytes, 'o'));
  return output;
}
agentpb::ExecOutput Started() {
  agentpb::ExecOutput output;
  output.mutable_started()->set_exec_id(1);
  return output;
}
agentpb::ExecOutput End() {
  agentpb::ExecOutput output;
  output.mutable_end()->set_exit_code(0);
  return output;
}

TEST_P(ExecBreachTest, EndsTheConnection) {
  const ExecBreach breach = GetParam();
  StartAfterHello([breach](Wire& wire) {
    const auto request = wire.ReadFrame();
    const auto start = wire.ReadFrame();
    if (request.has_value() && start.has_value()) { breach.act(wire, request->stream_id); }
  });
  std::shared_ptr<ExecStream> stream = *Run(client_->StartExec(True(), Soon()));
  absl::StatusOr<ExecEvent> event = Run(stream->Next(Soon()));
  while (event.ok()) { event = Run(stream->Next(Soon())); }
  if (event.status().code() == absl::StatusCode::kOutOfRange) {
    // The end came before the breach: that is for the next call to find.
    event = Run(client_->Ping(Soon())).status();
  }
  ExpectBreach(event.status(), breach.what);
  runtime_.RunBlocking([](std::shared_ptr<ExecStream>* stream) -> Task<void> {
    stream->reset();
    co_return;
  }(&stream));
}

INSTANTIATE_TEST_SUITE_P(
    All, ExecBreachTest,
    testing::Values(
        ExecBreach{"MoreThanTheWindow", "window",
                   [](Wire& wire, uint32_t id) {
                     // The reader takes and gives back as it goes: no pause between the pieces, and one that alone is too large.
                     agentpb::ExecOutput large = Out(256 * 1024 + 1);
                     wire.PutExec(id, large);
                   }},
        ExecBreach{"StartedTwice", "started twice",
                   [](Wire& wire, uint32_t id) {
                     wire.PutExec(id, Started());
                     wire.PutExec(id, Started());
                   }},
        ExecBreach{"OutputAfterTheEnd", "after the end",
                   [](Wire& wire, uint32_t id) {
                     wire.PutExec(id, End());
                     wire.PutExec(id, Out(1));
                   }},
        ExecBreach{"TwoEnds", "after the end",
                   [](Wire& wire, uint32_t id) {
                     wire.PutExec(id, End());
                     wire.PutExec(id, End());
                   }},
        ExecBreach{"AnEndWithoutOutcome", "without an outcome",
                   [](Wire& wire, uint32_t id) {
                     agentpb::ExecOutput output;
                     output.mutable_end();
                     wire.PutExec(id, output);
                   }},
        ExecBreach{"ClosedWithoutAnEnd", "without its end", [](Wire& wire, uint32_t id) { wire.Respond(id, 0, "", ""); }},
        ExecBreach{"ClosedByFlagWithoutAnEnd", "without its end",
                   [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kData, ttrpc::kFlagRemoteClosed | ttrpc::kFlagNoData, ""); }},
        ExecBreach{"StdinWindowFromNothing", "more stdin taken",
                   [](Wire& wire, uint32_t id) {
                     agentpb::ExecOutput output;
                     output.set_stdin_window_bytes(0x7fffffff);
                     wire.PutExec(id, output);
                   }},
        ExecBreach{"Malformed", "malformed exec output", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kData, 0, "\x12\xff"); }},
        ExecBreach{"AnEmptyPiece", "an empty piece", [](Wire& wire, uint32_t id) { wire.PutExec(id, Out(0)); }},
        ExecBreach{"AFrameThatSaysNothing", "says nothing", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kData, ttrpc::kFlagNoData, ""); }},
        ExecBreach{"Empty", "empty exec output", [](Wire& wire, uint32_t id) { wire.PutFrame(id, FrameType::kData, 0, ""); }}),
    [](const testing::TestParamInfo<ExecBreach>& info) { return info.param.name; });

TEST_F(HostileGuestTest, AReaderThatDoesNotReadIsNotFilledUp) {
  StartAfterHello([](Wire& wire) {
    const auto request = wire.ReadFrame();
    // In the smallest pieces, to and fro: bytes cost bytes, not a hundred each.
    agentpb::ExecOutput err;
    err.set_stderr_data("e");
    std::string bytes;
    for (int i = 0; i < 128 * 1024; ++i) {
      for (const agentpb::ExecOutput& output : {Out(1), err}) {
        ttrpc::AppendFrame(ttrpc::Frame{.stream_id = request->stream_id, .type = FrameType::kData, .flags = 0, .data = output.SerializeAsString()}, &bytes);
      }
    }
    wire.Put(bytes);
    const auto ping = wire.ReadFrame();  // The start message.
    const auto second = wire.ReadFrame();
    if (ping.has_value() && second.has_value()) { wire.Respond(second->stream_id, 0, "", ""); }
  });
  std::shared_ptr<ExecStream> stream = *Run(client_->StartExec(True(), Soon()));
  const long before = RssKib();
  EXPECT_TRUE(Run(client_->Ping(Soon())).ok());  // All 256 Ki pieces came before its answer.
  EXPECT_LT(RssKib() - before, 12 * 1024 * kMemoryFactor);       // Most of that is the guest's own copy, in this process too.
  EXPECT_EQ(Run(stream->Next(Soon()))->data.size(), 128u * 1024);
  EXPECT_EQ(Run(stream->Next(Soon()))->data.size(), 128u * 1024);
  runtime_.RunBlocking([](std::shared_ptr<ExecStream>* stream) -> Task<void> {
    stream->reset();
    co_return;
  }(&stream));
}

TEST_F(HostileGuestTest, ACancelledStreamMayFinishLateButNotFloodOn) {
  StartAfterHello([](Wire& wire) {
    const auto request = wire.ReadFrame();
    wire.ReadFrame();
    wire.PutExec(request->stream_id, Started());
    wire.ReadFrame();  // Cancel.
    wire.PutExec(request->stream_id, Out(1000));
    wire.PutExec(request->stream_id, End());
    wire.Respond(request->stream_id, 0, "", "");
    const auto ping = wire.ReadFrame();
    wire.Respond(ping->stream_id, 0, "", "");
    const auto again = wire.ReadFrame();
    wire.ReadFrame();
    wire.ReadFrame();  // Cancel.
    for (int i = 0; i < 5; ++i) { wire.PutExec(again->stream_id, Out(64 * 1024)); }
  });
  for (int round = 0; round < 2; ++round) {
    std::shared_ptr<ExecStream> stream = *Run(client_->StartExec(True(), Soon()));
    if (round == 0) { EXPECT_TRUE(Run(stream->Next(Soon())).ok()); }
    runtime_.RunBlocking([](std::shared_ptr<ExecStream>* stream) -> Task<void> {
      (*stream)->Cancel();
      stream->reset();
      co_return;
    }(&stream));
    const absl::Status ping = Run(client_->Ping(Soon())).status();
    if (round == 0) {
      EXPECT_TRUE(ping.ok()) << ping;
    } else {
      ExpectBreach(ping, "window");
    }
  }
}

TEST_F(HostileGuestTest, SilenceIsADeadlineAndALateAnswerIsForgiven) {
  StartAfterHello([](Wire& wire) {
    const auto first = wire.ReadFrame();
    const auto second = wire.ReadFrame();
    wire.Respond(first->stream_id, 0, "", "");
    wire.Respond(second->stream_id, 0, "", "");
  });
  const absl::Status late = Run(client_->Ping(Deadline::In(milliseconds(50)))).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(late), "DEADLINE");
  EXPECT_TRUE(Run(client_->Ping(Soon())).ok());
}

Task<void> CountFailure(std::shared_ptr<AgentClient> client, absl::StatusCode expected, int* count) {
  const absl::StatusOr<agentpb::PingResponse> response = co_await client->Ping(Deadline::In(milliseconds(500)));
  if (response.status().code() == expected) { ++*count; }
}

TEST_F(HostileGuestTest, CallsThatAreNeverAnsweredHaveABound) {
  StartAfterHello([](Wire&) {});
  int refused = 0;
  int late = 0;
  for (int i = 0; i < 1024; ++i) { runtime_.Spawn(CountFailure(client_, absl::StatusCode::kDeadlineExceeded, &late)); }
  for (int i = 0; i < 10; ++i) { runtime_.Spawn(CountFailure(client_, absl::StatusCode::kResourceExhausted, &refused)); }
  const absl::Status status = Run(client_->Ping(Soon())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "LIMIT_REACHED");
  runtime_.RunBlocking(SleepUntil(Deadline::In(milliseconds(700))));  // Their deadlines are a matter of time.
  EXPECT_EQ(Run([](int* n) -> Task<int> { co_return *n; }(&refused)), 10);
  EXPECT_EQ(Run([](int* n) -> Task<int> { co_return *n; }(&late)), 1024);
}

TEST_F(HostileGuestTest, AGuestThatDoesNotReadCannotFillTheDaemon) {
  StartGuest([](Wire& wire) {
    wire.Answer();
    wire.WaitForHangup();
  });
  ASSERT_TRUE(Connect().ok());
  const long before = RssKib();
  agentpb::EvalRequest request;
  request.set_code(std::string(900'000, 'x'));
  absl::Status status;
  for (int i = 0; i < 6; ++i) { status = Run(client_->Eval(request, Deadline::In(milliseconds(50)))).status(); }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(std::string(status.message()).find("send"), std::string::npos) << "it should not even have been queued: " << status;
  EXPECT_LT(RssKib() - before, 16 * 1024 * kMemoryFactor);
}

TEST_F(HostileGuestTest, AMillionEmptyEntriesAreRefusedUnparsed) {
  StartAfterHello([](Wire& wire) {
    const auto request = wire.ReadFrame();
    std::string payload;
    for (int i = 0; i < 1'000'000; ++i) { payload += std::string("\x0a\x00", 2); }
    wire.Respond(request->stream_id, 0, "", payload);
  });
  const long before = RssKib();
  const absl::Status status = Run(client_->ListDirectory({}, Soon())).status();
  EXPECT_EQ(ReasonOf(status), "AGENT_PROTOCOL") << status;
  EXPECT_LT(RssKib() - before, 24 * 1024 * kMemoryFactor);
}

TEST_F(HostileGuestTest, StatusesAreTakenWithCare) {
  StartAfterHello([](Wire& wire) {
    for (const auto& [code, text] : std::vector<std::pair<int, std::string>>{{5, "gone\n\x1b[31m"}, {16, "who are you"}, {999, "?"}, {-1, "?"}, {3, std::string(100'000, 'm')}}) {
      const auto request = wire.ReadFrame();
      wire.Respond(request->stream_id, code, text, "");
    }
  });
  absl::Status status = Run(client_->StatFile({}, Soon())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "GUEST_FILE");
  EXPECT_EQ(std::string(status.message()).find('\x1b'), std::string::npos);
  for (int i = 0; i < 3; ++i) {
    status = Run(client_->StatFile({}, Soon())).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(ReasonOf(status), "AGENT_PROTOCOL");
  }
  status = Run(client_->StatFile({}, Soon())).status();
  EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
  EXPECT_LT(status.message().size(), 1000u);
  EXPECT_FALSE(client_->closed());
}

TEST_F(HostileGuestTest, FileStreamsKeepToTheirWindowsToo) {
  StartAfterHello([](Wire& wire) {
    const auto request = wire.ReadFrame();
    wire.ReadFrame();
    agentpb::ReadFileOutput output;
    output.mutable_info()->set_size_bytes(1);
    wire.PutFrame(request->stream_id, FrameType::kData, 0, output.SerializeAsString());
    output.set_data(std::string(200 * 1024, 'd'));
    for (int i = 0; i < 2; ++i) { wire.PutFrame(request->stream_id, FrameType::kData, 0, output.SerializeAsString()); }
  });
  absl::StatusOr<std::shared_ptr<FileReader>> reader = Run(client_->ReadFile({}, Soon()));
  ExpectBreach(Run(client_->Ping(Soon())).status(), "window");
  runtime_.RunBlocking([](auto* reader) -> Task<void> {
    *reader = absl::UnknownError("");
    co_return;
  }(&reader));
}

// Read on the I/O thread, where it is written.
Task<int> Value(int* value) { co_return *value; }

TEST_F(HostileGuestTest, AGuestThatDiesFailsWhatIsPendingAndTellsTheOwnerOnce) {
  StartGuest([](Wire& wire) {
    wire.Answer();
    wire.ReadFrame();
  });
  ASSERT_TRUE(Connect().ok());
  int told = 0;
  absl::Status why;
  runtime_.RunBlocking([](AgentClient* client, int* told, absl::Status* why) -> Task<void> {
    client->OnClose([told, why](const absl::Status& status) {
      ++*told;
      *why = status;
    });
    co_return;
  }(client_.get(), &told, &why));
  const absl::Status status = Run(client_->Ping(Soon())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "AGENT_UNREACHABLE");
  EXPECT_EQ(Run(client_->Ping(Soon())).status(), status);
  const Deadline soon = Soon();
  while (Run(Value(&told)) == 0 && !soon.Expired()) { std::this_thread::sleep_for(milliseconds(1)); }
  EXPECT_EQ(Run(Value(&told)), 1);
  EXPECT_EQ(why, status);
  // One that comes late is told as well.
  runtime_.RunBlocking([](AgentClient* client, int* told) -> Task<void> {
    client->OnClose([told](const absl::Status&) { *told += 10; });
    co_return;
  }(client_.get(), &told));
  const Deadline deadline = Soon();
  while (Run(Value(&told)) != 11 && !deadline.Expired()) { std::this_thread::sleep_for(milliseconds(1)); }
  EXPECT_EQ(Run(Value(&told)), 11);
}

TEST_F(HostileGuestTest, ClosingIsNotToldAndFailsWhatIsPending) {
  StartAfterHello([](Wire&) {});
  std::optional<absl::StatusOr<agentpb::PingResponse>> pending;
  runtime_.Spawn(Store(client_->Ping(Soon()), &pending));
  int told = 0;
  runtime_.RunBlocking([](AgentClient* client, int* told) -> Task<void> {
    client->OnClose([told](const absl::Status&) { ++*told; });
    client->Close();
    client->Close();
    co_return;
  }(client_.get(), &told));
  runtime_.RunBlocking(SleepUntil(Deadline::In(milliseconds(20))));  // That something does not happen.
  EXPECT_EQ(told, 0);
  ASSERT_TRUE(pending.has_value());
  EXPECT_EQ(pending->status().code(), absl::StatusCode::kCancelled);
}

TEST_F(HostileGuestTest, ATrickleOfBytesIsStillAnAnswer) {
  StartAfterHello([](Wire& wire) {
    const auto request = wire.ReadFrame();
    ttrpc::Response response;
    agentpb::PingResponse ping;
    ping.set_protocol(1);
    response.set_payload(ping.SerializeAsString());
    std::string bytes;
    ttrpc::AppendFrame(ttrpc::Frame{.stream_id = request->stream_id, .type = FrameType::kResponse, .flags = 0, .data = response.SerializeAsString()}, &bytes);
    for (char byte : bytes) {
      wire.Put(std::string(1, byte));
      std::this_thread::sleep_for(milliseconds(1));  // Slowness is what this guest is.
    }
  });
  const absl::StatusOr<agentpb::PingResponse> response = Run(client_->Ping(Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->protocol(), 1u);
}

}  // namespace
}  // namespace forkd::guest
