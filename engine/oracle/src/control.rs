//! What is no reading: control records, and another set that comes into force (sections 2.8, 7.1, 9 and 10).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::condition::View;
use super::episode::{Stamp, TrackId};
use super::rule::{Priority, Rule};
use super::series::SeriesId;
use super::{Control, FEED, Set, World, answered};

impl World<'_> {
    pub(super) fn control(&mut self, id: &str, control: &Control) {
        if !self.controls.insert(id.to_string()) {
            return;
        }
        match control {
            Control::Limit { patient, name, value } => {
                let limits = &mut self.patients.entry(patient.clone()).or_default().limits;
                set_or_remove(limits, name, *value);
            }
            Control::Attribute { patient, name, value } => {
                let attributes = &mut self.patients.entry(patient.clone()).or_default().attributes;
                set_or_remove(attributes, name, *value);
            }
            Control::Discharge { patient } => self.discharge(patient),
            Control::Standby { patient, device } => {
                for id in self.series_of(patient) {
                    if device.as_ref().is_none_or(|device| *device == id.device) {
                        let clock = self.clock_of_series(&id);
                        self.expect_nothing(&id, clock);
                    }
                }
            }
            Control::Acknowledge { back } => self.acknowledge(*back),
            Control::Reset { back } => self.reset(*back),
            Control::Condition { rule, key, priority, holds, at_us } => {
                let track = TrackId { patient: "-".to_string(), key: key.clone(), rule: rule.clone() };
                let priority = Priority::parse(priority).expect("a priority");
                if rule == FEED {
                    // Records of a source are lost: its own alert, at its own clock, and a tick ends it.
                    if *holds && !self.record_clock {
                        let at_us = self.clocks.get(key).copied().unwrap_or(*at_us);
                        self.feeds.insert(key.clone(), at_us);
                        if self.open(&track).is_none() {
                            self.begin(&track, at_us, priority, at_us);
                        }
                    }
                    return;
                }
                match holds {
                    true if self.open(&track).is_none() => self.begin(&track, *at_us, priority, *at_us),
                    true => {}
                    false => self.end(&track, *at_us, "cleared", Stamp { source: String::new(), us: *at_us }),
                }
            }
        }
    }

    /// By key.
    fn series_of(&self, patient: &str) -> Vec<SeriesId> {
        let mut ids: Vec<SeriesId> = self.of_patient(patient).map(|(id, _)| id.clone()).collect();
        ids.sort_by_key(SeriesId::key);
        ids
    }

    fn clock_of_series(&self, id: &SeriesId) -> i64 {
        self.clock(&self.series.get(id).expect("a known series").source)
    }

    /// The patient left. All of it ends at one time, at the largest of the clocks concerned.
    fn discharge(&mut self, patient: &str) {
        let ids = self.series_of(patient);
        if let Some(at) = ids.iter().map(|id| self.clock_of_series(id)).max() {
            self.forget(&ids, at);
        }
        self.patients.remove(patient);
    }

    /// The episode that a person means, if it is still open.
    fn meant(&self, reset: bool, back: usize) -> Option<TrackId> {
        let meant = &self.out[answered(&self.out, reset, back)?];
        let id = TrackId { patient: meant.patient.clone(), key: meant.key.clone(), rule: meant.rule.clone() };
        self.open(&id).is_some_and(|episode| episode.start == meant.start_us).then_some(id)
    }

    /// A person has seen it: once until it is raised or escalated again, and not while it is latched.
    fn acknowledge(&mut self, back: usize) {
        let Some(id) = self.meant(false, back) else { return };
        if self.active(&id).is_some_and(|episode| !episode.acknowledged) {
            let at = self.last_evaluation(&id);
            self.change(&id, at, "acknowledged", None, false);
        }
    }

    /// Section 6.9.
    fn reset(&mut self, back: usize) {
        let Some(id) = self.meant(true, back) else { return };
        if self.active(&id).is_some() {
            return;
        }
        let (at, clock) = (self.last_evaluation(&id), self.key_clock(&id, &self.reads(&id)));
        self.end(&id, at, "reset", clock);
        if let Some(state) = self.states.get_mut(&id) {
            state.forget_runs();
        }
    }

    fn last_evaluation(&self, id: &TrackId) -> i64 {
        self.states.get(id).and_then(|state| state.evaluated).expect("what was raised was evaluated")
    }

    // -- rule changes --------------------------------------------------------------------------------------------

    /// Another set, by number. Its transitions come by patient, key, rule id.
    pub(super) fn activate(&mut self, number: u64, set: &Set) {
        if self.number.is_some_and(|newest| newest >= number) {
            return;
        }
        self.number = Some(number);
        let before = self.put_in_force(set);
        let (mut removed, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for old in &before {
            match self.rules.iter().find(|new| new.id == old.id) {
                Some(new) if new.meaning == old.meaning => {}
                Some(new) if new.has_the_keys_of(old) => {
                    changed.insert(old.id.clone());
                }
                _ => {
                    removed.insert(old.id.clone());
                }
            }
        }
        for (_, state) in self.states.iter_mut().filter(|(id, _)| changed.contains(&id.rule)) {
            state.forget_runs();
            state.well = None;
            state.changed = true;
        }
        let ended: BTreeSet<TrackId> = self.states.keys().filter(|id| removed.contains(&id.rule)).cloned().collect();
        let evaluated = self.keys_to_evaluate(&changed);
        for id in ended.union(&evaluated) {
            if !removed.contains(&id.rule) {
                self.evaluate(id);
                continue;
            }
            // No cool-down follows, so it does not matter whose clock it is.
            let at = self.last_evaluation(id);
            self.end_for_its_rule(id, at, &Stamp { source: String::new(), us: at });
            self.states.remove(id);
        }
    }

    /// Gives the rules that were in force before.
    pub(super) fn put_in_force(&mut self, set: &Set) -> Vec<Rc<Rule>> {
        self.set = set.clone();
        let known = |text: &String| self.rules.iter().find(|rule| rule.text == *text).cloned();
        let read = |text: &String| known(text).unwrap_or_else(|| Rc::new(Rule::parse(text)));
        let mut rules: Vec<Rc<Rule>> = set.rules.iter().map(read).collect();
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        self.longest = BTreeMap::new();
        for rule in &rules {
            let view = View {
                rule,
                t: 0,
                signals: &self.signals,
                series: BTreeMap::new(),
                patient: None,
                windows: RefCell::default(),
                dry: true,
            };
            for (signal, width) in view.windows_named() {
                let entry = self.longest.entry(signal).or_insert(0);
                *entry = width.max(*entry);
            }
        }
        std::mem::replace(&mut self.rules, rules)
    }

    /// Of changed rules: every key that was evaluated or could have been, and that reads no stale series.
    fn keys_to_evaluate(&self, changed: &BTreeSet<String>) -> BTreeSet<TrackId> {
        let mut keys: BTreeSet<TrackId> = self.states.keys().filter(|id| changed.contains(&id.rule)).cloned().collect();
        for rule in self.rules.iter().filter(|rule| changed.contains(&rule.id)) {
            for id in self.series.keys().filter(|id| rule.signals.contains(&id.signal)) {
                let key = if rule.single().is_some() { id.key() } else { "-".to_string() };
                keys.insert(TrackId { patient: id.patient.clone(), key, rule: rule.id.clone() });
            }
        }
        keys.retain(|key| {
            let reads = self.reads(key);
            reads.series.iter().all(|id| self.series.get(id).is_some_and(|series| !series.stale))
        });
        keys
    }
}

fn set_or_remove(map: &mut BTreeMap<String, f64>, name: &str, value: Option<f64>) {
    match value {
        Some(value) => map.insert(name.to_string(), value),
        None => map.remove(name),
    };
}
