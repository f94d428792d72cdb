//! Technical alerts: silence, wrong device clocks, overrun buffers, feeds nobody watched; and what is forgotten.
//!
//! No data is not normal: silence is said by its own alert and never clears another. Meaning: semantics sections 2.8 and 7.

use wardbell_schemas::alert::{Priority, TransitionKind};
use wardbell_schemas::{Micros, SECOND};

use super::clocks::{JUMP, Timer};
use super::content::{self, TechnicalStep};
use super::plan::Plan;
use super::series::{Series, Technical, TechnicalOpen};
use super::{Condition, Forgotten, KeyRef, Noticed, Partition, Pending, RecordContext, Replaced};
use crate::episode::Ended;

/// No reading is this late: what ended longer ago cannot begin again.
pub(super) const FORGOTTEN_FOR: Micros = 86_400 * SECOND;
/// What a job may say about itself.
pub(super) const CONDITIONS: [&str; 3] = ["technical/budget", "technical/replay", "technical/sink"];
/// A wrong device clock is said again after this at the earliest.
const CLOCK_AGAIN_AFTER: Micros = 3_600 * SECOND;

impl Technical {
    fn raise(&mut self, at: Micros) -> Option<TechnicalStep> {
        if self.open.is_some() {
            return None;
        }
        let start = self.ended.map_or(at, |(start, end)| at.max(start + 1).max(end + 1));
        self.open = Some(TechnicalOpen { start, raised_at: at, next_number: 1 });
        Some(TechnicalStep { kind: TransitionKind::Raised, at, start, raised_at: at, number: 0 })
    }

    fn end(&mut self, kind: TransitionKind, at: Micros) -> Option<TechnicalStep> {
        let open = self.open.take()?;
        let at = at.max(open.raised_at);
        self.ended = Some((open.start, at));
        Some(TechnicalStep { kind, at, start: open.start, raised_at: open.raised_at, number: open.next_number })
    }
}

impl Partition {
    /// Keeps at most one entry for the deadline and one for forgetting in the timer queue, never too late.
    pub(super) fn arm_silence(&mut self, index: u32) {
        let series = &mut self.state.series[index as usize];
        let clock = &mut self.state.clocks[series.clock as usize];
        let silence = &mut series.silence;
        if let Some(deadline) = silence.deadline.filter(|_| !silence.is_stale)
            && silence.deadline_armed.is_none_or(|armed| armed > deadline + 1)
        {
            silence.deadline_armed = Some(deadline + 1);
            clock.arm(deadline + 1, Timer::Stale { series: index });
        }
        if silence.forget_at != Micros::MAX && silence.forget_armed.is_none_or(|armed| armed > silence.forget_at) {
            silence.forget_armed = Some(silence.forget_at);
            clock.arm(silence.forget_at, Timer::Forget { series: index });
        }
    }

    /// The series' readings come from another source partition now: its timers move there.
    pub(super) fn change_clock(&mut self, index: u32, clock: u32) {
        let series = &mut self.state.series[index as usize];
        series.silence.change_clock(series.clock, clock);
        series.clock = clock;
        series.time.change_clock();
        let patient = series.patient;
        self.arm_silence(index);
        let plan = self.plan.clone();
        self.rearm_holds_of_series(&plan, index);
        self.rearm_holds_of_patient(&plan, patient);
    }

    /// An entry came due on a clock that the series does not run on now.
    pub(super) fn left_behind(&mut self, timer: Timer, clock: u32) {
        let (Timer::Forget { series } | Timer::Stale { series }) = timer else {
            return;
        };
        let elsewhere = &mut self.state.series[series as usize].silence.elsewhere;
        for known in elsewhere.iter_mut().filter(|known| known.clock == clock) {
            match timer {
                Timer::Stale { .. } => known.deadline_armed = None,
                _ => known.forget_armed = None,
            }
        }
    }

    pub(super) fn stale_if_due(&mut self, index: u32, due: Micros) {
        let series = &mut self.state.series[index as usize];
        if !series.alive || series.silence.deadline_armed != Some(due) {
            return;
        }
        series.silence.deadline_armed = None;
        let Some(deadline) = series.silence.deadline.filter(|_| !series.silence.is_stale) else {
            return;
        };
        if deadline + 1 > due {
            self.arm_silence(index);
            return;
        }
        series.silence.is_stale = true;
        self.state.sequence += 1;
        series.silence.stale_since = self.state.sequence;
        let step = series.silence.alert.raise(deadline);
        let patient = series.patient;
        self.state.patients[patient as usize].n_stale += 1;
        self.say_of_series(content::STALE, index, step, None);
    }

