//! Episodes: one rule, one key, from the first evaluation that says something to the transition that ends it.
//!
//! An alarm step is a pure function of the state and one evaluation (or one timer); it gives the transitions it caused.
//! Runs count how long a condition has held, priority by priority; time without data above the allowed gap does not
//! count. Who evaluates and when timers fire is [`crate::partition`]'s matter. Meaning: semantics section 6.

use serde::{Deserialize, Serialize};
use wardbell_rules::Rule;
use wardbell_rules::ir::Verdict;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Priority, TransitionKind};

/// An unbroken stretch of evaluations that said at least one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Where it began, moved later by what did not count.
    since: Micros,
    /// The key's clock at the evaluation that set `since`, moved as that moved.
    since_clock: Micros,
    /// Number of that clock.
    clock: u32,
    /// The newest evaluation of the run.
    newest: Micros,
}

/// An unbroken stretch of evaluations, without moving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    start: Micros,
    newest: Micros,
}

impl Stretch {
    fn extend(stretch: &mut Option<Stretch>, at: Micros, gap_us: Option<Micros>) {
        match stretch {
            Some(run) if gap_us.is_none_or(|gap| at - run.newest <= gap) => run.newest = at,
            _ => *stretch = Some(Stretch { start: at, newest: at }),
        }
    }

    fn length(self) -> Micros {
        self.newest - self.start
    }
}

/// An episode that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub start: Micros,
    pub condition_start: Micros,
    pub priority: Priority,
    /// The highest it ever had.
    pub(crate) highest: Priority,
    /// Number of its next transition.
    pub(crate) next_number: u32,
    pub latched: bool,
    pub acknowledged: bool,
    /// `T` of its newest transition; none goes below it.
    pub(crate) newest_at: Micros,
    /// Version of the rule that raised it.
    pub raised_by_version: u32,
    pub(crate) clear: Option<Stretch>,
    pub(crate) lower: Option<Stretch>,
}

/// What is remembered of the episode before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub(crate) start: Micros,
    pub(crate) at: Micros,
    pub(crate) clock: Micros,
    /// Number of that clock.
    pub(crate) clock_number: u32,
    pub(crate) highest: Priority,
    /// Ended by `cleared` or `reset`: a cool-down applies.
    pub(crate) cools_down: bool,
}

impl Ended {
    /// Its key was forgotten: only the time before which no new episode begins is left of it.
    pub fn forget_cool_down(&mut self) {
        self.cools_down = false;
    }

    pub fn at(&self) -> Micros {
        self.at
    }

    pub fn move_clock(&mut self, clock: u32, by: Micros) {
        if self.clock_number == clock {
            self.clock += by;
        }
    }
}

/// Everything one rule knows about one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// By priority, low first.
    runs: [Option<Run>; 3],
    condition_start: Micros,
    /// Evaluations at which `clear` was true, open episode or not: they also end what a silent device left open.
    clear: Option<Stretch>,
    open: Option<Box<Open>>,
    ended: Option<Box<Ended>>,
    /// The rule has changed: its first evaluation may end what the old one opened.
    changed: bool,
    /// `T` of the newest evaluation.
    pub evaluated_at: Option<Micros>,
    /// Clock value for which a timer is armed.
    #[serde(skip)]
    pub armed: Option<Micros>,
}

/// What an evaluation stands on besides its verdict.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub at: Micros,
    /// The key's clock, and its number.
    pub clock: Micros,
    pub clock_number: u32,
    /// The allowed gap G; `None`: infinite.
    pub gap_us: Option<Micros>,
    /// A longer distance starts a run again; `None`: never.
    pub restart_us: Option<Micros>,
}

/// One transition, as the episode sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub kind: TransitionKind,
    pub at: Micros,
    pub by_timer: bool,
    /// The episode's priority afterwards.
    pub priority: Priority,
    pub start: Micros,
    pub condition_start: Micros,
    pub number: u32,
    pub raised_by_version: u32,
}

impl KeyState {
    pub fn open(&self) -> Option<&Open> {
        self.open.as_deref()
    }

    /// No run, no episode, no timer: an evaluation that does not say true changes next to nothing.
    pub fn is_quiet(&self) -> bool {
        // The run for low is there whenever another is.
        self.runs[0].is_none() && self.open.is_none() && self.armed.is_none() && !self.changed
    }

