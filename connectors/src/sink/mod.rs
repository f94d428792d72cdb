//! Sinks take alerts out into the world, each with its own progress, so that a slow one delays only itself.

pub mod console;
pub mod jsonl;
pub mod webhook;

pub mod retry;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::Alert;
use wardbell_schemas::catalogue::hex;

/// Alerts of one call to a sink that takes many: one sync to disk for all of them.
const BATCH_MAX: usize = 200;

/// What of a patient's identity a sink gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// As the source sent it.
    #[default]
    Full,
    /// The same stand-in for the same patient at this site.
    Pseudonym,
    /// Nothing.
    None,
}

impl Identity {
    /// The alert as a sink with this identity level may see it. Ids stay, so alerts can still be told apart and joined.
    pub fn apply(self, mut alert: Alert) -> Alert {
        let content = &mut alert.data.content;
        let shown = match self {
            Identity::Full => return alert,
            _ if content.patient == "-" => return alert,
            Identity::Pseudonym => {
                let digest = Sha256::digest(format!("wardbell/pseudonym\n{}\n{}", content.site, content.patient));
                format!("anon-{}", hex(&digest[..6]))
            }
            Identity::None => "-".to_owned(),
        };
        content.patient = shown;
        alert.subject = format!("{}/{}", alert.data.content.patient, alert.data.content.key);
        alert
    }
}

/// One alert on its way to a sink.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub alert: Alert,
    /// When the sink's stage received it, for measuring.
    pub received_us: Micros,
}

/// Why a delivery failed. Names places and remedies, never what an alert says.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The way there does not work. Tried again.
    #[error("{step}")]
    Io {
        step: String,
        #[source]
        source: std::io::Error,
    },
    /// The other side does not answer, or says that it cannot take alerts now. Tried again, not before `retry_after`.
    #[error("{step}: {what}")]
    Unavailable { step: String, what: String, retry_after: Option<Duration> },
    /// The other side does not take alerts from us before a person puts something right. Tried again, more and more
    /// seldom: nothing is dropped.
    #[error("{step}: {what}; {remedy}")]
    Refused { step: String, what: String, remedy: String },
    /// The other side does not take this one alert, whoever sends it. Tried a few times, then set aside, so that it does
    /// not hold back what comes after it.
    #[error("{step}: {what}")]
    Rejected { step: String, what: String },
}

/// The future of a delivery.
pub type Delivering<'a> = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + 'a>>;

/// Takes alerts.
///
/// An implementer acknowledges (returns `Ok`) only what has left our hands for good: written and synced, or confirmed by
/// the other side. After an error the same deliveries come again, also after a restart of the process, so the alert's id is
/// the idempotency key. An implementer tries once and says what went wrong; when to try again is the caller's business
/// ([`retry`]).
///
/// Order: deliveries of one patient come one after the other, the next only after the one before it was acknowledged.
/// Several sinks made alike may run side by side as lanes, each with other patients; a sink itself does one thing at a
/// time.
///
/// A future may be dropped before it is ready (the patient's partition went to another instance, or the attempt took too
/// long): the next call must work all the same.
pub trait Sink: Send {
    /// Delivers up to [`Sink::batch_max`] alerts, all or nothing.
    ///
    /// # Errors
    /// [`SinkError`]; its variant says whether the fault passes, needs a person, or lies in the alert.
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a>;

    /// Most alerts of one call. With 1, alerts of different patients overtake each other, high priority first. With more,
    /// they come in the order of the log whoever they are about, and in one lane.
    fn batch_max(&self) -> usize {
        1
    }

    /// Somebody is told. A sink that only keeps a record gets every alert, also those a person needs not be told any more.
    fn notifies(&self) -> bool {
        true
    }
}
