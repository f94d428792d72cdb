//! The one place that reads the machine's clock. Everything else gets times through parameters.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use wardbell_schemas::Micros;

/// Where times come from. For measuring and for append times of the in-memory log, never for a decision.
pub trait Clock: Debug + Send + Sync {
    /// Microseconds since 1970 UTC.
    fn now_us(&self) -> Micros;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the rim where time comes in")]
    fn now_us(&self) -> Micros {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since_epoch.map_or(0, |elapsed| elapsed.as_micros() as Micros)
    }
}

/// A clock that stands until it is set; for tests.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    pub fn set(&self, now_us: Micros) {
        self.0.store(now_us, Ordering::SeqCst);
    }

    pub fn advance(&self, by_us: Micros) {
        self.0.fetch_add(by_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> Micros {
        self.0.load(Ordering::SeqCst)
    }
}
