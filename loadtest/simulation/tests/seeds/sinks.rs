//! The other side of simulated sinks: it takes alerts, refuses them or is slow, and remembers what it was given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wardbell_connectors::runtime;
use wardbell_connectors::sink::{Delivering, Delivery, Sink, SinkError};

use wardbell_simulation::laws::Delivered;

/// See the module.
#[derive(Debug, Default)]
pub struct Receiver {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the sink's name.
    taken: Vec<(String, Delivered)>,
    refuses: bool,
    is_slow: bool,
}

impl Receiver {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on alerts are refused, or taken slowly.
    pub fn fail(&self, refuses: bool) {
        let mut state = self.lock();
        (state.refuses, state.is_slow) = (refuses, !refuses);
    }

    pub fn recover(&self) {
        let mut state = self.lock();
        (state.refuses, state.is_slow) = (false, false);
    }

    /// Everything that was taken, in order.
    pub fn taken(&self) -> Vec<(String, Delivered)> {
        self.lock().taken.clone()
    }
}

/// A sink of one instance.
pub struct SimulatedSink {
    receiver: Arc<Receiver>,
    name: String,
    instance: usize,
}

impl SimulatedSink {
    pub fn boxed(receiver: &Arc<Receiver>, name: &str, instance: usize) -> Box<dyn Sink> {
        Box::new(Self { receiver: receiver.clone(), name: name.to_owned(), instance })
    }

    fn take(&self, deliveries: &[Delivery]) -> Result<(), SinkError> {
        let (refuses, is_slow) = {
            let state = self.receiver.lock();
            (state.refuses && self.name == "pager", state.is_slow)
        };
        if is_slow {
            runtime::sleep(Duration::from_millis(800));
        }
        if refuses {
            let step = "simulated sink".to_owned();
            return Err(SinkError::Unavailable { step, what: "it refuses".to_owned(), retry_after: None });
        }
        let taken = |delivery: &Delivery| {
            (self.name.clone(), Delivered::new(self.instance as u32, &delivery.alert.data.content))
        };
        self.receiver.lock().taken.extend(deliveries.iter().map(taken));
        Ok(())
    }
}

impl Sink for SimulatedSink {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        Box::pin(async move { self.take(deliveries) })
    }
}
