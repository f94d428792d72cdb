#!/usr/bin/env bash
# Twice as much as the engine can take, on a real broker. See --help.
set -euo pipefail

# shellcheck source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

# What is seen has to be said within this, in seconds.
told_within=5
# From here on a stage counts as behind, and as too far behind, in seconds.
behind=5
budget=30

usage() {
  cat <<'EOT'
overload.sh - twice the readings that the engine can take, through a real Kafka:
it must say so within 5 s in /healthz, then in its log, drop nothing, and be well
again by itself.

  overload.sh [--rate N] [--for SECONDS] [--wait SECONDS] [--keep]
      --rate N        readings per second that are sustained here; without it a
                      ramp finds them first
      --for SECONDS   how long twice as much is sent (default 60)
      --wait SECONDS  how long the engine may take to get through what is left when
                      sending is over (default 300)
      --keep          leave the folder with logs and reports behind, also if all
                      is well

Each second of the overload is printed: the longest wait of a stage, the estimate
for a reading that is sent now, and what stands in /healthz. Afterwards every
reading must be accounted for, and nothing be behind any more.

Wants `cargo build --release`, and what kafka.sh wants. Everything it starts it
ends, whatever happens.

Exit codes: 0 all well, 1 a finding, 2 wrong use, or no overload came about, 3
something is not there.

Example:
  loadtest/overload.sh --rate 60000 --for 45
EOT
}

# $1: name of a job with topics of its own.
make_config() {
  cat >"$dir/$1.toml" <<EOT
site = "overload"
group = "$1"
rules = "$root/rules/packs/adult-ward"
watch_rules = false

[kafka]
bootstrap_servers = "$bootstrap"

[source]
topics = ["$1.devices"]
create_partitions = 4

[canonical]
topic = "$1.readings"
partitions = 4

[alerts]
topic = "$1.alerts"

[dead_letters]
topic = "$1.dead-letters"

[control]
topic = "$1.control"

[state]
topic = "$1.state"

[http]
listen = "127.0.0.1:0"

[[sink]]
name = "file"
type = "jsonl"
path = "$dir/$1.alerts.jsonl"
EOT
}

# The job of $1.toml, in $engine; it listens on $http.
start_engine() {
  make_config "$1"
  "$bin/wardbell" run --config "$dir/$1.toml" >"$dir/$1.out" 2>"$dir/$1.log" &
  remember
  engine=$!
  wait_for 60 "$engine" grep -qs 'the job runs' "$dir/$1.log" || fail "the engine has not started: see $1.log"
  http=$(sed -n 's|.*listening on http://127\.0\.0\.1:\([0-9]*\).*|\1|p' "$dir/$1.log" | head -n 1)
  [[ -n $http ]] || fail "the engine does not say where it listens: see $1.log"
}

stop_engine() {
  kill -TERM "$engine"
  wait "$engine" || fail "the engine did not end well: see the logs"
  forget "$engine"
}

# The body of an answer, whatever its status.
ask() {
  local body
  exec {body}<>"/dev/tcp/127.0.0.1/$http" || return 1
  printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&"$body"
  timeout 5 cat <&"$body" | sed '1,/^\r*$/d'
  exec {body}>&-
}

# REPLY = the largest value of the metrics that $1 matches, in whole seconds.
largest() {
  REPLY=$(awk -v name="^($1)[{]" '$0 ~ name && $NF > most { most = $NF } END { print int(most) }' "$dir/metrics")
}

# --- the play ----------------------------------------------------------------

find_rate() {
  say "looking for the rate that is sustained"
  start_engine ramp
  "$bin/loadtest" load --brokers "$bootstrap" --topic ramp.devices --alerts-topic ramp.alerts \
    --canonical-topic ramp.readings --group ramp --ramp 10000..1000000x1.5 --step 15s --settle 30s --json \
    >"$dir/ramp.json" 2>"$dir/ramp.load.log" || fail "no rate is sustained: see ramp.json"
  rate=$(sed -n 's/.*"sustained_rate":\([0-9]*\).*/\1/p' "$dir/ramp.json")
  [[ -n $rate ]] || fail "the ramp names no rate: see ramp.json"
  stop_engine
}

