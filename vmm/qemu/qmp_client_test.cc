// The control socket against a QEMU that is slow, dead, confused or hostile.
#include "vmm/qemu/qmp_client.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"

namespace forkd::vmm {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr char kGreeting[] = R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}})"
                             "\r\n";

// The other end of the control socket, played by a thread.
class FakeQemu {
 public:
  explicit FakeQemu(std::function<void(FakeQemu&)> script) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) { std::abort(); }
    client.reset(ends[0]);
    server_.reset(ends[1]);
    thread_ = std::thread([this, script = std::move(script)] {
      script(*this);
      if (close_at_end) { server_.reset(); }
    });
  }
  ~FakeQemu() {
    thread_.join();
  }

  void Say(absl::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(server_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) { return; }
      text.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  // The next command; null once the client has closed.
  json Hear() {
    char byte = 0;
    std::string line;
    while (::read(server_.get(), &byte, 1) == 1) {
      if (byte == '\n') { return json::parse(line); }
      line += byte;
    }
    return json();
  }
  void Return(const json& command, const json& value) { Say(json::object({{"return", value}, {"id", command["id"]}}).dump() + "\r\n"); }
  void Negotiate() {
    Say(kGreeting);
    Return(Hear(), json::object());
  }

  UniqueFd client;
  bool close_at_end = true;

 private:
  UniqueFd server_;
  std::thread thread_;
};

struct Talk {
  absl::Status opened;
  absl::StatusOr<json> first = absl::UnknownError("not reached");
  absl::StatusOr<json> second = absl::UnknownError("not reached");
  std::vector<std::string> events;
  std::vector<absl::Status> broken;
};

Task<void> TalkTo(UniqueFd socket, Talk* talk, std::chrono::milliseconds limit) {
  QmpClient::Handlers handlers;
  handlers.on_event = [talk](const QmpEvent& event) { talk->events.push_back(event.name); };
  handlers.on_broken = [talk](const absl::Status& why) { talk->broken.push_back(why); };
  auto client = co_await QmpClient::Open(std::move(socket), std::move(handlers), Deadline::In(limit));
  talk->opened = client.status();
  if (!client.ok()) { co_return; }
  talk->first = co_await (*client)->Execute("query-status", json::object(), Deadline::In(limit));
  talk->second = co_await (*client)->Execute("stop", json::object(), Deadline::In(limit));
}

Talk TalkTo(FakeQemu& qemu, std::chrono::milliseconds limit = seconds(10)) {
  Talk talk;
  Runtime runtime;
  runtime.Start();
  runtime.RunBlocking(TalkTo(std::move(qemu.client), &talk, limit));
  return talk;
}

TEST(QmpClient, CommandsEventsAndErrorsOfAnOrderlyQemu) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    q.Say(R"({"event": "RESUME", "timestamp": {}})" "\n");
    q.Return(q.Hear(), {{"status", "running"}});
    const json stop = q.Hear();
    EXPECT_EQ(stop["execute"], "stop");
    q.Say(json::object({{"id", stop["id"]}, {"error", {{"class", "GenericError"}, {"desc", "not now"}}}}).dump() + "\n");
  });
  const Talk talk = TalkTo(qemu);
  ASSERT_TRUE(talk.opened.ok()) << talk.opened;
  ASSERT_TRUE(talk.first.ok()) << talk.first.status();
  EXPECT_EQ((*talk.first)["status"], "running");
  EXPECT_EQ(ReasonOf(talk.second.status()), "VMM_FAILED");
  EXPECT_NE(talk.second.status().message().find("stop: QEMU refuses: not now"), absl::string_view::npos) << talk.second.status();
  EXPECT_EQ(talk.events, std::vector<std::string>{"RESUME"});
  EXPECT_TRUE(talk.broken.empty()) << "a refusal breaks nothing";
}

TEST(QmpClient, AnswersThatArriveByteByByte) {
  FakeQemu qemu([](FakeQemu& q) {
    for (const char c : std::string(kGreeting)) { q.Say(std::string(1, c)); }
    q.Return(q.Hear(), json::object());
    const json command = q.Hear();
    for (const char c : json::object({{"return", 1}, {"id", command["id"]}}).dump() + "\n") { q.Say(std::string(1, c)); }
    q.Return(q.Hear(), 2);
  });
  const Talk talk = TalkTo(qemu);
  ASSERT_TRUE(talk.second.ok()) << talk.second.status();
  EXPECT_EQ(*talk.first, 1);
  EXPECT_EQ(*talk.second, 2);
}

