//! The control loop: follows the control topic and has the newest set activated in the partitions of this instance.
//!
//! A set is activated by a record of the canonical log, at one place of each partition's order, so that a replay is the
//! run. Only an instance that owns a partition appends there, and only a set that compiles on it. One that does not compile
//! here leaves the job on the set it has, and health says so; the activation of one by another instance ends the job when
//! it comes up in the log, since going on with the old set would give other alerts than the log says.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use wardbell_connectors::canonical::control_record;
use wardbell_connectors::log::{Log, LogError, Remedy};
use wardbell_connectors::runtime::{self, Instant};
use wardbell_core::partition::Settings;
use wardbell_schemas::control::{Control, ControlRecord};

use super::{BACKOFF_MIN, Shared, Topics};
use crate::health::{Finding, Health, Severity};
use crate::sets::{ControlTopic, Document, LoadedSet, Published, Unusable, same_site_and_clock, short};

/// Longest wait for records; stops and partitions in need of an activation are looked at in between.
const WAIT: Duration = Duration::from_millis(200);
const RECORDS_MAX: usize = 10;
/// Appends are acknowledged within this, or the broker is away.
const APPEND_PATIENCE: Duration = Duration::from_secs(10);
/// A set that was activated is on the control topic; a reader may lag this much behind its publisher.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(10);

/// A set that compiles here, under the number it was published with.
#[derive(Debug, Clone)]
pub(super) struct Numbered {
    pub number: u64,
    pub set: Arc<LoadedSet>,
}

/// Published sets as far as this job knows them, and what its partitions need of them.
pub(super) struct Sets {
    topic: ControlTopic,
    known: Mutex<Known>,
}

struct Known {
    /// The newest that compiles here.
    newest: Numbered,
    /// Number and hash of the newest record, whether it compiles here or not.
    followed: (u64, String),
    /// Numbers of published sets that health reports because they do not compile here.
    unusable: Vec<u64>,
    /// Sets that somebody still holds, by hash.
    compiled: HashMap<String, Weak<LoadedSet>>,
    partitions: BTreeMap<i32, Owned>,
    n_owners: u64,
    /// Largest number whose change was told.
    told: u64,
}

/// What is known of a partition that this instance owns.
#[derive(Debug, Clone, Copy, Default)]
struct Owned {
    /// Which [`Ownership`] it is: one that is left behind may be dropped late.
    owner: u64,
    in_force: u64,
    /// Largest number whose activation is known to stand in its log.
    in_log: u64,
    /// Its thread has looked at the log once.
    settled: bool,
}

impl Sets {
    /// Looks up the newest set that compiles here; an empty control topic gets the configured one first, which has been
    /// checked and whose cases have passed.
    ///
    /// # Errors
    /// As the log says; [`Remedy::Refuse`] if there is no set to run, or site or clock are not those of the published ones.
    pub fn open(
        topic: ControlTopic,
        configured: Option<&Document>,
        decision: &Settings,
        health: &Health,
    ) -> Result<Self, LogError> {
        let refuse = |what: String| LogError::new(Remedy::Refuse, "looking for a rule set to run", what);
        let mut newest = topic.newest_number()?;
        if newest == 0 {
            let configured = configured.ok_or_else(|| {
                refuse("no set is published yet, and the configured rules cannot be used; correct them".to_owned())
            })?;
            newest = topic.publish(configured)?;
            tracing::info!(number = newest, set = short(&configured.hash()), "the configured rules are published");
        }
        let mut followed = None;
        let mut unusable = Vec::new();
        for number in (1..=newest).rev() {
            // Numbers below the first held were deleted by somebody.
            let Some(published) = topic.at(number)? else {
                break;
            };
            followed.get_or_insert_with(|| (number, published.hash.clone()));
            match published.load() {
                Ok(set) => {
                    same_site_and_clock(&set.settings, decision)
                        .map_err(|what| LogError::new(Remedy::Refuse, "comparing with the published set", what))?;
                    let set = Arc::new(set);
                    let known = Known {
                        compiled: HashMap::from([(set.hash.clone(), Arc::downgrade(&set))]),
                        newest: Numbered { number, set },
                        followed: followed.unwrap_or_default(),
                        unusable,
                        partitions: BTreeMap::new(),
                        n_owners: 0,
                        told: 0,
                    };
                    return Ok(Self { topic, known: Mutex::new(known) });
                }
                Err(why) => {
                    report_unusable(&published, &why, health);
                    unusable.push(number);
                }
            }
        }
        Err(refuse(
            "none of the published sets can be used by this binary; publish the rules with it: `wardbell rules publish`"
                .to_owned(),
        ))
    }

    pub fn topic(&self) -> &ControlTopic {
        &self.topic
    }

