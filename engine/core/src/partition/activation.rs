//! Another rule set comes into force, at its place in the log.
//!
//! Windows, pending holds and open episodes survive: a rule whose meaning is unchanged keeps everything, a changed one
//! keeps windows and open episodes and is evaluated at once, a removed one ends what it left open. Meaning: semantics
//! section 10.

use std::sync::Arc;

use wardbell_rules::{Rule, RuleSet};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::TransitionKind;

use super::plan::Plan;
use super::time::Bounds;
use super::{Decided, KeyRef, Partition, RecordContext, Retired, Settings, rule_ids};

/// Transitions of an activation are said in this order: patient, key, rule id.
type Place = (String, String, String);

/// What becomes of a rule of the set before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unchanged { index: usize },
    Changed { index: usize },
    Removed,
}

impl Partition {
    /// Number and content hash of the set in force; `None` before the first activation.
    pub fn in_force(&self) -> Option<(u64, &str)> {
        self.state.in_force.as_ref().map(|(number, hash)| (*number, hash.as_str()))
    }

    /// Puts a set in force. An older or equal number changes nothing. Site and clock of the new settings are not taken
    /// over: they are part of every id and of the order itself.
    pub fn activate(&mut self, number: u64, hash: &str, set: &RuleSet, settings: Settings) {
        if self.state.in_force.as_ref().is_some_and(|(newest, _)| *newest >= number) {
            return;
        }
        self.about_to_change_everything();
        self.state.in_force = Some((number, hash.to_owned()));
        let resumed = self.settings.resumed;
        let (site, record_clock) = (self.settings.site.clone(), self.settings.record_clock);
        self.settings = Settings { site, record_clock, resumed, ..settings };
        self.bounds = self
            .state
            .feeds
            .iter()
            .map(|feed| Arc::new(self.settings.bounds(&feed.topic)))
            .collect::<Vec<Arc<Bounds>>>();

        let (old, new) = (self.plan.clone(), Arc::new(Plan::new(set, self.catalogue)));
        let fates: Vec<Fate> = old.rules.iter().map(|rule| fate(&rule.rule, &new)).collect();
        let mut said: Vec<(Place, Vec<Decided>)> = Vec::new();
        let (before, digest) = (std::mem::take(&mut self.decided), self.state.digest);
        self.end_removed(&old, &fates, &mut said);
        self.take_over_states(&old, &new, &fates);
        self.plan = new.clone();
        self.bring_back(&new);
        self.scratch.answers.forget();
        self.rearm_everything();
        self.evaluate_changed(&new, &fates, &mut said);
        said.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.decided = before;
        // They were found in another order than they are said in.
        self.state.digest = digest;
        for decided in said.into_iter().flat_map(|(_, decided)| decided) {
            self.add_to_digest(&decided.content);
            self.decided.push(decided);
        }
    }

    fn place(&self, rule: &str, key: KeyRef) -> Place {
        let patient = self.state.patient_names.name(self.patient_of(key)).to_owned();
        (patient, self.key_text(key).to_owned(), rule.to_owned())
    }

    /// Keys a rule has a state for.
    fn keys(&self, plan: &Plan, rule: usize) -> Vec<KeyRef> {
        let of_rule = &plan.rules[rule].rule;
        if of_rule.is_of_patient() {
            return (0..self.state.patients.len() as u32).map(KeyRef::Patient).collect();
        }
        let of_signal = |(index, series): (u32, &super::Series)| {
            (series.alive && series.signal_index() == of_rule.signals[0]).then_some(KeyRef::Series(index))
        };
        (0..).zip(&self.state.series).filter_map(of_signal).collect()
    }

    fn end_removed(&mut self, old: &Plan, fates: &[Fate], said: &mut Vec<(Place, Vec<Decided>)>) {
        for (rule, _) in fates.iter().enumerate().filter(|(_, fate)| **fate == Fate::Removed) {
            for key in self.keys(old, rule) {
                let clock = self.key_clock_if_any(old, rule, key);
                let state = self.key_state_mut(old, rule, key);
                let at = state.evaluated_at.unwrap_or(clock.0);
                if let Some(step) = state.end(TransitionKind::RuleChanged, at, clock) {
                    self.say(old, rule, key, &step, None);
                    said.push((self.place(&old.rules[rule].rule.id, key), std::mem::take(&mut self.decided)));
                }
                if let Some(ended) = self.key_state_mut(old, rule, key).take_ended() {
                    let rule = old.rules[rule].rule.id.clone();
                    self.state.retired.push(Retired { rule, key, ended });
                }
            }
        }
    }

