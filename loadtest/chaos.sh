#!/usr/bin/env bash
# Instances are killed, frozen and cut off under load, and nothing may be lost or doubled. See --help.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

rules=$here/chaos/rules

# A killed instance that others take over from stays away for so long, in seconds: the session time-out is 6 s.
away=10
# An instance is frozen for so long: twice its session.
frozen_for=12
# After a fault every partition is in somebody's hands and has had an alert again within this, or the run has failed.
recovery_max=120
# Alerts that each partition should decide a second: what a failover is measured with.
alerts_per_second=5

usage() {
  cat <<'EOT'
chaos.sh - several instances in one group under load through a real Kafka, while
a schedule of faults from a seed plays: instances are killed and restarted in
place, killed and taken over from, frozen until they are fenced; the broker is
restarted; rule sets are activated.

  chaos.sh [--instances N] [--partitions N] [--rate N] [--patients N]
           [--readings-per-record N] [--kills N] [--in-place PERCENT]
           [--stops N] [--broker-restarts N] [--activate-every SECONDS]
           [--seed N] [--warm-up SECONDS] [--every SECONDS] [--wait SECONDS]
           [--binary PATH] [--other-binary PATH] [--keep]
      --instances N             wardbell run, so many times (default 3)
      --partitions N            of source topic, canonical log and alerts
                                (default 12)
      --rate N                  readings per second (default 10000)
      --patients N              (default 2000)
      --readings-per-record N   (default 4)
      --kills N                 SIGKILL of one instance (default 40)
      --in-place PERCENT        of which are restarted at once; from the others
                                is taken over (default 50)
      --stops N                 SIGSTOP of one instance for 12 s, then SIGCONT
                                (default 2)
      --broker-restarts N       by turns in good order and by SIGKILL (default 2)
      --activate-every SECONDS  0: never (default 10)
      --seed N                  decides the order of the faults and whom they hit
                                (default 1)
      --warm-up SECONDS         before the first fault (default 300: the windows
                                are full)
      --every SECONDS           from one fault to the next at least (default 8);
                                the next waits until the one before is over
      --wait SECONDS            how long the engine and its sinks may take to get
                                through what is left in the end (default 180)
      --binary PATH             wardbell (default: the built one)
      --other-binary PATH       every second start of an instance takes this one:
                                an upgrade and a roll-back of one version
      --keep                    leave the folder with logs and reports behind,
                                also if all is well

The report is printed as Markdown: how long alerts stayed away after each kind of
fault, and whether
  - every reading is in the canonical log,
  - every alert is on the alerts topic once, without a gap, and with a sink,
  - `wardbell verify` derives the same alerts again, byte for byte,
  - the naive evaluation finds the same alerts,
  - `wardbell verify` finds a single changed byte in a copy of them.

Settings of the job come from its defaults; the environment overrides them, as in
WARDBELL__DECIDE__CHECKPOINT_EVERY=5s.

Wants `cargo build --release`, and what kafka.sh wants. Everything it starts it
ends, whatever happens.

Exit codes: 0 all well, 1 a finding, 2 wrong use, 3 something is not there.

Example, as short as makes sense:
  loadtest/chaos.sh --rate 1000 --patients 200 --kills 4 --stops 0 \
    --broker-restarts 0 --warm-up 5 --every 5
EOT
}

# --- rules and configuration -------------------------------------------------

# Two sets with another limit, so that an activation changes alerts.
make_rules() {
  local set
  for set in a b; do cp -r "$rules" "$dir/rules-$set"; done
  # The cases are about the first limit.
  rm "$dir/rules-b/spo2-mean-low.test.toml"
  sed -i 's/spo2_low: 92\.4/spo2_low: 92.3/; s/\bversion: \([0-9]*\)/version: \10/' "$dir/rules-b/spo2-mean-low.rhai"
  if cmp -s "$dir/rules-a/spo2-mean-low.rhai" "$dir/rules-b/spo2-mean-low.rhai"; then
    fail "the limit of 92.4 is not in spo2-mean-low.rhai any more: choose another one here"
  fi
}

# Instances differ in their name, their file of alerts and their port.
make_config() {
  cat >"$dir/instance-$1.toml" <<EOT
site = "chaos"
instance = "instance-$1"
rules = "$dir/rules-a"
watch_rules = false

[kafka]
bootstrap_servers = "$bootstrap"

[source]
topics = ["devices"]
create_partitions = $partitions

[canonical]
partitions = $partitions

[http]
listen = "127.0.0.1:0"

[[sink]]
name = "file"
type = "jsonl"
path = "$dir/alerts-$1.jsonl"
EOT
}

