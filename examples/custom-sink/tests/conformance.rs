//! The sink passes the conformance kit, against a display that behaves as told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use wardbell_connectors::conformance::sink::{Behavior, Outcome, Target, check};
use wardbell_custom_sink::WardDisplay;

struct Display {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Behavior>,
    shown: Vec<String>,
}

impl Display {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("set");
        let listener = TcpListener::from_std(listener).expect("within the kit's runtime");
        let address = listener.local_addr().expect("an address");
        let state = Arc::<Mutex<State>>::default();
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(BufStream::new(stream), state.clone()));
                }
            }
        });
        Self { address, state, accepting }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: BufStream<TcpStream>, state: Arc<Mutex<State>>) {
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
        let id = line.split(' ').nth(1).expect("the line names its alert").to_owned();
        line.clear();
        let behavior = state.lock().expect("not poisoned").script.pop_front().unwrap_or(Behavior::Take);
        if behavior == Behavior::TakeSlowly {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if matches!(behavior, Behavior::Take | Behavior::TakeSlowly | Behavior::TakeAndLoseAnswer) {
            state.lock().expect("not poisoned").shown.push(id.clone());
        }
        let answer = match behavior {
            Behavior::Take | Behavior::TakeSlowly => format!("OK {id}\n"),
            Behavior::Unauthorized => "WHO\n".to_owned(),
            Behavior::TooMany { retry_after } => format!("BUSY {}\n", retry_after.as_secs()),
            Behavior::Fail => "ERROR\n".to_owned(),
            Behavior::Reject => format!("BAD {id}\n"),
            Behavior::TakeAndLoseAnswer => return,
            Behavior::NoAnswer => {
                // Until the sink gives up and closes.
                let _ = stream.read_to_end(&mut Vec::new()).await;
                return;
            }
        };
        let written = stream.write_all(answer.as_bytes()).await;
        if written.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

impl Target for Display {
    fn behave(&self, script: &[Behavior]) -> bool {
        self.state.lock().expect("not poisoned").script = script.iter().copied().collect();
        true
    }

    fn taken(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").shown.clone()
    }
}

#[test]
fn the_ward_display_conforms() {
    let report = check(Display::start, |display| Box::new(WardDisplay::new(&display.address.to_string())));
    assert!(report.checks.iter().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
}
