//! A real Kafka for tests: an address given from outside, or a broker of its own started by `kafka.sh`.
//!
//! A broker started here ends with the test's process, also if that is killed, and its folder goes with it. Without Java or Maven a test reports itself skipped by name; `WARDBELL_REQUIRE_KAFKA=1` makes that a failure.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Address of a broker to use instead of starting one.
const ADDRESS: &str = "WARDBELL_KAFKA";
/// A skip is a failure.
const REQUIRE: &str = "WARDBELL_REQUIRE_KAFKA";

/// A broker with a listener that wants TLS and SASL.
pub struct SecureServer {
    /// Address of that listener.
    pub bootstrap: String,
    /// Address of one that wants neither.
    pub plain: String,
    pub mechanism: String,
    pub user: String,
    pub password: String,
    /// The certificate that vouches for the broker.
    pub ca: PathBuf,
    /// One that does not.
    pub other_ca: PathBuf,
}

/// The script that starts brokers and runs their tools.
pub fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kafka.sh")
}

/// The line of a broker that runs in a folder of its own; both are gone when this process has ended.
fn run(options: &[&str]) -> Result<String, String> {
    let need = Command::new(script()).arg("need").output().map_err(|error| error.to_string())?;
    if !need.status.success() {
        return Err(String::from_utf8_lossy(&need.stderr).trim().to_owned());
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = Command::new(script())
        .args(["run", "--remove", "--while-pid", &std::process::id().to_string()])
        .args(options)
        .arg("--dir")
        .arg(folder.path())
        .output()
        .map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kafka.sh could not start a broker: {line}{complaint}");
    // The script's watchdog removes it: what is held until the process ends is never dropped.
    let _ = folder.keep();
    Ok(line)
}

/// The value of `name=value` in the broker's line.
fn word(line: &str, name: &str) -> String {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("kafka.sh names no {name}: {line}")).to_owned()
}

/// Its address.
fn start() -> Result<String, String> {
    match std::env::var(ADDRESS) {
        Ok(address) => Ok(address),
        Err(_) => run(&[]).map(|line| word(&line, "bootstrap")),
    }
}

fn start_secure(settings: &[&str]) -> Result<SecureServer, String> {
    let mut options = vec!["--secure"];
    options.extend(settings);
    let line = run(&options)?;
    let password = std::fs::read_to_string(word(&line, "password-file")).expect("the password can be read");
    Ok(SecureServer {
        bootstrap: word(&line, "secure"),
        plain: word(&line, "bootstrap"),
        mechanism: word(&line, "mechanism"),
        user: word(&line, "user"),
        password: password.trim().to_owned(),
        ca: word(&line, "ca").into(),
        other_ca: word(&line, "other-ca").into(),
    })
}

/// The broker's address, the same for all tests of this process; `None` after saying that `test` is skipped.
///
/// # Panics
/// If a broker is required and there is none.
pub fn bootstrap(test: &str) -> Option<&'static str> {
    static SERVER: OnceLock<Result<String, String>> = OnceLock::new();
    had(SERVER.get_or_init(start), test).map(String::as_str)
}

/// As [`bootstrap`], for a broker with TLS and SASL. It is always one of our own: what a broker elsewhere wants for keys
/// and passwords is not known here.
///
/// # Panics
/// If a broker is required and there is none.
pub fn secure(test: &str) -> Option<&'static SecureServer> {
    static SERVER: OnceLock<Result<SecureServer, String>> = OnceLock::new();
    had(SERVER.get_or_init(|| start_secure(&[])), test)
}

/// As [`secure`], with access control: its user may do what was granted, and whoever comes by the plain listener everything.
///
/// # Panics
/// If a broker is required and there is none.
pub fn guarded(test: &str) -> Option<&'static SecureServer> {
    static SERVER: OnceLock<Result<SecureServer, String>> = OnceLock::new();
    let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer";
    let settings = ["--set", authorizer, "super.users=User:ANONYMOUS"];
    had(SERVER.get_or_init(|| start_secure(&settings)), test)
}

fn had<T>(server: &'static Result<T, String>, test: &str) -> Option<&'static T> {
    match server {
        Ok(server) => Some(server),
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
