//! Simulated time: threads that take turns under a seeded scheduler.
//!
//! The threads are real, but only one of them runs at any moment, from one wait to the next. Who comes next is drawn from
//! the seed; when all wait, time moves to the first that is due. So a run is a function of its seed, and ten minutes take
//! as long as their work. Threads belong to instances, which can be killed (their threads unwind where they stand, and what
//! they do while unwinding reaches nobody) or frozen for a while (nothing of them runs, and time goes on for the others).

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread as SystemThread;
use std::time::Duration;

use super::fault::{Action, Fault, Happened};

/// The instance of the simulation's own threads: never killed, never frozen.
pub const WORLD: u32 = 0;
/// Time at which a simulation begins.
const BEGIN: Duration = Duration::from_secs(86_400);
/// Loops that look around now and then do so this often at most.
pub(super) const SHORTEST_IDLE: Duration = Duration::from_secs(2);

/// What threads wait for.
#[derive(Debug)]
pub(super) struct Key(u64);

impl Default for Key {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a thread of a killed instance unwinds with.
struct Killed;

/// A simulation.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

struct Shared {
    state: Mutex<State>,
    /// All threads have ended.
    over: Condvar,
    now_ns: AtomicU64,
}

struct State {
    rng: fastrand::Rng,
    seed: u64,
    threads: Vec<ThreadState>,
    /// Who has the turn.
    running: usize,
    frozen_until: BTreeMap<u32, Duration>,
    /// Times each fault point was reached.
    reached: BTreeMap<&'static str, u64>,
    /// Faults that wait for their point to be reached.
    armed: Vec<Fault>,
    happened: Vec<Happened>,
    removed: Option<&'static str>,
    panics: Vec<String>,
    switches: u64,
}

struct ThreadState {
    name: String,
    instance: u32,
    system: Option<SystemThread>,
    status: Status,
    doomed: bool,
    finished: Arc<AtomicBool>,
    joined: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Status {
    Ready,
    Waiting { key: Option<u64>, until: Duration },
    Done,
}

struct Context {
    shared: Arc<Shared>,
    slot: usize,
}

thread_local! {
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

fn context<T>(with: impl FnOnce(&Context) -> T) -> Option<T> {
    CONTEXT.with_borrow(|context| context.as_ref().map(with))
}

fn current() -> Option<(Arc<Shared>, usize)> {
    context(|context| (context.shared.clone(), context.slot))
}

/// This thread takes turns under a scheduler.
pub fn is_simulated() -> bool {
    context(|_| ()).is_some()
}

/// The simulated time, of a simulated thread.
pub(super) fn now() -> Option<Duration> {
    context(|context| context.shared.now())
}

/// Pauses a simulated thread; false for others.
pub(super) fn sleep(pause: Duration) -> bool {
    let Some((shared, slot)) = current() else {
        return false;
    };
    let until = shared.now() + pause;
    shared.wait(slot, Status::Waiting { key: None, until });
    true
}

pub(super) fn wait(key: &Key, timeout: Duration) {
    let Some((shared, slot)) = current() else {
        return;
    };
    if timeout.is_zero() {
        return;
    }
    let until = shared.now() + timeout;
    shared.wait(slot, Status::Waiting { key: Some(key.0), until });
}

pub(super) fn wake(key: &Key) {
    if let Some((shared, _)) = current() {
        shared.lock().wake(key.0);
    }
}

/// Gives others a turn.
fn give_way() {
    if let Some((shared, slot)) = current() {
        shared.wait(slot, Status::Ready);
    }
}

/// A simulated thread, as seen by who started it.
#[derive(Debug)]
pub(super) struct Simulated {
    slot: usize,
    finished: Arc<AtomicBool>,
    panicked: Arc<Mutex<Option<String>>>,
}

impl Simulated {
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    pub fn join(self) -> Result<(), Box<dyn Any + Send>> {
        let Some((shared, slot)) = current() else {
            return Ok(());
        };
        while !self.is_finished() && !std::thread::panicking() {
            let key = Some(shared.lock().threads[self.slot].joined);
            shared.wait(slot, Status::Waiting { key, until: Duration::MAX });
        }
        let panicked = self.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        panicked.map_or(Ok(()), |what| Err(Box::new(what)))
    }
}

pub(super) fn spawn(name: String, work: Box<dyn FnOnce() + Send>) -> std::io::Result<Simulated> {
    let (shared, slot) = current().ok_or_else(|| std::io::Error::other("not in a simulation"))?;
    if std::thread::panicking() {
        return Err(std::io::Error::other("the instance is killed"));
    }
    let instance = shared.lock().threads[slot].instance;
    shared.spawn(instance, name, work)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::SeqCst))
    }

