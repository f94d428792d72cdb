//! What waits for a sink, and whose turn it is.
//!
//! Alerts wait in one queue per patient and leave it in the order of the log, the next after the one before it was
//! acknowledged. Among patients the one with the most urgent alert anywhere in its queue comes first, then the one that has
//! waited longest: a high alert overtakes low ones of others, and takes earlier ones of its own patient with it. What can
//! still be told in time and what cannot any more take turns within a priority, so that neither a backlog holds back what
//! is new nor what is new the backlog.
//!
//! A patient whose alert failed pauses. So does the whole sink after a failure until something is acknowledged: one
//! attempt at a time, each time with another patient, so that an alert that always fails is told from a sink that is away.
//! Nothing here reads a clock or waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use wardbell_connectors::runtime::Instant;
use wardbell_connectors::sink::retry::{REJECTIONS_MAX, pause};
use wardbell_connectors::sink::{Delivery, Identity, SinkError};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, Priority, TransitionKind};

use crate::latency::BUDGET;

/// After so many failed attempts in a row it was an outage: with its end, nobody's pause means anything any more.
const OUTAGE: u32 = 3;

/// An alert on its way to a sink.
#[derive(Debug)]
pub(super) struct Entry {
    pub partition: i32,
    pub offset: i64,
    pub delivery: Delivery,
    /// Whom order is kept for; known to this stage only.
    subject: Arc<str>,
    /// Decided later than the budget.
    decided_late: bool,
    rejections: u32,
    /// When it was first rejected, and how many had been acknowledged until then.
    first_rejection: Option<(Instant, u64)>,
    /// It was handed to the sink, whatever became of it.
    attempted: bool,
    /// It was told that this waits for longer than the budget.
    overdue: bool,
    /// Counts entries as they come.
    arrival: u64,
}

impl Entry {
    pub fn new(partition: i32, offset: i64, alert: Alert, identity: Identity, received_us: Micros) -> Self {
        let content = &alert.data.content;
        let subject = if content.patient == "-" { alert.subject.as_str() } else { content.patient.as_str() };
        Self {
            partition,
            offset,
            subject: subject.into(),
            decided_late: alert.data.measured.delayed,
            delivery: Delivery { alert: identity.apply(alert), received_us },
            rejections: 0,
            first_rejection: None,
            attempted: false,
            overdue: false,
            arrival: 0,
        }
    }

    pub fn priority(&self) -> Priority {
        self.delivery.alert.data.content.priority
    }

    pub fn place(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }

    /// Waits for longer than the budget, which was not told yet.
    pub fn falls_overdue(&mut self, now_us: Micros) -> bool {
        let falls = !self.overdue && now_us - self.delivery.received_us > BUDGET;
        self.overdue |= falls;
        falls
    }

    /// As it is handed over now: whoever gets it late is told so.
    fn handed_over(&self, now_us: Micros) -> Delivery {
        let mut delivery = self.delivery.clone();
        let measured = &mut delivery.alert.data.measured;
        measured.delayed |= now_us - measured.basis_us > BUDGET;
        delivery
    }
}

/// An alert that is rejected for this long is set aside, even if nothing else was taken meanwhile.
const REJECTING_FOR_LONG: Duration = Duration::from_secs(600);

/// Alerts for one call of a sink.
#[derive(Debug)]
pub(super) struct Work {
    pub deliveries: Vec<Delivery>,
    /// Rings if nobody wants the outcome any more.
    pub given_up: Arc<Notify>,
    number: u64,
    queue: Key,
    places: Vec<(i32, i64)>,
    began: Instant,
}

/// What a lane does next.
#[derive(Debug)]
pub(super) enum Turn {
    Work(Work),
    /// Until something changes, or until then at the latest.
    Wait(Option<Instant>),
}

/// What became of a failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    /// Before the patient's next attempt.
    pub pause: Duration,
    /// Rejected too often: no longer in the backlog.
    pub set_aside: Option<Entry>,
}

/// Whom a queue is for: a subject within its partition. A sink that takes alerts in the order of the log has one queue.
type Key = (i32, Arc<str>);

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    attempt: Option<Attempt>,
    failures: u32,
    not_before: Option<Instant>,
    /// So many come one by one, since one of them was rejected.
    singly: usize,
    /// Under which rank it waits for its turn.
    rank: Option<Rank>,
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    given_up: Arc<Notify>,
}

