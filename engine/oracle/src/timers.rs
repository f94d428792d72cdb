//! Where to look for timers when a source clock moves. What is due is found out by looking; this only says that nobody
//! else can have anything due yet.

use std::collections::{BTreeMap, BTreeSet};

use super::episode::TrackId;
use super::series::SeriesId;

/// Somebody who can have timers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    Series(SeriesId),
    Track(TrackId),
}

/// For each clock and each of those: a value before which nothing of it is due.
#[derive(Default)]
pub struct Timers {
    by_clock: BTreeMap<String, BTreeSet<(i64, Watched)>>,
    first: BTreeMap<(String, Watched), i64>,
}

impl Timers {
    /// Looks at `watched` when the clock reaches `due`, if not before.
    pub fn watch(&mut self, clock: &str, due: i64, watched: &Watched) {
        let place = (clock.to_string(), watched.clone());
        if self.first.get(&place).is_some_and(|known| *known <= due) {
            return;
        }
        self.forget(clock, watched);
        self.first.insert(place, due);
        self.by_clock.entry(clock.to_string()).or_default().insert((due, watched.clone()));
    }

    pub fn forget(&mut self, clock: &str, watched: &Watched) {
        if let Some(due) = self.first.remove(&(clock.to_string(), watched.clone()))
            && let Some(of_clock) = self.by_clock.get_mut(clock)
        {
            of_clock.remove(&(due, watched.clone()));
        }
    }

    /// All that have to be looked at when the clock stands at `now`, each with the value from which on.
    pub fn until(&self, clock: &str, now: i64) -> impl Iterator<Item = (i64, &Watched)> {
        let of_clock = self.by_clock.get(clock).into_iter().flatten();
        of_clock.take_while(move |(due, _)| *due <= now).map(|(due, watched)| (*due, watched))
    }
}