    fn spawn(
        self: &Arc<Self>,
        instance: u32,
        name: String,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Simulated> {
        let finished = Arc::new(AtomicBool::new(false));
        let panicked = Arc::new(Mutex::new(None));
        let slot = {
            let mut state = self.lock();
            let joined = Key::default().0;
            state.threads.push(ThreadState {
                name: name.clone(),
                instance,
                system: None,
                status: Status::Ready,
                doomed: false,
                finished: finished.clone(),
                joined,
            });
            state.threads.len() - 1
        };
        let (shared, told) = (self.clone(), panicked.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let seed = shared.lock().seed;
            fastrand::seed(seed ^ slot as u64);
            CONTEXT.set(Some(Context { shared: shared.clone(), slot }));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                shared.await_turn(slot);
                work();
            }));
            CONTEXT.set(None);
            if let Err(payload) = outcome
                && !payload.is::<Killed>()
            {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let text = text.unwrap_or_else(|| "a panic".to_owned());
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
                let mut state = shared.lock();
                let name = state.threads[slot].name.clone();
                state.panics.push(format!("{name}: {text}"));
            }
            shared.end(slot);
        })?;
        self.lock().threads[slot].system = Some(thread.thread().clone());
        Ok(Simulated { slot, finished, panicked })
    }

    /// Gives the turn away until this thread has it again.
    fn wait(&self, slot: usize, status: Status) {
        if std::thread::panicking() {
            // A killed instance unwinds: it waits for nothing any more.
            return;
        }
        let mut state = self.lock();
        if !state.threads[slot].doomed {
            state.threads[slot].status = status;
            let next = state.choose(self);
            state.running = next;
            if next != slot {
                state.switches += 1;
                let system = state.threads[next].system.clone();
                drop(state);
                resume(system);
                self.await_turn(slot);
                return;
            }
            state.threads[slot].status = Status::Ready;
        }
        let doomed = state.threads[slot].doomed;
        drop(state);
        if doomed {
            resume_unwind(Box::new(Killed));
        }
    }

    fn await_turn(&self, slot: usize) {
        loop {
            let mut state = self.lock();
            if state.running == slot {
                state.threads[slot].status = Status::Ready;
                let doomed = state.threads[slot].doomed;
                drop(state);
                if doomed {
                    resume_unwind(Box::new(Killed));
                }
                return;
            }
            drop(state);
            std::thread::park();
        }
    }

    fn end(&self, slot: usize) {
        let mut state = self.lock();
        let thread = &mut state.threads[slot];
        thread.status = Status::Done;
        thread.finished.store(true, Ordering::SeqCst);
        let joined = thread.joined;
        state.wake(joined);
        if state.is_over() {
            self.over.notify_all();
            return;
        }
        let next = state.choose(self);
        state.running = next;
        state.switches += 1;
        let system = state.threads[next].system.clone();
        drop(state);
        resume(system);
    }
}

/// Wakes the thread that has the turn now; without the lock, which it takes first.
fn resume(system: Option<SystemThread>) {
    if let Some(system) = system {
        system.unpark();
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.threads.iter().all(|thread| thread.status == Status::Done)
    }

    fn wake(&mut self, woken: u64) {
        for thread in &mut self.threads {
            if matches!(thread.status, Status::Waiting { key: Some(key), .. } if key == woken) {
                thread.status = Status::Ready;
            }
        }
    }

    fn thaw(&self, instance: u32) -> Duration {
        self.frozen_until.get(&instance).copied().unwrap_or(Duration::ZERO)
    }

    /// Who is next: threads that unwind, then one of those that are ready, else the first that is due, with time moved on.
    fn choose(&mut self, shared: &Shared) -> usize {
        let unwinding = |thread: &ThreadState| thread.doomed && thread.status != Status::Done;
        if let Some(next) = self.threads.iter().position(unwinding) {
            return next;
        }
        let now = shared.now();
        let mut ready = Vec::new();
        let mut first: Option<Duration> = None;
        for (slot, thread) in self.threads.iter().enumerate() {
            let due = match thread.status {
                Status::Done => continue,
                Status::Ready => self.thaw(thread.instance),
                Status::Waiting { until, .. } => until.max(self.thaw(thread.instance)),
            };
            if due <= now {
                ready.push(slot);
            } else if ready.is_empty() {
                first = Some(first.map_or(due, |known| known.min(due)));
            }
        }
        if ready.is_empty() {
            let first = first.filter(|first| *first < Duration::MAX);
            let Some(first) = first else {
                let waiting: Vec<&str> = self
                    .threads
                    .iter()
                    .filter(|thread| thread.status != Status::Done)
                    .map(|thread| thread.name.as_str())
                    .collect();
                eprintln!("the simulation stands still: {} wait for ever", waiting.join(", "));
                std::process::abort();
            };
            shared.now_ns.store(first.as_nanos() as u64, Ordering::SeqCst);
            for (slot, thread) in self.threads.iter().enumerate() {
                let due = match thread.status {
                    Status::Done => continue,
                    Status::Ready => self.thaw(thread.instance),
                    Status::Waiting { until, .. } => until.max(self.thaw(thread.instance)),
                };
                if due <= first {
                    ready.push(slot);
                }
            }
        }
        ready[self.rng.usize(0..ready.len())]
    }

    fn doom(&mut self, instance: u32) {
        self.frozen_until.remove(&instance);
        for thread in self.threads.iter_mut().filter(|thread| thread.instance == instance) {
            thread.doomed |= thread.status != Status::Done;
        }
    }
}

