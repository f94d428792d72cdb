//! The other side of an HTTP sink: a server on loopback that behaves as told. It knows as much of HTTP/1.1 as a client
//! needs that posts bodies with a length.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::sink::{Behavior, Target};

/// The pause of [`Behavior::TakeSlowly`].
const SLOWLY: Duration = Duration::from_millis(200);

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// `Idempotency-Key`, or else `id` of a JSON body.
    pub fn id(&self) -> Option<String> {
        let of_body = || -> Option<String> {
            let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
            body["id"].as_str().map(str::to_owned)
        };
        self.headers.get("idempotency-key").cloned().or_else(of_body)
    }
}

/// The other side of an HTTP sink: a server on a free loopback port that behaves as told.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    script: VecDeque<Behavior>,
    requests: Vec<Request>,
    taken: Vec<String>,
}

impl Endpoint {
    /// Listens on a free loopback port, as long as it lives. Called within a tokio runtime.
    ///
    /// # Panics
    /// If there is no such port or no runtime.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("a socket can be made so");
        let listener = TcpListener::from_std(listener).expect("called within a runtime");
        let state = Arc::<Mutex<State>>::default();
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, state.clone()));
                }
            }
        });
        Self { address, state, accepting }
    }

    /// Where to post alerts.
    pub fn url(&self) -> String {
        format!("http://{}/alerts", self.address)
    }

    /// Everything that came so far, also what was not taken.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }
}

impl Target for Endpoint {
    fn behave(&self, script: &[Behavior]) -> bool {
        lock(&self.state).script = script.iter().copied().collect();
        true
    }

    fn taken(&self) -> Vec<String> {
        lock(&self.state).taken.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the requests of one connection.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut received = Vec::new();
    while let Some(request) = next_request(&mut stream, &mut received).await {
        let behavior = {
            let mut state = lock(&state);
            state.requests.push(request.clone());
            state.script.pop_front().unwrap_or(Behavior::Take)
        };
        if behavior == Behavior::TakeSlowly {
            tokio::time::sleep(SLOWLY).await;
        }
        if matches!(behavior, Behavior::Take | Behavior::TakeSlowly | Behavior::TakeAndLoseAnswer) {
            lock(&state).taken.push(request.id().unwrap_or_else(|| "without an id".to_owned()));
        }
        let answer = match behavior {
            Behavior::Take | Behavior::TakeSlowly => answer("200 OK", ""),
            Behavior::Unauthorized => answer("401 Unauthorized", ""),
            Behavior::TooMany { retry_after } => {
                answer("429 Too Many Requests", &format!("Retry-After: {}\r\n", retry_after.as_secs()))
            }
            Behavior::Fail => answer("500 Internal Server Error", ""),
            Behavior::Reject => answer("422 Unprocessable Content", ""),
            Behavior::TakeAndLoseAnswer => return,
            Behavior::NoAnswer => {
                // Until the sink gives up and closes.
                while stream.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(status: &str, headers: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n{headers}\r\nok\n")
}

async fn next_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some((request, length)) = parse(received) {
            received.drain(..length);
            return Some(request);
        }
        let mut chunk = [0; 4_096];
        let length = stream.read(&mut chunk).await.ok().filter(|length| *length > 0)?;
        received.extend_from_slice(&chunk[..length]);
    }
}

/// The first request and its length, if it is whole.
fn parse(received: &[u8]) -> Option<(Request, usize)> {
    let head_length = received.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&received[..head_length]);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ').map(str::to_owned);
    let (method, path) = (first.next()?, first.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let body_length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let length = head_length + 4 + body_length;
    let body = received.get(head_length + 4..length)?.to_vec();
    Some((Request { method, path, headers, body }, length))
}
