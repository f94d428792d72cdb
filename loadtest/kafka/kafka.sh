#!/usr/bin/env bash
# Starts and stops one Apache Kafka broker for Wardbell's tests. See --help.
set -euo pipefail
set +m # a background child must not lead a process group: setsid would fork

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
self=$here/$(basename "${BASH_SOURCE[0]}")
pom=$here/pom.xml

# Below the range the kernel gives to outgoing connections: a client that knocks
# at a stopped broker again and again must not be given the broker's own port.
port_floor=20000
port_count=10000

# Written by this script; --set may not change them.
owned_keys=" process.roles node.id broker.id listeners advertised.listeners \
listener.security.protocol.map inter.broker.listener.name controller.listener.names \
controller.quorum.voters controller.quorum.bootstrap.servers log.dir log.dirs metadata.log.dir "

# Of the secure listener.
secure_user=wardbell
secure_mechanism=SCRAM-SHA-512

usage() {
  cat <<'EOF'
kafka.sh - one Apache Kafka broker (KRaft, loopback only) for the tests.

  kafka.sh run [--dir DIR] [--port N] [--while-pid PID [--remove]] [--secure] [--set KEY=VALUE ...]
      Start the broker kept in DIR, or start it again with its data and port.
      Once it answers, print one line on stdout and exit 0:
          bootstrap=127.0.0.1:PORT pid=PID
      --dir DIR        where everything of this broker is kept
      --port N         the port (default: the one DIR remembers, else a free one)
      --while-pid PID  end the broker when this process is gone
      --remove         and remove DIR then
      --secure         a second listener with TLS and SASL (SCRAM-SHA-512); keys,
                       user and password are made at the first start of DIR, which
                       remembers them. The line then goes on with
                           secure=127.0.0.1:PORT mechanism=SCRAM-SHA-512 user=NAME
                           password-file=PATH ca=PATH other-ca=PATH
                       where other-ca has signed nothing of this broker
      --set KEY=VALUE  a broker setting; DIR remembers it; KEY= forgets it

  kafka.sh restart [--dir DIR] [--kill] [--while-pid PID] [--set KEY=VALUE ...]
      Stop the broker of DIR and start it again: same port, same data. The options
      are those of stop and run; a watchdog has to be named again.

  kafka.sh stop [--dir DIR] [--kill]
      End the broker of DIR and its watchdog: SIGTERM, after 20 s SIGKILL.
      Exit 0 also if none runs. The data stays.
      --kill           SIGKILL at once, as in a crash

  kafka.sh start [...]
      As run, for a developer: DIR is "dev" in the cache directory, port 9092.
      (run and stop without --dir mean the same DIR.)

  kafka.sh tool topics|acls|configs [...]
      Kafka's own kafka-topics.sh, kafka-acls.sh or kafka-configs.sh.

  kafka.sh need
      Exit 0 if what this script needs is there, else say what is missing.

Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 something is not installed.

Examples:
  kafka.sh run --dir /tmp/wb-kafka --while-pid $$
  kafka.sh run --dir /tmp/wb-kafka --set message.max.bytes=4096 --set num.partitions=3
  kafka.sh restart --dir /tmp/wb-kafka --kill  # crash it; same port, same data
  kafka.sh start && kafka.sh stop

Environment: WARDBELL_CACHE, WARDBELL_KAFKA_TIMEOUT, WARDBELL_KAFKA_LOG_LEVEL,
KAFKA_HEAP_OPTS, JAVA_HOME (see README.md).
EOF
}

