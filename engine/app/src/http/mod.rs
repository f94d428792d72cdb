//! What a job tells over HTTP: whether it lives, is ready and well, its metrics, and an API behind a token.
//!
//! The server runs on a thread of its own and only reads; nothing a client does reaches the job. It is up before the job
//! is, so that a broker that is away at start looks like waiting and not like a dead process. No answer holds a patient's
//! or device's name: labels are stages, topics, partitions, sinks, rules and reasons.

mod metrics;
mod report;
mod token;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Json;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;

use crate::latency::Stage;
use crate::pipeline::Observer;

pub use token::Token;

/// What every job answers, for the line that is printed at start.
pub const OPEN_PATHS: &str = "/livez /readyz /healthz /metrics /latency.hgrm";
/// Requests that are still answered when the server is told to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// A running server; it stops when told to, or when dropped.
pub struct Server {
    address: SocketAddr,
    surface: Arc<Surface>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be listened on, with what to do.
    pub fn start(address: SocketAddr, token: Option<Token>) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(address).with_context(|| {
            format!(
                "HTTP cannot listen on {address}: the port is in use or the address is not of this machine; change `listen` in [http], or set it to \"off\""
            )
        })?;
        listener.set_nonblocking(true).context("preparing to listen for HTTP")?;
        let address = listener.local_addr().context("asking for the address of HTTP")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("starting the runtime of HTTP")?;
        let surface = Arc::new(Surface { started: Instant::now(), job: OnceLock::new(), token });
        let router = router(surface.clone());
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || runtime.block_on(serve(listener, router, stopped)))
            .context("starting the thread of HTTP")?;
        Ok(Self { address, surface, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it tells of this job. Only the first is told of.
    pub fn attach(&self, job: Observer) {
        let _ = self.surface.job.set(job);
    }

    /// Answers what is under way and ends.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.thread.join();
    }
}

/// What answers are made from.
struct Surface {
    started: Instant,
    /// Absent until the job has started.
    job: OnceLock<Observer>,
    token: Option<Token>,
}

async fn serve(listener: std::net::TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(error = %error, "HTTP cannot be served");
            return;
        }
    };
    let (mut draining, mut over) = (stopped.clone(), stopped);
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = draining.wait_for(|stop| *stop).await;
        })
        .into_future();
    let drained = async move {
        let _ = over.wait_for(|stop| *stop).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!(error = %error, "HTTP is served no more");
            }
        }
        () = drained => {}
    }
}

fn router(surface: Arc<Surface>) -> Router {
    let api = Router::new()
        .route("/v1/status", get(status))
        .fallback(not_found)
        .layer(from_fn_with_state(surface.clone(), authorize));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/latency.hgrm", get(latency))
        .nest("/api", api)
        .fallback(not_found)
        .with_state(surface)
}

async fn livez(State(surface): State<Arc<Surface>>) -> Response {
    let (live, body) = report::liveness(surface.job.get());
    (if live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn readyz(State(surface): State<Arc<Surface>>) -> Response {
    let (ready, body) = report::readiness(surface.job.get());
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn healthz(State(surface): State<Arc<Surface>>) -> Response {
    let (failing, body) = report::health(surface.job.get(), surface.started.elapsed());
    (if failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, Json(body)).into_response()
}

async fn metrics(State(surface): State<Arc<Surface>>) -> Response {
    match metrics::encode(surface.job.get().cloned(), surface.started.elapsed()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("metrics: {error}"), "report this as a fault")
        }
    }
}

/// The percentile distribution of a stage: `?stage=total`, the default.
async fn latency(State(surface): State<Arc<Surface>>, uri: Uri) -> Response {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    let name = parameters.find_map(|parameter| parameter.strip_prefix("stage=")).unwrap_or("total");
    let Some(stage) = Stage::from_name(name) else {
        let known = Stage::ALL.map(Stage::name).join(", ");
        return refusal(StatusCode::BAD_REQUEST, "there is no such stage", &format!("one of {known}"));
    };
    let distribution = surface.job.get().and_then(|job| job.statistics().latency.percentile_distribution(stage));
    match distribution {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        None => {
            let what = format!("nothing was measured for stage `{}` yet", stage.name());
            refusal(StatusCode::NOT_FOUND, &what, "ask again once alerts were delivered")
        }
    }
}

async fn status(State(surface): State<Arc<Surface>>) -> Response {
    match surface.job.get() {
        Some(job) => Json(job.statistics().summary()).into_response(),
        None => refusal(StatusCode::SERVICE_UNAVAILABLE, report::NOT_STARTED, "see /healthz"),
    }
}

async fn not_found() -> Response {
    refusal(StatusCode::NOT_FOUND, "there is nothing here", &format!("known are {OPEN_PATHS} /api/v1/status"))
}

/// Lets requests pass that bear the token.
async fn authorize(State(surface): State<Arc<Surface>>, request: Request, next: Next) -> Response {
    let Some(token) = &surface.token else {
        let remedy = "set token_file or token_env in [http] and start again";
        return refusal(StatusCode::FORBIDDEN, "the API is closed: no token is configured", remedy);
    };
    if token.is_borne_by(request.headers()) {
        return next.run(request).await;
    }
    let remedy = "send the header `Authorization: Bearer <token>`";
    let mut response = refusal(StatusCode::UNAUTHORIZED, "this needs the token of [http]", remedy);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

fn refusal(status: StatusCode, error: &str, remedy: &str) -> Response {
    (status, Json(json!({ "error": error, "remedy": remedy }))).into_response()
}
