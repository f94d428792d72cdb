//! Appends outside transactions: in order and without gaps, as long as none of them fails.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::{Appended, Appender, LogError, Outgoing, Remedy, TopicPartition};
use super::partition::{Flight, Kind, find};
use super::{Look, MemoryLog, State, draw, gone};
use crate::runtime::fault::{self, Action};
use crate::runtime::{Instant, Signal};

#[derive(Debug)]
pub(super) struct AppenderState {
    process: u64,
    outcomes: VecDeque<(u64, Result<Appended, LogError>)>,
    /// Appends on their way to each partition: how many, and when the newest arrives.
    in_flight: BTreeMap<TopicPartition, (usize, Instant)>,
    /// An append failed: nothing after it may land.
    has_failed: bool,
    is_waiting: bool,
    signal: Arc<Signal>,
}

impl AppenderState {
    pub fn arrived(&mut self, place: &TopicPartition, token: u64, appended: Appended) {
        self.outcomes.push_back((token, Ok(appended)));
        if let Some((n, _)) = self.in_flight.get_mut(place) {
            *n -= 1;
            if *n == 0 {
                self.in_flight.remove(place);
            }
        }
        self.wake();
    }

    pub fn wake(&mut self) {
        if std::mem::take(&mut self.is_waiting) {
            self.signal.notify_all();
        }
    }
}

impl State {
    fn hand_over(&mut self, id: u64, record: &Outgoing, token: u64) -> Result<(), LogError> {
        let step = || format!("appending to {}/{}", record.topic, record.partition);
        let Some(appender) = self.appenders.get_mut(&id) else {
            return Err(gone(&step()));
        };
        if appender.has_failed {
            return Err(LogError::new(Remedy::Restart, step(), "an append before this one failed"));
        }
        let (stamped_by, partition) = find(&mut self.topics, &record.topic, record.partition)?;
        if self.is_available && self.append_delay.end().is_zero() && appender.in_flight.is_empty() {
            let appended = partition.add(Kind::Committed, stamped_by, self.clock.now_us(), record.clone());
            partition.wake_all();
            appender.outcomes.push_back((token, Ok(appended)));
            return Ok(());
        }
        let arrival = Instant::now() + draw(&self.append_delay);
        let place = TopicPartition::new(&record.topic, record.partition);
        let (n, newest) = appender.in_flight.entry(place).or_insert((0, arrival));
        // In order: none overtakes another on its way to the same partition.
        *newest = arrival.max(*newest);
        *n += 1;
        let due = *newest;
        self.next_number += 1;
        let flight = Flight { record: record.clone(), appender: Some(id), token };
        partition.in_flight.insert((due, self.next_number), flight);
        partition.expect(due);
        Ok(())
    }

    /// An append fails. Of what was on its way with it, some may arrive; how it went for each is not known any more.
    fn fail(&mut self, id: u64, place: &TopicPartition, token: u64) {
        let mut failed = vec![token];
        if fault::is_removed("gapless appends") {
            // The others go on as if nothing had been: a gap.
            self.forget(id, place, token);
        } else if let Some(appender) = self.appenders.get_mut(&id) {
            appender.has_failed = true;
            for place in std::mem::take(&mut appender.in_flight).into_keys() {
                failed.extend(self.cut(id, &place).into_iter().filter(|other| *other != token));
            }
        }
        let Some(appender) = self.appenders.get_mut(&id) else {
            return;
        };
        appender.outcomes.retain(|(known, _)| *known != token);
        for token in failed {
            let error = LogError::new(Remedy::Restart, "appending", "an append failed, what came after it is given up");
            appender.outcomes.push_back((token, Err(error)));
        }
        appender.wake();
    }

    /// Nobody waits for the outcome of an append any more, if it is still on its way.
    fn forget(&mut self, id: u64, place: &TopicPartition, token: u64) {
        let Ok((_, partition)) = find(&mut self.topics, &place.topic, place.partition) else {
            return;
        };
        let mut flights = partition.in_flight.values_mut();
        let Some(flight) = flights.find(|flight| flight.appender == Some(id) && flight.token == token) else {
            return;
        };
        flight.appender = None;
        let Some(appender) = self.appenders.get_mut(&id) else {
            return;
        };
        if let Some((n, _)) = appender.in_flight.get_mut(place) {
            *n -= 1;
            if *n == 0 {
                appender.in_flight.remove(place);
            }
        }
    }

