//! A sink of one's own: a ward display that shows a line for each alert and acknowledges it.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use wardbell_connectors::sink::{Delivering, Delivery, Sink, SinkError};

/// The display answers within this, or the attempt has failed.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends `SHOW <id> <priority> <transition> <text>`. The display answers `OK <id>` once it shows the line (and shows an id
/// it knows only once), `BUSY <seconds>`, `BAD <id>` for a line it can never show, or `WHO` if it does not know us.
pub struct WardDisplay {
    address: String,
    connection: Option<BufStream<TcpStream>>,
}

impl WardDisplay {
    /// `address` is host and port. Connects with the first alert.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), connection: None }
    }

    /// One line there, one line back.
    async fn ask(&mut self, line: &str) -> std::io::Result<String> {
        // Taken out, and put back when the answer is whole: an attempt may be dropped at any point, and what is left of an
        // answer must not be taken for the next one.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufStream::new(TcpStream::connect(&self.address).await?),
        };
        connection.write_all(line.as_bytes()).await?;
        connection.flush().await?;
        let mut answer = String::new();
        if connection.read_line(&mut answer).await? == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        self.connection = Some(connection);
        Ok(answer.trim_end().to_owned())
    }

    async fn show(&mut self, delivery: &Delivery) -> Result<(), SinkError> {
        let (alert, content) = (&delivery.alert, &delivery.alert.data.content);
        let text = content.message.replace(['\r', '\n'], " ");
        let line = format!("SHOW {} {} {} {text}\n", alert.id, content.priority.name(), content.transition.name());
        let step = format!("showing an alert at {}", self.address);
        let answer = match tokio::time::timeout(TIMEOUT, self.ask(&line)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => return Err(SinkError::Io { step, source }),
            Err(_) => return Err(SinkError::Io { step, source: Error::from(ErrorKind::TimedOut) }),
        };
        match answer.split_once(' ').unwrap_or((answer.as_str(), "")) {
            ("OK", id) if id == alert.id => Ok(()),
            ("BUSY", seconds) => {
                let retry_after = seconds.parse().ok().map(Duration::from_secs);
                Err(SinkError::Unavailable { step, what: "it is busy".to_owned(), retry_after })
            }
            ("BAD", _) => Err(SinkError::Rejected { step, what: "it cannot show this one".to_owned() }),
            ("WHO", _) => {
                let remedy = "register this machine at the display".to_owned();
                Err(SinkError::Refused { step, what: "it does not know us".to_owned(), remedy })
            }
            _ => Err(SinkError::Unavailable { step, what: "it failed".to_owned(), retry_after: None }),
        }
    }
}

impl Sink for WardDisplay {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        Box::pin(async move {
            for delivery in deliveries {
                self.show(delivery).await?;
            }
            Ok(())
        })
    }
}
