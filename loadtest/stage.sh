# shellcheck shell=bash
# What the scripts here play on: a broker and processes in a folder of their own, and everything that was started
# is ended, whatever happens. Sourced; does nothing by itself.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
kafka=$here/kafka/kafka.sh
# The scripts run what is in there.
# shellcheck disable=SC2034
bin=${CARGO_TARGET_DIR:-$root/target}/release
script=${0##*/}

say() { printf '%s: %s\n' "$script" "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

wrong() {
  say "$*"
  say "try: $script --help"
  exit 2
}

# Exit unless all of these programs are there, and what the broker wants.
need() {
  local program
  for program in "$@"; do
    if [[ ! -x $program ]]; then
      say "missing: $program (cargo build --release)"
      exit 3
    fi
  done
  "$kafka" need || exit 3
}

# --- what is started is ended ------------------------------------------------

dir='' keep=''
declare -A started=()

# A folder of its own, in $dir; from here on clean_up has the last word.
set_up() {
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  dir=$(mktemp -d)
}

# The process that was just put into the background, until it has been waited for.
remember() { started[$!]=yes; }
forget() { unset "started[$1]"; }

runs() { kill -0 "$1" 2>/dev/null; }

# Wait $2 seconds for process $1, which was told to end, then SIGKILL.
end_process() {
  local i
  for ((i = 0; i < $2 * 10; i++)); do
    runs "$1" || return 0
    sleep 0.1
  done
  say "process $1 has not ended on SIGTERM: SIGKILL"
  kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
  local status=$? pid
  trap - EXIT
  trap '' INT TERM HUP
  # The broker last, so that the engine can finish what it has in hand. A stopped process does not hear SIGTERM.
  for pid in "${!started[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true
  done
  for pid in "${!started[@]}"; do end_process "$pid" 40; done
  [[ -z $dir ]] || "$kafka" stop --dir "$dir/kafka" --kill
  if ((status == 0)) && [[ -z $keep ]]; then
    rm -rf "$dir"
  elif [[ -n $dir ]]; then
    say "logs and reports: $dir"
  fi
  exit "$status"
}

# Wait at most $1 seconds for what the command from $3 on says, while process $2 runs.
wait_for() {
  local deadline=$((SECONDS + $1)) pid=$2
  shift 2
  until "$@"; do
    runs "$pid" || return 1
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# REPLY = the value of $2= in file $1.
word_in() {
  REPLY=$(sed -n "s/^\(.* \)\{0,1\}$2=\([^ ]*\).*/\2/p" "$1" | head -n 1)
  [[ -n $REPLY ]]
}
