//! Threads, pauses and the monotonic clock, in one place.
//!
//! Everything of the pipeline that waits does so through here. In a product that is the operating system. With the feature
//! `simulation`, threads that a simulation started take turns under a seeded scheduler, and time passes only when all of
//! them wait: see `simulated`. Threads outside a simulation are not concerned.

pub mod fault;
#[cfg(feature = "simulation")]
pub mod simulated;

use std::any::Any;
use std::ops::{Add, AddAssign, Sub};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An instant of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

/// What instants of this process are counted from, with a start that leaves room for instants before it.
static ORIGIN: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
const BEFORE_ORIGIN: Duration = Duration::from_secs(86_400);

impl Instant {
    pub fn now() -> Self {
        #[cfg(feature = "simulation")]
        if let Some(now) = simulated::now() {
            return Self(now);
        }
        Self(BEFORE_ORIGIN + ORIGIN.elapsed())
    }

    pub fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }

    /// Zero if `earlier` is later.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// As [`Instant::saturating_duration_since`].
    pub fn duration_since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }

    pub fn checked_sub(self, by: Duration) -> Option<Self> {
        self.0.checked_sub(by).map(Self)
    }

    /// The same instant for timers of a tokio runtime.
    pub fn for_tokio(self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.saturating_duration_since(Self::now())
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Lets this thread rest.
pub fn sleep(pause: Duration) {
    #[cfg(feature = "simulation")]
    if simulated::sleep(pause) {
        return;
    }
    std::thread::sleep(pause);
}

/// A pause that `is_over` ends.
pub fn rest(pause: Duration, is_over: impl Fn() -> bool) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !is_over() {
        sleep(idle(REST_SLICE).min(until - Instant::now()));
    }
}

/// How long somebody waits who would look around again after `wait`. In simulated time that is done less often.
pub fn idle(wait: Duration) -> Duration {
    #[cfg(feature = "simulation")]
    if simulated::is_simulated() && !wait.is_zero() {
        return wait.max(simulated::SHORTEST_IDLE);
    }
    wait
}

/// A rest looks this often whether it is over.
const REST_SLICE: Duration = Duration::from_millis(20);

/// A thread that was started here.
#[derive(Debug)]
pub struct Thread {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    System(std::thread::JoinHandle<()>),
    #[cfg(feature = "simulation")]
    Simulated(simulated::Simulated),
}

/// Starts a thread.
///
/// # Errors
/// If the system has none left.
pub fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    #[cfg(feature = "simulation")]
    if simulated::is_simulated() {
        return simulated::spawn(name, Box::new(work)).map(|thread| Thread { inner: Inner::Simulated(thread) });
    }
    std::thread::Builder::new().name(name).spawn(work).map(|thread| Thread { inner: Inner::System(thread) })
}

impl Thread {
    pub fn is_finished(&self) -> bool {
        match &self.inner {
            Inner::System(thread) => thread.is_finished(),
            #[cfg(feature = "simulation")]
            Inner::Simulated(thread) => thread.is_finished(),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// What it panicked with.
    pub fn join(self) -> Result<(), Box<dyn Any + Send>> {
        match self.inner {
            Inner::System(thread) => thread.join(),
            #[cfg(feature = "simulation")]
            Inner::Simulated(thread) => thread.join(),
        }
    }
}

/// A condition variable. It may wake without reason, as others do.
#[derive(Debug, Default)]
pub struct Signal {
    condition: Condvar,
    #[cfg(feature = "simulation")]
    key: simulated::Key,
}

impl Signal {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notify_all(&self) {
        #[cfg(feature = "simulation")]
        simulated::wake(&self.key);
        self.condition.notify_all();
    }

    /// Gives `guard`, a guard of `mutex`, back while waiting for a notification or for `timeout`.
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        #[cfg(feature = "simulation")]
        if simulated::is_simulated() {
            drop(guard);
            simulated::wait(&self.key, timeout);
            return mutex.lock().unwrap_or_else(PoisonError::into_inner);
        }
        #[cfg(not(feature = "simulation"))]
        let _ = mutex;
        self.condition.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Does several things side by side and gives what came of each, in their order; a panic of one is an error of it.
pub fn side_by_side<T: Send + 'static>(
    name: &str,
    works: Vec<Box<dyn FnOnce() -> T + Send>>,
) -> Vec<std::thread::Result<T>> {
    let started: Vec<_> = works
        .into_iter()
        .map(|work| {
            let result = std::sync::Arc::new(Mutex::new(None));
            let place = result.clone();
            let thread = spawn(name.to_owned(), move || {
                let done = work();
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
            });
            (thread, result)
        })
        .collect();
    let joined = started.into_iter().map(|(thread, result)| {
        thread.map_err(|error| Box::new(error.to_string()) as Box<dyn Any + Send>)?.join()?;
        let done = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.ok_or_else(|| Box::new("it gave nothing") as Box<dyn Any + Send>)
    });
    joined.collect()
}