    /// A sample ends the silence.
    pub(super) fn end_stale(&mut self, index: u32, kind: TransitionKind, at: Micros, basis_us: Option<Micros>) {
        let series = &mut self.state.series[index as usize];
        if !series.silence.is_stale {
            return;
        }
        series.silence.is_stale = false;
        let step = series.silence.alert.end(kind, at);
        let patient = series.patient;
        self.state.patients[patient as usize].n_stale -= 1;
        self.arm_silence(index);
        self.say_of_series(content::STALE, index, step, basis_us);
    }

    /// Nothing is expected of the series until its next sample: it was switched off on purpose.
    pub(super) fn expect_nothing(&mut self, index: u32, at: Micros, basis_us: Option<Micros>) {
        self.state.series[index as usize].silence.deadline = None;
        self.end_stale(index, TransitionKind::Cleared, at, basis_us);
    }

    /// The patient's devices, or one of them, were switched off on purpose.
    pub(super) fn stand_by(&mut self, patient: &str, device: Option<&str>) {
        let patient = self.patient(patient) as usize;
        self.about_to_change(patient as u32);
        let of_patient = self.state.patients[patient].signals.iter().flat_map(|known| known.series.clone());
        let named = |series: &u32| {
            let series = &self.state.series[*series as usize];
            device.is_none_or(|device| self.state.device_names.name(series.device) == device)
        };
        let mut concerned: Vec<u32> = of_patient.filter(named).collect();
        concerned.sort_by(|a, b| self.state.series[*a as usize].key.cmp(&self.state.series[*b as usize].key));
        for index in concerned {
            let now = self.clock_now(self.state.series[index as usize].clock);
            self.expect_nothing(index, now, None);
        }
    }

    /// The job noticed something about itself, or that it is over.
    pub(super) fn follow_condition(&mut self, condition: &Condition) {
        if condition.rule == content::FEED {
            return self.raise_records_lost(condition);
        }
        let known = |noticed: &Noticed| (&noticed.rule, &noticed.key) == (&condition.rule, &condition.key);
        let place = match self.state.conditions.iter().position(known) {
            Some(place) => place,
            None if !condition.holds || !CONDITIONS.contains(&condition.rule.as_str()) => return,
            None => {
                let (rule, key, priority) = (condition.rule.clone(), condition.key.clone(), condition.priority);
                self.state.conditions.push(Noticed { rule, key, priority, alert: Technical::default() });
                self.state.conditions.len() - 1
            }
        };
        let alert = &mut self.state.conditions[place].alert;
        let step = match condition.holds {
            true => alert.raise(condition.at_us),
            false => alert.end(TransitionKind::Cleared, condition.at_us),
        };
        if let Some(step) = step {
            let noticed = self.state.conditions[place].clone();
            self.say_noticed(&noticed, &step, condition.detail.clone());
        }
    }

    /// A duplicate with a value in a later record moves the deadline and ends a stale alert, like a sample.
    pub(super) fn sign_of_life(&mut self, index: u32, clock_now: Micros, context: &RecordContext) {
        let series = &mut self.state.series[index as usize];
        let signal = self.catalogue.signal(series.signal_index());
        series.expect_next(signal, clock_now);
        self.arm_silence(index);
        self.end_stale(index, TransitionKind::Cleared, clock_now, context.basis_us);
    }

    /// A sample of one device ends the stale alerts of silent ones that measured the same.
    pub(super) fn spoke_for_others(&mut self, index: u32, clock_now: Micros, context: &RecordContext) {
        let own = &self.state.series[index as usize];
        let patient = &self.state.patients[own.patient as usize];
        if patient.n_stale == 0 {
            return;
        }
        let group = patient.signal(own.signal_index()).map_or(&[][..], |known| &known.series);
        let silent = |other: &u32| {
            let series = &self.state.series[*other as usize];
            *other != index && series.method == own.method && series.silence.is_stale
        };
        let mut others: Vec<u32> = group.iter().copied().filter(silent).collect();
        others.sort_by(|a, b| self.state.series[*a as usize].key.cmp(&self.state.series[*b as usize].key));
        for other in others {
            let silence = &mut self.state.series[other as usize].silence;
            let step = silence.alert.end(TransitionKind::Superseded, clock_now);
            self.say_of_series(content::STALE, other, step, context.basis_us);
        }
    }

