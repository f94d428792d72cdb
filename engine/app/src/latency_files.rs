//! Percentile distributions as files: one `.hgrm` per stage, renewed every minute and at the end of a run.
//!
//! Anything that draws HdrHistograms reads them. A file is replaced as a whole, so a reader never sees half of one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::latency::{LatencyBook, Stage};
use crate::pipeline::Statistics;

/// Time between two renewals.
const EVERY: Duration = Duration::from_secs(60);

/// A thread that renews the files; it writes them a last time when stopped.
pub struct LatencyFiles {
    stop: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl LatencyFiles {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// The folder cannot be made, with what to do.
    pub fn start(folder: &Path, statistics: Arc<Statistics>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| {
            format!("the folder of latency.hgrm_dir, `{}`, cannot be made; check its path and rights", folder.display())
        })?;
        let (stop, stopped) = sync_channel(1);
        let folder = folder.to_owned();
        let renew = move || {
            loop {
                let over = !matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
                if let Err(error) = write(&folder, &statistics.latency) {
                    tracing::warn!(error = %error, folder = %folder.display(), "latency files cannot be written");
                }
                if over {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("latency files".to_owned()).spawn(renew);
        Ok(Self { stop, thread: thread.context("starting the thread of latency files")? })
    }

    /// Writes the files a last time and ends.
    pub fn stop(self) {
        let _ = self.stop.try_send(());
        let _ = self.thread.join();
    }
}

/// Writes a file for each stage that was measured.
///
/// # Errors
/// As the file system says; files that were there stay whole.
pub fn write(folder: &Path, book: &LatencyBook) -> std::io::Result<()> {
    for stage in Stage::ALL {
        if let Some(text) = book.percentile_distribution(stage) {
            let path: PathBuf = folder.join(format!("{}.hgrm", stage.name()));
            let unfinished = path.with_extension("hgrm.tmp");
            std::fs::write(&unfinished, text)?;
            std::fs::rename(&unfinished, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::alert::Priority;

    use super::*;

    #[test]
    fn a_stop_leaves_a_whole_file_for_each_stage_that_was_measured() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("latency");
        let statistics = Arc::new(Statistics::default());
        let files = LatencyFiles::start(&path, statistics.clone()).expect("the folder can be made");
        statistics.latency.record_total(Priority::High, 7_000);
        files.stop();
        let names: Vec<String> = std::fs::read_dir(&path)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["total.hgrm"]);
        let text = std::fs::read_to_string(path.join("total.hgrm")).expect("a text");
        assert!(text.contains("Total count    =            1]"), "{text}");
        let taken = LatencyFiles::start(&path.join("total.hgrm"), statistics).err().expect("a file is no folder");
        assert!(taken.to_string().contains("latency.hgrm_dir"), "{taken}");
    }
}
