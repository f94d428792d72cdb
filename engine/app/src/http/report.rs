//! The answers about liveness, readiness and health, as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::health::{LoopReport, LoopState, Severity, Standing};
use crate::pipeline::{Counts, Observer};

/// Until a job is attached.
pub(super) const NOT_STARTED: &str =
    "the job has not started: it prepares its topics, or waits for a broker that does not answer yet";

/// Whether all our own loops turn; nothing outside this process counts.
pub(super) fn liveness(job: Option<&Observer>) -> (bool, Value) {
    let loops = job.map(|job| job.health().loops()).unwrap_or_default();
    let live = loops.iter().all(|report| !matches!(report.state, LoopState::Stalled | LoopState::Dead));
    (live, json!({ "live": live, "loops": loops.iter().map(loop_entry).collect::<Vec<_>>() }))
}

fn loop_entry(report: &LoopReport) -> Value {
    let (state, waits_for) = match report.state {
        LoopState::Turning => ("turning", None),
        LoopState::Waiting(what) => ("waiting", Some(what)),
        LoopState::Stalled => ("stalled", None),
        LoopState::Dead => ("dead", None),
    };
    json!({ "name": report.name, "state": state, "waits_for": waits_for, "seconds": seconds(report.age) })
}

/// Whether the job does its work, and why not.
pub(super) fn readiness(job: Option<&Observer>) -> (bool, Value) {
    let reasons = job.map_or_else(|| vec![NOT_STARTED.to_owned()], Observer::not_ready);
    (reasons.is_empty(), json!({ "ready": reasons.is_empty(), "reasons": reasons }))
}

/// Whether something is failing, and all that is known of where the job stands.
pub(super) fn health(job: Option<&Observer>, uptime: Duration) -> (bool, Value) {
    let version = env!("CARGO_PKG_VERSION");
    let Some(job) = job else {
        let finding = json!({
            "key": "start", "severity": Severity::Failing, "cause": NOT_STARTED,
            "impact": "no reading is evaluated yet", "remedy": "see the log for what it waits for",
        });
        let body = json!({
            "status": "failing", "version": version, "uptime_seconds": seconds(uptime), "findings": [finding],
        });
        return (true, body);
    };
    let standing = job.health().findings();
    let worst = standing.iter().map(|standing| standing.finding.severity).max();
    let counts = job.statistics().counts();
    let body = json!({
        "status": match worst {
            Some(Severity::Failing) => "failing",
            Some(Severity::Degraded) => "degraded",
            Some(Severity::Information) | None => "healthy",
        },
        "version": version,
        "uptime_seconds": seconds(uptime),
        "findings": standing.iter().map(|standing| finding(standing, job.now_us())).collect::<Vec<_>>(),
        "sources": held(job, &counts, "normalize"),
        "partitions": held(job, &counts, "decide"),
        "sinks": sinks(job, &counts),
    });
    (worst == Some(Severity::Failing), body)
}

fn finding(standing: &Standing, now_us: i64) -> Value {
    let age_us = i64::try_from(standing.age.as_micros()).unwrap_or(i64::MAX);
    let since = jiff::Timestamp::from_microsecond(now_us.saturating_sub(age_us));
    json!({
        "key": standing.key,
        "severity": standing.finding.severity,
        "cause": standing.finding.cause,
        "impact": standing.finding.impact,
        "remedy": standing.finding.remedy,
        "since": since.map(|since| since.to_string()).ok(),
    })
}

/// Partitions of this instance that a stage reads.
fn held(job: &Observer, counts: &Counts, name: &str) -> Vec<Value> {
    let stages = job.stages();
    let Some(stage) = stages.iter().find(|stage| stage.name == name) else {
        return Vec::new();
    };
    let places = stage.topics.iter().flat_map(|topic| counts.held(&stage.group, topic));
    places
        .map(|(place, position, lag)| {
            let mut entry = json!({
                "topic": place.topic,
                "partition": place.partition,
                "next_offset": position.next_offset,
                "lag_records": lag.map(|lag| lag.records),
                "delay_seconds": lag.map(|lag| seconds(lag.delay)),
                "estimated_delay_seconds": lag.and_then(|lag| lag.estimate).map(seconds),
            });
            if name == "decide" {
                entry["active_set"] = json!(counts.active_sets.get(&place.partition));
            }
            entry
        })
        .collect()
}

fn sinks(job: &Observer, counts: &Counts) -> Vec<Value> {
    let stages = job.stages();
    let sinks = stages.iter().filter_map(|stage| stage.sink.as_ref());
    sinks
        .map(|sink| {
            json!({
                "name": sink,
                "delivered": counts.delivered.get(sink).copied().unwrap_or(0),
                "failures": counts.sink_failures.get(sink).copied().unwrap_or(0),
                "budget_breaches": counts.breaches.get(sink).map_or(0, |breaches| breaches.count),
                "overdue": counts.overdue_by_sink().get(sink).copied().unwrap_or(0),
                "withheld": counts.withheld.get(sink).copied().unwrap_or(0),
                "withheld_record_only": counts.withheld_record_only.get(sink).copied().unwrap_or(0),
                "set_aside": counts.set_aside.get(sink).copied().unwrap_or(0),
                "canary_age_seconds": counts.oldest_canary_us(sink).map(|basis_us| canary_age(job, basis_us)),
            })
        })
        .collect()
}

fn canary_age(job: &Observer, basis_us: i64) -> f64 {
    (job.now_us() - basis_us) as f64 / 1e6
}

/// With a resolution of a millisecond.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}
