//! The console: one line an alert, for people who watch.

use std::io::Write;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, Kind, Priority, TransitionKind, print_time};
use wardbell_schemas::duration;

use super::{BATCH_MAX, Delivering, Delivery, Sink, SinkError};
use crate::clock::Clock;

/// Writes lines to standard output; colors only where they can be seen.
pub struct Console {
    clock: Arc<dyn Clock>,
    /// Times are shown as distance from here (a demonstration's beginning) instead of as a date.
    origin_us: Option<Micros>,
}

impl Console {
    pub fn new(clock: Arc<dyn Clock>, origin_us: Option<Micros>) -> Self {
        Self { clock, origin_us }
    }

    fn time(&self, us: Micros) -> String {
        match self.origin_us {
            Some(origin) => {
                let seconds = (us - origin).div_euclid(1_000_000);
                format!("{:>3}:{:02}", seconds.div_euclid(60), seconds.rem_euclid(60))
            }
            None => print_time(us).chars().take(19).collect::<String>().replace('T', " "),
        }
    }
}

/// One alert as a line: time, priority, transition, patient, message, delays.
pub fn line(alert: &Alert, time: &str, latency_us: Micros) -> String {
    let content = &alert.data.content;
    let ended = matches!(
        content.transition,
        TransitionKind::Cleared
            | TransitionKind::Reset
            | TransitionKind::Expired
            | TransitionKind::Superseded
            | TransitionKind::RuleChanged
    );
    let style = match (ended, content.kind, content.priority) {
        (true, ..) => Style::new().fg_color(Some(AnsiColor::Green.into())),
        (_, Kind::Technical, Priority::High) => Style::new().fg_color(Some(AnsiColor::Magenta.into())).bold(),
        (_, Kind::Technical, _) => Style::new().fg_color(Some(AnsiColor::Cyan.into())),
        (.., Priority::High) => Style::new().fg_color(Some(AnsiColor::Red.into())).bold(),
        (.., Priority::Medium) => Style::new().fg_color(Some(AnsiColor::Yellow.into())).bold(),
        (.., Priority::Low) => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
    };
    let dim = Style::new().dimmed();
    let hold = match content.intentional_delay_us {
        delay if delay > 0 && content.transition == TransitionKind::Raised => {
            format!(", held {}", duration::print(delay / 1_000_000 * 1_000_000))
        }
        _ => String::new(),
    };
    let delayed = if alert.data.measured.delayed { " DELAYED" } else { "" };
    format!(
        "{dim}{time}{dim:#}  {style}{:<6} {:<11}{style:#} {:<10} {:<19} {}  {dim}[{} ms{hold}]{delayed}{dim:#}",
        content.priority.name(),
        content.transition.name(),
        content.patient,
        content.rule.id,
        content.message,
        (latency_us as f64 / 1_000.0).max(0.0).round(),
    )
}

impl Sink for Console {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        let mut out = anstream::stdout().lock();
        let mut result = Ok(());
        for delivery in deliveries {
            let time = self.time(delivery.alert.data.content.at);
            let latency = self.clock.now_us() - delivery.alert.data.measured.basis_us;
            result = result.and_then(|()| writeln!(out, "{}", line(&delivery.alert, &time, latency)));
        }
        let result = result.and_then(|()| out.flush());
        let result = result.map_err(|source| SinkError::Io { step: "writing to standard output".to_owned(), source });
        Box::pin(std::future::ready(result))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }
}
