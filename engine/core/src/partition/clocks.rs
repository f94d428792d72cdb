//! Source clocks and the timers that run on them.
//!
//! One clock per source partition, moved only by that partition's own append times and by ticks; one for all where records
//! carry their own time. Timers are kept lazily: an entry that fires looks up what it is about and may find that nothing is
//! due yet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};
use wardbell_schemas::{Micros, SECOND};

use super::series::Technical;

/// A clock that moves by more than this at once was watched by nobody; one that steps back by more was set back.
pub const JUMP: Micros = 10 * SECOND;

/// What a timer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Forget {
        series: u32,
    },
    Stale {
        series: u32,
    },
    /// A hold of a rule: its index in the plan, and the key.
    HoldOfSeries {
        series: u32,
        rule: u32,
    },
    HoldOfPatient {
        patient: u32,
        rule: u32,
    },
}

/// One source clock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Clock {
    /// `topic/partition`, or empty for the one clock of records that carry their own time.
    pub name: String,
    pub now: Option<Micros>,
    pub feed_alert: Technical,
    /// Clock value from which a tick ends the feed alert.
    pub calm_from: Micros,
    #[serde(skip)]
    timers: BinaryHeap<Reverse<(Micros, Timer)>>,
}

/// What moving a clock would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Movement {
    /// Behind where it stands.
    None,
    /// On to the new value, or told again: what has become due meanwhile by other ways fires.
    On,
    /// On, by more than anybody can have watched.
    Jump(Micros),
    /// Set back (the distance is negative).
    Back(Micros),
}

impl Clock {
    pub fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    pub fn movement(&self, to: Micros, record_clock: bool) -> Movement {
        let Some(now) = self.now else {
            return Movement::On;
        };
        let distance = to - now;
        if record_clock {
            return if distance >= 0 { Movement::On } else { Movement::None };
        }
        if distance > JUMP {
            Movement::Jump(distance)
        } else if distance >= 0 {
            Movement::On
        } else if distance < -JUMP {
            Movement::Back(distance)
        } else {
            Movement::None
        }
    }

    pub fn arm(&mut self, due: Micros, timer: Timer) {
        self.timers.push(Reverse((due, timer)));
    }

    /// A timer is due at or before `until`.
    #[inline]
    pub fn is_due(&self, until: Micros) -> bool {
        self.timers.peek().is_some_and(|Reverse((due, _))| *due <= until)
    }

    /// All entries of the earliest due value at or before `until`.
    pub fn pop_due(&mut self, until: Micros, entries: &mut Vec<Timer>) -> Option<Micros> {
        entries.clear();
        let due = self.timers.peek().map(|Reverse((due, _))| *due).filter(|due| *due <= until)?;
        while let Some(Reverse((next, timer))) = self.timers.peek().copied()
            && next == due
        {
            entries.push(timer);
            self.timers.pop();
        }
        Some(due)
    }

    /// Forgets all entries, to arm them anew.
    pub fn disarm(&mut self) {
        self.timers.clear();
    }
}
