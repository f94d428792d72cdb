//! Webhook: each alert as one HTTP POST of a CloudEvent in structured mode, signed as Standard Webhooks has it.
//!
//! `webhook-id` and `Idempotency-Key` are the alert's id and stay the same however often it comes; time stamp and
//! signature are of the attempt. 2xx is the acknowledgment. Redirects are not followed and proxies of the environment not
//! used: an alert goes to the configured address or nowhere. What the other side answers beyond its status is not looked
//! at and never logged; secrets are printed nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use secrecy::zeroize::Zeroize;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::Sha256;
use wardbell_schemas::alert::Alert;
use wardbell_schemas::{Micros, SECOND};

use super::{Delivering, Delivery, Sink, SinkError};
use crate::clock::Clock;
pub use crate::secret::SecretSource;

/// Of a CloudEvent in structured mode.
const CONTENT: &str = "application/cloudevents+json";
/// Marks a secret in base64, as Standard Webhooks writes them.
const SECRET_PREFIX: &str = "whsec_";
/// Shortest key for signatures, in bytes, as Standard Webhooks asks for.
const KEY_MIN: usize = 24;
/// Bodies of answers are read to here, so that the connection can be used again; longer ones close it.
const BODY_MAX: usize = 1_024;
/// The acknowledgment is the status: its body does not hold the alert back for longer.
const BODY_WAIT: Duration = Duration::from_millis(100);
/// Time-outs that make sense: an alert must have time for another attempt within the budget of 30 s.
const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(20);
/// Headers that are ours.
const RESERVED: [&str; 9] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Everything a webhook is made from.
#[derive(Clone)]
pub struct WebhookSettings {
    pub url: String,
    /// For the signature: `whsec_` and the key in base64, or a text whose bytes are the key. A file is read again when the
    /// other side answers 401.
    pub secret: SecretSource,
    /// For `Authorization: Bearer`.
    pub token: Option<SecretSource>,
    /// Certificates in PEM. With them, nobody else is trusted.
    pub ca_file: Option<PathBuf>,
    /// For one attempt, from connecting to the answer.
    pub timeout: Duration,
    /// Sent with every request.
    pub headers: BTreeMap<String, String>,
    /// Allow `http:` to other machines: whoever listens on the way reads along.
    pub allow_plain_http: bool,
}

/// Something about the settings that a person has to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name.
    pub key: &'static str,
    pub what: String,
    pub remedy: String,
    /// It works all the same.
    pub is_warning: bool,
}

impl Fault {
    fn error(key: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key, what: what.into(), remedy: remedy.into(), is_warning: false }
    }
}

impl WebhookSettings {
    /// Everything that is wrong, at once. Looks at files and environment; asks nobody.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> =
            [self.address().err(), self.roots().err(), self.fixed_headers().err(), Credentials::read(self).err()]
                .into_iter()
                .flatten()
                .collect();
        if !TIMEOUTS.contains(&self.timeout) {
            let what = format!("{} ms is no useful time-out", self.timeout.as_millis());
            faults.push(Fault::error("timeout", what, "between \"100ms\" and \"20s\"; 5s suits most receivers"));
        }
        for (key, source) in [("secret_file", Some(&self.secret)), ("token_file", self.token.as_ref())] {
            if let Some(SecretSource::File(path)) = source
                && fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
            {
                let what = format!("every user of this machine can read `{}`", path.display());
                let remedy = format!("chmod 600 {}", path.display());
                faults.push(Fault { is_warning: true, ..Fault::error(key, what, remedy) });
            }
        }
        faults
    }

    fn address(&self) -> Result<Url, Fault> {
        let fault = |what: &str, remedy: &str| Err(Fault::error("url", what, remedy));
        let Ok(url) = Url::parse(&self.url) else {
            return fault("not a URL", "like \"https://alerts.example.org/wardbell\"");
        };
        let Some(host) = url.host_str() else {
            return fault("names no host", "like \"https://alerts.example.org/wardbell\"");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return fault("carries credentials", "take them out; a bearer token belongs into `token_file`");
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.allow_plain_http || is_loopback(host) => Ok(url),
            "http" => fault(
                "plain HTTP would show alerts to everybody on the way",
                "use https, or set allow_plain_http = true for a network that is yours alone",
            ),
            _ => fault("neither https nor http", "like \"https://alerts.example.org/wardbell\""),
        }
    }

    /// Whom to trust; `None`: whom the machine trusts.
    fn roots(&self) -> Result<Option<Vec<Certificate>>, Fault> {
        let Some(path) = &self.ca_file else {
            return Ok(None);
        };
        let remedy = "name a file with the certificates of your authority in PEM";
        let fault = |what: String| Fault::error("ca_file", format!("`{}` {what}", path.display()), remedy);
        let pem = fs::read(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
        let roots = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if roots.is_empty() { Err(fault("holds no certificate".to_owned())) } else { Ok(Some(roots)) }
    }

    fn fixed_headers(&self) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let fault = |what: &str, remedy: &str| Fault::error("headers", format!("`{name}` {what}"), remedy);
            let known = HeaderName::try_from(name.as_str())
                .map_err(|_| fault("is no name of a header", "letters, digits and `-`"))?;
            if RESERVED.contains(&known.as_str()) {
                return Err(fault("is set by the engine", "remove it"));
            }
            let mut value = HeaderValue::try_from(value.as_str())
                .map_err(|_| fault("has a value that no header can have", "printable characters without line ends"))?;
            value.set_sensitive(true);
            headers.insert(known, value);
        }
        Ok(headers)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What proves that an alert is from us.
