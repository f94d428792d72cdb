//! The webhook sink over real connections: what a receiver can verify, what is tried again under which id, what is never
//! shown.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Redirect;
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use sha2::{Digest, Sha256};
use wardbell_connectors::clock::ManualClock;
use wardbell_connectors::conformance::sink::{Behavior, Endpoint, Request, Target, delivery};
use wardbell_connectors::sink::webhook::{SecretSource, Webhook, WebhookSettings};
use wardbell_connectors::sink::{Sink, SinkError};
use wardbell_schemas::alert::Alert;

const OLD_KEY: &str = "the-old-key-the-old-key-the-old-key";
const NEW_KEY: &str = "the-new-key-the-new-key-the-new-key";
const TOKEN: &str = "a-token-that-nobody-may-see";
/// 2026-01-01T00:00:00Z.
const NOW_S: i64 = 1_767_225_600;

/// A webhook with its secrets in files of a folder.
struct Bench {
    folder: tempfile::TempDir,
    settings: WebhookSettings,
}

impl Bench {
    fn new(url: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = WebhookSettings {
            url: url.to_owned(),
            secret: SecretSource::File(folder.path().join("secret")),
            token: Some(SecretSource::File(folder.path().join("token"))),
            ca_file: None,
            timeout: Duration::from_secs(10),
            headers: BTreeMap::from([("X-Site".to_owned(), "test".to_owned())]),
            allow_plain_http: false,
        };
        let bench = Self { folder, settings };
        bench.write("secret", OLD_KEY);
        bench.write("token", TOKEN);
        bench
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::write(&path, format!("{text}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    }

    fn sink(&self) -> Webhook {
        let clock = ManualClock::default();
        clock.set(NOW_S * 1_000_000);
        Webhook::new(self.settings.clone(), Arc::new(clock)).expect("the settings are sound")
    }
}

/// HMAC-SHA256 as RFC 2104 writes it down, apart from the crate that the sink uses.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64, "a longer key would have to be hashed first");
    let padded = |with: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::digest([padded(0x36).as_slice(), message].concat());
    Sha256::digest([padded(0x5c).as_slice(), &inner[..]].concat()).to_vec()
}

fn signed_with(request: &Request, key: &str) -> bool {
    let mut message =
        format!("{}.{}.", request.headers["webhook-id"], request.headers["webhook-timestamp"]).into_bytes();
    message.extend_from_slice(&request.body);
    let expected = hmac_sha256(key.as_bytes(), &message);
    request.headers["webhook-signature"] == format!("v1,{}", STANDARD.encode(expected))
}

#[tokio::test]
async fn a_receiver_can_verify_what_it_gets() {
    let endpoint = Endpoint::start();
    let bench = Bench::new(&endpoint.url());
    let sent = delivery(1, 0);
    bench.sink().deliver(std::slice::from_ref(&sent)).await.expect("taken");
    let requests = endpoint.requests();
    let [request] = &requests[..] else { panic!("one alert, one request: {requests:?}") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/alerts"));
    assert_eq!(serde_json::from_slice::<Alert>(&request.body).expect("an alert"), sent.alert);
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    assert_eq!(header("content-type"), Some("application/cloudevents+json"));
    assert_eq!(header("webhook-id"), Some(sent.alert.id.as_str()));
    assert_eq!(header("idempotency-key"), Some(sent.alert.id.as_str()));
    assert_eq!(header("webhook-timestamp"), Some(NOW_S.to_string().as_str()));
    assert_eq!(header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(header("x-site"), Some("test"));
    assert!(signed_with(request, OLD_KEY) && !signed_with(request, NEW_KEY));
}

#[tokio::test]
async fn every_attempt_bears_the_same_id_and_the_same_alert() {
    let endpoint = Endpoint::start();
    let bench = Bench::new(&endpoint.url());
    endpoint.behave(&[Behavior::Fail, Behavior::TakeAndLoseAnswer, Behavior::Reject]);
    let alert = [delivery(1, 0)];
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        // A sink made anew stands for a process that was started again.
        let mut sink = bench.sink();
        outcomes.push(sink.deliver(&alert).await);
        outcomes.push(sink.deliver(&alert).await);
    }
    let kinds: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(()) => "taken",
            Err(SinkError::Rejected { .. }) => "rejected",
            Err(_) => "again",
        })
        .collect();
    assert_eq!(kinds, ["again", "again", "rejected", "taken"]);
    let requests = endpoint.requests();
    let keys: Vec<&str> = requests.iter().map(|request| request.headers["idempotency-key"].as_str()).collect();
    assert_eq!(keys, [alert[0].alert.id.as_str(); 4]);
    assert!(requests.iter().all(|request| request.headers["webhook-id"] == alert[0].alert.id));
    assert!(requests.iter().all(|request| request.body == requests[0].body));
}

#[tokio::test]
async fn a_changed_secret_is_read_again_when_the_receiver_does_not_know_us() {
    let endpoint = Endpoint::start();
    let bench = Bench::new(&endpoint.url());
    let mut sink = bench.sink();
    endpoint.behave(&[Behavior::Unauthorized, Behavior::Take, Behavior::Unauthorized]);
    bench.write("secret", NEW_KEY);
    bench.write("token", "another-token");
    sink.deliver(&[delivery(1, 0)]).await.expect("taken with the new secret");
    let requests = endpoint.requests();
    assert_eq!(requests.len(), 2);
    assert!(signed_with(&requests[0], OLD_KEY) && signed_with(&requests[1], NEW_KEY));
    assert_eq!(requests[1].headers["authorization"], "Bearer another-token");
    // With the same secret there is nothing to try at once.
    let refused = sink.deliver(&[delivery(1, 1)]).await.expect_err("the secret is the same");
    assert!(matches!(refused, SinkError::Refused { .. }), "{refused:?}");
    assert_eq!(endpoint.requests().len(), 3);
}

#[tokio::test]
async fn nothing_that_is_printed_shows_a_secret_or_the_path_of_the_address() {
    let endpoint = Endpoint::start();
    let bench = Bench::new(&endpoint.url());
    let mut sink = bench.sink();
    let mut printed = vec![format!("{sink:?}")];
    endpoint.behave(&[Behavior::Unauthorized, Behavior::Fail, Behavior::Reject]);
    for number in 0..3 {
        let error = sink.deliver(&[delivery(1, number)]).await.expect_err("as told");
        printed.push(format!("{error} {error:?}"));
    }
    // A port that nobody listens on: bound for a moment to find one that is free.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let away = Bench::new(&format!("http://127.0.0.1:{port}/alerts"));
    let error = away.sink().deliver(&[delivery(1, 0)]).await.expect_err("nobody listens");
    assert!(matches!(error, SinkError::Unavailable { retry_after: None, .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("posting to http://127.0.0.1:{port}")), "{error}");
    printed.push(format!("{error} {error:?}"));
    for text in printed {
        for secret in [OLD_KEY, TOKEN, "/alerts", "conformance-1"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// Serves a router on a free loopback port; ends with the test's runtime.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/alerts")
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Endpoint::start();
    let target = elsewhere.url();
    let redirect = move || std::future::ready(Redirect::temporary(&target));
    let url = serve(Router::new().route("/alerts", post(redirect))).await;
    let error = Bench::new(&url).sink().deliver(&[delivery(1, 0)]).await.expect_err("not followed");
    assert!(matches!(&error, SinkError::Refused { remedy, .. } if remedy.contains("`url`")), "{error:?}");
    assert_eq!(elsewhere.requests(), []);
}

#[tokio::test]
async fn a_long_answer_is_an_acknowledgment_all_the_same() {
    let answer = "x".repeat(4 << 20);
    let url = serve(Router::new().route("/alerts", post(move || std::future::ready(answer)))).await;
    let mut sink = Bench::new(&url).sink();
    sink.deliver(&[delivery(1, 0), delivery(1, 1)]).await.expect("taken");
}

#[tokio::test]
async fn a_receiver_is_reached_without_an_alert_and_without_credentials() {
    let seen: Arc<Mutex<Vec<(String, String, bool)>>> = Arc::default();
    let record = {
        let seen = seen.clone();
        move |method: Method, uri: Uri, headers: HeaderMap| {
            let names_us =
                ["authorization", "webhook-signature", "x-site"].iter().any(|name| headers.contains_key(*name));
            seen.lock().expect("not poisoned").push((method.to_string(), uri.path().to_owned(), names_us));
            std::future::ready(StatusCode::NOT_FOUND)
        }
    };
    let url = serve(Router::new().fallback(record)).await;
    Bench::new(&url).sink().reach().await.expect("whatever it answers will do");
    assert_eq!(*seen.lock().expect("not poisoned"), [("HEAD".to_owned(), "/".to_owned(), false)]);
}

/// A receiver with TLS, on a thread of its own: answers one request per connection with 200 and counts them.
fn tls_receiver() -> (u16, Arc<AtomicUsize>) {
    let certificate = include_bytes!("tls/receiver.pem");
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/receiver.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("key and certificate belong together");
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    // Ends with the test's process, like every thread that nobody waits for.
    std::thread::spawn(move || {
        for mut socket in listener.incoming().filter_map(Result::ok) {
            let mut connection = ServerConnection::new(config.clone()).expect("the configuration is sound");
            let mut stream = rustls::Stream::new(&mut connection, &mut socket);
            let mut received = Vec::new();
            let mut chunk = [0; 4_096];
            // The body is JSON of one object with nothing after it.
            while !received.ends_with(b"}}") {
                match stream.read(&mut chunk) {
                    Ok(length) if length > 0 => received.extend_from_slice(&chunk[..length]),
                    _ => break,
                }
            }
            if received.ends_with(b"}}") {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer).and_then(|()| stream.flush());
            }
        }
    });
    (port, taken)
}

fn test_certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

#[tokio::test]
async fn a_receiver_is_trusted_if_the_named_authority_vouches_for_it() {
    let (port, taken) = tls_receiver();
    let url = format!("https://127.0.0.1:{port}/alerts");
    let with = |ca: &str| {
        let mut bench = Bench::new(&url);
        bench.settings.ca_file = Some(test_certificate(ca));
        bench
    };
    let error = with("other-authority.pem").sink().deliver(&[delivery(1, 0)]).await.expect_err("nobody vouches");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(taken.load(Ordering::SeqCst), 0, "nothing was shown to a receiver that nobody vouches for");
    with("authority.pem").sink().deliver(&[delivery(1, 0)]).await.expect("taken");
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}