# --- instances ---------------------------------------------------------------

# Of each instance: its process; up, down or frozen; how often it was started; its log; where it answers; the partitions
# it holds, of the canonical log or of the source topic: both are of the same patients.
pid=() standing=() starts=() log=() address=() held=()

start_instance() {
  local program=$binary
  starts[$1]=$((${starts[$1]:-0} + 1))
  if [[ -n $other_binary ]] && ((starts[$1] % 2 == 0)); then program=$other_binary; fi
  log[$1]=$dir/instance-$1.${starts[$1]}.log
  address[$1]=''
  "$program" run --config "$dir/instance-$1.toml" >"${log[$1]}" 2>&1 &
  remember
  pid[$1]=$!
  standing[$1]=up
}

# $at = right before the signal, in microseconds since 1970.
kill_instance() {
  at=${EPOCHREALTIME/[.,]/}
  kill -KILL "${pid[$1]}" || fail "instance $1 has ended by itself: see ${log[$1]}"
  # Bash would report the death in words of its own.
  wait "${pid[$1]}" 2>/dev/null || true
  forget "${pid[$1]}"
  standing[$1]=down
}

# REPLY = what instance $1 says of its health, as JSON; 1 if it says nothing.
health_of() {
  REPLY=
  if [[ -z ${address[$1]} ]]; then
    address[$1]=$(sed -n 's|^listening on http://\([0-9.:]*\).*|\1|p' "${log[$1]}")
    [[ -n ${address[$1]} ]] || return 1
  fi
  # shellcheck disable=SC2016
  REPLY=$(timeout 2 bash -c '
    exec 3<>"/dev/tcp/${0%:*}/${0##*:}" || exit 1
    printf "GET /healthz HTTP/1.0\r\n\r\n" >&3
    cat <&3
  ' "${address[$1]}" 2>/dev/null) || return 1
  REPLY=${REPLY##*$'\r\n\r\n'}
}

# REPLY = the partitions in list $2 of health $1, with a space before each.
partitions_in() {
  local rest=${1#*"\"$2\":["}
  REPLY=
  [[ $rest != "$1" ]] || return 0
  rest=${rest%%]*}
  while [[ $rest =~ \"partition\":([0-9]+)(.*) ]]; do
    REPLY+=" ${BASH_REMATCH[1]}"
    rest=${BASH_REMATCH[2]}
  done
}

# Whether each partition is once in the list from $2 on; $lacking says of $1 what is not so.
each_once() {
  local what=$1 partition
  local -A seen=()
  shift
  for partition in "$@"; do
    if [[ -n ${seen[$partition]:-} ]]; then
      lacking="$what partition $partition is held by two instances"
      return 1
    fi
    seen[$partition]=yes
  done
  for ((partition = 0; partition < partitions; partition++)); do
    if [[ -z ${seen[$partition]:-} ]]; then
      lacking="$what partition $partition is held by no instance"
      return 1
    fi
  done
}

# Whether each partition is in the hands of exactly one instance, and each instance has its share; $lacking says what is
# not so.
all_held() {
  local i health canonical='' sources='' both partition
  for ((i = 1; i <= instances; i++)); do
    if ! health_of "$i"; then
      lacking="instance $i does not answer"
      return 1
    fi
    health=$REPLY
    partitions_in "$health" partitions
    canonical+=$REPLY both=$REPLY
    if [[ -z $REPLY ]] && ((partitions >= instances)); then
      lacking="instance $i holds no partition of the canonical log"
      return 1
    fi
    partitions_in "$health" sources
    sources+=$REPLY
    for partition in $REPLY; do
      [[ "$both " == *" $partition "* ]] || both+=" $partition"
    done
    held[i]=${both# }
  done
  # shellcheck disable=SC2086
  each_once canonical $canonical && each_once source $sources
}

# Whether every partition has had an alert again after every fault so far. Who holds a partition has not for that reason
# done anything with it: a broker that is away takes it from nobody.
all_shown() {
  lacking='partitions without an alert, see failover.md'
  [[ ! -e $dir/faults.jsonl ]] ||
    "$bin/loadtest" failover --faults "$dir/faults.jsonl" --alerts "$dir/seen.jsonl" >"$dir/failover.md" 2>&1
}

await_recovery() {
  local deadline=$((SECONDS + recovery_max))
  until all_held && all_shown; do
    ((SECONDS < deadline)) || fail "$recovery_max s after $last_fault: $lacking; see the logs of the instances"
    go_on 1
  done
}

# Let $1 seconds go by, while rule sets are activated. What should run has to.
go_on() {
  local deadline=$((SECONDS + $1)) i
  while :; do
    for ((i = 1; i <= instances; i++)); do
      [[ ${standing[i]:-down} == down ]] || runs "${pid[i]}" || fail "instance $i has ended by itself: see ${log[i]}"
    done
    if [[ -n $load ]]; then
      runs "$load" || fail "sending has ended: see load.txt and load.log"
      activate
    fi
    ((SECONDS < deadline)) || return 0
    sleep 0.5
  done
}

activate() {
  ((activate_every > 0 && SECONDS >= activate_next)) || return 0
  [[ $set == a ]] && set=b || set=a
  # A broker that has just come back may not answer in time: the next one tries again.
  if "$binary" rules publish "$dir/rules-$set" --config "$dir/instance-1.toml" >>"$dir/publish.log" 2>&1; then
    published=$((published + 1)) unpublished=0
  else
    unpublished=$((unpublished + 1))
    ((unpublished < 4)) || fail "rule sets cannot be published: see publish.log"
  fi
  activate_next=$((SECONDS + activate_every))
}

# --- faults ------------------------------------------------------------------

# Fault $2 at $1 µs, for `loadtest failover`; instance $3 and the partitions from there on, or the broker and all.
note() {
  local partition list='' instance=${3:-}
  for partition in ${instance:+${held[$instance]}}; do list+=",$partition"; done
  if [[ -z $instance ]]; then
    for ((partition = 0; partition < partitions; partition++)); do list+=",$partition"; done
  fi
  printf '{"at_us":%s,"kind":"%s","instance":%s,"partitions":[%s]}\n' "$1" "$2" "${instance:-null}" "${list#,}" \
    >>"$dir/faults.jsonl"
}

in_place() {
  kill_instance "$1"
  start_instance "$1"
  note "$at" in_place "$1"
}

taken_over() {
  kill_instance "$1"
  note "$at" taken_over "$1"
  go_on "$away"
  start_instance "$1"
}

frozen() {
  at=${EPOCHREALTIME/[.,]/}
  kill -STOP "${pid[$1]}"
  standing[$1]=frozen
  note "$at" frozen "$1"
  go_on "$frozen_for"
  kill -CONT "${pid[$1]}"
  standing[$1]=up
}

# In good order the broker serves for a while yet, so it is gone when it has ended.
broker() {
  if ((broker_stopped++ % 2)); then
    at=${EPOCHREALTIME/[.,]/}
    "$kafka" stop --dir "$dir/kafka" --kill
  else
    "$kafka" stop --dir "$dir/kafka"
    at=${EPOCHREALTIME/[.,]/}
  fi
  note "$at" broker_gone
  "$kafka" run --dir "$dir/kafka" --while-pid $$ >>"$dir/kafka.out"
  note "${EPOCHREALTIME/[.,]/}" broker_back
}

# plan = the faults and whom they hit, in an order that the seed decides.
make_plan() {
  local i j fault in_place_n=$((kills * in_place_percent / 100))
  plan=()
  for ((i = 0; i < in_place_n; i++)); do plan+=(in_place); done
  for ((i = in_place_n; i < kills; i++)); do plan+=(taken_over); done
  for ((i = 0; i < stops; i++)); do plan+=(frozen); done
  for ((i = 0; i < broker_restarts; i++)); do plan+=(broker); done
  RANDOM=$seed
  for ((i = ${#plan[@]} - 1; i > 0; i--)); do
    j=$((RANDOM % (i + 1)))
    fault=${plan[i]}
    plan[i]=${plan[j]}
    plan[j]=$fault
  done
  for i in "${!plan[@]}"; do
    [[ ${plan[i]} == broker ]] || plan[i]+=" $((RANDOM % instances + 1))"
  done
  printf '%s\n' "${plan[@]}" >"$dir/plan.txt"
}

play() {
  local i began
  for i in "${!plan[@]}"; do
    last_fault="fault $((i + 1)) of ${#plan[@]} (${plan[i]})"
    say "$last_fault"
    began=$SECONDS
    # Words: the fault and whom it hits.
    # shellcheck disable=SC2086
    ${plan[i]}
    await_recovery
    if ((SECONDS < began + every)); then go_on $((began + every - SECONDS)); fi
  done
}

# --- what is proven ----------------------------------------------------------

# One line of the report: claim $1, which the command from $3 on proves by exit code 0; what it says goes to $dir/$2.
prove() {
  local claim=$1 file=$2 status=0
  shift 2
  say "$claim?"
  "$@" >"$dir/$file" 2>&1 || status=$?
  if ((status == 0)); then
    proofs+=("| $claim | yes |")
  else
    proofs+=("| $claim | **no**: exit code $status, see $file |")
    findings=$((findings + 1))
    say "no: exit code $status"
    tail -n 15 "$dir/$file" >&2
  fi
}

readings_and_alerts() {
  local i received=()
  for ((i = 1; i <= instances; i++)); do received+=(--received "$dir/alerts-$i.jsonl"); done
  # A set that is replaced before a partition has looked may never come into force there.
  "$bin/loadtest" verify --brokers "$bootstrap" --manifest "$dir/manifest.json" "${received[@]}" \
    --activations $((published / 2)) --wait "${patience}s"
}

end_instances() {
  local i status=0
  for ((i = 1; i <= instances; i++)); do kill -TERM "${pid[i]}"; done
  for ((i = 1; i <= instances; i++)); do
    standing[i]=down
    if ! wait "${pid[i]}"; then
      status=1
      printf 'instance %s did not end well: see %s\n' "$i" "${log[i]}"
    fi
    forget "${pid[i]}"
  done
  return "$status"
}

a_changed_byte_is_found() {
  local status=0
  "$bin/loadtest" tamper --brokers "$bootstrap" --from wardbell.alerts --to tampered.alerts --seed "$seed" |
    tee "$dir/tampered.txt"
  word_in "$dir/tampered.txt" tampered || return 1
  "$binary" verify --config "$dir/instance-1.toml" --from-start --alerts tampered.alerts 2>&1 |
    tee "$dir/tampered-verify.txt" || status=$?
  if ((status != 1)); then
    printf 'exit code %s, where 1 is due\n' "$status"
    return 1
  fi
  grep -qF "$REPLY" "$dir/tampered-verify.txt" || {
    printf 'alert %s is not named\n' "$REPLY"
    return 1
  }
}

failover_times() {
  "$bin/loadtest" failover --faults "$dir/faults.jsonl" --alerts "$dir/seen.jsonl"
}

report() {
  local other='' taken_over_n=$((kills - kills * in_place_percent / 100))
  if [[ -n $other_binary ]]; then other=", every second start: $("$other_binary" --version)"; fi
  cat <<EOT
| run | |
|---|---|
| seed | $seed |
| version | $("$binary" --version)$other |
| instances, partitions | $instances, $partitions |
| load | $rate readings/s in records of $per_record, $patients patients, 5-minute windows, $seconds s |
| kills | $((kills - taken_over_n)) restarted in place, $taken_over_n taken over |
| other faults | $stops frozen for $frozen_for s, $broker_restarts restarts of the broker |
| rule sets published | $published |
| machine | $(nproc) cores for broker, load and all instances |

EOT
  if ((${#plan[@]} > 0)); then
    cat "$dir/failover.md"
    printf '\n'
  fi
  printf '| proven | |\n|---|---|\n'
  printf '%s\n' "${proofs[@]}"
  # The first lines of `loadtest verify`: how much it was.
  printf '\n```\n'
  sed -n '1,/^latency/{/^latency/!p}' "$dir/verify.txt"
  printf '```\n'
}

# --- the play ----------------------------------------------------------------

rehearse() {
  local i began
  "$kafka" run --dir "$dir/kafka" --while-pid $$ >"$dir/kafka.out"
  word_in "$dir/kafka.out" bootstrap
  bootstrap=$REPLY
  make_rules
  make_plan
  for ((i = 1; i <= instances; i++)); do make_config "$i"; done

  # The first one makes the topics.
  last_fault='the start'
  start_instance 1
  wait_for 60 "${pid[1]}" grep -qs 'the job runs' "${log[1]}" || fail "the first instance has not started: see ${log[1]}"
  for ((i = 2; i <= instances; i++)); do start_instance "$i"; done
  await_recovery

  say "$rate readings/s, ${#plan[@]} faults, seed $seed"
  "$bin/loadtest" load --brokers "$bootstrap" --topic devices --partitions "$partitions" --rate "$rate" --patients "$patients" \
    --readings-per-record "$per_record" --deteriorating 100% --cycle "${cycle_ms}ms" --for 24h --settle 3s \
    --manifest "$dir/manifest.json" --alerts "$dir/seen.jsonl" >"$dir/load.txt" 2>"$dir/load.log" &
  remember
  load=$!
  began=$SECONDS
  activate_next=$((SECONDS + activate_every))
  go_on "$warm_up"
  await_recovery
  play
  seconds=$((SECONDS - began))

  kill -TERM "$load"
  wait "$load" || fail "not everything was acknowledged: see load.txt"
  forget "$load"
  load=''
}

prove_all() {
  prove 'every reading is in the canonical log, every alert on its topic once and with a sink' verify.txt \
    readings_and_alerts
  prove 'every instance ends on SIGTERM with exit code 0' end.txt end_instances
  prove 'wardbell verify derives the same alerts, byte for byte' wardbell-verify.txt \
    "$binary" verify --config "$dir/instance-1.toml" --from-start
  prove 'the naive evaluation finds the same alerts' oracle.txt \
    "$bin/loadtest" oracle --brokers "$bootstrap"
  prove 'wardbell verify finds one changed byte and names the alert' tamper.txt a_changed_byte_is_found
  if ((${#plan[@]} > 0)); then
    prove 'every partition had alerts again after every fault' failover.md failover_times
  fi
}

# cycle_ms = how long one fall of a patient's SpO2 and the next are apart.
choose_cycle() {
  local signals=$((per_record > 4 ? per_record : 4)) interval_ms
  # A fall is two alerts: raised and cleared.
  cycle_ms=$((patients * 2 * 1000 / (partitions * alerts_per_second)))
  # A third of it is low, which should be two readings at least.
  interval_ms=$((patients * signals * 1000 / rate))
  if ((cycle_ms < 6 * interval_ms)); then cycle_ms=$((6 * interval_ms)); fi
  if ((cycle_ms < 1000)); then cycle_ms=1000; fi
}

main() {
  instances=3 partitions=12 rate=10000 patients=2000 per_record=4
  kills=40 in_place_percent=50 stops=2 broker_restarts=2 activate_every=10
  seed=1 warm_up=300 every=8 patience=180
  binary=$bin/wardbell other_binary=''
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        return
        ;;
      --instances | --partitions | --rate | --patients | --readings-per-record | --kills | --in-place | --stops | \
        --broker-restarts | --activate-every | --seed | --warm-up | --every | --wait)
        [[ ${2:-} =~ ^(0|[1-9][0-9]{0,6})$ ]] || wrong "$1 wants a whole number"
        case $1 in
          --instances) instances=$2 ;;
          --partitions) partitions=$2 ;;
          --rate) rate=$2 ;;
          --patients) patients=$2 ;;
          --readings-per-record) per_record=$2 ;;
          --kills) kills=$2 ;;
          --in-place) in_place_percent=$2 ;;
          --stops) stops=$2 ;;
          --broker-restarts) broker_restarts=$2 ;;
          --activate-every) activate_every=$2 ;;
          --seed) seed=$2 ;;
          --warm-up) warm_up=$2 ;;
          --every) every=$2 ;;
          --wait) patience=$2 ;;
        esac
        shift 2
        ;;
      --binary | --other-binary)
        [[ -n ${2:-} ]] || wrong "$1 wants a path"
        case $1 in
          --binary) binary=$2 ;;
          --other-binary) other_binary=$2 ;;
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
  ((rate > 0 && patients > 0 && partitions > 0 && instances > 0)) ||
    wrong "--rate, --patients, --partitions and --instances are at least 1"
  ((per_record >= 1 && per_record <= 12)) || wrong "--readings-per-record is 1 to 12"
  ((in_place_percent <= 100)) || wrong "--in-place is a percentage"
  ((instances > 1 || (stops == 0 && in_place_percent == 100))) ||
    wrong "with one instance nobody takes over: --instances 2, or --in-place 100 --stops 0"
  need "$binary" "$bin/loadtest" ${other_binary:+"$other_binary"}

  at='' load='' lacking='' last_fault='' bootstrap='' set=a published=0 unpublished=0 activate_next=0 broker_stopped=0 seconds=0
  plan=() proofs=() findings=0
  choose_cycle
  set_up
  rehearse
  prove_all
  report | tee "$dir/chaos.md"
  ((findings == 0)) || fail "what was to be proven is not so"
  say "all well"
}

main "$@"