struct Credentials {
    key: SecretSlice<u8>,
    /// The value of `Authorization`.
    authorization: Option<HeaderValue>,
    /// Counts the times they changed.
    generation: u64,
}

impl Credentials {
    fn read(settings: &WebhookSettings) -> Result<Self, Fault> {
        let secret = settings.secret.read_for("secret_file", "secret_env")?;
        let key = key_of(&secret).map_err(|what| {
            let remedy = "make one with: printf 'whsec_%s' \"$(openssl rand -base64 32)\"";
            Fault::error(settings.secret.key("secret_file", "secret_env"), what, remedy)
        })?;
        let authorization = match &settings.token {
            None => None,
            Some(source) => {
                let token = source.read_for("token_file", "token_env")?;
                let mut text = format!("Bearer {}", token.expose_secret());
                let value = HeaderValue::try_from(text.as_str());
                text.zeroize();
                let mut value = value.map_err(|_| {
                    let key = source.key("token_file", "token_env");
                    Fault::error(key, "holds no token", "one line of printable characters")
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { key, authorization, generation: 0 })
    }

    fn same_as(&self, other: &Self) -> bool {
        self.key.expose_secret() == other.key.expose_secret() && self.authorization == other.authorization
    }
}

impl SecretSource {
    /// The setting that names this source.
    fn key(&self, file: &'static str, variable: &'static str) -> &'static str {
        match self {
            SecretSource::File(_) => file,
            SecretSource::Variable(_) => variable,
        }
    }

    /// As [`SecretSource::read`], naming the setting.
    fn read_for(&self, file: &'static str, variable: &'static str) -> Result<SecretString, Fault> {
        self.read().map_err(|error| Fault::error(self.key(file, variable), error.what, error.remedy))
    }
}

fn key_of(secret: &SecretString) -> Result<SecretSlice<u8>, String> {
    let text = secret.expose_secret();
    let key = match text.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => {
            STANDARD.decode(encoded).map_err(|_| format!("what follows `{SECRET_PREFIX}` is not base64"))?
        }
        None => text.as_bytes().to_vec(),
    };
    let length = key.len();
    let key = SecretSlice::from(key);
    if length < KEY_MIN {
        return Err(format!("the key has {length} bytes, at least {KEY_MIN} are needed"));
    }
    Ok(key)
}

/// The signature of Standard Webhooks: version, comma, HMAC-SHA256 over id, time stamp and body, joined by dots.
fn signature(key: &SecretSlice<u8>, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret()).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// See the module. Clones are lanes to the same receiver and share connections and credentials.
#[derive(Clone)]
pub struct Webhook {
    shared: Arc<Shared>,
}

struct Shared {
    settings: WebhookSettings,
    clock: Arc<dyn Clock>,
    url: Url,
    /// Where it goes, as messages may say it: without path, which may be a secret.
    step: String,
    client: Client,
    headers: HeaderMap,
    credentials: Mutex<Credentials>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("step", &self.shared.step).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Makes the sink; connects to nobody yet.
    ///
    /// # Errors
    /// [`SinkError::Refused`] naming the first setting that cannot work.
    pub fn new(settings: WebhookSettings, clock: Arc<dyn Clock>) -> Result<Self, SinkError> {
        let refused = |fault: Fault| {
            let step = format!("making a webhook, `{}`", fault.key);
            SinkError::Refused { step, what: fault.what, remedy: fault.remedy }
        };
        if let Some(fault) = settings.faults().into_iter().find(|fault| !fault.is_warning) {
            return Err(refused(fault));
        }
        let url = settings.address().map_err(refused)?;
        let headers = settings.fixed_headers().map_err(refused)?;
        let credentials = Credentials::read(&settings).map_err(refused)?;
        // Another part of the process may have installed its own, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("wardbell/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if url.scheme() == "http" {
            // Nobody has to be trusted, so a machine without certificates will do.
            builder = builder.tls_certs_only([]);
        } else if let Some(roots) = settings.roots().map_err(refused)? {
            builder = builder.https_only(true).tls_certs_only(roots);
        } else {
            builder = builder.https_only(true);
        }
        let step = format!("posting to {}", url.origin().ascii_serialization());
        let client = builder.build().map_err(|error| SinkError::Refused {
            step: step.clone(),
            what: innermost(&error),
            remedy: "set `ca_file`, or install the certificates of public authorities on this machine".to_owned(),
        })?;
        let credentials = Mutex::new(credentials);
        Ok(Self { shared: Arc::new(Shared { settings, clock, url, step, client, headers, credentials }) })
    }

