//! Labels and units that nothing explains, grouped and counted: what an integrator has to look at first.
//!
//! Bounded in number and length, so that a source that makes up labels cannot fill memory or logs. Only texts of label and
//! unit fields are kept; a unit behind a number is part of a value, and values are never shown.

use std::collections::BTreeMap;

use serde::Serialize;
use wardbell_core::normalize::Refused;
use wardbell_schemas::decoded::{DecodedReading, RawField};
use wardbell_schemas::reading::Reason;

/// Texts that are kept.
const TEXTS_MAX: usize = 100;
/// Characters of a text that is kept; longer ones are payload in the wrong field.
const CHARS_MAX: usize = 60;

/// What a text was sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Label,
    Unit,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Label => "label",
            Kind::Unit => "unit",
        }
    }
}

/// One text and how often it was met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub kind: Kind,
    pub text: String,
    pub count: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unmapped {
    counts: BTreeMap<(Kind, String), u64>,
    /// Met and not kept.
    further: u64,
}

impl Unmapped {
    /// Counts a reading that was refused, if it was for its label or its unit.
    pub fn note(&mut self, reading: &DecodedReading<'_>, refused: &Refused) {
        let (kind, field) = match refused.reason {
            Reason::LabelUnknown | Reason::LabelAmbiguous => (Kind::Label, &reading.label),
            Reason::UnitUnknown | Reason::UnitQuantity | Reason::UnitContext => (Kind::Unit, &reading.unit),
            _ => return,
        };
        match field {
            RawField::Text(text) => self.add(kind, text.trim(), 1),
            RawField::Number(text) => self.add(kind, text, 1),
            RawField::Absent | RawField::Null | RawField::Bool(_) | RawField::Nested => {}
        }
    }

    fn add(&mut self, kind: Kind, text: &str, count: u64) {
        if let Some(known) = self.counts.get_mut(&(kind, text.to_owned())) {
            *known += count;
        } else if self.counts.len() < TEXTS_MAX
            && text.chars().count() <= CHARS_MAX
            && !text.chars().any(char::is_control)
        {
            self.counts.insert((kind, text.to_owned()), count);
        } else {
            self.further += count;
        }
    }

    pub fn merge(&mut self, other: Unmapped) {
        for ((kind, text), count) in other.counts {
            self.add(kind, &text, count);
        }
        self.further += other.further;
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.further == 0
    }

    /// The texts met most often, and how many more there were.
    pub fn top(&self, n: usize) -> (Vec<Entry>, u64) {
        let mut entries: Vec<Entry> = self
            .counts
            .iter()
            .map(|((kind, text), count)| Entry { kind: *kind, text: text.clone(), count: *count })
            .collect();
        entries.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| (a.kind, &a.text).cmp(&(b.kind, &b.text))));
        let rest: u64 = entries.iter().skip(n).map(|entry| entry.count).sum();
        entries.truncate(n);
        (entries, rest + self.further)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(labels: impl Iterator<Item = String>) -> Unmapped {
        let mut unmapped = Unmapped::default();
        let refused = Refused { reason: Reason::LabelUnknown, field: "signal", detail: String::new() };
        for label in labels {
            let reading = DecodedReading { label: RawField::Text(label.into()), ..DecodedReading::default() };
            unmapped.note(&reading, &refused);
        }
        unmapped
    }

    #[test]
    fn texts_are_counted_and_bounded_in_number_and_length() {
        let mut unmapped = noted(["a", "b", "a", "c\u{7}"].into_iter().map(str::to_owned));
        let label = |text: &str, count| Entry { kind: Kind::Label, text: text.to_owned(), count };
        assert_eq!(unmapped.top(1), (vec![label("a", 2)], 2));
        unmapped.merge(noted((0..10 * TEXTS_MAX).map(|i| format!("made up {i}"))));
        unmapped.merge(noted(std::iter::once("x".repeat(CHARS_MAX + 1))));
        let (entries, further) = unmapped.top(usize::MAX);
        assert_eq!(entries.len(), TEXTS_MAX);
        let total: u64 = entries.iter().map(|entry| entry.count).sum();
        assert_eq!(total + further, 4 + 10 * TEXTS_MAX as u64 + 1, "nothing vanishes");
    }

    #[test]
    fn a_unit_behind_a_number_is_part_of_the_value_and_never_kept() {
        let refused = Refused { reason: Reason::UnitUnknown, field: "unit", detail: String::new() };
        let mut unmapped = Unmapped::default();
        let reading = DecodedReading { value: RawField::Text("97 Jane".into()), ..DecodedReading::default() };
        unmapped.note(&reading, &refused);
        assert!(unmapped.is_empty());
        unmapped.note(&DecodedReading { unit: RawField::Text("99MNDRY".into()), ..reading }, &refused);
        assert_eq!(unmapped.top(9).0[0].text, "99MNDRY");
        let other = Refused { reason: Reason::Range, ..refused };
        unmapped.note(&DecodedReading { unit: RawField::Text("%".into()), ..DecodedReading::default() }, &other);
        assert_eq!(unmapped.top(9).0.len(), 1);
    }
}
