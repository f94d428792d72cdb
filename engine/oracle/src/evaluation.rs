//! Rules over a key: what it reads, one evaluation, and what follows from it (sections 4.2, 6 and 7.2).

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::World;
use super::condition::View;
use super::episode::{Reads, Span, Stamp, TrackId};
use super::rule::{PRIORITIES, Verdict};
use super::series::SeriesId;

impl World<'_> {
    /// The readings of one `t` are accepted: each rule and key concerned, once, by rule id, patient, key.
    pub(super) fn evaluate_all(&mut self, touched: &[&SeriesId]) {
        let mut concerned: BTreeSet<(String, String, String)> = BTreeSet::new();
        for id in touched {
            for rule in &self.rules {
                match rule.single() {
                    Some(signal) if signal == id.signal => {
                        concerned.insert((rule.id.clone(), id.patient.clone(), id.key()));
                    }
                    None if rule.signals.contains(&id.signal) => {
                        concerned.insert((rule.id.clone(), id.patient.clone(), "-".to_string()));
                    }
                    _ => {}
                }
            }
        }
        for (rule, patient, key) in concerned {
            self.evaluate(&TrackId { patient, key, rule });
        }
    }

    /// All series of the rule's signals that belong to the key, read or not.
    fn all_series(&self, id: &TrackId) -> Vec<SeriesId> {
        let rule = self.rule(&id.rule);
        let of_key = |s: &&SeriesId| rule.signals.contains(&s.signal) && (rule.single().is_none() || s.key() == id.key);
        self.of_patient(&id.patient).map(|(s, _)| s).filter(of_key).cloned().collect()
    }

    pub(super) fn reads(&self, id: &TrackId) -> Reads {
        let rule = self.rule(&id.rule);
        let series: Vec<SeriesId> = match rule.single() {
            Some(_) => self.all_series(id),
            None => {
                let primary = |s: &String| self.primary.get(&(id.patient.clone(), s.clone())).cloned();
                rule.signals.iter().filter_map(primary).collect()
            }
        };
        let expected = |s: &SeriesId| {
            let typical = self.signal(&s.signal).typical_interval_us;
            self.series.get(s).and_then(|series| series.expected_interval(typical))
        };
        let gap = rule.gap.or_else(|| series.iter().filter_map(expected).max().map(|e| 2 * e));
        let stale: Vec<i64> = series.iter().map(|s| self.signal(&s.signal).stale_after_us).collect();
        let longest = stale.iter().copied().max().filter(|_| !stale.contains(&0));
        let restart_above = match (gap, longest) {
            (Some(gap), Some(longest)) => Some(gap.max(longest)),
            _ => None,
        };
        Reads { series, gap, restart_above }
    }

    /// The clocks of what a key reads, one of them perhaps moved. Where it reads nothing yet: of all its series.
    pub(super) fn clocks_of(&self, id: &TrackId, reads: &Reads, moved: Option<(&str, i64)>) -> Vec<(String, i64)> {
        let all = self.all_series(id);
        let series = if reads.series.is_empty() { &all } else { &reads.series };
        let sources: BTreeSet<String> =
            series.iter().filter_map(|s| self.series.get(s)).map(|series| series.source.clone()).collect();
        sources
            .into_iter()
            .map(|source| match moved {
                Some((name, us)) if name == source => (source, us),
                _ => {
                    let us = self.clock(&source);
                    (source, us)
                }
            })
            .collect()
    }

    pub(super) fn key_clock(&self, id: &TrackId, reads: &Reads) -> Stamp {
        let clocks = self.clocks_of(id, reads, None);
        let (source, us) = clocks.into_iter().min_by_key(|(_, us)| *us).expect("a key has a series");
        Stamp { source, us }
    }

    /// One evaluation at the key's `T`; nothing before the first accepted reading.
    pub(super) fn evaluate(&mut self, id: &TrackId) {
        let newest = self.all_series(id).iter().filter_map(|s| self.series.get(s)?.newest_t()).max();
        let before = self.states.get(id).and_then(|state| state.evaluated);
        let Some(t) = newest.max(before) else {
            return;
        };
        let reads = self.reads(id);
        let clock = self.key_clock(id, &reads);
        let (verdict, clear) = self.ask(id, &reads, t);
        let state = self.states.entry(id.clone()).or_default();
        state.evaluated = Some(t);
        state.extend_runs(verdict, t, &clock, &reads);
        state.well = (clear == Some(true)).then(|| Span::extended(state.well, t, reads.gap));
        let changed = std::mem::take(&mut state.changed);

        if changed && clear == Some(true) && self.active(id).is_some() {
            self.end_for_its_rule(id, t, &clock);
        }
        self.raise_by_reading(id, verdict, t);
        self.deescalate(id, verdict, t, &reads);
        self.clear(id, clear, t, &reads, &clock);
        self.raise_by_timer(id, &reads, &clock);
        self.supersede_episodes(id, t, &clock);
        self.watch_track(id);
    }

    fn ask(&self, id: &TrackId, reads: &Reads, t: i64) -> (Verdict, Option<bool>) {
        let rule = self.rule(&id.rule);
        let series_of = |signal: &String| {
            let read = reads.series.iter().find(|s| s.signal == *signal);
            (signal.clone(), read.and_then(|s| self.series.get(s)))
        };
        let view = View {
            rule,
            t,
            signals: &self.signals,
            series: rule.signals.iter().map(series_of).collect(),
            patient: self.patients.get(&id.patient),
            windows: RefCell::default(),
            dry: false,
        };
        let verdict = view.raise();
        (verdict, view.clear(verdict))
    }

    /// Section 10.
    pub(super) fn end_for_its_rule(&mut self, id: &TrackId, at: i64, clock: &Stamp) {
        self.end(id, at, "rule_changed", clock.clone());
        if let Some(state) = self.states.get_mut(id) {
            state.forget_runs();
        }
    }

    /// Sections 6.2 and 6.4.
    fn raise_by_reading(&mut self, id: &TrackId, verdict: Verdict, t: i64) {
        let Verdict::True(said) = verdict else { return };
        let above = self.active(id).map(|episode| episode.priority);
        let Some(state) = self.states.get(id) else { return };
        let complete = PRIORITIES.into_iter().zip(&state.runs).filter(|(priority, run)| {
            *priority <= said
                && above.is_none_or(|above| *priority > above)
                && run.as_ref().is_some_and(|run| t >= self.due(id, *priority, run).0)
        });
        if let Some(priority) = complete.map(|(priority, _)| priority).max() {
            self.raise_or_escalate(id, priority, t);
        }
    }

    /// Sections 6.3 and 6.4, looked at after an evaluation: the highest for which both conditions hold.
    fn raise_by_timer(&mut self, id: &TrackId, reads: &Reads, clock: &Stamp) {
        loop {
            let holds = self.holds(id, reads).into_iter().filter(|(due, _, _)| *due <= clock.us);
            let Some((_, at, priority)) = holds.max_by_key(|(_, _, priority)| *priority) else {
                return;
            };
            self.raise_or_escalate(id, priority, at);
        }
    }

    /// Section 6.5.
    fn deescalate(&mut self, id: &TrackId, verdict: Verdict, t: i64, reads: &Reads) {
        let clear_hold = self.rule(&id.rule).clear_hold;
        let above = self.active(id).map(|episode| episode.priority);
        let Some(state) = self.states.get_mut(id) else { return };
        match (above, verdict) {
            (Some(above), Verdict::True(said)) if said < above => {
                let lower = Span::extended(state.lower, t, reads.gap);
                state.lower = Some(lower);
                if t - lower.first >= clear_hold {
                    state.lower = None;
                    self.change(id, t, "deescalated", Some(said), false);
                }
            }
            _ => state.lower = None,
        }
    }

    /// Sections 6.6 and 6.9.
    fn clear(&mut self, id: &TrackId, clear: Option<bool>, t: i64, reads: &Reads, clock: &Stamp) {
        let (clear_hold, latching) = (self.rule(&id.rule).clear_hold, self.rule(&id.rule).latching);
        let active = self.active(id).is_some();
        let Some(state) = self.states.get_mut(id) else { return };
        if !active || clear != Some(true) {
            state.clearing = None;
            return;
        }
        let clearing = Span::extended(state.clearing, t, reads.gap);
        state.clearing = Some(clearing);
        if t - clearing.first < clear_hold {
            return;
        }
        state.forget_runs();
        if latching {
            self.change(id, t, "latched", None, true);
        } else {
            self.end(id, t, "cleared", clock.clone());
        }
    }

    /// Section 7.2, the open episodes of stale series, after this series' own transitions.
    fn supersede_episodes(&mut self, id: &TrackId, t: i64, clock: &Stamp) {
        let rule = self.rule(&id.rule);
        let (clear_hold, latching) = (rule.clear_hold, rule.latching);
        if rule.single().is_none() {
            return;
        }
        let Some(well) = self.states.get(id).and_then(|state| state.well) else {
            return;
        };
        if t - well.first < clear_hold {
            return;
        }
        let Some(own) = self.all_series(id).into_iter().next() else {
            return;
        };
        for other in self.swapped(&own, true) {
            let other = other.track(&id.rule);
            if self.active(&other).is_none() {
                continue;
            }
            if latching {
                self.change(&other, t, "latched", None, true);
            } else {
                self.end(&other, t, "superseded", clock.clone());
            }
            if let Some(state) = self.states.get_mut(&other) {
                state.forget_runs();
            }
        }
    }
}