    /// The newest published set that compiles here.
    pub fn newest(&self) -> Numbered {
        self.lock().newest.clone()
    }

    /// Number and hash of the newest published set, whether it compiles here or not.
    pub fn followed(&self) -> (u64, String) {
        self.lock().followed.clone()
    }

    /// Numbers of the sets in force in the partitions of this instance.
    pub fn in_force(&self) -> BTreeMap<i32, u64> {
        self.lock().partitions.iter().map(|(partition, owned)| (*partition, owned.in_force)).collect()
    }

    /// The set of an activation, wherever it has to be looked for. Waits as long as the broker is away, unless `give_up`.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] if it is not there or does not compile here; [`Remedy::Restart`] if it was given up.
    pub fn get(&self, number: u64, hash: &str, give_up: &dyn Fn() -> bool) -> Result<Arc<LoadedSet>, LogError> {
        if let Some(set) = self.compiled(hash) {
            return Ok(set);
        }
        let error = |remedy, what: String| LogError::new(remedy, format!("activating rule set {number}"), what);
        let mut deadline = Instant::now() + LOOKUP_PATIENCE;
        while !give_up() {
            match self.topic.at(number) {
                Ok(Some(published)) if published.hash != hash => {
                    let what = "the control topic holds another set under its number: it was made anew";
                    return Err(error(Remedy::Refuse, what.to_owned()));
                }
                Ok(Some(published)) => {
                    return self.compile(&published).map_err(|why| {
                        let what =
                            format!("this binary cannot use it ({why}); run the version that it was published with");
                        error(Remedy::Refuse, what)
                    });
                }
                Ok(None) if Instant::now() > deadline => {
                    let what = "the control topic does not hold it; without it what follows would be other alerts";
                    return Err(error(Remedy::Refuse, what.to_owned()));
                }
                Ok(None) => {}
                Err(outage) if outage.remedy == Remedy::Retry => {
                    tracing::warn!(error = %outage, "looking for an activated rule set");
                    deadline = Instant::now() + LOOKUP_PATIENCE;
                }
                Err(error) => return Err(error),
            }
            runtime::sleep(BACKOFF_MIN);
        }
        Err(error(Remedy::Restart, "given up, since the partition is given back".to_owned()))
    }

    /// Takes a record of the control topic.
    fn follow(&self, published: &Published, health: &Health) {
        let compiled = self.compile(published);
        let mut known = self.lock();
        known.followed = (published.number, published.hash.clone());
        match compiled {
            Ok(set) => {
                tracing::info!(
                    number = published.number,
                    set = short(&set.hash),
                    rules = set.rules.rules.len(),
                    "a rule set is published"
                );
                for number in known.unusable.drain(..) {
                    health.clear(&unusable_key(number));
                }
                known.newest = Numbered { number: published.number, set };
            }
            Err(why) => {
                known.unusable.push(published.number);
                drop(known);
                report_unusable(published, &why, health);
            }
        }
    }

    fn compiled(&self, hash: &str) -> Option<Arc<LoadedSet>> {
        self.lock().compiled.get(hash)?.upgrade()
    }

    fn compile(&self, published: &Published) -> Result<Arc<LoadedSet>, Unusable> {
        // A record of a known hash and other bytes is not taken for the set it names.
        if let (Some(set), Ok(_)) = (self.compiled(&published.hash), published.document()) {
            return Ok(set);
        }
        let set = Arc::new(published.load()?);
        let mut known = self.lock();
        known.compiled.retain(|_, set| set.strong_count() > 0);
        known.compiled.insert(set.hash.clone(), Arc::downgrade(&set));
        Ok(set)
    }

    /// This instance sees to it that the newest set is activated in the partition, from [`Ownership::settle`] until the
    /// returned value is dropped.
    pub fn own(self: &Arc<Self>, partition: i32) -> Ownership {
        let mut known = self.lock();
        known.n_owners += 1;
        let owner = known.n_owners;
        known.partitions.insert(partition, Owned { owner, ..Owned::default() });
        Ownership { sets: self.clone(), partition, owner }
    }

    /// The change to a number is told once, not for each partition.
    pub fn is_first_to_tell(&self, number: u64) -> bool {
        let mut known = self.lock();
        let first = number > known.told;
        known.told = known.told.max(number);
        first
    }

    /// Partitions of this instance whose log does not hold the activation of the newest set.
    fn due(&self) -> (Numbered, Vec<i32>) {
        let known = self.lock();
        let number = known.newest.number;
        let due = known.partitions.iter().filter(|(_, owned)| owned.settled && owned.in_log < number);
        (known.newest.clone(), due.map(|(partition, _)| *partition).collect())
    }