TEST(QmpClient, NoGreetingInTime) {
  FakeQemu qemu([](FakeQemu& q) { q.Hear(); });
  EXPECT_EQ(ReasonOf(TalkTo(qemu, milliseconds(100)).opened), "DEADLINE");
}

TEST(QmpClient, AnEndBeforeTheGreeting) {
  FakeQemu qemu([](FakeQemu&) {});
  EXPECT_EQ(TalkTo(qemu).opened.code(), absl::StatusCode::kUnavailable);
}

TEST(QmpClient, AnEndInTheMiddleOfAReply) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    q.Hear();
    q.Say(R"({"return": {"sta)");
  });
  const Talk talk = TalkTo(qemu);
  EXPECT_EQ(talk.first.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(talk.second.status().code(), absl::StatusCode::kUnavailable) << "and so for all that comes later";
  EXPECT_EQ(talk.broken.size(), 1u);
}

TEST(QmpClient, ALateAnswerIsPassedOverAndTheNextCommandGoesOn) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    const json late = q.Hear();
    const json next = q.Hear();  // comes once the first one's deadline has passed
    q.Return(late, "too late");
    q.Return(next, "in time");
  });
  const Talk talk = TalkTo(qemu, milliseconds(300));
  EXPECT_EQ(ReasonOf(talk.first.status()), "DEADLINE");
  ASSERT_TRUE(talk.second.ok()) << talk.second.status();
  EXPECT_EQ(*talk.second, "in time");
  EXPECT_TRUE(talk.broken.empty());
}

TEST(QmpClient, NoAnswerForLongBreaksTheConnection) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    q.Hear();
    q.Hear();
    EXPECT_TRUE(q.Hear().is_null()) << "the client has hung up";
  });
  Talk talk;
  Runtime runtime;
  runtime.Start();
  struct Impatient {
    static Task<void> Run(UniqueFd socket, Talk* talk) {
      QmpClient::Handlers handlers;
      handlers.on_broken = [talk](const absl::Status& why) { talk->broken.push_back(why); };
      handlers.patience = milliseconds(100);
      auto client = co_await QmpClient::Open(std::move(socket), std::move(handlers), Deadline::In(seconds(10)));
      talk->opened = client.status();
      if (!client.ok()) { co_return; }
      talk->first = co_await (*client)->Execute("query-status", json::object(), Deadline::In(milliseconds(50)));
      // Its own deadline is far away: it is woken by the break.
      talk->second = co_await (*client)->Execute("stop", json::object(), Deadline::In(seconds(20)));
    }
  };
  runtime.RunBlocking(Impatient::Run(std::move(qemu.client), &talk));
  EXPECT_EQ(ReasonOf(talk.first.status()), "DEADLINE");
  EXPECT_EQ(ReasonOf(talk.second.status()), "DEADLINE");
  EXPECT_EQ(talk.broken.size(), 1u);
}

class QmpGarbage : public testing::TestWithParam<const char*> {};

TEST_P(QmpGarbage, IsAProtocolError) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    q.Hear();
    q.Say(std::string(GetParam()) + "\n");
    q.Hear();
  });
  const Talk talk = TalkTo(qemu);
  EXPECT_EQ(talk.first.status().code(), absl::StatusCode::kInternal) << talk.first.status();
  EXPECT_EQ(ReasonOf(talk.first.status()), "VMM_PROTOCOL");
  EXPECT_EQ(ReasonOf(talk.second.status()), "VMM_PROTOCOL");
}

INSTANTIATE_TEST_SUITE_P(Lines, QmpGarbage,
                         testing::Values("garbage", "{}", R"({"return": {}, "id": "somebody else's"})", R"({"return": {}})",
                                         R"({"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}})", R"({"error": {"class": "x", "desc": "JSON parse error"}})",
                                         R"({"event": null})", "[[[[", "\x01\x02"));

TEST(QmpClient, ALineWithoutEnd) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    q.Hear();
    for (int i = 0; i < 100; ++i) { q.Say(std::string(16384, 'x')); }
  });
  EXPECT_EQ(ReasonOf(TalkTo(qemu).first.status()), "VMM_PROTOCOL");
}

