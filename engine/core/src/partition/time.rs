//! Effective time: when a reading counts as measured, whatever its device's clock says.
//!
//! Outcomes are looked for in the order of the semantics (2.6): duplicate or conflict, epoch, future, late. A wrong clock
//! is replaced by broker time and said so; it never moves anybody else's time. All state here is per series.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use wardbell_schemas::reading::Comparator;
use wardbell_schemas::{Micros, SECOND};

use crate::window::push_back;

/// 2001-01-01T00:00:00Z: a device clock before this stands at its reset date.
const EPOCH_BEFORE: Micros = 978_307_200 * SECOND;

/// What a connector allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    pub lateness_us: Micros,
    pub skew_us: Micros,
    /// Off where time 0 is 1970 (rule tests).
    pub epoch_check: bool,
    /// The connector declares stamps coarser than its readings: every repeated stamp of a later record is a sample.
    pub coarse: bool,
    /// Beginnings (UTC) of days to which clocks of this connector's devices are reset.
    pub reset_days: Vec<Micros>,
}

impl Bounds {
    /// A device clock that stands at, or runs from, its reset date.
    fn is_epoch(&self, event: Micros) -> bool {
        let on_reset_day = |day: &Micros| event >= *day && event - *day < 86_400 * SECOND;
        (self.epoch_check && event < EPOCH_BEFORE) || self.reset_days.iter().any(on_reset_day)
    }
}

/// Why a reading's `t` is not its event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replaced {
    Future,
    Epoch,
    Slow,
    Coarse,
}

/// What was decided about a reading's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    At {
        t: Micros,
        replaced: Option<Replaced>,
        /// The replacing did not begin with a coarse stamp, so it is said by `technical/clock`.
        said: bool,
    },
    Duplicate {
        /// It stands in a later record than the accepted reading, so it is a sign of life.
        later_record: bool,
    },
    Conflict,
    Late,
}

/// A reading that was accepted, for as long as a repetition could come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    event: Micros,
    value: Option<i64>,
    comparator: Comparator,
    t: Micros,
    /// The source clock at acceptance.
    clock: Micros,
    record: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SeriesTime {
    /// Newest `t`, readings decided earlier in the same record included.
    newest: Option<Micros>,
    replacing: Option<(Replaced, bool)>,
    memory: VecDeque<Remembered>,
    newest_event: Option<Micros>,
    /// Newest event and broker times of the last records in a row that were late, oldest first; at most three.
    late_row: VecDeque<(Micros, Micros)>,
    /// Newest event time of the record before.
    record_before: Option<Micros>,
    /// The record in which the slow-clock rule holds.
    slow_record: Option<u64>,
    /// A stored clock value was moved, or comes from another clock: the memory is not in order of age any more.
    #[serde(default)]
    disordered: bool,
    /// The record in which readings were replaced last, and how many.
    replaced_in: (u64, i64),
}

impl SeriesTime {
    /// Looks at a record as a whole before its readings: only its newest event time counts for the slow-clock rule.
    pub fn begin_record(&mut self, newest: Micros, broker: Micros, clock: Micros, record: u64, bounds: &Bounds) {
        self.forget_old(clock, bounds);
        if self.record_before == Some(newest) {
            return;
        }
        self.record_before = Some(newest);
        let late = newest < broker - bounds.lateness_us && !bounds.is_epoch(newest);
        if !late || self.remembered(newest).is_some() {
            self.late_row.clear();
            return;
        }
        if self.late_row.back().is_some_and(|(event, _)| *event >= newest) {
            self.late_row.clear();
        }
        self.late_row.push_back((newest, broker));
        if self.late_row.len() > 3 {
            self.late_row.pop_front();
        }
        if let (3, Some(first)) = (self.late_row.len(), self.late_row.front()) {
            let (event, clock) = (newest - first.0, broker - first.1);
            if 4 * clock >= 3 * event && 3 * clock <= 4 * event {
                self.slow_record = Some(record);
            }
        }
    }

