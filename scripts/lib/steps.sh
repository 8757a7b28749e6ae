# shellcheck shell=bash
# Steps with progress: `step TITLE COMMAND…` runs the command with its output in a log file and shows the elapsed time. Sourced.
#
# On a terminal the line is redrawn each second; elsewhere there is one line at the start and one at the end of what takes longer than a
# second. FORKD_LOG_DIR, set by the caller, holds one log per step; a failed step shows the
# last FORKD_STEP_TAIL (25) lines of its log.

FORKD_STEP_TITLES=()
FORKD_STEP_SECONDS=()
_forkd_step_pid=""
_forkd_tick_pid=""

_forkd_now_ms() {
  local now=${EPOCHREALTIME/[.,]/}
  echo "${now%???}"
}

# Milliseconds as "12.3 s" or "45 ms".
forkd_duration() {
  if (($1 >= 1000)); then
    printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100))
  else
    printf '%d ms' "$1"
  fi
}

# The last step's log.
FORKD_STEP_LOG=""
# The last step's duration in milliseconds.
FORKD_STEP_MS=0

# Shows that time passes, until it is killed.
_forkd_tick() { # TITLE START_MS
  # A plain sleep would outlive its killed parent and hold the terminal or pipe open.
  trap 'kill "$sleeping" 2>/dev/null; exit 0' TERM
  local sleeping seconds=0
  while true; do
    sleep 1 >/dev/null 2>&1 &
    sleeping=$!
    wait "$sleeping"
    seconds=$((($(_forkd_now_ms) - $2) / 1000))
    if [[ -t 1 ]]; then
      printf '\r  %s ... %d s ' "$1" "$seconds"
    elif ((seconds < 2)); then
      printf '  %s ...\n' "$1"
    fi
  done
}

step() {
  local title=$1
  shift
  local name=${title//[^A-Za-z0-9]/-}
  FORKD_STEP_LOG="$FORKD_LOG_DIR/$(printf '%02d' ${#FORKD_STEP_TITLES[@]})-${name:0:40}.log"
  local start status=0
  start=$(_forkd_now_ms)
  _forkd_tick "$title" "$start" &
  _forkd_tick_pid=$!
  # Job control gives the command a process group of its own, so that an interruption ends all it started.
  set -m
  "$@" >"$FORKD_STEP_LOG" 2>&1 </dev/null &
  _forkd_step_pid=$!
  set +m
  wait "$_forkd_step_pid" || status=$?
  FORKD_STEP_MS=$(($(_forkd_now_ms) - start))
  _forkd_step_pid=""
  _forkd_stop_tick
  [[ -t 1 ]] && printf '\r\033[K'
  if ((status != 0)); then
    printf '  %s: failed after %s (status %d). The end of %s:\n' "$title" "$(forkd_duration "$FORKD_STEP_MS")" "$status" "$FORKD_STEP_LOG" >&2
    # Debian's Bazel writes its sandbox's debug lines into the output of failed commands.
    grep -v 'src/main/tools/linux-sandbox' "$FORKD_STEP_LOG" | tail -n "${FORKD_STEP_TAIL:-25}" | sed 's/^/    /' >&2
    return "$status"
  fi
  printf '  %s: %s\n' "$title" "$(forkd_duration "$FORKD_STEP_MS")"
  FORKD_STEP_TITLES+=("$title")
  FORKD_STEP_SECONDS+=("$(forkd_duration "$FORKD_STEP_MS")")
}

# Waits until a child of ours has ended, a given number of tenths of a second at most. Not by `wait`: in a trap that came during another `wait`,
# bash 5.2 was seen to wait for ever for a child that had ended already.
forkd_await_end() { # PID TENTHS
  local i state
  for ((i = 0; i < $2; i++)); do
    # The letter after the name in parentheses; Z has ended and waits to be reaped.
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    [[ "$state" != Z* ]] || return 0
    sleep 0.1
  done
  return 1
}

_forkd_stop_tick() {
  if [[ -n "$_forkd_tick_pid" ]]; then
    kill "$_forkd_tick_pid" 2>/dev/null || true
    _forkd_tick_pid=""
  fi
}

# Ends the command of a step that a signal interrupted.
forkd_stop_step() {
  _forkd_stop_tick
  if [[ -n "$_forkd_step_pid" ]]; then
    kill -- "-$_forkd_step_pid" 2>/dev/null || true
    forkd_await_end "$_forkd_step_pid" 100 || kill -KILL -- "-$_forkd_step_pid" 2>/dev/null || true
    _forkd_step_pid=""
  fi
}
