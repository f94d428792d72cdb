//! How far long work has got: a bar on a terminal, a plain line every few seconds elsewhere; always on stderr, so that
//! stdout holds the summary and nothing else.

use std::io::{IsTerminal, stderr, stdout};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Smooth to the eye, and nothing beside the work.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// A log of an hour stays readable.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    n_records: u64,
    shown: Instant,
}

impl Progress {
    pub fn new(what: &'static str, n_records: u64) -> Self {
        let bar =
            (stdout().is_terminal() && stderr().is_terminal()).then(|| ProgressBar::new(n_records).with_style(style()));
        Self { bar, what, n_records, shown: Instant::now() }
    }

    /// Shows `done` records and a remark, if it is time to; may be called as often as there are records.
    pub fn show(&mut self, done: u64, remark: impl FnOnce() -> String) {
        let every = if self.bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(remark());
            }
            None => {
                eprintln!("{}: {} of {} records, {}", self.what, HumanCount(done), HumanCount(self.n_records), remark())
            }
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{elapsed_precise} [{wide_bar}] {human_pos}/{human_len} records, {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