    /// Decides one reading, in the record's order.
    pub fn decide(
        &mut self,
        event: Micros,
        (value, comparator): (Option<i64>, Comparator),
        broker: Micros,
        clock: Micros,
        record: u64,
        bounds: &Bounds,
    ) -> Decision {
        self.forget_old(clock, bounds);
        if let Some(index) = self.remembered(event) {
            let known = self.memory[index];
            if value.is_none() {
                return Decision::Duplicate { later_record: false };
            }
            if known.record == record {
                return if (known.value, known.comparator) == (value, comparator) {
                    Decision::Duplicate { later_record: false }
                } else {
                    Decision::Conflict
                };
            }
            if (known.value, known.comparator) == (value, comparator) && !bounds.coarse {
                return Decision::Duplicate { later_record: true };
            }
            let t = self.newest.map_or(broker, |newest| broker.max(newest + 1));
            self.replacing.get_or_insert((Replaced::Coarse, false));
            push_back(&mut self.memory, Remembered { event, value, comparator, t, clock, record });
            self.replaced_count(record);
            self.newest = self.newest.max(Some(t));
            return Decision::At { t, replaced: Some(Replaced::Coarse), said: false };
        }
        let slow = self.slow_record == Some(record);
        let epoch = bounds.is_epoch(event);
        let future = event > broker + bounds.skew_us;
        let late = !epoch && event < broker - bounds.lateness_us;
        let in_order = self.newest.is_none_or(|newest| event >= newest);
        if !epoch && !future && !late && in_order {
            self.replacing = None;
        }
        let replaced = match self.replacing {
            _ if epoch => Some(Replaced::Epoch),
            _ if future => Some(Replaced::Future),
            Some((Replaced::Slow, _)) => Some(Replaced::Slow),
            _ if late && slow => Some(Replaced::Slow),
            _ if late => return Decision::Late,
            Some((kind, _)) => Some(kind),
            None => None,
        };
        let (t, said) = match replaced {
            None => (event, false),
            Some(kind) => {
                let (going_on, said) = self.replacing.get_or_insert((kind, true));
                if kind == Replaced::Slow {
                    *going_on = Replaced::Slow;
                }
                let said = *said;
                (broker + self.replaced_count(record), said)
            }
        };
        self.newest = self.newest.max(Some(t));
        self.newest_event = self.newest_event.max(Some(event));
        push_back(&mut self.memory, Remembered { event, value, comparator, t, clock, record });
        Decision::At { t, replaced, said }
    }

    /// The `t` of the last accepted reading with this event time, while it is remembered.
    pub fn t_of(&mut self, event: Micros, clock: Micros, bounds: &Bounds) -> Option<Micros> {
        self.forget_old(clock, bounds);
        self.remembered(event).map(|index| self.memory[index].t)
    }

    /// The reading with this event time has another value from now on.
    pub fn correct(&mut self, event: Micros, value: Option<i64>, comparator: Comparator) {
        if let Some(index) = self.remembered(event) {
            (self.memory[index].value, self.memory[index].comparator) = (value, comparator);
        }
    }

    /// The series is read from another source from now on.
    pub fn change_clock(&mut self) {
        self.disordered = true;
    }

    /// A reading that was decided here turned out to be late when its turn came: it was never accepted.
    pub fn take_back(&mut self, event: Micros, record: u64) {
        self.memory.retain(|known| !(known.event == event && known.record == record));
    }

    /// Stored clock values follow a clock that was set back.
    pub fn move_clock(&mut self, by: Micros) {
        self.disordered = true;
        for known in &mut self.memory {
            known.clock += by;
        }
        for (_, broker) in &mut self.late_row {
            *broker += by;
        }
    }

    /// Reads a word of every cache line: see `ahead.rs`.
    #[inline]
    pub fn touch(&self) -> u64 {
        let counts = (self.memory.len() ^ self.late_row.len()) as u64;
        let options = self.newest.is_some() ^ self.newest_event.is_some() ^ self.record_before.is_some();
        counts ^ self.replaced_in.0 ^ u64::from(options)
    }

    /// The same for what those lines point to: the ends, where readings come and go.
    pub fn touch_inside(&self) -> u64 {
        let ends = [self.memory.front(), self.memory.get(1), self.memory.back()];
        ends.into_iter().flatten().fold(0, |touched, known| touched ^ known.clock as u64)
    }

    /// Writes where the next reading will be remembered, and takes it back.
    pub fn touch_next(&mut self) {
        if let Some(known) = self.memory.back().copied() {
            push_back(&mut self.memory, known);
            std::hint::black_box(&self.memory);
            self.memory.pop_back();
        }
    }

    fn remembered(&self, event: Micros) -> Option<usize> {
        if self.newest_event.is_none_or(|newest| event > newest) {
            return None;
        }
        self.memory.iter().rposition(|known| known.event == event)
    }

    fn forget_old(&mut self, clock: Micros, bounds: &Bounds) {
        if self.replacing.is_some() {
            return;
        }
        let horizon = clock - bounds.lateness_us - bounds.skew_us;
        if self.disordered {
            self.memory.retain(|known| known.clock >= horizon);
            self.disordered = !self.memory.iter().is_sorted_by_key(|known| known.clock);
        }
        while self.memory.front().is_some_and(|known| known.clock < horizon) {
            self.memory.pop_front();
        }
    }

    /// How many readings of this record were replaced before this one.
    fn replaced_count(&mut self, record: u64) -> Micros {
        if self.replaced_in.0 != record {
            self.replaced_in = (record, 0);
        }
        let count = self.replaced_in.1;
        self.replaced_in.1 += 1;
        count
    }
}
