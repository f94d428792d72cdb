//! Lanes of a simulation: threads that take turns instead of tasks on a runtime of their own.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use wardbell_connectors::runtime::{self, Instant, fault};
use wardbell_connectors::sink::{Sink, SinkError};

use super::backlog::{Turn, Work};
use super::{Desk, attempt};

/// Longest rest of a lane that has nothing to do.
const REST: Duration = Duration::from_secs(1);

/// As `lane`, for sinks whose futures are ready at once or wait by [`runtime::sleep`].
pub(super) fn lane(desk: Arc<Desk>, mut sink: Box<dyn Sink>) {
    loop {
        let turn = {
            let mut state = desk.lock();
            if state.is_closed {
                return;
            }
            let turn = state.backlog.next(Instant::now(), desk.shared.clock.now_us());
            desk.pass_withheld(&mut state);
            turn
        };
        match turn {
            Turn::Work(work) if fault::is_removed("acknowledged means delivered") => {
                desk.finish(&work, Some(Ok(())));
                runtime::sleep(Duration::from_millis(100));
                let _ = deliver(&mut *sink, &work);
            }
            Turn::Work(work) => {
                let outcome = deliver(&mut *sink, &work);
                let given_up = std::pin::pin!(work.given_up.notified());
                let is_given_up = given_up.poll(&mut Context::from_waker(Waker::noop())).is_ready();
                desk.finish(&work, (!is_given_up).then_some(outcome));
            }
            Turn::Wait(until) => {
                let rest = until.map_or(REST, |until| until.saturating_duration_since(Instant::now()));
                runtime::sleep(rest.clamp(Duration::from_millis(1), REST));
            }
        }
    }
}

fn deliver(sink: &mut dyn Sink, work: &Work) -> Result<(), SinkError> {
    let attempt = std::pin::pin!(attempt(sink, &work.deliveries));
    match attempt.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => {
            let step = "handing alerts to the sink".to_owned();
            Err(SinkError::Unavailable { step, what: "it waits for a runtime".to_owned(), retry_after: None })
        }
    }
}