    /// `technical/clock`: raised at the first reading whose time is replaced, cleared by the first at its event time.
    pub(super) fn device_clock(&mut self, reading: &Pending, context: &RecordContext) {
        if reading.replaced.is_none() && self.n_clock_alerts == 0 {
            return;
        }
        let series = &self.state.series[reading.series as usize];
        let (patient, device) = (series.patient, series.device);
        let now = self.clock_now(context.clock);
        let Some(known) = self.state.patients[patient as usize].devices.iter_mut().find(|known| known.device == device)
        else {
            return;
        };
        let step = if reading.replaced.is_none() {
            known.alert.end(TransitionKind::Cleared, now)
        } else if reading.said && known.newest_raise.is_none_or(|before| now - before >= CLOCK_AGAIN_AFTER) {
            let step = known.alert.raise(now);
            if step.is_some() {
                known.newest_raise = Some(now);
                known.newest_raise_clock = context.clock;
            }
            step
        } else {
            None
        };
        let Some(step) = step else {
            return;
        };
        match reading.replaced {
            Some(_) => self.n_clock_alerts += 1,
            None => self.n_clock_alerts -= 1,
        }
        let key = format!("{}/-/-", self.state.device_names.name(device));
        let what = match reading.replaced {
            Some(Replaced::Future) => "is ahead of the broker's",
            Some(Replaced::Epoch) => "stands at its reset date",
            Some(Replaced::Slow | Replaced::Coarse) => "is behind the broker's",
            None => "is right again",
        };
        let message = match reading.replaced {
            Some(_) => format!(
                "clock of device {} {what}: its readings count at broker time",
                self.state.device_names.name(device)
            ),
            None => format!("clock of device {} {what}", self.state.device_names.name(device)),
        };
        self.say_technical(content::CLOCK, patient, &key, Priority::Low, &step, message, None, context.basis_us);
    }

    /// `technical/overrun`: the device is faster than the buffer is long.
    pub(super) fn follow_overrun(&mut self, index: u32, overrun: bool, now: Micros, context: &RecordContext) {
        let plan = self.plan.clone();
        let series = &mut self.state.series[index as usize];
        let step = if overrun {
            series.overrun.raise(now)
        } else if series.overrun.open.is_some() && series.longest_window_is_known(plan.signal(series.signal_index())) {
            series.overrun.end(TransitionKind::Cleared, now)
        } else {
            None
        };
        self.say_of_series(content::OVERRUN, index, step, context.basis_us);
    }

    /// Pending stale deadlines move with a clock that nobody watched: the silence was the feed's, not the devices'.
    pub(super) fn move_deadlines(&mut self, clock: u32, distance: Micros) {
        self.about_to_change_everything();
        for series in self.state.series.iter_mut().filter(|series| series.alive && series.clock == clock) {
            if !series.silence.is_stale
                && let Some(deadline) = &mut series.silence.deadline
            {
                *deadline += distance;
            }
        }
    }

    /// Every stored value of a clock that was set back moves by the difference.
    pub(super) fn set_clock_back(&mut self, clock: u32, to: Micros, distance: Micros) {
        self.about_to_change_everything();
        let plan = self.plan.clone();
        self.state.clocks[clock as usize].now = Some(to);
        self.state.clocks[clock as usize].disarm();
        self.state.clocks[clock as usize].calm_from += distance;
        for index in 0..self.state.series.len() as u32 {
            let series = &mut self.state.series[index as usize];
            series.silence.elsewhere.retain(|known| known.clock != clock);
            if !series.alive || series.clock != clock {
                continue;
            }
            series.time.move_clock(distance);
            if let Some(deadline) = &mut series.silence.deadline {
                *deadline += distance;
            }
            if series.silence.forget_at != Micros::MAX {
                series.silence.forget_at += distance;
            }
            series.silence.deadline_armed = None;
            series.silence.forget_armed = None;
            self.arm_silence(index);
        }
        for patient in 0..self.state.patients.len() as u32 {
            for device in &mut self.state.patients[patient as usize].devices {
                if device.newest_raise_clock == clock
                    && let Some(raise) = &mut device.newest_raise
                {
                    *raise += distance;
                }
            }
        }
        let of_series = self.state.series.iter_mut().flat_map(|series| &mut series.rules);
        let of_patients = self.state.patients.iter_mut().flat_map(|patient| &mut patient.rules);
        of_series.chain(of_patients).for_each(|state| state.move_clock(clock, distance));
        for retired in &mut self.state.retired {
            retired.ended.move_clock(clock, distance);
        }
        self.rearm_holds(&plan);
    }

