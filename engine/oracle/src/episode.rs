//! Episodes, and what a rule remembers of a key (section 6).

use super::rule::{PRIORITIES, Priority, Verdict};
use super::series::SeriesId;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TrackId {
    pub patient: String,
    pub key: String,
    pub rule: String,
}

/// A value of a source clock.
#[derive(Clone)]
pub struct Stamp {
    pub source: String,
    pub us: i64,
}

#[derive(Clone)]
pub struct Episode {
    pub start: i64,
    pub priority: Priority,
    pub highest: Priority,
    pub next_number: u32,
    pub last_at: i64,
    pub latched: bool,
    pub acknowledged: bool,
}

#[derive(Clone)]
pub struct Ended {
    pub start: i64,
    pub at: i64,
    pub clock: Stamp,
    pub highest: Priority,
    pub cools_down: bool,
}

#[derive(Default)]
pub struct Track {
    pub open: Option<Episode>,
    pub ended: Option<Ended>,
}

#[derive(Clone)]
pub struct Run {
    pub began: i64,
    pub since: i64,
    pub newest: i64,
    /// The key's clock at the evaluation that set `since`, moved as that moved.
    pub clock: Stamp,
}

/// First and newest evaluation of a run that a distance above the gap starts again.
#[derive(Clone, Copy)]
pub struct Span {
    pub first: i64,
    pub newest: i64,
}

impl Span {
    pub fn extended(span: Option<Self>, t: i64, gap: Option<i64>) -> Self {
        match span {
            Some(span) if gap.is_none_or(|gap| t - span.newest <= gap) => Self { first: span.first, newest: t },
            _ => Self { first: t, newest: t },
        }
    }
}

/// What a rule remembers of a key.
#[derive(Default)]
pub struct State {
    pub evaluated: Option<i64>,
    pub runs: [Option<Run>; 3],
    pub clearing: Option<Span>,
    pub lower: Option<Span>,
    /// The run of `clear` that another series' episode may end by (7.2), open episode or not.
    pub well: Option<Span>,
    /// The rule means something else since the newest evaluation (section 10).
    pub changed: bool,
}

impl State {
    pub fn forget_runs(&mut self) {
        self.runs = [None, None, None];
        self.clearing = None;
        self.lower = None;
    }

    /// Section 6.1.
    pub fn extend_runs(&mut self, verdict: Verdict, t: i64, clock: &Stamp, reads: &Reads) {
        for (priority, run) in PRIORITIES.into_iter().zip(&mut self.runs) {
            match verdict {
                Verdict::Unknown => {}
                Verdict::True(said) if said >= priority => {
                    let fresh = Run { began: t, since: t, newest: t, clock: clock.clone() };
                    *run = Some(match run.take() {
                        Some(run) if reads.restart_above.is_none_or(|limit| t - run.newest <= limit) => {
                            let uncounted = reads.gap.map_or(0, |gap| (t - run.newest - gap).max(0));
                            Run {
                                since: run.since + uncounted,
                                newest: t,
                                clock: Stamp { us: run.clock.us + uncounted, ..run.clock },
                                ..run
                            }
                        }
                        _ => fresh,
                    });
                }
                Verdict::True(_) | Verdict::False => *run = None,
            }
        }
    }
}

/// A key of a rule, and what it reads.
pub struct Reads {
    pub series: Vec<SeriesId>,
    pub gap: Option<i64>,
    /// A longer distance starts a run again; none is no limit.
    pub restart_above: Option<i64>,
}
