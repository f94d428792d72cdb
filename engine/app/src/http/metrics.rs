//! Metrics as OpenMetrics text, made from the statistics when they are asked for.
//!
//! Every name is in [`Metric`] and carries its unit. Labels are bounded by the configuration, the catalogue of reasons
//! and the rule set; none names a patient, a device or a label as a source sent it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use wardbell_schemas::alert::Priority;

use crate::health::Severity;
use crate::latency::{BUCKET_BOUNDS_MS, Buckets, Stage};
use crate::pipeline::{Counts, Observer};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a job; without one, what is known of the process.
pub(super) fn encode(job: Option<Observer>, uptime: Duration) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { job, uptime }));
    let mut exposition = String::new();
    text::encode(&mut exposition, &registry)?;
    Ok(exposition)
}

/// Everything that is exported. Counters get `_total` behind their name.
#[derive(Clone, Copy)]
enum Metric {
    Build,
    Uptime,
    Live,
    Ready,
    Findings,
    SourceRecords,
    Readings,
    Repeated,
    Renormalized,
    LostRecords,
    DeadLetters,
    Unreadable,
    NextOffset,
    LagRecords,
    SourceDelay,
    DecideDelay,
    DeliverDelay,
    EstimatedDelay,
    ActiveSet,
    Transitions,
    AlertsRaised,
    TechnicalTransitions,
    DelayedTransitions,
    DeliveredAlerts,
    SinkFailures,
    BudgetBreaches,
    OverdueAlerts,
    WithheldAlerts,
    SetAsideAlerts,
    CanaryAge,
    StageRestarts,
    PartitionFailures,
    EngineLatency,
    StageLatency,
    DataAge,
    IntentionalDelay,
}