    /// What an appender has on its way to a partition arrives up to some record, and nothing after it. Gives the tokens
    /// of all of it.
    fn cut(&mut self, id: u64, place: &TopicPartition) -> Vec<u64> {
        let mut tokens = Vec::new();
        let Ok(partition) = self.partition(&place.topic, place.partition) else {
            return tokens;
        };
        let mut is_lost = false;
        partition.in_flight.retain(|_, flight| {
            if flight.appender != Some(id) {
                return true;
            }
            flight.appender = None;
            tokens.push(flight.token);
            is_lost |= fastrand::u8(0..4) == 0;
            !is_lost
        });
        tokens
    }

    /// An appender ends with things on their way.
    fn let_go(&mut self, id: u64) {
        let Some(appender) = self.appenders.remove(&id) else {
            return;
        };
        for place in appender.in_flight.keys() {
            self.cut(id, place);
        }
    }

    /// The appenders of processes that are gone.
    pub(super) fn let_go_of_processes(&mut self, processes: &[u64]) {
        let theirs = self.appenders.iter().filter(|(_, appender)| processes.contains(&appender.process));
        let theirs: Vec<u64> = theirs.map(|(id, _)| *id).collect();
        for id in theirs {
            self.let_go(id);
        }
    }
}

pub(super) struct MemoryAppender {
    log: MemoryLog,
    id: u64,
    signal: Arc<Signal>,
    /// Handed over and not answered to the caller.
    in_flight: usize,
}

impl MemoryAppender {
    pub fn new(log: &MemoryLog) -> Self {
        let signal = Arc::new(Signal::new());
        let mut state = log.lock();
        let id = state.number();
        let appender = AppenderState {
            process: log.process,
            outcomes: VecDeque::new(),
            in_flight: BTreeMap::new(),
            has_failed: false,
            is_waiting: false,
            signal: signal.clone(),
        };
        state.appenders.insert(id, appender);
        Self { log: log.clone(), id, signal, in_flight: 0 }
    }

    fn fail(&self, record: &Outgoing, token: u64) {
        let mut state = self.log.lock();
        if !self.log.is_gone(&state) {
            state.fail(self.id, &TopicPartition::new(&record.topic, record.partition), token);
        }
    }
}

impl Appender for MemoryAppender {
    fn append(&mut self, record: &Outgoing, token: u64) -> Result<(), LogError> {
        if self.log.reach("append.before") == Some(Action::Fail) {
            self.fail(record, token);
            self.in_flight += 1;
            return Ok(());
        }
        let mut state = self.log.lock();
        if self.log.is_gone(&state) {
            return Err(gone("appending"));
        }
        state.hand_over(self.id, record, token)?;
        drop(state);
        self.in_flight += 1;
        if self.log.reach("append.after") == Some(Action::Fail) {
            self.fail(record, token);
        }
        Ok(())
    }

    fn outcomes(&mut self, wait: Duration, outcomes: &mut Vec<(u64, Result<Appended, LogError>)>) {
        let Self { log, id, signal, .. } = self;
        let known = log.wait_for(signal, wait, |state, _| {
            if log.is_gone(state) {
                return Look::Found(VecDeque::new());
            }
            let on_their_way = |state: &State| -> Vec<TopicPartition> {
                state.appenders.get(id).map_or_else(Vec::new, |appender| appender.in_flight.keys().cloned().collect())
            };
            for place in on_their_way(state) {
                state.take_in(&place.topic, place.partition);
            }
            let Some(appender) = state.appenders.get_mut(id) else {
                return Look::Found(VecDeque::new());
            };
            if !appender.outcomes.is_empty() || appender.in_flight.is_empty() {
                return Look::Found(std::mem::take(&mut appender.outcomes));
            }
            appender.is_waiting = true;
            if !state.is_available {
                return Look::Again(None);
            }
            let arrivals = on_their_way(state).into_iter().filter_map(|place| {
                let partition = state.partition(&place.topic, place.partition).ok()?;
                partition.in_flight.keys().next().map(|(due, _)| *due)
            });
            Look::Again(arrivals.min())
        });
        let known = known.unwrap_or_default();
        self.in_flight = self.in_flight.saturating_sub(known.len());
        outcomes.extend(known);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for MemoryAppender {
    fn drop(&mut self) {
        self.log.lock().let_go(self.id);
    }
}