    fn activate_where_due(&self, shared: &Shared) -> Result<(), LogError> {
        let (next, due) = self.due();
        if due.is_empty() {
            return Ok(());
        }
        append_activation(&*shared.log, &shared.topics.canonical, &due, &next)?;
        let mut known = self.lock();
        for partition in due {
            if let Some(owned) = known.partitions.get_mut(&partition) {
                owned.in_log = owned.in_log.max(next.number);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A partition's part in the control loop; given up when dropped.
pub(super) struct Ownership {
    sets: Arc<Sets>,
    partition: i32,
    owner: u64,
}

impl Ownership {
    /// What the partition's log says at its beginning was read: an activation that stands there is not appended again.
    pub fn settle(&self) {
        if let Some(owned) = self.sets.lock().partitions.get_mut(&self.partition) {
            owned.settled = true;
        }
    }

    /// An activation was met in the partition's log, or a set came into force without one.
    pub fn is_in_force(&self, number: u64, from_log: bool) {
        if let Some(owned) = self.sets.lock().partitions.get_mut(&self.partition) {
            owned.in_force = owned.in_force.max(number);
            if from_log {
                owned.in_log = owned.in_log.max(number);
            }
        }
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let mut known = self.sets.lock();
        if known.partitions.get(&self.partition).is_some_and(|owned| owned.owner == self.owner) {
            known.partitions.remove(&self.partition);
        }
    }
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared) {
    shared.supervise("control", || {
        let turning = shared.health.enter("control");
        let sets = &shared.sets;
        let mut reader = sets.topic.follow(sets.followed().0)?;
        let mut records = Vec::new();
        while !shared.stopping() {
            turning.beat();
            records.clear();
            match reader.read(RECORDS_MAX, WAIT, &mut records) {
                Ok(()) => {}
                // The client reconnects by itself; nothing was missed.
                Err(error) if error.remedy == Remedy::Retry => {
                    shared.broker_away(&error);
                    tracing::warn!(error = %error, "reading the control topic");
                    runtime::sleep(WAIT);
                }
                Err(error) => return Err(error),
            }
            for record in &records {
                sets.follow(&Published::from_record(record), &shared.health);
                turning.beat();
            }
            let _waiting = turning.waiting("the broker, appending activations");
            sets.activate_where_due(shared)?;
        }
        Ok(())
    });
}

/// Puts a set in force at the beginning of every canonical partition that is still empty: no reading may come before it.
pub(super) fn activate_where_nothing_stands(log: &dyn Log, topics: &Topics, next: &Numbered) -> Result<(), LogError> {
    let mut empty = Vec::new();
    for partition in 0..topics.partitions {
        let (_, end) = log.offsets(&topics.canonical, partition)?;
        empty.extend((end == 0).then_some(partition));
    }
    append_activation(log, &topics.canonical, &empty, next)
}

/// Appends the activation of a set to canonical partitions and waits until all are acknowledged. One that comes twice is
/// ignored by its number.
fn append_activation(log: &dyn Log, canonical: &str, partitions: &[i32], next: &Numbered) -> Result<(), LogError> {
    if partitions.is_empty() {
        return Ok(());
    }
    let control = Control::Activate { number: next.number, hash: next.set.hash.clone() };
    let record = ControlRecord { id: format!("activate-{}", next.number), control };
    // Producers cost threads, and activations are rare: one is made when it is needed.
    let mut appender = log.appender()?;
    for (token, partition) in (0..).zip(partitions) {
        appender.append(&control_record(canonical, *partition, &record), token)?;
    }
    let deadline = Instant::now() + APPEND_PATIENCE;
    let mut outcomes = Vec::new();
    while outcomes.len() < partitions.len() {
        if Instant::now() > deadline {
            let step = format!("activating rule set {}", next.number);
            return Err(LogError::new(Remedy::Retry, step, "the broker does not acknowledge it in time"));
        }
        appender.outcomes(Duration::from_millis(50), &mut outcomes);
    }
    outcomes.into_iter().try_for_each(|(_, outcome)| outcome.map(|_| ()))
}

/// Under this key health reports a published set that cannot be used here.
fn unusable_key(number: u64) -> String {
    format!("rules/{number}")
}

fn report_unusable(published: &Published, why: &Unusable, health: &Health) {
    tracing::error!(number = published.number, why = %why, "a published rule set cannot be used here");
    let finding = Finding::new(
        Severity::Degraded,
        format!("published rule set {} cannot be used by this instance: {why}", published.number),
        "this instance stays on the set it has; if another one activates it in a partition, this job ends when it gets there",
        "publish a set that this version can use, or run the version that it was published with",
    );
    health.report(unusable_key(published.number), finding);
}