/// The most urgent alert, whether the budget of all that are so urgent is spent, then the arrival of the first.
type Rank = (Reverse<Priority>, bool, u64);

impl Queue {
    fn pauses(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|until| until > now)
    }

    /// A raise that was decided late and that nobody was told of.
    fn late_raise(&self, index: usize) -> Option<&Entry> {
        // What was handed over once may have arrived, whatever became of the answer.
        let raised = |entry: &&Entry| entry.delivery.alert.data.content.transition == TransitionKind::Raised;
        self.entries.get(index).filter(|entry| entry.decided_late && !entry.attempted).filter(raised)
    }

    /// The entries of an episode, by index from `first`, if it is over before anybody was told of it: a raise that was
    /// decided late, everything after it up to its clear, and nothing of high priority. Only `cleared` is an end that
    /// nobody has to know of: what is latched waits for a person, what expired or was superseded was not seen to end.
    fn over_untold(&self, first: usize) -> Option<Vec<usize>> {
        let of_raise = &self.late_raise(first)?.delivery.alert.data.content;
        let mut found = Vec::new();
        for (index, entry) in self.entries.iter().enumerate().skip(first) {
            let content = &entry.delivery.alert.data.content;
            if content.episode != of_raise.episode {
                continue;
            }
            if content.priority == Priority::High {
                return None;
            }
            found.push(index);
            if content.transition == TransitionKind::Cleared {
                return Some(found);
            }
        }
        None
    }

    /// This alert would be withheld if its clear came, and nothing here is so urgent that it must not wait for that.
    fn may_be_over(&self, index: usize) -> bool {
        self.late_raise(index).is_some() && self.entries.iter().all(|entry| entry.priority() != Priority::High)
    }

    /// Its highest priority, and whether everything that has it is past the budget already.
    fn urgency(&self) -> (Priority, bool) {
        let most_urgent = self.entries.iter().map(Entry::priority).max().unwrap_or(Priority::Low);
        let mut of_priority = self.entries.iter().filter(|entry| entry.priority() == most_urgent);
        (most_urgent, of_priority.all(|entry| entry.decided_late || entry.overdue))
    }
}

/// The sink did not take what it was given last.
#[derive(Debug)]
struct Away {
    failures: u32,
    since: Instant,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Backlog {
    batch_max: usize,
    withholds: bool,
    queues: BTreeMap<Key, Queue>,
    /// Queues without an attempt under way, best first.
    ready: BTreeSet<(Rank, Key)>,
    n_entries: usize,
    n_under_way: usize,
    n_arrived: u64,
    n_attempts: u64,
    n_acknowledged: u64,
    away: Option<Away>,
    withheld: Vec<(i32, i64)>,
    /// More is readable: until then, late raises wait for what is read next, which may say that they are over.
    reads_on_until: Option<Instant>,
}

impl Backlog {
    /// For a sink that takes `batch_max` alerts at once; more than one come in the order of the log. `withholds`: what is
    /// over before anybody was told may be left out.
    pub fn new(batch_max: usize, withholds: bool) -> Self {
        Self {
            batch_max: batch_max.max(1),
            withholds,
            queues: BTreeMap::new(),
            ready: BTreeSet::new(),
            n_entries: 0,
            n_under_way: 0,
            n_arrived: 0,
            n_attempts: 0,
            n_acknowledged: 0,
            away: None,
            withheld: Vec::new(),
            reads_on_until: None,
        }
    }

    /// Alerts that are not acknowledged.
    pub fn len(&self) -> usize {
        self.n_entries
    }

    /// Attempts whose outcome is not known.
    pub fn under_way(&self) -> usize {
        self.n_under_way
    }

    /// Something that was tried has not been acknowledged.
    pub fn is_failing(&self) -> bool {
        self.away.is_some() || self.queues.values().any(|queue| queue.failures > 0)
    }

    /// Something waits for longer than the budget.
    pub fn is_overdue(&self) -> bool {
        self.queues.values().flat_map(|queue| &queue.entries).any(|entry| entry.overdue)
    }