    pub(super) fn raise_feed_alert(&mut self, clock: u32, at: Micros, distance: Micros) {
        let state = &mut self.state.clocks[clock as usize];
        state.calm_from = at + JUMP;
        let step = state.feed_alert.raise(at);
        let way = if distance > 0 { "was not watched for" } else { "was set back by" };
        let message = format!(
            "source {} {way} {}",
            state.name,
            wardbell_schemas::duration::print(distance.abs() / SECOND * SECOND)
        );
        self.say_of_feed(clock, step, message);
    }

    /// The offsets of a source begin again: what lies between its old and its new records is not known.
    pub(super) fn raise_made_anew(&mut self, clock: u32) {
        let at = self.clock_now(clock);
        let state = &mut self.state.clocks[clock as usize];
        state.calm_from = at + JUMP;
        let step = state.feed_alert.raise(at);
        let message = format!("source {} was made anew: its offsets begin again", state.name);
        self.say_of_feed(clock, step, message);
    }

    /// Records of a source were deleted before anybody had read them. It is the feed's alert and ends as that does.
    fn raise_records_lost(&mut self, condition: &Condition) {
        let place = condition.key.rsplit_once('/').and_then(|(topic, number)| Some((topic, number.parse().ok()?)));
        let Some((topic, partition)) = place.filter(|_| condition.holds && !self.settings.record_clock) else {
            return;
        };
        let feed = self.feed(topic, partition);
        let clock = self.state.feeds[feed as usize].clock;
        let state = &mut self.state.clocks[clock as usize];
        let at = state.now.unwrap_or(condition.at_us);
        state.calm_from = at + JUMP;
        let step = state.feed_alert.raise(at);
        self.say_of_feed(clock, step, condition.detail.clone());
    }

    pub(super) fn end_feed_alert(&mut self, clock: u32, at: Micros) {
        let state = &mut self.state.clocks[clock as usize];
        let step = state.feed_alert.end(TransitionKind::Cleared, at);
        let message = format!("source {} is watched again", state.name);
        self.say_of_feed(clock, step, message);
    }

    pub(super) fn forget_if_due(&mut self, index: u32, due: Micros) {
        let series = &mut self.state.series[index as usize];
        if !series.alive || series.silence.forget_armed != Some(due) {
            return;
        }
        series.silence.forget_armed = None;
        if series.silence.forget_at > due {
            self.arm_silence(index);
            return;
        }
        self.forget(&[index], due);
    }

    /// The patient left: everything of it is forgotten at once.
    pub(super) fn discharge(&mut self, name: &str) {
        let patient = self.patient(name) as usize;
        self.about_to_change(patient as u32);
        let series: Vec<u32> =
            self.state.patients[patient].signals.iter().flat_map(|known| known.series.clone()).collect();
        let now = series.iter().map(|series| self.clock_now(self.state.series[*series as usize].clock)).max();
        if let Some(now) = now {
            self.forget(&series, now);
        }
        let known = &mut self.state.patients[patient];
        known.limits.clear();
        known.attributes.clear();
    }

    /// A reading that is sent again must not begin an episode that a sink has seen: its id would be the same.
    fn keep_end(&mut self, plan: &Plan, rule: usize, key: KeyRef, mut ended: Box<Ended>, at: Micros) {
        ended.forget_cool_down();
        match key {
            KeyRef::Patient(_) => self.key_state_mut(plan, rule, key).remember(ended),
            KeyRef::Series(index) => {
                let series = &self.state.series[index as usize];
                let (patient, key) = (series.patient, series.key.clone());
                self.state.forgotten.retain(|known| at - known.ended.at() < FORGOTTEN_FOR);
                self.state.forgotten.push(Forgotten { rule: plan.rules[rule].rule.id.clone(), patient, key, ended });
            }
        }
    }

