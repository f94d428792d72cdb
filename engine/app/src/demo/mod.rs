//! The demonstration: the whole job on the in-memory log, fed by a simulated ward.
//!
//! Every stage is the one that runs beside Kafka. Records carry ward time, which runs faster than the wall's clock;
//! latencies are measured on the wall's clock.

mod ward;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Appender, Log, Outgoing, StampedBy, TopicSpec};
use wardbell_connectors::sink::console::Console;
use wardbell_connectors::sink::jsonl::StdoutLines;
use wardbell_connectors::sink::{Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_rules::packs;
use wardbell_schemas::Micros;

use crate::pipeline::{Job, JobSettings, SinkSettings, Topics};
use crate::sets::Document;
use ward::Ward;

/// Ward time begins on 2026-03-01 at 08:00 UTC.
const WARD_START: Micros = 1_772_352_000_000_000;
const SOURCE: &str = "ward.devices";
/// Enough to show that partitions do not matter.
const PARTITIONS: i32 = 4;
/// Everything has passed all stages long before this.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Demo {
    pub length: Duration,
    pub seed: u64,
    /// Ward seconds per real second.
    pub speed: f64,
    pub json: bool,
}

/// Runs it; `false` if the budget was broken or a reading is not accounted for.
///
/// # Errors
/// What keeps the demonstration from running at all.
pub fn run(demo: &Demo) -> anyhow::Result<bool> {
    let clock = Arc::new(SystemClock);
    let log = Arc::new(MemoryLog::new(clock.clone()));
    let source = TopicSpec::of_others(SOURCE, 1, StampedBy::Producer);
    log.prepare(&[source])?;
    let decision = Settings { record_clock: true, ..Settings::new("demo-ward") };
    let rules = Document::new(&packs::adult_ward(), &decision);
    let mut ward = Ward::new(demo.seed, WARD_START);
    if !demo.json {
        introduce(demo, &ward, rules.rules().len());
    }
    let lane: Box<dyn Sink> =
        if demo.json { Box::new(StdoutLines) } else { Box::new(Console::new(clock.clone(), Some(WARD_START))) };
    let settings = JobSettings {
        commit_every: Duration::from_secs(1),
        sinks: vec![SinkSettings { name: "demo".to_owned(), identity: Identity::Full, lanes: vec![lane] }],
        ..JobSettings::new(
            "demo",
            Topics {
                source: vec![SOURCE.to_owned()],
                create_source: None,
                canonical: "demo.readings".to_owned(),
                alerts: "demo.alerts".to_owned(),
                dead_letters: "demo.dead-letters".to_owned(),
                control: "demo.control".to_owned(),
                state: "demo.state".to_owned(),
                partitions: PARTITIONS,
                retention: Duration::from_secs(86_400),
                create: true,
            },
            rules,
        )
    };
    let job = Job::start(settings, log.clone(), clock)?;
    let mut appender = log.appender()?;
    feed(demo, &mut ward, appender.as_mut())?;
    let drained = job.drain(DRAIN_TIMEOUT).map_err(|what| anyhow!(what)).context("waiting for the last readings");
    let statistics = job.statistics().clone();
    job.stop();
    drained?;
    let summary = statistics.summary();
    let mut out = anstream::stdout().lock();
    if demo.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
    } else {
        writeln!(out, "\n{}\n{}", summary.outcomes_table(), statistics.latency.table())?;
        let verdict = if summary.budget_ok { "kept" } else { "BROKEN" };
        writeln!(
            out,
            "{} transitions, {} of them technical; budget of 30 s from source to sink: {verdict} ({} above)",
            summary.transitions, summary.technical, summary.budget_breaches
        )?;
    }
    Ok(summary.budget_ok && summary.adds_up())
}

fn introduce(demo: &Demo, ward: &Ward, rules: usize) {
    let shown = wardbell_schemas::duration::print((demo.length.as_secs_f64() * demo.speed) as Micros * 1_000_000);
    println!(
        "A simulated ward: {} patients, {rules} rules, {shown} of ward time at {}x (latencies are real time).\n",
        ward.patients(),
        demo.speed
    );
    for (who, what) in ward.story() {
        println!("  {who:<8} {what}");
    }
    println!("\nward time  alert");
}

/// Plays the ward into the source topic at its pace.
fn feed(demo: &Demo, ward: &mut Ward, appender: &mut dyn Appender) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut outcomes = Vec::new();
    let mut token = 0;
    loop {
        for record in ward.next_second() {
            let ward_seconds = (record.at_us - WARD_START) as f64 / 1e6;
            let due = Duration::from_secs_f64((ward_seconds / demo.speed).max(0.0));
            if due >= demo.length {
                std::thread::sleep(demo.length.saturating_sub(began.elapsed()));
                return Ok(());
            }
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let outgoing = Outgoing {
                topic: SOURCE.to_owned(),
                partition: 0,
                key: Some(record.patient.into_bytes()),
                value: Some(record.json.into_bytes()),
                headers: Vec::new(),
                time_us: Some(record.at_us),
            };
            token += 1;
            appender.append(&outgoing, token)?;
            appender.outcomes(Duration::ZERO, &mut outcomes);
            for (_, outcome) in outcomes.drain(..) {
                outcome?;
            }
        }
    }
}