    /// Whether the receiver answers, over TLS where the address says so. It is asked for the head of its root, without
    /// credentials and without an alert; whatever it answers will do.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] with the cause.
    pub async fn reach(&self) -> Result<(), SinkError> {
        let mut root = self.shared.url.clone();
        root.set_path("/");
        root.set_query(None);
        let answer = self.shared.client.head(root).send().await;
        answer.map(|_| ()).map_err(|error| self.shared.unreachable(&error.without_url()))
    }
}

impl Sink for Webhook {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        Box::pin(async move {
            for delivery in deliveries {
                self.shared.deliver(&delivery.alert).await?;
            }
            Ok(())
        })
    }
}

impl Shared {
    async fn deliver(&self, alert: &Alert) -> Result<(), SinkError> {
        let body = serde_json::to_vec(alert)
            .map_err(|_| SinkError::Rejected { step: self.step.clone(), what: "it cannot be written".to_owned() })?;
        let mut used = self.credentials().generation;
        let mut answer = self.post(&alert.id, &body).await?;
        if answer.status == StatusCode::UNAUTHORIZED && self.renew_credentials(used) {
            used = self.credentials().generation;
            tracing::info!(to = self.step, generation = used, "the secret was changed: trying with the new one");
            answer = self.post(&alert.id, &body).await?;
        }
        judge(&self.step, &answer)
    }

