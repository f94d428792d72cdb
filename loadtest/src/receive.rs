//! A receiver of webhooks that is down every now and then: it refuses a share of the requests with 500 and writes every
//! one into a file, a JSON object a line. Half of those it refuses it has taken all the same, as a receiver does whose
//! answer is lost. `verify --received` holds the file against the alerts topic.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use wardbell_schemas::alert::Alert;

use crate::ReceiveArgs;

/// The same requests are refused in every run.
const SEED: u64 = 0xBE11;

/// One request, as it is written.
#[derive(Serialize)]
struct Written<'a> {
    status: u16,
    taken: bool,
    alert: &'a RawValue,
}

/// One request, as it is read.
#[derive(Debug, Deserialize)]
pub struct Received {
    pub status: u16,
    /// The receiver has it, whatever it answered.
    pub taken: bool,
    pub alert: Alert,
}

impl Received {
    /// A line of a receiver's file, or of a `jsonl` sink's, which is the alert alone; `None` for what a writer that was
    /// killed left unfinished.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let of_sink = || serde_json::from_slice(line).map(|alert| Self { status: 200, taken: true, alert });
        serde_json::from_slice(line).or_else(|_| of_sink()).ok()
    }
}

struct Receiver {
    file: File,
    rng: Rng,
    /// From 0 to 1.
    refuse: f64,
}

/// Serves until the process is ended; every line is in the file before its request is answered.
///
/// # Errors
/// If the file or a port cannot be had.
pub fn run(args: &ReceiveArgs) -> Result<bool> {
    let file = OpenOptions::new().create(true).append(true).open(&args.file);
    let file = file.with_context(|| format!("opening `{}`", args.file.display()))?;
    let receiver = Arc::new(Mutex::new(Receiver { file, rng: Rng::with_seed(SEED), refuse: args.refuse }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
        let listener =
            tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        println!("listening={}", listener.local_addr().context("asking for the port")?);
        std::io::stdout().flush().context("saying where it listens")?;
        axum::serve(listener, routes(receiver)).await.context("serving webhooks")
    })?;
    Ok(true)
}

fn routes(receiver: Arc<Mutex<Receiver>>) -> Router {
    Router::new().route("/", post(take)).with_state(receiver)
}

async fn take(State(receiver): State<Arc<Mutex<Receiver>>>, body: Bytes) -> StatusCode {
    let Ok(alert) = serde_json::from_slice::<&RawValue>(&body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
    receiver.take(alert).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        StatusCode::INSUFFICIENT_STORAGE
    })
}

impl Receiver {
    fn take(&mut self, alert: &RawValue) -> Result<StatusCode> {
        let refused = self.rng.f64() < self.refuse;
        let status = if refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT };
        let taken = !refused || self.rng.bool();
        let written = Written { status: status.as_u16(), taken, alert };
        let mut line = serde_json::to_vec(&written).context("writing a request as JSON")?;
        line.push(b'\n');
        self.file.write_all(&line).context("writing a request to the file")?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::alert::{Measured, TransitionKind};

    use super::*;
    use crate::sample::{alert, content};

    #[test]
    fn a_share_is_refused_and_every_request_is_on_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("received.jsonl");
        let mut receiver = Receiver { file: File::create(&path).unwrap(), rng: Rng::with_seed(SEED), refuse: 0.5 };
        let body = alert(content("e", 0, TransitionKind::Raised), Measured::default()).value.unwrap();
        let request: &RawValue = serde_json::from_slice(&body).unwrap();
        let statuses: Vec<u16> = (0..100).map(|_| receiver.take(request).unwrap().as_u16()).collect();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Received> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line.status).collect::<Vec<u16>>(), statuses);
        let n_refused = statuses.iter().filter(|status| **status == 500).count();
        assert!((30..=70).contains(&n_refused), "{n_refused}");
        assert!(lines.iter().all(|line| line.taken || line.status == 500));
        assert!(lines.iter().any(|line| line.taken && line.status == 500), "the answer was lost, the alert was not");
        assert!(lines.iter().any(|line| !line.taken));
        assert_eq!(lines[0].alert.id, "e.0");
    }
}
