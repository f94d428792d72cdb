//! When each record of a load run is due. A formula instead of a list: the sender, the manifest and `verify` agree on
//! millions of times that nobody had to write down.

use std::iter;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wardbell_schemas::{Micros, SECOND};

/// A stretch of a run at one rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When its first record is due, µs from the beginning of the run.
    pub after_us: Micros,
    /// Readings per second.
    pub rate: f64,
    pub records: u64,
}

impl Step {
    pub fn new(after_us: Micros, rate: f64, length_us: Micros, readings_per_record: u64) -> Self {
        let seconds = length_us as f64 / SECOND as f64;
        Self { after_us, rate, records: (rate * seconds / readings_per_record as f64).round() as u64 }
    }

    /// When its record `i` is due, µs from the beginning of the run, whatever became of those before it.
    pub fn due_us(&self, i: u64, readings_per_record: u64) -> Micros {
        let seconds = i as f64 * readings_per_record as f64 / self.rate;
        self.after_us + (seconds * SECOND as f64) as Micros
    }
}

/// Rates to try one after another, written `FROM..TOxFACTOR`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ramp {
    from: f64,
    to: f64,
    factor: f64,
}

impl Ramp {
    /// The last one is `TO`, however far it is from the one before.
    pub fn rates(self) -> impl Iterator<Item = f64> {
        iter::successors(Some(self.from), move |rate| {
            (*rate < self.to).then(|| (rate * self.factor).ceil().min(self.to))
        })
    }
}

impl FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once("..").and_then(|(from, rest)| {
            let (to, factor) = rest.split_once('x')?;
            Some(Self { from: from.parse().ok()?, to: to.parse().ok()?, factor: factor.parse().ok()? })
        });
        match parsed {
            Some(ramp) if ramp.from > 0.0 && ramp.to >= ramp.from && ramp.to.is_finite() && ramp.factor > 1.0 => {
                Ok(ramp)
            }
            _ => Err("expected rising rates in readings/s and a factor above one, like `5000..80000x1.5`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_due_by_its_number_alone() {
        let step = Step::new(0, 20_000.0, 60 * SECOND, 10);
        assert_eq!(step.records, 120_000);
        assert_eq!((step.due_us(0, 10), step.due_us(2_000, 10)), (0, SECOND));
        let later = Step::new(90 * SECOND, 40_000.0, SECOND, 1);
        assert_eq!((later.records, later.due_us(20_000, 1)), (40_000, 90 * SECOND + SECOND / 2));
    }

    #[test]
    fn a_ramp_rises_by_its_factor_and_ends_at_its_top() {
        let rates = |text: &str| text.parse::<Ramp>().map(|ramp| ramp.rates().collect::<Vec<f64>>());
        assert_eq!(rates("5000..20000x1.5"), Ok(vec![5_000.0, 7_500.0, 11_250.0, 16_875.0, 20_000.0]));
        assert_eq!(rates("1..3x1.1"), Ok(vec![1.0, 2.0, 3.0]), "a step is at least one");
        assert_eq!(rates("100..100x2"), Ok(vec![100.0]));
        for text in ["5000", "5000..80000", "80000..5000x1.5", "1..2x1", "0..5x2", "1..infx2", "1..2xNaN", "..x"] {
            assert!(text.parse::<Ramp>().is_err(), "{text}");
        }
    }
}
