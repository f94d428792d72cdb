//! Count, sum, minimum and maximum of one window, kept as it moves.

use std::collections::VecDeque;

use wardbell_schemas::Micros;

use super::samples::{Sample, Samples};
use super::{Function, WindowPlan};

/// Which running values a window's rules ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    pub min: bool,
    pub max: bool,
}

impl Needs {
    pub fn of(function: Function) -> Self {
        Self {
            min: matches!(function, Function::Min | Function::Range),
            max: matches!(function, Function::Max | Function::Range),
        }
    }

    pub fn union(self, other: Self) -> Self {
        Self { min: self.min || other.min, max: self.max || other.max }
    }
}

/// The running state of one window on one series. It is derived from the samples, so it is never stored.
#[derive(Debug, Clone)]
pub struct Running {
    /// Samples with `t` at or before this have left.
    edge: Micros,
    /// Absolute index of the first sample inside.
    start: u64,
    /// Absolute index behind the last sample taken in.
    end: u64,
    count: u32,
    sum: i128,
    /// Absolute indexes and values; values strictly increasing (min) or decreasing (max) from front to back.
    min: VecDeque<(u64, i64)>,
    max: VecDeque<(u64, i64)>,
}

impl Default for Running {
    fn default() -> Self {
        Self { edge: Micros::MIN, start: 0, end: 0, count: 0, sum: 0, min: VecDeque::new(), max: VecDeque::new() }
    }
}

impl Running {
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn sum(&self) -> i128 {
        self.sum
    }

    pub fn min(&self) -> Option<i64> {
        self.min.front().map(|(_, value)| *value)
    }

    pub fn max(&self) -> Option<i64> {
        self.max.front().map(|(_, value)| *value)
    }

    /// Reads a word of each of its cache lines, and the sample that leaves next: see `partition/ahead.rs`.
    pub fn touch(&self, samples: &Samples) -> u64 {
        let leaving = samples.get(self.start).map_or(0, |sample| sample.t as u64);
        leaving ^ self.end ^ u64::from(self.count) ^ (self.min.len() ^ self.max.len()) as u64
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    /// Oldest and newest sample inside; at least two.
    pub fn ends<'a>(&self, samples: &'a Samples, plan: &WindowPlan) -> Option<(&'a Sample, &'a Sample)> {
        if self.count < 2 {
            return None;
        }
        let mut inside = samples.from(self.start).filter(|sample| sample.counts(plan.accept_questionable));
        Some((inside.next()?, inside.next_back()?))
    }

    /// Takes in what is new and lets go what has left, up to `edge`.
    pub fn advance(&mut self, samples: &Samples, plan: &WindowPlan, edge: Micros) {
        if edge < self.edge {
            // Never in the order of a log; a restored state starts here.
            *self = Self::default();
        }
        self.edge = edge;
        if self.end < samples.base() {
            *self = Self { edge, start: samples.base(), end: samples.base(), ..Self::default() };
        }
        while let Some(sample) = samples.get(self.end) {
            self.push(self.end, sample, plan);
            self.end += 1;
        }
        while let Some(sample) = samples.get(self.start) {
            if sample.t > edge || self.start >= self.end {
                break;
            }
            self.drop_first(sample, plan);
        }
    }

    /// The buffer's first sample, with this absolute index, is about to be evicted.
    pub fn before_evict(&mut self, index: u64, sample: &Sample, plan: &WindowPlan) {
        if self.start == index && self.end > index {
            self.drop_first(sample, plan);
        }
    }

    /// Samples joined out of order: everything is taken in again at the next question.
    pub fn reset(&mut self) {
        *self = Self { edge: self.edge, ..Self::default() };
    }

    fn push(&mut self, index: u64, sample: &Sample, plan: &WindowPlan) {
        if !sample.counts(plan.accept_questionable) {
            return;
        }
        self.count += 1;
        self.sum += i128::from(sample.value);
        if plan.needs.min {
            while self.min.back().is_some_and(|(_, value)| *value >= sample.value) {
                self.min.pop_back();
            }
            self.min.push_back((index, sample.value));
        }
        if plan.needs.max {
            while self.max.back().is_some_and(|(_, value)| *value <= sample.value) {
                self.max.pop_back();
            }
            self.max.push_back((index, sample.value));
        }
    }

    fn drop_first(&mut self, sample: &Sample, plan: &WindowPlan) {
        let index = self.start;
        self.start += 1;
        if !sample.counts(plan.accept_questionable) {
            return;
        }
        self.count -= 1;
        self.sum -= i128::from(sample.value);
        for deque in [&mut self.min, &mut self.max] {
            if deque.front().is_some_and(|(first, _)| *first == index) {
                deque.pop_front();
            }
        }
    }
}
