//! The deliver stage: each sink is its own consumer group on the alerts topic.
//!
//! Progress is committed after the sink has acknowledged. A failing sink is tried again with back-off and reported; it
//! delays only itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wardbell_connectors::log::{Isolation, LogError, Member, MemberEvent, Membership, Record, TopicPartition};
use wardbell_connectors::sink::Delivery;
use wardbell_schemas::alert::{Alert, TransitionKind};

use super::{BACKOFF_MAX, BACKOFF_MIN, Shared, SinkSettings};
use crate::latency::Stage;

/// Alerts handed to a sink at once.
const ALERTS_MAX: usize = 200;
const WAIT: Duration = Duration::from_millis(50);

/// The consumer group of a sink.
pub fn group(prefix: &str, sink: &str) -> String {
    format!("{prefix}-deliver-{sink}")
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared, mut sink: SinkSettings) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let step = format!("starting sink `{}`", sink.name);
            shared.fail("deliver", &LogError::new(wardbell_connectors::log::Remedy::Refuse, step, error.to_string()));
            return;
        }
    };
    let stage = format!("deliver {}", sink.name);
    shared.supervise(&stage, || {
        let membership = Membership {
            group: group(&shared.group, &sink.name),
            topics: vec![shared.topics.alerts.clone()],
            isolation: Isolation::ReadCommitted,
            instance: shared.instance.clone(),
        };
        let member = shared.log.join(&membership)?;
        Stand { shared, sink: &mut sink, runtime: &runtime, member, next_offsets: BTreeMap::new() }.work()
    });
}

struct Stand<'a> {
    shared: &'a Shared,
    sink: &'a mut SinkSettings,
    runtime: &'a tokio::runtime::Runtime,
    member: Box<dyn Member>,
    next_offsets: BTreeMap<TopicPartition, i64>,
}

impl Stand<'_> {
    fn work(&mut self) -> Result<(), LogError> {
        let mut records = Vec::new();
        while !self.shared.stopping() {
            for event in self.member.events(Duration::ZERO)? {
                self.follow(event)?;
            }
            self.member.read(ALERTS_MAX, WAIT, &mut records)?;
            records.retain(|(partition, _)| self.next_offsets.contains_key(partition));
            if records.is_empty() {
                continue;
            }
            self.deliver(&records)?;
            records.clear();
        }
        Ok(())
    }

    fn follow(&mut self, event: MemberEvent) -> Result<(), LogError> {
        match event {
            MemberEvent::Assigned(partitions) => {
                let committed = self.member.committed(&partitions)?;
                let mut starts = Vec::new();
                for (partition, committed) in partitions.into_iter().zip(committed) {
                    let (first, _) = self.shared.log.offsets(&partition.topic, partition.partition)?;
                    starts.push((partition, committed.unwrap_or(first).max(first)));
                }
                for (partition, start) in &starts {
                    self.tell(partition, *start);
                }
                self.next_offsets.extend(starts.iter().cloned());
                self.member.start(&starts)
            }
            MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) => {
                self.next_offsets.retain(|partition, _| !partitions.contains(partition));
                self.member.stop(&partitions)
            }
        }
    }

    fn tell(&self, partition: &TopicPartition, next: i64) {
        let stage = group(&self.shared.group, &self.sink.name);
        self.shared.statistics.set_position(&stage, &partition.topic, partition.partition, next);
    }

    /// Hands alerts to the sink until it acknowledges; then commits.
    fn deliver(&mut self, records: &[(TopicPartition, Record)]) -> Result<(), LogError> {
        let received_us = self.shared.clock.now_us();
        let mut deliveries = Vec::new();
        for (partition, record) in records {
            match serde_json::from_slice::<Alert>(record.value.as_deref().unwrap_or_default()) {
                Ok(alert) => {
                    if let Some(append_us) = record.append_us {
                        self.shared.statistics.latency.record(Stage::Transport, None, received_us - append_us);
                    }
                    deliveries.push(Delivery { alert: self.sink.identity.apply(alert), received_us });
                }
                Err(error) => {
                    self.shared.statistics.unreadable();
                    // The error names line and column, not content.
                    tracing::error!(
                        sink = self.sink.name,
                        partition = partition.partition,
                        offset = record.offset,
                        line = error.line(),
                        column = error.column(),
                        "a record of the alerts topic is no alert and is passed over"
                    );
                }
            }
        }
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = self.runtime.block_on(self.sink.sink.deliver(&deliveries)) {
            self.shared.statistics.sink_failed(&self.sink.name);
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::error!(sink = self.sink.name, error = %error, cause, pause_ms = backoff.as_millis() as u64, "the sink does not take alerts; trying again");
            let until = Instant::now() + backoff;
            while Instant::now() < until {
                if self.shared.stopping() {
                    // Not acknowledged, so not committed: they come again at the next start.
                    return Ok(());
                }
                // The membership has to be served while we wait; a change of it ends the attempt.
                let events = self.member.events(Duration::from_millis(50))?;
                if !events.is_empty() {
                    let step = format!("delivering to sink `{}`", self.sink.name);
                    let what = "the assignment changed while the sink did not take alerts";
                    return Err(LogError::new(wardbell_connectors::log::Remedy::Restart, step, what));
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        self.measure(&deliveries);
        for (partition, record) in records {
            self.next_offsets.insert(partition.clone(), record.offset + 1);
        }
        let positions: Vec<(TopicPartition, i64)> =
            self.next_offsets.iter().map(|(partition, next)| (partition.clone(), *next)).collect();
        self.member.commit(&positions)?;
        for (partition, next) in &positions {
            self.tell(partition, *next);
        }
        Ok(())
    }

    fn measure(&self, deliveries: &[Delivery]) {
        let now = self.shared.clock.now_us();
        let statistics = &self.shared.statistics;
        statistics.delivered(&self.sink.name, deliveries.len() as u64);
        for delivery in deliveries {
            let content = &delivery.alert.data.content;
            statistics.latency.record(Stage::Deliver, None, now - delivery.received_us);
            statistics.latency.record_total(content.priority, now - delivery.alert.data.measured.basis_us);
            if content.transition == TransitionKind::Raised {
                statistics.latency.record(Stage::IntentionalDelay, None, content.intentional_delay_us);
            }
        }
    }
}
