//! JSON lines: one alert a line in its CloudEvents form, synced to disk before it counts as delivered.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{BATCH_MAX, Delivering, Delivery, Sink, SinkError};

/// See the module.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// The file may end in half a line: after a crash, or a disk that was full.
    torn: bool,
}

impl JsonLines {
    /// Appends to the file, making it if it is missing.
    ///
    /// # Errors
    /// [`SinkError::Io`] naming the path.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| SinkError::Io { step: format!("opening `{}` for alerts", path.display()), source })?;
        Ok(Self { path: path.to_owned(), file, torn: true })
    }
}

/// Whether a file is empty or ends with a line break; one that cannot be read is left to the next write's error.
fn ends_a_line(path: &Path) -> bool {
    let last = || {
        let mut file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(true);
        }
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        std::io::Result::Ok(last == *b"\n")
    };
    last().unwrap_or(true)
}

impl Sink for JsonLines {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        let io = |source: std::io::Error| SinkError::Io {
            step: format!("writing alerts to `{}`", self.path.display()),
            source,
        };
        let mut lines = Vec::new();
        let mut result = Ok(());
        if self.torn && !ends_a_line(&self.path) {
            lines.push(b'\n');
        }
        for delivery in deliveries {
            result =
                result.and_then(|()| serde_json::to_writer(&mut lines, &delivery.alert).map_err(std::io::Error::from));
            lines.push(b'\n');
        }
        let result = result.and_then(|()| self.file.write_all(&lines)).and_then(|()| self.file.sync_data()).map_err(io);
        self.torn = result.is_err();
        Box::pin(std::future::ready(result))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn notifies(&self) -> bool {
        false
    }
}

/// The same lines on standard output, for scripts.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdoutLines;

impl Sink for StdoutLines {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        let mut out = std::io::stdout().lock();
        let mut result = Ok(());
        for delivery in deliveries {
            result =
                result.and_then(|()| serde_json::to_writer(&mut out, &delivery.alert).map_err(std::io::Error::from));
            result = result.and_then(|()| out.write_all(b"\n"));
        }
        let result = result.and_then(|()| out.flush());
        let step = "writing alerts to standard output".to_owned();
        Box::pin(std::future::ready(result.map_err(|source| SinkError::Io { step, source })))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn notifies(&self) -> bool {
        false
    }
}