    /// The log is read on until then, or to its end (`None`). Says whether somebody waited for that.
    pub fn reads_on(&mut self, until: Option<Instant>) -> bool {
        std::mem::replace(&mut self.reads_on_until, until).is_some() && until.is_none()
    }

    /// Alerts that are not acknowledged, by partition, and when the oldest of each was decided, µs since 1970 UTC.
    pub fn waiting(&self) -> BTreeMap<i32, (i64, Micros)> {
        let mut waiting: BTreeMap<i32, (i64, Micros)> = BTreeMap::new();
        for entry in self.queues.values().flat_map(|queue| &queue.entries) {
            let decided_us = entry.delivery.alert.data.measured.decided_us;
            let (count, oldest) = waiting.entry(entry.partition).or_insert((0, decided_us));
            (*count, *oldest) = (*count + 1, decided_us.min(*oldest));
        }
        waiting
    }

    pub fn push(&mut self, mut entry: Entry) {
        let key = if self.batch_max > 1 { (0, Arc::from("")) } else { (entry.partition, entry.subject.clone()) };
        self.n_arrived += 1;
        self.n_entries += 1;
        entry.arrival = self.n_arrived;
        self.queues.entry(key.clone()).or_default().entries.push_back(entry);
        self.rank(&key);
    }

    /// Alerts for a lane that has nothing to do.
    pub fn next(&mut self, now: Instant, now_us: Micros) -> Turn {
        loop {
            let key = match self.choose(now) {
                Ok(key) => key,
                Err(until) => return Turn::Wait(until),
            };
            if let Some(work) = self.begin(key, now, now_us) {
                return Turn::Work(work);
            }
        }
    }

    /// The sink took them; gives those that were still waiting for that.
    pub fn acknowledged(&mut self, work: &Work) -> Vec<Entry> {
        self.n_under_way -= 1;
        if self.away.take().is_some_and(|away| away.failures >= OUTAGE) {
            self.queues.values_mut().for_each(|queue| queue.not_before = None);
        }
        self.n_acknowledged += work.places.len() as u64;
        let mut done = Vec::new();
        if let Some(queue) = self.end_attempt(work) {
            (queue.failures, queue.not_before) = (0, None);
            for place in &work.places {
                // Some may have been given up meanwhile.
                if queue.entries.front().is_some_and(|entry| entry.place() == *place) {
                    done.extend(queue.entries.pop_front());
                }
            }
            queue.singly = queue.singly.saturating_sub(done.len());
        }
        self.n_entries -= done.len();
        self.rank(&work.queue);
        done
    }

    /// The sink did not take them.
    pub fn failed(&mut self, work: &Work, error: &SinkError, now: Instant) -> Failure {
        self.n_under_way -= 1;
        let mut failure = Failure { pause: Duration::ZERO, set_aside: None };
        let is_rejected = matches!(error, SinkError::Rejected { .. });
        let n_acknowledged = self.n_acknowledged;
        if is_rejected {
            // Whoever rejects is there.
            self.away = None;
        } else {
            self.goes_away(work.began, error, now);
        }
        if let Some(queue) = self.end_attempt(work) {
            queue.failures += 1;
            failure.pause = pause(error, queue.failures);
            if is_rejected && work.places.len() > 1 {
                queue.singly = work.places.len();
                failure.pause = Duration::ZERO;
            } else if is_rejected
                && let Some(entry) = queue.entries.front_mut().filter(|entry| entry.place() == work.places[0])
            {
                entry.rejections += 1;
                let (first, taken_before) = *entry.first_rejection.get_or_insert((now, n_acknowledged));
                // A receiver that rejects everything is broken, not the alert.
                let others_are_taken = n_acknowledged > taken_before;
                let for_long = now.saturating_duration_since(first) >= REJECTING_FOR_LONG;
                if entry.rejections >= REJECTIONS_MAX && (others_are_taken || for_long) {
                    failure.set_aside = queue.entries.pop_front();
                    failure.pause = Duration::ZERO;
                    queue.failures = 0;
                    queue.singly = queue.singly.saturating_sub(1);
                }
            }
            queue.not_before = (failure.pause > Duration::ZERO).then(|| now + failure.pause);
        }
        self.n_entries -= usize::from(failure.set_aside.is_some());
        self.rank(&work.queue);
        failure
    }

