#!/usr/bin/env bash
# A bad minute, rehearsed on a real broker. See --help.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
kafka=$here/kafka/kafka.sh
bin=${CARGO_TARGET_DIR:-$root/target}/release

# Rule sets come into force this often, in seconds.
activate_every=2
# Records among the good ones that nothing can be made of.
poison=10

usage() {
  cat <<'EOF'
scenario.sh - a bad minute: steady readings through a real Kafka while rule sets
are activated every 2 s, ten poison records come among the good ones, the broker
is restarted once, and a webhook receiver fails half the time.

  scenario.sh [--rate N] [--for SECONDS] [--wait SECONDS] [--keep]
      --rate N        readings per second (default 20000)
      --for SECONDS   how long to send (default 60)
      --wait SECONDS  how long the engine and its sinks may take to get through
                      what is left when sending is over (default 120)
      --keep          leave the folder with logs and reports behind, also if all
                      is well

Afterwards every reading must be in the canonical log or (poison) in the
dead-letter topic, every alert on the alerts topic once and without a gap, and
at the receiver at least once and under the same id.

Wants `cargo build --release`, and what kafka.sh wants. Everything it starts it
ends, whatever happens.

Exit codes: 0 all well, 1 a finding, 2 wrong use, 3 something is not there.

Example, as short as makes sense:
  loadtest/scenario.sh --rate 2000 --for 20
EOF
}

say() { printf 'scenario.sh: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

wrong() {
  say "$*"
  say "try: scenario.sh --help"
  exit 2
}

# --- what is started is ended ------------------------------------------------

dir='' keep=''
declare -A started=()

# The process that was just put into the background, until it has been waited for.
remember() { started[$!]=yes; }
forget() { unset "started[$1]"; }

runs() { kill -0 "$1" 2>/dev/null; }

# SIGTERM, and SIGKILL if process $1 has not ended $2 seconds later.
end_process() {
  local i
  runs "$1" || return 0
  kill -TERM "$1" 2>/dev/null || true
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
  # The broker last, so that the engine can finish what it has in hand.
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

# --- the stage ---------------------------------------------------------------

# Two sets that decide the same: a rate has one decimal, so 130.95 tells 130.9 from
# 131.0 as 131.0 does. Each activation looks at every patient again, and no alert
# may depend on which set is in force.
make_rules() {
  local pack=$root/rules/packs/adult-ward set
  for set in a b; do cp -r "$pack" "$dir/rules-$set"; done
  sed -i 's/: 131\.0\b/: 130.95/; s/\bversion: \([0-9]*\)/version: \10/' "$dir/rules-b/heart-rate-high.rhai"
  if cmp -s "$dir/rules-a/heart-rate-high.rhai" "$dir/rules-b/heart-rate-high.rhai"; then
    fail "the limit of 131.0 is not in heart-rate-high.rhai any more: choose another one here"
  fi
}

make_config() {
  (umask 077 && printf 'whsec_%s\n' "$(head -c 32 /dev/urandom | base64)" >"$dir/webhook.secret")
  cat >"$dir/wardbell.toml" <<EOF
site = "scenario"
rules = "$dir/rules-a"
watch_rules = false

[kafka]
bootstrap_servers = "$1"

[source]
topics = ["devices"]
create_partitions = 4

[canonical]
partitions = 4

[http]
listen = "off"

[[sink]]
name = "file"
type = "jsonl"
path = "$dir/alerts.jsonl"

[[sink]]
name = "webhook"
type = "webhook"
url = "http://$2/"
secret_file = "$dir/webhook.secret"
EOF
}

# REPLY = the value of $2= in file $1.
word_in() {
  REPLY=$(sed -n "s/^\(.* \)\{0,1\}$2=\([^ ]*\).*/\2/p" "$1" | head -n 1)
  [[ -n $REPLY ]]
}

# --- the play ----------------------------------------------------------------

rehearse() {
  local bootstrap receiver engine load began set=a published=0 restarted=''

  "$kafka" run --dir "$dir/kafka" --while-pid $$ >"$dir/kafka.out"
  word_in "$dir/kafka.out" bootstrap
  bootstrap=$REPLY

  "$bin/loadtest" receive --file "$dir/received.jsonl" --refuse 50% >"$dir/receive.out" 2>"$dir/receive.log" &
  remember
  wait_for 10 $! word_in "$dir/receive.out" listening || fail "the receiver does not listen"
  receiver=$REPLY

  make_rules
  make_config "$bootstrap" "$receiver"
  "$bin/wardbell" run --config "$dir/wardbell.toml" >"$dir/engine.out" 2>"$dir/engine.log" &
  remember
  engine=$!
  wait_for 60 "$engine" grep -qs 'the job runs' "$dir/engine.log" || fail "the engine has not started: see engine.log"

  say "$rate readings/s for $seconds s"
  "$bin/loadtest" load --brokers "$bootstrap" --topic devices --rate "$rate" --for "${seconds}s" --poison "$poison" \
    --settle 0s --manifest "$dir/manifest.json" >"$dir/load.txt" 2>"$dir/load.log" &
  remember
  load=$!
  began=$SECONDS
  while runs "$load"; do
    runs "$engine" || fail "the engine has ended: see engine.log"
    if [[ -z $restarted ]] && ((SECONDS - began >= seconds / 2)); then
      say "restarting the broker"
      "$kafka" restart --dir "$dir/kafka" --while-pid $$ >>"$dir/kafka.out"
      restarted=yes
    fi
    local next=$((SECONDS + activate_every))
    [[ $set == a ]] && set=b || set=a
    "$bin/wardbell" rules publish "$dir/rules-$set" --config "$dir/wardbell.toml" >>"$dir/publish.log" 2>&1 ||
      fail "a rule set could not be published: see publish.log"
    published=$((published + 1))
    while ((SECONDS < next)) && runs "$load"; do sleep 0.1; done
  done
  wait "$load" || fail "not everything was acknowledged: see load.txt"
  forget "$load"
  [[ -n $restarted ]] || fail "sending was over before the broker was restarted: send longer"
  say "$published rule sets were published"

  # A set that is replaced before a partition has looked may never come into force there.
  say "verifying"
  "$bin/loadtest" verify --brokers "$bootstrap" --manifest "$dir/manifest.json" --received "$dir/received.jsonl" \
    --activations "$((published / 2))" --wait "${patience}s" | tee "$dir/verify.txt" || fail "see verify.txt and engine.log"

  kill -TERM "$engine"
  wait "$engine" || fail "the engine did not end well: see engine.log"
  forget "$engine"
}

main() {
  rate=20000 seconds=60 patience=120
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        return
        ;;
      --rate | --for | --wait)
        [[ ${2:-} =~ ^[1-9][0-9]{0,6}$ ]] || wrong "$1 wants a whole number"
        case $1 in
          --rate) rate=$2 ;;
          --for) seconds=$2 ;;
          --wait) patience=$2 ;;
        esac
        shift 2
        ;;
      --keep)
        keep=yes
        shift
        ;;
      *) wrong "unknown argument '$1'" ;;
    esac
  done
  local program
  for program in wardbell loadtest; do
    if [[ ! -x $bin/$program ]]; then
      say "missing: $bin/$program (cargo build --release)"
      exit 3
    fi
  done
  "$kafka" need || exit 3

  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  dir=$(mktemp -d)
  rehearse
  say "all well"
}

main "$@"