impl Metric {
    fn describe(self) -> (&'static str, MetricType, &'static str) {
        use MetricType::{Counter, Gauge, Histogram, Info};
        match self {
            Metric::Build => ("wardbell_build", Info, "The version that runs"),
            Metric::Uptime => ("wardbell_uptime_seconds", Gauge, "Time since the process started"),
            Metric::Live => ("wardbell_live", Gauge, "1 if all own loops turn, as /livez says"),
            Metric::Ready => ("wardbell_ready", Gauge, "1 if the job does its work, as /readyz says"),
            Metric::Findings => ("wardbell_findings", Gauge, "What stands in /healthz, by severity"),
            Metric::SourceRecords => ("wardbell_source_records", Counter, "Records read from source topics"),
            Metric::Readings => ("wardbell_readings", Counter, "Readings by the one place they ended in"),
            Metric::Repeated => {
                ("wardbell_repeated_readings", Counter, "Readings appended twice after a failure and dropped")
            }
            Metric::Renormalized => (
                "wardbell_renormalized_readings",
                Counter,
                "Readings appended again with other connector files and dropped (E_RENORMALIZED)",
            ),
            Metric::LostRecords => {
                ("wardbell_lost_source_records", Counter, "Source records that retention deleted before they were read")
            }
            Metric::DeadLetters => ("wardbell_dead_letters", Counter, "Readings that cannot be used, by reason"),
            Metric::Unreadable => {
                ("wardbell_unreadable_records", Counter, "Records of our own topics that could not be read")
            }
            Metric::NextOffset => ("wardbell_next_offset", Gauge, "Next offset a stage will finish"),
            Metric::LagRecords => ("wardbell_lag_records", Gauge, "Records below the end that are not finished"),
            Metric::SourceDelay => {
                ("wardbell_source_delay_seconds", Gauge, "No reading of the source waits for longer than this")
            }
            Metric::DecideDelay => {
                ("wardbell_decide_delay_seconds", Gauge, "No record of the canonical log waits for longer than this")
            }
            Metric::DeliverDelay => {
                ("wardbell_deliver_delay_seconds", Gauge, "No alert in hand waits for its sink for longer than this")
            }
            Metric::EstimatedDelay => (
                "wardbell_estimated_delay_seconds",
                Gauge,
                "How long a stage will take for a record appended now, as fast as it works; absent while not known",
            ),
            Metric::ActiveSet => ("wardbell_active_set", Gauge, "Number of the rule set that decides a partition"),
            Metric::Transitions => ("wardbell_transitions", Counter, "Transitions of episodes by rule"),
            Metric::AlertsRaised => ("wardbell_alerts_raised", Counter, "Alerts raised by priority"),
            Metric::TechnicalTransitions => {
                ("wardbell_technical_transitions", Counter, "Transitions about a device or the engine itself")
            }
            Metric::DelayedTransitions => {
                ("wardbell_delayed_transitions", Counter, "Transitions decided later than the budget")
            }
            Metric::DeliveredAlerts => ("wardbell_delivered_alerts", Counter, "Alerts a sink acknowledged"),
            Metric::SinkFailures => ("wardbell_sink_failures", Counter, "Attempts at delivery that failed"),
            Metric::BudgetBreaches => {
                ("wardbell_budget_breaches", Counter, "Alerts a sink acknowledged later than the budget of 30 s")
            }
            Metric::OverdueAlerts => {
                ("wardbell_overdue_alerts", Counter, "Alerts a sink had not taken when the budget of 30 s was over")
            }
            Metric::WithheldAlerts => (
                "wardbell_withheld_alerts",
                Counter,
                "Alerts nobody was notified of: over already, or record-only mode",
            ),
            Metric::SetAsideAlerts => {
                ("wardbell_set_aside_alerts", Counter, "Alerts a sink rejected for good, now dead letters")
            }
            Metric::CanaryAge => {
                ("wardbell_canary_age_seconds", Gauge, "Age of the newest canary at a sink, of its worst partition")
            }
            Metric::StageRestarts => {
                ("wardbell_stage_restarts", Counter, "Starts of a stage from what is committed, after a failure")
            }
            Metric::PartitionFailures => {
                ("wardbell_partition_failures", Counter, "Ends of a canonical partition's thread with an error")
            }
            Metric::EngineLatency => (
                "wardbell_engine_latency_seconds",
                Histogram,
                "From the append of a source record to the acknowledgment of its alert by a sink",
            ),
            Metric::StageLatency => ("wardbell_stage_latency_seconds", Histogram, "The engine latency by its stages"),
            Metric::DataAge => (
                "wardbell_data_age_seconds",
                Histogram,
                "From the device's clock to the source's append: not the engine's",
            ),
            Metric::IntentionalDelay => {
                ("wardbell_intentional_delay_seconds", Histogram, "Holds of rules: asked for, not the engine's")
            }
        }
    }
}

/// Stages of the engine latency that are measured apart.
const STAGES: [Stage; 5] = [Stage::Normalize, Stage::Decide, Stage::Commit, Stage::Transport, Stage::Deliver];

/// One scrape.
struct Scrape {
    job: Option<Observer>,
    uptime: Duration,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut families = Families(encoder);
        let version = labels([("version", env!("CARGO_PKG_VERSION"))]);
        families.info(Metric::Build, &version)?;
        families.gauge(Metric::Uptime, [(Vec::new(), self.uptime.as_secs_f64())])?;
        let Some(job) = &self.job else {
            return families.gauge(Metric::Ready, [(Vec::new(), 0.0)]);
        };
        let counts = job.statistics().counts();
        families.state(job)?;
        families.readings(&counts)?;
        families.places(job, &counts)?;
        families.alerts(job, &counts)?;
        families.latencies(job)
    }
}

