//! The configured rules beside a running job: what differs from the published set is said, and what changes is published.
//!
//! A file watcher or SIGHUP asks for it; files are looked at once they have rested. Rules with a fault or a failed case
//! change nothing: every fault stands in the log and in health until the files are sound again. Instances that watch the
//! same content publish one set: the second finds that it is the newest already.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use wardbell_connectors::log::{LogError, Remedy};

use super::Shared;
use crate::health::{Finding, LoopHandle, Severity};
use crate::sets::folder::{Sound, Unsound};
use crate::sets::{Change, Document, RulesFolder, same_site_and_clock, short};

/// Files that are being written are not looked at before they have rested for this long.
const REST: Duration = Duration::from_secs(2);
/// Stops, signals and newly published sets are noticed within this time.
const WAIT: Duration = Duration::from_millis(200);
/// Under these keys health says what is wrong with the configured rules, and with watching them.
const FOLDER: &str = "rules/folder";
const WATCHER: &str = "rules/watcher";

/// Runs until the job stops. `configured` is what the folder held when the job started, if that was sound.
pub(super) fn run(shared: &Shared, folder: &RulesFolder, configured: Option<Document>) {
    let turning = shared.health.enter("rules folder");
    Stand { shared, folder, turning }.work(configured);
}

struct Stand<'a> {
    shared: &'a Shared,
    folder: &'a RulesFolder,
    turning: LoopHandle,
}

impl Stand<'_> {
    fn work(&self, configured: Option<Document>) {
        let (changed_tx, changed) = sync_channel(1);
        let watcher = if self.folder.watch { self.watch(changed_tx.clone()) } else { None };
        let mut compared_with = self.shared.sets.followed().0;
        match configured {
            Some(document) => self.compare(&document),
            None => self.look(),
        }
        // When the files are to be published; every change of them puts it off.
        let mut due = None;
        while !self.shared.stopping() {
            self.turning.beat();
            match changed.recv_timeout(WAIT) {
                Ok(()) => due = Some(Instant::now() + REST),
                Err(RecvTimeoutError::Timeout) => {}
                // Not while this thread holds a sender.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(WAIT),
            }
            if self.shared.publish_rules.swap(false, Ordering::SeqCst) {
                due = Some(Instant::now());
            }
            if due.is_some_and(|due| Instant::now() >= due) {
                due = self.publish();
            }
            let newest = self.shared.sets.followed().0;
            if newest != compared_with {
                compared_with = newest;
                self.look();
            }
        }
        drop(watcher);
    }

    /// Sends a word whenever something changes below the configured paths.
    fn watch(&self, changed: SyncSender<()>) -> Option<RecommendedWatcher> {
        let handler = move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too; of an error (lost events) it is not known what it was about.
            let is_change = match event {
                Ok(event) => !event.kind.is_access(),
                Err(_) => true,
            };
            if is_change {
                // A full channel means that a word is under way already.
                let _ = changed.try_send(());
            }
        };
        let watch_all = |watcher: &mut RecommendedWatcher| {
            self.folder.paths.iter().try_for_each(|path| {
                // Editors replace files, so that a watch on the file itself would be lost.
                let (place, mode) = if path.is_dir() {
                    (path.as_path(), RecursiveMode::Recursive)
                } else {
                    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                    (parent.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)
                };
                watcher.watch(place, mode)
            })
        };
        let made =
            notify::recommended_watcher(handler).and_then(|mut watcher| watch_all(&mut watcher).map(|()| watcher));
        made.inspect_err(|error| {
            tracing::warn!(error = %error, "the rules folder cannot be watched");
            let finding = Finding::new(
                Severity::Information,
                format!("the rules folder cannot be watched: {error}"),
                "changed rule files are not noticed",
                "publish them with `wardbell rules publish` or SIGHUP; `watch_rules = false` if they are not to be watched",
            );
            self.shared.health.report(WATCHER, finding);
        })
        .ok()
    }

    /// Says what is wrong with the folder, or how it differs from what is published.
    fn look(&self) {
        if let Some(sound) = self.load() {
            self.compare(&sound.document);
        }
    }

    /// The configured rules, if they are sound; else every fault is told.
    fn load(&self) -> Option<Sound> {
        let _waiting = self.turning.waiting("the files and cases of the rules folder");
        self.folder.load().inspect_err(|unsound| self.tell(unsound)).ok()
    }

    fn tell(&self, unsound: &Unsound) {
        let faults = unsound.lines();
        for fault in &faults {
            tracing::error!(fault, "the rules folder cannot be published");
        }
        let finding = Finding::new(
            Severity::Degraded,
            format!("the rules folder cannot be published: {}", faults.join("; ")),
            "the published set stays in force; changes of the folder take no effect",
            "correct the named files; `wardbell check` and `wardbell test` show more",
        );
        self.shared.health.report(FOLDER, finding);
    }

    /// Says whether the folder is what is published.
    fn compare(&self, document: &Document) {
        let sets = &self.shared.sets;
        let (number, published) = sets.followed();
        if document.hash() == published {
            self.shared.health.clear(FOLDER);
            return;
        }
        let change = match document.load() {
            Ok(set) => Change::between(&sets.newest().set, &set).in_one_line(),
            Err(why) => why.to_string(),
        };
        tracing::warn!(number, change, "the rules folder differs from what is published");
        let finding = Finding::new(
            Severity::Degraded,
            format!("the rules folder differs from published set {number}: {change}"),
            "the published set stays in force",
            "publish the folder with `wardbell rules publish` or SIGHUP, or put the published set into it with `wardbell rules show --out`",
        );
        self.shared.health.report(FOLDER, finding);
    }

    /// Publishes the folder if it is sound and not what is published already. Gives when to try again, if the broker is
    /// away.
    fn publish(&self) -> Option<Instant> {
        let sound = self.load()?;
        let waiting = self.turning.waiting("the broker, publishing rules");
        let result = self.publish_document(&sound.document);
        drop(waiting);
        let error = match result {
            Ok(Some(number)) => {
                let (rules, cases) = (sound.document.rules().len(), sound.n_cases);
                tracing::info!(
                    number,
                    set = short(&sound.document.hash()),
                    rules,
                    cases,
                    "the rules folder is published"
                );
                self.shared.health.clear(FOLDER);
                return None;
            }
            Ok(None) => {
                tracing::info!(set = short(&sound.document.hash()), "the rules folder is what is published already");
                self.shared.health.clear(FOLDER);
                return None;
            }
            Err(error) => error,
        };
        tracing::error!(error = %error, "the rules folder cannot be published");
        let finding = Finding::new(
            Severity::Degraded,
            format!("the rules folder cannot be published: {error}"),
            "the published set stays in force",
            "put right what the cause names; it is tried again where the broker was away, else at the next change or SIGHUP",
        );
        self.shared.health.report(FOLDER, finding);
        (error.remedy == Remedy::Retry).then(|| Instant::now() + REST)
    }

    fn publish_document(&self, document: &Document) -> Result<Option<u64>, LogError> {
        let sets = &self.shared.sets;
        if sets.topic().newest()?.is_some_and(|newest| newest.hash == document.hash()) {
            return Ok(None);
        }
        same_site_and_clock(&sets.newest().set.settings, &document.settings())
            .map_err(|what| LogError::new(Remedy::Refuse, "comparing with the published set", what))?;
        sets.topic().publish(document).map(Some)
    }
}
