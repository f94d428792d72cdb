//! One series: its samples and windows, the rhythm it keeps, and whether it has fallen silent.

use serde::{Deserialize, Serialize};
use wardbell_schemas::catalogue::{Signal, SignalIndex};
use wardbell_schemas::reading::{Policies, Policy, Reason};
use wardbell_schemas::{Micros, SECOND};

use super::plan::SignalPlan;
use super::time::SeriesTime;
use crate::episode::KeyState;
use crate::window::{Reading, Running, Samples};

/// A series is forgotten this long after its last sample.
const FORGOTTEN_AFTER: Micros = 7 * 86_400 * SECOND;

/// The intervals between a series' samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intervals {
    /// The last three that count, oldest first.
    last: [Micros; 3],
    /// How many of them there are.
    known: u8,
    /// Closed by the newest sample; counts from the next accepted reading on.
    closing: Option<Micros>,
}

impl Intervals {
    fn count_closing(&mut self) {
        if let Some(interval) = self.closing.take() {
            self.last = [self.last[1], self.last[2], interval];
            self.known = (self.known + 1).min(3);
        }
    }

    /// The expected interval `e`; `None`: not known yet (infinite).
    pub fn expected(&self, typical_us: Micros) -> Option<Micros> {
        (self.known == 3).then(|| median(self.last).max(typical_us))
    }

    /// What silence is measured by: the closing interval counts at once.
    fn longest_expected(&self, typical_us: Micros) -> Micros {
        let [_, second, third] = self.last;
        let (last, known) = match self.closing {
            Some(closing) => ([second, third, closing], self.known + 1),
            None => (self.last, self.known),
        };
        // Those that are not known yet are 0.
        let rhythm = if known >= 3 { median(last) } else { last[0].max(last[1]).max(last[2]) };
        rhythm.max(typical_us)
    }
}

fn median([a, b, c]: [Micros; 3]) -> Micros {
    a.max(b).min(a.min(b).max(c))
}

/// A technical alert of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Technical {
    pub open: Option<TechnicalOpen>,
    /// Start and end of the episode before.
    pub ended: Option<(Micros, Micros)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TechnicalOpen {
    pub start: Micros,
    pub raised_at: Micros,
    pub next_number: u32,
}

/// Where a reading stood in its source, with dense feed number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub feed: u32,
    pub offset: i64,
    pub index: u32,
}

/// Silence and forgetting, on the series' clock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Silence {
    /// Last instant at which a sample is in time; `None`: no expectation.
    pub deadline: Option<Micros>,
    pub is_stale: bool,
    /// When it went stale, in the order of samples and silences of the partition.
    pub stale_since: u64,
    pub alert: Technical,
    pub forget_at: Micros,
    /// Due value of the entry in the timer queue.
    #[serde(skip)]
    pub deadline_armed: Option<Micros>,
    #[serde(skip)]
    pub forget_armed: Option<Micros>,
    /// The same of clocks that the series ran on before: their entries still wait there.
    #[serde(skip)]
    pub elsewhere: Vec<Elsewhere>,
}

/// Entries of a series in the timer queue of a clock that it does not run on now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere {
    pub clock: u32,
    pub deadline_armed: Option<Micros>,
    pub forget_armed: Option<Micros>,
}

impl Silence {
    /// The series runs on another clock from now on. It may come back: a source that spreads a patient's records over its
    /// partitions changes with every record, and each time must not leave entries behind.
    pub fn change_clock(&mut self, from: u32, to: u32) {
        let (deadline_armed, forget_armed) = (self.deadline_armed.take(), self.forget_armed.take());
        if deadline_armed.is_some() || forget_armed.is_some() {
            self.elsewhere.push(Elsewhere { clock: from, deadline_armed, forget_armed });
        }
        if let Some(place) = self.elsewhere.iter().position(|known| known.clock == to) {
            let back = self.elsewhere.swap_remove(place);
            (self.deadline_armed, self.forget_armed) = (back.deadline_armed, back.forget_armed);
        }
    }
}

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Series {
    pub patient: u32,
    pub device: u32,
    pub signal: u16,
    pub method: u32,
    /// `device/signal/method`
    pub key: String,
    /// Clock of the source partition of its newest reading.
    pub clock: u32,
    pub time: SeriesTime,
    pub samples: Samples,
    #[serde(skip)]
    pub running: Vec<Running>,
    pub intervals: Intervals,
    /// Newest `t` of an accepted reading.
    pub newest_t: Option<Micros>,
    /// Its first and its newest sample in the order of samples and silences of the partition; `None`: none yet.
    pub first_sample: Option<u64>,
    pub newest_sample: u64,
    pub silence: Silence,
    pub overrun: Technical,
    /// By the slots of the signal's rules.
    pub rules: Vec<KeyState>,
    /// The newest accepted reading.
    pub newest_source: Option<Position>,
    pub newest_event: Micros,
    pub newest_reason: u8,
    pub newest_policies: Policies,
    /// False once forgotten; the place is used again.
    #[serde(skip)]
    pub alive: bool,
}

impl Series {
    pub fn signal_index(&self) -> SignalIndex {
        SignalIndex(self.signal)
    }

    /// Makes room for the windows and rules of a plan.
    pub fn fit(&mut self, plan: &SignalPlan) {
        self.running = plan.windows.iter().map(|_| Running::default()).collect();
        self.rules.resize_with(plan.of_series.len(), KeyState::default);
    }

