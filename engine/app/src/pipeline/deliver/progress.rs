//! How far a sink has come in one partition of the alerts topic, also out of order.
//!
//! Alerts of different patients are acknowledged in any order. The committed offset is the one before which everything is
//! acknowledged; the ranges acknowledged beyond it travel with it as metadata, so that whoever goes on from there delivers
//! none of them again. Metadata is bounded: what does not fit is delivered twice, under the same ids.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use wardbell_connectors::log::{Committed, METADATA_MAX};
use wardbell_schemas::Micros;

/// Begins metadata of this form; then, for each range, ` gap+length` counted from the end of the one before it.
const FORM: &str = "acked/1";

/// A record that is not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    Alert,
    /// Acknowledged as soon as everything before it is; `basis_us` is the append time of its reading.
    Canary {
        basis_us: Micros,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    /// End of what was read.
    read_to: i64,
    open: BTreeMap<i64, Open>,
    /// Acknowledged before this start beyond what was committed; ascending, not read again yet.
    before: Vec<Range<i64>>,
    changed: bool,
}

impl Progress {
    /// Goes on from what is committed, or from the first offset held.
    pub fn new(first: i64, committed: Option<&Committed>) -> Self {
        let before = committed.and_then(|committed| parse(&committed.metadata, committed.next_offset));
        Self {
            read_to: committed.map_or(first, |committed| committed.next_offset.max(first)),
            open: BTreeMap::new(),
            before: before.unwrap_or_default(),
            changed: false,
        }
    }

    /// A record was read; `false` if it was acknowledged before this start.
    pub fn read(&mut self, offset: i64) -> bool {
        self.read_to = offset + 1;
        self.changed = true;
        self.before.retain(|range| range.end > offset);
        self.before.first().is_none_or(|range| !range.contains(&offset))
    }

    /// A record that was read waits for its acknowledgment.
    pub fn open(&mut self, offset: i64, what: Open) {
        // Of two canaries with nothing between them the later one says what the earlier would.
        if what != Open::Alert
            && let Some(last) = self.open.last_entry().filter(|last| *last.get() != Open::Alert)
        {
            last.remove();
        }
        self.open.insert(offset, what);
    }

    pub fn acknowledge(&mut self, offset: i64) {
        self.changed |= self.open.remove(&offset).is_some();
    }

    /// Canaries before which everything is acknowledged now; they are acknowledged with that.
    pub fn pass_canaries(&mut self) -> Vec<Micros> {
        let mut passed = Vec::new();
        while let Some(first) = self.open.first_entry()
            && let Open::Canary { basis_us } = *first.get()
        {
            first.remove();
            passed.push(basis_us);
            self.changed = true;
        }
        passed
    }

    /// Everything before it is acknowledged.
    pub fn next_offset(&self) -> i64 {
        self.open.first_key_value().map_or(self.read_to, |(first, _)| *first)
    }

    /// What to commit, if it is other than last time.
    pub fn take_change(&mut self) -> Option<Committed> {
        std::mem::take(&mut self.changed)
            .then(|| Committed { next_offset: self.next_offset(), metadata: self.metadata() })
    }

    /// What was taken could not be committed.
    pub fn keep_change(&mut self) {
        self.changed = true;
    }

    /// Acknowledged beyond [`Progress::next_offset`]: between one open record and the next, and after the last.
    fn ranges(&self) -> impl Iterator<Item = Range<i64>> {
        let ends = self.open.keys().copied().skip(1).chain([self.read_to]);
        let read = self.open.keys().map(|open| open + 1).zip(ends).map(|(start, end)| start..end);
        let unread = self.before.iter().map(|range| range.start.max(self.read_to)..range.end);
        read.chain(unread).filter(|range| !range.is_empty())
    }

    fn metadata(&self) -> String {
        let mut text = String::new();
        let mut end = self.next_offset();
        for range in self.ranges() {
            let before = text.len();
            if text.is_empty() {
                text.push_str(FORM);
            }
            let _ = write!(text, " {}+{}", range.start - end, range.end - range.start);
            if text.len() > METADATA_MAX {
                text.truncate(before);
                break;
            }
            end = range.end;
        }
        text
    }
}