impl World {
    /// Runs a simulation as its root thread, and ends all its threads afterwards. Gives what it gave, or what it panicked
    /// with.
    ///
    /// # Panics
    /// If the system has no threads left.
    pub fn run<T: Send + 'static>(seed: u64, root: impl FnOnce(World) -> T + Send + 'static) -> Result<T, String> {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            seed,
            threads: Vec::new(),
            running: 0,
            frozen_until: BTreeMap::new(),
            reached: BTreeMap::new(),
            armed: Vec::new(),
            happened: Vec::new(),
            removed: None,
            panics: Vec::new(),
            switches: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            over: Condvar::new(),
            now_ns: AtomicU64::new(BEGIN.as_nanos() as u64),
        });
        let result = Arc::new(Mutex::new(None));
        let (place, own) = (result.clone(), World { shared: shared.clone() });
        let work = Box::new(move || {
            let given = catch_unwind(AssertUnwindSafe(|| root(own.clone())));
            own.end_all();
            match given {
                Ok(given) => *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(given),
                Err(payload) => resume_unwind(payload),
            }
        });
        let root = shared.spawn(WORLD, "simulation".to_owned(), work).expect("a thread for the simulation");
        // The root has the first turn.
        resume(shared.lock().threads[root.slot].system.clone());
        let mut state = shared.lock();
        while !state.is_over() {
            state = shared.over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let given = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        given.ok_or_else(|| {
            let panicked = root.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
            panicked.unwrap_or_else(|| "the simulation gave nothing".to_owned())
        })
    }

    fn end_all(&self) {
        let mut state = self.shared.lock();
        let instances: BTreeSet<u32> = state.threads.iter().map(|thread| thread.instance).collect();
        for instance in instances.into_iter().filter(|instance| *instance != WORLD) {
            state.doom(instance);
        }
        let running = state.running;
        for thread in 0..state.threads.len() {
            let is_other = thread != running && state.threads[thread].status != Status::Done;
            state.threads[thread].doomed |= is_other;
        }
    }

    /// Starts a thread of an instance.
    ///
    /// # Errors
    /// If the system has none left.
    pub fn spawn(&self, instance: u32, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.shared.spawn(instance, name.to_owned(), Box::new(work)).map(|_| ())
    }

    /// Time since the simulation began.
    pub fn elapsed(&self) -> Duration {
        self.shared.now().saturating_sub(BEGIN)
    }

    /// Ends an instance where it stands. Its threads have unwound when this returns.
    pub fn kill(&self, instance: u32) {
        self.shared.lock().doom(instance);
        // Those that unwind go first.
        give_way();
    }

    /// Nothing of the instance runs for so long.
    pub fn freeze(&self, instance: u32, pause: Duration) {
        let until = self.shared.now() + pause;
        self.shared.lock().frozen_until.insert(instance, until);
    }

    /// Has a fault happen when its point is reached next.
    pub fn arm(&self, fault: Fault) {
        self.shared.lock().armed.push(fault);
    }

    /// Faults that have not happened do not happen any more.
    pub fn disarm(&self) {
        self.shared.lock().armed.clear();
    }

    /// Takes away a safeguard, to see that it matters.
    pub fn remove(&self, safeguard: &'static str) {
        self.shared.lock().removed = Some(safeguard);
    }

    /// Faults that happened since this was asked last.
    pub fn happened(&self) -> Vec<Happened> {
        std::mem::take(&mut self.shared.lock().happened)
    }

    /// Times each fault point was reached.
    pub fn reached(&self) -> BTreeMap<&'static str, u64> {
        self.shared.lock().reached.clone()
    }

    /// Panics of threads that were not killed.
    pub fn panics(&self) -> Vec<String> {
        self.shared.lock().panics.clone()
    }

    /// Times the turn went from one thread to another.
    pub fn switches(&self) -> u64 {
        self.shared.lock().switches
    }
}

/// What is to happen at a fault point that this thread has reached; killing and freezing happen right here.
pub(super) fn reach(point: &'static str) -> Option<Action> {
    let (shared, slot) = current()?;
    if std::thread::panicking() {
        return None;
    }
    let mut state = shared.lock();
    *state.reached.entry(point).or_default() += 1;
    let instance = state.threads[slot].instance;
    let matches = |fault: &Fault| fault.point == point;
    let place = state.armed.iter().position(matches)?;
    let fault = state.armed.remove(place);
    let at = shared.now().saturating_sub(BEGIN);
    state.happened.push(Happened { point, instance, action: fault.action, at });
    match fault.action {
        Action::Kill => {
            state.doom(instance);
            drop(state);
            shared.wait(slot, Status::Ready);
            None
        }
        Action::Freeze(pause) => {
            let until = shared.now() + pause;
            state.frozen_until.insert(instance, until);
            drop(state);
            shared.wait(slot, Status::Ready);
            None
        }
        Action::Delay(pause) => {
            drop(state);
            sleep(pause);
            None
        }
        Action::Fail | Action::Repeat => Some(fault.action),
    }
}

pub(super) fn is_removed(safeguard: &'static str) -> bool {
    context(|context| context.shared.lock().removed == Some(safeguard)).unwrap_or(false)
}
