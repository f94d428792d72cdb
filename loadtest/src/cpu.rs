//! CPU time of other processes, as Linux counts it. Absolute figures are those of one machine on one day; what is worth
//! quoting is how two processes of the same run compare.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// What `/proc/PID/stat` counts in; the same on every Linux that is built today.
const TICKS_PER_SECOND: f64 = 100.0;
/// User and system time, counted from the field behind the name of the program.
const USER_FIELD: usize = 11;
const SYSTEM_FIELD: usize = 12;

/// A process whose CPU time is watched from here on.
pub struct CpuMeter {
    pid: u32,
    before: f64,
}

/// What a process spent.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CpuSpent {
    pub seconds: f64,
    pub seconds_per_million_readings: f64,
}

impl CpuMeter {
    /// # Errors
    /// If there is no such process, or no `/proc`.
    pub fn begin(pid: u32) -> Result<Self> {
        Ok(Self { pid, before: cpu_seconds(pid)? })
    }

    /// CPU seconds of all its threads since the beginning, for so many readings.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn spent(&self, n_readings: u64) -> Result<CpuSpent> {
        let seconds = cpu_seconds(self.pid)? - self.before;
        Ok(CpuSpent { seconds, seconds_per_million_readings: seconds * 1e6 / n_readings.max(1) as f64 })
    }
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading `{path}`; does process {pid} run?"))?;
    parse(&stat).with_context(|| format!("reading `{path}`: it has no CPU times"))
}

fn parse(stat: &str) -> Option<f64> {
    // The name stands in parentheses and may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(USER_FIELD)? + ticks(SYSTEM_FIELD)?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b (c)) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 4 0 1000 0 0";
        assert_eq!(parse(stat), Some(3.0));
        assert_eq!(parse("12 (a) S 1"), None);
    }

    #[test]
    fn a_process_that_works_spends_time() {
        let meter = CpuMeter::begin(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while meter.spent(1).unwrap().seconds < 0.05 {
            sum = (0..100_000_u64).fold(sum, |sum, i| sum.wrapping_mul(31) ^ i);
        }
        assert!(meter.spent(2_000_000).unwrap().seconds_per_million_readings > 0.0, "{sum}");
        assert!(CpuMeter::begin(u32::MAX).is_err());
    }
}
