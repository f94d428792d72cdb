//! The books of `verify` on alerts: each id once, numbers of an episode without a gap, one id for one transition, how late
//! each came, and what receivers have or lack of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;
use wardbell_connectors::log::Record;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, AlertData, Content, Kind, TransitionKind};

use crate::ledger::{Ledger, NAMED_MAX, Place};
use crate::manifest::Manifest;
use crate::measure::{Histograms, histogram};
use crate::receive::Received;

/// What a transition is, whatever it is called.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TransitionKey {
    rule: String,
    patient: String,
    key: String,
    transition: TransitionKind,
    at: Micros,
}

/// See the module.
pub struct AlertBook {
    start_us: Micros,
    end_us: Micros,
    ids: HashSet<String>,
    /// Alerts about this run's readings, and whether they came later than the budget.
    pub ours: HashMap<String, bool>,
    pub of_others: u64,
    pub by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    pub ids_twice: u64,
    /// The next number of each episode.
    numbers: HashMap<String, u32>,
    pub gaps: u64,
    /// The id each transition has.
    transitions: HashMap<TransitionKey, String>,
    pub under_two_ids: u64,
    pub unreadable: u64,
    /// What is wrong with which id: the first few.
    pub suspect_first: Vec<String>,
    /// From schedule to the append of the alert.
    pub latency: Histograms,
    pub by_priority: BTreeMap<&'static str, Histogram<u64>>,
    /// What receivers have, and how often they were asked.
    received: HashSet<String>,
    n_accepted: u64,
    n_refused: u64,
    /// Lines that a writer which was killed left unfinished.
    pub lines_torn: u64,
}

impl AlertBook {
    /// # Errors
    /// None: the bounds of the histograms are sound.
    pub fn try_new(manifest: &Manifest) -> Result<Self> {
        Ok(Self {
            start_us: manifest.start_us,
            end_us: manifest.end_us(),
            ids: HashSet::new(),
            ours: HashMap::new(),
            of_others: 0,
            by_rule: BTreeMap::new(),
            ids_twice: 0,
            numbers: HashMap::new(),
            gaps: 0,
            transitions: HashMap::new(),
            under_two_ids: 0,
            unreadable: 0,
            suspect_first: Vec::new(),
            latency: Histograms::try_new()?,
            by_priority: ["high", "medium", "low"]
                .into_iter()
                .map(|priority| Ok((priority, histogram()?)))
                .collect::<Result<_>>()?,
            received: HashSet::new(),
            n_accepted: 0,
            n_refused: 0,
            lines_torn: 0,
        })
    }

    /// Takes a record of the alerts topic. `is_cut`: the beginning of its partition is not held any more.
    pub fn take(&mut self, record: &Record, is_cut: bool, ledger: &Ledger) {
        let alert = record.value.as_deref().and_then(|value| serde_json::from_slice::<Alert>(value).ok());
        let Some(alert) = alert else {
            self.unreadable += 1;
            return;
        };
        if alert.is_canary() {
            return;
        }
        let AlertData { content, measured } = alert.data;
        if !self.ids.insert(alert.id.clone()) {
            self.ids_twice += 1;
            self.suspect("twice", &alert.id);
            return;
        }
        self.number(&content, is_cut);
        self.name(&content);
        let source = measured.source.as_ref();
        let place = source.map(|source| Place {
            topic: &source.topic,
            partition: source.partition,
            offset: source.offset,
            index: source.index,
        });
        let Some(due_us) = place.and_then(|place| ledger.due_us(place)) else {
            self.of_others += 1;
            return;
        };
        let scheduled_us = if content.by_timer { content.at } else { due_us };
        // A timer that ends when nothing is sent any more waits for a tick, which is not what load does to it.
        if content.kind == Kind::Physiological && (self.start_us..=self.end_us).contains(&scheduled_us) {
            let appended_us = record.append_us.unwrap_or(record.time_us);
            let latency_us = u64::try_from(appended_us - scheduled_us).unwrap_or(0);
            self.latency.record(content.by_timer, latency_us);
            if let Some(histogram) = self.by_priority.get_mut(content.priority.name()) {
                histogram.saturating_record(latency_us);
            }
        }
        self.ours.insert(alert.id, measured.delayed);
        *self.by_rule.entry(content.rule.id).or_default().entry(content.transition.name()).or_default() += 1;
    }

