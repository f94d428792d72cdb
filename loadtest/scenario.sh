#!/usr/bin/env bash
# A bad minute, rehearsed on a real broker. See --help.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=stage.sh
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"

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

# --- rules and configuration -------------------------------------------------

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
  need "$bin/wardbell" "$bin/loadtest"
  set_up
  rehearse
  say "all well"
}

main "$@"