    /// Nobody knows what became of it.
    pub fn given_back(&mut self, work: &Work) {
        self.n_under_way -= 1;
        self.end_attempt(work);
        self.rank(&work.queue);
    }

    /// Somebody else delivers what is left of a partition.
    pub fn give_up(&mut self, partition: i32) {
        self.give_up_where(|entry| entry.partition == partition);
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.give_up_where(|_| true);
        self.away = None;
        self.reads_on_until = None;
        self.withheld.clear();
    }

    /// Alerts that were left out, since they were over before anybody was told.
    pub fn take_withheld(&mut self) -> Vec<(i32, i64)> {
        std::mem::take(&mut self.withheld)
    }

    /// Priorities of alerts that have waited for longer than the budget and were not told before.
    pub fn fall_overdue(&mut self, now_us: Micros) -> Vec<Priority> {
        let mut fallen = Vec::new();
        let mut concerned = Vec::new();
        for (key, queue) in &mut self.queues {
            let before = fallen.len();
            let entries = queue.entries.iter_mut();
            fallen.extend(entries.filter_map(|entry| entry.falls_overdue(now_us).then(|| entry.priority())));
            concerned.extend((fallen.len() > before).then(|| key.clone()));
        }
        concerned.iter().for_each(|key| self.rank(key));
        fallen
    }

    /// Whose turn it is; else until when nobody's turn comes by itself.
    fn choose<'a>(&'a self, now: Instant) -> Result<Key, Option<Instant>> {
        let reads_on = self.reads_on_at(now);
        let with_queue = |(rank, key): &'a (Rank, Key)| Some((rank, key, self.queues.get(key)?));
        let is_able = |(_, _, queue): &(&Rank, &Key, &Queue)| {
            !(queue.pauses(now) || (reads_on.is_some() && queue.may_be_over(0)))
        };
        let waiting = self.ready.iter().filter_map(with_queue);
        let mut able = waiting.clone().filter(is_able);
        let chosen = match &self.away {
            Some(_) if self.n_under_way > 0 => return Err(None),
            Some(away) if away.until > now => return Err(Some(away.until)),
            Some(_) => able.min_by_key(|(rank, _, queue)| (queue.failures, **rank)),
            None => able.next(),
        };
        let Some((rank, key, _)) = chosen else {
            return Err(waiting.filter_map(|(.., queue)| queue.not_before).chain(reads_on).min());
        };
        let mut spent = None;
        if self.away.is_none() && self.n_attempts % 2 == 1 {
            let first: (Rank, Key) = ((rank.0, true, 0), (i32::MIN, Arc::from("")));
            let of_priority = self.ready.range(first..).take_while(|(other, _)| other.0 == rank.0);
            spent = of_priority.filter_map(with_queue).find(is_able);
        }
        Ok(spent.map_or(key, |(_, key, _)| key).clone())
    }

    /// See [`Backlog::reads_on`].
    fn reads_on_at(&self, now: Instant) -> Option<Instant> {
        self.reads_on_until.filter(|until| self.withholds && *until > now)
    }

    /// Takes alerts from the head of a queue, leaving out what is over untold; `None` if that was all.
    fn begin(&mut self, key: Key, now: Instant, now_us: Micros) -> Option<Work> {
        let reads_on = self.reads_on_at(now).is_some();
        let queue = self.queues.get_mut(&key)?;
        let wanted = if queue.singly > 0 { 1 } else { self.batch_max };
        let mut count = 0;
        while count < wanted.min(queue.entries.len()) {
            let over = if self.withholds { queue.over_untold(count) } else { None };
            let Some(over) = over else {
                if reads_on && queue.may_be_over(count) {
                    break;
                }
                count += 1;
                continue;
            };
            for index in over.into_iter().rev() {
                self.withheld.extend(queue.entries.remove(index).map(|entry| entry.place()));
                self.n_entries -= 1;
            }
        }
        if count == 0 {
            self.rank(&key);
            return None;
        }
        queue.entries.iter_mut().take(count).for_each(|entry| entry.attempted = true);
        self.n_under_way += 1;
        self.n_attempts += 1;
        let given_up = Arc::new(Notify::new());
        queue.attempt = Some(Attempt { number: self.n_attempts, given_up: given_up.clone() });
        let head = || queue.entries.iter().take(count);
        let work = Work {
            deliveries: head().map(|entry| entry.handed_over(now_us)).collect(),
            places: head().map(Entry::place).collect(),
            given_up,
            number: self.n_attempts,
            queue: key,
            began: now,
        };
        self.rank(&work.queue);
        Some(work)
    }