    /// A rule that was put out of force and comes back goes on where its last episodes ended.
    fn bring_back(&mut self, new: &Plan) {
        for retired in std::mem::take(&mut self.state.retired) {
            let index = new.rules.iter().position(|rule| rule.rule.id == retired.rule);
            match index.filter(|index| self.keys(new, *index).contains(&retired.key)) {
                Some(index) => self.key_state_mut(new, index, retired.key).remember(retired.ended),
                None => self.state.retired.push(retired),
            }
        }
    }

    /// Key states move to the places their rules have in the new plan.
    fn take_over_states(&mut self, old: &Plan, new: &Plan, fates: &[Fate]) {
        let mut old_slot: Vec<Option<usize>> = vec![None; new.rules.len()];
        for (rule, fate) in old.rules.iter().zip(fates) {
            if let Fate::Unchanged { index } | Fate::Changed { index } = fate {
                old_slot[*index] = Some(rule.slot);
            }
        }
        for series in self.state.series.iter_mut().filter(|series| series.alive) {
            series.refit(new.signal(series.signal_index()), |rule| old_slot[rule]);
        }
        for patient in &mut self.state.patients {
            let mut before = std::mem::take(&mut patient.rules);
            let moved = |rule: &usize| {
                let slot = old_slot[*rule].and_then(|slot| before.get_mut(slot));
                slot.map(std::mem::take).unwrap_or_default()
            };
            patient.rules = new.of_patient.iter().map(moved).collect();
        }
        self.state.rule_ids = rule_ids(&new.set);
        for fate in fates {
            if let Fate::Changed { index } = fate {
                for key in self.keys(new, *index) {
                    self.key_state_mut(new, *index, key).start_over();
                }
            }
        }
    }

    /// Timers name rules by their place in the plan, so all are armed anew.
    pub(super) fn rearm_everything(&mut self) {
        self.open.clear();
        for clock in &mut self.state.clocks {
            clock.disarm();
        }
        for index in 0..self.state.series.len() as u32 {
            let series = &mut self.state.series[index as usize];
            if series.alive {
                series.silence.deadline_armed = None;
                series.silence.forget_armed = None;
                series.silence.elsewhere.clear();
                self.arm_silence(index);
            }
        }
        let plan = self.plan.clone();
        self.rearm_holds(&plan);
    }

    /// Changed rules are evaluated at once for every key that reads no stale series; the others at their next reading.
    fn evaluate_changed(&mut self, new: &Plan, fates: &[Fate], said: &mut Vec<(Place, Vec<Decided>)>) {
        let mut concerned: Vec<(Place, usize, KeyRef)> = Vec::new();
        let mut reads = Vec::new();
        for fate in fates {
            let Fate::Changed { index } = *fate else {
                continue;
            };
            for key in self.keys(new, index) {
                self.reads(new, index, key, &mut reads);
                let fresh = |series: &u32| !self.state.series[*series as usize].silence.is_stale;
                if reads.iter().flatten().all(fresh) {
                    concerned.push((self.place(&new.rules[index].rule.id, key), index, key));
                }
            }
        }
        concerned.sort();
        for (place, rule, key) in concerned {
            let (broker, _) = self.key_clock_if_any(new, rule, key);
            self.evaluate(new, rule, key, &RecordContext { feed: 0, clock: 0, offset: 0, broker, basis_us: None });
            if !self.decided.is_empty() {
                said.push((place, std::mem::take(&mut self.decided)));
            }
        }
    }

    /// The key's clock; before the first record there is none.
    pub(super) fn key_clock_if_any(&self, plan: &Plan, rule: usize, key: KeyRef) -> (Micros, u32) {
        if self.state.clocks.is_empty() { (0, 0) } else { self.key_clock(plan, rule, key) }
    }
}

/// A rule that belongs to other keys now has nothing of the old one to take over.
fn fate(old: &Rule, new: &Plan) -> Fate {
    let same_keys = |rule: &Rule| match (rule.is_of_patient(), old.is_of_patient()) {
        (true, true) => true,
        (false, false) => rule.signals == old.signals,
        _ => false,
    };
    match new.rules.iter().position(|rule| rule.rule.id == old.id) {
        Some(index) if new.rules[index].rule.means_the_same(old) => Fate::Unchanged { index },
        Some(index) if same_keys(&new.rules[index].rule) => Fate::Changed { index },
        _ => Fate::Removed,
    }
}