    /// Numbers of an episode are 0, 1, 2 ...; one that began before what is held begins where it can be seen.
    fn number(&mut self, content: &Content, is_cut: bool) {
        let expected = self.numbers.get(&content.episode).copied();
        let expected = expected.unwrap_or(if is_cut { content.number } else { 0 });
        if content.number != expected {
            self.gaps += 1;
            self.suspect(&format!("{expected} expected"), &content.id);
        }
        self.numbers.insert(content.episode.clone(), content.number + 1);
    }

    /// The same transition must never go by another id.
    fn name(&mut self, content: &Content) {
        let transition = TransitionKey {
            rule: content.rule.id.clone(),
            patient: content.patient.clone(),
            key: content.key.clone(),
            transition: content.transition,
            at: content.at,
        };
        let known = self.transitions.entry(transition).or_insert_with(|| content.id.clone());
        if *known != content.id {
            let what = format!("also {known}");
            self.under_two_ids += 1;
            self.suspect(&what, &content.id);
        }
    }

    fn suspect(&mut self, what: &str, id: &str) {
        if self.suspect_first.len() < NAMED_MAX {
            self.suspect_first.push(format!("{id}: {what}"));
        }
    }

    /// One request that a receiver got.
    pub fn receive(&mut self, request: Received) {
        if request.status < 300 {
            self.n_accepted += 1;
        } else {
            self.n_refused += 1;
        }
        if request.taken {
            self.name(&request.alert.data.content);
            self.received.insert(request.alert.id);
        }
    }

    /// Alerts that are with no receiver and that no rule lets a sink withhold.
    fn not_received(&self) -> impl Iterator<Item = &String> {
        let missing = self.ours.iter().filter(|(id, delayed)| !**delayed && !self.received.contains(*id));
        missing.map(|(id, _)| id)
    }

    pub fn n_not_received(&self) -> u64 {
        self.not_received().count() as u64
    }

    pub fn received_report(&self) -> ReceivedReport {
        let mut missing_first: Vec<String> = self.not_received().cloned().collect();
        missing_first.sort_unstable();
        missing_first.truncate(NAMED_MAX);
        let withheld = self.ours.iter().filter(|(id, delayed)| **delayed && !self.received.contains(*id));
        ReceivedReport {
            requests_accepted: self.n_accepted,
            requests_refused: self.n_refused,
            alerts: self.received.len() as u64,
            missing: self.n_not_received(),
            missing_first,
            withheld: withheld.count() as u64,
            unknown: self.received.difference(&self.ids).count() as u64,
            lines_torn: self.lines_torn,
        }
    }
}

/// What receivers have of the alerts topic.
#[derive(Debug, Serialize)]
pub struct ReceivedReport {
    pub requests_accepted: u64,
    pub requests_refused: u64,
    /// Different ids.
    pub alerts: u64,
    /// Alerts of this run it never got.
    pub missing: u64,
    pub missing_first: Vec<String>,
    /// Alerts later than the budget, which a sink may withhold once they are over.
    pub withheld: u64,
    /// Ids that are not on the alerts topic.
    pub unknown: u64,
    /// Lines that a writer which was killed left unfinished; what was in them has to be there in another.
    pub lines_torn: u64,
}