    async fn post(&self, id: &str, body: &[u8]) -> Result<Answer, SinkError> {
        let timestamp = self.clock.now_us().div_euclid(SECOND);
        let (signature, authorization) = {
            let credentials = self.credentials();
            (signature(&credentials.key, id, timestamp, body), credentials.authorization.clone())
        };
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, CONTENT)
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .header("idempotency-key", id)
            .body(body.to_vec());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(|error| self.unreachable(&error.without_url()))?;
        let retry_after = retry_after(response.headers().get(RETRY_AFTER), self.clock.now_us());
        let answer = Answer { status: response.status(), retry_after };
        let _ = tokio::time::timeout(BODY_WAIT, drain(&mut response)).await;
        Ok(answer)
    }

    fn credentials(&self) -> std::sync::MutexGuard<'_, Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads files again; whether there are other credentials now than those of generation `used`.
    fn renew_credentials(&self, used: u64) -> bool {
        let mut credentials = self.credentials();
        if credentials.generation != used {
            // Another lane was faster.
            return true;
        }
        match Credentials::read(&self.settings) {
            Ok(read) if read.same_as(&credentials) => false,
            Ok(read) => {
                *credentials = Credentials { generation: used + 1, ..read };
                true
            }
            Err(fault) => {
                tracing::error!(to = self.step, key = fault.key, "the secret cannot be read again: {}", fault.what);
                false
            }
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> SinkError {
        let step = self.step.clone();
        if error.is_builder() {
            return SinkError::Rejected { step, what: "it cannot be sent over HTTP".to_owned() };
        }
        let what = if error.is_timeout() {
            format!("no answer within {} ms", self.settings.timeout.as_millis())
        } else {
            innermost(error)
        };
        SinkError::Unavailable { step, what, retry_after: None }
    }
}

/// What of an answer counts.
#[derive(Debug, Clone, Copy)]
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
}

/// What an answer means for the alert.
fn judge(step: &str, answer: &Answer) -> Result<(), SinkError> {
    let step = step.to_owned();
    let what = format!("the answer is {}", answer.status.as_u16());
    let refused = |remedy: &str| {
        let (step, what) = (step.clone(), what.clone());
        Err(SinkError::Refused { step, what, remedy: remedy.to_owned() })
    };
    match answer.status.as_u16() {
        200..=299 => Ok(()),
        300..=399 => refused("redirects are not followed: put the final address into `url`"),
        400 | 413 | 422 => Err(SinkError::Rejected { step, what }),
        401 => refused("check that both sides have the same secret and token; files are read again at every 401"),
        403 => refused("allow this sender at the receiver, or check the token"),
        404 | 410 => refused("check `url`: nothing takes alerts there"),
        408 | 425 => Err(SinkError::Unavailable { step, what, retry_after: None }),
        429 => Err(SinkError::Unavailable { step, what, retry_after: answer.retry_after }),
        402..=499 => refused("see the receiver's log for the reason"),
        503 => Err(SinkError::Unavailable { step, what, retry_after: answer.retry_after }),
        _ => Err(SinkError::Unavailable { step, what, retry_after: None }),
    }
}

/// `Retry-After` in either of its forms; a time that has passed asks for nothing.
fn retry_after(value: Option<&HeaderValue>, now_us: Micros) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTimeParser::new().parse_timestamp(text).ok()?;
    u64::try_from(at.as_microsecond() - now_us).ok().map(Duration::from_micros)
}

/// Reads a short body, so that the connection can be used again.
async fn drain(response: &mut Response) {
    let mut length = 0;
    while length <= BODY_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => length += chunk.len(),
            _ => return,
        }
    }
}