/// The ranges beyond `next_offset`; `None` for a text in another form.
fn parse(text: &str, next_offset: i64) -> Option<Vec<Range<i64>>> {
    let mut end = next_offset;
    let range = |word: &str| {
        let (gap, length) = word.split_once('+')?;
        let start = end.checked_add(i64::from(gap.parse::<u32>().ok()?))?;
        end = start.checked_add(i64::from(length.parse::<u32>().ok()?))?;
        Some(start..end)
    };
    text.strip_prefix(FORM)?.split_ascii_whitespace().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `offsets` as alerts and acknowledges some of them.
    fn worked(offsets: Range<i64>, acknowledged: &[i64]) -> Progress {
        let mut progress = Progress::new(offsets.start, None);
        for offset in offsets {
            assert!(progress.read(offset));
            progress.open(offset, Open::Alert);
        }
        for offset in acknowledged {
            progress.acknowledge(*offset);
        }
        progress
    }

    /// Offsets below `end` that a successor delivers.
    fn delivered_again(committed: &Committed, end: i64) -> Vec<i64> {
        let mut successor = Progress::new(0, Some(committed));
        (successor.next_offset()..end).filter(|offset| successor.read(*offset)).collect()
    }

    #[test]
    fn a_successor_delivers_what_was_not_acknowledged_and_nothing_else() {
        for (acknowledged, metadata, again) in [
            (&[][..], "", vec![0, 1, 2, 3, 4, 5, 6, 7]),
            (&[0, 1][..], "", vec![2, 3, 4, 5, 6, 7]),
            (&[2, 3, 6][..], "acked/1 2+2 2+1", vec![0, 1, 4, 5, 7]),
            (&[0, 2, 7][..], "acked/1 1+1 4+1", vec![1, 3, 4, 5, 6]),
            (&[0, 1, 2, 3, 4, 5, 6, 7][..], "", vec![]),
        ] {
            let committed = worked(0..8, acknowledged).take_change().expect("it was worked");
            assert_eq!(committed.metadata, metadata);
            assert_eq!(delivered_again(&committed, 8), again);
        }
    }

    #[test]
    fn frozen_progress_is_read_and_written_as_it_was() {
        let frozen = include_str!("../../../../../schemas/samples/sink-progress-1.txt").trim_end();
        let committed = worked(0..8, &[0, 2, 7]).take_change().expect("it was worked");
        assert_eq!((committed.next_offset, committed.metadata.as_str()), (1, frozen));
        let committed = Committed { next_offset: 1, metadata: frozen.to_owned() };
        assert_eq!(delivered_again(&committed, 8), [1, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_not_read_again_yet_stays_acknowledged() {
        let first = worked(10..30, &[12, 13, 25]).take_change().expect("it was worked");
        let mut second = Progress::new(0, Some(&first));
        assert_eq!(second.take_change(), None);
        for offset in [10, 11, 12] {
            if second.read(offset) {
                second.open(offset, Open::Alert);
            }
        }
        second.acknowledge(10);
        let committed = second.take_change().expect("it was worked");
        assert_eq!((committed.next_offset, committed.metadata.as_str()), (11, "acked/1 1+1 0+1 11+1"));
        assert_eq!(delivered_again(&committed, 27), (11..27).filter(|o| ![12, 13, 25].contains(o)).collect::<Vec<_>>());
    }

    #[test]
    fn metadata_has_a_bound_and_keeps_the_oldest_ranges() {
        let every_other: Vec<i64> = (0..10_000).filter(|offset| offset % 2 == 1).collect();
        let committed = worked(0..10_000, &every_other).take_change().expect("it was worked");
        assert!(committed.metadata.len() <= METADATA_MAX);
        let again = delivered_again(&committed, 10_000);
        let (even, odd): (Vec<i64>, Vec<i64>) = again.into_iter().partition(|offset| offset % 2 == 0);
        assert_eq!(even.len(), 5_000);
        assert!(odd.len() < 5_000 && odd.first().is_some_and(|first| *first > 1_000), "{:?}", odd.first());
    }

    #[test]
    fn metadata_of_others_is_no_progress() {
        for text in ["", "acked/2 1+1", "acked/1 x+1", "acked/1 1", "acked/1 -1+1", "checkpoint 7"] {
            let committed = Committed { next_offset: 3, metadata: text.to_owned() };
            assert_eq!(delivered_again(&committed, 6), [3, 4, 5], "{text}");
        }
    }

    #[test]
    fn a_canary_passes_when_everything_before_it_is_acknowledged() {
        let mut progress = worked(0..2, &[]);
        progress.read(2);
        progress.open(2, Open::Canary { basis_us: 7 });
        progress.acknowledge(1);
        assert_eq!((progress.pass_canaries(), progress.next_offset()), (vec![], 0));
        progress.acknowledge(0);
        assert_eq!((progress.pass_canaries(), progress.next_offset()), (vec![7], 3));
        for offset in 3..6 {
            progress.read(offset);
            progress.open(offset, Open::Canary { basis_us: offset });
        }
        assert_eq!((progress.pass_canaries(), progress.next_offset()), (vec![5], 6), "the newest of several");
    }

    #[test]
    fn offsets_that_retention_deleted_are_not_waited_for() {
        let committed = Committed { next_offset: 3, metadata: "acked/1 1+1 2+4".to_owned() };
        let mut progress = Progress::new(8, Some(&committed));
        assert_eq!(progress.next_offset(), 8);
        let read: Vec<bool> = (8..13).map(|offset| progress.read(offset)).collect();
        assert_eq!(read, [false, false, false, true, true]);
    }
}
