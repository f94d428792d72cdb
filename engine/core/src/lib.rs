//! The deterministic core: normalizing a decoded record, and the state machine of one canonical partition.
//!
//! Log in, transitions out. It knows no Kafka, no HTTP, no files, no clock and no threads: everything it decides on comes
//! through its parameters, so a replay of the log is the run. Reading order: [`normalize`] (a decoded record becomes
//! canonical readings), [`partition`] (readings become transitions), [`window`] and [`episode`] (what a partition is made
//! of), [`exact`] (the only rounding).

pub mod normalize;

pub mod partition;

pub mod episode;
pub mod window;

pub mod exact;

/// Rule tests: a case of the test notation run through a partition.
pub mod trial;