/// The cause at the bottom, which names no address.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, secret: SecretSource) -> WebhookSettings {
        WebhookSettings {
            url: url.to_owned(),
            secret,
            token: None,
            ca_file: None,
            timeout: Duration::from_secs(5),
            headers: BTreeMap::new(),
            allow_plain_http: false,
        }
    }

    fn secret_file(folder: &tempfile::TempDir, text: &str) -> SecretSource {
        let path = folder.path().join("secret");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        SecretSource::File(path)
    }

    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        // The example that the libraries of Standard Webhooks test themselves with.
        let key = key_of(&SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).expect("a key");
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn every_status_is_acknowledged_tried_again_refused_or_rejected() {
        let verdict = |status: u16| {
            let status = StatusCode::from_u16(status).expect("a status");
            match judge("posting", &Answer { status, retry_after: Some(Duration::from_secs(7)) }) {
                Ok(()) => "taken",
                Err(SinkError::Unavailable { retry_after: Some(_), .. }) => "again later",
                Err(SinkError::Unavailable { .. } | SinkError::Io { .. }) => "again",
                Err(SinkError::Refused { .. }) => "refused",
                Err(SinkError::Rejected { .. }) => "rejected",
            }
        };
        for (statuses, expected) in [
            (&[200, 201, 202, 204][..], "taken"),
            (&[408, 425, 500, 502, 504, 599][..], "again"),
            (&[429, 503][..], "again later"),
            (&[301, 302, 307, 308, 401, 402, 403, 404, 405, 409, 410, 451][..], "refused"),
            (&[400, 413, 422][..], "rejected"),
        ] {
            for status in statuses {
                assert_eq!(verdict(*status), expected, "{status}");
            }
        }
    }

    #[test]
    fn a_wish_to_wait_is_read_in_seconds_and_as_a_date() {
        let wish = |text: &str| {
            let value = HeaderValue::from_str(text).expect("a header");
            // 2015-10-21T07:28:00Z, less ten seconds.
            retry_after(Some(&value), 1_445_412_470 * SECOND).map(|wish| wish.as_secs())
        };
        assert_eq!(wish("120"), Some(120));
        assert_eq!(wish("Wed, 21 Oct 2015 07:28:00 GMT"), Some(10));
        assert_eq!(wish("Wed, 21 Oct 2015 07:27:00 GMT"), None, "passed");
        assert_eq!(wish("soon"), None);
        assert_eq!(retry_after(None, 0), None);
    }

    #[test]
    fn addresses_that_would_show_alerts_to_others_are_faults() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = secret_file(&folder, "0123456789abcdef0123456789abcdef\n");
        let faults = |url: &str| -> Vec<String> {
            let faults = settings(url, secret.clone()).faults();
            faults.into_iter().map(|fault| format!("{}: {}", fault.key, fault.what)).collect()
        };
        for good in ["https://a.example/x", "http://127.0.0.1:8080/", "http://localhost/", "http://[::1]:80/"] {
            assert_eq!(faults(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["http://10.0.0.1/", "http://a.example/", "ftp://a.example/", "https://u:p@a.example/", "alerts"] {
            assert_eq!(faults(bad).len(), 1, "{bad}");
        }
        let open = WebhookSettings { allow_plain_http: true, ..settings("http://a.example/", secret) };
        assert_eq!(open.faults(), []);
    }

    #[test]
    fn secrets_that_cannot_work_are_faults_and_are_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = "https://a.example/";
        for (text, what) in [
            ("", "is empty"),
            ("too-short-7531\n", "14 bytes"),
            ("whsec_not-base64-7531", "not base64"),
            ("whsec_c2hvcnQ=", "5 bytes"),
        ] {
            let faults = settings(url, secret_file(&folder, text)).faults();
            assert_eq!(faults.len(), 1, "{text}");
            assert!(faults[0].key == "secret_file" && faults[0].what.contains(what), "{faults:?}");
            assert!(!format!("{faults:?}").contains("7531"), "{faults:?}");
        }
        let missing = settings(url, SecretSource::Variable("WEBHOOK_TEST_NOT_SET".to_owned())).faults();
        assert!(missing[0].key == "secret_env" && missing[0].what.contains("WEBHOOK_TEST_NOT_SET"), "{missing:?}");
        let SecretSource::File(path) = secret_file(&folder, "0123456789abcdef0123456789abcdef") else {
            unreachable!("a file was made")
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        let warned = settings(url, SecretSource::File(path)).faults();
        assert!(warned.len() == 1 && warned[0].is_warning && warned[0].remedy.contains("chmod 600"), "{warned:?}");
    }

    #[test]
    fn headers_of_ours_and_certificates_that_are_none_are_faults() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = secret_file(&folder, "0123456789abcdef0123456789abcdef");
        let with = |name: &str, value: &str| WebhookSettings {
            headers: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..settings("https://a.example/", secret.clone())
        };
        assert_eq!(with("X-Ward", "4b").faults(), []);
        for (name, value) in [("Webhook-Id", "x"), ("a b", "x"), ("X-Ward", "a\nb")] {
            assert_eq!(with(name, value).faults().len(), 1, "{name}");
        }
        let ca_file = folder.path().join("ca.pem");
        fs::write(&ca_file, "no certificate").expect("written");
        let faults = WebhookSettings { ca_file: Some(ca_file), ..with("X-Ward", "4b") }.faults();
        assert!(faults.len() == 1 && faults[0].key == "ca_file", "{faults:?}");
    }
}