TEST(QmpClient, AReplyBeforeTheGreeting) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Say(R"({"return": {}, "id": "1"})" "\n");
    q.Hear();
  });
  EXPECT_EQ(ReasonOf(TalkTo(qemu).opened), "VMM_PROTOCOL");
}

TEST(QmpClient, AnAnswerToAnEarlierDaemonsCommandIsPassedOver) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    const json command = q.Hear();
    q.Say(R"({"return": {"old": true}, "id": "forkd-1234-7"})" "\n");
    q.Return(command, "new");
    q.Return(q.Hear(), 2);
  });
  const Talk talk = TalkTo(qemu);
  ASSERT_TRUE(talk.first.ok()) << talk.first.status();
  EXPECT_EQ(*talk.first, "new");
}

TEST(QmpClient, AnswersInAnotherOrderFindTheirCommands) {
  FakeQemu qemu([](FakeQemu& q) {
    q.Negotiate();
    const json first = q.Hear();
    const json second = q.Hear();
    q.Return(second, "b");
    q.Return(first, "a");
  });
  std::string first;
  std::string second;
  struct Both {
    static Task<void> One(QmpClient* client, std::string* answer, AsyncEvent* done) {
      const auto reply = co_await client->Execute("query-status", json::object(), Deadline::In(seconds(10)));
      *answer = reply.ok() ? reply->get<std::string>() : "error";
      done->Set();
    }
    static Task<void> Run(UniqueFd socket, std::string* first, std::string* second) {
      const Executor executor = co_await boost::asio::this_coro::executor;
      auto client = co_await QmpClient::Open(std::move(socket), {}, Deadline::In(seconds(10)));
      if (!client.ok()) { co_return; }
      AsyncEvent first_done(executor);
      AsyncEvent second_done(executor);
      SpawnOn(executor, One(client->get(), first, &first_done));
      SpawnOn(executor, One(client->get(), second, &second_done));
      co_await first_done.Wait(Deadline::In(seconds(20)));
      co_await second_done.Wait(Deadline::In(seconds(20)));
    }
  };
  Runtime runtime;
  runtime.Start();
  runtime.RunBlocking(Both::Run(std::move(qemu.client), &first, &second));
  EXPECT_EQ(first, "a");
  EXPECT_EQ(second, "b");
}

TEST(QmpClient, ADescriptorTravelsWithItsCommand) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const UniqueFd reader(pipe_ends[0]);
  const UniqueFd writer(pipe_ends[1]);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  UniqueFd server(ends[1]);
  std::thread qemu([&server] {
    ASSERT_GT(::send(server.get(), kGreeting, sizeof(kGreeting) - 1, 0), 0);
    for (int i = 0; i < 2; ++i) {
      char bytes[1024];
      iovec vector{bytes, sizeof(bytes)};
      alignas(cmsghdr) char control[64];
      msghdr message{};
      message.msg_iov = &vector;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      const ssize_t got = ::recvmsg(server.get(), &message, MSG_CMSG_CLOEXEC);
      ASSERT_GT(got, 0);
      if (const cmsghdr* header = CMSG_FIRSTHDR(&message)) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
        EXPECT_EQ(::write(fd, "x", 1), 1);
        ::close(fd);
      }
      const json command = json::parse(std::string(bytes, static_cast<std::size_t>(got)));
      const std::string reply = json::object({{"return", 1}, {"id", command["id"]}}).dump() + "\n";
      ::send(server.get(), reply.data(), reply.size(), 0);
    }
  });
  absl::Status sent;
  struct Once {
    static Task<void> Run(UniqueFd socket, int fd, absl::Status* status) {
      auto client = co_await QmpClient::Open(std::move(socket), {}, Deadline::In(seconds(10)));
      *status = client.status();
      if (client.ok()) { *status = (co_await (*client)->Execute("getfd", {{"fdname", "x"}}, Deadline::In(seconds(10)), fd)).status(); }
    }
  };
  Runtime runtime;
  runtime.Start();
  runtime.RunBlocking(Once::Run(UniqueFd(ends[0]), writer.get(), &sent));
  qemu.join();
  EXPECT_TRUE(sent.ok()) << sent;
  char byte = 0;
  EXPECT_EQ(::read(reader.get(), &byte, 1), 1);
}

}  // namespace
}  // namespace forkd::vmm
