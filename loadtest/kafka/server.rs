//! A real Kafka for tests: an address given from outside, or a broker of its own started by `kafka.sh`.
//!
//! Included by path from the tests that need it. A broker started here ends with the test's process, also if that is
//! killed. Without Java or Maven a test reports itself skipped by name; `WARDBELL_REQUIRE_KAFKA=1` makes that a failure.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Address of a broker to use instead of starting one.
const ADDRESS: &str = "WARDBELL_KAFKA";
/// A skip is a failure.
const REQUIRE: &str = "WARDBELL_REQUIRE_KAFKA";

struct Server {
    bootstrap: String,
    /// Folder of a broker of our own; removed with its process.
    _folder: Option<tempfile::TempDir>,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("loadtest/kafka/kafka.sh"))
        .find(|script| script.is_file())
        .expect("the script is part of the repository")
}

fn start() -> Result<Server, String> {
    if let Ok(bootstrap) = std::env::var(ADDRESS) {
        return Ok(Server { bootstrap, _folder: None });
    }
    let need = Command::new(script()).arg("need").output().map_err(|error| error.to_string())?;
    if !need.status.success() {
        return Err(String::from_utf8_lossy(&need.stderr).trim().to_owned());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = Command::new(script())
        .args(["run", "--while-pid", &std::process::id().to_string(), "--dir"])
        .arg(folder.path())
        .output()
        .map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let bootstrap = line.split_whitespace().find_map(|word| word.strip_prefix("bootstrap="));
    match bootstrap {
        Some(bootstrap) if output.status.success() => {
            Ok(Server { bootstrap: bootstrap.to_owned(), _folder: Some(folder) })
        }
        _ => panic!("kafka.sh could not start a broker: {line}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The broker's address, the same for all tests of this process; `None` after saying that `test` is skipped.
///
/// # Panics
/// If a broker is required and there is none.
pub fn bootstrap(test: &str) -> Option<&'static str> {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    match SERVER.get_or_init(start) {
        Ok(server) => Some(&server.bootstrap),
        Err(why) => {
            assert!(std::env::var_os(REQUIRE).is_none(), "{test} needs Kafka: {why}");
            // Written past the test harness, so that a skip is seen without asking for the output of passed tests.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
            None
        }
    }
}

/// A name nobody used before on this broker.
pub fn fresh(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
