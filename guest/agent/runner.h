// The resident warmed runner: one process of the image, started from /usr/lib/forkd/runner, that evaluates code and keeps its state between calls.
//
// Its descriptor 3 is a stream socket. Both directions carry messages: 4 bytes big-endian length of what follows, 1 byte type, body.
//   to the runner    1 EVAL     4 bytes: how many bytes of the value to keep; then the code
//   from the runner  128 READY  what it is, for people
//                    129 RESULT 1 byte of flags (1 value, 2 error, 4 value truncated, 8 threads go on running), then value, error, traceback: 4 bytes
//                               length + bytes each
// Its descriptor 4 is a seqpacket socket for reseeding, which may not wait for code that runs: a clone of a busy machine must draw other numbers at
// once. The agent sends a packet of entropy and signals the main thread (SIGRTMIN + 7); the answer is a packet: 0, or 1 and what went wrong.
// Its stdout and stderr are pipes to the agent, so that what C libraries and child processes write is caught as well; the agent keeps what comes
// during an evaluation, up to a bound, and drops the rest. The runner flushes before it sends RESULT.
#ifndef FORKD_GUEST_AGENT_RUNNER_H_
#define FORKD_GUEST_AGENT_RUNNER_H_

#include <chrono>
#include <deque>
#include <functional>
#include <string>

#include "guest/agent/connection.h"
#include "guest/agent/event_loop.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {

class Runner {
 public:
  using EvalDone = std::function<void(const Status&, ::forkd::agent::v1::EvalResponse)>;
  // Empty: done. Otherwise what went wrong.
  using ReseedDone = std::function<void(const std::string& error)>;
  using ReadyDone = std::function<void(const Status&, const std::string& info)>;

  Runner(EventLoop* loop, std::string program) : loop_(loop), program_(std::move(program)) {}

  void Eval(const ::forkd::agent::v1::EvalRequest& request, EvalDone done);
  // Before any more code draws numbers. While code or its threads run, they are interrupted for it, and `done` waits for the runner's answer. An idle
  // runner is left asleep (waking it costs a clone a megabyte of memory of its own): it is reseeded before the next evaluation, and replaced if that
  // fails. Where no runner runs there is nothing to do: one that starts later seeds itself afresh.
  void Reseed(const std::string& entropy, ReseedDone done);
  // Starts it if it does not run.
  void WhenReady(ReadyDone done);
  bool Present() const;
  ::forkd::agent::v1::RunnerState state() const;
  void Kill();

 private:
  struct Job {
    // An evaluation has done_eval, a wait for readiness done_ready.
    std::string message;
    uint32_t max_output_bytes = 0;
    EvalDone done_eval;
    ReadyDone done_ready;
    EventLoop::TimerId timer = 0;
    uint64_t id = 0;
  };

  struct PendingReseed {
    std::string entropy;
    ReseedDone done;
    EventLoop::TimerId timer = 0;
    uint64_t id = 0;
  };

  Status Start();
  void ReseedNow(const std::string& entropy, ReseedDone done);
  void ReseedBeforeNext();
  void SendReseed(uint64_t id, const std::string& entropy);
  void OnReseeded();
  void FinishReseed(uint64_t id, const std::string& error);
  void Enqueue(Job job, std::chrono::nanoseconds limit);
  void Next();
  void OnSocket();
  void OnMessage(uint8_t type, const std::string& body);
  void OnTimeout(uint64_t job_id);
  void Finish(Job& job, const Status& status, ::forkd::agent::v1::EvalResponse response);
  // The process is gone or must go: the running job ends with `why`, and a new runner is started if one ran before.
  void Lost(const std::string& why, bool timed_out);
  void Stop();
  void Write();
  void DrainOutput(int which);

  EventLoop* loop_;
  std::string program_;
  pid_t pid_ = -1;
  UniqueFd socket_;
  UniqueFd reseed_socket_;
  UniqueFd output_[2];
  std::string in_;
  std::string out_;
  bool ready_ = false;
  std::string info_;
  std::deque<Job> queue_;
  // Answered in order.
  std::deque<PendingReseed> reseeds_;
  // Of an idle runner: what to reseed it from before it runs anything; empty: nothing.
  std::string owed_entropy_;
  // An idle runner is being reseeded, and the front of the queue waits for that.
  bool reseeding_ = false;
  bool has_threads_ = false;
  EventLoop::TimerId start_timer_ = 0;
  // The front of the queue has been handed to the runner.
  bool busy_ = false;
  std::chrono::steady_clock::time_point began_;
  std::string captured_[2];
  bool captured_cut_[2] = {false, false};
  uint64_t next_job_ = 1;
};

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_RUNNER_H_