# One look: prints it, and keeps when each thing was seen first.
look() {
  local waits estimate findings
  now=$((SECONDS - began))
  ask /metrics >"$dir/metrics" || return 0
  findings=$(ask /healthz | grep -o '"key":"behind [^"]*"' | sed 's/"key":"//; s/"$//' | sort | paste -sd, || true)
  largest 'wardbell_(source|decide|deliver)_delay_seconds' && waits=$REPLY
  largest 'wardbell_estimated_delay_seconds' && estimate=$REPLY
  printf '%5s s  waits %4s s  estimate %4s s  %s\n' "$now" "$waits" "$estimate" "${findings:--}" | tee -a "$dir/seconds.txt"
  if ((waits > behind || estimate > behind)); then seen=${seen:-$now}; fi
  if ((waits > budget || estimate > budget)); then broken=${broken:-$now}; fi
  if [[ -n $findings ]]; then told=${told:-$now}; fi
  if grep -q '"severity":"failing"' <(ask /healthz); then failing=${failing:-$now}; fi
}

overload() {
  local load
  now=0 seen='' broken='' told='' failing=''
  start_engine twice
  say "$((2 * rate)) readings/s for $seconds s, twice what is sustained"
  "$bin/loadtest" load --brokers "$bootstrap" --topic twice.devices --alerts-topic twice.alerts --rate "$((2 * rate))" \
    --for "${seconds}s" --settle 0s --manifest "$dir/manifest.json" >"$dir/load.txt" 2>"$dir/load.log" &
  remember
  load=$!
  began=$SECONDS
  while runs "$load"; do
    runs "$engine" || fail "the engine has ended: see twice.log"
    look
    sleep 1
  done
  wait "$load" || fail "not everything was acknowledged: see load.txt"
  forget "$load"
  # What was built up may still grow old.
  look

  if [[ -z $seen ]]; then
    say "no overload: the engine, or whoever sends, did not get that far (see load.txt); give a higher --rate"
    exit 2
  fi
  in_time "$seen" "$told" || fail "a stage was behind at $seen s and nothing said so"
  grep -q 'is behind' "$dir/twice.log" || fail "the log does not say that a stage is behind"
  if [[ -n $broken ]]; then
    in_time "$broken" "$failing" || fail "the budget was broken at $broken s and nothing said so"
    wait_for "$patience" "$engine" grep -qs 'technical/budget' "$dir/twice.alerts.jsonl" ||
      fail "technical/budget was not raised"
  fi
  say "behind at $seen s, told at $told s${broken:+; budget broken at $broken s, told at $failing s}"

  say "verifying"
  "$bin/loadtest" verify --brokers "$bootstrap" --manifest "$dir/manifest.json" --group twice \
    --canonical-topic twice.readings --dead-letters-topic twice.dead-letters --alerts-topic twice.alerts \
    --wait "${patience}s" | tee "$dir/verify.txt" || fail "see verify.txt and twice.log"
  wait_for 60 "$engine" is_well || fail "a stage is still said to be behind"
  stop_engine
}

# What was so at second $1 was told, at second $2, soon enough.
in_time() { [[ -n $2 ]] && (($2 <= $1 + told_within)); }

is_well() { ! ask /healthz | grep -q '"key":"behind '; }

main() {
  rate='' seconds=60 patience=300
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
        # clean_up asks for it.
        # shellcheck disable=SC2034
        keep=yes
        shift
        ;;
      *) wrong "unknown argument '$1'" ;;
    esac
  done
  need "$bin/wardbell" "$bin/loadtest"
  set_up
  "$kafka" run --dir "$dir/kafka" --while-pid $$ >"$dir/kafka.out"
  word_in "$dir/kafka.out" bootstrap
  bootstrap=$REPLY
  [[ -n $rate ]] || find_rate
  overload
  say "all well"
}

main "$@"