    /// An evaluation of a quiet key that did not say true. False if the allowed gap, which is at least `certain_gap_us`,
    /// has to be known for it: nothing has changed then.
    pub fn pass(&mut self, clear: Option<bool>, at: Micros, certain_gap_us: Micros) -> bool {
        if clear == Some(true) {
            match &mut self.clear {
                Some(run) if at - run.newest > certain_gap_us => return false,
                Some(run) => run.newest = at,
                none => *none = Some(Stretch { start: at, newest: at }),
            }
        } else {
            self.clear = None;
        }
        self.evaluated_at = Some(at);
        true
    }

    /// Reads a word of each of its cache lines: see `partition/ahead.rs`.
    #[inline]
    pub fn touch(&self) -> u64 {
        let runs = self.runs[0].is_some() ^ self.runs[1].is_some() ^ self.runs[2].is_some();
        let others = self.clear.is_some() ^ self.open.is_some() ^ self.evaluated_at.is_some() ^ self.armed.is_some();
        self.condition_start as u64 ^ u64::from(runs ^ others ^ self.changed)
    }

    /// Nothing is remembered that a future evaluation could depend on.
    pub fn is_blank(&self) -> bool {
        *self == Self::default()
    }

    /// How long `clear` has been true without a break, if it was at the newest evaluation.
    pub fn clear_for(&self) -> Option<Micros> {
        self.clear.map(Stretch::length)
    }

    /// One evaluation: runs, then raise or escalate, de-escalate, clear, then timers looked at again.
    pub fn evaluate(
        &mut self,
        rule: &Rule,
        verdict: Verdict,
        clear: Option<bool>,
        moment: &Moment,
        steps: &mut Vec<Step>,
    ) {
        self.evaluated_at = Some(moment.at);
        self.extend_runs(verdict, moment);
        self.extend_stretches(verdict, clear, moment);
        if std::mem::take(&mut self.changed) && clear == Some(true) && !self.open.as_deref().is_some_and(|o| o.latched)
        {
            steps.extend(self.end(TransitionKind::RuleChanged, moment.at, (moment.clock, moment.clock_number)));
        }
        if let Verdict::True(said) = verdict
            && let Some(priority) = self.due_by_reading(rule, said, moment.at)
        {
            self.go_up(rule, priority, moment.at, false, steps);
        }
        self.go_down(rule, verdict, moment, steps);
        self.look_at_timers(rule, moment.clock, moment.gap_us, steps);
    }

    /// Timers due at clock value `due`. Called in the order of due values, after the clock moved to `clock`.
    pub fn fire(&mut self, rule: &Rule, due: Micros, gap_us: Option<Micros>, steps: &mut Vec<Step>) {
        self.look_at_timers(rule, due, gap_us, steps);
    }

    /// The next clock value at which a timer could raise or escalate, if any is still ahead.
    pub fn next_due(&self, rule: &Rule, clock: Micros) -> Option<Micros> {
        let candidates = Priority::ALL.into_iter().filter(|priority| self.above_open(*priority));
        candidates
            .filter_map(|priority| self.due(rule, priority))
            .map(|(due_clock, _)| due_clock)
            .filter(|due| *due > clock)
            .min()
    }

    fn extend_runs(&mut self, verdict: Verdict, moment: &Moment) {
        for (i, priority) in Priority::ALL.into_iter().enumerate() {
            let fresh =
                Run { since: moment.at, since_clock: moment.clock, clock: moment.clock_number, newest: moment.at };
            let run = &mut self.runs[i];
            match verdict {
                Verdict::Unknown => continue,
                Verdict::True(said) if said >= priority => match run {
                    Some(run) => {
                        let distance = moment.at - run.newest;
                        if moment.restart_us.is_some_and(|longest| distance > longest) {
                            *run = fresh;
                        } else {
                            let not_counted = moment.gap_us.map_or(0, |gap| (distance - gap).max(0));
                            run.since += not_counted;
                            run.since_clock += not_counted;
                            run.newest = moment.at;
                            continue;
                        }
                    }
                    None => *run = Some(fresh),
                },
                Verdict::False | Verdict::True(_) => {
                    *run = None;
                    continue;
                }
            }
            if priority == Priority::Low {
                self.condition_start = moment.at;
            }
        }
    }

    fn extend_stretches(&mut self, verdict: Verdict, clear: Option<bool>, moment: &Moment) {
        if clear == Some(true) {
            Stretch::extend(&mut self.clear, moment.at, moment.gap_us);
        } else {
            self.clear = None;
        }
        let Some(open) = self.open.as_deref_mut() else {
            return;
        };
        if clear == Some(true) {
            Stretch::extend(&mut open.clear, moment.at, moment.gap_us);
        } else {
            open.clear = None;
        }
        match verdict {
            Verdict::True(said) if said < open.priority => Stretch::extend(&mut open.lower, moment.at, moment.gap_us),
            _ => open.lower = None,
        }
    }