    /// Reads a word of every cache line that readings need: see `ahead.rs`.
    #[inline]
    pub fn touch(&self) -> u64 {
        let instants = self.newest_event ^ self.intervals.last[0] ^ self.intervals.last[2] ^ self.silence.forget_at;
        let options = self.newest_t.is_some() ^ self.overrun.open.is_some() ^ self.silence.alert.open.is_some();
        let counts = self.newest_sample ^ self.silence.stale_since ^ self.rules.len() as u64 ^ u64::from(self.clock);
        self.time.touch() ^ self.samples.touch() ^ instants as u64 ^ counts ^ u64::from(options)
    }

    /// Writes where the next reading will be written, and takes it back.
    pub fn touch_next(&mut self) {
        self.time.touch_next();
        self.samples.touch_next();
    }

    /// The same for what those lines point to.
    pub fn touch_inside(&self) -> u64 {
        let inside = self.time.touch_inside() ^ self.samples.touch_inside();
        let inside = self.rules.iter().fold(inside, |touched, state| touched ^ state.touch());
        self.running.iter().fold(inside, |touched, running| touched ^ running.touch(&self.samples))
    }

    /// The deadline and the time of forgetting, counted from `clock`.
    pub fn expect_next(&mut self, signal: &Signal, clock: Micros) {
        let stale_us = signal.stale_after_us;
        if stale_us > 0 {
            let rhythm = 3 * self.intervals.longest_expected(signal.typical_interval_us);
            self.silence.deadline = Some(clock + stale_us.max((10 * stale_us).min(rhythm)));
        }
    }

    /// Counts forgetting from `clock`. Without expectation of staleness a series is forgotten at discharge only.
    pub fn remember_until(&mut self, signal: &Signal, clock: Micros) {
        self.silence.forget_at = if signal.stale_after_us == 0 {
            Micros::MAX
        } else {
            clock.saturating_add(FORGOTTEN_AFTER.max(signal.stale_after_us))
        };
    }

    /// Takes an accepted reading into samples, windows and intervals; how long it covers is found here. Gives whether a
    /// sample that the longest window still needs had to go.
    pub fn accept(&mut self, reading: &Reading, signal: &Signal, plan: &SignalPlan, samples_max: usize) -> bool {
        let t = reading.t;
        self.intervals.count_closing();
        let expected = self.intervals.expected(signal.typical_interval_us).unwrap_or(signal.typical_interval_us);
        let cover_us = match signal.stale_after_us {
            0 => 2 * expected,
            stale => (2 * expected).min(stale),
        };
        if reading.value.is_some()
            && let Some(before) = self.samples.newest_sample(true)
            && t > before
        {
            self.intervals.closing = Some(t - before);
        }
        let accepted = self.samples.accept(&Reading { cover_us, ..*reading });
        if accepted == crate::window::Accepted::Inside {
            self.running.iter_mut().for_each(Running::reset);
        }
        self.newest_t = self.newest_t.max(Some(t));
        self.evict(plan, samples_max)
    }

    /// Puts a corrected value in the place of the sample with this `t`, or takes the sample out. Gives whether it was held.
    pub fn correct(&mut self, reading: &Reading) -> bool {
        let held = self.samples.correct(reading);
        self.running.iter_mut().for_each(Running::reset);
        held
    }

    /// Lets go what no window needs, and what is above the cap. The two newest samples always stay.
    fn evict(&mut self, plan: &SignalPlan, samples_max: usize) -> bool {
        let edge = self.newest_t.unwrap_or(Micros::MIN).saturating_sub(plan.longest_us);
        let mut overrun = false;
        while self.samples.len() > 2
            && let Some(oldest) = self.samples.oldest().copied()
        {
            let needed = oldest.t > edge;
            if needed && self.samples.len() <= samples_max {
                break;
            }
            overrun |= needed;
            let index = self.samples.base();
            for (running, window) in self.running.iter_mut().zip(&plan.windows) {
                running.before_evict(index, &oldest, window);
            }
            self.samples.evict();
        }
        self.samples.prune_blanks(edge);
        overrun
    }

    /// Key states of a new set's rules: each follows its rule from where `kept` says it was.
    pub fn refit(&mut self, plan: &SignalPlan, kept: impl Fn(usize) -> Option<usize>) {
        let mut before = std::mem::take(&mut self.rules);
        self.fit(plan);
        for (state, rule) in self.rules.iter_mut().zip(&plan.of_series) {
            if let Some(state_before) = kept(*rule).and_then(|slot| before.get_mut(slot)) {
                *state = std::mem::take(state_before);
            }
        }
    }

    /// The longest window can be answered at the series' newest `t`.
    pub fn longest_window_is_known(&self, plan: &SignalPlan) -> bool {
        self.newest_t.is_some_and(|t| t - plan.longest_us >= self.samples.held_from())
    }

    /// Reasons and policies attached to the newest reading.
    pub fn flags(&self) -> Vec<String> {
        let reason = Reason::from_code(self.newest_reason).filter(|reason| *reason != Reason::None).map(Reason::name);
        reason.into_iter().chain(self.newest_policies.iter().map(Policy::name)).map(str::to_owned).collect()
    }
}