    /// The queue of an attempt, which is over; `None` if it was given up.
    fn end_attempt(&mut self, work: &Work) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(&work.queue)?;
        queue.attempt.take_if(|attempt| attempt.number == work.number)?;
        Some(queue)
    }

    fn goes_away(&mut self, began: Instant, error: &SinkError, now: Instant) {
        // An attempt that was under way when the last pause began says nothing new.
        let failures = match &self.away {
            Some(away) if began < away.since => return,
            Some(away) => away.failures + 1,
            None => 1,
        };
        self.away = Some(Away { failures, since: now, until: now + pause(error, failures) });
    }

    fn give_up_where(&mut self, given_up: impl Fn(&Entry) -> bool) {
        let keys: Vec<Key> = self.queues.keys().cloned().collect();
        for key in keys {
            let Some(queue) = self.queues.get_mut(&key) else {
                continue;
            };
            let before = queue.entries.len();
            queue.entries.retain(|entry| !given_up(entry));
            self.n_entries -= before - queue.entries.len();
            if queue.entries.is_empty()
                && let Some(attempt) = queue.attempt.take()
            {
                attempt.given_up.notify_one();
            }
            self.rank(&key);
        }
    }

    /// Puts a queue where it belongs now, or forgets it.
    fn rank(&mut self, key: &Key) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        let waits = queue.entries.front().filter(|_| queue.attempt.is_none());
        let rank = waits.map(|first| {
            let (most_urgent, is_spent) = match self.batch_max {
                1 => queue.urgency(),
                _ => (Priority::Low, false),
            };
            (Reverse(most_urgent), is_spent, first.arrival)
        });
        if rank != queue.rank {
            if let Some(old) = queue.rank {
                self.ready.remove(&(old, key.clone()));
            }
            queue.rank = rank;
            self.ready.extend(rank.map(|rank| (rank, key.clone())));
        }
        if queue.entries.is_empty() && queue.attempt.is_none() {
            self.queues.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardbell_connectors::conformance::sink::delivery;
    use wardbell_schemas::SECOND;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn entry(offset: i64, patient: &str, priority: Priority) -> Entry {
        let mut alert = delivery(0, offset as u32).alert;
        alert.data.content.patient = patient.to_owned();
        alert.data.content.priority = priority;
        Entry::new(0, offset, alert, Identity::Full, 0)
    }

    /// A transition of an episode, decided late.
    fn late(offset: i64, episode: &str, priority: Priority, transition: TransitionKind) -> Entry {
        let mut alert = delivery(0, offset as u32).alert;
        alert.data.measured.delayed = true;
        let content = &mut alert.data.content;
        (content.episode, content.priority, content.transition) = (episode.to_owned(), priority, transition);
        Entry::new(0, offset, alert, Identity::Full, 0)
    }

    fn backlog(batch_max: usize, entries: impl IntoIterator<Item = Entry>) -> Backlog {
        let mut backlog = Backlog::new(batch_max, true);
        entries.into_iter().for_each(|entry| backlog.push(entry));
        backlog
    }

    fn work(backlog: &mut Backlog, now: Instant) -> Option<Work> {
        match backlog.next(now, 0) {
            Turn::Work(work) => Some(work),
            Turn::Wait(_) => None,
        }
    }

    fn offsets(work: &Work) -> Vec<i64> {
        work.places.iter().map(|(_, offset)| *offset).collect()
    }

    /// The order in which a sink that takes everything gets it.
    fn order(backlog: &mut Backlog) -> Vec<i64> {
        let mut order = Vec::new();
        while let Some(work) = work(backlog, Instant::now()) {
            order.extend(offsets(&work));
            backlog.acknowledged(&work);
        }
        order
    }

    fn unavailable() -> SinkError {
        SinkError::Unavailable { step: "trying".to_owned(), what: "away".to_owned(), retry_after: None }
    }

    fn rejected() -> SinkError {
        SinkError::Rejected { step: "trying".to_owned(), what: "not this one".to_owned() }
    }

    #[test]
    fn high_overtakes_low_and_takes_earlier_alerts_of_its_patient_with_it() {
        use Priority::{High, Low, Medium};
        let entries = || {
            [("a", Low), ("b", Low), ("c", Medium), ("a", Low), ("b", High), ("d", High)]
                .into_iter()
                .zip(0..)
                .map(|((patient, priority), offset)| entry(offset, patient, priority))
        };
        assert_eq!(order(&mut backlog(1, entries())), [1, 4, 5, 2, 0, 3]);
        assert_eq!(order(&mut backlog(4, entries())), [0, 1, 2, 3, 4, 5], "in the order of the log");
    }

    #[test]
    fn patients_go_side_by_side_and_each_waits_for_its_own() {
        let low = |offset, patient| entry(offset, patient, Priority::Low);
        let mut backlog = backlog(1, [low(0, "a"), low(1, "a"), low(2, "b")]);
        let now = Instant::now();
        let first = work(&mut backlog, now).expect("something waits");
        let second = work(&mut backlog, now).expect("something waits");
        assert_eq!((offsets(&first), offsets(&second)), (vec![0], vec![2]));
        assert!(work(&mut backlog, now).is_none(), "the first of `a` is not acknowledged yet");
        assert_eq!(backlog.acknowledged(&first).len(), 1);
        assert_eq!(work(&mut backlog, now).map(|work| offsets(&work)), Some(vec![1]));
        assert_eq!((backlog.len(), backlog.under_way()), (2, 2));
    }

    #[test]
    fn a_sink_that_is_away_is_tried_with_one_alert_at_a_time_and_each_time_another() {
        let mut backlog = backlog(1, ["a", "b", "c"].into_iter().zip(0..).map(|(p, o)| entry(o, p, Priority::High)));
        let mut now = Instant::now();
        let under_way = work(&mut backlog, now).expect("something waits");
        backlog.failed(&under_way, &unavailable(), now);
        let mut tried = Vec::new();
        for _ in 0..3 {
            now += HOUR;
            let attempt = work(&mut backlog, now).expect("the pause is over");
            assert!(work(&mut backlog, now).is_none(), "one at a time");
            tried.extend(offsets(&attempt));
            backlog.failed(&attempt, &unavailable(), now);
        }
        assert_eq!(tried, [1, 2, 0]);
        assert!(backlog.is_failing());
        now += HOUR;
        let attempt = work(&mut backlog, now).expect("the pause is over");
        backlog.acknowledged(&attempt);
        let rest: Vec<Work> = std::iter::from_fn(|| work(&mut backlog, now)).collect();
        assert_eq!(rest.len(), 2, "the outage is over for everybody");
        rest.iter().for_each(|attempt| drop(backlog.acknowledged(attempt)));
        assert!(!backlog.is_failing() && backlog.len() == 0);
    }

    #[test]
    fn an_alert_that_always_fails_holds_back_nobody_else() {
        let mut backlog = backlog(1, (0..40).map(|i| entry(i, &format!("p{}", i % 4), Priority::Low)));
        let (mut now, mut taken) = (Instant::now(), Vec::new());
        for _ in 0..100 {
            now += HOUR;
            let Some(attempt) = work(&mut backlog, now) else { break };
            match offsets(&attempt)[0] {
                0 => drop(backlog.failed(&attempt, &unavailable(), now)),
                offset => {
                    backlog.acknowledged(&attempt);
                    taken.push(offset);
                }
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, (0..40).filter(|i| i % 4 != 0).collect::<Vec<i64>>());
    }

    #[test]
    fn an_alert_that_is_rejected_five_times_is_set_aside_and_the_next_goes() {
        let mut backlog = backlog(1, [entry(0, "a", Priority::High), entry(1, "a", Priority::High)]);
        let mut now = Instant::now();
        for attempt in 1..=5 {
            now += HOUR;
            let attempted = work(&mut backlog, now).expect("it comes again");
            assert_eq!(offsets(&attempted), [0]);
            let set_aside = backlog.failed(&attempted, &rejected(), now).set_aside;
            assert_eq!(set_aside.map(|entry| entry.offset), (attempt == 5).then_some(0), "attempt {attempt}");
        }
        assert_eq!(order(&mut backlog), [1]);
    }

    #[test]
    fn of_a_batch_only_the_rejected_alert_is_set_aside() {
        let mut backlog = backlog(10, (0..4).map(|i| entry(i, "a", Priority::Low)));
        let (mut now, mut taken, mut set_aside) = (Instant::now(), Vec::new(), Vec::new());
        for _ in 0..20 {
            now += HOUR;
            let Some(attempt) = work(&mut backlog, now) else { break };
            if offsets(&attempt).contains(&2) {
                set_aside.extend(backlog.failed(&attempt, &rejected(), now).set_aside.map(|entry| entry.offset));
            } else {
                taken.extend(backlog.acknowledged(&attempt).iter().map(|entry| entry.offset));
            }
        }
        assert_eq!((taken, set_aside, backlog.len()), (vec![0, 1, 3], vec![2], 0));
    }

    #[test]
    fn what_was_decided_late_and_is_over_is_withheld_and_nothing_of_high_priority() {
        use Priority::{High, Low, Medium};
        use TransitionKind::{Cleared, Escalated, Raised};
        for (name, entries, delivered, withheld) in [
            ("over", vec![(Medium, Raised), (Medium, Cleared)], vec![], vec![0, 1]),
            ("escalated", vec![(Low, Raised), (Medium, Escalated), (Medium, Cleared)], vec![], vec![0, 1, 2]),
            ("not over", vec![(Medium, Raised)], vec![0], vec![]),
            ("high", vec![(High, Raised), (High, Cleared)], vec![0, 1], vec![]),
            ("became high", vec![(Medium, Raised), (High, Escalated), (High, Cleared)], vec![0, 1, 2], vec![]),
            ("its raise was told", vec![(Medium, Escalated), (Medium, Cleared)], vec![0, 1], vec![]),
        ] {
            let entries =
                || entries.iter().zip(0..).map(|((priority, kind), offset)| late(offset, "e", *priority, *kind));
            let mut of_patients = backlog(1, entries());
            assert_eq!(order(&mut of_patients), delivered, "{name}");
            let mut places: Vec<i64> = of_patients.take_withheld().into_iter().map(|(_, offset)| offset).collect();
            places.sort_unstable();
            assert_eq!((&places, of_patients.len()), (&withheld, 0), "{name}");
            assert_eq!(order(&mut backlog(10, entries())), delivered, "{name}");
            let mut record = Backlog::new(10, false);
            entries().for_each(|entry| record.push(entry));
            assert_eq!(order(&mut record).len(), delivered.len() + withheld.len(), "{name}: a record has all of it");
        }
        let mut two = backlog(1, [late(0, "e", Low, Raised), late(1, "f", Low, Raised), late(2, "e", Low, Cleared)]);
        assert_eq!(order(&mut two), [1], "another episode of the same patient is told");
    }

    #[test]
    fn only_what_was_seen_to_end_is_withheld() {
        use Priority::Medium;
        use TransitionKind::{Acknowledged, Cleared, Expired, Latched, Raised, Reset, RuleChanged, Superseded};
        for (kinds, n_delivered) in [
            (&[Raised, Latched][..], 2),
            (&[Raised, Latched, Reset][..], 3),
            (&[Raised, Expired][..], 2),
            (&[Raised, RuleChanged][..], 2),
            (&[Raised, Superseded][..], 2),
            (&[Raised, Acknowledged, Cleared][..], 0),
        ] {
            let mut backlog = backlog(1, kinds.iter().zip(0..).map(|(kind, offset)| late(offset, "e", Medium, *kind)));
            assert_eq!(order(&mut backlog).len(), n_delivered, "{kinds:?}");
        }
    }

    #[test]
    fn a_late_raise_waits_for_what_is_read_next_and_nothing_high_does() {
        use Priority::{High, Low};
        use TransitionKind::{Cleared, Raised};
        let now = Instant::now();
        for batch_max in [1, 10] {
            let mut backlog = Backlog::new(batch_max, true);
            backlog.reads_on(Some(now + HOUR));
            backlog.push(late(0, "e", Low, Raised));
            assert!(matches!(backlog.next(now, 0), Turn::Wait(Some(until)) if until == now + HOUR), "it may be over");
            backlog.push(late(1, "e", Low, Cleared));
            assert!(backlog.reads_on(None), "somebody waited");
            assert_eq!((order(&mut backlog), backlog.take_withheld().len()), (vec![], 2));
            backlog.reads_on(Some(now + HOUR));
            backlog.push(late(2, "f", Low, Raised));
            assert_eq!(work(&mut backlog, now + 2 * HOUR).map(|work| offsets(&work)), Some(vec![2]), "not for ever");
        }
        let mut backlog = Backlog::new(1, true);
        backlog.reads_on(Some(now + HOUR));
        backlog.push(late(0, "e", Low, Raised));
        backlog.push(late(1, "f", High, Raised));
        assert_eq!(order(&mut backlog), [0, 1], "what stands before a high alert of its patient waits for nothing");
    }

    #[test]
    fn what_is_new_and_what_is_too_late_take_turns() {
        let mut backlog = Backlog::new(1, true);
        for i in 0..6 {
            let mut old = entry(i, &format!("old-{i}"), Priority::High);
            old.decided_late = true;
            backlog.push(old);
        }
        (6..9).for_each(|i| backlog.push(entry(i, &format!("new-{i}"), Priority::High)));
        backlog.push(entry(9, "low", Priority::Low));
        assert_eq!(order(&mut backlog), [6, 0, 7, 1, 8, 2, 3, 4, 5, 9]);
        let mut overdue = Backlog::new(1, true);
        overdue.push(entry(0, "waits", Priority::High));
        overdue.fall_overdue(31 * SECOND);
        overdue.push(entry(1, "new", Priority::High));
        assert_eq!(order(&mut overdue), [1, 0]);
    }

    #[test]
    fn what_waits_is_counted_by_partition_with_the_oldest() {
        let mut backlog = Backlog::new(1, true);
        for (partition, decided_us) in [(0, 7), (0, 5), (3, 9)] {
            let mut waits = entry(decided_us, "a", Priority::Low);
            waits.partition = partition;
            waits.delivery.alert.data.measured.decided_us = decided_us;
            backlog.push(waits);
        }
        assert_eq!(backlog.waiting(), BTreeMap::from([(0, (2, 5)), (3, (1, 9))]));
    }

    #[test]
    fn what_is_given_up_is_forgotten_and_its_attempt_is_told() {
        let mut backlog = backlog(1, [entry(0, "a", Priority::Low), entry(1, "a", Priority::Low)]);
        let now = Instant::now();
        let attempt = work(&mut backlog, now).expect("something waits");
        backlog.give_up(0);
        assert_eq!((backlog.len(), backlog.under_way()), (0, 1));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(attempt.given_up.notified());
        // The partition comes back while the old attempt is still under way.
        backlog.push(entry(0, "a", Priority::Low));
        let again = work(&mut backlog, now).expect("it is ours again");
        assert_eq!(backlog.acknowledged(&attempt).len(), 0, "nobody waits for it any more");
        assert_eq!(backlog.acknowledged(&again).len(), 1);
        assert_eq!((backlog.len(), backlog.under_way()), (0, 0));
    }

    #[test]
    fn whoever_gets_an_alert_late_is_told_so_and_overdue_alerts_are_told_once() {
        let mut backlog = backlog(1, [entry(0, "a", Priority::High)]);
        assert_eq!(backlog.fall_overdue(30 * SECOND), []);
        assert_eq!(backlog.fall_overdue(31 * SECOND), [Priority::High]);
        assert_eq!(backlog.fall_overdue(32 * SECOND), []);
        assert!(backlog.is_overdue());
        let Turn::Work(late) = backlog.next(Instant::now(), 31 * SECOND) else { panic!("it waits") };
        assert!(late.deliveries[0].alert.data.measured.delayed);
    }
}