    /// The series was known before, not long ago.
    pub(super) fn remember_forgotten(&mut self, series: &mut Series) {
        let plan = self.plan.clone();
        let of_series = &plan.signal(series.signal_index()).of_series;
        for (slot, rule) in of_series.iter().enumerate() {
            let rule = &plan.rules[*rule].rule.id;
            let same =
                |known: &Forgotten| (known.patient, &known.key, &known.rule) == (series.patient, &series.key, rule);
            if let Some(known) = self.state.forgotten.iter().rfind(|known| same(known)) {
                series.rules[slot].remember(known.ended.clone());
            }
        }
    }

    /// Forgets series; what they left open ends as `expired`, in the order of rule ids and keys.
    fn forget(&mut self, forgotten: &[u32], at: Micros) {
        let plan = self.plan.clone();
        let Some(first) = forgotten.first() else {
            return;
        };
        let patient = self.state.series[*first as usize].patient;
        enum Ending {
            Rule(usize, KeyRef),
            Stale(u32),
            Overrun(u32),
        }
        let mut endings: Vec<(String, String, Ending)> = Vec::new();
        for index in forgotten {
            let series = &self.state.series[*index as usize];
            for rule in &plan.signal(series.signal_index()).of_series {
                let id = plan.rules[*rule].rule.id.clone();
                endings.push((id, series.key.clone(), Ending::Rule(*rule, KeyRef::Series(*index))));
            }
            endings.push((content::STALE.to_owned(), series.key.clone(), Ending::Stale(*index)));
            endings.push((content::OVERRUN.to_owned(), series.key.clone(), Ending::Overrun(*index)));
        }
        // A patient key ends when all series of its rule's signals are gone.
        for rule in &plan.of_patient {
            let known = &self.state.patients[patient as usize];
            let mut series = plan.rules[*rule].rule.signals.iter().filter_map(|signal| known.signal(*signal));
            if series.all(|known| known.series.iter().all(|index| forgotten.contains(index))) {
                let id = plan.rules[*rule].rule.id.clone();
                endings.push((id, "-".to_owned(), Ending::Rule(*rule, KeyRef::Patient(patient))));
            }
        }
        endings.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        for (.., ending) in endings {
            match ending {
                Ending::Rule(rule, key) => {
                    let state = self.key_state_mut(&plan, rule, key);
                    // No cool-down follows, so it does not matter whose clock it is.
                    let step = state.end(TransitionKind::Expired, at, (at, 0));
                    if let Some(step) = step {
                        self.say(&plan, rule, key, &step, None);
                    }
                    let state = std::mem::take(self.key_state_mut(&plan, rule, key));
                    if let Some(ended) = state.into_ended() {
                        self.keep_end(&plan, rule, key, ended, at);
                    }
                }
                Ending::Stale(index) => {
                    let series = &mut self.state.series[index as usize];
                    if std::mem::take(&mut series.silence.is_stale) {
                        self.state.patients[patient as usize].n_stale -= 1;
                    }
                    let step = series.silence.alert.end(TransitionKind::Expired, at);
                    self.say_of_series(content::STALE, index, step, None);
                }
                Ending::Overrun(index) => {
                    let step = self.state.series[index as usize].overrun.end(TransitionKind::Expired, at);
                    self.say_of_series(content::OVERRUN, index, step, None);
                }
            }
        }
        self.state
            .retired
            .retain(|retired| !matches!(retired.key, KeyRef::Series(index) if forgotten.contains(&index)));
        let mut is_read_elsewhere = false;
        for index in forgotten {
            let series = &mut self.state.series[*index as usize];
            series.alive = false;
            let key = (series.patient, series.device, series.signal, series.method);
            let signal = series.signal;
            self.series_by_key.remove(&key);
            self.ahead.forget();
            self.state.free_series.push(*index);
            let known = &mut self.state.patients[patient as usize];
            let Some(place) = known.signals.iter().position(|known| known.signal == signal) else {
                continue;
            };
            let of_signal = &mut known.signals[place];
            of_signal.series.retain(|series| series != index);
            if of_signal.primary == Some(*index) {
                // The one that had its first sample earliest takes over.
                let first = |series: &u32| self.state.series[*series as usize].first_sample;
                let rest = of_signal.series.iter().filter(|series| first(series).is_some());
                of_signal.primary = rest.min_by_key(|series| first(series)).copied();
                is_read_elsewhere = true;
            }
        }
        if is_read_elsewhere {
            let plan = self.plan.clone();
            self.rearm_holds_of_patient(&plan, patient);
        }
    }
}
