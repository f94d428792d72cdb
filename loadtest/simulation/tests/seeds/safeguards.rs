//! Safeguards that a simulation can take away, each with a seed that then breaks a law.

/// A safeguard by the name it has in the code, and a seed that shows that it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Safeguard {
    pub name: &'static str,
    /// The law that breaks.
    pub law: &'static str,
    pub seed: u64,
}

/// All of them.
pub const SAFEGUARDS: [Safeguard; 11] = [
    Safeguard { name: "mute while replaying", law: "transitions", seed: 2 },
    Safeguard { name: "fence first", law: "transitions", seed: 1 },
    Safeguard { name: "outbox", law: "transitions", seed: 3 },
    Safeguard { name: "unknown outcomes are looked up", law: "transitions", seed: 9 },
    Safeguard { name: "source marks", law: "transitions", seed: 1 },
    Safeguard { name: "gapless appends", law: "ticks", seed: 57 },
    Safeguard { name: "source offsets wait for acknowledgment", law: "accounting", seed: 2 },
    Safeguard { name: "truthful ticks", law: "ticks", seed: 1 },
    Safeguard { name: "checkpoint header", law: "transitions", seed: 1 },
    Safeguard { name: "stable ids", law: "transitions", seed: 1 },
    Safeguard { name: "acknowledged means delivered", law: "sinks", seed: 6 },
];