type Labels = Vec<(&'static str, String)>;

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn state(&mut self, job: &Observer) -> fmt::Result {
        self.gauge(Metric::Live, [(Vec::new(), f64::from(u8::from(job.health().is_live())))])?;
        self.gauge(Metric::Ready, [(Vec::new(), f64::from(u8::from(job.not_ready().is_empty())))])?;
        let findings = job.health().findings();
        let severities = [Severity::Information, Severity::Degraded, Severity::Failing].map(|severity| {
            let n = findings.iter().filter(|standing| standing.finding.severity == severity).count();
            (labels([("severity", severity.name())]), n as f64)
        });
        self.gauge(Metric::Findings, severities)
    }

    fn readings(&mut self, counts: &Counts) -> fmt::Result {
        let outcomes = counts.outcomes();
        self.counter(Metric::SourceRecords, [(Vec::new(), counts.records)])?;
        let ended = outcomes.iter().map(|(outcome, count)| (labels([("outcome", outcome.name())]), count));
        self.counter(Metric::Readings, ended)?;
        self.counter(Metric::Repeated, [(Vec::new(), outcomes.repeated)])?;
        self.counter(Metric::Renormalized, [(Vec::new(), outcomes.renormalized)])?;
        let lost = counts.lost.iter().map(|((topic, partition), lost)| {
            let partition = partition.to_string();
            (labels([("topic", topic.as_str()), ("partition", partition.as_str())]), lost.count)
        });
        self.counter(Metric::LostRecords, lost)?;
        let reasons = counts.reasons.iter().map(|(reason, count)| (labels([("reason", *reason)]), *count));
        self.counter(Metric::DeadLetters, reasons)?;
        self.counter(Metric::Unreadable, [(Vec::new(), counts.unreadable)])
    }

    /// Where the stages stand in the log.
    fn places(&mut self, job: &Observer, counts: &Counts) -> fmt::Result {
        let (mut offsets, mut lags) = (Vec::new(), Vec::new());
        let (mut source_delays, mut decide_delays, mut deliver_delays) = (Vec::new(), Vec::new(), Vec::new());
        let mut estimates = Vec::new();
        for stage in job.stages() {
            for (place, position, lag) in stage.topics.iter().flat_map(|topic| counts.held(&stage.group, topic)) {
                let partition = place.partition.to_string();
                let of_stage = labels([
                    ("stage", stage.name.as_str()),
                    ("topic", place.topic.as_str()),
                    ("partition", partition.as_str()),
                ]);
                if let Some(lag) = lag {
                    lags.push((of_stage.clone(), lag.records as f64));
                    estimates.extend(lag.estimate.map(|estimate| (of_stage.clone(), estimate.as_secs_f64())));
                    let mut of_place = labels([("topic", place.topic.as_str()), ("partition", partition.as_str())]);
                    let delays = match &stage.sink {
                        Some(sink) => {
                            of_place.push(("sink", sink.clone()));
                            &mut deliver_delays
                        }
                        None if stage.name == "normalize" => &mut source_delays,
                        None => &mut decide_delays,
                    };
                    delays.push((of_place, lag.delay.as_secs_f64()));
                }
                offsets.push((of_stage, position.next_offset as f64));
            }
        }
        self.gauge(Metric::NextOffset, offsets)?;
        self.gauge(Metric::LagRecords, lags)?;
        self.gauge(Metric::SourceDelay, source_delays)?;
        self.gauge(Metric::DecideDelay, decide_delays)?;
        self.gauge(Metric::DeliverDelay, deliver_delays)?;
        self.gauge(Metric::EstimatedDelay, estimates)?;
        let sets = counts.active_sets.iter().map(|(partition, set)| {
            (labels([("partition", partition.to_string().as_str()), ("hash", set.hash.as_str())]), set.number as f64)
        });
        self.gauge(Metric::ActiveSet, sets)?;
        let restarts = counts.restarts.iter().map(|(stage, count)| (labels([("stage", stage.as_str())]), *count));
        self.counter(Metric::StageRestarts, restarts)?;
        let failures = counts.partition_failures.iter();
        let failures =
            failures.map(|(partition, count)| (labels([("partition", partition.to_string().as_str())]), *count));
        self.counter(Metric::PartitionFailures, failures)
    }

    fn alerts(&mut self, job: &Observer, counts: &Counts) -> fmt::Result {
        let transitions = counts.transitions.iter();
        let transitions =
            transitions.map(|((rule, kind), count)| (labels([("rule", rule.as_str()), ("transition", *kind)]), *count));
        self.counter(Metric::Transitions, transitions)?;
        let raised = Priority::ALL.into_iter().map(|priority| {
            (labels([("priority", priority.name())]), counts.alerts_raised.get(&priority).copied().unwrap_or(0))
        });
        self.counter(Metric::AlertsRaised, raised)?;
        self.counter(Metric::TechnicalTransitions, [(Vec::new(), counts.technical)])?;
        self.counter(Metric::DelayedTransitions, [(Vec::new(), counts.delayed)])?;
        // Every sink is there from the start: a counter that appears with its first failure hides that failure.
        let stages = job.stages();
        let sinks = || stages.iter().filter_map(|stage| stage.sink.as_deref());
        let of_sink = |sink: &str, count: Option<u64>| (labels([("sink", sink)]), count.unwrap_or(0));
        let delivered = sinks().map(|sink| of_sink(sink, counts.delivered.get(sink).copied()));
        self.counter(Metric::DeliveredAlerts, delivered)?;
        let failures = sinks().map(|sink| of_sink(sink, counts.sink_failures.get(sink).copied()));
        self.counter(Metric::SinkFailures, failures)?;
        let breaches = sinks().map(|sink| of_sink(sink, counts.breaches.get(sink).map(|breaches| breaches.count)));
        self.counter(Metric::BudgetBreaches, breaches)?;
        let overdue = counts.overdue_by_sink();
        self.counter(Metric::OverdueAlerts, sinks().map(|sink| of_sink(sink, overdue.get(sink).copied())))?;
        let withheld = sinks().map(|sink| {
            let of = |counts: &BTreeMap<String, u64>| counts.get(sink).copied().unwrap_or(0);
            of_sink(sink, Some(of(&counts.withheld) + of(&counts.withheld_record_only)))
        });
        self.counter(Metric::WithheldAlerts, withheld)?;
        let set_aside = sinks().map(|sink| of_sink(sink, counts.set_aside.get(sink).copied()));
        self.counter(Metric::SetAsideAlerts, set_aside)?;
        let ages = sinks().filter_map(|sink| {
            let age_us = job.now_us() - counts.oldest_canary_us(sink)?;
            Some((labels([("sink", sink)]), age_us as f64 / 1e6))
        });
        self.gauge(Metric::CanaryAge, ages)
    }

    /// Data age, intentional delay and the engine's latency are three numbers and never mixed.
    fn latencies(&mut self, job: &Observer) -> fmt::Result {
        let book = &job.statistics().latency;
        let by_priority = Priority::ALL.into_iter().filter_map(|priority| {
            Some((labels([("priority", priority.name())]), book.buckets(Stage::Total, Some(priority))?))
        });
        self.histogram(Metric::EngineLatency, by_priority)?;
        let by_stage = STAGES
            .into_iter()
            .filter_map(|stage| Some((labels([("stage", stage.name())]), book.buckets(stage, None)?)));
        self.histogram(Metric::StageLatency, by_stage)?;
        let whole = |stage| book.buckets(stage, None).map(|buckets| (Vec::new(), buckets));
        self.histogram(Metric::DataAge, whole(Stage::DataAge))?;
        self.histogram(Metric::IntentionalDelay, whole(Stage::IntentionalDelay))
    }

    fn info(&mut self, metric: Metric, labels: &Labels) -> fmt::Result {
        let (name, kind, help) = metric.describe();
        self.0.encode_descriptor(name, help, None, kind)?.encode_info(labels)
    }

    fn counter(&mut self, metric: Metric, samples: impl IntoIterator<Item = (Labels, u64)>) -> fmt::Result {
        let (name, kind, help) = metric.describe();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, count) in samples {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, u64, f64>(&count, None)?;
            } else {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, metric: Metric, samples: impl IntoIterator<Item = (Labels, f64)>) -> fmt::Result {
        let (name, kind, help) = metric.describe();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn histogram(&mut self, metric: Metric, samples: impl IntoIterator<Item = (Labels, Buckets)>) -> fmt::Result {
        let (name, kind, help) = metric.describe();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, buckets) in samples {
            let bounds = BUCKET_BOUNDS_MS.iter().map(|ms| *ms as f64 / 1_000.0).chain([f64::INFINITY]);
            let counts: Vec<(f64, u64)> = bounds.zip(buckets.counts).collect();
            let (sum, count) = (buckets.sum_s, buckets.count);
            if labels.is_empty() {
                family.encode_histogram::<NoLabelSet>(sum, count, &counts, None)?;
            } else {
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &counts, None)?;
            }
        }
        Ok(())
    }
}
