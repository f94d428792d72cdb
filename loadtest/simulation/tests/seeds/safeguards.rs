//! Safeguards that a simulation can take away, each with a seed that then breaks a law.

/// A safeguard by the name it has in the code, and a seed that shows that it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Safeguard {
    pub name: &'static str,
    pub seed: u64,
}

/// All of them.
pub const SAFEGUARDS: [Safeguard; 11] = [
    Safeguard { name: "mute while replaying", seed: 0 },
    Safeguard { name: "fence first", seed: 0 },
    Safeguard { name: "outbox", seed: 0 },
    Safeguard { name: "unknown outcomes are looked up", seed: 0 },
    Safeguard { name: "source marks", seed: 0 },
    Safeguard { name: "gapless appends", seed: 0 },
    Safeguard { name: "source offsets wait for acknowledgment", seed: 0 },
    Safeguard { name: "truthful ticks", seed: 0 },
    Safeguard { name: "checkpoint named by the offset", seed: 0 },
    Safeguard { name: "stable ids", seed: 0 },
    Safeguard { name: "acknowledged means delivered", seed: 0 },
];