impl ReceivedReport {
    pub fn is_well(&self) -> bool {
        (self.missing, self.unknown) == (0, 0)
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::SECOND;
    use wardbell_schemas::alert::Measured;
    use wardbell_schemas::reading::SourcePosition;

    use super::*;
    use crate::measure::Latencies;
    use crate::sample::{BASIS_US, alert, content, manifest, record};

    fn from(offset: i64) -> Measured {
        let source = Some(SourcePosition { topic: "devices".to_owned(), partition: 0, offset, index: 0 });
        Measured { basis_us: BASIS_US, source, ..Measured::default() }
    }

    fn book(records: &[Record]) -> AlertBook {
        let (mut book, ledger) = (AlertBook::try_new(&manifest()).unwrap(), Ledger::new(&manifest()));
        for record in records {
            book.take(record, false, &ledger);
        }
        book
    }

    #[test]
    fn alerts_are_counted_once_each_and_timed_from_the_schedule() {
        let raised = alert(content("e", 0, TransitionKind::Raised), from(1));
        let timer = Content { at: BASIS_US - 40_000, by_timer: true, ..content("e", 1, TransitionKind::Escalated) };
        let late_timer = Content { at: BASIS_US + 5 * SECOND, ..timer.clone() };
        let late_timer = Content { id: "f.0".to_owned(), episode: "f".to_owned(), number: 0, ..late_timer };
        let book = book(&[
            raised.clone(),
            raised,
            alert(timer, from(1)),
            alert(late_timer, from(1)),
            alert(content("g", 0, TransitionKind::Cleared), from(70)),
            alert(content("h", 0, TransitionKind::Latched), Measured::default()),
            record(b"{}".to_vec()),
        ]);
        assert_eq!((book.ours.len(), book.of_others, book.unreadable, book.ids_twice), (3, 2, 1, 1));
        assert_eq!((book.gaps, book.under_two_ids), (0, 0));
        assert_eq!(book.by_rule["spo2-low"], BTreeMap::from([("raised", 1), ("escalated", 2)]));
        let latencies = Latencies::new(&book.latency);
        // Record 1 was due half a second before the alert was appended.
        assert!((latencies.by_reading.max - 500.0).abs() < 1.0, "{latencies:?}");
        assert_eq!((latencies.by_reading.count, latencies.by_timer.count), (1, 1), "nothing is sent any more");
        assert!((latencies.by_timer.max - 40.0).abs() < 0.1, "{latencies:?}");
        assert_eq!(book.by_priority["high"].len(), 2);
        assert_eq!(book.suspect_first, ["e.0: twice"]);
    }

    #[test]
    fn gaps_and_second_names_are_found() {
        let renamed =
            Content { id: "k.0".to_owned(), episode: "k".to_owned(), ..content("e", 0, TransitionKind::Raised) };
        let records = [
            alert(content("e", 0, TransitionKind::Raised), from(0)),
            alert(content("e", 2, TransitionKind::Cleared), from(0)),
            alert(renamed, from(0)),
            alert(content("n", 3, TransitionKind::Latched), from(0)),
        ];
        let found = book(&records);
        assert_eq!((found.gaps, found.under_two_ids), (2, 1));
        assert_eq!(found.suspect_first, ["e.2: 1 expected", "k.0: also e.0", "n.3: 0 expected"]);
        let mut cut = book(&[]);
        cut.take(&records[3], true, &Ledger::new(&manifest()));
        assert_eq!(cut.gaps, 0, "its beginning is not held any more");
    }

    #[test]
    fn a_receiver_must_have_every_alert_and_no_other() {
        let alert_of = |content: Content, delayed: bool| alert(content, Measured { delayed, ..from(0) });
        let mut book = book(&[
            alert_of(content("e", 0, TransitionKind::Raised), false),
            alert_of(content("f", 0, TransitionKind::Cleared), false),
            alert_of(content("g", 0, TransitionKind::Latched), true),
        ]);
        let request = |episode: &str, status: u16, taken: bool| Received {
            status,
            taken,
            alert: Alert::new(content(episode, 0, TransitionKind::Raised), from(0)),
        };
        book.receive(request("e", 500, false));
        assert_eq!(book.n_not_received(), 2);
        book.receive(request("e", 500, true));
        book.receive(request("e", 204, true));
        let report = book.received_report();
        assert_eq!((report.requests_accepted, report.requests_refused, report.alerts), (1, 2, 1));
        assert_eq!((report.missing, report.missing_first.as_slice()), (1, &["f.0".to_owned()][..]));
        assert_eq!((report.withheld, report.unknown, report.is_well()), (1, 0, false));
        book.receive(request("z", 204, true));
        assert_eq!(book.received_report().unknown, 1);
        assert_eq!(book.under_two_ids, 1, "the raise of e under another name");
    }
}
