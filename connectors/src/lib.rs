//! Everything that knows a wire format: logs, decoders, sinks.
//!
//! [`log`] is the one abstraction the pipeline stands on, with two implementations (Apache Kafka and in memory) and one
//! test suite for both. [`canonical`] is how readings and control records look on the canonical log. [`decode`] turns
//! source records into decoded fields, [`sink`] takes alerts out into the world, [`conformance`] holds the sinks of others
//! to the same behavior as ours. No decisions are taken here.

pub mod log;

pub mod canonical;
pub mod decode;
pub mod sink;

pub mod clock;
pub mod partitioner;
pub mod runtime;
pub mod secret;

pub mod conformance;