    /// A priority that an episode could rise to.
    fn above_open(&self, priority: Priority) -> bool {
        self.open.as_deref().is_none_or(|open| open.latched || priority > open.priority)
    }

    /// The end of the cool-down that holds this priority back, as (clock, `T`).
    fn held_back_until(&self, rule: &Rule, priority: Priority) -> Option<(Micros, Micros)> {
        if self.open.is_some() {
            return None;
        }
        let (ended, cool_down) = (self.ended.as_deref()?, rule.cool_down_us?);
        (ended.cools_down && priority <= ended.highest).then_some((ended.clock + cool_down, ended.at + cool_down))
    }

    /// A hold is complete and only the cool-down keeps it from being raised.
    pub fn is_held_back(&self, rule: &Rule) -> bool {
        let complete = |run: Run| run.newest - run.since >= rule.hold_us;
        self.runs[Priority::Low as usize].is_some_and(complete) && self.held_back_until(rule, Priority::Low).is_some()
    }

    /// When the hold of a priority is over, as (clock, `T`).
    fn due(&self, rule: &Rule, priority: Priority) -> Option<(Micros, Micros)> {
        let run = self.runs[priority as usize]?;
        let due = (run.since_clock + rule.hold_us, run.since + rule.hold_us);
        Some(match self.held_back_until(rule, priority) {
            Some(until) => (due.0.max(until.0), due.1.max(until.1)),
            None => due,
        })
    }