say() { printf 'kafka.sh: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

wrong() {
  say "$*"
  say "try: kafka.sh --help"
  exit 2
}

# --- what is installed ------------------------------------------------------

java_command() {
  if [[ -n ${JAVA_HOME:-} && -x $JAVA_HOME/bin/java ]]; then
    printf '%s' "$JAVA_HOME/bin/java"
  else
    command -v java
  fi
}

cache_filled() { [[ -f $libs/kafka_2.13-$version.jar ]]; }

# Prints what is missing, one a line; 1 if anything is.
check_needs() {
  local missing=0 java major line tool

  if ! java=$(java_command); then
    say "missing: Java 17 or newer (Debian, Ubuntu: apt-get install openjdk-17-jre-headless)"
    missing=1
  else
    line=$("$java" -version 2>&1 | grep -m 1 ' version "') || line=
    major=${line#*version \"}
    major=${major%%[!0-9]*}
    if [[ -z $major ]] || ((major < 17)); then
      say "missing: Java 17 or newer; found: ${line:-unknown} (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; or set JAVA_HOME)"
      missing=1
    fi
  fi

  if ! cache_filled && ! command -v mvn >/dev/null; then
    say "missing: Maven, to fetch Kafka once (Debian, Ubuntu: apt-get install maven), or an already filled cache: $libs"
    missing=1
  fi

  for tool in setsid flock timeout od; do
    if ! command -v "$tool" >/dev/null; then
      say "missing: $tool (Debian, Ubuntu: apt-get install util-linux coreutils)"
      missing=1
    fi
  done
  if [[ ! -r /proc/self/stat ]]; then
    say "missing: /proc (this script is for Linux)"
    missing=1
  fi

  return "$missing"
}

need() { check_needs || exit 3; }

# --- processes --------------------------------------------------------------

# REPLY = the start time of process $1; 1 if it does not run. A number is given
# to another process sooner or later: number and start time together are not.
process_start() {
  local stat='' fields tasks
  REPLY=
  # Not stat=$(<...): under set -e bash leaves the script there if the file is
  # gone, even in a condition.
  { IFS= read -rd '' stat <"/proc/$1/stat" || [[ -n $stat ]]; } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }"
  case ${fields[0]:-X} in
    Z | X)
      # Ended, unless threads of it are still on their way out.
      tasks=("/proc/$1/task/"*)
      ((${#tasks[@]} > 1)) || return 1
      ;;
  esac
  REPLY=${fields[19]}
}

same_process() { process_start "$1" && [[ $REPLY == "$2" ]]; }

# Remember in file $1 the process $2, which this script has just started.
remember() {
  process_start "$2" || REPLY=0
  printf '%s %s\n' "$2" "$REPLY" >"$1.new"
  mv -f "$1.new" "$1"
}

# found_pid and found_start = the process remembered in file $1; 1 if it is gone.
recall() {
  found_pid='' found_start=''
  [[ -f $1 ]] || return 1
  read -r found_pid found_start <"$1" || return 1
  [[ $found_pid =~ ^[0-9]+$ ]] && same_process "$found_pid" "$found_start"
}

# Wait until process $1 started at $2 is gone, at most $3 tenths of a second.
wait_gone() {
  local i
  for ((i = 0; i < $3; i++)); do
    same_process "$1" "$2" || return 0
    sleep 0.1
  done
  ! same_process "$1" "$2"
}

# SIGTERM, and SIGKILL if that takes more than $3 tenths of a second (0: at once).
end_process() {
  if (($3 > 0)); then
    same_process "$1" "$2" || return 0
    kill -TERM "$1" 2>/dev/null || true
    wait_gone "$1" "$2" "$3" && return 0
    say "process $1 has not ended on SIGTERM: SIGKILL"
  fi
  same_process "$1" "$2" || return 0
  kill -KILL "$1" 2>/dev/null || true
  wait_gone "$1" "$2" 100 || fail "process $1 does not end"
}

# Run the command from $2 on in DIR, detached, its output in file $1; REPLY = its
# number. It keeps no descriptor of the caller open, pipes and locks included.
spawn() {
  local out=$1
  shift
  (
    cd "$dir" || exit
    local fd
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi # 255: bash's own
    done
    exec setsid "$@"
  ) </dev/null >>"$out" 2>&1 &
  REPLY=$!
  disown "$REPLY" # or bash would report its death in words of its own
}

# The watchdog: when process $3 ($4) is gone, ends broker $1 (started at $2) and
# removes folder $5, if one is named.
watch() {
  while same_process "$3" "$4"; do
    # A broker that ended otherwise needs nobody, unless its folder has to go.
    if [[ -z $5 ]] && ! same_process "$1" "$2"; then return; fi
    sleep 1
  done
  end_process "$1" "$2" 100
  if [[ -n $5 ]]; then rm -rf "$5"; fi
}

# --- ports and the wire -----------------------------------------------------

port_busy() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# REPLY = a port nobody listens on, other than those given.
free_port() {
  local i
  for ((i = 0; i < 500; i++)); do
    REPLY=$((port_floor + RANDOM % port_count))
    if [[ " $* " != *" $REPLY "* ]] && ! port_busy "$REPLY"; then return 0; fi
  done
  fail "no free port between $port_floor and $((port_floor + port_count))"
}

# Whether the broker of cluster $2 answers on port $1 and counts itself in: a
# Metadata request, version 4, for no topic. The cluster's id tells this broker
# from another one that may have taken the port.
answers() {
  local hex cluster
  # shellcheck disable=SC2016
  hex=$(timeout 3 bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$0" || exit 1
    printf "\x00\x00\x00\x0f\x00\x03\x00\x04\x00\x00\x00\x01\xff\xff\x00\x00\x00\x00\x00" >&3
    size=$(head -c 4 <&3 | od -An -v -tx1 | tr -d " \n")
    [[ -n $size ]] || exit 1
    head -c "$((16#$size))" <&3 | od -An -v -tx1 | tr -d " \n"
  ' "$1" 2>/dev/null) || return 1
  # Correlation id, throttle time, then the number of brokers.
  ((${#hex} >= 24)) && ((16#${hex:16:8} >= 1)) || return 1
  cluster=$(printf '%s' "$2" | od -An -v -tx1 | tr -d ' \n')
  [[ $hex == *"$cluster"* ]]
}

# --- the jars ---------------------------------------------------------------

fill_cache() {
  cache_filled && return 0
  local lock fresh
  mkdir -p "$cache"
  exec {lock}>"$cache/fill.lock"
  flock "$lock"
  if ! cache_filled; then
    rm -rf "$cache"/libs.new.* # of a fill that was killed: the lock is ours
    fresh=$(mktemp -d "$cache/libs.new.XXXXXX")
    say "fetching Kafka $version through Maven, once, into $libs"
    if ! mvn -q -B -Dstyle.color=never -f "$pom" -DincludeScope=runtime \
      -DoutputDirectory="$fresh" dependency:copy-dependencies \
      </dev/null >"$cache/fill.log" 2>&1; then
      rm -rf "$fresh"
      cat "$cache/fill.log" >&2
      fail "Maven could not fetch Kafka"
    fi
    chmod 755 "$fresh"
    rm -rf "$libs"
    mv -T "$fresh" "$libs"
    cache_filled || fail "Maven has not brought kafka_2.13-$version.jar"
  fi
  exec {lock}>&-
}

# --- the files of a broker --------------------------------------------------

new_cluster_id() {
  local id
  id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_')
  id=${id:0:22}
  printf '%s' "${id/#-/A}" # no leading dash: the format tool takes it for an option
}

# Add the settings of this call to those DIR remembers.
merge_settings() {
  local -A given=()
  local setting key line
  ((${#settings[@]})) || return 0
  for setting in "${settings[@]}"; do given[${setting%%=*}]=${setting#*=}; done
  {
    if [[ -f $dir/set.conf ]]; then
      while IFS= read -r line; do
        [[ -v given["${line%%=*}"] ]] || printf '%s\n' "$line"
      done <"$dir/set.conf"
    fi
    for key in "${!given[@]}"; do
      [[ -z ${given[$key]} ]] || printf '%s=%s\n' "$key" "${given[$key]}"
    done
  } >"$dir/set.conf.new"
  mv -f "$dir/set.conf.new" "$dir/set.conf"
}

# Paths are relative: the broker runs in DIR.
write_config() {
  local line
  {
    cat <<EOF
# Written by kafka.sh at every start.
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port${secure_port:+,SECURE://127.0.0.1:$secure_port}
advertised.listeners=PLAINTEXT://127.0.0.1:$port${secure_port:+,SECURE://127.0.0.1:$secure_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$controller_port
log.dirs=$1

offsets.topic.replication.factor=1
offsets.topic.num.partitions=5
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=5
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=5

group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
EOF
    if [[ -n $secure_port ]]; then
      cat <<EOF

listener.name.secure.ssl.keystore.type=PKCS12
listener.name.secure.ssl.keystore.location=secure/broker.p12
listener.name.secure.ssl.keystore.password=$(<"$dir/secure/keystore.password")
listener.name.secure.sasl.enabled.mechanisms=$secure_mechanism
listener.name.secure.${secure_mechanism,,}.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
EOF
    fi
    if [[ -s $dir/set.conf ]]; then
      printf '\n# From --set.\n'
      while IFS= read -r line; do
        printf '%s\n' "${line//\\/\\\\}"
      done <"$dir/set.conf"
    fi
  } >"$dir/$2"
}

write_log_config() {
  cat >"$dir/log4j2.properties" <<EOF
# Written by kafka.sh at every start.
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = ${WARDBELL_KAFKA_LOG_LEVEL:-WARN}
rootLogger.appenderRef.out.ref = out
EOF
}

# --- the secure listener ----------------------------------------------------

secret() { head -c 18 /dev/urandom | base64 | tr '+/' '-_'; }

# keytool comes with Java, so nothing more has to be there. It tells what it does
# on stderr, well or not: that is shown only if it failed.
key_tool() {
  local said
  if ! said=$("$(dirname "$(readlink -f "$java")")/keytool" "$@" -storetype PKCS12 \
    -storepass:file keystore.password 2>&1 </dev/null); then
    printf '%s\n' "$said" >&2
    fail "keytool could not make the keys of the secure listener"
  fi
}

# Key, certificate (which is its own CA) and user of the secure listener, made
# once; renamed into place when done.
make_secrets() {
  [[ ! -d $dir/secure ]] || return 0
  [[ ! -f $dir/data/meta.properties ]] ||
    fail "--secure has to be said at the first start of $dir: its user is made with the storage"
  rm -rf "$dir/secure.new"
  mkdir -m 700 "$dir/secure.new"
  (
    cd "$dir/secure.new"
    umask 077
    secret >keystore.password
    secret >password
    key_tool -genkeypair -alias broker -keystore broker.p12 -keyalg EC -groupname secp256r1 \
      -dname CN=127.0.0.1 -ext san=ip:127.0.0.1,dns:localhost -validity 3650
    key_tool -exportcert -rfc -alias broker -keystore broker.p12 -file ca.pem
    key_tool -genkeypair -alias other -keystore other.p12 -keyalg EC -groupname secp256r1 \
      -dname CN=other -validity 3650
    key_tool -exportcert -rfc -alias other -keystore other.p12 -file other-ca.pem
    rm other.p12
  )
  mv -T "$dir/secure.new" "$dir/secure"
}

# Format the storage once; renamed into place when done, so that a killed format
# leaves nothing half written behind.
format_storage() {
  [[ -f $dir/data/meta.properties ]] && return 0
  local -a user=()
  rm -rf "$dir/data.new" "$dir/data"
  write_config data.new format.properties
  if [[ -n $secure ]]; then
    user=(--add-scram "$secure_mechanism=[name=$secure_user,password=$(<"$dir/secure/password")]")
  fi
  if ! (cd "$dir" && exec "$java" -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dlog4j2.configurationFile=log4j2.properties -cp "$libs/*" \
    kafka.tools.StorageTool format --cluster-id "$cluster_id" --config format.properties "${user[@]}") \
    </dev/null >>"$dir/kafka.log" 2>&1; then
    tail -n 20 "$dir/kafka.log" >&2
    fail "the storage could not be formatted; log: $dir/kafka.log"
  fi
  rm -f "$dir/format.properties"
  mv -T "$dir/data.new" "$dir/data"
}

# --- commands ---------------------------------------------------------------

start_watchdog() {
  [[ -n $while_pid ]] || return 0
  if recall "$dir/watchdog.pid"; then
    end_process "$found_pid" "$found_start" 20
  fi
  spawn /dev/null bash "$self" __watch "$1" "$2" "$while_pid" "$while_start" "${remove:+$dir}"
  remember "$dir/watchdog.pid" "$REPLY"
}

# Wait until broker $1 ($2) answers. 1: it has ended, 2: it takes too long.
wait_ready() {
  local deadline=$((SECONDS + ${WARDBELL_KAFKA_TIMEOUT:-120}))
  while :; do
    same_process "$1" "$2" || return 1
    if answers "$port" "$cluster_id"; then
      same_process "$1" "$2" || return 1
      return 0
    fi
    ((SECONDS < deadline)) || return 2
    sleep 0.1
  done
}

ready() {
  printf 'bootstrap=127.0.0.1:%s pid=%s' "$port" "$1"
  if [[ -n $secure_port ]]; then
    printf ' secure=127.0.0.1:%s mechanism=%s user=%s password-file=%s ca=%s other-ca=%s' "$secure_port" \
      "$secure_mechanism" "$secure_user" "$dir/secure/password" "$dir/secure/ca.pem" "$dir/secure/other-ca.pem"
  fi
  printf '\n'
  exit 0
}

# Start the broker on $port; comes back only if one of the ports is taken.
launch() {
  local log_from=0 broker started status=0
  local -a heap
  write_config data server.properties
  [[ ! -f $dir/kafka.log ]] || log_from=$(stat -c %s "$dir/kafka.log")
  read -ra heap <<<"${KAFKA_HEAP_OPTS:--Xms256m -Xmx512m}"

  spawn "$dir/kafka.log" "$java" "${heap[@]}" -XX:+ExitOnOutOfMemoryError \
    -Djava.awt.headless=true -Djava.net.preferIPv4Stack=true \
    -Dlog4j2.configurationFile=log4j2.properties -cp "$libs/*" \
    kafka.Kafka server.properties
  broker=$REPLY
  remember "$dir/broker.pid" "$broker"
  read -r _ started <"$dir/broker.pid"
  # From here to the first answer this call answers for the broker.
  # shellcheck disable=SC2064
  trap "end_process $broker $started 0" EXIT
  start_watchdog "$broker" "$started"

  wait_ready "$broker" "$started" || status=$?
  if ((status == 0)); then
    trap - EXIT
    ready "$broker"
  fi
  end_process "$broker" "$started" 0
  trap - EXIT
  rm -f "$dir/broker.pid"
  if tail -c "+$((log_from + 1))" "$dir/kafka.log" | grep -qE 'BindException|Address already in use'; then
    return 0
  fi
  tail -n 30 "$dir/kafka.log" >&2
  if ((status == 2)); then
    fail "the broker has not answered within ${WARDBELL_KAFKA_TIMEOUT:-120} s; log: $dir/kafka.log"
  fi
  fail "the broker has ended before it answered; log: $dir/kafka.log"
}

run() {
  local lock key value i
  local kept_port='' kept_controller='' kept_secure=''
  need
  java=$(java_command)
  if [[ -n $while_pid ]]; then
    process_start "$while_pid" || fail "--while-pid: no process $while_pid"
    while_start=$REPLY
  fi
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  exec {lock}>"$dir/run.lock"
  flock "$lock" # one start at a time in one DIR

  if [[ -f $dir/ports ]]; then
    while IFS='=' read -r key value; do
      case $key in
        broker) kept_port=$value ;;
        controller) kept_controller=$value ;;
        secure) kept_secure=$value ;;
      esac
    done <"$dir/ports"
  fi
  if [[ ! -s $dir/cluster.id ]]; then new_cluster_id >"$dir/cluster.id"; fi
  cluster_id=$(<"$dir/cluster.id")

  if recall "$dir/broker.pid"; then
    [[ -z $port || $port == "$kept_port" ]] ||
      fail "the broker of $dir already runs, on port $kept_port (stop it first)"
    port=$kept_port
    secure_port=$kept_secure
    if wait_ready "$found_pid" "$found_start"; then
      if ((${#settings[@]})); then say "already running: --set is left out of account"; fi
      value=$found_pid
      start_watchdog "$found_pid" "$found_start"
      ready "$value"
    fi
    # It was just ending, or hangs.
    end_process "$found_pid" "$found_start" 0
  fi
  rm -f "$dir/broker.pid"

  fill_cache
  if [[ -d $dir/secure ]]; then secure=yes; fi
  if [[ -n $secure ]]; then make_secrets; fi
  merge_settings
  write_log_config

  local fixed=${port:-$kept_port}
  for ((i = 0; i < 5; i++)); do
    if [[ -n $fixed ]]; then
      port=$fixed
      # A broker that was just killed may hold it a moment longer.
      for ((value = 0; value < 30; value++)); do
        port_busy "$port" || break
        sleep 0.1
      done
      if port_busy "$port"; then fail "port $port is in use by another process"; fi
    else
      free_port
      port=$REPLY
    fi
    controller_port=$kept_controller
    if [[ -z $controller_port || $controller_port == "$port" ]] || port_busy "$controller_port"; then
      free_port "$port"
      controller_port=$REPLY
    fi
    secure_port=''
    if [[ -n $secure ]]; then
      secure_port=$kept_secure
      if [[ -z $secure_port || $secure_port == "$port" ]] || port_busy "$secure_port"; then
        free_port "$port" "$controller_port"
        secure_port=$REPLY
      fi
    fi
    kept_controller='' kept_secure='' # only the first try keeps them
    printf 'broker=%s\ncontroller=%s\nsecure=%s\n' "$port" "$controller_port" "$secure_port" >"$dir/ports.new"
    mv -f "$dir/ports.new" "$dir/ports"
    format_storage
    launch
    say "a port was taken meanwhile; once more"
  done
  fail "no port could be had; log: $dir/kafka.log"
}

stop() {
  [[ -d $dir ]] || return 0
  if recall "$dir/watchdog.pid"; then
    end_process "$found_pid" "$found_start" 20
  fi
  if recall "$dir/broker.pid"; then
    end_process "$found_pid" "$found_start" "$([[ -n $at_once ]] && echo 0 || echo 200)"
  fi
  rm -f "$dir/watchdog.pid" "$dir/broker.pid"
}

tool() {
  local name=${1:-} class
  (($#)) && shift
  case $name in
    topics) class=org.apache.kafka.tools.TopicCommand ;;
    acls) class=org.apache.kafka.tools.AclCommand ;;
    configs) class=kafka.admin.ConfigCommand ;;
    *) wrong "tool wants topics, acls or configs, not '$name'" ;;
  esac
  need
  fill_cache
  exec "$(java_command)" -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$libs/*" "$class" "$@"
}

check_setting() {
  local key=${1%%=*}
  [[ $1 == *=* && $key =~ ^[A-Za-z0-9._-]+$ && $1 != *$'\n'* ]] ||
    wrong "--set wants KEY=VALUE, not '$1'"
  [[ $owned_keys != *" $key "* ]] || wrong "--set: $key is decided by this script"
}

main() {
  local command=${1:-}
  (($#)) && shift

  version=$(sed -n 's:.*<kafka\.version>\(.*\)</kafka\.version>.*:\1:p' "$pom")
  [[ -n $version ]] || fail "no <kafka.version> in $pom"
  cache=${WARDBELL_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/wardbell}/kafka-$version
  [[ $cache == /* ]] || cache=$PWD/$cache
  libs=$cache/libs
  dir='' port='' while_pid='' while_start='' at_once='' secure='' remove=''
  controller_port='' secure_port='' cluster_id='' java=''
  settings=()

  case $command in
    run | start | restart | stop | need) ;;
    __watch)
      watch "$@"
      return
      ;;
    tool)
      tool "$@"
      return
      ;;
    -h | --help | help)
      usage
      return
      ;;
    '') wrong "a command is wanted: run, stop, restart, start, tool or need" ;;
    *) wrong "unknown command '$command'" ;;
  esac

  while (($#)); do
    case $command:$1 in
      *:-h | *:--help)
        usage
        return
        ;;
      run:--dir | start:--dir | stop:--dir | restart:--dir | run:--port | start:--port | \
        run:--while-pid | start:--while-pid | restart:--while-pid | \
        run:--set | start:--set | restart:--set)
        [[ -n ${2:-} ]] || wrong "$1 wants a value"
        case $1 in
          --dir) dir=$2 ;;
          --port)
            [[ $2 =~ ^[1-9][0-9]{0,4}$ && $2 -le 65535 ]] || wrong "--port wants 1 to 65535, not '$2'"
            port=$2
            ;;
          --while-pid)
            [[ $2 =~ ^[1-9][0-9]{0,9}$ ]] || wrong "--while-pid wants a process number, not '$2'"
            while_pid=$2
            ;;
          --set)
            check_setting "$2"
            settings+=("$2")
            # More settings may follow the one --set.
            while (($# >= 3)) && [[ $3 == *=* && $3 != -* ]]; do
              check_setting "$3"
              settings+=("$3")
              shift
            done
            ;;
        esac
        shift 2
        ;;
      stop:--kill | restart:--kill)
        at_once=yes
        shift
        ;;
      run:--secure | start:--secure)
        secure=yes
        shift
        ;;
      run:--remove)
        remove=yes
        shift
        ;;
      *) wrong "$command: unknown argument '$1'" ;;
    esac
  done

  if [[ -n $remove && (-z $dir || -z $while_pid) ]]; then
    wrong "--remove wants --dir and --while-pid"
  fi
  if [[ -z $dir ]]; then
    dir=$cache/dev
    if [[ $command == start || $command == run ]]; then port=${port:-9092}; fi
  elif [[ $command == start ]]; then
    port=${port:-9092}
  fi

  case $command in
    need) need ;;
    stop) stop ;;
    restart)
      [[ -f $dir/ports ]] || fail "no broker is kept in $dir"
      stop
      run
      ;;
    *) run ;;
  esac
}

trap 'exit 130' INT
trap 'exit 143' TERM HUP
main "$@"
exit
