#!/bin/sh
# Makes the topics of a job and gives its user the rights it needs, with the tools that come with Kafka (their folder must
# be in PATH). To be run by whoever runs the broker; running it again changes nothing. See README.md in this folder.
#
#     ./topics-and-rights.sh --bootstrap-server broker-1:9093 --command-config admin.properties
#
# Everything behind the script's name goes to each tool. What is to be made stands here and must agree with wardbell.toml:
set -eu

user=${WARDBELL_USER:-User:wardbell}       # as the broker knows it; with mutual TLS like "User:CN=wardbell,O=St Mary's"
group=${WARDBELL_GROUP:-wardbell}          # `group`
source=${WARDBELL_SOURCE:-devices}         # one of `source.topics`
canonical=${WARDBELL_CANONICAL:-wardbell.readings}
alerts=${WARDBELL_ALERTS:-wardbell.alerts}
dead_letters=${WARDBELL_DEAD_LETTERS:-wardbell.dead-letters}
control=${WARDBELL_CONTROL:-wardbell.control}
state=${WARDBELL_STATE:-wardbell.state}
partitions=${WARDBELL_PARTITIONS:-12}      # `canonical.partitions`: fixed for life
copies=${WARDBELL_COPIES:-3}               # brokers that hold each record
needed=${WARDBELL_COPIES_NEEDED:-2}        # of them, that must have a record before it counts as written
week_ms=604800000                          # `canonical.retention`

make() { # name, partitions, retention in ms, options of the tool
    name=$1 count=$2 retention_ms=$3
    shift 3
    kafka-topics.sh "$@" --create --if-not-exists --topic "$name" --partitions "$count" --replication-factor "$copies" \
        --config message.timestamp.type=LogAppendTime --config cleanup.policy=delete \
        --config "retention.ms=$retention_ms" --config "min.insync.replicas=$needed"
}

make "$source" "$partitions" "$week_ms" "$@"
make "$canonical" "$partitions" "$week_ms" "$@"
make "$alerts" "$partitions" "$week_ms" "$@"
make "$dead_letters" 1 "$week_ms" "$@"
make "$control" 1 -1 "$@"           # published rule sets are kept for ever,
make "$state" "$partitions" -1 "$@" # and checkpoints until the job deletes those that newer ones replace

# Reads what sources send, and sees whose time stamps they carry.
kafka-acls.sh "$@" --add --allow-principal "$user" --topic "$source" \
    --operation Read --operation Describe --operation DescribeConfigs
# Its own topics: writes and reads them, and checks their settings at start.
kafka-acls.sh "$@" --add --allow-principal "$user" --topic "$canonical" --topic "$alerts" --topic "$control" --topic "$state" \
    --operation Read --operation Write --operation Describe --operation DescribeConfigs
kafka-acls.sh "$@" --add --allow-principal "$user" --topic "$state" --operation Delete
kafka-acls.sh "$@" --add --allow-principal "$user" --topic "$dead_letters" \
    --operation Write --operation Describe --operation DescribeConfigs
# Consumer groups and transactional ids that begin with the group's name.
kafka-acls.sh "$@" --add --allow-principal "$user" --group "$group" --resource-pattern-type prefixed --operation Read
kafka-acls.sh "$@" --add --allow-principal "$user" --transactional-id "$group" --resource-pattern-type prefixed \
    --operation Write --operation Describe
# Brokers before 3.0 also want:
#   kafka-acls.sh "$@" --add --allow-principal "$user" --cluster --operation IdempotentWrite
