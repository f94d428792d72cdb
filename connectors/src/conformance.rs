//! Conformance kits: what the traits of this crate ask of an implementation, as checks that anybody can run on theirs.
//!
//! A kit plays both neighbors of the implementation: the engine that calls it, and the other side that answers, fails, is
//! slow or loses its answer. It needs no broker and nothing outside this process. The sinks of this crate pass the same
//! checks (`tests/sink_conformance.rs`).

pub mod sink;

mod endpoint;