    fn due_by_reading(&self, rule: &Rule, said: Priority, at: Micros) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|priority| {
            *priority <= said
                && self.above_open(*priority)
                && self.due(rule, *priority).is_some_and(|(_, due)| at >= due)
        })
    }

    fn look_at_timers(&mut self, rule: &Rule, clock: Micros, gap_us: Option<Micros>, steps: &mut Vec<Step>) {
        let due = Priority::ALL.into_iter().rev().find_map(|priority| {
            let (due_clock, due_at) = self.due(rule, priority)?;
            let newest = self.runs[priority as usize]?.newest;
            let fresh = gap_us.is_none_or(|gap| due_at - newest <= gap);
            (self.above_open(priority) && due_clock <= clock && fresh).then_some((priority, due_at))
        });
        if let Some((priority, due_at)) = due {
            self.go_up(rule, priority, due_at, true, steps);
        }
    }

    /// Raised, raised again while latched, or escalated.
    fn go_up(&mut self, rule: &Rule, priority: Priority, at: Micros, by_timer: bool, steps: &mut Vec<Step>) {
        let kind = match self.open.as_deref_mut() {
            None => {
                let ended = self.ended.as_deref();
                let floor = ended.map_or(Micros::MIN, |ended| (ended.at + 1).max(ended.start + 1));
                self.open = Some(Box::new(Open {
                    start: self.condition_start.max(floor),
                    condition_start: self.condition_start,
                    priority,
                    highest: priority,
                    next_number: 0,
                    latched: false,
                    acknowledged: false,
                    newest_at: Micros::MIN,
                    raised_by_version: rule.version,
                    clear: None,
                    lower: None,
                }));
                TransitionKind::Raised
            }
            Some(open) => {
                let kind = if open.latched { TransitionKind::Raised } else { TransitionKind::Escalated };
                if open.latched {
                    open.condition_start = self.condition_start;
                    open.clear = None;
                }
                open.latched = false;
                open.acknowledged = false;
                open.priority = priority;
                open.highest = open.highest.max(priority);
                open.lower = None;
                kind
            }
        };
        steps.extend(self.step(kind, at, by_timer));
    }

    fn go_down(&mut self, rule: &Rule, verdict: Verdict, moment: &Moment, steps: &mut Vec<Step>) {
        let Some(open) = self.open.as_deref_mut().filter(|open| !open.latched) else {
            return;
        };
        if let Verdict::True(said) = verdict
            && open.lower.is_some_and(|lower| lower.length() >= rule.clear_hold_us)
        {
            open.priority = said;
            open.lower = None;
            steps.extend(self.step(TransitionKind::Deescalated, moment.at, false));
        } else if open.clear.is_some_and(|clear| clear.length() >= rule.clear_hold_us) {
            steps.extend(self.clear_or_latch(
                rule,
                TransitionKind::Cleared,
                moment.at,
                (moment.clock, moment.clock_number),
            ));
        }
    }

    /// Ends the episode with `kind`, or latches it where the rule says so. Forgets every run.
    pub fn clear_or_latch(
        &mut self,
        rule: &Rule,
        kind: TransitionKind,
        at: Micros,
        clock: (Micros, u32),
    ) -> Option<Step> {
        // What is latched waits for a person, also where a changed rule does not latch any more.
        self.open.as_deref().filter(|open| !open.latched)?;
        if !rule.latching {
            return self.end(kind, at, clock);
        }
        let open = self.open.as_deref_mut()?;
        open.latched = true;
        open.clear = None;
        open.lower = None;
        self.runs = [None; 3];
        self.step(TransitionKind::Latched, at, false)
    }

    /// Ends the episode, if one is open. Forgets every run. `clock` is the key's, with its number.
    pub fn end(&mut self, kind: TransitionKind, at: Micros, (clock, clock_number): (Micros, u32)) -> Option<Step> {
        let step = self.step(kind, at, false)?;
        let open = self.open.take()?;
        self.runs = [None; 3];
        let cools_down = matches!(kind, TransitionKind::Cleared | TransitionKind::Reset);
        self.ended = Some(Box::new(Ended {
            start: open.start,
            at: step.at,
            clock,
            clock_number,
            highest: open.highest,
            cools_down,
        }));
        Some(step)
    }

    /// The rule means something else from now on: runs start over, what is open stays until the new rule says otherwise.
    pub fn start_over(&mut self) {
        self.runs = [None; 3];
        self.clear = None;
        if let Some(open) = self.open.as_deref_mut() {
            (open.clear, open.lower) = (None, None);
        }
        self.changed = true;
    }

    /// A person has seen it. A second acknowledgment changes nothing.
    pub fn acknowledge(&mut self, at: Micros) -> Option<Step> {
        let open = self.open.as_deref_mut().filter(|open| !open.acknowledged && !open.latched)?;
        open.acknowledged = true;
        self.step(TransitionKind::Acknowledged, at, false)
    }

    /// A person ends a latched episode.
    pub fn reset(&mut self, at: Micros, clock: (Micros, u32)) -> Option<Step> {
        self.open.as_deref().filter(|open| open.latched)?;
        self.end(TransitionKind::Reset, at, clock)
    }

    /// Another history holds than the one that led here: `open` and `ended` are its newest episodes. One that is open only
    /// here ends without a word. Runs stay. `clock` is the key's, with its number.
    pub fn correct(&mut self, open: Option<Open>, ended: Option<Ended>, (clock, clock_number): (Micros, u32)) {
        let own = self.open.take().map(|own| *own);
        let (same, own) = match (own, &open) {
            (Some(own), Some(open)) if own.start == open.start => (Some(own), None),
            (own, _) => (None, own),
        };
        self.open = open.map(Box::new);
        if let (Some(open), Some(same)) = (self.open.as_deref_mut(), same) {
            open.clear = same.clear;
            open.lower = same.lower.filter(|_| same.priority == open.priority);
        }
        let own = own.map(|own| Ended {
            start: own.start,
            at: own.newest_at,
            clock,
            clock_number,
            highest: own.highest,
            cools_down: false,
        });
        for ended in [own, ended].into_iter().flatten() {
            if self.ended.as_deref().is_none_or(|known| known.start.max(known.at) < ended.start.max(ended.at)) {
                self.ended = Some(Box::new(ended));
            }
        }
    }

    /// Stored values of a clock follow it when it is set back.
    pub fn move_clock(&mut self, clock: u32, by: Micros) {
        for run in self.runs.iter_mut().flatten().filter(|run| run.clock == clock) {
            run.since_clock += by;
        }
        if let Some(ended) = &mut self.ended {
            ended.move_clock(clock, by);
        }
    }

    pub fn into_ended(self) -> Option<Box<Ended>> {
        self.ended
    }

    /// What is remembered of the last episode, taken out.
    pub fn take_ended(&mut self) -> Option<Box<Ended>> {
        self.ended.take()
    }

    /// The last episode of this rule and key, from before the rule was put out of force.
    pub fn remember(&mut self, ended: Box<Ended>) {
        self.ended = Some(ended);
    }

    fn step(&mut self, kind: TransitionKind, at: Micros, by_timer: bool) -> Option<Step> {
        let open = self.open.as_deref_mut()?;
        let at = at.max(open.newest_at);
        open.newest_at = at;
        let number = open.next_number;
        open.next_number += 1;
        Some(Step {
            kind,
            at,
            by_timer,
            priority: open.priority,
            start: open.start,
            condition_start: open.condition_start,
            number,
            raised_by_version: open.raised_by_version,
        })
    }
}
